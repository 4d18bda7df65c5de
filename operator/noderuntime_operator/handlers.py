"""Kopf's part: it watches, and says that something changed. Nothing else of kopf is used.

Only ``on.event``: the other handlers write to the objects (finalizers, annotations, status). No peering, no
posting of events, no scanning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import kopf

from noderuntime.api.model import GROUP, VERSION
from noderuntime_operator.reconcile.names import LABELS

_ADMISSION: Final = ("validatingadmissionpolicies", "validatingadmissionpolicybindings")
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class _Forever:
    """Delays between tries that never run out: the API server may be away for hours."""

    def __iter__(self) -> Iterator[float]:
        yield from (1, 1, 2, 3, 5, 8)
        while True:
            yield 10


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings with all machinery off that would write."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.scanning.disabled = True
    made.networking.error_backoffs = _Forever()
    made.networking.request_timeout = 30
    made.networking.connect_timeout = 10
    made.watching.server_timeout = 300
    made.watching.connect_timeout = 10
    made.watching.chunk_size = 500
    return made


def registry(changed: Callable[[], None], *, admission: bool) -> kopf.OperatorRegistry:
    """Return the handlers; each calls ``changed`` when something that matters did.

    ``admission`` tells whether admission policies can be watched; kopf would end where they cannot.
    """
    made = kopf.OperatorRegistry()
    labels_of_nodes: dict[str, object] = {}

    async def any_event(**_: object) -> None:
        changed()

    async def node_event(
        name: str | None, type: str | None, labels: Mapping[str, str], **_: object
    ) -> None:
        # Kubelets write to their Node every few seconds; only its labels and its being there matter.
        seen: object = None if type == "DELETED" else dict(labels)
        if labels_of_nodes.get(name or "") != seen:
            labels_of_nodes[name or ""] = seen
            changed()

    for plural in ("noderuntimes", "securityprofiles", "noderuntimestates"):
        kopf.on.event(GROUP, VERSION, plural, id=plural, registry=made)(any_event)
    kopf.on.event("node.k8s.io", "v1", "runtimeclasses", id="classes", registry=made)(any_event)
    for plural in ("daemonsets", "controllerrevisions"):
        kopf.on.event("apps", "v1", plural, id=plural, registry=made, labels=LABELS)(any_event)
    for plural in _ADMISSION if admission else ():
        group = "admissionregistration.k8s.io"
        kopf.on.event(group, "v1", plural, id=plural, registry=made, labels=LABELS)(any_event)
    kopf.on.event("", "v1", "nodes", id="nodes", registry=made)(node_event)
    kopf.on.login(id="login", registry=made)(_login)
    return made


def _login(**options: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401 - kopf's own signature
    """Log in as the Pod's account, by the address that the kubelet gives: no DNS is needed."""
    host, port = (
        os.environ.get("KUBERNETES_SERVICE_HOST"),
        os.environ.get("KUBERNETES_SERVICE_PORT"),
    )
    token = _ACCOUNT / "token"
    if not host or not token.exists():
        return kopf.login_with_kubeconfig(**options)
    address = f"[{host}]" if ":" in host else host
    return kopf.ConnectionInfo(
        server=f"https://{address}:{port or '443'}",
        ca_path=str(_ACCOUNT / "ca.crt"),
        token=token.read_text().strip(),
    )


def quieten() -> None:
    """Keep kopf's line an event out of the log."""
    for name in ("kopf.objects", "kopf.activities"):
        logging.getLogger(name).setLevel(logging.WARNING)
