"""The real parts, put together from the configuration. Nothing is read or started here."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from noderuntime.engine.node import Parts
from noderuntime.errors import ConfigError
from noderuntime.host.apparmor import KernelAppArmor
from noderuntime.host.cgroups import KernelCgroups
from noderuntime.host.exec import RuntimeExec
from noderuntime.host.init import OciInits
from noderuntime.host.monitor import Conmon
from noderuntime.host.mounts import KernelMounts
from noderuntime.host.netns import KernelNamespaces
from noderuntime.host.oci_runtime import OciCli
from noderuntime.host.portforward import NetnsPortForward
from noderuntime.host.ports import CgroupDriver
from noderuntime.host.seccomp import compiler
from noderuntime.host.selinux import KernelSelinux
from noderuntime.images.store import ImageStore
from noderuntime.network.bridge import bridge_network
from noderuntime.network.cni import CniNetwork
from noderuntime.network.pods import PodNetwork
from noderuntime.policy.seccomp import IN_LIBSECCOMP

if TYPE_CHECKING:
    from noderuntime.api.config import Config
    from noderuntime.network.bridge import BridgeNetwork


def parts_of(config: Config) -> Parts:
    """Return the parts of a node. Raises ConfigError where a program is missing."""
    cgroups = KernelCgroups()
    is_systemd = cgroups.driver() is CgroupDriver.SYSTEMD

    @functools.cache
    def runtime(binary: Path) -> OciCli:
        # A root a program: crun and runc do not read each other's state.
        return OciCli(
            binary,
            config.run_dir / "oci" / binary.name,
            systemd_cgroup=is_systemd,
            programs=config.run_dir / "programs",
        )

    return Parts(
        config=config,
        namespaces=KernelNamespaces(),
        inits=OciInits(),
        mounts=KernelMounts(),
        cgroups=cgroups,
        runtimes=runtime,
        monitor=Conmon(monitor_program(), config.run_dir / "containers", config.run_dir / "exits"),
        exec=RuntimeExec(),
        port_forward=NetnsPortForward(),
        network=_network_of(config),
        images=ImageStore(config.state_dir, config.images.hosts_dir, config.images.auth_file),
        seccomp=compiler(IN_LIBSECCOMP),
        apparmor=KernelAppArmor(),
        selinux=KernelSelinux(),
    )


def _network_of(config: Config) -> PodNetwork:
    # CNI attachments outlive a reboot, as the addresses that plugins hand out do.
    state_dir = _network_state(config)
    return PodNetwork(
        CniNetwork(config.cni.conf_dir, config.cni.bin_dirs, state_dir), bridge_of(config)
    )


def bridge_of(config: Config) -> BridgeNetwork | None:
    """Return the built-in bridge, None where it is off. Raises ConfigError."""
    owner = str(_network_state(config))
    return bridge_network(config.cni.bridge, config.cni.bridge_subnets, owner=owner)


def _network_state(config: Config) -> Path:
    return config.state_dir / "network"


def monitor_program() -> Path:
    """Return conmon. Raises ConfigError."""
    found = shutil.which("conmon")
    if found is None:
        raise ConfigError("conmon is not on the PATH: install the package conmon")
    return Path(found)
