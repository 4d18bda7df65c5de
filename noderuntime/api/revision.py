"""The revision: all that one node is to serve, in one file, named by the digest of its content.

The operator composes it, the agent writes it beside and renames it over ``/etc/noderuntime/current``,
the runtime serves it whole or, where it is not valid, refuses every handler that it had.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from noderuntime.api.model import API_VERSION, ApiModel
from noderuntime.api.noderuntime import ResourceRules, Tracing
from noderuntime.api.securityprofile import SecurityProfileSpec


class RevisionProfile(ApiModel):
    """A SecurityProfile as it was when the revision was made."""

    name: str
    spec: SecurityProfileSpec


class RevisionHandler(ApiModel):
    """One handler of a node: a NodeRuntime with its profile, resolved."""

    name: str
    node_runtime: str
    oci_runtime: Literal["crun", "runc"] = "crun"
    cni_conf_dir: str = Field(default="", pattern=r"^(/[^/]+)*$")  # "" is the node's network
    profile: RevisionProfile
    allowed_registries: tuple[str, ...] = ()  # empty allows every one
    resources: ResourceRules = ResourceRules()
    tracing: Tracing | None = None


class RevisionDefault(ApiModel):
    """The handler that governs Pods that name none, but in these namespaces."""

    handler: str
    exempt_namespaces: tuple[str, ...] = ()


class Revision(ApiModel):
    """The file. ``digest`` is over the canonical JSON of its content (sorted keys, no spaces)."""

    api_version: Literal["noderuntime.io/v1alpha1"] = API_VERSION
    kind: Literal["Revision"] = "Revision"
    digest: str
    handlers: tuple[RevisionHandler, ...] = Field(default=())
    default: RevisionDefault | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a default that is not there: earlier versions do not know the field."""
        found: dict[str, Any] = whole(self)
        return {name: value for name, value in found.items() if name != "default" or value}


def digest_of(handlers: tuple[RevisionHandler, ...], default: RevisionDefault | None = None) -> str:
    """Return ``sha256:HEX`` of the handlers, sorted by name, and of the default where there is one."""
    ordered = sorted(handlers, key=lambda handler: handler.name)
    dumped = [handler.model_dump(mode="json", by_alias=True) for handler in ordered]
    body: object = dumped
    if default is not None:
        body = {"handlers": dumped, "default": default.model_dump(mode="json", by_alias=True)}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def make_revision(
    handlers: tuple[RevisionHandler, ...], default: RevisionDefault | None = None
) -> Revision:
    """Compose a revision from handlers in any order."""
    ordered = tuple(sorted(handlers, key=lambda handler: handler.name))
    return Revision(digest=digest_of(ordered, default), handlers=ordered, default=default)
