"""Which devices of the node a container may have: by path, with what it may do, or by CDI name.

A block volume of the Pod comes through ``.../pods/UID/volumeDevices`` of the kubelet, which no Pod
can name before it exists: it is a volume, not a device of the node that somebody asks for.
Source: kubelet ``pkg/kubelet/kubelet_pods.go`` (makeBlockVolumes); CDI specification, "Qualified
names".
"""

from __future__ import annotations

from collections.abc import Iterator
from posixpath import normpath

from noderuntime.policy.denial import Denial, listed, printable
from noderuntime.policy.facts import ContainerFacts
from noderuntime.policy.mounts import covering

_EVERYTHING = "rwm"


def are_allowed(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse devices of the node that the profile does not list, or with more than it lists."""
    rules = facts.rules
    if rules.privileged:
        return
    for device in facts.container.devices:
        if _is_block_volume(device.host_path, facts.sandbox.pod.uid):
            continue
        path = _clean(facts.host.real_paths.get(device.host_path, device.host_path))
        shown = path if path == device.host_path else f"{path} (behind {device.host_path})"
        above = covering(path, rules.devices)
        if not above:
            paths = tuple(rule.path for rule in rules.devices)
            yield facts.deny(
                "volumeDevices",
                shown,
                f"devices.allow has {listed(paths)}",
                "remove the device or the extended resource that brings it, or add "
                f"{printable(path, 80)} to devices.allow",
            )
            continue
        allowed = {letter for rule in above for letter in rule.permissions}
        more = [c for c in (device.permissions or _EVERYTHING) if c not in allowed]
        if more:
            letters = "".join(c for c in _EVERYTHING if c in allowed)
            yield facts.deny(
                "volumeDevices",
                f"{device.permissions or _EVERYTHING} for {shown}",
                f"devices.allow has {above[0].path} with permissions: {letters}",
                f"ask for {letters} alone",
            )


def cdi_devices_are_allowed(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse CDI devices by their qualified names; ``vendor.com/class=*`` allows a class."""
    rules = facts.rules
    if rules.privileged:
        return
    for name in facts.container.cdi_devices:
        kind, _, device = name.partition("=")
        if name not in rules.cdi and not (device and f"{kind}=*" in rules.cdi):
            yield facts.deny(
                "CDI device",
                name,
                f"devices.cdi has {listed(rules.cdi)}",
                f"remove the claim that brings it, or add {printable(name, 80)} to devices.cdi",
            )


def _is_block_volume(path: str, uid: str) -> bool:
    return bool(uid) and f"/pods/{uid}/volumeDevices/" in _clean(path)


def _clean(path: str) -> str:
    return "/" + normpath(path).lstrip("/")
