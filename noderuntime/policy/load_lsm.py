"""The sections ``appArmor`` and ``seLinux`` of a profile, compiled. Each raises ValueError."""

from __future__ import annotations

from noderuntime.api import apparmor_text
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.policy.apparmor import DEFAULT, UNCONFINED
from noderuntime.policy.rules import AppArmorRules, SelinuxRules

PER_POD = "PerPod"


def apparmor_rules(profile: str, spec: SecurityProfileSpec) -> AppArmorRules | None:
    """Return what is declared of AppArmor."""
    section = spec.app_armor
    if section is None:
        return None
    given = [each for each in (section.profile, section.name, section.mode) if each is not None]
    if len(given) != 1:
        raise ValueError("appArmor: exactly one of profile, name and mode must be given")
    if section.profile is not None:
        try:
            text = apparmor_text.read(section.profile)
        except ValueError as error:
            raise ValueError(f"appArmor.profile: {error}") from error
        return _in_its_modes(text, profile, spec)
    if section.name is not None:
        return AppArmorRules(name=section.name)
    return AppArmorRules(name=DEFAULT if section.mode == "RuntimeDefault" else UNCONFINED)


def _in_its_modes(
    text: apparmor_text.ProfileText, profile: str, spec: SecurityProfileSpec
) -> AppArmorRules:
    """Compile a text; in Audit, and for the Pods of an exception, the kernel logs what it would deny."""
    name, source = apparmor_text.compile_text(text, profile, complain=False)
    digest = name.rpartition("-")[2]
    audited_name, audited_source = apparmor_text.compile_text(text, profile, complain=True)
    audited = AppArmorRules(name=audited_name, text=audited_source, digest=digest)
    if spec.mode == "Audit" or "appArmor" in spec.audit_sections:
        return audited
    is_excepted = any("appArmor" in each.sections for each in spec.exceptions)
    return AppArmorRules(
        name=name, text=source, digest=digest, audited=audited if is_excepted else None
    )


def selinux_rules(spec: SecurityProfileSpec) -> SelinuxRules | None:
    """Return what is declared of SELinux."""
    section = spec.se_linux
    if section is None:
        return None
    return SelinuxRules(
        type=section.type,
        user=section.user or "",
        role=section.role or "",
        level="" if section.level == PER_POD else section.level,
        relabel=section.relabel == "Allow",
    )
