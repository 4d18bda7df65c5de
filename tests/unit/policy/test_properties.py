"""What holds for every profile and every request, whatever else is decided."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from random import Random
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noderuntime.policy import decide
from noderuntime.policy.capabilities import KNOWN
from noderuntime.policy.denial import Denial
from noderuntime.policy.model import ContainerGrant, Propagation, SandboxGrant
from noderuntime.policy.mounts import need_the_table
from noderuntime.policy.resources import PERIOD_US
from noderuntime.policy.rules import HandlerRules
from noderuntime.policy.spec import DEFAULT_MASKED, SpecLayout, build
from noderuntime.policy.tighter import loosened
from tests.unit.policy.factories import rules
from tests.unit.policy.strategies import (
    SHARED_TABLE,
    Document,
    Request,
    altered,
    bounds,
    profiles,
    requests,
    tightened,
)

pytestmark = pytest.mark.slow
few = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
LAYOUT = SpecLayout(rootfs="/rootfs", machine="x86_64")


def decide_both(
    own: HandlerRules, request: Request
) -> tuple[SandboxGrant | Denial, ContainerGrant | Denial]:
    pod, asked, facts, host = request
    return decide.admit_sandbox(own, pod), decide.admit_container(own, pod, asked, facts, host)


def admits(own: HandlerRules, request: Request) -> bool:
    return not any(isinstance(answer, Denial) for answer in decide_both(own, request))


def allowed_calls(spec: Mapping[str, Any]) -> frozenset[str]:
    """Return each allowed call with its condition, which is empty for one that is free."""
    return frozenset(
        f"{name} {json.dumps(entry.get('args', ''))}"
        for entry in spec["linux"]["seccomp"]["syscalls"]
        if entry["action"] == "SCMP_ACT_ALLOW"
        for name in entry["names"]
    )


def covers(wide: frozenset[str], narrow: frozenset[str]) -> bool:
    free = {call.split(" ", 1)[0] for call in wide if call.endswith(' ""')}
    return all(call in wide or call.split(" ", 1)[0] in free for call in narrow)


@few
@given(data=st.data(), profile=profiles, bound=bounds, request=requests())
def test_tightening_a_profile_never_admits_more(
    data: st.DataObject, profile: Document, bound: Document, request: Request
) -> None:
    stricter, less = data.draw(tightened(profile, bound))
    wide, narrow = rules(profile, **bound), rules(stricter, **less)
    if not admits(narrow, request):
        return
    assert admits(wide, request)
    before, after = decide_both(wide, request)[1], decide_both(narrow, request)[1]
    assert isinstance(before, ContainerGrant)
    assert isinstance(after, ContainerGrant)
    assert set(after.capabilities) <= set(before.capabilities)
    assert after.no_new_privileges >= before.no_new_privileges
    assert after.readonly_rootfs >= before.readonly_rootfs
    assert set(before.masked_paths) <= set(after.masked_paths)
    assert set(after.ambient) <= set(before.ambient)
    if not (wide.audits("seccomp") or narrow.audits("seccomp")):
        assert covers(allowed_calls(build(before, LAYOUT)), allowed_calls(build(after, LAYOUT)))


@few
@given(data=st.data(), profile=profiles, bound=bounds)
def test_a_tightened_profile_may_inherit(
    data: st.DataObject, profile: Document, bound: Document
) -> None:
    stricter, _ = data.draw(tightened(profile, bound))
    assert list(loosened(rules(profile), rules(stricter))) == []


@few
@given(data=st.data(), profile=profiles, asked=st.lists(requests(), min_size=1, max_size=4))
def test_a_profile_that_may_inherit_never_admits_more_than_its_base(
    data: st.DataObject, profile: Document, asked: list[Request]
) -> None:
    base, child = rules(profile), rules(data.draw(altered(profile)))
    if next(loosened(base, child), None) is not None:
        return
    for request in asked:
        before, after = decide_both(base, request)[1], decide_both(child, request)[1]
        assert admits(base, request) or not admits(child, request)
        if isinstance(before, ContainerGrant) and isinstance(after, ContainerGrant):
            assert after.apparmor or not before.apparmor or base.audits("appArmor")


@few
@given(profile=profiles, bound=bounds, request=requests())
def test_an_admitted_container_never_exceeds_its_profile(
    profile: Document, bound: Document, request: Request
) -> None:
    own = rules({**profile, "mode": "Enforce", "auditSections": []}, **bound)
    grant = decide_both(own, request)[1]
    if isinstance(grant, Denial):
        return
    spec: dict[str, Any] = build(grant, LAYOUT)
    process, linux = spec["process"], spec["linux"]
    bound_by = KNOWN if own.privileged else own.allowed_capabilities | own.default_capabilities
    for kind in ("bounding", "effective", "permitted"):
        assert {n.removeprefix("CAP_") for n in process["capabilities"][kind]} <= bound_by
    assert process["capabilities"]["inheritable"] == process["capabilities"]["ambient"]
    assert set(process["capabilities"]["ambient"]) <= set(process["capabilities"]["permitted"])
    assert process["noNewPrivileges"] or not own.no_new_privileges
    assert spec["root"]["readonly"] or not own.readonly_root
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert not {call.split(" ", 1)[0] for call in allowed_calls(spec)} & own.seccomp.deny
    masked = set(linux["maskedPaths"])
    assert own.privileged or own.unmasked_proc or set(DEFAULT_MASKED) <= masked
    assert set(own.masked_paths) <= masked
    assert set(own.readonly_paths) <= set(linux["readonlyPaths"])
    assert [limit["hard"] for limit in process.get("rlimits", [])] == [
        each.hard for each in own.ulimits
    ]
    _within_ranges(own, process["user"])
    _as_the_rules_have_it(own, request)
    _within_limits(own, linux["resources"])


def _within_ranges(own: HandlerRules, user: Mapping[str, Any]) -> None:
    groups = [gid for gid in user["additionalGids"] if gid != user["gid"]]
    for ranges, ids in (
        (own.users, [user["uid"]]),
        (own.groups, [user["gid"]]),
        (own.supplemental_groups, groups),
    ):
        assert not ranges or all(any(low <= i <= high for low, high in ranges) for i in ids)
    assert user["uid"] or not own.non_root


def _as_the_rules_have_it(own: HandlerRules, request: Request) -> None:
    """Ask the request what it got, in other words than the checks."""
    pod, asked, _, host = request
    if own.user_namespace != "Optional":
        assert (pod.namespaces.user is None) == (own.user_namespace == "Deny")
    for device in asked.devices:
        real = PurePosixPath(host.real_paths.get(device.host_path, device.host_path))
        rules_ = [r for r in own.devices if PurePosixPath(r.path) in (real, *real.parents)]
        allowed = "".join(r.permissions for r in rules_)
        assert own.privileged or set(device.permissions) <= set(allowed)
    for mount in asked.mounts:
        real = PurePosixPath(host.real_paths.get(mount.host_path, mount.host_path))
        if "kubelet" in real.parts:
            continue
        above = [r for r in own.host_paths if PurePosixPath(r.path) in (real, *real.parents)]
        assert above
        assert mount.readonly or not all(r.readonly for r in above)
        assert mount.propagation is not Propagation.BIDIRECTIONAL or any(
            "Bidirectional" in r.propagation for r in above
        )
    if own.require_digest:
        assert "@sha256:" in asked.image_reference


def _within_limits(own: HandlerRules, resources: Mapping[str, Any]) -> None:
    assert resources.get("pids", {}).get("limit") == own.pids_limit
    if own.limits.memory_bytes is not None:
        assert 0 < resources["memory"]["limit"] <= own.limits.memory_bytes
    if own.limits.cpu_millis is not None:
        period = resources["cpu"].get("period", PERIOD_US)
        least = max(own.limits.cpu_millis * period // 1000, 1000)
        assert 0 < resources["cpu"]["quota"] <= least


@few
@given(profile=profiles, bound=bounds, request=requests(), seed=st.integers(0, 99))
def test_the_order_of_fields_and_lists_never_matters(
    profile: Document, bound: Document, request: Request, seed: int
) -> None:
    random = Random(seed)
    other = rules(_shuffled(profile, random), **_shuffled(bound, random))
    assert decide_both(rules(profile, **bound), request) == decide_both(other, request)


def _shuffled(document: Document, random: Random) -> Document:
    """Return it with the keys of every mapping and the items of every list in another order."""
    items = list(document.items())
    random.shuffle(items)
    result: Document = {}
    for key, value in items:
        if isinstance(value, dict):
            result[key] = _shuffled(cast("Document", value), random)
        elif _is_list(value):
            result[key] = random.sample(value, len(value))
        else:
            result[key] = value
    return result


def _is_list(value: object) -> bool:
    return isinstance(value, list)


@few
@given(profile=profiles, bound=bounds, request=requests())
def test_the_mount_table_changes_nothing_where_it_is_not_read(
    profile: Document, bound: Document, request: Request
) -> None:
    pod, asked, facts, host = request
    if need_the_table(asked):
        return
    own = rules(profile, **bound)
    answers = [
        decide.admit_container(own, pod, asked, facts, replace(host, mountinfo=table))
        for table in ("", SHARED_TABLE)
    ]
    assert answers[0] == answers[1]


@few
@given(profile=profiles, bound=bounds, request=requests())
def test_audit_refuses_nothing_and_finds_what_enforce_refuses(
    profile: Document, bound: Document, request: Request
) -> None:
    plain: Document = {**profile, "auditSections": []}
    audited = decide_both(rules({**plain, "mode": "Audit"}, **bound), request)
    enforced = decide_both(rules({**plain, "mode": "Enforce"}, **bound), request)
    for seen, answer in zip(audited, enforced, strict=True):
        assert not isinstance(seen, Denial)
        assert seen.findings[:1] == ((answer,) if isinstance(answer, Denial) else ())


@few
@given(text=st.lists(st.text(max_size=300), min_size=7, max_size=7))
def test_a_sentence_never_holds_a_line_break_or_a_control_character(text: list[str]) -> None:
    container, field, value, rule, profile, revision, remedy = text
    sentence = Denial(
        container=container,
        field=field,
        value=value,
        rule=rule,
        profile=profile,
        revision=revision,
        remedy=remedy,
    ).sentence()
    assert sentence.isprintable()
    assert len(sentence) < 1024
