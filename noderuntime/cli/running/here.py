"""Who the Pod is here, and where its files are: what a kubelet would decide before it asks the runtime."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from noderuntime.cli.manifest.workloads import Workload
from noderuntime.cli.running.places import Place
from noderuntime.cli.running.sources import Sources

FIRST_ID: Final = 1 << 30  # of Pods' user namespaces, behind what is handed out to users
IDS: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The Pod at a place. Its UID is random: no Pod can name a volume of the kubelet's as a hostPath."""

    workload: Workload
    place: Place
    sources: Sources
    cgroup: str
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def folder(self) -> Path:
        """What ``/var/lib/kubelet/pods/UID`` is on a node."""
        return self.place.pods / self.uid

    @property
    def logs(self) -> Path:
        """The folder of the containers' logs."""
        return self.folder / "logs"

    @property
    def first_id(self) -> int:
        """The user of the machine that is root in the Pod's user namespace."""
        return FIRST_ID + self.place.number * IDS

    @property
    def gateway(self) -> str:
        """The machine's address on the bridge."""
        return self.place.subnets[0].replace(".0/24", ".1")
