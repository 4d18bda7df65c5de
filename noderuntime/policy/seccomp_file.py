"""A seccomp profile from a file of the node (Localhost) or an artifact: checked, then handed over as OCI has it.

What the file says must be all that holds: a field that the OCI object has not (Docker's ``archMap``,
``includes``) would be lost on the way and the filter be another one, so it is refused by its name.
Actions that need a listener are refused as well, as nobody listens.
Source: OCI runtime-spec config-linux.md "seccomp".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.denial import printable

_Action = Literal[
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
]
_Flag = Literal[
    "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
]
_Operator = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]
_UINT64: Final = 2**64 - 1
_Number = Annotated[int, Field(ge=0, le=_UINT64)]
_Errno = Annotated[int, Field(ge=0, le=4095)]
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_]{1,128}$")]


class _Argument(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    index: Annotated[int, Field(ge=0, le=5)]
    value: _Number
    valueTwo: _Number | None = None  # noqa: N815  (OCI's name)
    op: _Operator


class _Syscall(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    names: Annotated[list[_Name], Field(min_length=1)]
    action: _Action
    errnoRet: _Errno | None = None  # noqa: N815  (OCI's name)
    args: list[_Argument] | None = None


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    defaultAction: _Action  # noqa: N815  (OCI's name)
    defaultErrnoRet: _Errno | None = None  # noqa: N815  (OCI's name)
    architectures: list[_Name] | None = None
    flags: list[_Flag] | None = None
    syscalls: list[_Syscall] | None = None


def parse(reference: str, text: str | None) -> dict[str, object]:
    """Return ``linux.seccomp``. Raises InvalidArgumentError that names the first fault."""
    if text is None:
        raise InvalidArgumentError(f"seccomp profile {printable(reference)} was not read")
    try:
        profile = _Profile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise InvalidArgumentError(
            f"seccomp profile {printable(reference)}: {printable(where, 80)}: "
            f"{printable(first['msg'], 200)}"
        ) from error
    return profile.model_dump(exclude_none=True)


def audited(document: Mapping[str, object]) -> dict[str, object]:
    """Return the filter that logs what this one would refuse, and does it."""
    rules = cast("list[dict[str, object]]", document.get("syscalls") or [])
    kept = [rule for rule in rules if rule["action"] in {"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"}]
    changed = {**document, "defaultAction": "SCMP_ACT_LOG", "syscalls": kept}
    changed.pop("defaultErrnoRet", None)
    return changed
