"""The last words of ``up``, and ``status``: the node, its handlers, the Pods, what to try next."""

from __future__ import annotations

import json
from typing import Any

from e2e.cluster import deploy, processes
from e2e.cluster.layout import Layout
from e2e.cluster.state import ClusterError, State


def summary(layout: Layout) -> str:
    """The node with its runtime handlers and the Pods, as text."""
    node = _node(layout)
    pods = deploy.kubectl(
        layout,
        *("get", "pods", "--all-namespaces", "-o"),
        "custom-columns=NAMESPACE:.metadata.namespace,NAME:.metadata.name,"
        "HANDLER:.spec.runtimeClassName,STATUS:.status.phase,IP:.status.podIP",
    )
    return f"{node}\n\n{pods.rstrip()}\n"


def _node(layout: Layout) -> str:
    out = deploy.kubectl(layout, "get", "nodes", "-o", "json")
    nodes: list[dict[str, Any]] = json.loads(out)["items"]
    lines: list[str] = []
    for node in nodes:
        status = node["status"]
        ready = next(c["status"] for c in status["conditions"] if c["type"] == "Ready")
        handlers: list[dict[str, str]] = status.get("runtimeHandlers") or []
        names = [handler.get("name") or "(default)" for handler in handlers]
        info = status["nodeInfo"]
        lines.append(
            f"node {node['metadata']['name']}: {'Ready' if ready == 'True' else 'not ready'}, "
            f"{info['kubeletVersion']}, {info['containerRuntimeVersion']}, "
            f"runtime handlers: {', '.join(names) or 'none'}"
        )
    return "\n".join(lines) or "no node"


def next_steps(layout: Layout) -> str:
    """Three commands to try."""
    example = _example_pod(layout)
    first = f"export KUBECONFIG={layout.kubeconfig} PATH={layout.bin}:$PATH"
    shown = (
        [
            f"kubectl logs {example}",
            f"kubectl describe pod {example}",
        ]
        if example
        else ["kubectl get nodes -o yaml", "kubectl get events -A"]
    )
    return "\n".join(
        [
            first,
            "",
            "Try next:",
            *(f"  {line}" for line in shown),
            "  kubectl get noderuntimes,securityprofiles",
        ]
    )


def _example_pod(layout: Layout) -> str:
    out = deploy.kubectl(layout, "get", "pods", "--all-namespaces", "-o", "json")
    for pod in json.loads(out)["items"]:
        if pod["spec"].get("runtimeClassName"):
            return f"{pod['metadata']['name']} -n {pod['metadata']['namespace']}"
    return ""


def components(state: State) -> str:
    """Which components run."""
    lines: list[str] = []
    for entry in state.entries:
        if entry["kind"] == "process":
            alive = processes.is_alive(entry["pid"], entry["started"])
            word = f"runs (PID {entry['pid']})" if alive else "has ended"
            lines.append(f"{entry['name']}: {word}")
    return "\n".join(lines) or "no cluster: `make up` makes one"


def status(layout: Layout, state: State) -> str:
    """Everything that can be said now, whatever of the cluster answers."""
    text = components(state)
    try:
        return f"{text}\n\n{summary(layout)}"
    except ClusterError as error:
        return f"{text}\n\n{error}" if state.entries else text
