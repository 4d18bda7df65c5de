"""Clients of the cluster: kubectl, as a person uses it, and plain HTTPS for cheap polling."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
from collections.abc import Mapping
from typing import Any

from e2e.cluster.layout import API_PORT, NODE_IP, Layout

Json = dict[str, Any]  # an object of the API server; free-form

PATHS = {
    "configmap": "/api/v1/namespaces/{namespace}/configmaps",
    "controllerrevision": "/apis/apps/v1/namespaces/{namespace}/controllerrevisions",
    "daemonset": "/apis/apps/v1/namespaces/{namespace}/daemonsets",
    "deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "event": "/api/v1/namespaces/{namespace}/events",
    "lease": "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
    "namespace": "/api/v1/namespaces",
    "node": "/api/v1/nodes",
    "noderuntime": "/apis/noderuntime.io/v1alpha1/noderuntimes",
    "noderuntimestate": "/apis/noderuntime.io/v1alpha1/noderuntimestates",
    "pod": "/api/v1/namespaces/{namespace}/pods",
    "runtimeclass": "/apis/node.k8s.io/v1/runtimeclasses",
    "securityprofile": "/apis/noderuntime.io/v1alpha1/securityprofiles",
    "serviceaccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "service": "/api/v1/namespaces/{namespace}/services",
}


class KubectlError(AssertionError):
    """A kubectl that ended with an error; the text is what it said."""


class Kubectl:
    """kubectl as the administrator. Its words are as on the command line."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def argv(self, *words: str) -> list[str]:
        """The whole command line, for programs that run on (`attach`, `port-forward`)."""
        layout = self._layout
        cache = f"--cache-dir={layout.root / 'kubectl-cache'}"
        return [layout.binary("kubectl"), f"--kubeconfig={layout.kubeconfig}", cache, *words]

    def run(
        self, *words: str, text: str | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, whatever the status."""
        return subprocess.run(
            self.argv(*words),
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self._layout.environment(),
        )

    def __call__(self, *words: str, text: str | None = None, timeout_s: float = 60) -> str:
        """Run and return what was printed; raises KubectlError."""
        done = self.run(*words, text=text, timeout_s=timeout_s)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: Mapping[str, Any], namespace: str = "default") -> None:
        """Apply objects; raises KubectlError with the API server's reason."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "-n", namespace, "-f", "-", text=json.dumps(listed))


class Api:
    """GET and DELETE at the API server; a new connection each time, so it survives restarts."""

    def __init__(self, layout: Layout) -> None:
        self._tls = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
        self._tls.load_cert_chain(layout.pki / "admin.crt", layout.pki / "admin.key")

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Json]:
        """Returns the status and the object; raises OSError when the server is not there."""
        connection = http.client.HTTPSConnection(NODE_IP, API_PORT, timeout=10, context=self._tls)
        try:
            content = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} if content else {}
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()
        found: Json = json.loads(text) if text.startswith(b"{") else {"message": text.decode()}
        return answer.status, found

    def get(self, kind: str, name: str, namespace: str = "default") -> Json | None:
        """One object; None if there is none."""
        status, found = self.call("GET", f"{_path(kind, namespace)}/{name}")
        if status == 404:
            return None
        assert status == 200, found
        return found

    def list(self, kind: str, namespace: str = "default", selector: str = "") -> list[Json]:
        """All objects of a kind; namespace "" is all of them; labels as `a=b`."""
        query = f"?labelSelector={selector.replace('=', '%3D')}" if selector else ""
        status, found = self.call("GET", f"{_path(kind, namespace)}{query}")
        assert status == 200, found
        items: list[Json] = found["items"]
        return items

    def delete(self, kind: str, name: str, namespace: str = "default", grace_s: int = 0) -> None:
        """Delete; no error if it is gone."""
        path = f"{_path(kind, namespace)}/{name}?gracePeriodSeconds={grace_s}"
        status, found = self.call("DELETE", path)
        assert status in {200, 202, 404}, found


def _path(kind: str, namespace: str) -> str:
    path = PATHS[kind].format(namespace=namespace)
    return path if namespace else path.replace("/namespaces//", "/")
