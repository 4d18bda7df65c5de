"""The first process of a PID namespace: a program of 192 bytes, run by the OCI runtime, no monitor.

A PID namespace lives as long as its first process, which also inherits every orphan in it. The
program does what is left to do: it ignores SIGCHLD, by which the kernel reaps its children itself,
and sleeps. As the first of its namespace it hears no signal from inside; SIGKILL from outside ends
it, and with it all the rest. It is written here byte by byte, since a node has no compiler.

The OCI runtime starts it like any container, in a root with nothing else in it, without
capabilities: who may look through ``/proc/1/root`` finds nothing of the node there.
``init.json`` in its bundle says who it is, also to a later runtime.
sigaction(2) "SA_NOCLDWAIT", pid_namespaces(7), elf(5).
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import signal
import struct
from pathlib import Path
from typing import Final

from noderuntime.errors import DeadlineExceededError, HostError
from noderuntime.host import durable, oom, pids
from noderuntime.host.monitor_start import kill_creators, take_lock
from noderuntime.host.oci_runtime import clean_message
from noderuntime.host.pids import ProcessIdentity
from noderuntime.host.ports import InitRequest, OciRuntime
from noderuntime.host.process import Streams, spawn
from noderuntime.host.syscalls import host_error
from noderuntime.host.threads import in_pool

_CREATE_TIMEOUT_S: Final = 60.0
_SIZE_LIMIT_BYTES: Final = 64 * 1024
_BASE: Final = 0x400000
_HEADERS_BYTES: Final = 64 + 56
# struct sigaction of the kernel: SIG_IGN, no flags, no restorer, empty mask.
_IGNORE: Final = struct.pack("<4Q", 1, 0, 0, 0)
_X86_64: Final = bytes.fromhex(
    "b80d000000"  # mov eax, 13 (rt_sigaction)
    "bf11000000"  # mov edi, 17 (SIGCHLD)
    "488d3517000000"  # lea rsi, [rip + 23]: what follows the code
    "31d2"  # xor edx, edx
    "41ba08000000"  # mov r10d, 8 (bytes in a set of signals)
    "0f05"  # syscall
    "b822000000"  # mov eax, 34 (pause)
    "0f05"  # syscall
    "ebf7"  # jmp to the pause
    "90909090"  # nop: the data is aligned
)
_AARCH64: Final = struct.pack(
    "<16I",
    0xD28010C8,  # mov x8, 134 (rt_sigaction)
    0xD2800220,  # mov x0, 17 (SIGCHLD)
    0x100001C1,  # adr x1, . + 56: what follows the code
    0xD2800002,  # mov x2, 0
    0xD2800103,  # mov x3, 8 (bytes in a set of signals)
    0xD4000001,  # svc 0
    0xD2800928,  # mov x8, 73 (ppoll; there is no pause)
    0xD2800000,  # mov x0, 0
    0xD2800001,  # mov x1, 0
    0xD2800002,  # mov x2, 0
    0xD2800003,  # mov x3, 0
    0xD2800004,  # mov x4, 0
    0xD4000001,  # svc 0
    0x17FFFFF9,  # b to the mov of 73
    0xD503201F,  # nop
    0xD503201F,  # nop
)
_PROGRAMS: Final = {"x86_64": (62, _X86_64), "aarch64": (183, _AARCH64)}


def program(machine: str) -> bytes:
    """Return the program as an ELF file for ``machine``, as uname(2) calls it. Raises HostError."""
    if machine not in _PROGRAMS:
        raise HostError(f"there is no first process for the architecture {machine}")
    number, code = _PROGRAMS[machine]
    size = _HEADERS_BYTES + len(code) + len(_IGNORE)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    entry = _BASE + _HEADERS_BYTES
    header = struct.pack("<HHIQQQIHHHHHH", 2, number, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)
    return ident + header + segment + code + _IGNORE


class OciInits:
    """The ``Inits`` of ports.py."""

    async def start(self, runtime: OciRuntime, request: InitRequest) -> ProcessIdentity:
        """Start it. Raises HostError with the OCI runtime's own words."""
        directory = request.directory
        await in_pool(_prepare, request)
        log, pid_file = directory / "oci.log", directory / "init.pid"
        argv = (
            str(runtime.program),
            *runtime.global_arguments(),
            f"--log={log}",
            "create",
            "--bundle",
            str(directory),
            "--pid-file",
            str(pid_file),
            request.sandbox_id,
        )
        if await _run(argv, directory) != 0:
            said = clean_message((_read(log) or b"").decode(errors="replace"))
            raise HostError(
                f"{runtime.binary.name} create of the first process of sandbox "
                f"{request.sandbox_id} failed: {said or 'it said nothing'}"
            )
        await runtime.start(request.sandbox_id)
        data = _read(pid_file) or b""
        identity = pids.identify(int(data)) if data.strip().isdigit() else None
        if identity is None:
            raise HostError(f"the first process of sandbox {request.sandbox_id} has ended at once")
        facts = {"pid": identity.pid, "startTicks": identity.start_ticks}
        await in_pool(durable.write, directory / "init.json", json.dumps(facts).encode())
        return identity

    async def find(self, directory: Path) -> ProcessIdentity | None:
        """Return the process; None when it has ended or never was."""
        data = _read(directory / "init.json")
        if data is None:
            return None
        try:
            facts = json.loads(data)
            known = ProcessIdentity(pid=int(facts["pid"]), start_ticks=int(facts["startTicks"]))
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(f"{directory / 'init.json'} is torn") from error
        return known if pids.identify(known.pid) == known else None

    async def remove(self, runtime: OciRuntime, sandbox_id: str, directory: Path) -> None:
        """Kill it and remove its bundle. Idempotent."""
        if await in_pool(_is_half_made, directory):
            # A create that the end of an earlier runtime left alone may still be under way.
            await kill_creators(sandbox_id, directory)
        await runtime.delete(sandbox_id)
        await in_pool(_remove_tree, directory)


def _is_half_made(directory: Path) -> bool:
    return directory.is_dir() and not (directory / "init.json").exists()


def _remove_tree(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_error(f"cannot remove {directory}", error.errno or 0) from error


async def _run(argv: tuple[str, ...], directory: Path) -> int:
    lock = take_lock(directory)
    try:
        # Without pipes: the process keeps what the OCI runtime was given.
        child = spawn(argv, Streams(pass_fds=(lock,)))
    finally:
        os.close(lock)
    try:
        async with asyncio.timeout(_CREATE_TIMEOUT_S):
            return await child.wait()
    except BaseException as error:
        child.signal(signal.SIGKILL, group=True)
        await child.wait()
        if isinstance(error, TimeoutError):
            raise DeadlineExceededError(
                f"{argv[0]} create did not finish within {_CREATE_TIMEOUT_S:g} s and was killed"
            ) from error
        raise


def _prepare(request: InitRequest) -> None:
    root = request.directory / "rootfs"
    for directory in (request.directory, root, root / "dev", root / "proc"):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)  # a user namespace's root must be able to open it
    for name in ("init.json", "init.pid", "oci.log"):
        (request.directory / name).unlink(missing_ok=True)
    file = root / "init"
    file.write_bytes(program(platform.machine()))
    file.chmod(0o755)
    config = oom.clamp_config(request.config, oom.floor())
    (request.directory / "config.json").write_text(json.dumps(config))


def _read(path: Path) -> bytes | None:
    return durable.read(path, limit_bytes=_SIZE_LIMIT_BYTES)
