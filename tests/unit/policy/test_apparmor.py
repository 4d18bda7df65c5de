"""Which AppArmor profile a container gets, on a node with and without AppArmor."""

from __future__ import annotations

import pytest

from noderuntime.errors import FailedPreconditionError
from noderuntime.policy import apparmor, spec
from noderuntime.policy.model import HostFacts, LsmFacts, ProfileType, SecurityProfileRef
from noderuntime.policy.spec import SpecLayout
from tests.unit.policy.factories import container, denied, granted, rules, security

WITH = LsmFacts(apparmor=True, can_load_apparmor=True, apparmor_profiles=frozenset({"web"}))
WITHOUT_PARSER = LsmFacts(apparmor=True, apparmor_profiles=frozenset({"web"}))
WITHOUT = LsmFacts()
DEFAULT = SecurityProfileRef(type=ProfileType.RUNTIME_DEFAULT)
UNCONFINED = SecurityProfileRef(type=ProfileType.UNCONFINED)
WEB = SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="web")
OTHER = SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="other")


def profile_of(asked: SecurityProfileRef | None, lsm: LsmFacts, *, privileged: bool = False) -> str:
    """Return what the node's own handler grants."""
    asks = container(security(apparmor=asked, privileged=privileged))
    return granted(None, asks, host=HostFacts(lsm=lsm)).apparmor


@pytest.mark.parametrize(
    ("asked", "lsm", "privileged", "profile"),
    [
        pytest.param(None, WITH, False, apparmor.DEFAULT, id="says nothing"),
        pytest.param(None, WITH, True, "", id="privileged, says nothing"),
        pytest.param(None, WITHOUT_PARSER, False, "", id="says nothing, nothing to load with"),
        pytest.param(None, WITHOUT, False, "", id="says nothing, no AppArmor"),
        pytest.param(DEFAULT, WITH, False, apparmor.DEFAULT, id="default"),
        pytest.param(DEFAULT, WITH, True, apparmor.DEFAULT, id="default, privileged"),
        pytest.param(DEFAULT, WITHOUT, False, "", id="default, no AppArmor"),
        pytest.param(UNCONFINED, WITH, False, "", id="unconfined"),
        pytest.param(UNCONFINED, WITHOUT, False, "", id="unconfined, no AppArmor"),
        pytest.param(WEB, WITH, False, "web", id="by name"),
        pytest.param(WEB, WITH, True, "web", id="by name, privileged"),
        pytest.param(WEB, WITHOUT_PARSER, False, "web", id="by name, nothing to load with"),
    ],
)
def test_the_node_gives_what_is_asked_for(
    asked: SecurityProfileRef | None, lsm: LsmFacts, profile: str, *, privileged: bool
) -> None:
    assert profile_of(asked, lsm, privileged=privileged) == profile


@pytest.mark.parametrize(
    ("asked", "lsm", "why"),
    [
        pytest.param(OTHER, WITH, "other is not loaded", id="not loaded"),
        pytest.param(WEB, WITHOUT, "has no AppArmor", id="no AppArmor"),
        pytest.param(DEFAULT, WITHOUT_PARSER, "install the package apparmor", id="no parser"),
    ],
)
def test_what_this_kernel_cannot_give_is_refused_by_the_fields_name(
    asked: SecurityProfileRef, lsm: LsmFacts, why: str
) -> None:
    with pytest.raises(FailedPreconditionError, match=why) as caught:
        profile_of(asked, lsm)
    assert "containers[web].securityContext.appArmorProfile." in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "field"),
    [(UNCONFINED, "type"), (WEB, "localhostProfile"), (OTHER, "localhostProfile")],
)
def test_a_profile_refuses_to_be_unconfined_and_profiles_of_the_node(
    asked: SecurityProfileRef, field: str
) -> None:
    denial = denied(rules(), container(security(apparmor=asked)), host=HostFacts(lsm=WITH))
    assert denial.field == f"containers[web].securityContext.appArmorProfile.{field}"


def test_a_profile_in_audit_gives_what_is_asked_for_and_finds_it() -> None:
    asks = container(security(apparmor=WEB))
    grant = granted(rules({"mode": "Audit"}), asks, host=HostFacts(lsm=WITH))
    assert grant.apparmor == "web"
    assert [each.field.rpartition(".")[2] for each in grant.findings] == ["localhostProfile"]


def test_the_profile_is_written_down_for_the_container_and_for_execs() -> None:
    grant = granted(None, container(security(apparmor=WEB)), host=HostFacts(lsm=WITH))
    process = spec.build(grant, SpecLayout(rootfs="/r"))["process"]
    assert isinstance(process, dict)
    assert process["apparmorProfile"] == "web"
    assert spec.exec_process(process, ("true",), tty=False)["apparmorProfile"] == "web"


def test_a_container_without_one_has_no_such_key() -> None:
    process = spec.build(granted(None), SpecLayout(rootfs="/r"))["process"]
    assert isinstance(process, dict)
    assert "apparmorProfile" not in process


def test_the_default_profile_defines_itself() -> None:
    text = apparmor.default_text()
    assert f"profile {apparmor.DEFAULT} flags=" in text
    assert "include" not in text.replace("is included", "")
