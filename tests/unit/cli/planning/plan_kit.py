"""What the tests of ``noderuntime plan`` declare, and what they read of its answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
Run = Callable[..., tuple[int, Any]]
WEB: Json = {"runAs": {"nonRoot": True}, "capabilities": {"allow": ["NET_BIND_SERVICE"]}}
USER = {"securityContext": {"runAsUser": 1000}}
BINDS = {"securityContext": {"runAsUser": 1000, "capabilities": {"add": ["NET_BIND_SERVICE"]}}}


def a_file(tmp_path: Path, *documents: tuple[str, str, Json], name: str = "change.yaml") -> str:
    path = tmp_path / name
    bodies = [
        {
            "apiVersion": "noderuntime.io/v1alpha1",
            "kind": kind,
            "metadata": {"name": of},
            "spec": spec,
        }
        for kind, of, spec in documents
    ]
    path.write_text(yaml.safe_dump_all(bodies))
    return str(path)


def profile(name: str = "web", **spec: Any) -> tuple[str, str, Json]:
    return ("SecurityProfile", name, WEB | spec)


def runtime(name: str = "restricted", **spec: Any) -> tuple[str, str, Json]:
    head = {"handler": name, "securityProfileRef": {"name": "web"}}
    return ("NodeRuntime", name, head | spec)


def told(said: Json) -> dict[str, int]:
    return {key: count for key, count in said["summary"].items() if count}
