"""Namespaces without a process: made in a thread that dies after, held by bind mounts.

Nothing is spawned. A namespace lives as long as its pin; a pin is a bind mount of the thread's own
``/proc/thread-self/ns/X`` on a file. Those of a first process (see ``init``) are entered instead of
made; the pin of a PID namespace names it, but does not keep it alive.
namespaces(7), netdevice(7), ipc_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from pathlib import Path
from typing import Final

from noderuntime.errors import FailedPreconditionError, HostError, InvalidArgumentError
from noderuntime.host import pids, syscalls
from noderuntime.host.mountinfo import is_mount_point
from noderuntime.host.ports import NamespaceRequest
from noderuntime.host.threads import in_own_thread, in_pool

_KINDS: Final = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
}
_PINS: Final = (*_KINDS, "pid", "user")
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_SYSCTL_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*")
# What ipc_namespaces(7) and uts_namespaces(7) list; all else outside net is the whole node's.
_IPC_SYSCTLS: Final = (
    "kernel/shm", "kernel/msg", "kernel/sem", "kernel/auto_msgmni", "fs/mqueue/",
)  # fmt: skip
_UTS_SYSCTLS: Final = ("kernel/hostname", "kernel/domainname")


class KernelNamespaces:
    """The ``Namespaces`` of ports.py."""

    async def prepare(self, root: Path) -> None:
        """Make ``root`` a private bind mount of itself; once is enough."""
        await in_pool(_prepare, root)

    async def create(self, directory: Path, request: NamespaceRequest) -> None:
        """Make and pin; whatever was pinned before is replaced. Raises HostError."""
        for name in request.sysctls:
            sysctl_path(name, request)
        await in_own_thread(_create, directory, request)

    async def remove(self, directory: Path) -> None:
        """Unpin; the kernel takes a network namespace down on its own time."""
        await in_pool(_remove, directory)

    async def pin_pid(self, pid: int, member_of: str, target: Path) -> None:
        """Pin a process' PID namespace. Raises FailedPreconditionError, HostError."""
        await in_pool(_pin_pid, pid, member_of, target)


def sysctl_path(name: str, request: NamespaceRequest) -> Path:
    """Return the file of a sysctl, in either spelling (a.b/c or a/b.c), as sysctl(8) reads them.

    Raises InvalidArgumentError unless it belongs to a namespace that is made here: what is written
    from this thread would else be the node's.
    """
    first = next((c for c in name if c in "./"), ".")
    path = name if first == "/" else name.translate(str.maketrans("./", "/."))
    if not all(_SYSCTL_PART.fullmatch(part) for part in path.split("/")):
        raise InvalidArgumentError(f"sysctl {name!r} is not a name of a sysctl")
    namespaced = (
        (request.network and path.startswith("net/"))
        or (request.ipc and path.startswith(_IPC_SYSCTLS))
        or (request.uts and path in _UTS_SYSCTLS)
    )
    if not namespaced:
        raise InvalidArgumentError(
            f"sysctl {name!r} is not one of the pod's own namespaces: it would change the node"
        )
    return Path("/proc/sys") / path


def _prepare(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if not is_mount_point(root):
        syscalls.mount(str(root), root, flags=syscalls.MS_BIND | syscalls.MS_REC)
    syscalls.mount("none", root, flags=syscalls.MS_PRIVATE)


def _create(directory: Path, request: NamespaceRequest) -> None:
    wanted = {"net": request.network, "ipc": request.ipc, "uts": request.uts}
    kinds = [kind for kind, is_wanted in wanted.items() if is_wanted]
    _remove(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if not kinds and not _of_init(request):
        return
    try:
        _fill(directory, request, kinds)
    except BaseException as error:
        try:
            _remove(directory)
        except HostError as cleanup:
            error.add_note(f"and while cleaning up: {cleanup}")
        if isinstance(error, OSError):
            raise syscalls.host_error("making the pod's namespaces", error.errno or 0) from error
        raise


def _fill(directory: Path, request: NamespaceRequest, kinds: list[str]) -> None:
    """Enter the namespaces, set them up, pin them."""
    _enter(kinds, request.init)
    if request.network:
        _loopback_up()
    if request.uts and request.hostname:
        socket.sethostname(request.hostname)
    for name, value in request.sysctls.items():
        _write_sysctl(sysctl_path(name, request), name, value)
    for kind in kinds:
        _pin(f"/proc/thread-self/ns/{kind}", directory / kind)
    if request.init is not None:
        for kind in _of_init(request):
            _pin(f"/proc/{request.init.pid}/ns/{kind}", directory / kind)
        _require_running(request.init)  # so the number was its own all the time


def _of_init(request: NamespaceRequest) -> list[str]:
    """Return the kinds that no thread of a program with threads could enter."""
    wanted = {"pid": request.pid, "user": request.user}
    return [kind for kind, is_wanted in wanted.items() if is_wanted]


def _enter(kinds: list[str], init: pids.ProcessIdentity | None) -> None:
    """Move this thread into namespaces of its own, or into those of ``init``."""
    if init is None:
        flags = 0
        for kind in kinds:
            flags |= _KINDS[kind]
        syscalls.unshare(flags)
        return
    for kind in kinds:
        syscalls.setns(Path(f"/proc/{init.pid}/ns/{kind}"), _KINDS[kind])
    _require_running(init)


def _require_running(process: pids.ProcessIdentity) -> None:
    if pids.identify(process.pid) != process:
        raise FailedPreconditionError(f"process {process.pid} has ended")


def _pin(source: str, target: Path) -> None:
    target.touch(mode=0o444)
    syscalls.mount(source, target, flags=syscalls.MS_BIND)
    # Else what clones a folder with all below it would keep the namespace for as long as it is.
    syscalls.mount("none", target, flags=syscalls.MS_UNBINDABLE)


def _pin_pid(pid: int, member_of: str, target: Path) -> None:
    process = pids.identify(pid)
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        groups = ""
    if process is None or member_of not in groups:
        raise FailedPreconditionError(f"container {member_of} has no process {pid} any more")
    _pin(f"/proc/{process.pid}/ns/pid", target)
    try:
        _require_running(process)
    except BaseException:
        syscalls.umount(target, syscalls.MNT_DETACH)
        raise


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        flags = struct.unpack("16sh14x", answer)[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


def _write_sysctl(path: Path, name: str, value: str) -> None:
    try:
        try:
            _write(path, value)
        except PermissionError:
            # IPC's are of their user namespace's root: no capability of the node's root counts.
            with syscalls.effective_user(path.stat().st_uid):
                _write(path, value)
    except OSError as error:
        raise syscalls.host_error(f"sysctl {name} = {value!r}", error.errno or 0) from error


def _write(path: Path, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _unpin(target: Path) -> bool:
    """Take one mount off; False where there is none, which the kernel is quicker to tell than /proc."""
    try:
        syscalls.umount(target, syscalls.MNT_DETACH)
    except HostError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT, errno.ENOTDIR}:
            return False
        raise
    return True


def _remove(directory: Path) -> None:
    for kind in _PINS:
        target = directory / kind
        while _unpin(target):
            pass
        target.unlink(missing_ok=True)
    try:
        directory.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise syscalls.host_error(f"cannot remove {directory}", error.errno or 0) from error
