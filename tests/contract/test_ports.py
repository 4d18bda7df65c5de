"""The fakes and the real ones have the Protocols' shape: the type checker is the judge here."""

from __future__ import annotations

from pathlib import Path

from noderuntime.host import ports
from noderuntime.host.cgroups import KernelCgroups
from noderuntime.host.exec import RuntimeExec
from noderuntime.host.init import OciInits
from noderuntime.host.monitor import Conmon
from noderuntime.host.mounts import KernelMounts
from noderuntime.host.netns import KernelNamespaces
from noderuntime.host.oci_runtime import OciCli
from noderuntime.host.portforward import NetnsPortForward
from noderuntime.network.cni import CniNetwork
from noderuntime.network.ports import Network
from tests.fakes.host import (
    FakeCgroups,
    FakeExec,
    FakeInits,
    FakeMonitor,
    FakeMounts,
    FakeNamespaces,
    FakeNode,
    FakeOciRuntime,
    FakePortForward,
)
from tests.fakes.network import FakeNetwork


def test_fakes_and_real_ones_have_the_shape_of_the_protocols(tmp_path: Path) -> None:
    node = FakeNode()
    namespaces: tuple[ports.Namespaces, ...] = (KernelNamespaces(), FakeNamespaces(node))
    inits: tuple[ports.Inits, ...] = (OciInits(), FakeInits(node))
    mounts: tuple[ports.Mounts, ...] = (KernelMounts(), FakeMounts(node))
    cgroups: tuple[ports.Cgroups, ...] = (KernelCgroups(), FakeCgroups(node))
    runtimes: tuple[ports.OciRuntime, ...] = (
        OciCli(Path("/usr/bin/crun"), tmp_path),
        FakeOciRuntime(node),
    )
    monitors: tuple[ports.Monitor, ...] = (
        Conmon(Path("/usr/bin/conmon"), tmp_path, tmp_path / "exits"),
        FakeMonitor(node),
    )
    execs: tuple[ports.Exec, ...] = (RuntimeExec(), FakeExec(node))
    forwards: tuple[ports.PortForward, ...] = (NetnsPortForward(), FakePortForward(node))
    networks: tuple[Network, ...] = (CniNetwork(tmp_path, (), tmp_path / "net"), FakeNetwork())
    assert all((namespaces, inits, mounts, cgroups, runtimes, monitors, execs, forwards, networks))
