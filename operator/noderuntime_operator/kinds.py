"""The kinds that the operator reads and writes, as lightkube knows them: plain JSON, no typed models."""

from __future__ import annotations

from typing import Any, Final

from lightkube.generic_resource import (
    create_global_resource,  # pyright: ignore[reportUnknownVariableType]  # untyped `verbs`
    create_namespaced_resource,  # pyright: ignore[reportUnknownVariableType]
)

from noderuntime.api.model import GROUP, VERSION
from noderuntime_operator.reconcile.plan import Kind

RESOURCES: Final[dict[Kind, Any]] = {
    Kind.NODE_RUNTIME: create_global_resource(GROUP, VERSION, "NodeRuntime", "noderuntimes"),
    Kind.SECURITY_PROFILE: create_global_resource(
        GROUP, VERSION, "SecurityProfile", "securityprofiles"
    ),
    Kind.STATE: create_global_resource(GROUP, VERSION, "NodeRuntimeState", "noderuntimestates"),
    Kind.RUNTIME_CLASS: create_global_resource(
        "node.k8s.io", "v1", "RuntimeClass", "runtimeclasses"
    ),
    Kind.DAEMON_SET: create_namespaced_resource("apps", "v1", "DaemonSet", "daemonsets"),
    Kind.REVISION: create_namespaced_resource(
        "apps", "v1", "ControllerRevision", "controllerrevisions"
    ),
    Kind.ADMISSION_POLICY: create_global_resource(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
    ),
    Kind.ADMISSION_BINDING: create_global_resource(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
    ),
}
NAMESPACED: Final = frozenset({Kind.DAEMON_SET, Kind.REVISION})
NODE: Final[Any] = create_global_resource("", "v1", "Node", "nodes")
POD: Final[Any] = create_namespaced_resource("", "v1", "Pod", "pods")
DEPLOYMENT: Final[Any] = create_namespaced_resource("apps", "v1", "Deployment", "deployments")
