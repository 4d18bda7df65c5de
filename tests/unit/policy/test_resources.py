from __future__ import annotations

from typing import Any

import pytest

from noderuntime.policy import decide
from noderuntime.policy.denial import Denial
from noderuntime.policy.model import Resources
from noderuntime.policy.rules import HandlerRules
from noderuntime.policy.spec import SpecLayout, build
from tests.unit.policy.factories import container, denied, granted, rules

BOUNDS = {
    "defaults": {"cpu": "500m", "memory": "128Mi"},
    "limits": {"cpu": "2", "memory": "1Gi"},
    "pidsLimit": 512,
}
GI = 1 << 30


def own(bounds: object = BOUNDS, mode: str = "Enforce") -> HandlerRules:
    return rules({"mode": mode}, resources=bounds)


def cpu(quota_us: int, period_us: int = 100_000) -> Resources:
    return Resources(cpu_quota_us=quota_us, cpu_period_us=period_us)


@pytest.mark.parametrize(
    ("asked", "field", "value"),
    [
        pytest.param(cpu(200_001), "cpu", "2001m", id="a little more cpu"),
        pytest.param(cpu(3000, 1000), "cpu", "3", id="another period"),
        pytest.param(cpu(250_000, 0), "cpu", "2500m", id="no period is the kernel's"),
        pytest.param(Resources(memory_limit_bytes=GI + 1), "memory", "1073741825", id="a byte"),
        pytest.param(Resources(memory_limit_bytes=2 * GI), "memory", "2Gi", id="memory"),
    ],
)
def test_more_than_the_most_is_refused(asked: Resources, field: str, value: str) -> None:
    answer = denied(own(), container(resources=asked))
    assert answer.field == f"containers[web].resources.limits.{field}"
    assert answer.value == value
    assert 'NodeRuntime "restricted"' in answer.rule
    updated = decide.admit_resources(own(), asked, "web")
    assert updated == answer
    assert granted(own(mode="Audit"), container(resources=asked)).findings == (answer,)


@pytest.mark.parametrize("key", ["memory.max", "cpu.max", "pids.max", "memory.swap.max"])
def test_no_way_leads_round_the_bounds(key: str) -> None:
    asked = container(resources=Resources(unified={key: "max"}))
    assert denied(own(), asked).value == f"{key}=max"


def test_other_cgroup_keys_pass() -> None:
    asked = container(resources=Resources(unified={"memory.high": "100"}))
    assert granted(own(), asked).resources.unified == {"memory.high": "100"}


@pytest.mark.parametrize(
    ("bounds", "quota_us", "memory_bytes"),
    [
        pytest.param(BOUNDS, 50_000, 128 << 20, id="the defaults"),
        pytest.param({"limits": {"cpu": "2", "memory": "1Gi"}}, 200_000, GI, id="else the most"),
        pytest.param(
            {"defaults": {"cpu": "9", "memory": "9Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
            200_000,
            GI,
            id="a default above the most is the most",
        ),
        pytest.param({}, 0, 0, id="nothing is said"),
    ],
)
@pytest.mark.parametrize("unlimited", [0, -1])
def test_a_container_without_limits_gets_them(
    bounds: object, quota_us: int, memory_bytes: int, unlimited: int
) -> None:
    asked = Resources(cpu_quota_us=unlimited, memory_limit_bytes=unlimited, cpu_shares=7)
    grant = granted(own(bounds), container(resources=asked)).resources
    assert max(grant.cpu_quota_us, 0) == quota_us
    assert max(grant.memory_limit_bytes, 0) == memory_bytes
    assert grant.cpu_shares == 7


def test_the_least_quota_of_the_kubelet_passes_a_smaller_most() -> None:
    small = own({"limits": {"cpu": "5m"}})
    assert granted(small, container(resources=cpu(1000))).findings == ()
    assert granted(small).resources.cpu_quota_us == 1000


def test_a_memory_default_lifts_a_swap_limit_that_would_be_below_it() -> None:
    grant = granted(own(), container(resources=Resources(memory_swap_limit_bytes=1)))
    assert grant.resources.memory_swap_limit_bytes == 128 << 20


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param(Resources(cpuset_cpus="0-1"), Resources(cpuset_cpus="0-1"), id="0 leaves"),
        pytest.param(cpu(-1), cpu(50_000), id="no cpu limit is the default"),
        pytest.param(
            Resources(memory_limit_bytes=-1),
            Resources(memory_limit_bytes=128 << 20),
            id="no memory limit is the default",
        ),
        pytest.param(cpu(150_000), cpu(150_000), id="within"),
    ],
)
def test_an_update_is_bounded(asked: Resources, expected: Resources) -> None:
    assert decide.admit_resources(own(), asked) == expected
    assert decide.admit_resources(None, asked) == asked


def test_an_update_in_audit_is_not_refused() -> None:
    asked = cpu(900_000)
    assert isinstance(decide.admit_resources(own(), asked), Denial)
    assert decide.admit_resources(own(mode="Audit"), asked) == asked


def test_resources_are_written_into_the_spec() -> None:
    asked = Resources(
        cpu_shares=512,
        cpuset_cpus="0",
        memory_swap_limit_bytes=-1,
        oom_score_adj=900,
        hugepage_limits_bytes={"2MB": 4},
        unified={"memory.high": "1"},
    )
    built: Any = build(granted(own(), container(resources=asked)), SpecLayout(rootfs="/rootfs"))
    assert built["process"]["oomScoreAdj"] == 900
    assert built["linux"]["resources"] == {
        "devices": [{"allow": False, "access": "rwm"}],
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
        "memory": {"limit": 128 << 20, "swap": 128 << 20},
        "pids": {"limit": 512},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
        "unified": {"memory.high": "1"},
    }
