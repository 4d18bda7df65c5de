"""Filters on a real kernel: in the first process and in an exec, by every entry, under each runtime.

The program that is run is made here, of machine code: one system call through one entry, then its
error number is the exit code. So nothing of a C library is between the filter and the answer.
"""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from noderuntime.engine.disk import Disk
from noderuntime.engine.filters import Filters
from noderuntime.host.seccomp import LibSeccomp
from noderuntime.policy import spec
from tests.root.test_policy_spec import granted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine code is x86-64's"),
]
EPERM, EINVAL, ENOSYS, EAFNOSUPPORT = 1, 22, 38, 97
SIGSYS: Final = 31
_ENTRY: Final = {"X86_64": b"\x0f\x05", "X86": b"\xcd\x80", "X32": b"\x0f\x05"}
_X32_BIT: Final = 0x40000000
_BASE: Final = 0x400000


def program(entry: str, number: int, first: int = 0, second: int = 0) -> bytes:
    """Return an ELF file that makes the call and exits with its errno, 0 where it worked.

    For int 0x80 arguments are in ebx and ecx, for syscall in rdi and rsi.
    """
    if entry == "X32":
        number |= _X32_BIT
    code = b"".join(
        (
            b"\x48\xbf" + struct.pack("<Q", first) + b"\x48\xbe" + struct.pack("<Q", second),
            b"\xbb" + struct.pack("<I", first & 2**32 - 1),
            b"\xb9" + struct.pack("<I", second & 2**32 - 1),
            b"\x31\xd2\xb8" + struct.pack("<I", number) + _ENTRY[entry],
            # An answer above 0 (a descriptor) is no error.
            b"\x31\xff\x85\xc0\x79\x04\xf7\xd8\x89\xc7",
            b"\xb8" + struct.pack("<I", 60) + b"\x0f\x05",
        )
    )
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 2, 62, 1, _BASE + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    size = 120 + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 4096)
    return header + segment + code


@dataclass(frozen=True, slots=True)
class Box:
    """A root file system with the programs of a test, and the runtime that runs them."""

    folder: Path
    runtime: str
    sealed: bool

    def answers(
        self, profile: dict[str, object], calls: dict[str, bytes], caps: tuple[str, ...] = ()
    ) -> dict[str, tuple[int, int]]:
        """Return for each program how it ended as the first process, and as an exec."""
        for name, elf in calls.items():
            path = self.folder / "rootfs" / "bin" / name
            path.write_bytes(elf)
            path.chmod(0o755)
        profile = {**profile, "capabilities": {"default": list(caps)}}
        with self.running(profile) as container_id:
            execs = {name: self.exec(container_id, f"/bin/{name}") for name in calls}
        return {name: (self.run(profile, f"/bin/{name}"), execs[name]) for name in calls}

    def run(self, profile: dict[str, object], program_: str) -> int:
        """Run it as a container's first process."""
        container_id = self.write(profile, program_)
        try:
            return self.call("run", "--bundle", str(self.folder), container_id)
        finally:
            self.call("delete", "--force", container_id)

    def exec(self, container_id: str, program_: str) -> int:
        """Run it in a container."""
        process: Any = json.loads((self.folder / "config.json").read_text())["process"]
        path = self.folder / "process.json"
        path.write_text(json.dumps(spec.exec_process(process, [program_], tty=False)))
        return self.call("exec", "--process", str(path), container_id)

    def running(self, profile: dict[str, object]) -> _Running:
        """Return a container that waits to be removed."""
        return _Running(self, self.write(profile, "/bin/waiter"))

    def write(self, profile: dict[str, object], program_: str) -> str:
        """Write config.json as the engine does; return the ID of the container to be."""
        container_id = f"nr-seccomp-{uuid4().hex[:12]}"
        layout = spec.SpecLayout(
            rootfs=str(self.folder / "rootfs"), cgroups_path=f"/nr-seccomp/{container_id}"
        )
        built: Any = spec.build(granted(profile, program_), layout)
        built["linux"]["namespaces"] += [{"type": kind} for kind in ("network", "ipc", "uts")]
        config = asyncio.run(self._seal(built))
        assert ("annotations" in config) is self.sealed
        (self.folder / "config.json").write_text(json.dumps(config))
        return container_id

    async def _seal(self, built: dict[str, object]) -> dict[str, object]:
        if not self.sealed and self.runtime == "crun":
            return built
        disk = Disk()
        try:
            runtime = Path(shutil.which(self.runtime) or "")
            return dict(await Filters(LibSeccomp()).seal(built, runtime, disk))
        finally:
            disk.close()

    def call(self, *arguments: str) -> int:
        """Call the OCI runtime; return what it ended with."""
        return subprocess.run(
            [self.runtime, "--root", str(self.folder / "state"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=False,
        ).returncode


@dataclass(frozen=True, slots=True)
class _Running:
    box: Box
    container_id: str

    def __enter__(self) -> str:
        started = self.box.call(
            "run", "--detach", "--bundle", str(self.box.folder), self.container_id
        )
        assert started == 0
        return self.container_id

    def __exit__(self, *_: object) -> None:
        self.box.call("delete", "--force", self.container_id)


@pytest.fixture(scope="module", params=["crun, compiled", "crun", "runc"])
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    runtime, _, sealed = str(request.param).partition(", ")
    assert shutil.which(runtime), f"install {runtime}, or run `make root`"
    folder = tmp_path_factory.mktemp("nr-seccomp")
    for name in ("bin", "etc", "tmp"):
        (folder / "rootfs" / name).mkdir(parents=True)
    waiter = folder / "rootfs/bin/waiter"
    waiter.write_bytes(program("X86_64", 34))  # pause
    waiter.chmod(0o755)
    yield Box(folder, runtime, bool(sealed))
    root = Path("/sys/fs/cgroup")
    for cgroup in (root / "nr-seccomp", *root.glob("*/nr-seccomp")):
        if cgroup.exists():
            cgroup.rmdir()


def test_the_default_holds_by_every_entry_for_the_first_process_and_for_an_exec(box: Box) -> None:
    by_entry = {
        "unshare": program("X86_64", 272, 0),
        "unshare32": program("X86", 310, 0),
        "unsharex32": program("X32", 272, 0),
        "clone3": program("X86_64", 435, 0),
        "clone3by32": program("X86", 435, 0),
        "getpid": program("X86_64", 39),
        "getpid32": program("X86", 20),
        "vsock": program("X86_64", 41, 40, 1),
        "crypto": program("X86_64", 41, 38, 5),
        # The kernel reads an int, a filter 64 bits: this asks for AF_ALG all the same.
        "high": program("X86_64", 41, 1 << 32 | 38, 5),
        "highvsock": program("X86_64", 41, 1 << 32 | 40, 1),
        "unix": program("X86_64", 41, 1, 1),
    }
    expected = dict.fromkeys(by_entry, EPERM) | {
        "clone3": ENOSYS,
        "clone3by32": ENOSYS,
        "getpid": 0,
        "getpid32": 0,
        "unix": 0,
    }
    assert box.answers({}, by_entry) == {name: (n, n) for name, n in expected.items()}


def test_a_capability_brings_its_calls(box: Box) -> None:
    calls = {"unshare": program("X86_64", 272, 0), "clone3": program("X86_64", 435, 0)}
    found = box.answers({}, calls, ("SYS_ADMIN",))
    assert found == {"unshare": (0, 0), "clone3": (EINVAL, EINVAL)}


def test_what_only_audits_is_done(box: Box) -> None:
    rules: list[object] = [{"names": ["getpid"], "action": "Kill"}]
    profile: dict[str, object] = {"mode": "Audit", "seccomp": {"rules": rules}}
    calls = {"unshare": program("X86_64", 272, 0), "getpid": program("X86_64", 39)}
    assert box.answers(profile, calls) == {"unshare": (0, 0), "getpid": (0, 0)}


def test_rules_of_a_profile_are_what_the_node_compiles(box: Box) -> None:
    family = {"index": 0, "op": "MASKED_EQ", "value": 2**32 - 1}
    profile: dict[str, object] = {
        "seccomp": {
            "deny": [{"names": ["getpid"]}],
            "rules": [
                {"names": ["socket"], "action": "Allow", "args": [{**family, "valueTwo": 1}]},
                {
                    "names": ["socket"],
                    "action": "Errno",
                    "errno": 97,
                    "args": [{**family, "valueTwo": 2}],
                },
                {"names": ["getppid"], "action": "Kill"},
                {"names": ["getuid"], "action": "Trap"},
                {"names": ["unshare"], "action": "Log"},
            ],
        }
    }
    answers = {
        "getpid": (program("X86_64", 39), EPERM),
        "getpid32": (program("X86", 20), EPERM),
        "unix": (program("X86_64", 41, 1, 1), 0),
        "unix32": (program("X86", 359, 1, 1), 0),
        "inet": (program("X86_64", 41, 2, 1), EAFNOSUPPORT),
        "inet32": (program("X86", 359, 2, 1), EAFNOSUPPORT),
        "inethigh": (program("X86_64", 41, 1 << 32 | 2, 1), EAFNOSUPPORT),
        "netlink": (program("X86_64", 41, 16, 3), EPERM),
        # socketcall(SYS_SOCKET, ...): no filter sees the family, which is in memory.
        "socketcall": (program("X86", 102, 1), ENOSYS),
        "killed": (program("X86_64", 110), 128 + SIGSYS),
        "trapped": (program("X86_64", 102), 128 + SIGSYS),
        "logged": (program("X86_64", 272, 0), 0),
    }
    found = box.answers(profile, {name: elf for name, (elf, _) in answers.items()})
    assert found == {name: (n, n) for name, (_, n) in answers.items()}


def test_a_process_that_comes_by_an_entry_that_is_not_named_is_killed(box: Box) -> None:
    profile: dict[str, object] = {"seccomp": {"architectures": ["X86_64"]}}
    calls = {
        "getpid": program("X86_64", 39),
        "getpid32": program("X86", 20),
        "getpidx32": program("X32", 39),
    }
    killed = (128 + SIGSYS, 128 + SIGSYS)
    found = box.answers(profile, calls)
    assert found == {"getpid": (0, 0), "getpid32": killed, "getpidx32": killed}
