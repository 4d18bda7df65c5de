"""Which network a Pod is attached by: CNI where it is configured, else the bridge."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from noderuntime.errors import NetworkError
from noderuntime.network.addresses import Pool, parse_subnets
from noderuntime.network.bridge import BridgeNetwork
from noderuntime.network.cni import CniNetwork
from noderuntime.network.pods import PodNetwork
from tests.fakes.bridge import FakeBridge
from tests.unit.network.test_bridge import pod


@dataclass(slots=True)
class Lab:
    root: Path
    kernel: FakeBridge

    def network(self, *, with_bridge: bool = True) -> PodNetwork:
        pool = Pool(parse_subnets(("10.9.0.0/24",)))
        return PodNetwork(
            CniNetwork(self.root / "conf", (self.root / "bin",), self.root / "state"),
            BridgeNetwork("br0", pool, self.kernel) if with_bridge else None,
        )

    def configure(self, folder: str = "conf", address: str = "192.0.2.7") -> None:
        (self.root / folder).mkdir(exist_ok=True)
        (self.root / "bin").mkdir(exist_ok=True)
        plugin = self.root / "bin" / f"of-{folder}"
        answer = json.dumps({"ips": [{"address": f"{address}/24"}]})
        plugin.write_text(
            f"#!/bin/sh\necho {folder} $CNI_COMMAND >>{self.root}/log\necho '{answer}'\n"
        )
        plugin.chmod(0o755)
        document = {"name": folder, "cniVersion": "1.1.0", "type": plugin.name}
        (self.root / folder / "10-net.conf").write_text(json.dumps(document))

    def log(self) -> list[str]:
        file = self.root / "log"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path, FakeBridge())


async def test_pods_go_to_cni_from_when_it_is_configured_and_each_is_detached_by_its_own(
    lab: Lab,
) -> None:
    network = lab.network()
    assert network.not_ready_because() == ""
    assert network.served_by() == "the built-in bridge br0 (10.9.0.0/24)"
    assert await network.attach(pod(1)) == ("10.9.0.2",)
    lab.configure()
    assert network.served_by() == f"CNI network conf ({lab.root}/conf/10-net.conf)"
    assert await network.attach(pod(2)) == ("192.0.2.7",)
    again = lab.network()  # after a restart
    assert again.attached() == tuple(sorted((pod(1).sandbox_id, pod(2).sandbox_id)))
    assert lab.log() == ["conf ADD"]
    await again.detach(pod(1))
    assert lab.log() == []
    assert again.attached() == (pod(2).sandbox_id,)
    (lab.root / "conf" / "10-net.conf").unlink()  # and back: the pod on CNI stays CNI's
    await again.detach(pod(2))
    assert lab.log() == ["conf DEL"]
    assert again.attached() == ()


async def test_a_configuration_that_is_none_is_an_error_and_no_reason_for_the_bridge(
    lab: Lab,
) -> None:
    (lab.root / "conf").mkdir()
    (lab.root / "conf" / "10-torn.conflist").write_text("{")
    network = lab.network()
    assert "10-torn.conflist is not JSON" in network.not_ready_because()
    with pytest.raises(NetworkError, match="is not JSON"):
        await network.attach(pod(1))


async def test_without_a_bridge_there_is_no_network(lab: Lab) -> None:
    network = lab.network(with_bridge=False)
    assert "no CNI configuration in" in network.not_ready_because()
    assert network.served_by().startswith("nothing: no CNI configuration in")
    with pytest.raises(NetworkError, match="no CNI configuration"):
        await network.attach(pod(1))


async def test_a_handler_with_a_folder_of_its_own_gets_that_network_and_no_other(
    lab: Lab,
) -> None:
    own = replace(pod(1), cni_conf_dir=lab.root / "own")
    network = lab.network()
    with pytest.raises(NetworkError, match=f"no CNI configuration in {lab.root}/own"):
        await network.attach(own)
    lab.configure("conf")
    lab.configure("own", "192.0.2.99")
    assert await network.attach(own) == ("192.0.2.99",)
    assert await network.attach(pod(2)) == ("192.0.2.7",)
    assert lab.log() == ["own ADD", "conf ADD"]
    again = lab.network()
    await again.collect((pod(1).sandbox_id, pod(2).sandbox_id))
    assert sorted(lab.log()) == ["conf GC", "own GC"]
    await again.detach(replace(own, cni_conf_dir=None))  # the record knows the folder
    assert lab.log() == ["own DEL"]


async def test_both_are_collected_although_one_fails(lab: Lab) -> None:
    network = lab.network()
    await network.attach(pod(1))
    lab.configure()
    await network.attach(pod(2))
    lab.log()
    lab.kernel.faults["part"] = NetworkError("not now")
    with pytest.raises(NetworkError, match="not now"):
        await network.collect(())
    assert "conf DEL" in lab.log()
    assert network.attached() == (pod(1).sandbox_id,)


async def test_status_asks_the_bridge_while_it_has_pods(lab: Lab) -> None:
    network = lab.network()
    await network.check_status()
    assert "require_room" in lab.kernel.calls
    await network.attach(pod(1))
    lab.configure()
    lab.kernel.calls.clear()
    await network.check_status()
    assert "survey" in lab.kernel.calls
    assert lab.log() == ["conf STATUS"]
    await network.detach(pod(1))
    lab.kernel.namespace_goes(*lab.kernel.aliases)
    await network.check_status()
    lab.kernel.calls.clear()
    await network.check_status()
    assert lab.kernel.calls == []
