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
from tests.fakes.host import FakeCgroups, FakeInits, FakeMounts, FakeNamespaces
from tests.fakes.network import FakeNetwork
from tests.fakes.processes import FakeExec, FakeMonitor, FakePortForward, FakeRuntime
from tests.fakes.world import World


def test_fakes_and_real_ones_have_the_shape_of_the_protocols(tmp_path: Path) -> None:
    world = World(tmp_path)
    namespaces: tuple[ports.Namespaces, ...] = (KernelNamespaces(), FakeNamespaces(world))
    inits: tuple[ports.Inits, ...] = (OciInits(), FakeInits(world))
    mounts: tuple[ports.Mounts, ...] = (KernelMounts(), FakeMounts(world))
    cgroups: tuple[ports.Cgroups, ...] = (KernelCgroups(), FakeCgroups(world))
    runtimes: tuple[ports.OciRuntime, ...] = (
        OciCli(Path("/usr/bin/crun"), tmp_path),
        FakeRuntime(world),
    )
    monitors: tuple[ports.Monitor, ...] = (
        Conmon(Path("/usr/bin/conmon"), tmp_path, tmp_path / "exits"),
        FakeMonitor(world),
    )
    execs: tuple[ports.Exec, ...] = (RuntimeExec(), FakeExec(world))
    forwards: tuple[ports.PortForward, ...] = (NetnsPortForward(), FakePortForward(world))
    networks: tuple[Network, ...] = (CniNetwork(tmp_path, (), tmp_path / "net"), FakeNetwork(world))
    assert all((namespaces, inits, mounts, cgroups, runtimes, monitors, execs, forwards, networks))
