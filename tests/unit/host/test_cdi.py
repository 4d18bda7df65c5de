from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from noderuntime.errors import FailedPreconditionError
from noderuntime.host import cdi
from noderuntime.host.cdi import edits_of
from noderuntime.policy.cdi import CdiMount, Edits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.fail("this test makes files of root: run it as root")
    path = tmp_path / "cdi"
    path.mkdir(mode=0o755)
    return path


def document(edits: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    device = {"name": "gpu0", "containerEdits": edits or {"env": ["GPU=0"]}}
    return {"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "devices": [device], **more}


def write(folder: Path, content: dict[str, Any] | str, name: str = "vendor.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(0o644)
    return path


NAME = "vendor.com/gpu=gpu0"


def test_what_a_file_says_for_all_devices_comes_once_and_first(folder: Path) -> None:
    devices = [
        {"name": name, "containerEdits": {"env": [f"GPU={name}"]}} for name in ("gpu0", "gpu1")
    ]
    write(folder, document(devices=devices, containerEdits={"env": ["ALL=1"]}))
    edits = edits_of([folder], [NAME, "vendor.com/gpu=gpu1", NAME])
    assert edits.env == ("ALL=1", "GPU=gpu0", "GPU=gpu1")


def test_yaml_is_read_as_json_is(folder: Path) -> None:
    text = """
cdiVersion: "1.0.0"
kind: vendor.com/gpu
devices:
- name: gpu0
  containerEdits:
    deviceNodes:
    - {path: /dev/gpu, hostPath: /dev/null, permissions: rw, fileMode: 0640, gid: 44}
    mounts:
    - {hostPath: /etc, containerPath: /vendor/etc, options: [ro, nosuid, rbind]}
    additionalGids: [0, 44]
    hooks:
    - {hookName: createContainer, path: /bin/sh, args: [sh, -c, "true"], timeout: 5}
"""
    write(folder, text, "vendor.yaml")
    edits = edits_of([folder], [NAME])
    (device,) = edits.devices
    facts = Path("/dev/null").stat()
    assert (device.path, device.kind, device.access) == ("/dev/gpu", "c", "rw")
    assert (device.major, device.minor) == (os.major(facts.st_rdev), os.minor(facts.st_rdev))
    assert (device.mode, device.gid) == (0o640, 44)
    assert edits.own_owner == {"/dev/gpu"}
    assert edits.gids == (44,)
    options = ("ro", "nosuid", "rbind")
    mount = CdiMount(host_path="/etc", container_path="/vendor/etc", options=options)
    assert edits.mounts == (mount,)
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "true"], "timeout": 5}
    assert edits.hooks == {"createContainer": (hook,)}


def test_a_later_folder_wins(folder: Path, tmp_path: Path) -> None:
    later = tmp_path / "run"
    later.mkdir(mode=0o755)
    write(folder, document())
    write(later, document({"env": ["GPU=later"]}))
    assert edits_of([folder, tmp_path / "none", later], [NAME]).env == ("GPU=later",)


def test_nothing_is_read_where_no_device_is_asked_for(folder: Path) -> None:
    write(folder, "{")
    assert edits_of([folder], []) == Edits()


def node(**fields: Any) -> dict[str, Any]:
    return {"deviceNodes": [{"path": "/dev/x", **fields}]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("{", "is not JSON", id="torn"),
        pytest.param("[]", "the file: ", id="a list"),
        pytest.param(document(cdiVersion="0.2.0"), "cdiVersion: 0.2.0", id="old version"),
        pytest.param(document(kind=7), "kind: ", id="another type"),
        pytest.param(document({"intelRdt": {"closID": "x"}}), "intelRdt: ", id="RDT"),
        pytest.param(document({"netDevices": []}), "netDevices: ", id="network devices"),
        pytest.param(document({"env": ["=x"]}), "env: '=x' is not NAME=VALUE", id="variable"),
        pytest.param(document(node(path="dev/x")), "path: ", id="relative device"),
        pytest.param(document(node(path="/dev/../x")), "without '..'", id="dots"),
        pytest.param(
            document(node(hostPath="/dev/none")), "/dev/none is not there", id="no device"
        ),
        pytest.param(document(node(hostPath="/etc")), "/etc is not a device", id="a folder"),
        pytest.param(document(node(hostPath="/dev/null", type="b")), "not of type b", id="kind"),
        pytest.param(document(node(type="p", major=1, minor=1)), "is a FIFO", id="FIFO"),
        pytest.param(document(node(permissions="rx")), "permissions: ", id="permissions"),
        pytest.param(
            document({"mounts": [{"hostPath": "/etc", "containerPath": "/a", "type": "nfs"}]}),
            "type: ",
            id="kind of mount",
        ),
        pytest.param(
            document({"mounts": [{"hostPath": "/etc", "containerPath": "/a", "options": ["x=y"]}]}),
            "mounts.options: x=y is not known",
            id="mount option",
        ),
        pytest.param(
            document({"mounts": [{"hostPath": "/none/x", "containerPath": "/a"}]}),
            "/none/x is not there",
            id="no source",
        ),
        pytest.param(
            document({"mounts": [{"hostPath": "/etc", "containerPath": "/a/../.."}]}),
            "without '..'",
            id="target with dots",
        ),
        pytest.param(
            document({"hooks": [{"hookName": "prestart", "path": "/none/x"}]}),
            "hooks.path: /none/x is not there",
            id="no program",
        ),
        pytest.param(
            document({"hooks": [{"hookName": "later", "path": "/bin/sh"}]}),
            "hookName: ",
            id="no such hook",
        ),
    ],
)
def test_a_file_that_cannot_be_honoured_is_told_by_its_name_and_field(
    folder: Path, content: dict[str, Any] | str, words: str
) -> None:
    path = write(folder, content)
    with pytest.raises(FailedPreconditionError) as error:
        edits_of([folder], [NAME])
    assert str(path) in str(error.value)
    assert words in str(error.value)


def test_a_broken_file_does_not_hide_the_others(folder: Path) -> None:
    write(folder, "{", "a.json")
    write(folder, document())
    assert edits_of([folder], [NAME]).env == ("GPU=0",)
    with pytest.raises(
        FailedPreconditionError, match=r"vendor.com/gpu=gpu9 is not .*a.json is not"
    ):
        edits_of([folder], ["vendor.com/gpu=gpu9"])


def test_a_device_in_two_files_of_a_folder_is_none(folder: Path) -> None:
    write(folder, document(), "a.json")
    write(folder, document(), "b.json")
    with pytest.raises(FailedPreconditionError, match=r"is in .*a\.json and in .*b\.json"):
        edits_of([folder], [NAME])


@pytest.mark.parametrize("what", ["owner", "mode", "folder", "hook", "link"])
def test_what_others_than_root_may_write_is_not_used(
    folder: Path, tmp_path: Path, what: str
) -> None:
    program = tmp_path / "hook"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = write(folder, document({"hooks": [{"hookName": "prestart", "path": str(program)}]}))
    assert edits_of([folder], [NAME]).hooks
    if what == "owner":
        os.chown(path, 1000, 0)
    elif what == "mode":
        path.chmod(0o666)
    elif what == "folder":
        folder.chmod(0o777)
    elif what == "hook":
        program.chmod(0o775)
    else:
        real = tmp_path / "real.json"
        path.rename(real)
        os.chown(real, 1000, 0)
        path.symlink_to(real)
    with pytest.raises(FailedPreconditionError, match="not used"):
        edits_of([folder], [NAME])


def test_what_is_huge_or_no_file_is_refused_and_never_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "fifo.json", 0o600)
    (folder / "folder.yaml").mkdir()
    write(folder, " " * (cdi.LIMIT_BYTES + 1), "large.json")
    write(folder, "a: &a [1]\nb: [*a, *a]\n", "alias.yaml")
    write(folder, "[" * 100_000, "deep.json")
    write(folder, "[" * 5_000, "deep.yaml")
    write(folder, "a: !!python/object/apply:os.system ['false']\n", "tag.yaml")
    with pytest.raises(FailedPreconditionError) as error:
        edits_of([folder], [NAME])
    for words in ("fifo.json is not a file", "large.json has more than", "an alias", "tag.yaml is"):
        assert words in str(error.value)
