"""AppArmor: under which of the kernel's profiles a container's process runs.

CRI tells a Pod that says nothing from one that asks for Unconfined, so here, other than with
seccomp, the latter can be refused.

- The node's own handlers do as container engines do: a Pod that says nothing gets ``DEFAULT`` where
  the kernel has AppArmor, a privileged container that says nothing gets none. What is asked for by
  name is honoured, or refused; for a privileged container too.
- Under a SecurityProfile a Pod may ask for nothing else than what it gets anyway: a profile of the
  node may be weaker, and Unconfined is. A declared profile holds for privileged containers too;
  without one they get none, as under the node's own handlers. RuntimeDefault is the handler's.
- RuntimeDefault on a kernel without AppArmor is no profile: that is such a node's default. The
  kubelet refuses these Pods itself.

Source: ``Documentation/admin-guide/LSM/apparmor.rst``; KEP-24; OCI runtime-spec config.md
``process.apparmorProfile``.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Final

from noderuntime.errors import FailedPreconditionError
from noderuntime.policy.denial import Denial, printable
from noderuntime.policy.facts import ContainerFacts
from noderuntime.policy.model import ContainerConfig, LsmFacts, ProfileType, SecurityProfileRef

DEFAULT: Final = "noderuntime-default"
UNCONFINED: Final = ""  # of a grant: the OCI runtime is told nothing
_FIELD: Final = "securityContext.appArmorProfile"


def default_text() -> str:
    """Return the source of the profile ``DEFAULT``, for apparmor_parser(8)."""
    return (
        files("noderuntime.policy")
        .joinpath("data", "apparmor_default.profile")
        .read_text(encoding="utf-8")
    )


def as_the_node_does(container: ContainerConfig, lsm: LsmFacts) -> str:
    """Return the profile's name, or UNCONFINED. Raises FailedPreconditionError."""
    asked = container.security.apparmor
    if asked is None:
        wants_one = not container.security.privileged and lsm.can_load_apparmor
        return DEFAULT if lsm.apparmor and wants_one else UNCONFINED
    return _named(container.name, asked, lsm)


def under_profile(facts: ContainerFacts) -> str:
    """Return the profile's name, or UNCONFINED. Raises FailedPreconditionError.

    What ``is_the_profiles`` refuses comes here in Audit only, and is given.
    """
    container, lsm, declared = facts.container, facts.host.lsm, facts.rules.apparmor
    asked = container.security.apparmor
    if declared is None:
        return as_the_node_does(container, lsm)
    if asked is not None and (
        asked.type is not ProfileType.RUNTIME_DEFAULT or declared.name == UNCONFINED
    ):
        return _named(container.name, asked, lsm)
    if (
        declared.name == UNCONFINED or not lsm.apparmor
    ):  # without AppArmor only in Audit: features.py
        return UNCONFINED
    if not declared.text and declared.name != DEFAULT:
        _require_loaded(
            f"appArmor.name of SecurityProfile {facts.rules.profile}", declared.name, lsm
        )
    return declared.name


def is_the_profiles(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse to be unconfined, and profiles of the node, which may be weaker."""
    asked, declared = facts.container.security.apparmor, facts.rules.apparmor
    if asked is None or asked.type is ProfileType.RUNTIME_DEFAULT:
        return
    is_named = asked.type is ProfileType.LOCALHOST
    if declared is not None and declared.name == (asked.localhost_ref if is_named else UNCONFINED):
        return
    if declared is not None and declared.name == UNCONFINED:
        return  # any profile is less than none
    yield facts.deny(
        f"{_FIELD}.localhostProfile" if is_named else f"{_FIELD}.type",
        asked.localhost_ref if is_named else asked.type.value,
        "the AppArmor profile is the handler's",
        "remove appArmorProfile, or use type: RuntimeDefault",
    )


def changes(facts: ContainerFacts) -> Iterator[str]:
    """Say what the profile sets where the Pod leaves it open."""
    declared = facts.rules.apparmor
    if facts.container.security.apparmor is None and declared is not None and declared.name:
        yield f"{_FIELD} is {declared.name}, as the Pod names none"


def _named(container: str, asked: SecurityProfileRef, lsm: LsmFacts) -> str:
    field = f"containers[{container}].{_FIELD}"
    match asked.type:
        case ProfileType.UNCONFINED:
            return UNCONFINED
        case ProfileType.RUNTIME_DEFAULT:
            if not lsm.apparmor:
                return UNCONFINED
            if not lsm.can_load_apparmor:
                raise FailedPreconditionError(
                    f"{field}.type: RuntimeDefault needs apparmor_parser on this node to load "
                    "the profile; install the package apparmor"
                )
            return DEFAULT
        case ProfileType.LOCALHOST:
            _require_loaded(f"{field}.localhostProfile", asked.localhost_ref, lsm)
            return asked.localhost_ref


def _require_loaded(field: str, name: str, lsm: LsmFacts) -> None:
    shown = printable(name)
    if not lsm.apparmor:
        raise FailedPreconditionError(
            f"{field}: {shown} cannot hold, as this node's kernel has no AppArmor; run the Pod on "
            "a node that has it"
        )
    if name not in lsm.apparmor_profiles:
        raise FailedPreconditionError(
            f"{field}: {shown} is not loaded in this node's kernel; load it there with "
            "apparmor_parser"
        )
