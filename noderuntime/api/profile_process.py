"""What a SecurityProfile says of a container's process: its users, capabilities, limits and /proc."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from noderuntime.api.kubernetes import Extra, a_set, atomic, failure, rules
from noderuntime.api.model import ApiModel

# capabilities(7); the kernel knows these, an unknown name would be dropped by an OCI runtime without a word.
CAPABILITIES: Final = (
    "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE "
    "DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE "
    "MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG "
    "SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE "
    "SYS_TIME SYS_TTY_CONFIG WAKE_ALARM"
).split()
_KNOWN: Final = ", ".join(f"'{name}'" for name in CAPABILITIES)
_CAPABILITIES: Final = a_set(
    (
        "self.all(c, !c.startsWith('CAP_'))",
        "a capability is written without CAP_: NET_ADMIN, not CAP_NET_ADMIN",
    ),
    (
        f"self.all(c, c.startsWith('CAP_') || c in [{_KNOWN}])",
        "must be names of capabilities(7) in upper case, such as NET_BIND_SERVICE",
    ),
)
CapabilityName = Annotated[str, Field(min_length=1, max_length=32)]
SysctlName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][-_a-z0-9]+)+$", max_length=253)
]
CLEAN_PATH: Final = (
    "self == '/' || !(self + '/').contains('/../') && !(self + '/').contains('/./') "
    "&& !self.contains('//') && !self.endsWith('/')",
    "must be a clean absolute path: no . or .. in it, no // and no / at its end",
)
_CLEAN_PATHS: Final[Extra] = a_set(
    (
        "self.all(p, !(p + '/').contains('/../') && !(p + '/').contains('/./') "
        "&& !p.contains('//') && !p.endsWith('/'))",
        "must be clean absolute paths: no . or .. in them, no // and no / at their end",
    )
)
InnerPath = Annotated[str, Field(pattern=r"^/[^/]", max_length=512)]


class IdRange(ApiModel):
    """An inclusive range of numeric IDs."""

    model_config = ConfigDict(
        json_schema_extra=rules(("self.min <= self.max", "min must not be more than max"))
    )

    min: int = Field(ge=0, le=4294967294, description="Lowest ID of the range.")
    max: int = Field(ge=0, le=4294967294, description="Highest ID of the range.")


class RunAs(ApiModel):
    """Which users and groups a container's process may have."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!(has(self.nonRoot) && self.nonRoot && has(self.users)) || self.users.all(r, r.min > 0)",
                "nonRoot refuses user ID 0: a range of users must start at 1 or more",
            )
        )
    )

    non_root: bool = Field(
        default=False,
        description="Refuse containers that would run as user ID 0.",
        json_schema_extra=failure("`securityContext.runAsUser` is refused where it is 0."),
    )
    users: tuple[IdRange, ...] = Field(
        default=(),
        max_length=64,
        description="User IDs that are allowed; empty allows every one. The image's own user counts.",
        json_schema_extra=atomic()
        | failure("`securityContext.runAsUser` is refused outside of the ranges."),
    )
    groups: tuple[IdRange, ...] = Field(
        default=(),
        max_length=64,
        description="Primary group IDs that are allowed; empty allows every one.",
        json_schema_extra=atomic()
        | failure("`securityContext.runAsGroup` is refused outside of the ranges."),
    )
    supplemental_groups: tuple[IdRange, ...] = Field(
        default=(),
        max_length=64,
        description="Further group IDs that are allowed, also those that the image's group file adds to "
        "the user; empty allows every one.",
        json_schema_extra=atomic()
        | failure("`securityContext.supplementalGroups` is refused outside of the ranges."),
    )


class Capabilities(ApiModel):
    """Linux capabilities, by name without CAP_."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.ambient) || self.ambient.all(c, (has(self.default) && c in self.default) "
                "|| (has(self.allow) && c in self.allow))",
                "an ambient capability must be in default or in allow: others are never granted",
            )
        )
    )

    default: tuple[CapabilityName, ...] = Field(
        default=(),
        max_length=64,
        description="Capabilities that every container gets unless it drops them.",
        json_schema_extra=_CAPABILITIES | failure("Nothing is refused: it is what is set."),
    )
    allow: tuple[CapabilityName, ...] = Field(
        default=(),
        max_length=64,
        description="Capabilities that a container may add; with those of `default`, the bounding set.",
        json_schema_extra=_CAPABILITIES
        | failure("`securityContext.capabilities.add` is refused for every other name."),
    )
    ambient: tuple[CapabilityName, ...] = Field(
        default=(),
        max_length=64,
        description="Of the capabilities that a container is granted, those that a process of another user "
        "than 0 keeps when it starts a program. Only these are in the inheritable set; for user 0 both "
        "stay empty.",
        json_schema_extra=_CAPABILITIES | failure("Nothing is refused: it is what is set."),
    )


class Sysctls(ApiModel):
    """Kernel parameters that a Pod may set."""

    allow: tuple[SysctlName, ...] = Field(
        default=(),
        max_length=128,
        description="Names of sysctls that a namespace of the Pod holds, such as "
        "`net.ipv4.ip_unprivileged_port_start`. Those that Kubernetes calls safe are always "
        "allowed.",
        json_schema_extra=a_set()
        | failure("`securityContext.sysctls` is refused for other names."),
    )


# getrlimit(2), without RLIMIT_ and in lower case, as ulimit(1) and containers.conf have them.
UlimitName = Literal[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
]


class Ulimit(ApiModel):
    """A resource limit of every process of a container: getrlimit(2)."""

    model_config = ConfigDict(
        json_schema_extra=rules(("self.soft <= self.hard", "soft must not be more than hard"))
    )

    name: UlimitName = Field(description="Name of the limit, without RLIMIT_.")
    soft: int = Field(ge=0, le=9007199254740991, description="What holds at the start.")
    hard: int = Field(
        ge=0, le=9007199254740991, description="What a process may raise the soft limit to."
    )


def extra_paths(what: str) -> Extra:
    """Return the schema of a list of paths inside a container, which are ``what``."""
    return _CLEAN_PATHS | failure(f"Nothing is refused: they are {what}, whatever the Pod says.")
