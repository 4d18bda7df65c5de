"""``noderuntime explain`` run in this process, and what it is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from noderuntime.cli.main import main

ROOT = Path(__file__).parents[3]


EXAMPLES = ROOT / "examples"


PROFILE = str(EXAMPLES / "securityprofile.yaml")


RUNTIME = str(EXAMPLES / "noderuntime.yaml")


def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pod: str | Path, *more: str
) -> tuple[int, str]:
    """Return the exit code and what was said: on stdout, or on stderr for wrong input."""
    if isinstance(pod, str):
        (tmp_path / "pod.yaml").write_text(pod)
        pod = tmp_path / "pod.yaml"
    profile = [] if "--profile" in more else ["--profile", PROFILE]
    code = main(["explain", str(pod), *profile, *more])
    said = capsys.readouterr()
    return code, said.out or said.err.replace(f"{tmp_path}/", "")


def run_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pod: str | Path, *more: str
) -> tuple[int, Any]:
    code, said = run(capsys, tmp_path, pod, "-o", "json", *more)
    return code, json.loads(said)["pods"][0]


def a_pod(**of_container: object) -> str:
    container = {"name": "main", "image": "127.0.0.1:5000/app:1", **of_container}
    return json.dumps(
        {"kind": "Pod", "metadata": {"name": "app"}, "spec": {"containers": [container]}}
    )


def a_profile(tmp_path: Path, name: str = "mine", **spec: object) -> str:
    path = tmp_path / f"{name}.yaml"
    document = {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": "SecurityProfile",
        "metadata": {"name": name},
        "spec": spec,
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


def denied(container: Any) -> list[str]:
    return [each["field"] for row in container["rules"] for each in row["denials"]]


def verdicts(part: Any) -> dict[str, str]:
    return {row["field"]: row["verdict"] for row in part["rules"]}
