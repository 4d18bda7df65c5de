"""A cluster for ``noderuntime plan``: objects as the API server lists them, and who asked for what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from noderuntime.cli.planning.cluster import Body, Kind

Json = dict[str, Any]


class PlannedCluster:
    """Implements ``planning.cluster.Cluster`` from lists."""

    def __init__(self) -> None:
        self.objects: dict[Kind, list[Json]] = {kind: [] for kind in Kind}
        self.asked: list[tuple[Kind, str]] = []

    def add(self, kind: Kind, name: str, namespace: str = "", **body: Any) -> Json:
        second = len(self.objects[kind]) % 60
        metadata = {
            "name": name,
            "creationTimestamp": f"2026-01-01T00:00:{second:02}Z",
            **({"namespace": namespace} if namespace else {}),
            **body.pop("metadata", {}),
        }
        made = {"metadata": metadata, **body}
        self.objects[kind].append(made)
        return made

    def runtime(self, name: str = "restricted", **spec: Any) -> None:
        head = {"handler": name, "securityProfileRef": {"name": "web"}}
        made = self.add(Kind.NODE_RUNTIME, name, spec=head | spec)
        handler = made["spec"]["handler"]
        if handler not in [each["metadata"]["name"] for each in self.objects[Kind.RUNTIME_CLASS]]:
            self.add(Kind.RUNTIME_CLASS, handler, handler=handler)

    def profile(self, name: str = "web", **spec: Any) -> None:
        self.add(Kind.SECURITY_PROFILE, name, spec={"mode": "Enforce"} | spec)

    def pod(self, name: str, namespace: str = "web", **options: Any) -> Json:
        """``container`` are fields of its one container, ``owner`` kind and name, ``spec`` more."""
        kind, _, owner = options.get("owner", "").partition("/")
        container = {
            "name": "main",
            "image": "127.0.0.1:5000/app:1",
            **options.get("container", {}),
        }
        spec = {"runtimeClassName": "restricted", "containers": [container]}
        metadata: Json = dict(options.get("metadata", {}))
        if owner:
            metadata["ownerReferences"] = [{"kind": kind, "name": owner, "controller": True}]
        return self.add(
            Kind.POD,
            name,
            namespace,
            metadata=metadata,
            spec=spec | options.get("spec", {}),
            status={"phase": options.get("phase", "Running")},
        )

    def replicas(self, deployment: str, count: int, **options: Any) -> None:
        """Pods as a Deployment and the API server make them, each with a token of its own."""
        for number in range(count):
            token = f"kube-api-access-{number:05}"
            mount = {"name": token, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
            container = {"volumeMounts": [mount], **options.get("container", {})}
            self.pod(
                f"{deployment}-5d9c-{number:05}",
                owner=f"ReplicaSet/{deployment}-5d9c",
                metadata={"labels": {"pod-template-hash": "5d9c"}},
                spec={"nodeName": f"n{number % 3}", "volumes": [{"name": token, "projected": {}}]},
                container=container,
            )

    async def items(self, kind: Kind, namespace: str = "") -> AsyncIterator[Body]:
        self.asked.append((kind, namespace))
        for each in self.objects[kind]:
            if namespace in ("", each["metadata"].get("namespace")):
                yield each
