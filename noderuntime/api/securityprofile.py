"""SecurityProfile: what Pods of a handler may do. What it does not mention is refused."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from noderuntime.api.kubernetes import a_set, atomic, failure, keyed
from noderuntime.api.lsm import AppArmor, SELinux
from noderuntime.api.model import ApiModel
from noderuntime.api.profile_node import Devices, HostPath, ProfileImages, ProfileResources
from noderuntime.api.profile_process import (
    Capabilities,
    InnerPath,
    RunAs,
    Sysctls,
    Ulimit,
    extra_paths,
)
from noderuntime.api.seccomp import Seccomp

Ruling = Literal["Allow", "Deny"]
# The sections that refuse; the others set something, and have no use for an Audit of their own.
Section = Literal[
    "privileged",
    "hostNamespaces",
    "userNamespace",
    "runAs",
    "procMount",
    "capabilities",
    "seccomp",
    "appArmor",
    "seLinux",
    "sysctls",
    "devices",
    "resources",
    "hostPaths",
    "images",
]
SERVICE_ACCOUNT: Final = "noderuntime.io/service-account"
"""The annotation by which a Pod shows the node its service account, which CRI does not tell."""


class ProfileException(ApiModel):
    """Pods for which some sections are only audited, until a day."""

    namespace: str = Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        description="Namespace of the Pods; the kubelet tells it, no Pod can claim another.",
    )
    service_account: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="Only Pods of this service account. CRI does not tell it to the node, so the Pod shows "
        f"it in the annotation `{SERVICE_ACCOUNT}`, without which the exception does not hold. Who "
        "may create Pods in the namespace may choose the account as well as the annotation: against them "
        "the exception is as wide as its namespace.",
    )
    sections: tuple[Section, ...] = Field(
        min_length=1,
        max_length=14,
        description="Sections that are only audited for these Pods.",
        json_schema_extra=a_set(),
    )
    expires: str = Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        max_length=20,
        description="When it ends, in UTC, such as `2026-12-31T00:00:00Z`. Containers that run then run "
        "on; new ones are judged without it.",
        json_schema_extra={"format": "date-time"},
    )


class SecurityProfileSpec(ApiModel):
    """Defaults and bounds; a Pod may ask for less than this, never for more."""

    inherits: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        description="Another SecurityProfile: what this one leaves out is as there, and what it says may only "
        "be tighter; what cannot be compared (AppArmor texts, SELinux types, artifacts) must be the same. Lists "
        "of what is denied or masked are added to those there. `mode`, `auditSections` and `exceptions` are not "
        "inherited, and may not be wider than there.",
        json_schema_extra=failure(
            "Where it is missing, goes round in a circle or is loosened, the profile is Stalled with the name "
            "of the field, and nodes keep what they serve."
        ),
    )
    mode: Literal["Enforce", "Audit"] = Field(
        default="Enforce",
        description="Enforce refuses what the profile does not allow. Audit runs it and records it: "
        "a Pod gets what it asks for, what it leaves open is set as in Enforce, and system calls "
        "that the filter would refuse are done and logged by the kernel.",
        json_schema_extra=failure(
            "In Audit each refusal is a line in the log and a count instead."
        ),
    )
    audit_sections: tuple[Section, ...] = Field(
        default=(),
        max_length=14,
        description="Sections in mode Audit while `mode` is Enforce; those that set something instead of "
        "refusing it have no mode.",
        json_schema_extra=a_set() | failure("As with `mode: Audit`, for these sections alone."),
    )
    exceptions: tuple[ProfileException, ...] = Field(
        default=(),
        max_length=32,
        description="Pods for which some sections are only audited, until a day.",
        json_schema_extra=atomic()
        | failure("A Pod that no exception is for, or whose exception has ended, is refused."),
    )
    privileged: Ruling = Field(
        default="Deny",
        description="Whether privileged containers may run.",
        json_schema_extra=failure("`securityContext.privileged` is refused."),
    )
    host_namespaces: tuple[Literal["PID", "IPC", "Network"], ...] = Field(
        default=(),
        max_length=3,
        description="Namespaces of the node that a Pod may share.",
        json_schema_extra=a_set()
        | failure(
            "`hostPID`, `hostIPC` or `hostNetwork` is refused, of the Pod and of its containers."
        ),
    )
    user_namespace: Literal["Required", "Optional", "Deny"] = Field(
        default="Optional",
        description="Whether a Pod must have a user namespace of its own (`hostUsers: false`), may or may not.",
        json_schema_extra=failure("`hostUsers` of the Pod is refused."),
    )
    run_as: RunAs = Field(
        default=RunAs(), description="Which users and groups containers may run as."
    )
    no_new_privileges: Literal["Required", "Optional"] = Field(
        default="Required",
        description="Required: no process gains privileges through setuid programs, whatever the Pod says.",
        json_schema_extra=failure("Nothing is refused: it is what is set."),
    )
    root_filesystem: Literal["ReadOnly", "ReadWrite"] = Field(
        default="ReadWrite",
        description="ReadOnly mounts every container's root read-only.",
        json_schema_extra=failure("Nothing is refused: it is what is set."),
    )
    proc_mount: Literal["Default", "UnmaskedAllowed"] = Field(
        default="Default",
        description="UnmaskedAllowed: a container may ask for a /proc without masked and read-only paths, but "
        "for those of this profile. `privileged: Allow` allows it too.",
        json_schema_extra=failure("`securityContext.procMount: Unmasked` is refused."),
    )
    masked_paths: tuple[InnerPath, ...] = Field(
        default=(),
        max_length=64,
        description="Paths inside every container, privileged ones too, that are hidden besides the usual ones.",
        json_schema_extra=extra_paths("hidden"),
    )
    readonly_paths: tuple[InnerPath, ...] = Field(
        default=(),
        max_length=64,
        description="Paths inside every container, privileged ones too, that are read-only besides the usual "
        "ones.",
        json_schema_extra=extra_paths("read-only"),
    )
    capabilities: Capabilities = Field(default=Capabilities(), description="Linux capabilities.")
    seccomp: Seccomp = Field(default=Seccomp(), description="The system call filter.")
    app_armor: AppArmor | None = Field(
        default=None,
        description="The AppArmor profile. Left out: the runtime's own where the kernel has AppArmor, and none for "
        "privileged containers.",
        json_schema_extra=failure(
            "`appArmorProfile` of type Unconfined or Localhost is refused in any case."
        ),
    )
    se_linux: SELinux | None = Field(
        default=None,
        description="The SELinux label. Left out: where the kernel has SELinux, the node's default with "
        "categories of the Pod's own, and for privileged containers what the policy makes of them.",
        json_schema_extra=failure("`seLinuxOptions` of the Pod are refused in any case."),
    )
    sysctls: Sysctls = Field(default=Sysctls(), description="Kernel parameters a Pod may set.")
    devices: Devices = Field(
        default=Devices(), description="Devices of the node that containers may have."
    )
    ulimits: tuple[Ulimit, ...] = Field(
        default=(),
        max_length=16,
        description="Resource limits of every process; others are as the node's runtime has them.",
        json_schema_extra=keyed("name")
        | failure("Nothing is refused: the system call that goes beyond one fails."),
    )
    resources: ProfileResources = Field(
        default=ProfileResources(), description="Defaults and maxima of each container."
    )
    host_paths: tuple[HostPath, ...] = Field(
        default=(),
        max_length=128,
        description="Paths of the node that containers may mount; others are refused.",
        json_schema_extra=keyed("path"),
    )
    images: ProfileImages = Field(
        default=ProfileImages(), description="Where images may come from and how they are named."
    )
