"""SecurityProfile: what Pods of a handler may do. What it does not mention is refused."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from noderuntime.api.kubernetes import a_set, atomic, keyed, rules
from noderuntime.api.model import ApiModel
from noderuntime.api.seccomp import Seccomp

Ruling = Literal["Allow", "Deny"]

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


class IdRange(ApiModel):
    """An inclusive range of numeric user IDs."""

    model_config = ConfigDict(
        json_schema_extra=rules(("self.min <= self.max", "min must not be more than max"))
    )

    min: int = Field(ge=0, le=4294967294, description="Lowest user ID of the range.")
    max: int = Field(ge=0, le=4294967294, description="Highest user ID of the range.")


class RunAs(ApiModel):
    """Which users a container's process may run as."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!(has(self.nonRoot) && self.nonRoot && has(self.users)) || self.users.all(r, r.min > 0)",
                "nonRoot refuses user ID 0: a range of users must start at 1 or more",
            )
        )
    )

    non_root: bool = Field(
        default=False, description="Refuse containers that would run as user ID 0."
    )
    users: tuple[IdRange, ...] = Field(
        default=(),
        max_length=64,
        description="User IDs that are allowed; empty allows every one.",
        json_schema_extra=atomic(),
    )


class Capabilities(ApiModel):
    """Linux capabilities, by name without CAP_."""

    default: tuple[CapabilityName, ...] = Field(
        default=(),
        max_length=64,
        description="Capabilities that every container gets unless it drops them.",
        json_schema_extra=_CAPABILITIES,
    )
    allow: tuple[CapabilityName, ...] = Field(
        default=(),
        max_length=64,
        description="Capabilities that a container may add; others are refused.",
        json_schema_extra=_CAPABILITIES,
    )


class Sysctls(ApiModel):
    """Kernel parameters that a Pod may set."""

    allow: tuple[
        Annotated[
            str,
            Field(pattern=r"^[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][-_a-z0-9]+)+$", max_length=253),
        ],
        ...,
    ] = Field(
        default=(),
        max_length=128,
        description="Names of sysctls that a namespace of the Pod holds, such as "
        "`net.ipv4.ip_unprivileged_port_start`. Those that Kubernetes calls safe are always "
        "allowed; others are refused.",
        json_schema_extra=a_set(),
    )


class HostPath(ApiModel):
    """A folder or file of the node that containers may mount, and everything below it."""

    path: str = Field(
        pattern=r"^/",
        max_length=4096,
        description="Absolute path on the node.",
        json_schema_extra=rules(
            (
                "self == '/' || !(self + '/').contains('/../') && !(self + '/').contains('/./') "
                "&& !self.contains('//') && !self.endsWith('/')",
                "must be a clean absolute path: no . or .. in it, no // and no / at its end",
            )
        ),
    )
    read_only: bool = Field(
        default=True, description="Refuse mounts that are writable; true when left out."
    )


class SecurityProfileSpec(ApiModel):
    """Defaults and bounds; a Pod may ask for less than this, never for more."""

    mode: Literal["Enforce", "Audit"] = Field(
        default="Enforce",
        description="Enforce refuses what the profile does not allow. Audit runs it and records it: "
        "a Pod gets what it asks for, what it leaves open is set as in Enforce, and system calls "
        "that the filter would refuse are done and logged by the kernel.",
    )
    privileged: Ruling = Field(default="Deny", description="Whether privileged containers may run.")
    host_namespaces: tuple[Literal["PID", "IPC", "Network"], ...] = Field(
        default=(),
        max_length=3,
        description="Namespaces of the node that a Pod may share.",
        json_schema_extra=a_set(),
    )
    run_as: RunAs = Field(default=RunAs(), description="Which users containers may run as.")
    no_new_privileges: Literal["Required", "Optional"] = Field(
        default="Required",
        description="Required: no process gains privileges through setuid programs, whatever the Pod says.",
    )
    root_filesystem: Literal["ReadOnly", "ReadWrite"] = Field(
        default="ReadWrite", description="ReadOnly mounts every container's root read-only."
    )
    capabilities: Capabilities = Field(default=Capabilities(), description="Linux capabilities.")
    seccomp: Seccomp = Field(default=Seccomp(), description="The system call filter.")
    sysctls: Sysctls = Field(default=Sysctls(), description="Kernel parameters a Pod may set.")
    host_paths: tuple[HostPath, ...] = Field(
        default=(),
        max_length=128,
        description="Paths of the node that containers may mount; others are refused.",
        json_schema_extra=keyed("path"),
    )
