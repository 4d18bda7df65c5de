"""SecurityProfile: what Pods of a handler may do. What it does not mention is refused."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from noderuntime.api.model import ApiModel

Ruling = Literal["Allow", "Deny"]


class IdRange(ApiModel):
    """An inclusive range of numeric user IDs."""

    min: int = Field(ge=0, le=4294967294, description="Lowest user ID of the range.")
    max: int = Field(ge=0, le=4294967294, description="Highest user ID of the range.")


class RunAs(ApiModel):
    """Which users a container's process may run as."""

    non_root: bool = Field(
        default=False, description="Refuse containers that would run as user ID 0."
    )
    users: tuple[IdRange, ...] = Field(
        default=(), description="User IDs that are allowed; empty allows every one."
    )


class Capabilities(ApiModel):
    """Linux capabilities, by name without CAP_."""

    default: tuple[str, ...] = Field(
        default=(), description="Capabilities that every container gets unless it drops them."
    )
    allow: tuple[str, ...] = Field(
        default=(), description="Capabilities that a container may add; others are refused."
    )


class SeccompRule(ApiModel):
    """System calls by name."""

    names: tuple[str, ...] = Field(min_length=1, description="Names of system calls.")


class Seccomp(ApiModel):
    """The system call filter of every container of the handler."""

    base: Literal["RuntimeDefault", "DenyAll"] = Field(
        default="RuntimeDefault",
        description="RuntimeDefault: the list that container engines share. DenyAll: only "
        "what `allow` names; what every program needs to start (execve, mmap, exit_group, ...) must be named as well.",
    )
    allow: tuple[SeccompRule, ...] = Field(
        default=(), description="System calls allowed besides those of the base."
    )
    deny: tuple[SeccompRule, ...] = Field(
        default=(),
        description="System calls that fail with EPERM; deny wins over allow and base. Calls "
        "with siblings (mkdir, mkdirat) are denied one by one. clone3 fails with ENOSYS, so that "
        "programs use clone.",
    )


class Sysctls(ApiModel):
    """Kernel parameters that a Pod may set."""

    allow: tuple[str, ...] = Field(
        default=(),
        description="Names of sysctls that a namespace of the Pod holds. Those that Kubernetes "
        "calls safe are always allowed; others are refused.",
    )


class HostPath(ApiModel):
    """A folder or file of the node that containers may mount, and everything below it."""

    path: str = Field(pattern=r"^/", description="Absolute path on the node.")
    read_only: bool = Field(default=True, description="Refuse mounts that are writable.")


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
        default=(), description="Namespaces of the node that a Pod may share."
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
        default=(), description="Paths of the node that containers may mount; others are refused."
    )
