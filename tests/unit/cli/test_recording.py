"""What is made of a recording: the profile, its text, what was written. Nothing runs here."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.cli.explaining import declared, image
from noderuntime.cli.explaining.judge import judge
from noderuntime.cli.main import main
from noderuntime.cli.manifest.workloads import Workload, workloads
from noderuntime.cli.recording import written
from noderuntime.cli.recording.asked import asked, wide
from noderuntime.cli.recording.profile import ALWAYS, Made, least
from noderuntime.cli.recording.seen import Ids, Recording, Seen
from noderuntime.cli.recording.text import as_yaml
from noderuntime.host.notifications import Call
from noderuntime.policy.capabilities import IN_ORDER, NODE_DEFAULT

X86_64 = 0xC000003E
READ, WRITE, EXECVE, SETUID, CHROOT = (Call(X86_64, n) for n in (0, 1, 59, 105, 161))
OWN, OVERLAYS = 0xFFFF1000, 0xFFFF2000  # credentials


def pod(*containers: dict[str, Any], **spec: Any) -> Workload:
    manifest = {
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"containers": list(containers), **spec},
    }
    return workloads("pod.yaml", yaml.safe_dump(manifest).encode(), "default")[0]


def box(name: str = "main", **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "registry.example/box:1", **fields}


def seen(*calls: Call, uses: tuple[tuple[int, str], ...] = (), **fields: Any) -> Seen:
    started: dict[str, Any] = {"starts": {Ids(1000, 1000, (1000,))}} | fields
    return Seen(
        calls=Counter(calls),
        of_runtime=Counter([EXECVE, SETUID]),
        uses={(whose, IN_ORDER.index(name)) for whose, name in uses},
        **started,
    )


def made(workload: Workload, *found: Seen, blind: str = "", **more: Any) -> Made:
    recording = Recording(containers=dict(enumerate_ids(found)), blind=blind)
    names = {
        key: each.name
        for (key, _), each in zip(enumerate_ids(found), workload.pod.spec.containers, strict=True)
    }
    return least(asked(workload), recording, names, **more)


def enumerate_ids(found: tuple[Seen, ...]) -> list[tuple[str, Seen]]:
    return [(f"id{number}", each) for number, each in enumerate(found)]


def calls_of(spec: SecurityProfileSpec) -> set[str]:
    return {name for group in spec.seccomp.allow for name in group.names}


def test_only_what_was_seen_is_allowed_and_what_the_kernel_itself_calls() -> None:
    spec = made(pod(box()), seen(READ, WRITE)).spec
    assert spec.seccomp.base == "DenyAll"
    assert calls_of(spec) == {"read", "write", "execve"} | ALWAYS
    assert spec.seccomp.architectures == ("X86_64",)
    assert spec.root_filesystem == "ReadOnly"
    assert spec.no_new_privileges == "Required"
    assert spec.run_as.non_root
    assert [(each.min, each.max) for each in spec.run_as.users] == [(1000, 1000)]
    assert spec.run_as.supplemental_groups == ()


def test_a_setuid_program_needs_new_privileges_and_so_what_the_oci_runtime_does_before_it() -> None:
    result = made(pod(box()), seen(READ, gained=True))
    assert result.spec.no_new_privileges == "Optional"
    assert "setuid" in calls_of(result.spec)
    assert result.why["noNewPrivileges"] == [
        "main started a setuid program, or one with capabilities of its own"
    ]


def test_capabilities_are_those_that_were_used_by_the_containers_own_credentials() -> None:
    uses = ((OWN, "CHOWN"), (OVERLAYS, "SYS_ADMIN"), (OVERLAYS, "DAC_OVERRIDE"))
    result = made(pod(box()), seen(READ, uses=uses))
    assert result.spec.capabilities.default == ("CHOWN",)
    assert result.why["capabilities"] == ["main used CHOWN"]


def test_what_the_pod_adds_is_allowed_and_told_when_it_was_not_used() -> None:
    adds = {"capabilities": {"add": ["NET_ADMIN", "SYS_TIME"]}}
    result = made(pod(box(securityContext=adds)), seen(READ, uses=((OWN, "NET_ADMIN"),)))
    assert result.spec.capabilities.default == ()
    assert result.spec.capabilities.allow == ("NET_ADMIN", "SYS_TIME")
    assert result.why["capabilities"] == [
        "main used NET_ADMIN",
        "main adds SYS_TIME, and did not use it: leave it out there",
    ]


def test_a_kernel_that_does_not_tell_of_capabilities_leaves_what_there_was() -> None:
    result = made(pod(box()), seen(READ), blind="the kernel is too old")
    assert set(result.spec.capabilities.default) == NODE_DEFAULT
    assert (
        "not recorded, so all that the Pod had: the kernel is too old" in result.why["capabilities"]
    )


def test_what_was_written_keeps_the_root_writable_and_is_named() -> None:
    result = made(pod(box()), seen(READ, written=("/var/log/x",)))
    assert result.spec.root_filesystem == "ReadWrite"
    assert result.why["rootFilesystem"][0] == "main wrote /var/log/x"


def test_several_containers_are_one_profile() -> None:
    two = pod(box("one"), box("two"))
    spec = made(two, seen(READ), seen(CHROOT, starts={Ids(0, 0, (27,))})).spec
    assert {"read", "chroot"} <= calls_of(spec)
    assert not spec.run_as.non_root
    assert [(each.min, each.max) for each in spec.run_as.users] == [(0, 0), (1000, 1000)]
    assert [(each.min, each.max) for each in spec.run_as.supplemental_groups] == [(27, 27)]


def demanding(tmp_path: Path) -> Workload:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    return pod(
        box(
            securityContext={
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "capabilities": {"add": ["SYS_TIME"]},
            },
            volumeMounts=[
                {"name": "host", "mountPath": "/host"},
                {"name": "own", "mountPath": "/own"},
            ],
        ),
        hostNetwork=True,
        securityContext={"sysctls": [{"name": "kernel.msgmax", "value": "1"}]},
        volumes=[
            {"name": "host", "hostPath": {"path": str(tmp_path / "real")}},
            {"name": "own", "emptyDir": {}},
        ],
    )


def test_the_pod_is_allowed_by_the_profile_that_is_made_of_it_and_while_it_is_recorded(
    tmp_path: Path,
) -> None:
    workload = demanding(tmp_path)
    result = made(workload, seen(READ), changed={str(tmp_path / "real"): False})
    assert [each.path for each in result.spec.host_paths] == [str(tmp_path / "real")]
    assert not result.spec.host_paths[0].read_only
    assert "nothing changed below" in result.why["hostPaths"][0]
    for name, spec in (("wide", wide(asked(workload))), ("least", result.spec)):
        text = as_yaml(name, Made(spec=spec, why=result.why), ["A heading."])
        found = declared.read({"profile.yaml": text.encode()})
        assert found.profiles[name] == spec
        rules = declared.rules(found, name, "")
        unknown = image.read("1000:1000", "", None)
        report = judge(workload, rules, unknown, now_s=0.0, machine="x86_64")
        assert report.verdict == "runs"


def test_no_name_of_a_file_can_end_a_comment_and_long_lists_stay_yaml() -> None:
    hostile = "/tmp/a\n  privileged: Allow\n#\x1b[31m" + "b" * 400
    calls = [Call(X86_64, number) for number in range(150)]
    result = made(pod(box()), seen(*calls, written=(hostile,)))
    text = as_yaml("on", result, ["kind: Evil\napiVersion: x"])
    document = yaml.safe_load(text)
    assert document["metadata"]["name"] == "on"
    assert document["kind"] == "SecurityProfile"
    assert SecurityProfileSpec.model_validate(document["spec"]) == result.spec
    assert "\x1b" not in text
    assert all(len(line) <= 100 for line in text.splitlines() if not line.lstrip().startswith("#"))


def test_changes_are_of_files_and_not_of_the_folders_above(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("made by the runtime")
    before = written.listing(tmp_path)
    assert written.changes(before, written.listing(tmp_path)) == ()
    (tmp_path / "etc/new").write_text("")
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/db").symlink_to("/nowhere")
    assert written.changes(before, written.listing(tmp_path)) == ("/etc/new", "/var/lib/db")
    (tmp_path / "etc/hosts").unlink()
    assert "/etc/hosts" in written.changes(before, written.listing(tmp_path))


def test_a_path_of_the_node_changed_or_not_or_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"f{number}").write_text("")
    now = max(each.stat().st_ctime_ns for each in (*tmp_path.iterdir(), tmp_path))
    assert written.is_changed_since(tmp_path, now + 1) is False
    assert written.is_changed_since(tmp_path, now) is True
    assert written.is_changed_since(tmp_path / "nothing", now) is False
    monkeypatch.setattr(written, "MOST", 2)
    assert written.is_changed_since(tmp_path, now + 1) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "Web_1"], "--name: 'Web_1' is not the name of an object of Kubernetes"),
        (["-o", "/proc/none/profile.yaml"], "--output: cannot write /proc/none/profile.yaml"),
        (["--timeout", "0"], "--timeout: must be more than 0 seconds"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_runs(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump({"kind": "Pod", "spec": {"containers": [box()]}}))
    assert main(["record", str(file), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["pod.yaml"]  # noqa: PTH208
