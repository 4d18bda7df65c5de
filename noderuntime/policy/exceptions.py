"""Exceptions: the rules as they hold for one Pod at one moment.

An exception makes sections of the profile audited for the Pods of a namespace until a day. The
kubelet tells the namespace, so it is a bound. CRI does not tell the service account: where an
exception names one, the Pod must show it in an annotation; without it the exception does not hold.
Who may create Pods in a namespace may name any service account of it, so the annotation is worth as
much as the name itself (kubernetes.io "RBAC Good Practices", "Workload creation").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from noderuntime.api.securityprofile import SERVICE_ACCOUNT
from noderuntime.policy.model import SandboxConfig
from noderuntime.policy.rules import ExceptionRule, HandlerRules


def rules_at(rules: HandlerRules, sandbox: SandboxConfig, now_s: float) -> HandlerRules:
    """Return the rules that hold for the Pod at ``now_s`` of the epoch."""
    sections = frozenset(
        section for each in holding(rules, sandbox, now_s) for section in each.sections
    )
    if sections <= rules.audit_sections or rules.audit:
        return rules
    audited = rules.audit_sections | sections
    seccomp = replace(rules.seccomp, audit="seccomp" in audited)
    apparmor = rules.apparmor
    if apparmor is not None and apparmor.audited is not None and "appArmor" in audited:
        apparmor = apparmor.audited
    return replace(rules, audit_sections=audited, seccomp=seccomp, apparmor=apparmor)


def holding(rules: HandlerRules, sandbox: SandboxConfig, now_s: float) -> Iterator[ExceptionRule]:
    """Yield the exceptions that hold for the Pod."""
    for each in rules.exceptions:
        if each.namespace != sandbox.pod.namespace or now_s >= each.expires_s:
            continue
        if each.service_account in ("", sandbox.annotations.get(SERVICE_ACCOUNT, "")):
            yield each
