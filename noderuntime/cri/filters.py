"""The filters of CRI's lists: the beginning of an ID, a state, labels that must all be there."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.engine.state import ContainerRecord, SandboxRecord
from noderuntime.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_Record = TypeVar("_Record", SandboxRecord, ContainerRecord)


def sandboxes(records: Iterable[SandboxRecord], wanted: pb.PodSandboxFilter) -> list[SandboxRecord]:
    """Return the sandboxes that the filter takes, newest first."""
    state = ""
    if wanted.HasField("state"):
        state = _known("filter.state", pb.PodSandboxState, wanted.state.state)
    return _newest_first(
        record
        for record in records
        if record.id.startswith(wanted.id)
        and (not state or record.state.value == state)
        and has_labels(record.config.labels, wanted.label_selector)
    )


def containers(
    records: Iterable[ContainerRecord], wanted: pb.ContainerFilter
) -> list[ContainerRecord]:
    """Return the containers that the filter takes, newest first."""
    state = ""
    if wanted.HasField("state"):
        state = _known("filter.state", pb.ContainerState, wanted.state.state)
    return _newest_first(
        record
        for record in records
        if record.id.startswith(wanted.id)
        and record.sandbox_id.startswith(wanted.pod_sandbox_id)
        and (not state or record.state.value == state)
        and has_labels(record.config.labels, wanted.label_selector)
    )


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Tell whether ``labels`` holds every wanted pair."""
    return all(labels.get(key) == value for key, value in wanted.items())


def _known(field: str, states: object, value: int) -> str:
    try:
        return str(states.Name(value))  # type: ignore[attr-defined]  # either of two enum wrappers
    except ValueError as error:
        raise InvalidArgumentError(f"{field}: {value} is not a state of CRI") from error


def _newest_first(records: Iterable[_Record]) -> list[_Record]:
    return sorted(records, key=lambda record: (-record.created_at_ns, record.id))
