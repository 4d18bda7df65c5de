"""The sections of a SecurityProfile that the kernel's security modules enforce: AppArmor, SELinux."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field

from noderuntime.api import apparmor_text
from noderuntime.api.kubernetes import failure, rules
from noderuntime.api.model import ApiModel

_ONE: Final = "[has(self.profile), has(self.name), has(self.mode)].filter(x, x).size() == 1"
_WITHOUT: Final = " A node whose kernel lacks it does not offer the handler and says so in its state; Pods are refused."


def _readable(text: str) -> str:
    apparmor_text.read(text)
    return text


class AppArmor(ApiModel):
    """The AppArmor profile of every container of the handler, privileged ones too; one of three."""

    model_config = ConfigDict(
        json_schema_extra=rules((_ONE, "exactly one of profile, name and mode must be given"))
    )

    profile: Annotated[str, AfterValidator(_readable)] | None = Field(
        default=None,
        min_length=1,
        max_length=apparmor_text.LONGEST,
        description="Text of one profile, as for apparmor_parser: `profile NAME flags=(...) {`, rules, `}`. "
        "In the kernel it is called noderuntime-PROFILE-DIGEST, so a changed text is another profile and "
        "containers keep the one they were started under; peer=NAME follows. That the node may signal "
        "the container is added. No attachment, no other profile, hat or child; includes only of "
        "<abstractions/...> and <tunables/...>; flags attach_disconnected, mediate_deleted, audit. In Audit, "
        "and for the Pods of an exception, the kernel logs what the text would deny, and allows it.",
        json_schema_extra=failure(
            "A text that breaks these rules stalls the profile, and nodes keep what they serve. A node "
            "whose apparmor_parser refuses it does not offer the handler and says why."
        ),
    )
    name: str | None = Field(
        default=None,
        pattern=r"^[^\s\"](.*[^\s\"])?$",
        max_length=253,
        description="Name of a profile that whoever keeps the nodes loads there.",
        json_schema_extra=failure("A node where it is not loaded does not offer the handler."),
    )
    mode: Literal["RuntimeDefault", "Unconfined"] | None = Field(
        default=None,
        description="RuntimeDefault: the profile that the runtime brings, as with no appArmor at all, but a node "
        "must have AppArmor. Unconfined: none, unless the Pod asks for one.",
        json_schema_extra=failure(
            "`appArmorProfile` of another type or name is refused, but for RuntimeDefault, which is the "
            "handler's." + _WITHOUT
        ),
    )


class SELinux(ApiModel):
    """The SELinux label of every container of the handler. What is left out is the node's default."""

    user: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]+$",
        max_length=64,
        description="SELinux user of the processes.",
        json_schema_extra=failure("`seLinuxOptions.user` with another value is refused."),
    )
    role: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]+$",
        max_length=64,
        description="SELinux role of the processes.",
        json_schema_extra=failure("`seLinuxOptions.role` with another value is refused."),
    )
    type: str = Field(
        default="container_t",
        pattern=r"^[A-Za-z0-9_.-]+$",
        max_length=64,
        description="SELinux type of the processes, privileged ones too.",
        json_schema_extra=failure(
            "`seLinuxOptions.type` with another value is refused." + _WITHOUT
        ),
    )
    level: str = Field(
        default="PerPod",
        pattern=r"^(PerPod|s[0-9]{1,2}(-s[0-9]{1,2})?(:c[0-9]{1,4}([.,]c[0-9]{1,4}){0,15})?)$",
        max_length=128,
        description="PerPod: a pair of categories of its own for each Pod, so that Pods cannot reach each other's "
        "files. Or a level that all Pods of the handler share, such as `s0:c1,c2`.",
        json_schema_extra=failure("`seLinuxOptions.level` is refused, but for the fixed one."),
    )
    relabel: Literal["Allow", "Deny"] = Field(
        default="Deny",
        description="Whether a host path may be relabelled where the mount asks for it. Volumes of the kubelet "
        "are relabelled where it asks, whatever this says.",
        json_schema_extra=failure("Such a mount is refused."),
    )
