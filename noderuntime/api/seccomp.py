"""The seccomp section of a SecurityProfile: which system calls the handler's containers may make."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from noderuntime.api.kubernetes import a_set, atomic, rules
from noderuntime.api.model import ApiModel

SyscallName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=40)]


class SeccompRule(ApiModel):
    """System calls by name."""

    names: tuple[SyscallName, ...] = Field(
        min_length=1,
        max_length=384,  # with 8 rules, what the API server's budget for CEL takes
        description="Names of system calls.",
        json_schema_extra=a_set(),
    )


class Seccomp(ApiModel):
    """The system call filter of every container of the handler."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.allow) || !has(self.deny) || "
                "!self.allow.exists(a, self.deny.exists(d, sets.intersects(a.names, d.names)))",
                "the same system call is in allow and in deny",
            ),
            (
                "!(has(self.base) && self.base == 'DenyAll') || (has(self.allow) && size(self.allow) > 0)",
                "base DenyAll needs allow: with no system call allowed no container can start",
            ),
        )
    )

    base: Literal["RuntimeDefault", "DenyAll"] = Field(
        default="RuntimeDefault",
        description="RuntimeDefault: the list that container engines share. DenyAll: only "
        "what `allow` names; what every program needs to start (execve, mmap, exit_group, ...) must be named as well.",
    )
    allow: tuple[SeccompRule, ...] = Field(
        default=(),
        max_length=8,
        description="System calls allowed besides those of the base.",
        json_schema_extra=atomic(),
    )
    deny: tuple[SeccompRule, ...] = Field(
        default=(),
        max_length=8,
        description="System calls that fail with EPERM; deny wins over allow and base. Calls "
        "with siblings (mkdir, mkdirat) are denied one by one. clone3 fails with ENOSYS, so that "
        "programs use clone.",
        json_schema_extra=atomic(),
    )
