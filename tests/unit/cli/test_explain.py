"""``noderuntime explain`` as a user runs it: files in, a verdict and an exit code out."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from noderuntime.cli import explain, output
from tests.unit.cli.explain_kit import (
    EXAMPLES,
    PROFILE,
    ROOT,
    RUNTIME,
    a_pod,
    a_profile,
    denied,
    run,
    run_json,
    verdicts,
)

GOLDEN = ROOT / "tests" / "golden" / "cli"

BREAKS_MUCH = """
apiVersion: v1
kind: Pod
metadata: {name: greedy, namespace: web}
spec:
  hostPID: true
  hostNetwork: true
  securityContext:
    sysctls: [{name: kernel.msgmax, value: "1"}]
  volumes:
    - {name: logs, hostPath: {path: /var}}
    - {name: tools, image: {reference: elsewhere.example/tools:1}}
    - {name: scratch, emptyDir: }
  containers:
    - name: main
      image: docker.io/library/redis:8
      securityContext:
        runAsUser: 0
        procMount: Unmasked
        capabilities: {add: [SYS_ADMIN, NET_RAW]}
        seccompProfile: {type: Localhost, localhostProfile: mine.json}
      resources: {limits: {cpu: "4", memory: 1Gi}}
      volumeMounts:
        - {name: logs, mountPath: /logs, subPath: log}
        - {name: tools, mountPath: /tools}
        - {name: scratch, mountPath: /scratch, mountPropagation: Bidirectional}
  ephemeralContainers:
    - {name: debugger, image: "127.0.0.1:5000/debug:1", targetContainerName: main}
"""


@pytest.fixture(autouse=True)
def on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


TIGHTER = ("--profile", PROFILE, "--profile", str(EXAMPLES / "tighter.yaml"))
SHOWN: dict[str, tuple[str | Path, tuple[str, ...], int]] = {
    "explain_example": (EXAMPLES / "web.yaml", ("--node-runtime", RUNTIME), 0),
    "explain_tighter": (EXAMPLES / "web.yaml", TIGHTER, output.REFUSED),
    "explain_refused": (BREAKS_MUCH, ("--node-runtime", RUNTIME), output.REFUSED),
}


@pytest.mark.parametrize("golden", SHOWN)
def test_what_people_are_shown_is_the_golden_text(
    golden: str, update_golden: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pod, more, code = SHOWN[golden]
    found, said = run(capsys, tmp_path, pod, *more)
    path = GOLDEN / f"{golden}.txt"
    if update_golden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said)
    assert said == path.read_text(), "review the difference, then run with --update-golden"
    assert found == code


def test_every_denial_is_told_and_not_only_the_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, pod = run_json(capsys, tmp_path, BREAKS_MUCH, "--node-runtime", RUNTIME)
    assert code == output.REFUSED
    assert pod["error"] == ""
    assert [name for name, verdict in verdicts(pod).items() if verdict == "refused"] == [
        "hostNamespaces",
        "sysctls",
    ]
    main_container, debugger = pod["containers"]
    own = "containers[main]"
    assert sorted(set(denied(main_container))) == [
        f"{own}.image",
        f"{own}.resources.limits.cpu",
        f"{own}.resources.limits.memory",
        f"{own}.securityContext.capabilities.add",
        f"{own}.securityContext.procMount",
        f"{own}.securityContext.runAsUser",
        f"{own}.securityContext.seccompProfile.localhostProfile",
        f"{own}.volumeMounts[/logs]",
        f"{own}.volumeMounts[/scratch].mountPropagation",
    ]
    shown = denied(main_container)
    assert shown.count(f"{own}.securityContext.capabilities.add") == 2
    assert shown.count(f"{own}.image") == 2  # its own, and the one that is a volume
    assert debugger["place"] == "ephemeralContainers"
    assert denied(debugger) == []
    assert main_container["spec"] is None  # what would not run has none


def test_what_would_run_is_the_config_json_of_the_policy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, pod = run_json(capsys, tmp_path, EXAMPLES / "web.yaml", "--node-runtime", RUNTIME)
    [web] = pod["containers"]
    assert (code, pod["verdict"], pod["handler"]) == (0, "runs", "restricted")
    process = web["spec"]["process"]
    assert process["user"] == {"uid": 1000, "gid": 1000, "additionalGids": [1000]}
    assert process["noNewPrivileges"] is True
    assert process["capabilities"]["bounding"] == []
    assert web["spec"]["linux"]["resources"]["memory"] == {"limit": 128 << 20}
    assert '-    "readonly": false' in web["diff"]
    assert '+    "readonly": true' in web["diff"]


def test_without_a_user_it_depends_on_the_image_until_somebody_says_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pod = a_pod(command=["/app"])
    code, said = run(capsys, tmp_path, pod)
    assert code == explain.UNKNOWN
    assert "runAsUser is known by the image alone" in said
    assert run(capsys, tmp_path, pod, "--user", "1000:1000")[0] == 0
    code, found = run_json(capsys, tmp_path, pod, "--user", "0")
    assert code == output.REFUSED
    assert set(denied(found["containers"][0])) == {"containers[main].securityContext.runAsUser"}


@pytest.mark.parametrize(
    ("user", "code"), [("", 3), ("0", 3), ("1000", 0), ("1000:users", 0), ("app", 4)]
)
def test_an_image_config_tells_user_and_command(
    user: str, code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"config": {"User": user, "Entrypoint": ["/app"], "Cmd": None}}))
    found, pod = run_json(capsys, tmp_path, a_pod(), "--image-config", str(config))
    assert found == code
    if code == 0:
        assert pod["containers"][0]["spec"]["process"]["args"] == ["/app"]


def test_a_section_in_audit_records_and_refuses_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    profile = a_profile(tmp_path, auditSections=["capabilities"])
    pod = a_pod(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}})
    code, found = run_json(capsys, tmp_path, pod, "--profile", profile)
    [container] = found["containers"]
    assert (code, verdicts(container)["capabilities"]) == (0, "recorded")
    assert "CAP_SYS_ADMIN" in container["spec"]["process"]["capabilities"]["bounding"]


def test_in_audit_nothing_depends_on_the_images_user(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    strict = {"runAs": {"nonRoot": True}}
    for more, code in (({}, explain.UNKNOWN), ({"auditSections": ["runAs"]}, 0)):
        profile = a_profile(tmp_path, "mine", **strict, **more)
        assert run(capsys, tmp_path, a_pod(), "--profile", profile)[0] == code


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "noderuntime", "explain", str(EXAMPLES / "web.yaml")]
    command += ["--profile", PROFILE, "-o", "json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")


def test_an_exception_holds_for_its_namespace(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    exception = {
        "namespace": "legacy",
        "sections": ["privileged"],
        "expires": "2999-01-01T00:00:00Z",
    }
    profile = a_profile(tmp_path, exceptions=[exception])
    pod = a_pod(securityContext={"privileged": True})
    assert run(capsys, tmp_path, pod, "--profile", profile)[0] == output.REFUSED
    code, said = run(capsys, tmp_path, pod, "--profile", profile, "--namespace", "legacy")
    assert code == 0
    assert "an exception holds for this Pod now; only recorded: privileged" in said


def test_a_pod_is_read_from_standard_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(a_pod(securityContext={"runAsUser": 1000}).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run(capsys, tmp_path, Path("-"))[0] == 0


def test_the_worst_of_several_pods_is_the_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good = a_pod(securityContext={"runAsUser": 1000})
    code, said = run(capsys, tmp_path, f"{good}\n---\n{BREAKS_MUCH}\n---\n{good}")
    assert code == output.REFUSED
    assert said.count("would run") == 2


@pytest.mark.parametrize(
    ("default", "sentence"),
    [
        (None, "NodeRuntime restricted has no default: without one it would run under no profile"),
        ({}, "the default of NodeRuntime restricted governs it"),
        ({"exemptNamespaces": ["default"]}, "its namespace default is exempt from the default of"),
    ],
)
def test_a_pod_that_names_no_handler_is_told_whether_it_is_governed(
    default: dict[str, Any] | None,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    document = yaml.safe_load(Path(RUNTIME).read_text())
    document["spec"]["default"] = default
    other = {
        **document,
        "metadata": {"name": "other"},
        "spec": {**document["spec"], "default": None},
    }
    other["spec"]["handler"] = "other"
    pod = yaml.safe_load(a_pod(securityContext={"runAsUser": 1000}))
    pod["spec"].pop("runtimeClassName", None)
    file = tmp_path / "runtime.yaml"
    file.write_text(yaml.safe_dump(document))
    code, said = run(
        capsys, tmp_path, yaml.safe_dump(pod), "--profile", PROFILE, "--node-runtime", str(file)
    )
    assert (code, sentence in said) == (0, True)
    file.write_text(yaml.safe_dump_all([document, other]))
    several = (yaml.safe_dump(pod), "--profile", PROFILE, "--node-runtime", str(file))
    code, said = run(capsys, tmp_path, *several)
    if default == {}:
        assert sentence in said
    else:
        assert "0 of them with the Pod's runtimeClassName, none, nor one whose default" in said


def test_what_no_profile_lets_run_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pod = a_pod(securityContext={"runAsUser": 1000, "capabilities": {"add": ["NO_SUCH"]}})
    code, said = run(capsys, tmp_path, pod)
    assert code == output.REFUSED
    assert "REFUSED under any profile" in said
    assert "NO_SUCH is not a Linux capability" in said


def test_of_several_profiles_the_heir_is_meant_or_the_named_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = [a_profile(tmp_path, "base"), a_profile(tmp_path, "heir", inherits="base")]
    several = [word for file in files for word in ("--profile", file)]
    pod = a_pod(command=["/app"])
    assert "under SecurityProfile heir" in run(capsys, tmp_path, pod, *several)[1]
    named = run(capsys, tmp_path, pod, *several, "--profile-name", "base")[1]
    assert "under SecurityProfile base" in named
    third = ["--profile", a_profile(tmp_path, "third")]
    code, said = run(capsys, tmp_path, pod, *several, *third)
    assert (code, "say which with --profile-name" in said) == (output.WRONG, True)


def test_colour_is_for_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in run(capsys, tmp_path, EXAMPLES / "web.yaml")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b[32m+" in run(capsys, tmp_path, EXAMPLES / "web.yaml")[1]


def test_a_node_is_taken_to_have_what_the_profile_demands_of_its_kernel(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    profile = a_profile(
        tmp_path,
        appArmor={"name": "tight"},
        seLinux={"type": "container_t", "level": "s0:c1,c2"},
    )
    code, pod = run_json(capsys, tmp_path, a_pod(), "--profile", profile)
    [container] = pod["containers"]
    assert (code, container["error"]) == (0, "")
    assert [note.partition(":")[0] for note in pod["notes"]] == [
        "appArmor demands AppArmor",
        "seLinux demands SELinux",
    ]
    found = verdicts(container)
    assert (found["appArmor"], found["seLinux"]) == ("set", "set")
    process = container["spec"]["process"]
    assert process["apparmorProfile"] == "tight"
    assert process["selinuxLabel"] == "system_u:system_r:container_t:s0:c1,c2"


def test_an_apparmor_profile_and_a_label_of_the_pods_own_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    security = {
        "appArmorProfile": {"type": "Localhost", "localhostProfile": "loose"},
        "seLinuxOptions": {"type": "spc_t"},
    }
    code, pod = run_json(
        capsys, tmp_path, a_pod(securityContext=security), "--profile", a_profile(tmp_path)
    )
    assert (code, denied(pod["containers"][0])) == (
        output.REFUSED,
        [
            "containers[main].securityContext.appArmorProfile.localhostProfile",
            "containers[main].securityContext.seLinuxOptions.type",
        ],
    )
