"""Profiles, requests and tightenings as hypothesis strategies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from noderuntime.policy.model import (
    ContainerConfig,
    Device,
    HostFacts,
    IdMapping,
    ImageFacts,
    LsmFacts,
    Mount,
    NamespaceMode,
    Namespaces,
    ProfileType,
    Propagation,
    ResolvedUser,
    Resources,
    SandboxConfig,
    SecurityProfileRef,
    SelinuxOptions,
    UserNamespace,
)
from tests.unit.policy.factories import KUBELET, container, image, sandbox, security

Document = dict[str, Any]
Request = tuple[SandboxConfig, ContainerConfig, ImageFacts, HostFacts]

CAPABILITIES = ("CHOWN", "KILL", "NET_RAW", "SYS_ADMIN")
SYSCALLS = ("read", "mount", "clone", "clone3", "socket", "keyctl", "mseal")
PATHS = (
    "/etc",
    "/srv",
    "/srv/data",
    "/var/log",
    f"{KUBELET}/volumes/a/b",
    f"{KUBELET}/volume-subpaths/a/b/0",
)
REFERENCES = (
    "nginx",
    "registry.example.com/team/x:1",
    "registry.example.com.evil.org/x",
    "localhost:5000/x",
    "registry.example.com/team/x@sha256:" + "a" * 64,
)
DIGEST = "registry.example.com/team/x@sha256:" + "a" * 64
DEVICES = ("/dev/dri", "/dev/dri/card0", "/dev/fuse")
SECTIONS = ("privileged", "capabilities", "seccomp", "hostPaths", "devices", "resources", "images")
REGISTRIES = ("docker.io", "registry.example.com/team", "localhost:5000")
CPU = ("5m", "500m", "2")
MEMORY = ("64Mi", "1Gi")
LOADED = "of-the-node"
LSM = LsmFacts(
    apparmor=True,
    can_load_apparmor=True,
    apparmor_profiles=frozenset({LOADED}),
    selinux=True,
    selinux_process="system_u:system_r:container_t:s0",
    selinux_file="system_u:object_r:container_file_t:s0",
    selinux_level="s0:c7,c8",
)


def some(values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True)


amounts = st.fixed_dictionaries(
    {}, optional={"cpu": st.sampled_from(CPU), "memory": st.sampled_from(MEMORY)}
)
names = some(SYSCALLS).map(lambda found: [{"names": found}] if found else [])
ranges = st.lists(
    st.sampled_from([{"min": 0, "max": 9}, {"min": 5, "max": 2000}]), unique_by=lambda r: r["min"]
)
profiles: st.SearchStrategy[Document] = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["Enforce", "Enforce", "Audit"]),
        "auditSections": some(SECTIONS).map(lambda found: found[:1]),
        "userNamespace": st.sampled_from(["Optional", "Optional", "Required", "Deny"]),
        "procMount": st.sampled_from(["Default", "UnmaskedAllowed"]),
        "maskedPaths": some(("/etc/a", "/proc/b")),
        "readonlyPaths": some(("/etc/a", "/proc/b")),
        "devices": st.fixed_dictionaries(
            {
                "allow": st.lists(
                    st.fixed_dictionaries(
                        {
                            "path": st.sampled_from(DEVICES),
                            "permissions": st.sampled_from(["r", "rw", "rwm"]),
                        }
                    ),
                    unique_by=lambda device: device["path"],
                )
            }
        ),
        "ulimits": st.sampled_from([[], [{"name": "nofile", "soft": 9, "hard": 99}]]),
        "resources": st.fixed_dictionaries(
            {
                "pids": st.sampled_from([None, 50]),
                "cpu": st.fixed_dictionaries({}, optional={"max": st.sampled_from(CPU)}),
                "memory": st.fixed_dictionaries({}, optional={"max": st.sampled_from(MEMORY)}),
                "hugepages": st.sampled_from([None, {}, {"2Mi": "4Mi"}, {"2Mi": "8Mi"}]),
                "shm": st.fixed_dictionaries({}, optional={"max": st.sampled_from(MEMORY)}),
            }
        ),
        "images": st.fixed_dictionaries(
            {"allowedRegistries": some(REGISTRIES), "requireDigest": st.booleans()}
        ),
        "privileged": st.sampled_from(["Allow", "Deny"]),
        "hostNamespaces": some(("PID", "IPC", "Network")),
        "runAs": st.fixed_dictionaries(
            {
                "nonRoot": st.booleans(),
                "users": ranges,
                "groups": ranges,
                "supplementalGroups": ranges,
            }
        ),
        "noNewPrivileges": st.sampled_from(["Required", "Optional"]),
        "rootFilesystem": st.sampled_from(["ReadOnly", "ReadWrite"]),
        "capabilities": st.fixed_dictionaries(
            {"default": some(CAPABILITIES), "allow": some((*CAPABILITIES, "ALL"))}
        ),
        "seccomp": st.fixed_dictionaries(
            {"base": st.sampled_from(["RuntimeDefault", "DenyAll"]), "allow": names, "deny": names}
        ),
        "appArmor": st.sampled_from(
            [None, None, {"mode": "RuntimeDefault"}, {"mode": "Unconfined"}, {"name": LOADED}]
        ),
        "seLinux": st.sampled_from(
            [None, None, {}, {"type": "spc_t"}, {"level": "s0:c1"}, {"relabel": "Allow"}]
        ),
        "sysctls": st.fixed_dictionaries({"allow": some(("net.core.somaxconn", "kernel.sem"))}),
        "hostPaths": st.lists(
            st.fixed_dictionaries(
                {
                    "path": st.sampled_from(PATHS[:4]),
                    "readOnly": st.booleans(),
                    "propagation": some(("HostToContainer", "Bidirectional")),
                }
            )
        ),
    }
)
bounds: st.SearchStrategy[Document] = st.fixed_dictionaries(
    {
        "allowedRegistries": some(REGISTRIES),
        "resources": st.fixed_dictionaries(
            {"defaults": amounts, "limits": amounts},
            optional={"pidsLimit": st.integers(1, 100)},
        ),
    }
)

_modes = st.sampled_from([NamespaceMode.CONTAINER, NamespaceMode.CONTAINER, NamespaceMode.NODE])
_pods = st.sampled_from([NamespaceMode.POD, NamespaceMode.POD, NamespaceMode.NODE])
_namespaces = st.builds(Namespaces, network=_pods, pid=_modes, ipc=_pods)
_mounts = st.builds(
    Mount,
    container_path=st.sampled_from(("/data", "/data/x", "/proc/self", "/dev/shm")),
    host_path=st.sampled_from(PATHS),
    readonly=st.booleans(),
    propagation=st.sampled_from(Propagation),
    selinux_relabel=st.booleans(),
)
_resources = st.builds(
    Resources,
    cpu_quota_us=st.sampled_from([-1, 0, 1000, 50_000, 200_000, 300_000]),
    cpu_period_us=st.sampled_from([0, 100_000, 50_000]),
    memory_limit_bytes=st.sampled_from([-1, 0, 64 << 20, 1 << 30, 2 << 30]),
    memory_swap_limit_bytes=st.sampled_from([-1, 0, 1, 3 << 30]),
    hugepage_limits_bytes=st.sampled_from([{}, {}, {"2MB": 6 << 20}, {"1GB": 1 << 30}]),
)
_mapping = IdMapping(container_id=0, host_id=100_000, length=100_000)
_users = UserNamespace(uids=_mapping, gids=_mapping)
_devices = st.builds(
    Device,
    container_path=st.just("/dev/a"),
    host_path=st.sampled_from((*DEVICES, "/dev/sda")),
    permissions=st.sampled_from(["r", "rw", "rwm"]),
)
_seccomp = st.builds(SecurityProfileRef, type=st.sampled_from(ProfileType))
_apparmor = st.none() | st.builds(
    SecurityProfileRef, type=st.sampled_from(ProfileType), localhost_ref=st.just(LOADED)
)
_selinux = st.none() | st.builds(
    SelinuxOptions,
    type=st.sampled_from(["", "spc_t", "container_t"]),
    level=st.sampled_from(["", "s0:c1"]),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Return a well-formed request of a kubelet; most ask for little."""
    plain = draw(st.booleans())
    privileged = not plain and draw(st.booleans())
    namespaces = Namespaces() if plain else draw(_namespaces)
    if draw(st.booleans()) and namespaces == Namespaces():
        namespaces = Namespaces(user=_users)
    asks = security(
        capabilities_add=tuple(draw(some((*CAPABILITIES, "ALL")))) if not plain else (),
        capabilities_drop=tuple(draw(some((*CAPABILITIES, "ALL")))),
        privileged=privileged,
        namespaces=namespaces,
        no_new_privs=draw(st.booleans()),
        readonly_rootfs=draw(st.booleans()),
        seccomp=SecurityProfileRef() if plain else draw(_seccomp),
        apparmor=None if plain else draw(_apparmor),
        selinux=None if plain else draw(_selinux),
    )
    if not plain and draw(st.booleans()):
        asks = replace(asks, masked_paths=())
    asked = container(
        asks,
        image_reference=draw(st.sampled_from(REFERENCES)),
        mounts=() if plain else tuple(draw(st.lists(_mounts, max_size=3))),
        devices=(draw(_devices),) if not plain and draw(st.booleans()) else (),
        resources=draw(_resources),
    )
    pod = sandbox(
        privileged=privileged,
        namespaces=namespaces,
        sysctls=draw(st.sampled_from([{}, {"net.core.somaxconn": "1"}]))
        if namespaces.network is not NamespaceMode.NODE
        else {},
    )
    uid = draw(st.sampled_from([0, 7, 1000, 70_000]))
    user = ResolvedUser(
        uid=uid,
        gid=draw(st.sampled_from([0, 7])),
        additional_gids=draw(st.sampled_from([(), (3,)])),
    )
    table = draw(st.sampled_from(["", SHARED_TABLE]))
    links = draw(st.sampled_from([{}, {"/srv/data": "/etc", "/dev/fuse": "/dev/sda"}]))
    return pod, asked, image(user), HostFacts(real_paths=links, mountinfo=table, lsm=LSM)


# Shared throughout: a propagation that the node cannot give is an error, not a verdict.
SHARED_TABLE = (
    "1 1 0:1 / / rw shared:1 - ext4 r rw\n"
    f"9 1 0:9 / {KUBELET}/volumes/a/b rw shared:2 - tmpfs t rw,size=1g"
)


def _less(values: list[Any], draw: st.DrawFn) -> list[Any]:
    return [value for value in values if draw(st.booleans())]


def _least(amount: Mapping[str, str], draw: st.DrawFn) -> dict[str, str]:
    """Return amounts of which none is larger, and none that was there is gone."""
    cpu, memory = amount.get("cpu"), amount.get("memory")
    found: dict[str, str] = dict(amount)
    if draw(st.booleans()):
        found["cpu"] = draw(st.sampled_from(CPU[: CPU.index(cpu) + 1] if cpu else CPU))
    if draw(st.booleans()):
        found["memory"] = draw(
            st.sampled_from(MEMORY[: MEMORY.index(memory) + 1] if memory else MEMORY)
        )
    return found


@st.composite
def tightened(draw: st.DrawFn, profile: Document, bound: Document) -> tuple[Document, Document]:
    """Return both with some of their parts made stricter, none more lenient."""
    old = profile
    kept = _less(old["hostPaths"], draw)
    new = {
        "mode": draw(st.sampled_from([old["mode"], "Enforce"])),
        "privileged": draw(st.sampled_from([old["privileged"], "Deny"])),
        "hostNamespaces": _less(old["hostNamespaces"], draw),
        "runAs": {
            "nonRoot": old["runAs"]["nonRoot"] or draw(st.booleans()),
            **{
                key: _fewer(old["runAs"][key], {"min": 5, "max": 9}, draw)
                for key in ("users", "groups", "supplementalGroups")
            },
        },
        "auditSections": _less(old["auditSections"], draw),
        "userNamespace": draw(st.sampled_from([old["userNamespace"], "Required"]))
        if old["userNamespace"] != "Deny"
        else "Deny",
        "procMount": draw(st.sampled_from([old["procMount"], "Default"])),
        "maskedPaths": [*old["maskedPaths"], "/etc/c"],
        "readonlyPaths": [*old["readonlyPaths"], "/etc/c"],
        "devices": {"allow": _less(old["devices"]["allow"], draw)},
        "ulimits": [{"name": "nofile", "soft": 9, "hard": draw(st.sampled_from([9, 99]))}],
        "resources": _fewer_resources(old["resources"], draw),
        "images": {
            "allowedRegistries": _fewer(old["images"]["allowedRegistries"], REGISTRIES[0], draw),
            "requireDigest": old["images"]["requireDigest"] or draw(st.booleans()),
        },
        "noNewPrivileges": draw(st.sampled_from([old["noNewPrivileges"], "Required"])),
        "rootFilesystem": draw(st.sampled_from([old["rootFilesystem"], "ReadOnly"])),
        "capabilities": {key: _less(value, draw) for key, value in old["capabilities"].items()},
        "seccomp": {
            "base": draw(st.sampled_from([old["seccomp"]["base"], "DenyAll"])),
            "allow": _less(old["seccomp"]["allow"], draw),
            "deny": old["seccomp"]["deny"] + draw(names),
        },
        "appArmor": draw(st.sampled_from([old["appArmor"], _confined(old["appArmor"])])),
        "seLinux": draw(st.sampled_from([old["seLinux"], _labelled(old["seLinux"])])),
        "sysctls": {"allow": _less(old["sysctls"]["allow"], draw)},
        "hostPaths": [
            {
                **path,
                "readOnly": path["readOnly"] or draw(st.booleans()),
                "propagation": _less(path["propagation"], draw),
            }
            for path in kept
        ],
    }
    resources = bound["resources"]
    limits: Document = {
        "allowedRegistries": _fewer(bound["allowedRegistries"], REGISTRIES[0], draw),
        "resources": {
            **resources,
            "defaults": _least(resources["defaults"], draw),
            "limits": _least(resources["limits"], draw),
            "pidsLimit": draw(st.integers(1, resources.get("pidsLimit", 100))),
        },
    }
    return new, limits


def _confined(old: Document | None) -> Document | None:
    return {"mode": "RuntimeDefault"} if old in (None, {"mode": "Unconfined"}) else old


def _labelled(old: Document | None) -> Document:
    return {**(old or {}), "level": "PerPod", "relabel": "Deny"}


def _fewer_resources(old: Document, draw: st.DrawFn) -> Document:
    found = old["hugepages"]
    fewer: list[Document | None] = [found, {}]
    if found is None or found:
        fewer.append({"2Mi": "4Mi"})
    return {
        "pids": draw(st.integers(1, old["pids"] or 100)),
        "cpu": _lower(old["cpu"], CPU, draw),
        "memory": _lower(old["memory"], MEMORY, draw),
        "hugepages": draw(st.sampled_from(fewer)),
        "shm": _lower(old["shm"], MEMORY, draw),
    }


def _lower(bound: Document, amounts: tuple[str, ...], draw: st.DrawFn) -> Document:
    old = bound.get("max")
    lower = amounts[: amounts.index(old) + 1] if old else amounts
    return draw(st.sampled_from([bound, *({"max": amount} for amount in lower)]))


@st.composite
def altered(draw: st.DrawFn, profile: Document) -> Document:
    """Return it with one or two of its sections as in some other profile, tighter or not."""
    other = draw(profiles)
    keys = draw(st.lists(st.sampled_from(sorted(profile)), min_size=1, max_size=2, unique=True))
    return {**profile, **{key: other[key] for key in keys}}


def _fewer(values: list[Any], first: object, draw: st.DrawFn) -> list[Any]:
    """Return fewer of a list that allows everything when it is empty, and never empty it."""
    if not values:
        return draw(st.sampled_from([[], [first]]))
    return _less(values, draw) or values[:1]
