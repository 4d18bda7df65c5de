"""What goes into the cluster once it answers: images, RBAC of the API server, chart, examples."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from e2e.cluster import health, processes
from e2e.cluster.image import oci, recipes
from e2e.cluster.image.push import push
from e2e.cluster.layout import NAMESPACE, REGISTRY, Layout
from e2e.cluster.state import ClusterError

RELEASE: Final = "noderuntime"
READY_S: Final = 120.0

# The API server is no administrator to the kubelet: it may do what logs, exec and metrics need.
_KUBELET_ACCESS: Final[dict[str, object]] = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "noderuntime:kube-apiserver-kubelet-client"},
    "roleRef": {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "system:kubelet-api-admin",
    },
    "subjects": [
        {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "User",
            "name": "kube-apiserver-kubelet-client",
        }
    ],
}


def kubectl(layout: Layout, *words: str, text: str | None = None, timeout_s: float = 120) -> str:
    """Run kubectl as the administrator; raises ClusterError with what it said."""
    argv = [layout.binary("kubectl"), f"--kubeconfig={layout.kubeconfig}", *words]
    # Its discovery cache would go to the home folder.
    cache = f"--cache-dir={layout.root / 'kubectl-cache'}"
    return processes.run([*argv, cache], layout, timeout_s=timeout_s, text=text)


def helm(layout: Layout, *words: str, timeout_s: float = 180) -> str:
    """Run helm with its own folders in .cluster, not in the home."""
    folders = {
        f"HELM_{kind}_HOME": str(layout.root / "helm" / kind.lower())
        for kind in ("CACHE", "CONFIG", "DATA")
    }
    argv = [layout.binary("helm"), f"--kubeconfig={layout.kubeconfig}", *words]
    return processes.run(argv, layout, timeout_s=timeout_s, environment=folders)


def grant_api_server_the_kubelet(layout: Layout) -> None:
    """Bind the API server's client certificate to the kubelet's API."""
    kubectl(layout, "apply", "--server-side", "-f", "-", text=json.dumps(_KUBELET_ACCESS))


def push_images(layout: Layout, tell: Callable[[str], None]) -> bool:
    """Build and push every image that is not in the registry as it should be."""
    tls = health.context(layout, None)
    changed = False
    for recipe in recipes.RECIPES:
        tell(recipe.name)
        folder, built = recipes.build(layout, recipe)
        pushed = push(folder, REGISTRY, recipe.name, recipe.tag, tls)
        changed = changed or built or pushed
    return changed


def image_digest(layout: Layout, name: str) -> str:
    """The digest of an image that was built."""
    return oci.read_manifest(layout.images / name)[0]


def install_chart(layout: Layout, tell: Callable[[str], None]) -> bool:
    """`helm install`, or an upgrade when chart or image changed; waits for the operator."""
    chart = layout.repository / "charts/noderuntime"
    if not (chart / "Chart.yaml").exists():
        raise ClusterError(f"{chart} is missing")
    digest = image_digest(layout, "noderuntime")
    wanted = _digest_of(chart, digest)
    if _deployed(layout) == wanted:
        return False
    tell("helm install")
    helm(
        layout,
        *("upgrade", "--install", RELEASE, str(chart)),
        *("--namespace", NAMESPACE, "--create-namespace", "--description", wanted),
        *("--set", f"image.repository={REGISTRY}/noderuntime"),
        *("--set", f"image.digest={digest}"),
    )
    tell("waiting for the operator")
    wait_rollout(layout, NAMESPACE)
    return True


def _deployed(layout: Layout) -> str:
    """The digest that the newest release was described with; empty if there is none."""
    try:
        out = helm(layout, "history", RELEASE, "--namespace", NAMESPACE, "--output", "json")
    except ClusterError:
        return ""
    releases: list[dict[str, Any]] = json.loads(out)
    last = releases[-1]
    return str(last["description"]) if last["status"] == "deployed" else ""


def _digest_of(folder: Path, *more: str) -> str:
    digest = hashlib.sha256("\0".join(more).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def wait_rollout(layout: Layout, namespace: str, name: str = "") -> None:
    """Wait until Deployments are rolled out; says what the events say when they are not."""
    found = kubectl(layout, "get", "deployment", "-n", namespace, "-o", "name").split()
    names = [f"deployment.apps/{name}"] if name else found
    for each in names:
        _wait(layout, namespace, "rollout", "status", each)


def _wait(layout: Layout, namespace: str, *words: str) -> None:
    argv = (*words, "-n", namespace, f"--timeout={READY_S:.0f}s")
    try:
        kubectl(layout, *argv, timeout_s=READY_S + 10)
    except ClusterError as error:
        events = kubectl(layout, "events", "-n", namespace)
        raise ClusterError(f"{error}\nevents in {namespace}:\n{events}") from error


def apply_examples(layout: Layout) -> bool:
    """Apply ``examples/`` and wait until its Pods are ready; False if all was so already."""
    folder = layout.repository / "examples"
    files = sorted(folder.glob("*.yaml"))
    if not files:
        return False
    # First what is declared of nodes: a Pod that comes before its handler is refused, and tried
    # again only after a while.
    ours = [file for file in files if "apiVersion: noderuntime.io/" in file.read_text()]
    out = _apply(layout, ours)
    declared = ("wait", "--for=condition=Ready", "noderuntime", "--all")
    kubectl(layout, *declared, f"--timeout={READY_S:.0f}s", timeout_s=READY_S + 10)
    out += _apply(layout, files)
    listed = kubectl(layout, "get", "-f", str(folder), "-o", "json")
    items: list[dict[str, Any]] = json.loads(listed).get("items", [])
    for item in items:
        name, namespace = item["metadata"]["name"], item["metadata"].get("namespace", "")
        if item["kind"] == "Deployment":
            wait_rollout(layout, namespace, name)
        elif item["kind"] == "Pod":
            _wait(layout, namespace, "wait", "--for=condition=Ready", f"pod/{name}")
    _wait_handlers(layout)
    return any(line and not line.endswith("unchanged") for line in out.splitlines())


def _wait_handlers(layout: Layout) -> None:
    """Wait until the node tells of the declared handlers: the kubelet looks at them now and then."""
    listed = kubectl(layout, "get", "noderuntimes", "-o", "jsonpath={.items[*].spec.handler}")
    deadline = time.monotonic() + READY_S
    path = "jsonpath={.items[*].status.runtimeHandlers[*].name}"
    while not set(listed.split()) <= set(kubectl(layout, "get", "nodes", "-o", path).split()):
        if time.monotonic() > deadline:
            raise ClusterError(f"the node does not tell of the handlers {listed}")
        time.sleep(0.5)


def _apply(layout: Layout, files: Sequence[Path]) -> str:
    # The API server takes a CRD's objects a moment after the CRD.
    deadline = time.monotonic() + 30
    while True:
        try:
            return kubectl(layout, "apply", *(f"-f={file}" for file in files))
        except ClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
