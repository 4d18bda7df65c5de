from __future__ import annotations

from dataclasses import replace

import pytest

from noderuntime.agent.cluster import NodeState
from noderuntime.agent.report import Observation, status_of
from noderuntime.api.state import NodeRuntimeStateSpec, RevisionRef
from noderuntime.cri.client import RuntimeStatus, Served, WithheldHandler
from noderuntime.errors import ConfigError, NodeRuntimeError, UnavailableError

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
STATE = NodeState(
    name="node-a",
    uid="u1",
    generation=3,
    spec=NodeRuntimeStateSpec(
        node_name="node-a", revision=RevisionRef(name="noderuntime-aaaaaaaaaaaa", digest=DIGEST)
    ),
)
T1, T2 = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def runtime(revision: str = DIGEST, error: str = "", stale: int = 0) -> RuntimeStatus:
    return RuntimeStatus(
        name="noderuntime",
        version="1",
        conditions=(),
        handlers=("", "crun", "restricted"),
        served=Served(
            revision=revision,
            revision_error=error,
            handlers=("restricted",),
            stale_containers=tuple(f"ns/pod/{number:03}" for number in reversed(range(stale))),
            ungoverned_pods=2,
        ),
    )


@pytest.mark.parametrize(
    ("seen", "status", "reason"),
    [
        pytest.param(Observation(runtime=runtime()), "True", "Served", id="served"),
        pytest.param(Observation(runtime=runtime(OTHER)), "False", "RevisionNotServed", id="old"),
        pytest.param(Observation(runtime=runtime("")), "False", "RevisionNotServed", id="none"),
        pytest.param(
            Observation(runtime=runtime("", "digest is wrong")),
            "False",
            "RevisionRefused",
            id="the runtime refuses it",
        ),
        pytest.param(
            Observation(runtime=None, runtime_error=UnavailableError("no answer")),
            "False",
            "RuntimeUnavailable",
            id="runtime away",
        ),
        pytest.param(
            Observation(runtime=runtime(OTHER), revision_error=ConfigError("was changed")),
            "False",
            "InvalidConfiguration",
            id="revision changed by hand",
        ),
    ],
)
def test_ready_says_whether_the_declared_revision_is_served(
    seen: Observation, status: str, reason: str
) -> None:
    written = status_of(STATE, seen, T1)
    assert written.observed_generation == 3
    ready = written.conditions[0]
    assert (ready.type, ready.status, ready.reason) == ("Ready", status, reason)
    assert (ready.observed_generation, ready.last_transition_time) == (3, T1)
    assert ready.message


def test_the_same_look_gives_the_same_status_later() -> None:
    first = status_of(STATE, Observation(runtime=runtime()), T1)
    again = status_of(replace(STATE, status=first), Observation(runtime=runtime()), T2)
    assert again == first


def test_times_change_when_what_they_are_of_changes() -> None:
    first = status_of(STATE, Observation(runtime=runtime(OTHER)), T1)
    then = status_of(replace(STATE, status=first), Observation(runtime=runtime()), T2)
    assert then.revision is not None
    assert (then.revision.digest, then.revision.served_at) == (DIGEST, T2)
    assert then.conditions[0].last_transition_time == T2


def test_what_was_served_stays_when_the_runtime_is_away() -> None:
    first = status_of(STATE, Observation(runtime=runtime(stale=1)), T1)
    error: NodeRuntimeError = UnavailableError("no answer\nin time")
    away = status_of(
        replace(STATE, status=first), Observation(runtime=None, runtime_error=error), T2
    )
    assert away.revision == first.revision
    assert away.handlers == ("restricted",)
    assert away.stale_containers == first.stale_containers
    assert (away.ungoverned_pods, first.ungoverned_pods) == (2, 2)
    assert away.conditions[0].message == "no answer in time"


def test_stale_containers_are_the_first_hundred_in_order() -> None:
    written = status_of(STATE, Observation(runtime=runtime(stale=150)), T1)
    assert len(written.stale_containers) == 100
    assert written.stale_containers[:2] == ("ns/pod/000", "ns/pod/001")


def test_system_calls_that_no_filter_names_are_a_condition() -> None:
    seen = runtime()
    unknown = {"restricted": ("statmount", "mseal"), "web": ("mseal",)}
    served = seen.served.model_copy(update={"unknown_syscalls": unknown})
    first = status_of(STATE, Observation(runtime=seen), T1)
    complete = first.conditions[1]
    assert (complete.type, complete.status) == ("SeccompComplete", "True")
    found = status_of(
        replace(STATE, status=first), Observation(runtime=replace(seen, served=served)), T2
    )
    lacking = found.conditions[1]
    assert (lacking.status, lacking.reason) == ("False", "UnknownSyscalls")
    assert lacking.last_transition_time == T2
    assert "handler restricted: mseal, statmount; handler web: mseal" in lacking.message
    assert [each.handler for each in found.unknown_syscalls] == ["restricted", "web"]
    away = status_of(
        replace(STATE, status=found),
        Observation(runtime=None, runtime_error=UnavailableError("no answer")),
        T2,
    )
    assert away.conditions[1] == lacking
    assert away.unknown_syscalls == found.unknown_syscalls


def test_handlers_that_cannot_be_offered_are_told_with_what_is_missing() -> None:
    one = WithheldHandler(name="b", reason="MissingFeature", message="no AppArmor")
    other = WithheldHandler(name="a", reason="AppArmorProfileRefused", message="x" * 4000)
    seen = runtime()
    for found, reason in (((one,), "MissingFeature"), ((one, other), "HandlersWithheld")):
        served = seen.served.model_copy(update={"withheld_handlers": found})
        status = status_of(STATE, Observation(runtime=replace(seen, served=served)), T1)
        ready = status.conditions[0]
        assert (ready.status, ready.reason) == ("False", reason)
        assert f"handler {min(each.name for each in found)} is not offered" in ready.message
        assert [each.name for each in status.withheld_handlers] == sorted(f.name for f in found)
    assert len(status.withheld_handlers[0].message) == 2048
    assert status_of(STATE, Observation(runtime=seen), T1).withheld_handlers == ()
