"""What ``spec.build`` writes, under the real crun: the kernel says whether it holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from noderuntime.api.revision import RevisionHandler, RevisionProfile
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.policy import capabilities, decide, spec
from noderuntime.policy.load import rules_of
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerGrant,
    ContainerSecurity,
    HostFacts,
    ImageConfig,
    ImageFacts,
    Mount,
    PodIdentity,
    ResolvedUser,
    SandboxConfig,
)
from noderuntime.policy.rules import HandlerRules

pytestmark = pytest.mark.slow
SANDBOX = SandboxConfig(
    pod=PodIdentity(name="pod", namespace="default", uid="uid-1"), privileged=True
)
TIMEOUT_S = 30
CGROUP = f"nr-policy-{os.getpid()}"
# What busybox's shell needs to print a line; the last line is runc's, whose own Go code ends under
# the filter.
LEAST_SYSCALLS = (
    *("access", "arch_prctl", "brk", "close", "clone", "dup2", "execve", "exit", "exit_group"),
    *("faccessat2", "fcntl", "fstat", "getcwd", "getegid", "geteuid", "getgid", "getpid"),
    *("getppid", "getrandom", "getuid", "ioctl", "lseek", "mmap", "mprotect", "munmap"),
    *("newfstatat", "openat", "pread64", "prlimit64", "read", "readlink", "rseq"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sendfile"),
    *("set_robust_list", "set_tid_address", "stat", "time", "uname", "wait4", "write"),
    *(
        "epoll_pwait",
        "fstatfs",
        "futex",
        "getdents64",
        "madvise",
        "nanosleep",
        "sched_yield",
        "tgkill",
    ),
)


@dataclass(frozen=True, slots=True)
class Node:
    """A folder with a root file system, in which containers run one after another."""

    folder: Path
    runtime: str

    def run(
        self, grant: ContainerGrant, mounts: tuple[Mount, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        container_id = self.prepare(grant, mounts)
        try:
            return self.call("run", "--bundle", str(self.folder), container_id)
        finally:
            self.call("delete", "--force", container_id)

    def prepare(self, grant: ContainerGrant, mounts: tuple[Mount, ...] = ()) -> str:
        """Write config.json and return the ID of the container to be."""
        container_id = f"nr-policy-{uuid4().hex[:12]}"
        layout = spec.SpecLayout(
            rootfs=str(self.folder / "rootfs"),
            cgroups_path=f"/{CGROUP}/{container_id}",
            mounts=mounts,
        )
        built = spec.build(grant, layout)
        _with_own_namespaces(built)
        (self.folder / "config.json").write_text(json.dumps(built))
        return container_id

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call the OCI runtime."""
        return subprocess.run(
            [self.runtime, "--root", str(self.folder / "state"), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )


def _with_own_namespaces(built: dict[str, object]) -> None:
    """Add what the engine pins for a sandbox: network, IPC and UTS of its own."""
    linux: Any = built["linux"]
    linux["namespaces"] += [{"type": "network"}, {"type": "ipc"}, {"type": "uts"}]


@pytest.fixture(scope="module", params=["crun", "runc"])
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    assert shutil.which(request.param), f"install {request.param}, or run `make root`"
    folder = tmp_path_factory.mktemp("nr-policy")
    rootfs = folder / "rootfs"
    for name in ("bin", "etc", "tmp", "scratch", "mnt"):
        (rootfs / name).mkdir(parents=True)
    _copy_program(Path("/bin/busybox"), rootfs)
    for applet in (
        "sh",
        "cat",
        "grep",
        "mkdir",
        "sleep",
        "touch",
        "id",
        "mount",
        "umount",
        "unshare",
        "chroot",
    ):
        (rootfs / "bin" / applet).symlink_to("busybox")
    yield Node(folder, request.param)
    root = Path("/sys/fs/cgroup")
    for cgroup in (root / CGROUP, *root.glob(f"*/{CGROUP}")):
        if cgroup.exists():
            cgroup.rmdir()


def _copy_program(program: Path, rootfs: Path) -> None:
    shutil.copy2(program, rootfs / "bin" / program.name)
    listing = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, check=False
    ).stdout
    for line in listing.splitlines():
        path = next((Path(word) for word in line.split() if word.startswith("/")), None)
        if path is not None:
            target = rootfs / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path.resolve(), target)


def rules(profile: Mapping[str, object]) -> HandlerRules:
    handler = RevisionHandler(
        name="restricted",
        node_runtime="restricted",
        profile=RevisionProfile(name="web", spec=SecurityProfileSpec.model_validate(profile)),
    )
    return rules_of(handler, "sha256:" + "0" * 64)


def granted(
    profile: Mapping[str, object] | None,
    *argv: str,
    uid: int = 0,
    mounts: tuple[Mount, ...] = (),
    **security: object,
) -> ContainerGrant:
    masks = {"masked_paths": spec.DEFAULT_MASKED, "readonly_paths": spec.DEFAULT_READONLY}
    container = ContainerConfig(
        name="web",
        image="image",
        command=argv,
        mounts=mounts,
        security=ContainerSecurity(**(masks | security)),  # type: ignore[arg-type]
    )
    image = ImageFacts(config=ImageConfig(), user=ResolvedUser(uid=uid, gid=uid))
    own = None if profile is None else rules(profile)
    host = HostFacts(capabilities=capabilities.of_status(Path("/proc/self/status").read_text()))
    grant = decide.admit_container(own, SANDBOX, container, image, host)
    assert isinstance(grant, ContainerGrant), grant.sentence()
    return grant


def status_of(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert result.returncode == 0, result.stderr
    lines = (line.partition(":") for line in result.stdout.splitlines())
    return {name: value.strip() for name, _, value in lines}


def test_a_container_of_a_profile_has_its_capabilities_filter_and_no_new_privileges(
    node: Node,
) -> None:
    profile = {"capabilities": {"default": ["CHOWN"], "allow": ["NET_BIND_SERVICE"]}}
    grant = granted(profile, "cat", "/proc/self/status", capabilities_add=("NET_BIND_SERVICE",))
    status = status_of(node.run(grant))
    expected = f"{1 << 0 | 1 << 10:016x}"
    assert {status[name] for name in ("CapBnd", "CapEff", "CapPrm")} == {expected}
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")


def test_a_user_other_than_root_keeps_only_the_bounding_set(node: Node) -> None:
    profile = {"capabilities": {"default": ["NET_BIND_SERVICE"]}}
    status = status_of(node.run(granted(profile, "cat", "/proc/self/status", uid=1000)))
    assert status["CapBnd"] == f"{1 << 10:016x}"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["Uid"].split() == ["1000"] * 4


def test_a_denied_system_call_fails_with_eperm(node: Node) -> None:
    profile = {"seccomp": {"deny": [{"names": ["mkdir", "mkdirat"]}]}}
    result = node.run(granted(profile, "mkdir", "/scratch/new"))
    assert result.returncode != 0
    assert "Operation not permitted" in result.stderr
    assert node.run(granted({}, "mkdir", "/scratch/new")).returncode == 0
    (node.folder / "rootfs/scratch/new").rmdir()


def test_audit_logs_what_the_filter_would_refuse_and_does_it(node: Node) -> None:
    profile = {"mode": "Audit", "seccomp": {"deny": [{"names": ["mkdir", "mkdirat"]}]}}
    assert node.run(granted(profile, "mkdir", "/scratch/audited")).returncode == 0
    (node.folder / "rootfs/scratch/audited").rmdir()


def test_an_allow_list_runs_what_it_names_and_nothing_else(node: Node) -> None:
    profile = {"seccomp": {"base": "DenyAll", "allow": [{"names": LEAST_SYSCALLS}]}}
    result = node.run(granted(profile, "sh", "-c", "echo yes; mkdir /scratch/no"))
    assert result.stdout == "yes\n", result.stderr
    assert "Operation not permitted" in result.stderr


def test_a_profile_with_newer_system_calls_is_taken_by_the_runtime(node: Node) -> None:
    profile = {"seccomp": {"allow": [{"names": ["mseal"]}], "deny": [{"names": ["statmount"]}]}}
    assert node.run(granted(profile, "cat", "/proc/self/status")).returncode == 0


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(
            ("/usr/bin/perl", "-e", "print 6*7, qq(\\n); exit(fork() ? 0 : 0)"), id="perl"
        ),
        pytest.param(
            ("/usr/bin/perl", "-e", "print socket(S, 40, 1, 0) ? 'made' : $!{EPERM} && 42"),
            id="perl, which cannot make a vsock",
        ),
        pytest.param(
            (
                "/usr/bin/python3",
                "-c",
                "from threading import Thread as T; T(target=print, args=(42,)).start()",
            ),
            id="python with a thread",
        ),
        pytest.param(("/bin/bash", "-c", "x=$( (echo 42) ); echo $x"), id="bash with subshells"),
    ],
)
def test_the_default_filter_lets_dynamically_linked_programs_run(
    node: Node, argv: tuple[str, ...]
) -> None:
    folders = ("bin", "lib", "lib64", "usr")
    mounts = tuple(
        Mount(container_path=f"/{name}", host_path=str(Path("/", name).resolve()), readonly=True)
        for name in folders
        if Path("/", name).exists()
    )
    profile = {"hostPaths": [{"path": m.host_path} for m in mounts]}
    result = node.run(granted(profile, *argv, mounts=mounts), mounts)
    assert result.stdout.splitlines()[:1] == ["42"], result.stderr


def test_an_exec_has_the_containers_restrictions(node: Node) -> None:
    profile = {"capabilities": {"default": ["KILL"]}, "seccomp": {"deny": [{"names": ["mkdir"]}]}}
    # The pipes of a detached container are the caller's: it must not hold them open.
    grant = granted(profile, "sh", "-c", "exec >/dev/null 2>&1; while :; do sleep 1; done")
    container_id = node.prepare(grant)
    try:
        started = node.call("run", "--detach", "--bundle", str(node.folder), container_id)
        assert started.returncode == 0, started.stderr
        config: Any = json.loads((node.folder / "config.json").read_text())
        argv = ["sh", "-c", "cat /proc/self/status; mkdir /scratch/no"]
        process = node.folder / "process.json"
        process.write_text(json.dumps(spec.exec_process(config["process"], argv, tty=False)))
        result = node.call("exec", "--process", str(process), container_id)
    finally:
        node.call("delete", "--force", container_id)
    assert "Operation not permitted" in result.stderr
    lines = dict(line.split(":", 1) for line in result.stdout.splitlines())
    assert int(lines["CapBnd"], 16) == 1 << 5
    assert (lines["Seccomp"].strip(), lines["NoNewPrivs"].strip()) == ("2", "1")


def test_a_read_only_root_and_the_masks_hold(node: Node) -> None:
    script = "touch /scratch/x; echo 1 > /proc/sys/kernel/domainname; cat /proc/kcore | grep -c . ; echo done"
    result = node.run(granted({"rootFilesystem": "ReadOnly"}, "sh", "-c", script))
    assert result.stderr.count("Read-only file system") == 2, result.stderr
    assert result.stdout == "0\ndone\n"


def test_a_read_only_path_of_the_node_has_read_only_submounts(node: Node, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "nr-policy", str(below)], check=True)
    try:
        mount = Mount(container_path="/mnt", host_path=str(tmp_path), readonly=True)
        profile = {"hostPaths": [{"path": str(tmp_path)}]}
        result = node.run(granted(profile, "touch", "/mnt/below/x", mounts=(mount,)), (mount,))
    finally:
        subprocess.run(["umount", str(below)], check=True)
    assert result.returncode != 0
    assert "Read-only file system" in result.stderr


def test_a_process_cannot_make_namespaces_under_the_default_filter(node: Node) -> None:
    result = node.run(granted({}, "unshare", "-U", "sh", "-c", "echo made"))
    assert "made" not in result.stdout


def test_the_nodes_own_handler_gives_what_container_engines_give(node: Node) -> None:
    status = status_of(node.run(granted(None, "cat", "/proc/self/status")))
    assert status["CapBnd"] == "00000000a80425fb"
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("0", "0")


def test_a_privileged_container_of_the_nodes_own_handler_has_everything(node: Node) -> None:
    status = status_of(node.run(granted(None, "cat", "/proc/self/status", privileged=True)))
    assert capabilities.of_status(f"CapBnd:\t{status['CapEff']}") == capabilities.of_status(
        Path("/proc/self/status").read_text()
    )
    assert status["Seccomp"] == "0"


def test_a_process_limit_is_the_cgroups(node: Node) -> None:
    handler = RevisionHandler.model_validate(
        {
            "name": "restricted",
            "nodeRuntime": "restricted",
            "profile": {"name": "web", "spec": {}},
            "resources": {"pidsLimit": 7, "limits": {"cpu": "500m", "memory": "64Mi"}},
        }
    )
    container = ContainerConfig(
        name="web",
        image="image",
        command=(
            "sh",
            "-c",
            "for d in /sys/fs/cgroup /sys/fs/cgroup/pids; do cat $d/pids.max; done",
        ),
        security=ContainerSecurity(
            masked_paths=spec.DEFAULT_MASKED, readonly_paths=spec.DEFAULT_READONLY
        ),
    )
    image = ImageFacts(config=ImageConfig(), user=ResolvedUser(uid=0, gid=0))
    grant = decide.admit_container(rules_of(handler, "sha256:0"), SANDBOX, container, image)
    assert isinstance(grant, ContainerGrant)
    assert node.run(grant).stdout == "7\n"
