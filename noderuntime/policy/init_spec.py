"""The OCI config.json of a sandbox's first process (``host/init.py``): it may do nothing at all.

Containers that share its PID namespace can look at it, and with CAP_SYS_PTRACE through
``/proc/1/root``: so its root is read-only and empty, its /proc read-only and masked, it has no
capability and is nobody. It owns the Pod's other namespaces, so that ``/proc/1/ns`` has none of the
node's that the Pod has not.
"""

from __future__ import annotations

from noderuntime.policy.model import UserNamespace
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY, OCI_VERSION, mappings

_NOBODY = 65534


def build_init(
    rootfs: str,
    *,
    cgroups_path: str,
    namespaces: tuple[str, ...],
    user: UserNamespace | None = None,
) -> dict[str, object]:
    """Return config.json; ``namespaces`` are the OCI types that are made anew, besides ``user``."""
    none: list[str] = []
    dev = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
    proc = {"destination": "/proc", "type": "proc", "source": "proc"}
    safe = ["nosuid", "noexec", "ro"]
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": _NOBODY, "gid": _NOBODY},
            "args": ["/init"],
            "env": none,
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(
                ("bounding", "effective", "permitted", "inheritable", "ambient"), none
            ),
            # The Pod ends with it: the kernel should take a container first.
            "oomScoreAdj": -998,
        },
        "root": {"path": rootfs, "readonly": True},
        "mounts": [
            {**dev, "options": [*safe, "mode=755", "size=64k"]},
            {**proc, "options": [*safe, "nodev"]},
        ],
        "linux": {
            "namespaces": [
                {"type": kind}
                for kind in (*(("user",) if user is not None else ()), "mount", *namespaces)
            ],
            **({} if user is None else mappings(user)),
            "cgroupsPath": cgroups_path,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": list(DEFAULT_MASKED),
            "readonlyPaths": list(DEFAULT_READONLY),
        },
    }
