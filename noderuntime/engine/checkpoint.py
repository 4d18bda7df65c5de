"""CheckpointContainer: refused for now, by the name of what is missing for it.

A checkpoint needs CRIU on the node and an OCI runtime that was built with it. Where both are there,
what is missing is ours: the archive of the kubelet's format (KEP-2008) is not written yet.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from noderuntime.engine.exec import require_running
from noderuntime.engine.node import Node
from noderuntime.errors import UnimplementedError
from noderuntime.host.process import Command, run

_TIMEOUT_S: Final = 10.0


async def checkpoint_container(node: Node, container_id: str) -> None:
    """Refuse. Raises NotFoundError, FailedPreconditionError, UnimplementedError."""
    record = require_running(node, container_id)
    reason = await missing(Path(record.oci_runtime))
    raise UnimplementedError(f"container {record.id} cannot be checkpointed: {reason}")


async def missing(oci_runtime: Path) -> str:
    """Return what this node lacks for a checkpoint."""
    if shutil.which("criu") is None:
        return "criu is not installed on this node"
    output = await run(Command(argv=(str(oci_runtime), "--version"), timeout_s=_TIMEOUT_S))
    # crun lists what it was built with as +CRIU; runc always has it.
    if oci_runtime.name == "crun" and b"+CRIU" not in output.stdout:
        return f"{oci_runtime} was built without CRIU"
    return "checkpoint archives are not served by this version"
