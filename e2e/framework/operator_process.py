"""The operator as its own process against an API server, with the RBAC of the chart and nothing more."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import yaml

from e2e.framework.api_server import ApiServer, binary, wait_for

Json = dict[str, Any]  # free-form

NAMESPACE: Final = "noderuntime-system"
_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_COLLECTIONS: Final = {
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles",
    "RoleBinding": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings",
    "Deployment": f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments",
    "Job": f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs",
    "ValidatingAdmissionPolicy": (
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    ),
    "ValidatingAdmissionPolicyBinding": (
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
    ),
}


def rendered_chart(home: Path, *arguments: str) -> list[Json]:
    """Return what `helm template` makes of the chart; ``home`` is where helm keeps its files."""
    places = {f"HELM_{name}_HOME": str(home) for name in ("DATA", "CONFIG", "CACHE")}
    done = subprocess.run(
        [
            *(
                str(binary("helm")),
                "template",
                "noderuntime",
                str(_REPOSITORY / "charts/noderuntime"),
            ),
            *("--namespace", NAMESPACE, *arguments),
        ],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def install_chart(server: ApiServer, home: Path) -> None:
    """Create all objects of the chart, strictly validated; the API server has the last word on them."""
    created = server.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    if created.error:
        raise RuntimeError(created.error)
    for document in rendered_chart(home):
        answer = server.create(_COLLECTIONS[document["kind"]], document)
        if answer.error:
            raise RuntimeError(f"{document['kind']}: {answer.error}")
    group = "/apis/noderuntime.io/v1alpha1/noderuntimes"
    wait_for("the CRDs are served", lambda: server.get(group).status == 200)


def token_of(server: ApiServer, account: str, pod: Json | None = None) -> str:
    """Return a token as the kubelet asks for one; bound to the Pod it names that Pod's node."""
    spec: Json = {"audiences": ["https://noderuntime.test"], "expirationSeconds": 3600}
    if pod is not None:
        metadata = pod["metadata"]
        spec["boundObjectRef"] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
    answer = server.call(
        "POST",
        f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
    )
    if answer.error:
        raise RuntimeError(answer.error)
    return str(answer.body["status"]["token"])


class OperatorProcess:
    """Starts and ends; its log is kept over restarts."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self._server, self._folder = server, folder
        self.log = folder / "operator.log"
        self._kubeconfig = server.kubeconfig(
            folder / "operator.kubeconfig", token_of(server, "noderuntime-operator")
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def start(self) -> None:
        """Start and wait until its first pass went through."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "noderuntime_operator.main"], env=self._env(), stderr=out
            )
        wait_for("the operator is ready", lambda: self.answer("/readyz") == 200)

    def _env(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": f"{_REPOSITORY}:{_REPOSITORY / 'operator'}",
            "KUBECONFIG": str(self._kubeconfig),
            "POD_NAMESPACE": NAMESPACE,
            "NODERUNTIME_DEPLOYMENT": "noderuntime-operator",
            "NODERUNTIME_AGENT_IMAGE": "registry.example.com/noderuntime:1",
            "NODERUNTIME_HEALTH_ADDRESS": self.address,
        }

    def answer(self, path: str) -> int:
        """Return the HTTP status of a probe; 0 where nothing listens."""
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the operator ended: {self.log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=5) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def release(self) -> None:
        """Run what the chart's hook runs after the operator is gone, with that hook's account."""
        token = token_of(self._server, "noderuntime-release")
        file = self._server.kubeconfig(self._folder / "release.kubeconfig", token)
        done = subprocess.run(
            [sys.executable, "-m", "noderuntime_operator.main", "release"],
            env={**self._env(), "KUBECONFIG": str(file)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)

    def kill(self) -> None:
        """End it as a node's failure would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=20)
            self._process = None

    def terminate(self) -> int:
        """End it as the kubelet does; returns the exit status."""
        if self._process is None:
            return 0
        self._process.terminate()
        status = self._process.wait(timeout=20)
        self._process = None
        return status
