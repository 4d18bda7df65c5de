"""A process that joins a container gets at most what both revisions give, and is told of each change."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from noderuntime.policy import decide
from noderuntime.policy.denial import Denial
from noderuntime.policy.facts import ContainerFacts, SandboxFacts
from noderuntime.policy.joining import ExecGrant
from noderuntime.policy.model import (
    ContainerGrant,
    ContainerSecurity,
    NamespaceMode,
    Namespaces,
    ResolvedUser,
)
from noderuntime.policy.spec import SpecLayout, build
from tests.unit.policy import factories as make
from tests.unit.policy.strategies import Document, profiles

BEFORE: dict[str, Any] = {
    "noNewPrivileges": "Optional",
    "capabilities": {"default": ["KILL", "NET_RAW"], "allow": ["CHOWN"], "ambient": ["KILL"]},
    "ulimits": [{"name": "nofile", "soft": 50, "hard": 100}],
}
NOBODY = ResolvedUser(uid=1000, gid=1000)


def facts_of(
    now: dict[str, Any], security: ContainerSecurity, user: ResolvedUser
) -> ContainerFacts:
    return ContainerFacts(
        rules=make.rules(now),
        sandbox=make.sandbox(),
        container=make.container(security),
        image=make.image(user),
    )


def process_of(
    before: dict[str, Any], security: ContainerSecurity, user: ResolvedUser
) -> dict[str, Any]:
    """Return the OCI process that a container was started with."""
    grant = decide.admit_container(
        make.rules(before), make.sandbox(), make.container(security), make.image(user)
    )
    assert isinstance(grant, ContainerGrant)
    process: dict[str, Any] = build(grant, SpecLayout(rootfs="/r"))["process"]  # type: ignore[assignment]
    return process


def joined(
    now: dict[str, Any],
    security: ContainerSecurity | None = None,
    user: ResolvedUser = NOBODY,
    *,
    before: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    asked = security or make.security()
    process = process_of(BEFORE if before is None else before, asked, user)
    answer = decide.admit_exec(facts_of(now, asked, user), process, is_probe=False)
    assert isinstance(answer, ExecGrant)
    return dict(answer.process), answer.changes


def test_nothing_is_changed_when_the_profile_is_the_same_or_wider() -> None:
    own = process_of(BEFORE, make.security(), NOBODY)
    wider = {
        "noNewPrivileges": "Optional",
        "capabilities": {"default": ["ALL"], "ambient": ["KILL"]},
    }
    assert joined(BEFORE) == (own, ())
    process, changes = joined(wider)
    assert (process["capabilities"]["bounding"], changes) == (["CAP_KILL", "CAP_NET_RAW"], ())
    assert process["rlimits"] == own["rlimits"]


def test_capabilities_that_the_profile_no_longer_gives_are_taken_away() -> None:
    process, changes = joined({**BEFORE, "capabilities": {"default": ["KILL"]}})
    held = process["capabilities"]
    assert held["bounding"] == held["effective"] == held["permitted"] == ["CAP_KILL"]
    assert held["ambient"] == held["inheritable"] == []  # it is not ambient any more
    assert changes == (
        "capabilities CAP_KILL, CAP_NET_RAW are taken away, as the profile gives less now",
    )


def test_an_added_capability_is_taken_away_when_it_is_no_longer_allowed() -> None:
    asked = make.security(capabilities_add=("CHOWN",))
    process, _ = joined({**BEFORE, "capabilities": {"default": ["KILL"]}}, asked)
    assert process["capabilities"]["bounding"] == ["CAP_KILL"]
    audited = {**BEFORE, "auditSections": ["capabilities"], "capabilities": {"default": ["KILL"]}}
    process, _ = joined(audited, asked)
    assert process["capabilities"]["bounding"] == ["CAP_CHOWN", "CAP_KILL"]


def test_no_new_privileges_is_set_when_it_has_become_required() -> None:
    process, changes = joined({**BEFORE, "noNewPrivileges": "Required"})
    assert process["noNewPrivileges"] is True
    assert changes == ("noNewPrivileges is set, as it is Required now",)


def test_ulimits_are_the_lower_of_both() -> None:
    limits = [
        {"name": "nofile", "soft": 70, "hard": 70},
        {"name": "nproc", "soft": 9, "hard": 9},
    ]
    process, changes = joined({**BEFORE, "ulimits": limits})
    assert process["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 50, "hard": 70},
        {"type": "RLIMIT_NPROC", "soft": 9, "hard": 9},
    ]
    assert changes == ("ulimits nofile, nproc are no higher than the profile's of now",)


def test_supplementary_groups_that_are_not_allowed_any_more_are_taken_away() -> None:
    user = ResolvedUser(uid=1000, gid=1000, additional_gids=(1000, 5, 6))
    now = {**BEFORE, "runAs": {"supplementalGroups": [{"min": 6, "max": 6}]}}
    process, changes = joined(now, user=user)
    assert process["user"]["additionalGids"] == [1000, 6]
    assert changes[0].startswith("supplementary groups 5 are taken away")


REFUSED = [
    pytest.param(
        {"privileged": "Allow"},
        {},
        make.security(privileged=True),
        NOBODY,
        "privileged is Deny",
        id="a privileged container",
    ),
    pytest.param(
        {},
        {"runAs": {"nonRoot": True}},
        make.security(),
        ResolvedUser(uid=0, gid=0),
        "runAs.nonRoot is true",
        id="root",
    ),
    pytest.param(
        {"hostNamespaces": ["PID"]},
        {},
        make.security(namespaces=Namespaces(pid=NamespaceMode.NODE)),
        NOBODY,
        "hostNamespaces has nothing",
        id="the node's processes",
    ),
    pytest.param(
        {"procMount": "UnmaskedAllowed"},
        {},
        make.security(masked_paths=(), readonly_paths=()),
        NOBODY,
        "procMount is Default",
        id="an unmasked /proc",
    ),
]


@pytest.mark.parametrize(("before", "now", "security", "user", "rule"), REFUSED)
def test_a_session_is_refused_and_a_probe_goes_on_when_the_container_would_not_be_admitted(
    before: dict[str, Any],
    now: dict[str, Any],
    security: ContainerSecurity,
    user: ResolvedUser,
    rule: str,
) -> None:
    process: dict[str, Any] = {"capabilities": {"bounding": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}}
    then, facts = facts_of(before, security, user), facts_of(now, security, user)
    assert decide.admit_session(then) == ()
    refused = decide.admit_session(facts)
    assert isinstance(refused, Denial)
    assert decide.admit_exec(facts, process, is_probe=False) == refused
    assert (rule in refused.rule, refused.section is not None) == (True, True)
    assert refused.sentence().endswith("it is from before that; have the Pod made anew")
    probe = decide.admit_exec(facts, process, is_probe=True)
    assert isinstance(probe, ExecGrant)
    assert [each.rule for each in probe.findings] == [refused.rule]
    held = probe.process["capabilities"]
    assert held == {"bounding": []}


def test_a_privileged_container_keeps_what_is_allowed_when_it_is_audited() -> None:
    asked = make.security(privileged=True)
    now = {"auditSections": ["privileged"]}
    answer = decide.admit_exec(
        facts_of(now, asked, NOBODY),
        {"capabilities": {"bounding": ["CAP_SYS_ADMIN"]}},
        is_probe=False,
    )
    assert isinstance(answer, ExecGrant)
    assert answer.process["capabilities"] == {"bounding": ["CAP_SYS_ADMIN"]}
    assert [each.section for each in answer.findings] == ["privileged"]


def test_a_port_forward_is_refused_when_it_would_reach_the_node() -> None:
    on_node = make.sandbox(
        namespaces=Namespaces(network=NamespaceMode.NODE, pid=NamespaceMode.NODE)
    )
    allowed = SandboxFacts(rules=make.rules({"hostNamespaces": ["Network"]}), sandbox=on_node)
    assert decide.admit_forward(allowed) == ()
    refused = decide.admit_forward(SandboxFacts(rules=make.rules(), sandbox=on_node))
    assert isinstance(refused, Denial)
    assert (refused.field, refused.section) == ("hostNetwork", "hostNamespaces")
    assert decide.admit_forward(SandboxFacts(rules=make.rules(), sandbox=make.sandbox())) == ()


PASSING: dict[str, Any] = {"images": {}, "runAs": {}, "userNamespace": "Optional"}


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(profiles, profiles)
def test_a_joining_process_never_has_more_than_its_container_or_than_the_profile_gives(
    before: Document, now: Document
) -> None:
    before, now = {**before, **PASSING}, {**now, **PASSING}
    own = process_of(before, make.security(), NOBODY)
    again = process_of(now, make.security(), NOBODY)
    joined_now, _ = joined(now, before=before)
    for name, held in joined_now["capabilities"].items():
        assert set(held) <= set(own["capabilities"][name])
        assert set(held) <= set(again["capabilities"][name])
    assert joined_now["noNewPrivileges"] == (own["noNewPrivileges"] or again["noNewPrivileges"])
