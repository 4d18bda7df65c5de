"""Images, through the gate of the handler that they are pulled for."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from noderuntime.engine import admission
from noderuntime.engine.decisions import asking
from noderuntime.errors import NodeRuntimeError, NotFoundError
from noderuntime.telemetry import metrics

if TYPE_CHECKING:
    from noderuntime.engine.node import Node
    from noderuntime.images.ports import Credentials, Image
    from noderuntime.policy.model import SandboxConfig


async def pull_image(
    node: Node,
    reference: str,
    credentials: Credentials | None,
    handler: str,
    pod: SandboxConfig | None = None,
) -> Image:
    """Pull it, if the handler may have it. Raises DeniedError, ImageError.

    ``pod`` is whom it is for, where that is known: an exception may hold for it, and its namespace
    says whether it is governed where it names no handler. A pull for nobody is the node's own; a
    container of the image is asked about again.
    """
    served = await node.handlers.settled(handler, None if pod is None else pod.pod.namespace)
    if pod is not None:
        served = admission.for_pod(served, pod, node.now_ns())
    asked = asking(node, "PullImage", None if pod is None else pod.pod)
    admission.admit_image(asked, served, reference)
    started, outcome = time.monotonic(), "Cancelled"
    try:
        image = await node.parts.images.pull(reference, credentials)
        outcome = "succeeded"
    except NodeRuntimeError as error:
        outcome = error.reason
        raise
    finally:
        metrics.observe_pull(outcome, time.monotonic() - started)
    return image


async def remove_image(node: Node, reference: str) -> None:
    """Remove it with all its names; unknown is success."""
    with suppress(NotFoundError):
        await node.parts.images.remove(reference)
