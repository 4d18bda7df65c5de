"""Devices by name (CDI): what a name looks like, and how edits change config.json.

A name is ``VENDOR/CLASS=DEVICE``. What stands behind it is in files of the node, which its
administrator or a driver of his has put there (``host/cdi.py`` reads them); a Pod only says names,
and a profile which of them it may (``policy/devices.py``).
Source: cncf-tags/container-device-interface SPEC.md 1.0.0; OCI runtime-spec config.md "hooks".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.denial import printable
from noderuntime.policy.spec import DeviceNode, device_entry, device_rule

NAME: Final = re.compile(
    r"(?P<kind>[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?)"
    r"=(?P<device>[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiMount:
    """A path of the node inside the container; ``options`` are mount(8)'s, of a known few."""

    host_path: str
    container_path: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What the devices of one container change, in the order of the files and names."""

    env: tuple[str, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    own_owner: frozenset[str] = frozenset()  # devices whose owner the file says
    mounts: tuple[CdiMount, ...] = ()
    hooks: Mapping[str, tuple[Mapping[str, object], ...]] = field(
        default_factory=dict[str, tuple[Mapping[str, object], ...]]
    )
    gids: tuple[int, ...] = ()


def require_names(container: str, names: tuple[str, ...]) -> None:
    """Raise InvalidArgumentError for what is not a device's name."""
    for name in names:
        if len(name) > 512 or not NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"containers[{container}].CDI_devices: {printable(name, 80)} is not a name such as "
                "vendor.com/class=device"
            )


def with_edits(document: Mapping[str, object], edits: Edits) -> dict[str, object]:
    """Return config.json with the edits applied; a variable that is there already is replaced."""
    process = cast("Mapping[str, object]", document["process"])
    linux = cast("Mapping[str, object]", document["linux"])
    mounts = cast("list[object]", document["mounts"])
    hooks = {name: [dict(hook) for hook in some] for name, some in edits.hooks.items()}
    return {
        **document,
        **({"hooks": hooks} if hooks else {}),
        "process": _process(process, edits),
        "mounts": [*mounts, *_mounts(edits)],
        "linux": _linux(linux, _owned(process, edits)),
    }


def _process(process: Mapping[str, object], edits: Edits) -> dict[str, object]:
    env = cast("list[str]", process["env"])
    set_here = {entry.partition("=")[0]: entry for entry in edits.env}
    user = cast("Mapping[str, object]", process["user"])
    groups = cast("list[int]", user.get("additionalGids", []))
    return {
        **process,
        "env": [e for e in env if e.partition("=")[0] not in set_here] + list(set_here.values()),
        "user": {**user, "additionalGids": list(dict.fromkeys([*groups, *edits.gids]))},
    }


def _owned(process: Mapping[str, object], edits: Edits) -> list[DeviceNode]:
    """Return the devices; one without an owner in the file is the container's user's."""
    user = cast("Mapping[str, int]", process["user"])
    return [
        device if device.path in edits.own_owner else device.owned_by(user["uid"], user["gid"])
        for device in edits.devices
    ]


def _linux(linux: Mapping[str, object], devices: list[DeviceNode]) -> dict[str, object]:
    resources = cast("Mapping[str, object]", linux["resources"])
    rules = cast("list[object]", resources["devices"])
    there = cast("list[Mapping[str, object]]", linux["devices"])
    paths = {device.path for device in devices}
    return {
        **linux,
        "devices": [d for d in there if d["path"] not in paths] + list(map(device_entry, devices)),
        "resources": {**resources, "devices": [*rules, *map(device_rule, devices)]},
    }


def _mounts(edits: Edits) -> Iterator[dict[str, object]]:
    """Yield the mounts, folders before what is inside them."""
    for mount in sorted(edits.mounts, key=lambda m: m.container_path.rstrip("/").count("/")):
        bind = () if {"bind", "rbind"} & set(mount.options) else ("bind",)
        yield {
            "destination": mount.container_path,
            "type": "bind",
            "source": mount.host_path,
            "options": [*bind, *mount.options],
        }
