"""Rules about what of the node a Pod asks for: namespaces, kernel parameters, paths, images, amounts.

Each says in CEL what one check of ``noderuntime/policy`` says in Python, in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from noderuntime.api.quantity import show_bytes, show_cpu
from noderuntime.policy import mounts, sysctls
from noderuntime.policy.denial import listed
from noderuntime.policy.rules import HandlerRules
from noderuntime_operator.admission.cel import cut, text, texts
from noderuntime_operator.admission.rule import CREATED, Rule, of_container, per_container, pod

_LEAST_MILLIS: Final = 10  # the kubelet asks for no less
_SPEC: Final = "object.spec.?"


def rules(own: HandlerRules) -> Iterator[Rule]:
    """Yield them in the order of the node's checks; those of paths are in ``paths``."""
    yield from _host_namespaces(own)
    yield from _user_namespace(own)
    yield _sysctls(own)
    yield _over_proc()
    yield from _registries(own)
    yield from _digest(own)
    yield from _amounts(own)
    yield from _hugepages(own)


def _host_namespaces(own: HandlerRules) -> Iterator[Rule]:
    for field, name in (("hostPID", "PID"), ("hostIPC", "IPC"), ("hostNetwork", "Network")):
        if name not in own.host_namespaces:
            yield Rule(
                name=field,
                section="hostNamespaces",
                field=field,
                offences=pod(f"{_SPEC}{field}.orValue(false)", field, '"true"'),
                says=(f"hostNamespaces has {listed(own.host_namespaces)}",),
                remedy=(f"remove {field} from the Pod, or add {name} to hostNamespaces",),
            )


def _user_namespace(own: HandlerRules) -> Iterator[Rule]:
    if own.user_namespace == "Optional":
        return
    asked, required = f"{_SPEC}hostUsers.orValue(true)", own.user_namespace == "Required"
    yield Rule(
        name="hostUsers",
        section="userNamespace",
        field="hostUsers",
        offences=pod(asked if required else f"!{asked}", "hostUsers", f'"{str(required).lower()}"'),
        says=(f"userNamespace is {own.user_namespace}",),
        remedy=(
            "set hostUsers: false in the Pod"
            if required
            else "remove hostUsers: false from the Pod",
        ),
    )


def _sysctls(own: HandlerRules) -> Rule:
    allowed = texts(sorted(sysctls.SAFE | own.sysctls))
    # Where a slash comes first, slashes separate and dots do not; no name has a bar.
    swapped = 's.name.replace(".", "|").replace("/", ".").replace("|", "/")'
    first = 's.name.split("/")[0].contains(".")'
    return Rule(
        name="sysctls",
        section="sysctls",
        field="securityContext.sysctls",
        offences=(
            f"{CREATED} ? [{_SPEC}securityContext.?sysctls.orValue([]).map(s, "
            f'{first} || !s.name.contains("/") ? s.name : {swapped}).filter(n, !(n in {allowed}))'
            f'.map(n, ["securityContext.sysctls", {cut("n")}])] : []'
        ),
        says=(f"sysctls.allow has {listed(own.sysctls)}",),
        remedy=("remove it from the Pod, or add ", 1, " to sysctls.allow"),
    )


def _over_proc() -> Rule:
    below = '(m.path == "/proc" || m.path.startsWith("/proc/"))'
    covers = (
        f"(m.path in {texts(sorted(mounts.OWN_FOLDERS))} || "
        f"{below} && !(m.path in {texts(sorted(mounts.PROC_FILES))}))"
    )
    return Rule(
        name="overProc",
        section="procMount",
        field="volumeMounts.mountPath",
        offences=(
            f"variables.mounts.map(l, l.filter(m, m.isClean && !m.privileged && {covers})"
            f'.map(m, [string(m.field) + ".mountPath", {cut("m.path")}, {below} ? "/proc" : string(m.path)]))'
        ),
        says=("nothing may be mounted over ", 2),
        remedy=("mount it elsewhere, for instance below /host",),
    )


def _registries(own: HandlerRules) -> Iterator[Rule]:
    for name, owner, prefixes in (
        (
            "registriesOfRuntime",
            f'images.allowedRegistries of NodeRuntime "{own.node_runtime}"',
            own.registries,
        ),
        ("registries", "images.allowedRegistries", own.profile_registries),
    ):
        if not prefixes:
            continue
        paths = [prefix for prefix in prefixes if "/" in prefix]  # a host alone is no repository
        begins = texts(
            [f"{prefix}/" for prefix in prefixes] + [f"{p}{mark}" for p in paths for mark in ":@"]
        )
        yield Rule(
            name=name,
            section="images",
            field="image",
            offences=(
                f"variables.repositories.map(l, l.filter(i, !(i[2] in {texts(paths)} || {begins}"
                f'.exists(p, i[2].startsWith(p)))).map(i, ["containers[" + string(i[0]) + "].image", {cut("i[1]")}]))'
            ),
            says=(f"{owner} has {listed(prefixes)}",),
            remedy=("use an image from there",),
        )


def _digest(own: HandlerRules) -> Iterator[Rule]:
    if own.require_digest:
        pattern = text("@(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")
        yield Rule(
            name="digests",
            section="images",
            field="image",
            offences=(
                f"variables.images.map(l, l.filter(i, !i[1].matches({pattern}))"
                f'.map(i, ["containers[" + string(i[0]) + "].image", {cut("i[1]")}]))'
            ),
            says=("images.requireDigest is true",),
            remedy=("name it by digest, as name@sha256:...",),
        )


def _amounts(own: HandlerRules) -> Iterator[Rule]:
    most, profile = own.limits, own.profile_limits
    by_runtime = f'of NodeRuntime "{own.node_runtime}"'
    found: list[tuple[str, str, str, bool]] = []
    if most.cpu_millis is not None:
        bound = f"{max(most.cpu_millis, _LEAST_MILLIS)}m"
        mine = profile.cpu_millis == most.cpu_millis
        found.append(("cpu", bound, show_cpu(most.cpu_millis), mine))
    if most.memory_bytes is not None:
        mine = profile.memory_bytes == most.memory_bytes
        found.append(("memory", str(most.memory_bytes), show_bytes(most.memory_bytes), mine))
    for kind, bound, shown, mine in found:
        field, asked = f"resources.limits.{kind}", f"c.resources.limits.{kind}"
        above = f"quantity(string({asked})).isGreaterThan(quantity({text(bound)}))"
        owner = f"resources.{kind}.max" if mine else f"{field} {by_runtime}"
        yield Rule(
            name=f"{kind}Limit",
            section="resources",
            field=field,
            offences=per_container(
                f"c.?resources.?limits.?{kind}.hasValue() && {above}",
                field,
                f"string({asked})",
                of="sized",
            ),
            says=(f"{owner} is {shown}",),
            remedy=(f"ask for {shown} or less",),
        )


def _hugepages(own: HandlerRules) -> Iterator[Rule]:
    """Judge the sizes that Linux has, as they are usually written; another spelling is left to the node."""
    if own.hugepages is None:
        return
    most = dict(own.hugepages)
    known = ("64KB", "1MB", "2MB", "16MB", "32MB", "512MB", "1GB", "2GB", "16GB")
    bounds = {
        f"hugepages-{size.removesuffix('B')}i": show_bytes(most.get(size, 0)) for size in known
    }
    table = "{" + ", ".join(f"{text(key)}: {text(value)}" for key, value in bounds.items()) + "}"
    limits = "c.?resources.?limits.orValue({})"
    above = f"quantity(string({limits}[k])).isGreaterThan(quantity({table}[k]))"
    offence = f"[{of_container('resources.limits.')} + k, string({limits}[k]), string({table}[k])]"
    sizes = tuple(f"{name}: {show_bytes(limit)}" for name, limit in own.hugepages)
    yield Rule(
        name="hugepages",
        section="resources",
        field="resources.limits.hugepages",
        offences=(
            f"variables.sized.map(c, {texts(bounds)}.filter(k, k in {limits} && {above}).map(k, {offence}))"
        ),
        says=(f"resources.hugepages has {listed(sizes)}",),
        remedy=("ask for ", 2, " or less"),
    )
