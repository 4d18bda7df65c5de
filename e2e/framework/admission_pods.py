"""Pods that the API server takes, each of which asks for a few things that a profile may refuse."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

Json = dict[str, Any]  # free-form
Ask = Callable[[Random, Json, Json], None]
"""Makes a Pod's spec, and one of its containers, ask for something."""

DIGEST: Final = "@sha256:" + "a" * 64
GOOD_IMAGE: Final = "registry.example.com/team/web:1" + DIGEST
IMAGES: Final = (
    "nginx",
    "nginx:1",
    "team/nginx",
    "docker.io/nginx:1",
    "index.docker.io/library/nginx" + DIGEST,
    "registry.example.com/team/web:1",
    "registry.example.com/team:5/x" + DIGEST,
    "registry.example.com/teams/web" + DIGEST,
    "registry.example.com.evil.org/team/x" + DIGEST,
    "Registry.Example.com/team/web" + DIGEST,
    "registry.example.com:5000/team/web" + DIGEST,
    "localhost:5000/x",
    "localhost/x" + DIGEST,
    "registry.example.com/team/web@sha512:" + "b" * 128,
    "registry.example.com/team/web@sha256:" + "b" * 63,
    "registry.example.com/team/UPPER" + DIGEST,
)
PATHS: Final = ("/srv", "/srv/", "/srv/data/x", "//srv/./ro/y", "/srv/ro", "/srvx", "/etc", "/")
AMOUNTS: Final = ("1", "2", "2001m", "3", "500m")


def pods(seed: int, count: int, runtime_class: str) -> list[Json]:
    """Return Pods, always the same for the same seed; every ask is made in turn, some with a second one."""
    random = Random(seed)  # noqa: S311 - no secret
    return [_pod(random, number, runtime_class) for number in range(count)]


def _pod(random: Random, number: int, runtime_class: str) -> Json:
    made = plain_pod(f"pod-{number}", runtime_class)
    if random.random() < 0.3:
        del made["spec"]["hostUsers"]
    made["metadata"]["namespace"] = random.choice(["default", "default", "web"])
    spec = made["spec"]
    if random.random() < 0.3:
        spec["initContainers"] = [{"name": "init", "image": GOOD_IMAGE}]
    first = ASKS[number % len(ASKS)]
    others = [ask for ask in ASKS if ask is not first]
    asks = [first, *random.sample(others, k=random.choice([0, 0, 1, 2]))]
    for ask in asks:
        container = random.choice([*spec["containers"], *spec.get("initContainers", ())])
        ask(random, spec, container)
    if random.random() < 0.1:
        account = random.choice(["legacy", "default"])
        spec["serviceAccountName"] = account
        made["metadata"]["annotations"] = {"noderuntime.io/service-account": account}
    _make_valid(spec)
    return made


def plain_pod(name: str, runtime_class: str) -> Json:
    """Return a Pod that the strictest profile takes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "runtimeClassName": runtime_class,
            "hostUsers": False,
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
            "containers": [{"name": "web", "image": GOOD_IMAGE}],
        },
    }


def _context(random: Random, spec: Json, container: Json) -> Json:
    """Return the security context of the Pod or of the container."""
    of: Json = random.choice([spec, container]).setdefault("securityContext", {})
    return of


def _own(container: Json) -> Json:
    found: Json = container.setdefault("securityContext", {})
    return found


def _mount(spec: Json, container: Json, source: Json, **fields: Any) -> None:  # noqa: ANN401
    volumes = spec.setdefault("volumes", [])
    name = f"v{len(volumes)}"
    volumes.append({"name": name, **source})
    mount = {"name": name, "mountPath": f"/mnt/{name}", **fields}
    mounts: list[Json] = container.setdefault("volumeMounts", [])
    if mount["mountPath"] not in [each["mountPath"] for each in mounts]:
        mounts.append(mount)


def privileged(random: Random, spec: Json, container: Json) -> None:
    _own(container)["privileged"] = True


def host_namespaces(random: Random, spec: Json, container: Json) -> None:
    spec[random.choice(["hostPID", "hostIPC", "hostNetwork"])] = True


def host_users(random: Random, spec: Json, container: Json) -> None:
    asked = random.choice([None, True, False])
    spec.pop("hostUsers", None)
    if asked is not None:
        spec["hostUsers"] = asked


def user(random: Random, spec: Json, container: Json) -> None:
    _context(random, spec, container)["runAsUser"] = random.choice([0, 5, 1000, 70000])


def no_user(random: Random, spec: Json, container: Json) -> None:
    spec["securityContext"] = {}


def group(random: Random, spec: Json, container: Json) -> None:
    _context(random, spec, container)["runAsGroup"] = random.choice([0, 5, 1000, 70000])


def groups(random: Random, spec: Json, container: Json) -> None:
    context = spec["securityContext"]
    context["supplementalGroups"] = random.choice([[5], [1000], [70000, 5], [0]])
    if random.random() < 0.5:
        context["fsGroup"] = random.choice([0, 5, 70000])
    if random.random() < 0.5:
        context["supplementalGroupsPolicy"] = "Strict"


def capabilities(random: Random, spec: Json, container: Json) -> None:
    names = [
        "NET_ADMIN",
        "CAP_CHOWN",
        "net_raw",
        "SYS_ADMIN",
        "ALL",
        "KILL",
        "CAP_KILL",
        "cap_CHOWN",
    ]
    _own(container)["capabilities"] = {
        "add": random.sample(names, k=random.choice([1, 1, 2])),
        "drop": random.choice([[], ["ALL"]]),
    }


def seccomp(random: Random, spec: Json, container: Json) -> None:
    profiles = [
        {"type": "RuntimeDefault"},
        {"type": "Unconfined"},
        {"type": "Localhost", "localhostProfile": "profiles/own.json"},
    ]
    _context(random, spec, container)["seccompProfile"] = random.choice(profiles)


def apparmor(random: Random, spec: Json, container: Json) -> None:
    profiles = [
        {"type": "RuntimeDefault"},
        {"type": "Unconfined"},
        {"type": "Localhost", "localhostProfile": "ours"},
        {"type": "Localhost", "localhostProfile": "theirs"},
    ]
    _context(random, spec, container)["appArmorProfile"] = random.choice(profiles)


def selinux(random: Random, spec: Json, container: Json) -> None:
    values = {
        "user": ["system_u", "user_u"],
        "role": ["system_r", "user_r"],
        "type": ["container_t", "spc_t"],
        "level": ["s0:c1,c2", "s0:c3"],
    }
    part = random.choice(sorted(values))
    options = {part: random.choice(values[part])}
    _context(random, spec, container)["seLinuxOptions"] = options


def sysctls(random: Random, spec: Json, container: Json) -> None:
    names = [
        "net.ipv4.tcp_syncookies",
        "net.core.somaxconn",
        "net/core/somaxconn",
        "net/ipv4/tcp_syncookies",
        "kernel.sem",
        "net.ipv4.conf.all.forwarding",
        "net/ipv4/conf/eth0.1/forwarding",
    ]
    name = random.choice(names)
    spec.setdefault("securityContext", {})["sysctls"] = [{"name": name, "value": "1"}]


def proc_mount(random: Random, spec: Json, container: Json) -> None:
    _own(container)["procMount"] = random.choice(["Unmasked", "Unmasked", "Default"])


def host_path(random: Random, spec: Json, container: Json) -> None:
    fields: Json = {}
    if random.random() < 0.5:
        fields["readOnly"] = True
    if random.random() < 0.15:
        fields["subPath"] = "a/b"
    if random.random() < 0.3:
        propagation = random.choice(["None", "HostToContainer", "Bidirectional", "Bidirectional"])
        fields["mountPropagation"] = propagation
        if propagation == "Bidirectional":
            _own(container)["privileged"] = True
    _mount(spec, container, {"hostPath": {"path": random.choice(PATHS)}}, **fields)


def over_proc(random: Random, spec: Json, container: Json) -> None:
    places = [
        "/proc",
        "/proc/self",
        "//proc/./x",
        "/proc/meminfo",
        "/dev",
        "/dev/pts/",
        "/dev/x",
        "proc/y",
    ]
    _mount(spec, container, {"emptyDir": {}}, mountPath=random.choice(places))


def own_volumes(random: Random, spec: Json, container: Json) -> None:
    propagation = random.choice(["HostToContainer", "Bidirectional", "Bidirectional"])
    if propagation == "Bidirectional":
        _own(container)["privileged"] = True
    sources: list[Json] = [{"emptyDir": {}}, {"configMap": {"name": "x"}}]
    _mount(spec, container, random.choice(sources), mountPropagation=propagation)


def shared_memory(random: Random, spec: Json, container: Json) -> None:
    size: Json = random.choice([{}, {"sizeLimit": "32Mi"}, {"sizeLimit": "1Gi"}])
    _mount(spec, container, {"emptyDir": {"medium": "Memory", **size}}, mountPath="/dev/shm")


def image(random: Random, spec: Json, container: Json) -> None:
    container["image"] = random.choice(IMAGES)


def image_volume(random: Random, spec: Json, container: Json) -> None:
    _mount(spec, container, {"image": {"reference": random.choice(IMAGES)}})


def cpu(random: Random, spec: Json, container: Json) -> None:
    _limits(container)["cpu"] = random.choice(AMOUNTS)


def memory(random: Random, spec: Json, container: Json) -> None:
    _limits(container)["memory"] = random.choice(["64Mi", "1Gi", "1073741825", "2Gi"])


def hugepages(random: Random, spec: Json, container: Json) -> None:
    size, amount = random.choice([("2Mi", "4Mi"), ("2Mi", "8Mi"), ("1Gi", "1Gi")])
    _limits(container).update({f"hugepages-{size}": amount, "memory": "64Mi"})


def _limits(container: Json) -> Json:
    found: Json = container.setdefault("resources", {}).setdefault("limits", {})
    return found


def what_is_only_set(random: Random, spec: Json, container: Json) -> None:
    """Ask for what a profile sets to something else without refusing it."""
    fields: Json = {
        "allowPrivilegeEscalation": True,
        "readOnlyRootFilesystem": False,
        "runAsNonRoot": False,
    }
    name = random.choice(sorted(fields))
    _own(container)[name] = fields[name]


ASKS: Final[tuple[Ask, ...]] = (
    *(privileged, host_namespaces, host_users, user, no_user, group, groups, capabilities),
    *(
        seccomp,
        apparmor,
        selinux,
        sysctls,
        proc_mount,
        host_path,
        host_path,
        over_proc,
        own_volumes,
    ),
    *(shared_memory, image, image_volume, cpu, memory, hugepages, what_is_only_set),
)


def _make_valid(spec: Json) -> None:
    """Take away what the API server itself refuses together."""
    shares = [name for name in ("hostPID", "hostIPC", "hostNetwork") if spec.get(name)]
    containers: list[Json] = [*spec["containers"], *spec.get("initContainers", ())]
    unmasked = any(
        each.get("securityContext", {}).get("procMount") == "Unmasked" for each in containers
    )
    if shares:
        spec["hostUsers"] = True
        spec.get("securityContext", {}).pop("sysctls", None)
    if unmasked:
        for name in shares:
            del spec[name]
        spec["hostUsers"] = False
    for each in containers:
        is_privileged = each.get("securityContext", {}).get("privileged", False)
        for mount in each.get("volumeMounts", ()):
            if mount.get("mountPropagation") == "Bidirectional" and not is_privileged:
                del mount["mountPropagation"]
