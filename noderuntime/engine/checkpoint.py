"""CheckpointContainer: refused for now, by the name of what is missing for it.

A checkpoint needs CRIU on the node, a kernel that this CRIU can work with (``criu check`` says) and an
OCI runtime that was built with it: where one of them is missing, that is the node's, and told as a
failed precondition. Where all are there, what is missing is ours: the archive of the kubelet's format
(KEP-2008) is not written yet. CRIU 3.17 fails its own check on Linux 6.18, so it could not be shown.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from noderuntime.engine.exec import require_running
from noderuntime.engine.node import Node
from noderuntime.errors import FailedPreconditionError, HostError, UnimplementedError
from noderuntime.host.oci_runtime import clean_message
from noderuntime.host.process import Command, run

_TIMEOUT_S: Final = 10.0


async def checkpoint_container(node: Node, container_id: str) -> None:
    """Refuse. Raises NotFoundError, FailedPreconditionError, UnimplementedError."""
    record = require_running(node, container_id)
    if reason := await missing(Path(record.oci_runtime)):
        raise FailedPreconditionError(f"container {record.id} cannot be checkpointed: {reason}")
    raise UnimplementedError(
        f"container {record.id} cannot be checkpointed: checkpoint archives are not served by this "
        "version of noderuntime"
    )


async def missing(oci_runtime: Path) -> str:
    """Return what this node lacks for a checkpoint, "" where nothing."""
    criu = shutil.which("criu")
    if criu is None:
        return "criu is not installed on this node"
    try:
        built = await run(Command(argv=(str(oci_runtime), "--version"), timeout_s=_TIMEOUT_S))
        # crun lists what it was built with as +CRIU; runc always has it.
        if oci_runtime.name.startswith("crun") and b"+CRIU" not in built.stdout:
            return f"{oci_runtime} was built without CRIU"
        checked = await run(Command(argv=(criu, "check"), timeout_s=_TIMEOUT_S))
    except HostError as error:
        return str(error)
    if checked.exit_code:
        said = clean_message((checked.stderr or checked.stdout).decode(errors="replace"))
        return f"{criu} check says that it cannot work on this kernel: {said or 'nothing more'}"
    return ""
