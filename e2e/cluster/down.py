"""``down``: nothing is left, whatever of it still lives and wherever ``up`` was cut off."""

from __future__ import annotations

import shutil

from e2e.cluster import undo
from e2e.cluster.layout import Layout
from e2e.cluster.state import ClusterError, State


def down(layout: Layout, state: State) -> None:
    """Undo what is recorded, last first; raises ClusterError with what is left."""
    problems = undo.undo_all(layout, state)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ClusterError(f"not everything could be undone; run it again:\n{listed}")
    state.remove()
    # Kept: what was fetched and built (bin, debs, images, the registry's blobs) and the logs.
    for path in (
        layout.data,
        layout.kubelet,
        layout.pod_logs,
        layout.config,
        layout.pki,
        layout.kubeconfigs,
        layout.cni / "net.d",
        layout.cni / "networks",
        layout.root / "kubectl-cache",
        layout.root / "helm",
        layout.root / "unpacked",
    ):
        shutil.rmtree(path, ignore_errors=True)
    layout.kubeconfig.unlink(missing_ok=True)
