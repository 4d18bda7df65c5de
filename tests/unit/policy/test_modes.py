"""A mode for each section, and exceptions that make one for a namespace until a day."""

from __future__ import annotations

import pytest

from noderuntime.api.securityprofile import SERVICE_ACCOUNT
from noderuntime.policy import decide
from noderuntime.policy.denial import Denial
from noderuntime.policy.exceptions import rules_at
from noderuntime.policy.model import ContainerConfig, Mount, PodIdentity, Resources, SandboxConfig
from noderuntime.policy.rules import HandlerRules
from tests.unit.policy.factories import (
    UID,
    container,
    denied,
    granted,
    image,
    rules,
    sandbox,
    security,
)

Document = dict[str, object]
ASKED = container(
    security(capabilities_add=("SYS_ADMIN",)),
    mounts=(Mount(container_path="/d", host_path="/etc", readonly=True),),
)
END = 1_798_675_200  # 2026-12-31T00:00:00Z


def test_a_section_in_audit_refuses_nothing_and_the_others_refuse() -> None:
    assert denied(rules(), ASKED).section == "capabilities"
    assert denied(rules({"auditSections": ["capabilities"]}), ASKED).section == "hostPaths"
    both = rules({"auditSections": ["capabilities", "hostPaths"]})
    grant = granted(both, ASKED)
    assert [finding.section for finding in grant.findings] == ["capabilities", "hostPaths"]
    assert grant.capabilities == ("CAP_SYS_ADMIN",)


@pytest.mark.parametrize(("sections", "audit"), [([], False), (["seccomp"], True)])
def test_the_filter_logs_where_its_section_is_audited(sections: list[str], audit: bool) -> None:
    filter_ = granted(rules({"auditSections": sections})).seccomp
    assert filter_ is not None
    assert filter_.audit is audit


def test_images_and_updates_go_by_the_mode_of_their_section() -> None:
    profile: Document = {"images": {"requireDigest": True}, "resources": {"memory": {"max": "1Mi"}}}
    more = Resources(memory_limit_bytes=2 << 20)
    strict = rules(profile)
    pulled, update = decide.admit_image(strict, "nginx"), decide.admit_resources(strict, more)
    assert isinstance(pulled, Denial)
    assert isinstance(update, Denial)
    assert (pulled.section, update.section) == ("images", "resources")
    lenient = rules({**profile, "auditSections": ["images", "resources"]})
    assert decide.admit_image(lenient, "nginx") is None
    assert decide.admit_resources(lenient, more) == more


def exempted(account: str = "") -> HandlerRules:
    exception: Document = {
        "namespace": "shop",
        "sections": ["hostPaths", "seccomp"],
        "expires": "2026-12-31T00:00:00Z",
    }
    if account:
        exception["serviceAccount"] = account
    return rules({"auditSections": ["capabilities"], "exceptions": [exception]})


def pod(namespace: str = "shop", account: str = "") -> SandboxConfig:
    return sandbox(
        pod=PodIdentity(name="a", namespace=namespace, uid=UID),
        annotations={SERVICE_ACCOUNT: account} if account else {},
    )


@pytest.mark.parametrize(
    ("account", "asking", "now_s", "holds"),
    [
        pytest.param("", pod(), END - 1, True, id="the namespace"),
        pytest.param("", pod("shop-2"), END - 1, False, id="another namespace"),
        pytest.param("", pod(), END, False, id="it has ended"),
        pytest.param("legacy", pod(account="legacy"), 0, True, id="the account"),
        pytest.param("legacy", pod(account="other"), 0, False, id="another account"),
        pytest.param("legacy", pod(), 0, False, id="an account that is not shown"),
        pytest.param("legacy", pod("x", "legacy"), 0, False, id="the account of another namespace"),
    ],
)
def test_an_exception_holds_for_its_pods_until_its_end(
    account: str, asking: SandboxConfig, now_s: float, holds: bool
) -> None:
    own = rules_at(exempted(account), asking, now_s)
    answer = decide.admit_container(own, asking, ASKED, image())
    assert isinstance(answer, Denial) is not holds
    assert own.seccomp.audit is holds
    if not isinstance(answer, Denial):
        assert [each.section for each in answer.findings] == ["capabilities", "hostPaths"]


def test_an_exception_is_for_its_sections_alone() -> None:
    own = rules_at(exempted(), pod(), 0)
    asked: ContainerConfig = container(security(privileged=True))
    answer = decide.admit_container(own, sandbox(privileged=True), asked, image())
    assert isinstance(answer, Denial)
    assert answer.section == "privileged"


def test_rules_without_exceptions_are_the_same_at_all_times() -> None:
    own = rules()
    assert rules_at(own, pod(), 0) is own
