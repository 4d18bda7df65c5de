"""Names that the operator gives and recognises its objects by."""

from __future__ import annotations

from typing import Final

from noderuntime.api.model import GROUP

FIELD_MANAGER: Final = "noderuntime-operator"
FINALIZER: Final = f"{GROUP}/in-use"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
OWNER_LABEL: Final = (
    f"{GROUP}/node-runtime"  # on a RuntimeClass: the NodeRuntime that it is made from
)
APPLIED: Final = (
    f"{GROUP}/applied"  # digest of what was applied last, so that removed fields are seen
)
EMPTIED_AT: Final = (
    f"{GROUP}/emptied-at"  # on a NodeRuntimeState: since when its node is to serve nothing
)
AGENT: Final = "noderuntime-agent"
LABELS: Final = {MANAGED_BY: FIELD_MANAGER}


def revision_name(digest: str) -> str:
    """Return the ControllerRevision's name for ``sha256:HEX``."""
    return f"noderuntime-{digest.removeprefix('sha256:')[:12]}"
