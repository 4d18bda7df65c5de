"""A profile on a real node, as a handler for each OCI runtime."""

from __future__ import annotations

from typing import Any, Final

from noderuntime.api.revision import RevisionHandler, RevisionProfile, make_revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from tests.root.engine_kit import RealNode

HANDLERS: Final = ("crun-profile", "runc-profile")


def serve(node: RealNode, profile: dict[str, Any]) -> None:
    """Serve it, in place of what was served before."""
    spec = SecurityProfileSpec.model_validate(profile)
    handlers = tuple(
        RevisionHandler(
            name=name,
            node_runtime="test",
            oci_runtime="crun" if name.startswith("crun") else "runc",
            profile=RevisionProfile(name="test", spec=spec),
        )
        for name in HANDLERS
    )
    beside = node.root / "current.new"
    beside.write_text(make_revision(handlers).model_dump_json(by_alias=True))
    beside.rename(node.root / "current")
