"""Leases that a power loss has emptied: given back to their owner, or removed."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from noderuntime.network.conflist import NetworkList
from noderuntime.network.leases import mend


def network(folder: Path, kind: str = "host-local") -> NetworkList:
    ipam = {"type": kind, "dataDir": str(folder)}
    return NetworkList(
        name="net",
        version="1.0.0",
        plugins=({"type": "bridge", "ipam": ipam}, {"type": "portmap"}),
        disable_check=False,
        disable_gc=False,
        source=Path("/x"),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "net"
    found.mkdir()
    (found / "10.9.0.2").write_text("")
    (found / "10.9.0.3").write_text("")
    (found / "fd00::4").write_text("s4\r\neth0")
    (found / "last_reserved_ip.0").write_text("")
    return found


def test_an_emptied_lease_goes_back_to_its_owner_or_is_removed(
    tmp_path: Path, folder: Path
) -> None:
    owners = {"10.9.0.2": "s2", "fd00::4": "other"}
    found = mend([network(tmp_path), network(tmp_path)], owners, "eth0")
    assert found == ["10.9.0.2", "10.9.0.3"]
    assert (folder / "10.9.0.2").read_bytes() == b"s2\r\neth0"
    assert not (folder / "10.9.0.3").exists()
    assert (folder / "fd00::4").read_bytes() == b"s4\r\neth0"
    assert (folder / "last_reserved_ip.0").exists()
    assert mend([network(tmp_path)], owners, "eth0") == []


def test_leases_of_another_plugin_are_left_alone(tmp_path: Path, folder: Path) -> None:
    assert mend([network(tmp_path, "dhcp")], {}, "eth0") == []
    assert (folder / "10.9.0.3").exists()


def test_leases_that_somebody_works_on_are_left_alone(tmp_path: Path, folder: Path) -> None:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert mend([network(tmp_path)], {}, "eth0") == []
    assert mend([network(tmp_path)], {}, "eth0") == ["10.9.0.2", "10.9.0.3"]


def test_a_network_that_was_never_used_is_none(tmp_path: Path) -> None:
    assert mend([network(tmp_path / "nothing")], {}, "eth0") == []
