"""``noderuntime run`` without root: what it reads, what it says, and what it makes of a Pod."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from noderuntime.cli import run
from noderuntime.cli.main import main
from noderuntime.cli.manifest.workloads import workloads
from noderuntime.cli.running import environment, request, session, sources, volumes
from noderuntime.cli.running.apparmor import SharedAppArmor
from noderuntime.cli.running.here import Here
from noderuntime.cli.running.places import Place, left, taken
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import ConfigError, DeniedError, FailedPreconditionError, UnavailableError
from noderuntime.policy.apparmor import DEFAULT
from tests.fakes.lsm import FakeAppArmor

PROFILE = """
apiVersion: noderuntime.io/v1alpha1
kind: SecurityProfile
metadata: {name: web}
spec: {}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
%s
  containers:
    - name: app
      image: a.example/b:1
%s
"""


def here_of(tmp_path: Path, pod: str) -> Here:
    data = pod.encode()
    return Here(
        workload=workloads("pod.yaml", data, "default")[0],
        place=Place(number=3, run=tmp_path / "run", state=tmp_path / "state"),
        sources=sources.read("pod.yaml", data, "default"),
        cgroup="/x",
    )


def ran(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pod: str, *more: str, profile: str = PROFILE
) -> tuple[int, str]:
    """Return the exit code and stderr."""
    files = {"pod.yaml": pod, "profile.yaml": profile}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    words = ["run", str(tmp_path / "pod.yaml"), "--profile", str(tmp_path / "profile.yaml"), *more]
    code = main(words)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "container", "said"),
    [
        (
            "  volumes: [{name: d, nfs: {server: a, path: /}}]",
            "",
            "spec.volumes[0] (d): nfs: this kind",
        ),
        (
            "  volumes: [{name: c, configMap: {name: c}}]",
            "",
            "the ConfigMap shop/c is in no cluster here",
        ),
        (
            "  volumes: [{name: t, projected: {sources: [{serviceAccountToken: {path: t}}]}}]",
            "",
            "spec.volumes[0] (t): projected: a token or bundle is given out by a cluster alone",
        ),
        (
            "  volumes: [{name: c, downwardAPI: {items: [{path: ../x, fieldRef: {fieldPath: metadata.name}}]}}]",
            "",
            "../x must be a relative path",
        ),
        ("  volumes: [{name: h, emptyDir: {medium: HugePages}}]", "", "huge pages"),
        (
            "",
            "      env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]",
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: spec.x is not known",
        ),
        (
            "",
            "      env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]",
            "the Secret shop/s is in no cluster here",
        ),
        ("", "      env: [{name: A, valueFrom: {other: {}}}]", "other: there is no such field"),
        ("", "      ports: [{containerPort: 70000}]", "ports[0].containerPort"),
    ],
)
def test_what_cannot_be_run_here_is_refused_by_its_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, container: str, said: str
) -> None:
    code, err = ran(tmp_path, capsys, POD % (spec, container))
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_one_pod_is_run_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod = POD % ("", "")
    code, err = ran(tmp_path, capsys, f"{pod}---{pod.replace('name: web,', 'name: two,')}")
    assert code == 2
    assert "holds 2 Pods (Pod web, Pod two); one is run at a time" in err


@pytest.mark.parametrize("timeout", ["0", "-1", "nan"])
def test_a_timeout_is_more_than_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], timeout: str
) -> None:
    code, err = ran(tmp_path, capsys, POD % ("", ""), f"--timeout={timeout}")
    assert (code, "--timeout: must be more than 0" in err) == (2, True)


def test_who_is_not_root_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    code, err = ran(tmp_path, capsys, POD % ("", ""))
    assert (code, err) == (1, "noderuntime: only root can run containers: use sudo\n")


@pytest.mark.parametrize("missing", ["conmon", "crun"])
def test_a_missing_program_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)

    def which(name: str) -> str | None:
        return None if name == missing else f"/usr/bin/{name}"

    monkeypatch.setattr(session, "which", which)
    code, err = ran(tmp_path, capsys, POD % ("", ""))
    assert code == 1
    assert f"{missing} is not on the PATH: install the package {missing}" in err


@pytest.mark.parametrize(
    ("codes", "wanted"), [({"a": 0, "b": 0}, 0), ({"a": 0, "b": 4, "c": 5}, 4), ({"a": 255}, 255)]
)
def test_the_first_code_that_is_not_0_is_the_commands(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    codes: dict[str, int],
    wanted: int,
) -> None:
    async def ended(*_: object) -> dict[str, int]:
        return codes

    monkeypatch.setattr(run, "_in_session", ended)
    code, err = ran(tmp_path, capsys, POD % ("", ""))
    assert code == wanted
    assert err.count("ended with exit code") == sum(map(bool, codes.values()))


@pytest.mark.parametrize(
    ("error", "wanted"), [(DeniedError("no \x1b[2J"), 3), (UnavailableError("gone"), 1)]
)
def test_an_error_is_one_sentence_and_its_code(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    wanted: int,
) -> None:
    async def fails(*_: object) -> dict[str, int]:
        raise error

    monkeypatch.setattr(run, "_in_session", fails)
    code, err = ran(tmp_path, capsys, POD % ("", ""))
    assert code == wanted
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


def test_references_in_words_are_replaced() -> None:
    known = {"A": b"1", "B": b"$(A)"}
    assert environment.expanded("$(A) $$(A) $(C) $(B) $A", known) == "1 $(A) $(C) $(A) $A"


def test_variables_come_from_where_they_are(tmp_path: Path) -> None:
    pod = POD % (
        "  serviceAccountName: robot",
        """
      resources: {limits: {memory: 100Mi, cpu: 1500m}}
      envFrom: [{prefix: P_, configMapRef: {name: c}}, {secretRef: {name: none, optional: true}}]
      env:
        - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
        - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
        - {name: WHO, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
        - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
        - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
        - {name: BIN, valueFrom: {secretKeyRef: {name: s, key: b}}}
        - {name: GONE, valueFrom: {secretKeyRef: {name: s, key: none, optional: true}}}
        - {name: BOTH, value: "$(LABEL)-$(P_K)"}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}, data: {K: v}}
---
{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: shop}, data: {b: /w==}}
""",
    )
    here = here_of(tmp_path, pod)
    found = environment.of(here, here.workload.pod.spec.containers[0], "198.18.3.2", "c")
    assert found == {
        "P_K": b"v",
        "LABEL": b"web",
        "IP": b"198.18.3.2",
        "HOST": b"198.18.3.1",
        "WHO": b"robot",
        "MEM": b"100",
        "CPU": b"2",
        "BIN": b"\xff",
        "BOTH": b"web-v",
    }


def test_the_request_is_for_this_machine(tmp_path: Path) -> None:
    pod = POD % (
        "  hostUsers: false\n  volumes: [{name: v, emptyDir: {}}, {name: h, hostPath: {path: /srv}}]",
        "      ports: [{containerPort: 80, hostPort: 8080}]\n"
        "      volumeMounts: [{name: v, mountPath: /v}, {name: h, mountPath: /h}]",
    )
    here = here_of(tmp_path, pod)
    config = request.sandbox(here)
    assert config.metadata.uid == here.uid
    assert config.linux.cgroup_parent == "/x"
    assert config.port_mappings[0].host_port == 8080
    image = pb.Image(id="sha256:abc", uid=pb.Int64Value(value=101))
    made = request.container(here, "containers", 0, image, "198.18.3.2")
    sources_of = {mount.container_path: mount.host_path for mount in made.mounts}
    assert sources_of["/v"] == str(here.folder / "volumes/kubernetes.io~empty-dir/v")
    assert sources_of["/h"] == "/srv"
    assert made.linux.security_context.run_as_user.value == 101
    assert made.image.image == "sha256:abc"
    assert {m.host_id for mount in made.mounts for m in mount.uidMappings} == {here.first_id}
    assert "/var/lib/kubelet" not in str(made)


def test_root_is_refused_where_the_pod_says_so(tmp_path: Path) -> None:
    here = here_of(tmp_path, POD % ("  securityContext: {runAsNonRoot: true}", ""))
    with pytest.raises(
        FailedPreconditionError, match="runAsNonRoot is true, and it would run as root"
    ):
        request.container(here, "containers", 0, pb.Image(id="sha256:abc"), "")


def test_volumes_hold_what_the_file_says(tmp_path: Path) -> None:
    pod = POD % (
        """  volumes:
    - {name: s, secret: {secretName: s, defaultMode: 0400, items: [{key: k, path: deep/er}]}}
    - name: p
      projected:
        sources:
          - {secret: {name: s}}
          - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}""",
        """
---
{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: shop}, stringData: {k: v}}""",
    )
    here = here_of(tmp_path, pod)
    volumes.require_possible(here)
    volumes.make(here)
    volumes.tell(here, "198.18.3.2")
    folder = here.folder / "volumes"
    secret = folder / "kubernetes.io~secret/s/deep/er"
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("v", 0o400)
    assert (folder / "kubernetes.io~projected/p/labels").read_text() == 'app="web"'
    assert (folder / "kubernetes.io~projected/p/k").read_text() == "v"
    assert "198.18.3.2\tweb\n" in (here.folder / "etc-hosts").read_text()


def test_places_are_held_one_by_one_and_leave_nothing(tmp_path: Path) -> None:
    root, state = tmp_path / "run", tmp_path / "state"
    with taken(state, run=root) as one:
        with taken(state, run=root) as two:
            assert (one.number, two.number) == (0, 1)
            assert one.bridge != two.bridge
            assert not set(one.subnets) & set(two.subnets)
        with taken(state, run=root) as again:
            assert again.number == 1
    assert not root.exists()


def test_what_a_dead_run_left_is_found_and_its_place_not_taken(tmp_path: Path) -> None:
    root, state = tmp_path / "run", tmp_path / "state"
    (root / "0").mkdir(parents=True)
    (root / "0" / "config.toml").touch()
    with left(run=root) as found:
        assert [place.number for place in found] == [0]
        with left(run=root) as by_another:
            assert by_another == ()
    with taken(state, run=root) as place:
        assert place.number == 1
    (root / "0" / "config.toml").unlink()
    with taken(state, run=root) as place:
        assert place.number == 0


def test_a_place_is_held_as_long_as_its_runtime_has_the_lock(tmp_path: Path) -> None:
    root, state = tmp_path / "run", tmp_path / "state"
    with taken(state, run=root) as place:
        runtime = subprocess.Popen(("sleep", "60"), pass_fds=(place.lock,))
        (root / "0" / "config.toml").parent.mkdir()
        (root / "0" / "config.toml").touch()
        lock = root / "0.lock"
        lock.rename(root / "kept")  # a command that is killed does not remove it
    (root / "kept").rename(lock)
    try:
        with left(run=root) as found:
            assert found == ()
    finally:
        runtime.kill()
        runtime.wait()
    with left(run=root) as found:
        assert [place.number for place in found] == [0]


def test_recorded_findings_are_read_past_what_is_torn(tmp_path: Path) -> None:
    log = tmp_path / "decisions.log"
    assert list(run.recorded(log)) == []
    log.write_text(
        '{"findings":[{"field":"f","value":"v","rule":"r","remedy":"do","section":"s"}]}\n{"verdict":"Allowed"}\n{"fi'
    )
    assert list(run.recorded(log)) == ["recorded only: f: v; r; do"]


def test_a_secret_that_is_no_base64_is_named() -> None:
    data = b"{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {k: '%'}}"
    with pytest.raises(ConfigError, match=r"f: Secret s: data\.k: is not base64"):
        sources.read("f", data, "default")


async def test_a_run_removes_no_apparmor_profile_of_a_node_beside_it() -> None:
    kernel = FakeAppArmor(enabled=True, loaded={"noderuntime-a-0123456789ab": "", "same": ""})
    shared = SharedAppArmor(kernel)
    for name in ("own", "same", "busy", DEFAULT):
        await shared.load(name, "text")
    await shared.unload("noderuntime-a-0123456789ab")
    kernel.in_use.add("busy")
    assert await shared.unload_all() == [
        "the AppArmor profile busy: busy confines a running process"
    ]
    assert set(kernel.loaded) == {"noderuntime-a-0123456789ab", "same", "busy", DEFAULT}
