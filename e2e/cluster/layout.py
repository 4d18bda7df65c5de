"""Where the cluster keeps its things, and the names, addresses and ports it takes.

What can be inside ``.cluster/`` is inside; what a real node has at a fixed place (the runtime's
socket, state and configuration) is at that place, so that the paths are the documented ones.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KUBERNETES_VERSION: Final = "v1.37.2"
NODE_IP: Final = "10.200.0.1"
NODE_LINK: Final = "nr0"
POD_LINK: Final = "cni-nr0"
NETWORK: Final = "noderuntime"  # CNI's name of the Pod network
POD_CIDR: Final = "10.244.0.0/24"
SERVICE_CIDR: Final = "10.96.0.0/16"
API_SERVICE_IP: Final = "10.96.0.1"
DNS_SERVICE_IP: Final = "10.96.0.10"
API_PORT: Final = 6443
ETCD_PORT: Final = 2379
ETCD_PEER_PORT: Final = 2380
REGISTRY: Final = "127.0.0.1:5000"
COLLECTOR: Final = "127.0.0.1:4317"
NAMESPACE: Final = "noderuntime-system"
MARKER: Final = "NODERUNTIME_CLUSTER"  # in the environment of every process that is ours

# Port, address, who listens: the preflight looks at each.
PORTS: Final[tuple[tuple[int, str, str], ...]] = (
    (ETCD_PORT, "127.0.0.1", "etcd"),
    (ETCD_PEER_PORT, "127.0.0.1", "etcd"),
    (5000, "127.0.0.1", "registry"),
    (API_PORT, NODE_IP, "kube-apiserver"),
    (10257, "127.0.0.1", "kube-controller-manager"),
    (10259, "127.0.0.1", "kube-scheduler"),
    (10250, NODE_IP, "kubelet"),
    (10248, "127.0.0.1", "kubelet"),
    (10249, "127.0.0.1", "kube-proxy"),
    (10256, "127.0.0.1", "kube-proxy"),
    (9475, "127.0.0.1", "noderuntime"),
)

# The runtime's places on any node (the Contract): made by up, removed by down.
RUNTIME_ETC: Final = Path("/etc/noderuntime")
RUNTIME_STATE: Final = Path("/var/lib/noderuntime")
RUNTIME_RUN: Final = Path("/run/noderuntime")
RUNTIME_SOCKET: Final = RUNTIME_RUN / "noderuntime.sock"


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one repository's cluster."""

    repository: Path

    @property
    def root(self) -> Path:
        return self.repository / ".cluster"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def kubeconfigs(self) -> Path:
        return self.root / "kubeconfigs"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, for people and tests."""
        return self.root / "kubeconfig"

    @property
    def config(self) -> Path:
        """Configuration files of the components."""
        return self.root / "config"

    @property
    def data(self) -> Path:
        """What the components store; gone after down."""
        return self.root / "data"

    @property
    def kubelet(self) -> Path:
        return self.root / "kubelet"

    @property
    def pod_logs(self) -> Path:
        return self.root / "pod-logs"

    @property
    def cni(self) -> Path:
        return self.root / "cni"

    @property
    def images(self) -> Path:
        """OCI layouts that were built; kept."""
        return self.root / "images"

    @property
    def debs(self) -> Path:
        """Debian packages that were fetched; kept."""
        return self.root / "debs"

    @property
    def wheels(self) -> Path:
        """Python packages that were fetched; kept."""
        return self.root / "wheels"

    @property
    def registry(self) -> Path:
        """The registry's blobs; kept."""
        return self.root / "registry"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def timings(self) -> Path:
        return self.root / "timings.json"

    @property
    def traces(self) -> Path:
        """What the collector received, a JSON document a line."""
        return self.data / "traces.jsonl"

    def binary(self, name: str) -> str:
        """One of the programs in ``.cluster/bin``."""
        return str(self.bin / name)

    def environment(self) -> dict[str, str]:
        """For every process that the cluster starts; down finds strays by the marker in it."""
        path = os.environ.get("PATH", "")
        places = [str(self.bin), path, "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"]
        return os.environ | {MARKER: str(self.root), "PATH": ":".join(p for p in places if p)}


def node_name() -> str:
    """The node's name as the kubelet would choose it."""
    return socket.gethostname().lower()


def this_layout() -> Layout:
    """The layout of the repository that this code is in."""
    return Layout(Path(__file__).resolve().parents[2])
