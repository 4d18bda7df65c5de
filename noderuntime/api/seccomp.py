"""The seccomp section of a SecurityProfile: which system calls the handler's containers may make."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from noderuntime.api.kubernetes import a_set, atomic, failure, rules
from noderuntime.api.model import ApiModel

SyscallName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=40)]
# The API server reads bounds as floating point: 2**63-1 becomes 2**63, which its integers cannot hold.
_LARGEST: Final = 2**62


class SeccompNames(ApiModel):
    """System calls by name."""

    names: tuple[SyscallName, ...] = Field(
        min_length=1,
        max_length=384,  # with 8 rules, what the API server's budget for CEL takes
        description="Names of system calls.",
        json_schema_extra=a_set(),
    )


class SeccompArgument(ApiModel):
    """A condition on one argument of a system call."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.valueTwo) == (self.op == 'MASKED_EQ')",
                "valueTwo is for op MASKED_EQ, and needed there",
            )
        )
    )

    index: int = Field(ge=0, le=5, description="Which argument; the first is 0.")
    op: Literal["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"] = Field(
        description="How the argument is compared with `value`, as unsigned numbers of 64 bits. Many "
        "calls read only the low 32 bits of an argument: there only MASKED_EQ with a mask of "
        "4294967295 or less cannot be passed by with a larger number."
    )
    value: int = Field(
        ge=0, le=_LARGEST, description="What the argument is compared with; for MASKED_EQ the mask."
    )
    value_two: int | None = Field(
        default=None,
        ge=0,
        le=_LARGEST,
        description="For MASKED_EQ: what the argument must be under the mask.",
    )


class SeccompRule(ApiModel):
    """What some system calls do, where their arguments are as said."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!has(self.errno) || self.action == 'Errno'", "errno is for action Errno"),
            (
                "!has(self.args) || self.args.all(a, self.args.exists_one(b, a.index == b.index))",
                "a rule names an argument once: write a rule for each alternative",
            ),
        )
    )

    names: tuple[SyscallName, ...] = Field(
        min_length=1,
        max_length=64,
        description="Names of system calls.",
        json_schema_extra=a_set(),
    )
    action: Literal["Allow", "Errno", "Log", "Trap", "Kill"] = Field(
        description="Errno: the call is not made and fails. Log: it is made and the kernel's log has "
        "it. Trap: the thread gets SIGSYS. Kill: the process ends with SIGSYS.",
    )
    errno: int | None = Field(
        default=None,
        ge=1,
        le=4095,
        description="The number that the call fails with, as errno(3) has them; EPERM (1) when left out.",
    )
    args: tuple[SeccompArgument, ...] = Field(
        default=(),
        max_length=6,
        description="Conditions that hold together; none is always.",
        json_schema_extra=atomic(),
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
                "!(has(self.base) && self.base == 'DenyAll') || has(self.artifact) || "
                "(has(self.allow) && size(self.allow) > 0) || (has(self.rules) && size(self.rules) > 0)",
                "base DenyAll needs allow: with no system call allowed no container can start",
            ),
            (
                "!has(self.artifact) || !(has(self.allow) || has(self.deny) || has(self.rules) || "
                "has(self.architectures))",
                "an artifact is the whole filter: leave out allow, deny, rules and architectures",
            ),
        )
    )

    base: Literal["RuntimeDefault", "DenyAll"] = Field(
        default="RuntimeDefault",
        json_schema_extra=failure(
            "A Pod with seccompProfile.type Localhost is refused, whatever the file says: the filter is "
            "the profile's. One that names no filter or RuntimeDefault gets it; privileged ones too."
        ),
        description="RuntimeDefault: the list that container engines share. DenyAll: only "
        "what `allow` names; what every program needs to start (execve, mmap, exit_group, ...) must be named as well.",
    )
    allow: tuple[SeccompNames, ...] = Field(
        default=(),
        max_length=8,
        description="System calls allowed besides those of the base.",
        json_schema_extra=atomic()
        | failure(
            "What is no system call stalls the revision. One that the node's libseccomp does not know is "
            "refused there, and SeccompComplete of the node's NodeRuntimeState names it."
        ),
    )
    deny: tuple[SeccompNames, ...] = Field(
        default=(),
        max_length=8,
        description="System calls that fail with EPERM; deny wins over rules, allow and base. Calls "
        "with siblings (mkdir, mkdirat) are denied one by one. clone3 fails with ENOSYS, so that "
        "programs use clone. So do socketcall and ipc, by which 32-bit programs make many calls, where "
        "one of these is denied or has rules and `allow` does not name the whole.",
        json_schema_extra=atomic()
        | failure(
            "The call fails with EPERM. One that the node's libseccomp does not know fails as well, and "
            "SeccompComplete names it."
        ),
    )
    rules: tuple[SeccompRule, ...] = Field(
        default=(),
        max_length=32,
        description="What some calls do by their arguments, in place of what base and allow say about "
        "them; where no rule of a call holds, it fails with EPERM. Rules of the same call must "
        "exclude each other where their actions differ. In mode Audit all but Allow log.",
        json_schema_extra=atomic() | failure("The call does what the rule's action says."),
    )
    architectures: tuple[Literal["X86_64", "X86", "X32", "AARCH64", "ARM"], ...] = Field(
        default=(),
        max_length=5,
        description="By which entries processes may call the kernel, besides the node's own: X86 is "
        "32-bit programs, X32 is 32-bit addresses in 64-bit mode. A thread that comes by another is "
        "killed. Left out: all that the node has, each under the same filter.",
        json_schema_extra=a_set() | failure("The thread that comes by it ends with SIGSYS."),
    )
    artifact: str | None = Field(
        default=None,
        pattern=r"^[^@\s]+/[^@\s]+@sha256:[0-9a-f]{64}$",
        max_length=512,
        json_schema_extra=failure(
            "Missing, damaged or not a filter: the node does not offer the handler, refuses its Pods with "
            "the reason (`withheldHandlers` has it, ArtifactMissing), and tries again."
        ),
        description="The filter as an OCI artifact, by digest: one layer with the JSON of the OCI "
        "runtime-spec, config of type `application/vnd.cncf.seccomp-profile.config.v1+json`, as "
        "KEP-6061 has it. The handler's Pods are refused until the node has fetched it. For a private registry "
        "`[images] auth_file` in the node's config.toml names a docker config.json.",
    )
