"""The chain with scripted plugins: what each is given, and what becomes of its answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from noderuntime.errors import InvalidArgumentError, NetworkError
from noderuntime.network.cni import CniNetwork, addresses_of
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import PodIdentity, PortMapping

ANSWER = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/ns"}],
    "ips": [
        {"address": "192.0.2.1/24", "interface": 0},
        {"address": "10.9.0.5/24", "interface": 1},
        {"address": "fd00::5/64", "interface": 1},
    ],
}


@dataclass(slots=True)
class Lab:
    root: Path

    @property
    def network(self) -> CniNetwork:
        return CniNetwork(self.root / "conf", (self.root / "bin",), self.root / "state")

    def plugin(self, name: str, answer: object = None, status: int = 0) -> None:
        """A plugin that writes its request beside itself, numbered, and answers."""
        said = json.dumps(answer) if answer is not None else ""
        script = self.root / "bin" / name
        script.write_text(
            "#!/bin/sh\n"
            f"n=$(ls {self.root}/log | wc -l)\n"
            f'env | grep ^CNI_ > "{self.root}/log/$n"; cat >> "{self.root}/log/$n"\n'
            f"printf '%s' '{said}'\n"
            f"exit {status}\n"
        )
        script.chmod(0o755)

    def config(self, version: str = "1.0.0", **more: object) -> None:
        plugins = [{"type": "one"}, {"type": "two", "capabilities": {"portMappings": True}}]
        document = {"name": "net", "cniVersion": version, "plugins": plugins, **more}
        (self.root / "conf" / "10-net.conflist").write_text(json.dumps(document))

    def requests(self) -> list[tuple[dict[str, str], dict[str, object]]]:
        """Return (environment, configuration) of every call since the last time asked."""
        found: list[tuple[dict[str, str], dict[str, object]]] = []
        for file in sorted((self.root / "log").iterdir(), key=lambda f: int(f.name)):
            *env, config = file.read_text().splitlines()
            found.append((dict(line.split("=", 1) for line in env), json.loads(config)))
            file.unlink()
        return found


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    for name in ("conf", "bin", "log"):
        (tmp_path / name).mkdir()
    lab = Lab(tmp_path)
    lab.config()
    lab.plugin("one", ANSWER)
    lab.plugin("two", ANSWER)
    return lab


POD = Attachment(
    sandbox_id="s1",
    netns=Path("/proc/self/ns/net"),
    pod=PodIdentity(name="web", namespace="prod", uid="u-1"),
    port_mappings=(
        PortMapping(protocol="TCP", container_port=80, host_port=8080, host_ip="192.0.2.9"),
        PortMapping(protocol="UDP", container_port=53, host_port=0),
    ),
)


async def test_add_gives_each_plugin_its_part_and_the_result_before(lab: Lab) -> None:
    assert await lab.network.attach(POD) == ("10.9.0.5", "fd00::5")
    (env, first), (_, second) = lab.requests()
    assert env == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "s1",
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;"
        "K8S_POD_INFRA_CONTAINER_ID=s1;K8S_POD_UID=u-1",
        "CNI_PATH": str(lab.root / "bin"),
    }
    assert first == {"type": "one", "name": "net", "cniVersion": "1.0.0"}
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.9"}
    assert second == {
        "type": "two",
        "name": "net",
        "cniVersion": "1.0.0",
        "prevResult": ANSWER,
        "runtimeConfig": {"portMappings": [mapping]},
    }


async def test_del_runs_last_first_with_the_kept_result_after_a_restart(lab: Lab) -> None:
    await lab.network.attach(POD)
    assert lab.network.attached() == ("s1",)
    lab.requests()
    (lab.root / "conf" / "10-net.conflist").unlink()
    await lab.network.detach(POD)
    calls = lab.requests()
    assert [(env["CNI_COMMAND"], config["type"]) for env, config in calls] == [
        ("DEL", "two"),
        ("DEL", "one"),
    ]
    assert all(config["prevResult"] == ANSWER for _, config in calls)
    await lab.network.detach(POD)
    assert lab.requests() == []
    assert lab.network.attached() == ()


async def test_del_gives_a_dead_namespace_as_none(lab: Lab) -> None:
    pod = Attachment(sandbox_id="s2", netns=lab.root / "gone", pod=POD.pod)
    await lab.network.attach(pod)
    lab.requests()
    await lab.network.detach(pod)
    assert all("CNI_NETNS" not in env for env, _ in lab.requests())


async def test_a_failed_add_is_followed_by_its_del(lab: Lab) -> None:
    error = {"code": 7, "msg": "no address left", "details": "pool is\nfull"}
    lab.plugin("two", error, status=1)
    with pytest.raises(NetworkError, match="'two' ADD failed: no address left: pool is full") as e:
        await lab.network.attach(POD)
    assert any("'two' DEL failed" in note for note in e.value.__notes__)
    commands = [(env["CNI_COMMAND"], c["type"]) for env, c in lab.requests()]
    assert commands == [("ADD", "one"), ("ADD", "two"), ("DEL", "two"), ("DEL", "one")]
    assert lab.network.attached() == ("s1",)  # its DEL failed, so it stays to be tried again
    lab.plugin("two")
    await lab.network.detach(POD)
    assert lab.network.attached() == ()


async def test_every_plugin_is_asked_to_delete_although_one_fails(lab: Lab) -> None:
    await lab.network.attach(POD)
    lab.requests()
    lab.plugin("two", status=3)
    with pytest.raises(NetworkError, match="'two' DEL failed: status 3 and no word"):
        await lab.network.detach(POD)
    assert [config["type"] for _, config in lab.requests()] == ["two", "one"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        pytest.param(None, "gave no result", id="none"),
        pytest.param({"ips": []}, "gave the pod no address", id="no address"),
        pytest.param({"ips": [{"address": "nonsense"}]}, "that is no address", id="nonsense"),
    ],
)
async def test_an_add_without_an_address_fails(lab: Lab, answer: object, message: str) -> None:
    lab.plugin("one", answer)
    lab.plugin("two", None)
    with pytest.raises(NetworkError, match=message):
        await lab.network.attach(POD)
    assert lab.network.attached() == ()


def test_addresses_of_an_old_result_are_read() -> None:
    old = {"ip4": {"ip": "10.1.2.3/24"}, "ip6": {"ip": "fd00::1/64"}}
    assert addresses_of(old) == ("10.1.2.3", "fd00::1")


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(PodIdentity(name="a;K8S_POD_NAMESPACE=x", namespace="n", uid="u"), id="pair"),
        pytest.param(PodIdentity(name="a", namespace="n\0", uid="u"), id="nul"),
    ],
)
async def test_a_name_that_would_smuggle_an_argument_is_refused(lab: Lab, pod: PodIdentity) -> None:
    attachment = Attachment(sandbox_id="s1", netns=Path("/ns"), pod=pod)
    with pytest.raises(InvalidArgumentError, match="that CNI has no room for"):
        await lab.network.attach(attachment)
    assert lab.requests() == []


async def test_a_sandbox_id_that_is_a_path_is_refused(lab: Lab) -> None:
    with pytest.raises(InvalidArgumentError):
        await lab.network.detach(Attachment(sandbox_id="../x", netns=Path("/n"), pod=POD.pod))


async def test_check_status_and_gc_are_asked_where_the_version_has_them(lab: Lab) -> None:
    network = lab.network
    await network.attach(POD)
    lab.requests()
    await network.check(POD)
    assert [env["CNI_COMMAND"] for env, _ in lab.requests()] == ["CHECK", "CHECK"]
    await network.check_status()
    await network.collect(("s1",))
    assert lab.requests() == []
    lab.config("1.1.0")
    await network.check_status()
    await network.collect(("s1",))
    calls = lab.requests()
    assert [env["CNI_COMMAND"] for env, _ in calls] == ["STATUS", "STATUS", "GC", "GC"]
    valid = [{"containerID": "s1", "ifname": "eth0"}]
    assert calls[2][1]["cni.dev/valid-attachments"] == valid
    assert network.not_ready_because() == ""
    lab.plugin("one", {"code": 50, "msg": "daemon is starting"}, status=1)
    await network.check_status()
    assert network.not_ready_because() == "CNI plugin 'one' STATUS failed: daemon is starting"
    with pytest.raises(NetworkError, match="not attached"):
        await network.check(Attachment(sandbox_id="s9", netns=Path("/n"), pod=POD.pod))


async def test_attachments_of_unknown_sandboxes_are_deleted(lab: Lab) -> None:
    await lab.network.attach(POD)
    lab.requests()
    await lab.network.collect(())
    assert [env["CNI_COMMAND"] for env, _ in lab.requests()] == ["DEL", "DEL"]
    assert lab.network.attached() == ()


async def test_a_torn_attachment_is_set_aside_and_its_pod_taken_off_todays_network(
    lab: Lab,
) -> None:
    network = lab.network
    (lab.root / "state" / "s1.json").write_text("{")
    await network.detach(POD)
    assert [(env["CNI_COMMAND"], env["CNI_CONTAINERID"]) for env, _ in lab.requests()] == [
        ("DEL", "s1"),
        ("DEL", "s1"),
    ]
    assert network.attached() == ()
    assert (lab.root / "state" / "s1.json.corrupt").read_text() == "{"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "is not JSON", id="torn"),
        pytest.param("[]", "is not a JSON object", id="a list"),
        pytest.param('{"name": "n", "plugins": []}', "has no plugins", id="no plugins"),
        pytest.param('{"plugins": [{"type": "one"}]}', "has no name", id="no name"),
        pytest.param('{"name": "n", "plugins": [{}]}', "has no valid type", id="no type"),
        pytest.param('{"name": "n", "type": "../sh"}', "has no valid type", id="a path"),
        pytest.param('{"name": "n", "type": "one", "cniVersion": "x"}', "is not a version", id="v"),
        pytest.param('{"name": "n", "type": "three"}', "'three' is not in", id="not installed"),
    ],
)
def test_a_network_that_is_none_is_not_ready(lab: Lab, text: str, message: str) -> None:
    (lab.root / "conf" / "00-first.conf").write_text(text)
    assert message in lab.network.not_ready_because()


def test_no_network_at_all_says_what_to_do(tmp_path: Path) -> None:
    network = CniNetwork(tmp_path / "conf", (), tmp_path / "state")
    assert "install a network plugin" in network.not_ready_because()


def test_the_first_network_by_name_and_the_highest_version_are_taken(lab: Lab) -> None:
    (lab.root / "conf" / "99-last.conf").write_text("{")
    (lab.root / "conf" / "00-ignored.txt").write_text("{")
    assert lab.network.not_ready_because() == ""
    lab.config("0.4.0", cniVersions=["0.4.0", "1.1.0", "1.0.0"])
    assert lab.network.not_ready_because() == ""


async def test_an_address_whose_lease_a_power_loss_emptied_is_let_go_by_its_owner(
    lab: Lab,
) -> None:
    ipam = {"type": "host-local", "dataDir": str(lab.root)}
    document = {
        "name": "net",
        "cniVersion": "1.0.0",
        "plugins": [{"type": "one", "ipam": ipam}, {"type": "two"}],
    }
    (lab.root / "conf" / "10-net.conflist").write_text(json.dumps(document))
    await lab.network.attach(POD)
    (lab.root / "net").mkdir()
    for address in ("10.9.0.5", "10.9.0.6"):
        (lab.root / "net" / address).touch()
    await lab.network.collect({"s1"})
    assert (lab.root / "net" / "10.9.0.5").read_bytes() == b"s1\r\neth0"
    assert not (lab.root / "net" / "10.9.0.6").exists()


@pytest.mark.parametrize("was_used", [True, False])
async def test_a_lease_that_a_power_loss_emptied_is_found_where_no_pod_is_any_more(
    lab: Lab, was_used: bool
) -> None:
    """Of a handler's own CNI folder, which is in no attachment and is not the node's."""
    own = lab.root / "own"
    own.mkdir()
    ipam = {"type": "host-local", "dataDir": str(lab.root / "leases")}
    document = {"cniVersion": "1.1.0", "name": "own", "plugins": [{"type": "one", "ipam": ipam}]}
    (own / "10-own.conflist").write_text(json.dumps(document))
    pod = replace(POD, cni_conf_dir=own)
    if was_used:
        await lab.network.attach(pod)
        await lab.network.detach(pod)
    emptied = lab.root / "leases" / "own" / "10.9.0.7"
    emptied.parent.mkdir(parents=True)
    emptied.touch()
    lab.requests()
    await lab.network.collect(())
    assert emptied.exists() is not was_used
    asked = [env["CNI_COMMAND"] for env, _ in lab.requests()]
    assert asked == (["GC"] if was_used else [])


async def test_the_folder_of_an_add_that_was_cut_off_is_looked_at(lab: Lab) -> None:
    ipam = {"type": "host-local", "dataDir": str(lab.root / "leases")}
    plugins = [{"type": "one", "ipam": ipam}]
    lab.config(plugins=plugins)
    await lab.network.attach(POD)
    record = next((lab.root / "state").glob("*.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "result": None}))
    lab.config()  # the node has another network now
    emptied = lab.root / "leases" / "net" / "10.9.0.5"
    emptied.parent.mkdir(parents=True)
    emptied.touch()
    await lab.network.collect(("s1",))
    assert not emptied.exists()


@pytest.mark.parametrize("text", ["", "{", "7", '["/nowhere"]'])
async def test_a_damaged_list_of_folders_is_none(lab: Lab, text: str) -> None:
    (lab.root / "state").mkdir()
    (lab.root / "state" / "folders").write_text(text)
    await lab.network.collect(())
    assert lab.network.attached() == ()
