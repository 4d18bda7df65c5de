"""Pods as the tests need them: small, of our own images, each difference said by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from e2e.cluster.image.recipes import RECIPES
from e2e.cluster.layout import REGISTRY

Json = dict[str, Any]

IMAGES: Final = {recipe.name: f"{REGISTRY}/{recipe.name}:{recipe.tag}" for recipe in RECIPES}


# For a container that a profile with `runAs.nonRoot` governs.
AS_USER: Final[Json] = {"securityContext": {"runAsUser": 1000, "runAsGroup": 1000}}


def pod(
    name: str,
    *containers: Mapping[str, Any],
    handler: str | None = None,
    labels: Mapping[str, str] | None = None,
    **spec: object,
) -> Json:
    """A Pod under a handler (None: the node's own). `spec` goes into the Pod's spec as it is."""
    whole: Json = {
        "containers": list(containers) or [busybox("sleep", "100000")],
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        **spec,
    }
    if handler is not None:
        whole["runtimeClassName"] = handler
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels or {"app": name})},
        "spec": whole,
    }


def container(
    image: str, *command: str, name: str = "main", args: Sequence[str] = (), **more: object
) -> Json:
    """A container of one of our images (by name) or of any other."""
    whole: Json = {"name": name, "image": IMAGES.get(image, image), **more}
    if command:
        whole["command"] = list(command)
    if args:
        whole["args"] = list(args)
    return whole


def busybox(*command: str, name: str = "main", **more: object) -> Json:
    """A container of busybox that runs a command."""
    return container("busybox", *command, name=name) | more


def shell(script: str, name: str = "main", **more: object) -> Json:
    """A container of busybox that runs a shell script."""
    return busybox("sh", "-c", script, name=name, **more)


def agnhost(*args: str, name: str = "main", **more: object) -> Json:
    """A container of agnhost with one of its subcommands."""
    return container("agnhost", name=name, args=args, **more)


def service(name: str, port: int, selector: Mapping[str, str] | None = None) -> Json:
    """A Service before the Pods with a label."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": dict(selector or {"app": name}),
            "ports": [{"port": port, "targetPort": port}],
        },
    }
