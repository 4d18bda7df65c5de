"""The agent's DaemonSet: on every node that a NodeRuntime selects, and on those that are still to be emptied."""

from __future__ import annotations

from typing import Any, Final

from noderuntime_operator.reconcile.names import AGENT, LABELS
from noderuntime_operator.reconcile.plan import marked
from noderuntime_operator.reconcile.selection import affinity_term
from noderuntime_operator.reconcile.view import View

_MOST_NAMED_NODES: Final = 100
_SELECTOR: Final = {"app.kubernetes.io/name": AGENT}


def daemonset_of(view: View) -> dict[str, Any]:
    """Return the whole object."""
    settings = view.observed.settings
    metadata: dict[str, Any] = {
        "name": AGENT,
        "namespace": settings.namespace,
        "labels": LABELS | _SELECTOR,
    }
    if settings.owner:
        metadata["ownerReferences"] = [dict(settings.owner)]
    return marked(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": _SELECTOR},
                # An agent that is away disturbs nothing: the node serves what is on its disk.
                "updateStrategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxUnavailable": "25%"},
                },
                "template": {
                    "metadata": {"labels": LABELS | _SELECTOR},
                    "spec": _pod(view, settings.agent_image),
                },
            },
        }
    )


def _pod(view: View, image: str) -> dict[str, Any]:
    terms = _terms(view)
    affinity: dict[str, Any] = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}
        }
    }
    return {
        "serviceAccountName": AGENT,
        # No runtimeClassName: the agent must start where nothing of ours is served yet.
        "priorityClassName": "system-node-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 5,
        "containers": [_container(image)],
        "volumes": [
            _host_path("etc", "/etc/noderuntime", "DirectoryOrCreate"),
            # The agent's own socket is there, which answers few calls; a runtime may come later.
            _host_path("run", "/run/noderuntime/agent", "DirectoryOrCreate"),
        ],
    } | ({"affinity": affinity} if terms else {})


def _container(image: str) -> dict[str, Any]:
    return {
        "name": "agent",
        "image": image,
        "command": ["noderuntime", "agent"],
        "env": [
            _from_field("NODE_NAME", "spec.nodeName"),
            _from_field("POD_NAMESPACE", "metadata.namespace"),
        ],
        "resources": {
            "requests": {"cpu": "10m", "memory": "64Mi"},
            "limits": {"memory": "256Mi"},
        },
        # User 0 owns the two folders, so it needs no capability to write there.
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "etc", "mountPath": "/etc/noderuntime"},
            {"name": "run", "mountPath": "/run/noderuntime/agent", "readOnly": True},
        ],
    }


def _from_field(name: str, path: str) -> dict[str, Any]:
    source = {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}
    return {"name": name, "valueFrom": source}


def _host_path(name: str, path: str, kind: str) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": path, "type": kind}}


def _terms(view: View) -> list[dict[str, Any]]:
    """Return one term a selector and one a node to empty; none at all means every node."""
    specs = [
        each.spec
        for each in view.observed.node_runtimes
        if each.spec is not None and each.name not in view.released
    ]
    unreadable = any(each.spec is None for each in view.observed.node_runtimes)
    terms = [affinity_term(spec.node_selector) for spec in specs]
    leaving = sorted(state.name for state in view.draining)
    if unreadable or not all(terms) or len(leaving) > _MOST_NAMED_NODES:
        return []
    unique = [term for index, term in enumerate(terms) if term not in terms[:index]]
    # matchFields takes one value a requirement, so a term a node.
    named = [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        for node in leaving
    ]
    return sorted(unique, key=str) + named
