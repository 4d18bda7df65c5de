"""The ValidatingAdmissionPolicies of a handler, with their bindings, from its compiled rules.

Two of each: one denies what the profile enforces, the other warns of what it only audits. Pure, and the
same for the same rules, in whatever order their lists were written.

- An exception leaves its sections, for its Pods, to the node, as long as it holds. CEL has no clock: who
  calls leaves out the exceptions that have ended, and the operator looks again every few minutes.
- ``failurePolicy: Ignore``: an expression that fails (a Pod so large that it costs too much) must not stop
  what the node allows; the node judges anyway.
- Where NodeRuntimes share a handler, only what all of them say is said here.

Source: Kubernetes, "Validating Admission Policy"; KEP-3488.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from noderuntime.api.securityprofile import SERVICE_ACCOUNT, Section
from noderuntime.policy.denial import printable
from noderuntime.policy.rules import ExceptionRule, HandlerRules
from noderuntime_operator.admission import node, paths, process
from noderuntime_operator.admission.cel import cut, joined, plain, text, texts
from noderuntime_operator.admission.rule import ACCOUNT, VARIABLES, Rule

API_VERSION: Final = "admissionregistration.k8s.io/v1"
ENFORCED, AUDITED = "noderuntime.io", "audit.noderuntime.io"
_USED: Final = re.compile(r"\bvariables\.(\w+)")
Json = dict[str, Any]  # an object of the API


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A rule with what it needs, as the API server gets it."""

    rule: Rule
    profile: str
    unless: str  # CEL: for whom it is left to the node; "" for nobody
    enforced: bool

    @property
    def test(self) -> str:
        """The validation."""
        fine = f"variables.{self.rule.name}.all(l, l.size() == 0)"
        return f"{self.unless} || {fine}" if self.unless else fine


def bodies(
    handler: str, classes: Iterable[str], runtimes: Sequence[HandlerRules], now_s: float
) -> Iterator[tuple[Json, Json]]:
    """Yield each policy with its binding, without metadata but their names.

    ``classes`` are the RuntimeClasses with the handler, ``runtimes`` the rules of every NodeRuntime with it,
    the one whose words count first; ``now_s`` of the epoch tells which exceptions hold.
    """
    first, *others = [_judged(own, now_s) for own in runtimes]
    for other in others:
        there = {(each.rule.offences, each.unless, each.enforced) for each in other}
        first = [e for e in first if (e.rule.offences, e.unless, e.enforced) in there]
    for suffix, enforced, actions in (
        (ENFORCED, True, ["Deny"]),
        (AUDITED, False, ["Warn", "Audit"]),
    ):
        found = [each for each in first if each.enforced is enforced]
        if not found:
            continue
        name = f"{handler}.{suffix}"
        yield (
            _body("ValidatingAdmissionPolicy", name, _spec(found, classes)),
            _body(
                "ValidatingAdmissionPolicyBinding",
                name,
                {"policyName": name, "validationActions": actions},
            ),
        )


def rules_of(own: HandlerRules) -> Iterator[Rule]:
    """Yield every rule that the Pod object can show, in the order of the node's checks."""
    yield _account()
    yield from process.rules(own)
    yield from node.rules(own)
    yield from paths.rules(own)


def _judged(own: HandlerRules, now_s: float) -> list[_Judged]:
    holding = [each for each in own.exceptions if now_s < each.expires_s]
    return [
        _Judged(
            rule=rule,
            profile=own.profile,
            unless=_unless(rule.section, holding),
            enforced=rule.section is None or not own.audits(rule.section),
        )
        for rule in rules_of(own)
    ]


def _unless(section: Section | None, holding: Iterable[ExceptionRule]) -> str:
    """Return for whom the section is left to the node: the node's test of an exception."""
    tests = {
        f"request.namespace == {text(each.namespace)}"
        + (f" && {ACCOUNT} == {text(each.service_account)}" if each.service_account else "")
        for each in holding
        if section in each.sections
    }
    return " || ".join(sorted(tests))


def _account() -> Rule:
    """Tie the annotation that the node believes to the service account that the API server knows.

    Exceptions that name a service account rely on it. A Pod that is there already is not asked again.
    """
    account = 'object.spec.?serviceAccountName.orValue("default")'
    key = f"metadata.annotations[{SERVICE_ACCOUNT}]"
    before = (
        f'(oldObject == null ? "" : oldObject.metadata.?annotations[?{text(SERVICE_ACCOUNT)}]'
        '.orValue(""))'
    )
    return Rule(
        name="serviceAccount",
        section=None,
        field=key,
        offences=(
            f'{ACCOUNT} != "" && {ACCOUNT} != {account} && {ACCOUNT} != {before} '
            f"? [[[{text(key)}, {cut(ACCOUNT)}, string({account})]]] : []"
        ),
        says=("it must name the Pod's service account, which is ", 2),
        remedy=("remove it, or write ", 2),
    )


def _body(kind: str, name: str, spec: Json) -> Json:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _spec(found: Sequence[_Judged], classes: Iterable[str]) -> Json:
    known = VARIABLES | {each.rule.name: each.rule.offences for each in found}
    return {
        "failurePolicy": "Ignore",
        "matchConstraints": {
            "resourceRules": [
                {
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": ["pods", "pods/ephemeralcontainers", "pods/resize"],
                }
            ]
        },
        "matchConditions": [
            {
                "name": "handler",
                "expression": 'object.spec.?runtimeClassName.orValue("") in '
                + texts(sorted(set(classes))),
            }
        ],
        "variables": [
            {"name": name, "expression": known[name]}
            for name in _needed((each.rule.name for each in found), known)
        ],
        "validations": [_validation(each) for each in found],
    }


def _needed(names: Iterable[str], known: dict[str, str]) -> list[str]:
    """Return the names and what they need, each after what it needs: the API server reads them in order."""
    ordered: dict[str, None] = {}

    def add(name: str) -> None:
        for each in _USED.findall(known[name]):
            if each != name:
                add(each)
        ordered.setdefault(name)

    for name in names:
        add(name)
    return list(ordered)


def _validation(judged: _Judged) -> Json:
    rule = judged.rule
    offence = f"variables.{rule.name}.filter(l, l.size() > 0)[0][0]"
    refused = "is refused" if judged.enforced else "would be refused"
    by = f" {refused} by SecurityProfile {printable(judged.profile)}: "
    parts = [joined((0, ": ", 1, by), offence), joined(rule.says, offence), text("; ")]
    return {
        "expression": judged.test,
        "message": f"{rule.field}{by}{plain(rule.says)}; {plain(rule.remedy)}",
        "messageExpression": " + ".join([*parts, joined(rule.remedy, offence)]),
        "reason": "Forbidden",
    }
