"""Which AppArmor profile a container gets, on a node with and without AppArmor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from noderuntime.errors import ConfigError, FailedPreconditionError
from noderuntime.policy import apparmor, spec
from noderuntime.policy.model import HostFacts, LsmFacts, ProfileType, SecurityProfileRef
from noderuntime.policy.spec import SpecLayout
from tests.unit.policy.factories import admit, container, denied, granted, rules, security

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


TEXT = "profile mine {\n  file,\n}\n"
BY_TEXT = {"appArmor": {"profile": TEXT}}
BY_NAME = {"appArmor": {"name": "web"}}
BY_MODE = {"appArmor": {"mode": "RuntimeDefault"}}
NONE = {"appArmor": {"mode": "Unconfined"}}


@pytest.mark.parametrize(
    ("profile", "asked", "name"),
    [
        pytest.param(BY_TEXT, None, "noderuntime-web-", id="text"),
        pytest.param(BY_TEXT, DEFAULT, "noderuntime-web-", id="text, the default is the handler's"),
        pytest.param(BY_NAME, None, "web", id="name"),
        pytest.param(BY_NAME, WEB, "web", id="name, the same is asked for"),
        pytest.param(BY_NAME, DEFAULT, "web", id="name, the default is the handler's"),
        pytest.param(BY_MODE, None, apparmor.DEFAULT, id="default"),
        pytest.param(NONE, None, "", id="unconfined"),
        pytest.param(NONE, UNCONFINED, "", id="unconfined, asked for"),
        pytest.param(NONE, WEB, "web", id="unconfined, less is asked for"),
        pytest.param(NONE, DEFAULT, apparmor.DEFAULT, id="unconfined, the default is asked for"),
        pytest.param({}, None, apparmor.DEFAULT, id="nothing declared"),
    ],
)
@pytest.mark.parametrize("privileged", [False, True])
def test_a_declared_profile_holds_for_every_container(
    profile: dict[str, object],
    asked: SecurityProfileRef | None,
    name: str,
    *,
    privileged: bool,
) -> None:
    own = rules({**profile, "privileged": "Allow"})
    asks = container(security(apparmor=asked, privileged=privileged))
    found = granted(own, asks, host=HostFacts(lsm=WITH)).apparmor
    if privileged and not profile:
        name = ""  # as under the node's own handlers
    assert found.startswith(name)
    assert bool(found) == bool(name)


@pytest.mark.parametrize("asked", [UNCONFINED, OTHER])
@pytest.mark.parametrize("profile", [BY_TEXT, BY_NAME, BY_MODE, {}])
def test_a_pod_may_not_ask_for_another_profile_than_the_declared(
    profile: dict[str, object], asked: SecurityProfileRef
) -> None:
    host = HostFacts(lsm=replace(WITH, apparmor_profiles=frozenset({"web", "other"})))
    asks = container(security(apparmor=asked))
    assert "appArmorProfile" in denied(rules(profile), asks, host=host).field
    audited = rules({**profile, "auditSections": ["appArmor"]})
    grant = granted(audited, asks, host=host)
    assert grant.apparmor == asked.localhost_ref
    assert len(grant.findings) == 1


def test_a_declared_name_that_was_removed_meanwhile_refuses_the_container() -> None:
    lsm = replace(WITH, apparmor_profiles=frozenset())
    with pytest.raises(FailedPreconditionError, match=r"appArmor\.name of SecurityProfile web"):
        admit(rules(BY_NAME), container(), host=HostFacts(lsm=lsm))


def test_the_grant_says_that_the_profile_was_set() -> None:
    changes = granted(rules(BY_NAME), container(), host=HostFacts(lsm=WITH)).changes
    assert "securityContext.appArmorProfile is web, as the Pod names none" in changes


@pytest.mark.parametrize("section", [{}, {"name": "a", "mode": "RuntimeDefault"}])
def test_exactly_one_way_must_be_declared(section: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"appArmor: exactly one"):
        rules({"appArmor": section})


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
