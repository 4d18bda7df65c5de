"""The floor: what the kernel and the OCI runtime cost alone, with no node runtime around them.

A network namespace with a veth pair, ``create`` and ``start`` of a container in it. Nothing is durable,
nothing is watched, and no plugin runs. Beside it, what a namespace with the CNI plugins' ADD costs.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from e2e.performance.chain import Chain

_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 4096
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_CAPABILITIES: Final = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
        "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
)
PLUGINS_ADD: Final = "netns and CNI ADD"
PLUGINS_DEL: Final = "CNI DEL"
STEPS: Final = ("netns and veth", "create", "start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Starts containers with the OCI runtime alone. ``rootfs`` is only read."""

    folder: Path
    rootfs: Path
    oci_runtime: Path
    cgroup_parent: str
    chain: Chain

    def once(self, number: int) -> dict[str, float]:
        """Start and delete one; returns milliseconds by step."""
        name = f"floor-{number}"
        bundle, pin = self.folder / name, self.folder / f"{name}.net"
        bundle.mkdir(parents=True)
        pin.touch()
        (bundle / "config.json").write_text(json.dumps(self._spec(name, pin)))
        root = f"--root={self.folder / 'oci'}"
        try:
            times = [time.perf_counter()]
            _in_thread(_make_namespace, pin)
            _make_veth(f"fl{number}", pin)
            times.append(time.perf_counter())
            self._run(root, "create", f"--bundle={bundle}", name)
            times.append(time.perf_counter())
            self._run(root, "start", name)
            times.append(time.perf_counter())
        finally:
            self._run(root, "delete", "--force", name)
            _LIBC.umount2(os.fsencode(pin), 2)
            pin.unlink()
            shutil.rmtree(bundle)
        return self._taken(times) | self._plugins(name, number)

    @staticmethod
    def _taken(times: list[float]) -> dict[str, float]:
        taken = [(later - sooner) * 1000 for sooner, later in pairwise(times)]
        return dict(zip(STEPS, taken, strict=True)) | {"floor": sum(taken)}

    def _plugins(self, name: str, number: int) -> dict[str, float]:
        """What a namespace with the ADD and what the DEL takes; the first also makes the bridge."""
        pin = self.folder / f"{name}.cni"
        pin.touch()
        try:
            times = [time.perf_counter()]
            _in_thread(_make_namespace, pin)
            result = self.chain.add(name, pin)
            times.append(time.perf_counter())
            self.chain.delete(name, pin, result)
            times.append(time.perf_counter())
        finally:
            _LIBC.umount2(os.fsencode(pin), 2)
            pin.unlink()
        if number == 0:
            return {}
        add, delete = ((later - sooner) * 1000 for sooner, later in pairwise(times))
        return {PLUGINS_ADD: add, PLUGINS_DEL: delete}

    def _run(self, *words: str) -> None:
        null = subprocess.DEVNULL
        subprocess.run(
            [str(self.oci_runtime), *words], check=True, stdin=null, stdout=null, stderr=null
        )

    def _spec(self, name: str, pin: Path) -> dict[str, object]:
        spec = json.loads(json.dumps(base_spec()))
        spec["process"] |= {"args": ["/bin/sleep", "1000"], "env": ["PATH=/bin"]}
        spec["root"] = {"path": str(self.rootfs), "readonly": True}
        spec["linux"]["cgroupsPath"] = f"{self.cgroup_parent}/{name}"
        for namespace in spec["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = str(pin)
        document: dict[str, object] = spec
        return document


def _in_thread(function: object, *args: object) -> None:
    thread = threading.Thread(target=function, args=args)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def _make_namespace(pin: Path) -> None:
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if _LIBC.mount(b"/proc/thread-self/ns/net", os.fsencode(pin), None, _MS_BIND, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def _make_veth(name: str, pin: Path) -> None:
    """RTM_NEWLINK of a pair, one end in the namespace. rtnetlink(7)."""

    def attribute(kind: int, data: bytes) -> bytes:
        return struct.pack("HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)

    target = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
    try:
        nothing = struct.pack("BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
        peer = nothing + attribute(3, b"eth0\0") + attribute(28, struct.pack("I", target))
        info = attribute(1, b"veth\0") + attribute(2, attribute(1, peer))
        body = nothing + attribute(3, name.encode() + b"\0") + attribute(18, info)
        # request, acknowledge, create, exclusive
        head = struct.pack("IHHII", 16 + len(body), 16, 0x1 | 0x4 | 0x400 | 0x200, 1, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
            link.send(head + body)
            code = -struct.unpack_from("i", link.recv(4096), 16)[0]
        if code:
            raise OSError(code, f"cannot make {name}: {os.strerror(code)}")
    finally:
        os.close(target)


def base_spec() -> dict[str, object]:
    """What node runtimes give to an OCI runtime when nothing is asked for."""

    def mount(target: str, kind: str, source: str, *options: str) -> dict[str, object]:
        return {"destination": target, "type": kind, "source": source, "options": list(options)}

    quiet = ("nosuid", "noexec", "nodev")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "cwd": "/",
            "noNewPrivileges": True,
            "user": {"uid": 0, "gid": 0},
            "capabilities": {
                kind: list(_CAPABILITIES) for kind in ("bounding", "permitted", "effective")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "root": {"path": "rootfs"},
        "mounts": [
            mount("/proc", "proc", "proc", *quiet),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount(
                *("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance"),
                *("ptmxmode=0666", "mode=0620", "gid=5"),
            ),
            mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", "size=65536k"),
            mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
            mount("/sys", "sysfs", "sysfs", *quiet, "ro"),
            mount("/run", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": [
                *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys"),
                *("/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats"),
                *("/proc/sched_debug", "/sys/firmware", "/sys/devices/virtual/powercap"),
                "/proc/scsi",
            ],
            "readonlyPaths": [
                *("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),
            ],
        },
    }
