"""The security contexts of CRI: what a Pod asks to be confined by, or to be freed of.

Here a field that is dropped would be a hole, so each is either converted or refused by its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from noderuntime.cri import texts
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.model import (
    ContainerSecurity,
    IdMapping,
    NamespaceMode,
    Namespaces,
    ProfileType,
    SecurityProfileRef,
    SelinuxOptions,
    UserNamespace,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MAX_ID: Final = 2**32 - 2  # (uid_t) -1 means 'no change' in chown(2)
_PROFILES: Final = {
    pb.SecurityProfile.RuntimeDefault: ProfileType.RUNTIME_DEFAULT,
    pb.SecurityProfile.Unconfined: ProfileType.UNCONFINED,
    pb.SecurityProfile.Localhost: ProfileType.LOCALHOST,
}
_DEPRECATED_APPARMOR: Final = {
    "unconfined": ProfileType.UNCONFINED,
    "runtime/default": ProfileType.RUNTIME_DEFAULT,
}
_SELINUX_PART: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SELINUX_LEVEL: Final = re.compile(
    r"s[0-9]{1,2}(-s[0-9]{1,2})?(:c[0-9]{1,4}([.,]c[0-9]{1,4}){0,31})?"
)
_APPARMOR_PREFIX: Final = "localhost/"  # of the deprecated field, and some clients' of the new one


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSecurity:
    """What matters of LinuxSandboxSecurityContext."""

    namespaces: Namespaces
    seccomp: SecurityProfileRef
    run_as_user: int | None
    run_as_group: int | None
    supplemental_groups: tuple[int, ...]
    selinux: SelinuxOptions | None


def sandbox_security(context: pb.LinuxSandboxSecurityContext) -> SandboxSecurity:
    """Convert a sandbox's. ``readonly_rootfs`` is met by itself: a sandbox of ours has no root.

    So is ``apparmor``: nothing of the Pod's runs in a sandbox but its containers.
    """
    field = "linux.security_context"
    _apparmor(field, context)
    _is_strict(field, context.supplemental_groups_policy)  # it has no process with groups
    return SandboxSecurity(
        namespaces=_namespaces_of(field, context),
        seccomp=_seccomp(field, context),
        run_as_user=_id(f"{field}.run_as_user", context, "run_as_user"),
        run_as_group=_id(f"{field}.run_as_group", context, "run_as_group"),
        supplemental_groups=_groups(field, context.supplemental_groups),
        selinux=_selinux(f"{field}.selinux_options", context.selinux_options),
    )


def container_security(context: pb.LinuxContainerSecurityContext) -> ContainerSecurity:
    """Convert a container's."""
    field = "linux.security_context"
    old_apparmor = str(_deprecated(context, "apparmor_profile"))
    if context.capabilities.add_ambient_capabilities:
        raise InvalidArgumentError(
            f"{field}.capabilities.add_ambient_capabilities: is not served by this version"
        )
    user = _id(f"{field}.run_as_user", context, "run_as_user")
    group = _id(f"{field}.run_as_group", context, "run_as_group")
    _check_identity(field, context, user=user, group=group)
    return ContainerSecurity(
        capabilities_add=_capabilities(field, "add", context.capabilities.add_capabilities),
        capabilities_drop=_capabilities(field, "drop", context.capabilities.drop_capabilities),
        privileged=context.privileged,
        namespaces=_namespaces_of(field, context),
        run_as_user=user,
        run_as_username=context.run_as_username,
        run_as_group=group,
        supplemental_groups=_groups(field, context.supplemental_groups),
        supplemental_groups_strict=_is_strict(field, context.supplemental_groups_policy),
        readonly_rootfs=context.readonly_rootfs,
        no_new_privs=context.no_new_privs,
        masked_paths=_paths(f"{field}.masked_paths", context.masked_paths),
        readonly_paths=_paths(f"{field}.readonly_paths", context.readonly_paths),
        seccomp=_seccomp(field, context),
        selinux=_selinux(f"{field}.selinux_options", context.selinux_options),
        apparmor=_apparmor(field, context) or _deprecated_apparmor(field, old_apparmor),
    )


_Context = pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext


def _namespaces_of(field: str, context: _Context) -> Namespaces:
    # Without the message our defaults hold; with it, even an empty one asks for pid: POD.
    if not context.HasField("namespace_options"):
        return Namespaces()
    options, field = context.namespace_options, f"{field}.namespace_options"
    user = None
    if options.HasField("userns_options"):
        user = _user_namespace(f"{field}.userns_options", options.userns_options)
    network = _mode(f"{field}.network", options.network, {pb.POD, pb.NODE})
    ipc = _mode(f"{field}.ipc", options.ipc, {pb.POD, pb.NODE})
    is_container = isinstance(context, pb.LinuxContainerSecurityContext)
    served = {pb.POD, pb.CONTAINER, pb.NODE, *({pb.TARGET} if is_container else ())}
    pid = _mode(f"{field}.pid", options.pid, served)
    if (pid is NamespaceMode.TARGET) != bool(options.target_id):
        raise InvalidArgumentError(f"{field}.target_id: belongs to pid TARGET")
    target = texts.token(f"{field}.target_id", options.target_id) if options.target_id else ""
    return Namespaces(network=network, pid=pid, ipc=ipc, target_id=target, user=user)


def _mode(
    field: str, mode: pb.NamespaceMode.ValueType, served: set[pb.NamespaceMode.ValueType]
) -> NamespaceMode:
    if mode not in pb.NamespaceMode.values():
        raise InvalidArgumentError(f"{field}: {mode} is not a namespace mode of CRI")
    name = pb.NamespaceMode.Name(mode)
    if mode not in served:
        raise InvalidArgumentError(f"{field}: {name} is not served by this version")
    return NamespaceMode(name)


def _user_namespace(field: str, asked: pb.UserNamespace) -> UserNamespace | None:
    if _mode(f"{field}.mode", asked.mode, {pb.POD, pb.NODE}) is NamespaceMode.POD:
        return UserNamespace(
            uids=id_mapping(f"{field}.uids", asked.uids),
            gids=id_mapping(f"{field}.gids", asked.gids),
        )
    if asked.uids or asked.gids:
        raise InvalidArgumentError(f"{field}: mode NODE has no ID mappings")
    return None


def id_mapping(field: str, mappings: Sequence[pb.IDMapping]) -> IdMapping:
    """Return the one mapping there is, as the kubelet has it. Raises InvalidArgumentError."""
    if len(mappings) != 1:
        raise InvalidArgumentError(
            f"{field}: exactly one ID mapping is served, not {len(mappings)}"
        )
    [one] = mappings
    if one.container_id != 0:
        raise InvalidArgumentError(f"{field}: the mapping must begin at the container's ID 0")
    length = texts.number(f"{field}.length", one.length, 1, _MAX_ID)
    # The node's root must stay the node's.
    host_id = texts.number(f"{field}.host_id", one.host_id, 1, _MAX_ID - length + 1)
    return IdMapping(container_id=0, host_id=host_id, length=length)


def _seccomp(field: str, context: _Context) -> SecurityProfileRef:
    if _deprecated(context, "seccomp_profile_path") and not context.HasField("seccomp"):
        raise InvalidArgumentError(f"{field}.seccomp_profile_path: is deprecated; use seccomp")
    if not context.HasField("seccomp"):
        return SecurityProfileRef()
    return _profile(f"{field}.seccomp", context.seccomp)


def _deprecated(context: _Context, name: str) -> object:
    """Read a deprecated field, to refuse it: type checkers would rather have it left unread."""
    return getattr(context, name)


def _profile(field: str, profile: pb.SecurityProfile) -> SecurityProfileRef:
    if profile.profile_type not in _PROFILES:
        raise InvalidArgumentError(f"{field}.profile_type: {profile.profile_type} is not known")
    kind = _PROFILES[profile.profile_type]
    reference = texts.line(f"{field}.localhost_ref", profile.localhost_ref, texts.MAX_PATH)
    if (kind is ProfileType.LOCALHOST) != bool(reference):
        raise InvalidArgumentError(f"{field}.localhost_ref: belongs to profile_type Localhost")
    return SecurityProfileRef(type=kind, localhost_ref=reference)


def _apparmor(field: str, context: _Context) -> SecurityProfileRef | None:
    """Return what is asked for; None leaves it open, which is not the same as Unconfined."""
    if not context.HasField("apparmor"):
        return None
    asked = _profile(f"{field}.apparmor", context.apparmor)
    if asked.type is not ProfileType.LOCALHOST:
        return asked
    return _localhost_apparmor(f"{field}.apparmor.localhost_ref", asked.localhost_ref)


def _deprecated_apparmor(field: str, profile: str) -> SecurityProfileRef | None:
    """Return what the field before ``apparmor`` says, for clients that know only that."""
    field = f"{field}.apparmor_profile"
    if not profile:
        return None
    if profile in _DEPRECATED_APPARMOR:
        return SecurityProfileRef(type=_DEPRECATED_APPARMOR[profile])
    if not profile.startswith(_APPARMOR_PREFIX):
        raise texts.fault(
            field, profile, "must be runtime/default, unconfined or localhost/ and a name"
        )
    return _localhost_apparmor(field, texts.line(field, profile, texts.MAX_PATH))


def _localhost_apparmor(field: str, reference: str) -> SecurityProfileRef:
    name = reference.removeprefix(_APPARMOR_PREFIX)
    if not name:
        raise InvalidArgumentError(f"{field}: names no profile")
    return SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref=name)


def _selinux(field: str, options: pb.SELinuxOption) -> SelinuxOptions | None:
    """Return what is asked for; None leaves all of it open."""
    found = {name: str(getattr(options, name)) for name in ("user", "role", "type", "level")}
    for name, value in found.items():
        pattern = _SELINUX_LEVEL if name == "level" else _SELINUX_PART
        if value and not pattern.fullmatch(value):
            raise texts.fault(f"{field}.{name}", value, f"is not a {name} of SELinux")
    return SelinuxOptions(**found) if any(found.values()) else None


def _is_strict(field: str, policy: pb.SupplementalGroupsPolicy.ValueType) -> bool:
    if policy not in {pb.Merge, pb.Strict}:
        raise InvalidArgumentError(f"{field}.supplemental_groups_policy: {policy} is not known")
    return policy == pb.Strict


def _check_identity(
    field: str,
    context: pb.LinuxContainerSecurityContext,
    *,
    user: int | None,
    group: int | None,
) -> None:
    if context.run_as_username:
        name = texts.token(f"{field}.run_as_username", context.run_as_username)
        if ":" in name:  # would be read as user:group, as an image's USER is
            raise texts.fault(f"{field}.run_as_username", name, "must not hold a colon")
        if user is not None:
            raise InvalidArgumentError(f"{field}.run_as_username: run_as_user is given as well")
    elif user is None and group is not None:  # CRI: the runtime must refuse a group without a user
        raise InvalidArgumentError(f"{field}.run_as_group: needs run_as_user or run_as_username")


def _id(field: str, context: _Context, name: str) -> int | None:
    if not context.HasField(name):  # type: ignore[arg-type]  # one of two literal names, see the callers
        return None
    return texts.number(field, getattr(context, name).value, 0, _MAX_ID)


def _groups(field: str, groups: Iterable[int]) -> tuple[int, ...]:
    name = f"{field}.supplemental_groups"
    return tuple(texts.number(name, group, 0, _MAX_ID) for group in texts.bounded(name, groups))


def _capabilities(field: str, verb: str, names: Iterable[str]) -> tuple[str, ...]:
    return texts.tokens(f"{field}.capabilities.{verb}_capabilities", names)


def _paths(field: str, paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        texts.absolute_path(f"{field}[{index}]", path)
        for index, path in enumerate(texts.bounded(field, paths))
    )
