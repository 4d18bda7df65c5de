"""Specs that the API server must refuse, each with a part of the reason that the user reads."""

from __future__ import annotations

import pytest

_FIRST = {"index": 0, "op": "EQ", "value": 1}
WRONG_NODE_RUNTIMES = [
    pytest.param(
        {"default": {"exemptNamespaces": ["kube-system", "Kube_System"]}},
        "spec.default.exemptNamespaces[1]",
        id="a namespace that is none",
    ),
    pytest.param(
        {"default": {"exemptNamespaces": ["a", "a"]}},
        "spec.default.exemptNamespaces[1]: Duplicate value",
        id="a namespace twice",
    ),
    pytest.param({"handler": "Web"}, "spec.handler: Invalid value", id="upper-case handler"),
    pytest.param({"handler": "a.b"}, "spec.handler: Invalid value", id="handler with a dot"),
    pytest.param({"handler": "a" * 64}, "may not be more than 63", id="too long handler"),
    pytest.param({"handler": ""}, "spec.handler: Invalid value", id="empty handler"),
    pytest.param(
        {"securityProfileRef": {}}, "spec.securityProfileRef.name: Required", id="no profile"
    ),
    pytest.param({"hander": "x"}, 'unknown field "spec.hander"', id="misspelled field"),
    pytest.param(
        {"engine": {"ociRuntime": "kata"}}, 'supported values: "crun", "runc"', id="other engine"
    ),
    pytest.param(
        {"nodeSelector": {"matchExpressions": [{"key": "pool", "operator": "In"}]}},
        "values must be given for the operators In and NotIn",
        id="In without values",
    ),
    pytest.param(
        {
            "nodeSelector": {
                "matchExpressions": [{"key": "pool", "operator": "NotIn", "values": []}]
            }
        },
        "values must be given for the operators In and NotIn",
        id="NotIn with no value",
    ),
    pytest.param(
        {
            "nodeSelector": {
                "matchExpressions": [{"key": "gpu", "operator": "Exists", "values": ["x"]}]
            }
        },
        "values must be left out for the operators Exists and DoesNotExist",
        id="Exists with values",
    ),
    pytest.param(
        {"nodeSelector": {"matchExpressions": [{"key": "gpu", "operator": "Has"}]}},
        'Unsupported value: "Has"',
        id="unknown operator",
    ),
    pytest.param(
        {"images": {"allowedRegistries": ["https://registry.example.com"]}},
        "a registry is written without a scheme",
        id="registry with a scheme",
    ),
    pytest.param(
        {"images": {"allowedRegistries": ["registry.example.com/"]}},
        "starts and ends without /",
        id="registry with a slash at its end",
    ),
    pytest.param(
        {"images": {"allowedRegistries": ["*.example.com"]}}, "has no *", id="registry with a star"
    ),
    pytest.param(
        {"images": {"allowedRegistries": ["a", "a"]}}, "Duplicate value", id="registry twice"
    ),
    pytest.param(
        {"resources": {"limits": {"cpu": "lots"}}},
        'spec.resources.limits.cpu: Invalid value: "lots": must be a quantity such as 500m',
        id="cpu that is no quantity",
    ),
    pytest.param(
        {"resources": {"limits": {"memory": "-1Gi"}}}, "must be more than 0", id="negative memory"
    ),
    pytest.param(
        {"resources": {"defaults": {"cpu": 0}}}, "must be more than 0", id="no cpu at all"
    ),
    pytest.param(
        {"resources": {"limits": {"cpu": 0.5}}}, "spec.resources.limits.cpu", id="cpu as a float"
    ),
    pytest.param(
        {"resources": {"defaults": {"cpu": "2"}, "limits": {"cpu": "1500m"}}},
        "spec.resources: Invalid value: defaults.cpu must not be more than limits.cpu",
        id="default cpu above the limit",
    ),
    pytest.param(
        {"resources": {"defaults": {"memory": "1Gi"}, "limits": {"memory": 1073741823}}},
        "defaults.memory must not be more than limits.memory",
        id="default memory above the limit",
    ),
    pytest.param({"resources": {"pidsLimit": 0}}, "greater than or equal to 1", id="no pids"),
    pytest.param(
        {"resources": {"pidsLimit": "many"}}, "must be of type integer", id="pids as text"
    ),
    pytest.param(
        {"tracing": {"endpoint": "collector:4317"}},
        "spec.tracing.endpoint",
        id="endpoint without http",
    ),
    pytest.param(
        {"tracing": {"endpoint": "http://c:4317", "samplingRatePerMillion": 1000001}},
        "less than or equal to 1000000",
        id="sampling more than everything",
    ),
]


def _exception(**fields: object) -> dict[str, object]:
    expires = "2026-12-31T00:00:00Z"
    return {"namespace": "web", "sections": ["runAs"], "expires": expires, **fields}


WRONG_PROFILES = [
    pytest.param({"mode": "Warn"}, 'supported values: "Enforce", "Audit"', id="unknown mode"),
    pytest.param({"privileged": True}, "spec.privileged", id="privileged as a boolean"),
    pytest.param(
        {"hostNamespaces": ["pid"]}, 'Unsupported value: "pid"', id="namespace in lower case"
    ),
    pytest.param({"hostNamespaces": ["PID", "PID"]}, "Duplicate value", id="namespace twice"),
    pytest.param(
        {"runAs": {"users": [{"min": 2000, "max": 1000}]}},
        "spec.runAs.users[0]: Invalid value: min must not be more than max",
        id="users from high to low",
    ),
    pytest.param(
        {"runAs": {"users": [{"min": 1}]}}, "spec.runAs.users[0].max: Required", id="no max"
    ),
    pytest.param(
        {"runAs": {"users": [{"min": 0, "max": 4294967295}]}}, "less than or equal to", id="user -1"
    ),
    pytest.param(
        {"runAs": {"nonRoot": True, "users": [{"min": 0, "max": 10}]}},
        "nonRoot refuses user ID 0",
        id="root among non-root",
    ),
    pytest.param(
        {"capabilities": {"allow": ["CAP_NET_ADMIN"]}},
        "a capability is written without CAP_: NET_ADMIN, not CAP_NET_ADMIN",
        id="capability with CAP_",
    ),
    pytest.param(
        {"capabilities": {"default": ["NET_ADMINN"]}},
        "spec.capabilities.default: Invalid value: must be names of capabilities(7)",
        id="capability that is none",
    ),
    pytest.param(
        {"capabilities": {"allow": ["net_admin"]}},
        "must be names of capabilities(7) in upper case",
        id="capability in lower case",
    ),
    pytest.param(
        {"capabilities": {"allow": ["KILL", "KILL"]}}, "Duplicate value", id="capability twice"
    ),
    pytest.param({"seccomp": {"base": "Unconfined"}}, "Unsupported value", id="no filter at all"),
    pytest.param(
        {"seccomp": {"base": "DenyAll"}}, "base DenyAll needs allow", id="nothing allowed"
    ),
    pytest.param(
        {
            "seccomp": {
                "allow": [{"names": ["read", "bpf"]}],
                "deny": [{"names": ["x"]}, {"names": ["bpf"]}],
            }
        },
        "spec.seccomp: Invalid value: the same system call is in allow and in deny",
        id="system call allowed and denied",
    ),
    pytest.param(
        {"seccomp": {"deny": [{"names": []}]}}, "at least 1 items", id="rule without names"
    ),
    pytest.param({"seccomp": {"deny": [{}]}}, "names: Required value", id="empty rule"),
    pytest.param(
        {"seccomp": {"deny": [{"names": ["Mount()"]}]}}, "names[0]", id="no syscall's name"
    ),
    pytest.param(
        {"seccomp": {"rules": [{"names": ["read"], "action": "Log", "errno": 1}]}},
        "spec.seccomp.rules[0]: Invalid value: errno is for action Errno",
        id="errno without the action",
    ),
    pytest.param(
        {"seccomp": {"rules": [{"names": ["read"], "action": "Log", "args": [_FIRST, _FIRST]}]}},
        "a rule names an argument once",
        id="an argument twice",
    ),
    pytest.param(
        {
            "seccomp": {
                "rules": [
                    {"names": ["read"], "action": "Log", "args": [{**_FIRST, "op": "MASKED_EQ"}]}
                ]
            }
        },
        "valueTwo is for op MASKED_EQ, and needed there",
        id="a mask without a value",
    ),
    pytest.param(
        {"seccomp": {"artifact": "registry.example.com/profiles/web:1"}},
        "spec.seccomp.artifact",
        id="an artifact by tag",
    ),
    pytest.param(
        {"seccomp": {"artifact": f"registry.example.com/web@sha256:{'0' * 64}", "deny": []}},
        "an artifact is the whole filter",
        id="an artifact and more",
    ),
    pytest.param({"sysctls": {"allow": ["net"]}}, "spec.sysctls.allow[0]", id="no sysctl's name"),
    pytest.param(
        {"hostPaths": [{"path": "var/log"}]}, "spec.hostPaths[0].path", id="relative path"
    ),
    pytest.param(
        {"hostPaths": [{"path": "/var/../etc"}]}, "must be a clean absolute path", id="path with .."
    ),
    pytest.param(
        {"hostPaths": [{"path": "/var/log/"}]}, "no / at its end", id="path with / at its end"
    ),
    pytest.param(
        {"hostPaths": [{"path": "/a"}, {"path": "/a"}]}, "Duplicate value", id="path twice"
    ),
    pytest.param(
        {"noNewPrivileges": "Never"}, 'supported values: "Required", "Optional"', id="other word"
    ),
    pytest.param({"inherits": "Base"}, "spec.inherits: Invalid value", id="upper-case base"),
    pytest.param({"inherits": ""}, "spec.inherits", id="empty base"),
    pytest.param({"inherits": "web"}, "a profile cannot inherit from itself", id="its own base"),
    pytest.param(
        {"auditSections": ["rootFilesystem"]}, "Unsupported value", id="a section that only sets"
    ),
    pytest.param(
        {"auditSections": ["runAs", "runAs"]}, "Duplicate value", id="audited section twice"
    ),
    pytest.param(
        {"exceptions": [{"namespace": "web", "sections": ["runAs"]}]},
        "expires: Required value",
        id="exception for ever",
    ),
    pytest.param(
        {"exceptions": [_exception(expires="2026-12-31")]},
        "spec.exceptions[0].expires",
        id="exception until a day without a time",
    ),
    pytest.param(
        {"exceptions": [_exception(expires="2026-13-31T00:00:00Z")]},
        "must be of type date-time",
        id="thirteenth month",
    ),
    pytest.param(
        {"exceptions": [_exception(sections=[])]}, "at least 1 items", id="exception from nothing"
    ),
    pytest.param(
        {"exceptions": [_exception(namespace="*")]}, "namespace", id="exception for everyone"
    ),
    pytest.param(
        {"userNamespace": "Yes"},
        'supported values: "Required", "Optional", "Deny"',
        id="user namespace as a word of its own",
    ),
    pytest.param(
        {"runAs": {"groups": [{"min": 9, "max": 8}]}},
        "spec.runAs.groups[0]: Invalid value: min must not be more than max",
        id="groups from high to low",
    ),
    pytest.param(
        {"procMount": "Unmasked"}, 'supported values: "Default", "UnmaskedAllowed"', id="procMount"
    ),
    pytest.param({"maskedPaths": ["proc/x"]}, "spec.maskedPaths[0]", id="relative masked path"),
    pytest.param(
        {"readonlyPaths": ["/proc/../etc"]},
        "must be clean absolute paths",
        id="masked path with ..",
    ),
    pytest.param(
        {"capabilities": {"allow": ["KILL"], "ambient": ["CHOWN"]}},
        "an ambient capability must be in default or in allow",
        id="ambient capability that nobody gets",
    ),
    pytest.param(
        {"devices": {"allow": [{"path": "/etc/passwd"}]}},
        "spec.devices.allow[0].path",
        id="device outside of /dev",
    ),
    pytest.param(
        {"devices": {"allow": [{"path": "/dev/fuse", "permissions": "wr"}]}},
        "permissions",
        id="permissions in another order",
    ),
    pytest.param(
        {"devices": {"cdi": ["vendor.com/gpu"]}}, "spec.devices.cdi[0]", id="CDI class alone"
    ),
    pytest.param(
        {"ulimits": [{"name": "nofile", "soft": 2, "hard": 1}]},
        "soft must not be more than hard",
        id="soft limit above the hard one",
    ),
    pytest.param(
        {"ulimits": [{"name": "RLIMIT_NOFILE", "soft": 1, "hard": 1}]},
        "Unsupported value",
        id="limit by its name in C",
    ),
    pytest.param(
        {"ulimits": [{"name": "core", "soft": 0, "hard": 0}] * 2},
        "Duplicate value",
        id="limit twice",
    ),
    pytest.param({"resources": {"pids": 0}}, "greater than or equal to 1", id="no process"),
    pytest.param(
        {"resources": {"cpu": {"default": "2", "max": "1"}}},
        "the default CPU must not be more than max",
        id="default CPU above the most",
    ),
    pytest.param(
        {"resources": {"memory": {"default": "2Gi", "max": 1}}},
        "the default memory must not be more than max",
        id="default memory above the most, which is a number",
    ),
    pytest.param(
        {"resources": {"shm": {"default": "0"}}}, "must be more than 0", id="no shared memory"
    ),
    pytest.param(
        {"resources": {"hugepages": {"3Mi": "3Mi"}}},
        "a size of huge pages is one of",
        id="size of pages that is none",
    ),
    pytest.param(
        {"hostPaths": [{"path": "/a", "propagation": ["None"]}]},
        "Unsupported value",
        id="propagation None, which is always allowed",
    ),
    pytest.param(
        {"images": {"allowedRegistries": ["https://a"]}},
        "a registry is written without a scheme",
        id="registry of a profile with a scheme",
    ),
]
