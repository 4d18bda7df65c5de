"""Profiles that inherit: what one leaves out is its base's, and what it says may only be tighter.

The operator resolves a profile before it is put into a revision, so nodes see no ``inherits``. What
is tighter is judged on the compiled rules (``tighter.loosened``), so that two ways of writing the
same are the same. Raises ConfigError with the field and what to do; nodes then keep what they serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from noderuntime.api.model import ApiModel
from noderuntime.api.profile_process import Ulimit
from noderuntime.api.revision import RevisionHandler, RevisionProfile
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.errors import ConfigError
from noderuntime.policy.denial import listed
from noderuntime.policy.load import rules_of
from noderuntime.policy.rules import HandlerRules
from noderuntime.policy.tighter import loosened

DEEPEST: Final = 8  # profiles in a chain, the first and the last counted
_OWN: Final = ("inherits", "mode", "audit_sections", "exceptions")
# What is in these lists is denied or set: those of base and profile hold together.
_ADDED: Final = frozenset({"masked_paths", "readonly_paths", "seccomp.deny"})
_WHOLE: Final = "app_armor"  # one of its fields alone may be said, so they are not joined
_Model = TypeVar("_Model", bound=ApiModel)


def resolve(name: str, profiles: Mapping[str, SecurityProfileSpec | None]) -> SecurityProfileSpec:
    """Return the profile with everything that it inherits. Raises ConfigError.

    ``profiles`` has every profile by name; None is one that cannot be read.
    """
    chain = _chain(name, profiles)
    result = chain[-1][1]
    for child_name, child in reversed(chain[:-1]):
        result = _tightened(child_name, child, result)
    return result.model_copy(update={"inherits": None})


def check(name: str, spec: SecurityProfileSpec) -> HandlerRules:
    """Compile a resolved profile on its own, as a node would. Raises ConfigError."""
    handler = RevisionHandler(
        name=name, node_runtime=name, profile=RevisionProfile(name=name, spec=spec)
    )
    try:
        return rules_of(handler, "")
    except ConfigError as error:
        text = str(error).removeprefix(f"handler {name}: ")
        raise ConfigError(f"SecurityProfile {name}: {text}") from error


def merge(base: SecurityProfileSpec, child: SecurityProfileSpec) -> SecurityProfileSpec:
    """Return what ``child`` says, and what ``base`` says where it says nothing."""
    merged = _merge(base, child, "")
    own = {field: getattr(child, field) for field in _OWN}
    return merged.model_copy(update=own)


def _chain(
    name: str, profiles: Mapping[str, SecurityProfileSpec | None]
) -> list[tuple[str, SecurityProfileSpec]]:
    """Return the profile, its base, the base's base and so on."""
    chain: list[tuple[str, SecurityProfileSpec]] = []
    wanted: str | None = name
    while wanted is not None:
        names = [each for each, _ in chain]
        spec = profiles.get(wanted)
        if wanted in names:
            circle = " -> ".join((*names[names.index(wanted) :], wanted))
            raise ConfigError(f"SecurityProfile {name}: inherits goes round in a circle: {circle}")
        if len(chain) == DEEPEST:
            raise ConfigError(
                f"SecurityProfile {name}: inherits goes through more than {DEEPEST} profiles; "
                "inherit from one further up"
            )
        if spec is None:
            heir = f"SecurityProfile {names[-1]}: inherits: " if names else ""
            what = "cannot be read" if wanted in profiles else "does not exist"
            raise ConfigError(f"{heir}SecurityProfile {wanted} {what}")
        chain.append((wanted, spec))
        wanted = spec.inherits
    return chain


def _tightened(
    name: str, child: SecurityProfileSpec, base: SecurityProfileSpec
) -> SecurityProfileSpec:
    merged = merge(base, child).model_copy(update={"inherits": None})
    plain = base.model_copy(update={"inherits": None})
    try:
        whole = type(merged).model_validate(merged.model_dump(mode="json", by_alias=True))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"SecurityProfile {name}: {where}: together with those of its base: {first['msg'].lower()}"
        ) from error
    before, after = check(str(child.inherits), plain), check(name, whole)
    fields = tuple(dict.fromkeys(loosened(before, after)))
    if fields:
        raise ConfigError(
            f"SecurityProfile {name}: inherits {child.inherits}, which is tighter in {listed(fields)}: "
            f"a profile may only be tighter than its base, and what cannot be compared counts as looser; "
            f"remove it here, or loosen it there"
        )
    return merged


def _merge(base: _Model, child: _Model, path: str) -> _Model:
    updates: dict[str, Any] = {}
    for field in child.model_fields_set:
        here = f"{path}{field}"
        said: Any = getattr(child, field)
        before: Any = getattr(base, field)
        if here == _WHOLE:
            updates[field] = said
        elif isinstance(said, ApiModel) and isinstance(before, ApiModel):
            updates[field] = _merge(before, said, f"{here}.")
        elif here in _ADDED:
            updates[field] = tuple(dict.fromkeys((*before, *said)))
        elif here == "ulimits":
            updates[field] = _by_name(before + said)
        else:
            updates[field] = said
    return base.model_copy(update=updates)


def _by_name(limits: tuple[Ulimit, ...]) -> tuple[Ulimit, ...]:
    """Return one limit for each name: the last that was said."""
    return tuple({each.name: each for each in limits}.values())
