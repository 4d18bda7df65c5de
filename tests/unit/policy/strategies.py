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
    ImageFacts,
    Mount,
    NamespaceMode,
    Namespaces,
    ProfileType,
    Propagation,
    ResolvedUser,
    Resources,
    SandboxConfig,
    SecurityProfileRef,
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
)
REGISTRIES = ("docker.io", "registry.example.com/team", "localhost:5000")
CPU = ("5m", "500m", "2")
MEMORY = ("64Mi", "1Gi")


def some(values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True)


amounts = st.fixed_dictionaries(
    {}, optional={"cpu": st.sampled_from(CPU), "memory": st.sampled_from(MEMORY)}
)
names = some(SYSCALLS).map(lambda found: [{"names": found}] if found else [])
profiles: st.SearchStrategy[Document] = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["Enforce", "Enforce", "Audit"]),
        "privileged": st.sampled_from(["Allow", "Deny"]),
        "hostNamespaces": some(("PID", "IPC", "Network")),
        "runAs": st.fixed_dictionaries(
            {
                "nonRoot": st.booleans(),
                "users": st.lists(st.sampled_from([{"min": 0, "max": 9}, {"min": 5, "max": 2000}])),
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
        "sysctls": st.fixed_dictionaries({"allow": some(("net.core.somaxconn", "kernel.sem"))}),
        "hostPaths": st.lists(
            st.fixed_dictionaries({"path": st.sampled_from(PATHS[:4]), "readOnly": st.booleans()})
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
)
_resources = st.builds(
    Resources,
    cpu_quota_us=st.sampled_from([-1, 0, 1000, 50_000, 200_000, 300_000]),
    cpu_period_us=st.sampled_from([0, 100_000, 50_000]),
    memory_limit_bytes=st.sampled_from([-1, 0, 64 << 20, 1 << 30, 2 << 30]),
    memory_swap_limit_bytes=st.sampled_from([-1, 0, 1, 3 << 30]),
)
_seccomp = st.builds(SecurityProfileRef, type=st.sampled_from(ProfileType))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Return a well-formed request of a kubelet; most ask for little."""
    plain = draw(st.booleans())
    privileged = not plain and draw(st.booleans())
    namespaces = Namespaces() if plain else draw(_namespaces)
    asks = security(
        capabilities_add=tuple(draw(some((*CAPABILITIES, "ALL")))) if not plain else (),
        capabilities_drop=tuple(draw(some((*CAPABILITIES, "ALL")))),
        privileged=privileged,
        namespaces=namespaces,
        no_new_privs=draw(st.booleans()),
        readonly_rootfs=draw(st.booleans()),
        seccomp=SecurityProfileRef() if plain else draw(_seccomp),
    )
    if not plain and draw(st.booleans()):
        asks = replace(asks, masked_paths=())
    device = Device(container_path="/dev/a", host_path="/dev/a", permissions="rwm")
    asked = container(
        asks,
        image_reference=draw(st.sampled_from(REFERENCES)),
        mounts=() if plain else tuple(draw(st.lists(_mounts, max_size=3))),
        devices=(device,) if not plain and draw(st.booleans()) else (),
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
    host = HostFacts(real_paths=draw(st.sampled_from([{}, {"/srv/data": "/etc"}])))
    return pod, asked, image(ResolvedUser(uid=uid, gid=uid)), host


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
            "users": _fewer(old["runAs"]["users"], {"min": 5, "max": 9}, draw),
        },
        "noNewPrivileges": draw(st.sampled_from([old["noNewPrivileges"], "Required"])),
        "rootFilesystem": draw(st.sampled_from([old["rootFilesystem"], "ReadOnly"])),
        "capabilities": {key: _less(value, draw) for key, value in old["capabilities"].items()},
        "seccomp": {
            "base": draw(st.sampled_from([old["seccomp"]["base"], "DenyAll"])),
            "allow": _less(old["seccomp"]["allow"], draw),
            "deny": old["seccomp"]["deny"] + draw(names),
        },
        "sysctls": {"allow": _less(old["sysctls"]["allow"], draw)},
        "hostPaths": [
            {**path, "readOnly": path["readOnly"] or draw(st.booleans())} for path in kept
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


def _fewer(values: list[Any], first: object, draw: st.DrawFn) -> list[Any]:
    """Return fewer of a list that allows everything when it is empty, and never empty it."""
    if not values:
        return draw(st.sampled_from([[], [first]]))
    return _less(values, draw) or values[:1]
