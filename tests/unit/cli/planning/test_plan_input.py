"""What ``noderuntime plan`` reads: files, folders, an API server."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from noderuntime.cli import output, plan
from noderuntime.errors import UnavailableError
from tests.fakes.planned_cluster import PlannedCluster
from tests.unit.cli.planning.plan_kit import (
    BINDS,
    Run,
    a_file,
    profile,
)


def test_a_folder_is_read_with_all_below_it_and_other_kinds_are_passed_over(
    cluster: PlannedCluster, run: Run, tmp_path: Path
) -> None:
    cluster.pod("a", container=BINDS)
    deep = tmp_path / "deploy" / "noderuntime"
    (deep / ".github").mkdir(parents=True)
    a_file(deep, profile(capabilities={}), name="web.yml")
    (deep / "app.json").write_text('{"kind": "Deployment", "apiVersion": "apps/v1"}')
    (deep / ".github" / "ci.yaml").write_text("on: &all [push]\nx: *all\n")
    (deep / "README.md").write_text("# not: [yaml")
    assert run(str(tmp_path / "deploy"))[0] == output.REFUSED
    (deep / "bad.yaml").write_text("a: [")
    code, said = run(str(tmp_path / "deploy"))
    assert code == output.WRONG
    assert said.startswith("noderuntime: deploy/noderuntime/bad.yaml: is not YAML")


@pytest.mark.parametrize("text", ["", "kind: ConfigMap"])
def test_files_without_anything_of_ours_are_an_error(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert run(str(tmp_path / "x.yaml"), "--prune") == (
        output.WRONG,
        "noderuntime: the files hold no NodeRuntime and no SecurityProfile\n",
    )
    code, said = run(str(tmp_path / "none.yaml"))
    assert (code, said) == (
        output.WRONG,
        "noderuntime: cannot read none.yaml: No such file or directory\n",
    )


def test_too_many_files_are_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noderuntime.cli.planning.files.MOST_FILES", 2)
    for number in range(3):
        (tmp_path / f"{number}.yaml").write_text("")
    code, said = run(str(tmp_path))
    assert code == output.WRONG
    assert "name the folder of the manifests alone" in said


def test_an_api_server_that_is_away_is_code_1(
    cluster: PlannedCluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise UnavailableError("the API server at https://127.0.0.1:1: gone")

    monkeypatch.setattr(cluster, "items", away)
    assert run(profile()) == (1, "noderuntime: the API server at https://127.0.0.1:1: gone\n")


def test_the_files_are_read_before_a_cluster_is_asked() -> None:
    options = argparse.Namespace(files=["/nowhere"], kubeconfig="/nowhere")
    assert plan.main(options) == output.WRONG
