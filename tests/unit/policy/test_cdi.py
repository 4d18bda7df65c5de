from __future__ import annotations

from dataclasses import replace

import pytest

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy import cdi
from noderuntime.policy.decide import admit_container
from noderuntime.policy.denial import Denial
from noderuntime.policy.model import ContainerConfig, ContainerGrant
from noderuntime.policy.spec import DeviceNode, SpecLayout, build
from tests.unit.policy import factories

GPU = "vendor.com/gpu=0"


def asking(*names: str) -> ContainerConfig:
    return replace(factories.container(), cdi_devices=names)


@pytest.mark.parametrize("name", ["gpu", "vendor.com/gpu", "vendor.com/gpu=", "a/b=c d", "1/b=c"])
def test_what_is_not_a_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a name such as"):
        admit_container(None, factories.sandbox(), asking(name), factories.image())


@pytest.mark.parametrize(
    ("allowed", "is_granted"),
    [
        pytest.param((), False, id="nothing is allowed by default"),
        pytest.param((GPU,), True, id="by its name"),
        pytest.param(("vendor.com/gpu=*",), True, id="by its class"),
        pytest.param(("vendor.com/gpu=1", "other.com/gpu=*"), False, id="others"),
    ],
)
def test_a_profile_allows_the_devices_that_it_lists(
    allowed: tuple[str, ...], is_granted: bool
) -> None:
    rules = replace(factories.rules(), cdi=allowed)
    answer = admit_container(rules, factories.sandbox(), asking(GPU), factories.image())
    assert isinstance(answer, Denial) is not is_granted
    if isinstance(answer, Denial):
        assert answer.field == "containers[web].CDI device"
        assert answer.value == GPU


def test_without_a_profile_every_device_may_be_asked_for() -> None:
    answer = admit_container(None, factories.sandbox(), asking(GPU), factories.image())
    assert not isinstance(answer, Denial)


def test_edits_change_the_process_the_devices_the_mounts_and_the_hooks() -> None:
    answer = admit_container(None, factories.sandbox(), asking(GPU), factories.image())
    assert isinstance(answer, ContainerGrant)
    user = replace(answer.user, uid=1000, gid=2000, additional_gids=(5,))
    grant = replace(answer, env=("PATH=/bin", "GPU=none"), user=user)
    there = DeviceNode(path="/dev/gpu", kind="c", major=1, minor=1)
    plain = build(grant, SpecLayout(rootfs="/r", devices=(there,)))
    gpu = DeviceNode(path="/dev/gpu", kind="c", major=195, minor=0, access="rw")
    owned = DeviceNode(path="/dev/own", kind="b", major=8, minor=1, uid=7, gid=8)
    edits = cdi.Edits(
        env=("GPU=0", "MORE=1"),
        devices=(gpu, owned),
        own_owner=frozenset(("/dev/own",)),
        mounts=(
            cdi.CdiMount(host_path="/b", container_path="/x/y", options=("ro", "rbind")),
            cdi.CdiMount(host_path="/a", container_path="/x", options=()),
        ),
        hooks={"prestart": ({"path": "/h"},)},
        gids=(5, 44),
    )
    document: dict[str, object] = cdi.with_edits(plain, edits)
    process, linux = document["process"], document["linux"]
    assert isinstance(process, dict)
    assert isinstance(linux, dict)
    assert process["env"] == ["PATH=/bin", "GPU=0", "MORE=1"]
    assert process["user"]["additionalGids"] == [5, 44]
    owners = {d["path"]: (d["major"], d["uid"], d["gid"]) for d in linux["devices"]}
    assert owners == {"/dev/gpu": (195, 1000, 2000), "/dev/own": (8, 7, 8)}
    assert [r.get("access") for r in linux["resources"]["devices"]] == ["rwm", "rwm", "rw", "rwm"]
    mounts = document["mounts"]
    assert isinstance(mounts, list)
    assert [(m["source"], m["options"]) for m in mounts[-2:]] == [
        ("/a", ["bind"]),
        ("/b", ["ro", "rbind"]),
    ]
    assert document["hooks"] == {"prestart": [{"path": "/h"}]}
