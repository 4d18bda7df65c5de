"""What to write, as data: ``apply.py`` carries it out in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, cast

from noderuntime_operator.reconcile.names import APPLIED
from noderuntime_operator.reconcile.observed import Body


class Kind(StrEnum):
    """The kinds that the operator writes."""

    NODE_RUNTIME = "NodeRuntime"
    SECURITY_PROFILE = "SecurityProfile"
    STATE = "NodeRuntimeState"
    RUNTIME_CLASS = "RuntimeClass"
    DAEMON_SET = "DaemonSet"
    REVISION = "ControllerRevision"
    ADMISSION_POLICY = "ValidatingAdmissionPolicy"
    ADMISSION_BINDING = "ValidatingAdmissionPolicyBinding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Server-side apply of a whole body; ``status`` goes to the status subresource."""

    kind: Kind
    name: str
    body: Body
    status: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete an object of ours; were it needed after all, the next pass makes it again."""

    kind: Kind
    name: str


Action: TypeAlias = Apply | Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Actions that do not depend on each other."""

    name: str
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in order, and after how many seconds to look again though nothing changed."""

    steps: tuple[Step, ...]
    retry_s: float | None = None

    @property
    def actions(self) -> tuple[Action, ...]:
        """Return all of them in order."""
        return tuple(action for step in self.steps for action in step.actions)


def marked(body: Body) -> dict[str, Any]:
    """Return the body with the annotation that holds its digest: a field taken away is a difference too."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    metadata: dict[str, Any] = dict(body["metadata"])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata["annotations"] = dict(metadata.get("annotations", {})) | {APPLIED: digest}
    return dict(body) | {"metadata": metadata}


def is_written(live: Body, wanted: Body) -> bool:
    """Tell whether the live object has all that is wanted. Items of a list do not say their kind."""
    return holds(live, {key: wanted[key] for key in wanted if key not in ("apiVersion", "kind")})


def holds(live: Any, wanted: Any) -> bool:  # noqa: ANN401 - free-form JSON
    """Tell whether the live object has all that is wanted; what the server added does not count."""
    if isinstance(wanted, Mapping):
        parts = cast("Mapping[str, Any]", wanted)
        if not isinstance(live, Mapping):
            return not parts and live is None
        seen = cast("Mapping[str, Any]", live)
        return all(holds(seen.get(key), value) for key, value in parts.items())
    if isinstance(wanted, (list, tuple)):
        items, seen_items = cast("list[Any]", wanted), cast("list[Any]", live)
        same = isinstance(live, (list, tuple)) and len(seen_items) == len(items)
        return same and all(map(holds, seen_items, items))
    return bool(live == wanted)
