"""``noderuntime record`` as its user has it: what is in the profile, that it is enough, what is left."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.registry import FakeRegistry
from tests.root.run_kit import Scene, busybox_registry, ended, line_of, scene_of

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
ROOT_USER = {"runAsUser": 0}


@pytest.fixture(scope="module")
def registry() -> Iterator[tuple[FakeRegistry, str]]:
    with busybox_registry() as found:
        yield found


@pytest.fixture
def scene(registry: tuple[FakeRegistry, str], tmp_path: Path) -> Iterator[Scene]:
    with scene_of(registry, tmp_path) as one:
        yield one


def start(scene: Scene, *documents: dict[str, object]) -> subprocess.Popen[bytes]:
    output = str(scene.folder / "profile.yaml")
    return scene.start_verb("record", *documents, more=("--name", "web", "-o", output))


def recorded(scene: Scene, pod: dict[str, object]) -> dict[str, Any]:
    """Record a Pod that ends by itself; returns the profile's spec."""
    code, _, err = ended(start(scene, pod))
    assert code == 0, err
    return spec_of(scene)


def spec_of(scene: Scene) -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((scene.folder / "profile.yaml").read_text())["spec"]
    return spec


def calls_of(spec: dict[str, Any]) -> set[str]:
    return {name for group in spec["seccomp"]["allow"] for name in group["names"]}


def test_the_profile_is_enough_for_the_same_and_not_for_more(scene: Scene) -> None:
    pod = scene.pod(scene.container("echo one > /tmp/f; cat /tmp/f; true"))
    spec = recorded(scene, pod)
    assert spec["rootFilesystem"] == "ReadWrite"
    assert "# app wrote /tmp/f" in (scene.folder / "profile.yaml").read_text()
    assert spec["runAs"]["users"] == [{"min": 1000, "max": 1000}]
    assert spec["capabilities"] == {"default": []}
    assert scene.run(pod)[:2] == (0, "one\n")
    more = scene.pod(scene.container("mkfifo /tmp/pipe; echo $?"))
    code, out, err = scene.run(more)
    assert (code, out) == (0, "1\n")
    assert "mkfifo: /tmp/pipe: Operation not permitted" in err
    code, _, err = scene.run(scene.pod(scene.container("id", securityContext=ROOT_USER)))
    assert code == 3
    assert "runAs.nonRoot is true" in err


def test_the_root_is_read_only_where_only_volumes_are_written(scene: Scene) -> None:
    mounts = [{"name": "own", "mountPath": "/tmp"}]
    pod = scene.pod(
        scene.container("echo one > /tmp/f; cat /tmp/f", volumeMounts=mounts),
        volumes=[{"name": "own", "emptyDir": {}}],
    )
    assert recorded(scene, pod)["rootFilesystem"] == "ReadOnly"
    assert scene.run(pod)[:2] == (0, "one\n")


def test_a_setuid_program_is_noticed(scene: Scene) -> None:
    def own(script: str) -> dict[str, object]:
        mounts = [{"name": "own", "mountPath": "/own"}]
        return scene.container(script, volumeMounts=mounts)

    script = "cp /bin/busybox /own/id && chmod 4755 /own/id"
    pod = scene.pod(
        own("/own/id -u; true"),
        initContainers=[{**own(script), "name": "first", "securityContext": ROOT_USER}],
        volumes=[{"name": "own", "emptyDir": {}}],
    )
    spec = recorded(scene, pod)
    assert spec["noNewPrivileges"] == "Optional"
    assert {"capset", "setresuid"} & calls_of(spec)
    assert scene.run(pod)[0] == 0


def test_a_server_is_recorded_until_ctrl_c_and_the_profile_is_there(scene: Scene) -> None:
    script = "trap 'exit 0' TERM; echo begun; while :; do sleep 0.1; done"
    process = start(scene, scene.pod(scene.container(script)))
    assert line_of(process) == b"begun\n"
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert (code, spec_of(scene)["seccomp"]["base"]) == (0, "DenyAll")
    assert "the profile is in" in err


def test_a_container_that_fails_is_recorded_and_its_code_is_the_commands(scene: Scene) -> None:
    code, _, _ = ended(start(scene, scene.pod(scene.container("exit 7"))))
    assert (code, spec_of(scene)["seccomp"]["base"]) == (7, "DenyAll")


def test_a_pod_that_no_profile_allows_is_refused_and_nothing_is_written(scene: Scene) -> None:
    local = {"seccompProfile": {"type": "Localhost", "localhostProfile": "x.json"}}
    code, _, err = ended(start(scene, scene.pod(scene.container("id", securityContext=local))))
    assert code == 3
    assert "use seccompProfile.type: RuntimeDefault" in err
    assert not (scene.folder / "profile.yaml").exists()


def test_a_killed_recorder_takes_its_pod_with_it(scene: Scene) -> None:
    process = start(scene, scene.pod(scene.container("echo begun; while :; do sleep 0.1; done")))
    assert line_of(process) == b"begun\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert scene.left() == set()
    assert not list(scene.folder.glob("*.yaml.*"))


def test_without_a_file_the_profile_alone_is_on_stdout(scene: Scene) -> None:
    code, out, err = ended(scene.start_verb("record", scene.pod(scene.container("echo hello"))))
    assert code == 0
    assert yaml.safe_load(out)["metadata"]["name"] == f"pod-{scene.token}"
    assert "hello\n" in err
