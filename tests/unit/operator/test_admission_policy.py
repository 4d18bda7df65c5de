from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given

from noderuntime.policy.rules import HandlerRules
from noderuntime_operator.admission.cel import cut, joined, text
from noderuntime_operator.admission.policy import bodies, rules_of
from tests.unit.policy.factories import rules
from tests.unit.policy.strategies import bounds, profiles

Json = dict[str, Any]
GOLDEN = Path(__file__).parents[2] / "golden" / "operator"
WHOLE: Json = {
    "userNamespace": "Required",
    "auditSections": ["images", "seLinux"],
    "exceptions": [
        {"namespace": "shop", "sections": ["hostPaths"], "expires": "2027-01-01T00:00:00Z"},
        {
            "namespace": "web",
            "serviceAccount": "legacy",
            "sections": ["hostPaths", "capabilities"],
            "expires": "2027-01-01T00:00:00Z",
        },
        {"namespace": "old", "sections": ["runAs"], "expires": "2025-01-01T00:00:00Z"},
    ],
    "runAs": {
        "nonRoot": True,
        "users": [{"min": 1000, "max": 2000}],
        "groups": [{"min": 1000, "max": 2000}],
        "supplementalGroups": [{"min": 1, "max": 9}, {"min": 1000, "max": 2000}],
    },
    "capabilities": {"default": ["CHOWN"], "allow": ["KILL"]},
    "appArmor": {"name": "ours"},
    "sysctls": {"allow": ["net.core.somaxconn"]},
    "hostPaths": [
        {"path": "/srv", "readOnly": False, "propagation": []},
        {"path": "/etc/ssl", "propagation": ["HostToContainer"]},
    ],
    "resources": {
        "cpu": {"max": "2"},
        "memory": {"max": "1Gi"},
        "hugepages": {"2Mi": "4Mi"},
    },
    "images": {"allowedRegistries": ["registry.example.com/team"], "requireDigest": True},
}
NOW_S = 1_780_000_000.0  # 2026


def made(own: HandlerRules, *others: HandlerRules) -> dict[str, Json]:
    """Return policies and bindings by kind and name."""
    pairs = bodies("restricted", ["restricted"], [own, *others], NOW_S)
    return {f"{each['kind']}/{each['metadata']['name']}": each for pair in pairs for each in pair}


def names_of(policy: Json) -> set[str]:
    """Return the rules of a policy."""
    tests = (each["expression"] for each in policy["spec"]["validations"])
    return {name for test in tests for name in re.findall(r"variables\.(\w+)\.all", test)}


def enforced(*own: HandlerRules) -> Json:
    return made(*own)["ValidatingAdmissionPolicy/restricted.noderuntime.io"]


def test_the_policies_of_a_whole_profile_are_the_golden_ones(update_golden: bool) -> None:
    own = rules(WHOLE, allowedRegistries=["registry.example.com"])
    found = yaml.safe_dump_all(made(own).values(), width=110, allow_unicode=True)
    path = GOLDEN / "admission.yaml"
    if update_golden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found)
    assert found == path.read_text(), "review the difference, then run with --update-golden"


def reversed_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_lists(value[key]) for key in reversed(value)}
    return [reversed_lists(each) for each in reversed(value)] if isinstance(value, list) else value


@given(profiles, bounds)
def test_the_order_of_lists_changes_nothing(profile: Json, bound: Json) -> None:
    other = rules(reversed_lists(profile), **reversed_lists(bound))
    assert made(rules(profile, **bound)) == made(other)


@given(profiles, bounds)
def test_every_variable_comes_after_those_that_it_needs(profile: Json, bound: Json) -> None:
    for body in made(rules(profile, **bound)).values():
        known: set[str] = set()
        for each in body["spec"].get("variables", ()):
            assert set(re.findall(r"variables\.(\w+)", each["expression"])) <= known
            known.add(each["name"])
        for each in body["spec"].get("validations", ()):
            assert set(re.findall(r"variables\.(\w+)", each["messageExpression"])) <= known


def test_what_a_profile_only_audits_is_warned_of_by_a_policy_of_its_own() -> None:
    found = made(rules(WHOLE))
    actions = {
        key: each["spec"]["validationActions"]
        for key, each in found.items()
        if "Binding" in key.partition("/")[0]
    }
    assert actions == {
        "ValidatingAdmissionPolicyBinding/restricted.noderuntime.io": ["Deny"],
        "ValidatingAdmissionPolicyBinding/restricted.audit.noderuntime.io": ["Warn", "Audit"],
    }
    audited = names_of(found["ValidatingAdmissionPolicy/restricted.audit.noderuntime.io"])
    assert audited == {
        *("digests", "registries"),
        *("seLinuxUser", "seLinuxRole", "seLinuxType", "seLinuxLevel"),
    }
    assert not audited & names_of(found["ValidatingAdmissionPolicy/restricted.noderuntime.io"])


def test_a_profile_in_audit_denies_the_wrong_service_account_alone() -> None:
    assert names_of(enforced(rules({"mode": "Audit"}))) == {"serviceAccount"}


def test_what_is_only_set_is_no_rule() -> None:
    strict = rules({"noNewPrivileges": "Required", "rootFilesystem": "ReadOnly"})
    assert enforced(strict) == enforced(rules({"noNewPrivileges": "Optional"}))


def test_an_exception_that_holds_leaves_its_section_to_the_node() -> None:
    tests = {
        name: each["expression"]
        for each in enforced(rules(WHOLE))["spec"]["validations"]
        for name in re.findall(r"variables\.(\w+)\.all", each["expression"])
    }
    assert tests["hostPathsAllowed"].startswith('request.namespace == "shop" || ')
    assert tests["capabilities"] == (
        'request.namespace == "web" && object.metadata.?annotations[?"noderuntime.io/service-account"]'
        '.orValue("") == "legacy" || variables.capabilities.all(l, l.size() == 0)'
    )
    assert tests["nonRoot"] == "variables.nonRoot.all(l, l.size() == 0)"  # its exception has ended


def test_noderuntimes_of_one_handler_deny_what_all_of_them_refuse() -> None:
    both = enforced(rules({}), rules({"privileged": "Allow", "hostNamespaces": ["PID"]}))
    assert {"hostIPC", "hostNetwork", "seccomp"} <= names_of(both)
    assert not {"privileged", "hostPID"} & names_of(both)
    assert names_of(enforced(rules({}), rules({}))) == names_of(enforced(rules({})))


def test_a_rule_that_one_of_them_only_audits_is_left_out() -> None:
    both = made(rules({}), rules({"auditSections": ["privileged"]}))
    assert all("privileged" not in names_of(each) for each in both.values() if "variables" in each)


def test_a_failing_expression_lets_the_pod_through_to_the_node() -> None:
    assert enforced(rules({}))["spec"]["failurePolicy"] == "Ignore"


def test_text_of_users_is_never_code() -> None:
    hostile = '/srv/"] + x[0]\\'
    own = rules({"hostPaths": [{"path": hostile}]})
    offences = {rule.name: rule.offences for rule in rules_of(own)}["hostPathsAllowed"]
    assert r'["/srv/\"] + x[0]\\"]' in offences


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        pytest.param(text("a\n'\"\u0001"), '"a\\n\'\\"\\u0001"', id="a literal"),
        pytest.param(joined(("a ", 1, "."), "o"), '"a " + o[1] + "."', id="a sentence"),
        pytest.param(
            joined(("x" * 200,), "o"), '"' + "x" * 150 + '…"', id="a long one, cut as on the node"
        ),
        pytest.param(
            cut("v"),
            '(string(v).size() > 150 ? string(v).substring(0, 150) + "…" : string(v))',
            id="a value",
        ),
    ],
)
def test_cel_is_written(found: str, wanted: str) -> None:
    assert found == wanted
