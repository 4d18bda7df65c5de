"""The OCI config.json of a granted container; the only place that writes one.

Always holds: no annotations (to the OCI runtime they would be commands) but the one of
``sealed``, no rlimits but the profile's,
inheritable capabilities only those that are ambient (CVE-2022-24769), and for a container that is not
privileged the filter's and masks' lists as the grant has them. ociVersion 1.0.2, as crun 1.8.1
refuses newer ones; runc takes it as well.
Source: OCI runtime-spec config.md, config-linux.md; the mounts are those that container engines
share.
"""

from __future__ import annotations

import platform
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

from noderuntime.policy.model import ContainerGrant, Mount, Propagation, Resources, UserNamespace
from noderuntime.policy.seccomp import filter_of

OCI_VERSION: Final = "1.0.2"
BPF_ANNOTATION: Final = "run.oci.seccomp_bpf_data"  # crun.1; base64
DEFAULT_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
DEFAULT_READONLY: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
_TTY_GROUP: Final = 5  # tty in every distribution's group file; the mode is that of a real terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A device of the node, as stat(2) says; kind is ``c`` or ``b``, access a subset of ``rwm``."""

    path: str
    kind: str
    major: int
    minor: int
    access: str = "rwm"
    mode: int = 0o660
    uid: int = 0
    gid: int = 0

    def owned_by(self, uid: int, gid: int) -> DeviceNode:
        """Return the same device with another owner."""
        return replace(self, uid=uid, gid=gid)


NO_SWAP: Final = "memory.swap.max"
_PIDS_MAX: Final = "pids.max"
# systemd would set its default for services, 15 % of what the node can; crun and runc read this.
_NO_TASKS_MAX: Final = {"org.systemd.property.TasksMax": f"uint64 {2**64 - 1}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecLayout:
    """Where the engine put things: paths of the node. A namespace that is None is the node's."""

    rootfs: str
    network_ns: str | None = None
    ipc_ns: str | None = None
    uts_ns: str | None = None
    host_pid: bool = False
    pid_ns: str | None = None  # None is one of the container's own, unless host_pid
    user_ns: str | None = None
    users: UserNamespace | None = None  # what user_ns maps: runc wants to be told
    cgroups_path: str = ""
    cgroup_v2: bool = False
    hostname: str = ""
    terminal: bool = False
    shm_path: str = ""  # "" mounts a shm of the container's own
    resolv_conf: str = ""  # "" leaves the image's
    hostname_file: str = ""  # "" leaves the image's
    mounts: tuple[Mount, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    cgroup_namespace: bool = True
    machine: str = field(default_factory=platform.machine)


def build(grant: ContainerGrant, layout: SpecLayout) -> dict[str, object]:
    """Return config.json as JSON-able values."""
    spec: dict[str, object] = {
        "ociVersion": OCI_VERSION,
        "process": _process(grant, layout),
        "root": {"path": layout.rootfs, "readonly": grant.readonly_rootfs},
        "mounts": _mounts(grant, layout),
        "linux": _linux(grant, layout),
    }
    if layout.hostname and layout.uts_ns is not None:
        spec["hostname"] = layout.hostname
    limits_tasks = grant.pids_limit is not None or _PIDS_MAX in grant.resources.unified
    if ":" in layout.cgroups_path and not limits_tasks:
        spec["annotations"] = dict(_NO_TASKS_MAX)
    return spec


def sealed(document: Mapping[str, object], program: bytes) -> dict[str, object]:
    """Return config.json with its filter replaced by the compiled ``program``, for crun.

    What stays in ``linux.seccomp`` ends every process: so does a crun that passes the annotation
    over.
    """
    linux = cast("Mapping[str, object]", document["linux"])
    seccomp = cast("Mapping[str, object]", linux["seccomp"])
    stub: dict[str, object] = {"defaultAction": "SCMP_ACT_KILL_PROCESS"}
    stub |= {name: seccomp[name] for name in ("flags", "listenerPath") if name in seccomp}
    return {
        **document,
        "annotations": {BPF_ANNOTATION: b64encode(program).decode()},
        "linux": {**linux, "seccomp": stub},
    }


def exec_process(
    process: Mapping[str, object], argv: Sequence[str], *, tty: bool
) -> dict[str, object]:
    """Return the OCI process of an exec: the container's own, with other arguments.

    User, environment, directory, capabilities, noNewPrivileges, AppArmor profile and SELinux
    label stay, and so does the filter, which is the container's.
    """
    return {**process, "args": list(argv), "terminal": tty}


def mappings(users: UserNamespace) -> dict[str, object]:
    """Return ``uidMappings`` and ``gidMappings`` of ``linux``."""
    named = {"uidMappings": users.uids, "gidMappings": users.gids}
    return {
        name: [{"containerID": one.container_id, "hostID": one.host_id, "size": one.length}]
        for name, one in named.items()
    }


def _process(grant: ContainerGrant, layout: SpecLayout) -> dict[str, object]:
    capabilities = list(grant.capabilities)
    labels = {"apparmorProfile": grant.apparmor} if grant.apparmor else {}
    if grant.selinux is not None:
        labels["selinuxLabel"] = grant.selinux.process
    limits = [
        {"type": f"RLIMIT_{each.name.upper()}", "soft": each.soft, "hard": each.hard}
        for each in grant.ulimits
    ]
    return {
        **labels,
        "terminal": layout.terminal,
        "user": {
            "uid": grant.user.uid,
            "gid": grant.user.gid,
            "additionalGids": list(grant.user.additional_gids),
        },
        "args": list(grant.args),
        "env": list(grant.env),
        "cwd": grant.cwd,
        # A user other than 0 loses the effective set at execve(2), but for what is ambient; the
        # kernel lets only what is inheritable be that.
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            "inheritable": list(grant.ambient),
            "ambient": list(grant.ambient),
        },
        "noNewPrivileges": grant.no_new_privileges,
        "oomScoreAdj": grant.resources.oom_score_adj,
        **({"rlimits": limits} if limits else {}),
    }


def _linux(grant: ContainerGrant, layout: SpecLayout) -> dict[str, object]:
    linux: dict[str, object] = {
        "namespaces": _namespaces(grant, layout),
        "resources": _resources(grant, layout),
        "maskedPaths": list(grant.masked_paths),
        "readonlyPaths": list(grant.readonly_paths),
        "devices": [device_entry(device) for device in layout.devices],
    }
    if grant.selinux is not None:
        linux["mountLabel"] = grant.selinux.mount
    if layout.users is not None:
        linux |= mappings(layout.users)
    if layout.cgroups_path:
        linux["cgroupsPath"] = layout.cgroups_path
    propagation = _root_propagation(layout)
    if propagation:
        linux["rootfsPropagation"] = propagation
    if grant.seccomp is not None:
        names = frozenset(name.removeprefix("CAP_") for name in grant.capabilities)
        linux["seccomp"] = filter_of(grant.seccomp, names, layout.machine)
    elif grant.seccomp_document is not None:
        linux["seccomp"] = dict(grant.seccomp_document)
    return linux


def _root_propagation(layout: SpecLayout) -> str:
    """Return what the container's root must be for its volumes to propagate; "" for the default.

    A mount cannot be a slave or a peer of the node's once the whole tree was made private.
    """
    asked = {mount.propagation for mount in layout.mounts}
    if Propagation.BIDIRECTIONAL in asked:
        return "rshared"
    return "rslave" if Propagation.HOST_TO_CONTAINER in asked else ""


def _namespaces(grant: ContainerGrant, layout: SpecLayout) -> list[dict[str, str]]:
    result = [{"type": "mount"}]
    if layout.pid_ns is not None:
        result.append({"type": "pid", "path": layout.pid_ns})
    elif not layout.host_pid:
        result.append({"type": "pid"})
    if layout.cgroup_namespace and not grant.privileged:
        result.append({"type": "cgroup"})
    pinned = {
        "user": layout.user_ns,
        "network": layout.network_ns,
        "ipc": layout.ipc_ns,
        "uts": layout.uts_ns,
    }
    result += [{"type": kind, "path": path} for kind, path in pinned.items() if path is not None]
    return result


def allows_swap(asked: Resources) -> bool:
    """Tell whether memory may be swapped out; the swap limit counts memory too."""
    return not 0 < asked.memory_limit_bytes == asked.memory_swap_limit_bytes


def with_resources(
    document: Mapping[str, object], asked: Resources, *, cgroup_v2: bool = False
) -> dict[str, object]:
    """Return config.json with other limits; devices and PIDs stay. Raises KeyError, TypeError."""
    linux = cast("Mapping[str, object]", document["linux"])
    process = cast("Mapping[str, object]", document["process"])
    kept = cast("Mapping[str, object]", linux["resources"])
    resources = {key: kept[key] for key in ("devices", "pids") if key in kept}
    return {
        **document,
        "process": {**process, "oomScoreAdj": asked.oom_score_adj},
        "linux": {**linux, "resources": resources | _limits(asked, cgroup_v2=cgroup_v2)},
    }


def _resources(grant: ContainerGrant, layout: SpecLayout) -> dict[str, object]:
    rules: list[dict[str, object]] = [{"allow": grant.privileged, "access": "rwm"}]
    if not grant.privileged:
        rules += map(device_rule, layout.devices)
    result: dict[str, object] = {
        "devices": rules,
        **_limits(grant.resources, cgroup_v2=layout.cgroup_v2),
    }
    if grant.pids_limit is not None:
        result["pids"] = {"limit": grant.pids_limit}
    return result


def _limits(asked: Resources, *, cgroup_v2: bool) -> dict[str, object]:
    cpu: dict[str, object] = {
        "shares": asked.cpu_shares,
        "quota": asked.cpu_quota_us,
        "period": asked.cpu_period_us,
        "cpus": asked.cpuset_cpus,
        "mems": asked.cpuset_mems,
    }
    memory = {
        "limit": asked.memory_limit_bytes,
        "swap": asked.memory_swap_limit_bytes,
    }  # swap -1: any
    result: dict[str, object] = {
        "cpu": {key: value for key, value in cpu.items() if value and value != -1},
        "memory": {key: value for key, value in memory.items() if value},
    }
    if asked.hugepage_limits_bytes:
        result["hugepageLimits"] = [
            {"pageSize": size, "limit": limit}
            for size, limit in sorted(asked.hugepage_limits_bytes.items())
        ]
    # runc tells systemd of every limit but this one, and systemd then puts its own in place of it.
    own = {} if allows_swap(asked) or not cgroup_v2 else {NO_SWAP: "0"}
    if unified := {**own, **asked.unified}:
        result["unified"] = unified
    return result


def device_rule(device: DeviceNode) -> dict[str, object]:
    """Return the cgroup's rule: to make the node is not yet to be allowed to use it."""
    return {
        "allow": True,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "access": device.access,
    }


def device_entry(device: DeviceNode) -> dict[str, object]:
    """Return the node that the OCI runtime makes."""
    return {
        "path": device.path,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    }


def _mounts(grant: ContainerGrant, layout: SpecLayout) -> list[dict[str, object]]:
    sealed = [] if grant.privileged else ["ro"]
    safe = ["nosuid", "noexec", "nodev"]
    result = [
        _mount("/proc", "proc", "proc", safe),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", "devpts", _devpts_options()),
        _mount("/dev/mqueue", "mqueue", "mqueue", safe),
        _mount("/sys", "sysfs", "sysfs", [*safe, *sealed]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", *sealed]),
    ]
    result.append(
        _mount("/dev/shm", "bind", layout.shm_path, ["rbind", *safe])  # noqa: S108
        if layout.shm_path
        else _mount("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", "size=65536k"])  # noqa: S108
    )
    files = {"/etc/resolv.conf": layout.resolv_conf, "/etc/hostname": layout.hostname_file}
    access = "ro" if grant.readonly_rootfs else "rw"
    asked = {mount.container_path for mount in layout.mounts}
    result += [
        _mount(target, "bind", source, ["rbind", "rprivate", access])
        for target, source in files.items()
        if source and target not in asked
    ]
    return [m for m in result if m["destination"] not in asked] + _volumes(grant, layout)


def _devpts_options() -> list[str]:
    options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    return [*options, f"gid={_TTY_GROUP}"]


def _volumes(grant: ContainerGrant, layout: SpecLayout) -> list[dict[str, object]]:
    """Return the volumes, folders before what is inside them: they are mounted in this order."""
    ordered = sorted(layout.mounts, key=lambda mount: mount.container_path.rstrip("/").count("/"))
    return [_mount(m.container_path, "bind", m.host_path, _options(m, grant)) for m in ordered]


def _options(mount: Mount, grant: ContainerGrant) -> list[str]:
    propagation = {
        Propagation.PRIVATE: "rprivate",
        Propagation.HOST_TO_CONTAINER: "rslave",
        Propagation.BIDIRECTIONAL: "rshared",
    }[mount.propagation]
    if not mount.readonly:
        return ["rbind", propagation, "rw", *mount.options]
    whole = mount.recursive_readonly or mount.container_path in grant.recursive_readonly
    return ["rbind", propagation, "ro", *(["rro"] if whole else []), *mount.options]


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, object]:
    return {"destination": target, "type": kind, "source": source, "options": options}
