"""``noderuntime run`` as its user has it: the real command, a registry, crun; nothing is left."""

from __future__ import annotations

import json
import os
import resource
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.registry import Answer, FakeRegistry
from tests.root.run_kit import Scene, busybox_registry, ended, line_of, scene_of

LOOP = "trap 'echo stopped; exit 5' TERM; echo begun; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; echo begun; while :; do sleep 0.05; done"

pytestmark = pytest.mark.timeout(300)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def registry() -> Iterator[tuple[FakeRegistry, str]]:
    with busybox_registry() as found:
        yield found


@pytest.fixture
def scene(registry: tuple[FakeRegistry, str], tmp_path: Path) -> Iterator[Scene]:
    with scene_of(registry, tmp_path) as one:
        yield one


def test_a_pod_runs_and_its_exit_code_is_the_commands(scene: Scene) -> None:
    code, out, err = scene.run(scene.pod(scene.container("echo hello; echo oops >&2; exit 7")))
    assert (code, out) == (7, "hello\n")
    assert f"noderuntime: pulling {scene.image}\n" in err
    assert "oops\n" in err
    assert "container app ended with exit code 7" in err


def test_a_second_run_has_the_image_and_costs_little(scene: Scene) -> None:
    pod = scene.pod(scene.container("echo hello"))
    assert scene.run(pod)[0] == 0
    scene.registry.requests.clear()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert scene.run(pod) == (0, "hello\n", "")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert scene.registry.requests == []
    assert cpu_s < 5


def test_what_the_profile_refuses_is_told_as_a_node_would_and_ends_with_code_3(
    scene: Scene,
) -> None:
    privileged = scene.container("id", securityContext={"privileged": True})
    code, out, err = scene.run(scene.pod(privileged))
    assert (code, out) == (3, "")
    assert "privileged" in err
    assert "is refused by SecurityProfile web (revision " in err
    scene.profile(runAs={"nonRoot": True})
    rooted = scene.container("id", securityContext={"runAsUser": 0})
    code, _, err = scene.run(scene.pod(rooted))
    assert code == 3
    assert "runAs.nonRoot is true; set runAsUser to another user than 0" in err


def test_what_audit_lets_through_is_told(scene: Scene) -> None:
    scene.profile(mode="Audit", runAs={"nonRoot": True})
    code, out, err = scene.run(
        scene.pod(scene.container("id -u", securityContext={"runAsUser": 0}))
    )
    assert (code, out) == (0, "0\n")
    assert "recorded only: containers[app].securityContext.runAsUser: 0; runAs.nonRoot" in err


def test_a_pod_has_its_volumes_variables_and_network(scene: Scene) -> None:
    config: dict[str, object] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c"},
        "data": {"k": "from c"},
    }
    secret: dict[str, object] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "stringData": {"p": "pw"},
    }
    mounts = [
        {"name": "scratch", "mountPath": "/scratch", "subPath": "below"},
        {"name": "memory", "mountPath": "/memory"},
        {"name": "config", "mountPath": "/config"},
        {"name": "told", "mountPath": "/told"},
    ]
    script = (
        "cat /scratch/made /config/k /told/name; echo; echo $(GREETING) $PASSWORD; echo x > /memory/x; "
        'ip -4 -o addr show eth0 | grep -c "$IP"; grep -c "$IP" /etc/hosts'
    )
    app = scene.container(script.replace("grep", "busybox grep"), volumeMounts=mounts)
    app["image"] = scene.image
    app["env"] = [
        {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    first = scene.container(
        "echo made > /scratch/made", "first", volumeMounts=[{**mounts[0], "subPath": "below"}]
    )
    volumes = [
        {"name": "scratch", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "config", "configMap": {"name": "c"}},
        {
            "name": "told",
            "downwardAPI": {
                "items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]
            },
        },
    ]
    user = {"runAsUser": 0}
    pod = scene.pod(app, initContainers=[first], volumes=volumes, securityContext=user)
    code, out, err = scene.run(pod, config, secret)
    assert code == 0, out + err
    assert out.splitlines() == [
        "[app] made",
        f"[app] from cpod-{scene.token}",
        "[app] from c pw",
        "[app] 1",
        "[app] 1",
    ]


def test_a_link_that_a_container_made_leads_no_subpath_out_of_its_volume(scene: Scene) -> None:
    outside = scene.folder / "outside"
    outside.mkdir()
    mount = {"name": "v", "mountPath": "/v"}
    first = scene.container(f"busybox ln -s {outside} /v/link", "first", volumeMounts=[mount])
    app = scene.container(
        "busybox touch /v/x; echo $?", volumeMounts=[{**mount, "subPath": "link"}]
    )
    pod = scene.pod(
        app,
        initContainers=[first],
        volumes=[{"name": "v", "emptyDir": {}}],
        securityContext={"runAsUser": 0},
    )
    _, out, err = scene.run(pod)
    assert list(outside.iterdir()) == [], out + err


def test_init_containers_and_sidecars_have_their_order(scene: Scene) -> None:
    helper = scene.container(
        "trap 'echo side ended; exit 0' TERM; echo side; while :; do sleep 0.05; done",
        "side",
        restartPolicy="Always",
    )
    first = scene.container("echo one", "one")
    pod = scene.pod(scene.container("sleep 0.3; echo app"), initContainers=[first, helper])
    code, out, err = scene.run(pod)
    assert code == 0, err
    lines = out.splitlines()
    assert sorted(lines) == ["[app] app", "[one] one", "[side] side", "[side] side ended"]
    assert lines.index("[one] one") == 0
    assert lines.index("[app] app") < lines.index("[side] side ended")


def test_an_init_container_that_fails_ends_the_pod(scene: Scene) -> None:
    pod = scene.pod(
        scene.container("echo app"), initContainers=[scene.container("exit 9", "first")]
    )
    code, out, err = scene.run(pod)
    assert (code, out) == (9, "")
    assert "container first ended with exit code 9" in err


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_stops_the_pod_with_its_grace(scene: Scene, number: int, wanted: int) -> None:
    process = scene.start(scene.pod(scene.container(LOOP)))
    assert line_of(process) == b"begun\n"
    process.send_signal(number)
    code, out, err = ended(process)
    assert (code, out) == (wanted, "stopped\n"), err


def test_a_second_ctrl_c_kills(scene: Scene) -> None:
    pod = scene.pod(scene.container(DEAF), terminationGracePeriodSeconds=600)
    process = scene.start(pod)
    assert line_of(process) == b"begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while b"stopping the Pod" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130


def test_the_time_is_up(scene: Scene) -> None:
    code, out, err = scene.run(scene.pod(scene.container(LOOP)), more=("--timeout", "6"))
    assert code == 124
    assert out in ("begun\nstopped\n", "")  # a machine under load may not have come so far
    assert "the time is up (6 s)" in err


def test_a_reader_that_goes_away_stops_the_pod(scene: Scene) -> None:
    loop = "while :; do echo line; sleep 0.02; done"
    process = scene.start(scene.pod(scene.container(loop), terminationGracePeriodSeconds=0))
    assert line_of(process) == b"line\n"
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(90) == 141


def test_ctrl_c_in_a_pull_that_hangs_ends_it(scene: Scene) -> None:
    asked = scene.registry.requests
    scene.registry.script = lambda request: Answer(200, b"x" * 100_000, pace_s=0.5)
    try:
        asked.clear()
        process = scene.start(scene.pod(scene.container("true")))
        until = time.monotonic() + 60
        while not asked and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 130
    finally:
        scene.registry.script = lambda request: None


def test_a_killed_command_takes_its_pod_with_it(scene: Scene) -> None:
    process = scene.start(scene.pod(scene.container(DEAF)))
    assert line_of(process) == b"begun\n"
    process.kill()
    ended(process)
    assert scene.left() == set()


def test_the_next_run_removes_what_a_command_killed_with_its_runtime_left(scene: Scene) -> None:
    process = scene.start(scene.pod(scene.container(DEAF)))
    assert line_of(process) == b"begun\n"
    (runtime,) = children(process.pid)
    os.kill(runtime, signal.SIGSTOP)  # or it would hear of its starter's end first
    process.kill()
    os.kill(runtime, signal.SIGKILL)
    ended(process)
    assert any(each.startswith("process") for each in scene.traces() - scene.before)
    assert scene.run(scene.pod(scene.container("echo next")))[:2] == (0, "next\n")
    assert scene.left() == set()


def test_two_at_once_do_not_meet(scene: Scene) -> None:
    first = scene.start(scene.pod(scene.container(LOOP)))
    assert line_of(first) == b"begun\n"
    code, out, _ = scene.run(scene.pod(scene.container("echo second")))
    assert (code, out) == (0, "second\n")
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert ended(first)[:2] == (143, "stopped\n")


def test_a_host_port_is_served(scene: Scene) -> None:
    port = 20000 + secrets.randbelow(10000)
    script = "echo begun; busybox nc -l -p 8080 -e /bin/busybox tr a-z A-Z"
    app = scene.container(script, ports=[{"containerPort": 8080, "hostPort": port}])
    process = scene.start(scene.pod(app))
    assert line_of(process) == b"begun\n"
    done = subprocess.run(
        ("busybox", "nc", "-w", "5", "127.0.0.1", str(port)),
        input=b"hello",
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"HELLO"
    assert ended(process)[0] == 0


def test_a_user_namespace(scene: Scene) -> None:
    scene.profile(userNamespace="Required")
    app = scene.container(
        "cat /proc/self/uid_map; touch /v/x && echo written",
        volumeMounts=[{"name": "v", "mountPath": "/v"}],
    )
    pod = scene.pod(app, hostUsers=False, volumes=[{"name": "v", "emptyDir": {}}])
    code, out, err = scene.run(pod)
    assert code == 0, err
    assert str(1 << 30)[:4] in out
    assert "written" in out


def test_what_only_a_cluster_has_is_refused_before_anything_is_made(scene: Scene) -> None:
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    code, out, err = scene.run(scene.pod(scene.container("id"), volumes=[claim]))
    assert (code, out) == (2, "")
    assert (
        "spec.volumes[0] (data): persistentVolumeClaim: this kind of volume is there in a cluster"
        in err
    )
    assert not scene.state.exists()


def test_the_decision_log_is_the_runs_own(scene: Scene) -> None:
    assert scene.run(scene.pod(scene.container("true")))[0] == 0
    assert json.dumps([str(p) for p in scene.state.rglob("decisions*")]) == "[]"
