"""The Pods of a manifest: each document's own, or its template's, for every kind that has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, ValidationError

from noderuntime.api import yaml_text
from noderuntime.cli.manifest.model import Container, Metadata, Pod
from noderuntime.errors import ConfigError
from noderuntime.policy.denial import printable

# Where each kind has its Pod's template.
TEMPLATES: Final[dict[str, tuple[str, ...]]] = {
    "Pod": (),
    "PodTemplate": ("template",),
    "ReplicationController": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
LARGEST: Final = 4 << 20  # bytes of a file

_Model = TypeVar("_Model", bound=BaseModel)
_WORDS: Final = {
    "extra_forbidden": "there is no such field",
    "missing": "is required",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A Pod and what it is of."""

    kind: str
    name: str
    namespace: str
    pod: Pod


def documents(name: str, data: bytes) -> list[object]:
    """Return a file's documents, the items of a List one by one. Raises ConfigError."""
    if len(data) > LARGEST:
        raise ConfigError(f"{name}: is larger than {LARGEST >> 20} MiB")
    try:
        found = yaml_text.documents(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: is not YAML: {printable(str(error), 300)}") from error
    result: list[object] = []
    for each in found:
        body = cast("Mapping[str, object]", each if isinstance(each, dict) else {})
        items = body.get("items") if body.get("kind") == "List" else None
        result += cast("list[object]", items) if isinstance(items, list) else [each]
    return result


def workloads(name: str, data: bytes, namespace: str) -> list[Workload]:
    """Return every Pod of the file; ``namespace`` is where those go that name none.

    Raises ConfigError that names the file, the object and the field.
    """
    found = list(_workloads(name, documents(name, data), namespace))
    if not found:
        raise ConfigError(
            f"{name}: holds no Pod, and nothing that has one ({', '.join(TEMPLATES)})"
        )
    return found


def parsed(model: type[_Model], value: object, where: str, within: str) -> _Model:
    """Return the model; raises ConfigError that names the first field at fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = _path((*within.split("."), *first["loc"]) if within else first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        problem = _WORDS.get(first["type"], said[:1].lower() + said[1:])
        raise ConfigError(f"{where}: {path or 'it'}: {printable(problem, 200)}") from error


def _workloads(name: str, found: list[object], namespace: str) -> Iterator[Workload]:
    for number, document in enumerate(found, 1):
        if not isinstance(document, dict):
            raise ConfigError(f"{name}: document {number} is no object of Kubernetes")
        body = cast("Mapping[str, Any]", document)
        kind = body.get("kind")
        if not isinstance(kind, str):
            raise ConfigError(f"{name}: document {number}: kind: is required")
        if kind in TEMPLATES:
            yield _workload(name, body, kind, namespace)


def _workload(name: str, body: Mapping[str, Any], kind: str, namespace: str) -> Workload:
    own = parsed(Metadata, body.get("metadata") or {}, f"{name}: {kind}", "metadata")
    title = own.name or (own.generate_name or "").strip("-.") or kind.lower()
    where = f"{name}: {kind} {printable(title, 80)}"
    inner: object = body
    for step in TEMPLATES[kind]:
        inner = cast("Mapping[str, Any]", inner).get(step) if isinstance(inner, dict) else None
    pod = parsed(Pod, inner, where, ".".join(TEMPLATES[kind]))
    _require_each_once(pod, where)
    space = own.namespace or pod.metadata.namespace or namespace
    return Workload(kind=kind, name=title, namespace=space, pod=pod)


def _require_each_once(pod: Pod, where: str) -> None:
    spec = pod.spec
    everyone: list[Container] = [
        *spec.init_containers,
        *spec.containers,
        *spec.ephemeral_containers,
    ]
    for field, names in (
        ("containers", [each.name for each in everyone]),
        ("volumes", [each.name for each in spec.volumes]),
    ):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(f"{where}: spec.{field}: {min(twice)} is there twice")


def _path(parts: tuple[int | str, ...]) -> str:
    """Return ``spec.containers[0].image``; a wrong key may be any text."""
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)
    return printable(text.removeprefix("."), 200)
