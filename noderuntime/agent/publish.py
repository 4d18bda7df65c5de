"""The revision file: replaced whole, or not touched. The runtime reads only this of the cluster.

Source: docs/architecture.md, rule "a node serves exactly one revision digest at a time".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from noderuntime.host import durable

if TYPE_CHECKING:
    from pathlib import Path

    from noderuntime.api.revision import Revision


def content_of(revision: Revision) -> bytes:
    """Return the file's content: the same bytes for the same revision."""
    return (revision.model_dump_json(by_alias=True, indent=1) + "\n").encode()


async def publish(revision: Revision, path: Path) -> bool:
    """Make ``path`` hold the revision; False when it did already. Raises HostError."""
    content = content_of(revision)
    if durable.read(path) == content:
        return False
    await durable.write_async(path, content, mode=0o644)
    return True
