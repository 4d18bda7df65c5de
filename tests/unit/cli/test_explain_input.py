"""What ``noderuntime explain`` says to wrong input: one sentence that names it, and code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from noderuntime.cli import output
from tests.unit.cli.explain_kit import (
    a_pod,
    a_profile,
    run,
)


@pytest.fixture(autouse=True)
def on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("pod", "sentence"),
    [
        ("", "holds no Pod"),
        ("kind: Service", "holds no Pod"),
        ("- 1", "document 1 is no object of Kubernetes"),
        ("{}", "document 1: kind: is required"),
        ("kind: Pod", "Pod pod: spec: is required"),
        ("kind: Deployment\nspec: 7", "Deployment deployment: spec.template: input should be"),
        ("kind: Pod\nspec: {containers: []}", "spec.containers: list should have at least 1 item"),
        ("a: &x 1\nb: *x", "it has an alias"),
        ("kind: Pod\nkind: Job", "line 2: 'kind' is given twice"),
        ("{" * 5000, "is not YAML"),
        ("kind: [", "is not YAML"),
        ("\x00", "is not YAML"),
        (f"kind: Pod\nmetadata: {{name: '{'x' * 300}'}}", "metadata.name: string should have"),
    ],
)
def test_a_manifest_that_is_none_is_one_sentence_and_code_2(
    pod: str, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = run(capsys, tmp_path, pod)
    assert code == output.WRONG
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("container", "sentence"),
    [
        ({"securityContext": {"runAsUsr": 1}}, "securityContext.runAsUsr: there is no such field"),
        ({"securityContext": {"runAsUser": "1"}}, "runAsUser: input should be a valid integer"),
        ({"securityContext": {"runAsUser": 2**70}}, "securityContext.runAsUser: input should be"),
        ({"securityContext": {"privileged": "yes"}}, "privileged: input should be a valid bool"),
        (
            {"securityContext": {"seccompProfile": {"type": "Localhost"}}},
            "securityContext.seccompProfile: localhostProfile belongs to type: Localhost",
        ),
        ({"image": ""}, "spec.containers[0].image: string should have at least 1"),
        ({"image": "a\x1b[2Jb"}, "spec.containers[0].image: string should match"),
        ({"resources": {"limits": {"cpu": "much"}}}, "resources.limits.cpu: 'much' is not a"),
        ({"volumeMounts": [{"name": "no", "mountPath": "/x"}]}, "the Pod has no volume no"),
        ({"volumeDevices": [{"name": "no", "devicePath": "/x"}]}, "the Pod has no volume no"),
        ({"env": [{"value": "x"}]}, "spec.containers[0].env[0].name: is required"),
    ],
)
def test_a_wrong_field_is_named(
    container: dict[str, object],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    code, said = run(capsys, tmp_path, a_pod(**container))
    assert sentence in said
    assert code == output.WRONG
    assert said.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"privilegd": "Deny"}, "SecurityProfile mine: spec.privilegd: there is no such field"),
        ({"seccomp": {"deny": [{"names": ["no_such_call"]}]}}, "no_such_call"),
        ({"inherits": "nobody"}, "inherits: SecurityProfile nobody does not exist"),
    ],
)
def test_a_profile_that_no_node_could_serve_is_told_as_its_stall(
    spec: dict[str, object],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    profile = a_profile(tmp_path, "mine", **spec)
    code, said = run(capsys, tmp_path, a_pod(), "--profile", profile)
    assert (code, sentence in said) == (output.WRONG, True)


@pytest.mark.parametrize("user", ["root", "1:2:3", "-1", "4294967295", "1:", "¹"])
def test_a_user_that_is_no_number_is_refused(
    user: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = run(capsys, tmp_path, a_pod(), f"--user={user}")
    assert (code, "--user: " in said) == (output.WRONG, True)


def test_a_file_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = run(capsys, tmp_path, tmp_path / "none.yaml")
    assert (code, said) == (
        output.WRONG,
        "noderuntime: cannot read none.yaml: No such file or directory\n",
    )
