"""Rules about a container's process: who it is and what it may do.

Each says in CEL what one check of ``noderuntime/policy`` says in Python, in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from noderuntime.policy import apparmor, capabilities, users
from noderuntime.policy.denial import listed
from noderuntime.policy.rules import HandlerRules, Ranges
from noderuntime_operator.admission.cel import cut, text, texts, within
from noderuntime_operator.admission.rule import Rule, of_container, per_container

_PRIVILEGED: Final = "c.?securityContext.?privileged.orValue(false)"
_GROUPS: Final = (
    "(object.spec.?securityContext.?supplementalGroups.orValue([]) + "
    "(object.spec.?securityContext.?fsGroup.hasValue() ? [object.spec.securityContext.fsGroup] : []))"
)


def rules(own: HandlerRules) -> Iterator[Rule]:
    """Yield them in the order of the node's checks."""
    yield from _privileged(own)
    yield from _capabilities(own)
    yield from _users(own)
    yield from _groups(own)
    yield _seccomp()
    yield from _apparmor(own)
    yield from _selinux(own)
    yield from _proc_mount(own)


def of_pod_or(field: str) -> str:
    """Return a field of the container's security context, or of the Pod's, as an optional."""
    return f"c.?securityContext.?{field}.or(object.spec.?securityContext.?{field})"


def _privileged(own: HandlerRules) -> Iterator[Rule]:
    if not own.privileged:
        yield Rule(
            name="privileged",
            section="privileged",
            field="securityContext.privileged",
            offences=per_container(_PRIVILEGED, "securityContext.privileged", '"true"'),
            says=("privileged is Deny",),
            remedy=("remove it, and add the capabilities that are needed",),
        )


def _capabilities(own: HandlerRules) -> Iterator[Rule]:
    allowed = own.allowed_capabilities | own.default_capabilities
    if allowed >= capabilities.KNOWN:
        return
    upper = "n.upperAscii()"
    field = "securityContext.capabilities.add"
    yield Rule(
        name="capabilities",
        section="capabilities",
        field=field,
        # A name that is not ASCII could be upper-cased in another way: the node knows.
        offences=(
            'variables.made.map(c, c.?securityContext.?capabilities.?add.orValue([]).filter(n, n.matches("^[!-~]+$"))'
            f'.map(n, {upper}.startsWith("CAP_") ? {upper}.substring(4) : {upper})'
            f".filter(n, !(n in {texts(sorted(allowed))})).map(n, [{of_container(field)}, {cut('n')}]))"
        ),
        says=(f"capabilities.allow has {listed(own.allowed_capabilities)}",),
        remedy=("remove it from the Pod, or add ", 1, " to capabilities.allow"),
    )


def _users(own: HandlerRules) -> Iterator[Rule]:
    """Judge users by number; what the image decides is left to the node."""
    if own.non_root:
        asked, field = of_pod_or("runAsUser"), "securityContext.runAsUser"
        yield Rule(
            name="nonRoot",
            section="runAs",
            field=field,
            offences=per_container(f"{asked}.orValue(1) == 0", field, '"0"'),
            says=("runAs.nonRoot is true",),
            remedy=("set runAsUser to another user than 0, or use an image with such a USER",),
        )
    if own.users:
        yield _outside("users", "runAsUser", own.users)


def _outside(name: str, key: str, ranges: Ranges) -> Rule:
    """Return the rule of a container's ``key``, a number: it must be in the profile's ``runAs`` ranges."""
    field = f"securityContext.{key}"
    numbers = f"[{of_pod_or(key)}].filter(o, o.hasValue()).map(o, o.value())"
    offence = f"[{of_container(field)}, string(n)]"
    return Rule(
        name=name,
        section="runAs",
        field=field,
        offences=(
            f"variables.made.map(c, {numbers}.filter(n, !({within('n', ranges)})).map(n, {offence}))"
        ),
        says=(f"runAs.{name} has {users.shown(ranges)}",),
        remedy=(f"set {key} to one of these",),
    )


def _groups(own: HandlerRules) -> Iterator[Rule]:
    if own.groups:
        yield _outside("groups", "runAsGroup", own.groups)
    if own.supplemental_groups:
        field, asked = "securityContext.supplementalGroups", of_pod_or("runAsGroup")
        inside = within("n", own.supplemental_groups)
        yield Rule(
            name="supplementalGroups",
            section="runAs",
            field=field,
            # The primary group may be among them; where the image decides which it is, the node judges.
            offences=(
                f"variables.made.map(c, {asked}.hasValue() ? {_GROUPS}.filter(n, n != {asked}.value() "
                f"&& !({inside})).map(n, [{of_container(field)}, string(n)]) : [])"
            ),
            says=(f"runAs.supplementalGroups has {users.shown(own.supplemental_groups)}",),
            remedy=("use groups of these",),
        )


def _seccomp() -> Rule:
    asked, field = of_pod_or("seccompProfile"), "securityContext.seccompProfile.localhostProfile"
    return Rule(
        name="seccomp",
        section="seccomp",
        field=field,
        offences=per_container(
            f'{asked}.?type.orValue("") == "Localhost"',
            field,
            cut(f'{asked}.?localhostProfile.orValue("")'),
        ),
        says=("the system call filter is the profile's own",),
        remedy=("use seccompProfile.type: RuntimeDefault",),
    )


def _apparmor(own: HandlerRules) -> Iterator[Rule]:
    declared = own.apparmor
    if declared is not None and declared.name == apparmor.UNCONFINED:
        return  # any profile is less than none
    asked = of_pod_or("appArmorProfile")
    kind, named = f'{asked}.?type.orValue("")', f'{asked}.?localhostProfile.orValue("")'
    is_ours = "" if declared is None else f" && {named} != {text(declared.name)}"
    for name, part, condition, value in (
        ("appArmorName", "localhostProfile", f'{kind} == "Localhost"{is_ours}', cut(named)),
        ("appArmorType", "type", f'{kind} == "Unconfined"', '"Unconfined"'),
    ):
        field = f"securityContext.appArmorProfile.{part}"
        yield Rule(
            name=name,
            section="appArmor",
            field=field,
            offences=per_container(condition, field, value),
            says=("the AppArmor profile is the handler's",),
            remedy=("remove appArmorProfile, or use type: RuntimeDefault",),
        )


def _selinux(own: HandlerRules) -> Iterator[Rule]:
    declared = own.selinux
    for part in ("user", "role", "type", "level"):
        allowed: str = "" if declared is None else getattr(declared, part)
        field = f"securityContext.seLinuxOptions.{part}"
        asked = (
            f'[c.?securityContext.?seLinuxOptions.?{part}.orValue(""), '
            f'object.spec.?securityContext.?seLinuxOptions.?{part}.orValue("")].filter(x, x != "")'
        )
        one = f"{asked}[0]"
        yield Rule(
            name=f"seLinux{part.capitalize()}",
            section="seLinux",
            field=field,
            offences=per_container(
                f"{asked}.size() > 0 && {one} != {text(allowed)}", field, cut(one)
            ),
            says=(f"the SELinux {part} is the handler's" + (f", {allowed}" if allowed else ""),),
            remedy=(f"remove seLinuxOptions.{part}",),
        )


def _proc_mount(own: HandlerRules) -> Iterator[Rule]:
    if own.unmasked_proc or own.privileged:
        return
    field = "securityContext.procMount"
    asked = f'c.?securityContext.?procMount.orValue("Default") == "Unmasked" && !{_PRIVILEGED}'
    yield Rule(
        name="procMount",
        section="procMount",
        field=field,
        offences=per_container(asked, field, '"Unmasked"'),
        says=("procMount is Default and privileged is Deny",),
        remedy=("use procMount: Default",),
    )
