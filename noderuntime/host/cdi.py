"""The node's CDI files, and what stands behind the names of devices in them.

They are read when a container asks for a device, never before: they change when drivers do. Only
what root alone may write counts, the folders, the files and the programs of hooks, as all of it acts
on the node with root's rights: so hooks are no more than what the file could do anyway, and run.
Later folders win over earlier ones, as in the specification; twice in one folder is an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from noderuntime.errors import FailedPreconditionError, NodeRuntimeError
from noderuntime.host import cdi_file
from noderuntime.policy.cdi import CdiMount, Edits
from noderuntime.policy.spec import DeviceNode

LIMIT_BYTES: Final = 1 << 20
MOST_FILES: Final = 256
_OPTIONS: Final = frozenset(
    "bind rbind ro rw nosuid suid nodev dev noexec exec noatime atime nodiratime diratime "
    "relatime norelatime private rprivate slave rslave".split()
)
_INSIDE: Final = frozenset({"startContainer"})  # hooks whose program is the container's


@dataclass(frozen=True, slots=True)
class _Found:
    """A device in a file."""

    path: Path
    file: cdi_file.CdiFile
    device: cdi_file.NamedDevice


def edits_of(folders: Sequence[Path], names: Sequence[str]) -> Edits:
    """Return what the devices ``names`` change in a container. Blocking.

    Raises FailedPreconditionError for a device that is not there, or cannot be given.
    """
    if not names:
        return Edits()
    problems: list[str] = []
    known = _read(folders, problems)
    wanted = tuple(dict.fromkeys(names))
    missing = [name for name in wanted if name not in known]
    if missing:
        where = ", ".join(map(str, folders)) or "no folder"
        why = f" ({'; '.join(problems)})" if problems else ""
        raise FailedPreconditionError(
            f"CDI_devices: {', '.join(missing)} is not described by a file in {where}{why}"
        )
    parts: list[tuple[Path, cdi_file.ContainerEdits]] = []
    seen: set[Path] = set()
    for name in wanted:
        found = known[name]
        if found.path not in seen:  # what the file says for all of its devices, once
            seen.add(found.path)
            parts.append((found.path, found.file.edits))
        parts.append((found.path, found.device.edits))
    return _joined(parts)


def _read(folders: Sequence[Path], problems: list[str]) -> dict[str, _Found]:
    """Return all devices by name; files that cannot be used are told in ``problems``."""
    known: dict[str, _Found] = {}
    for folder in folders:
        here: dict[str, _Found] = {}
        twice: set[str] = set()
        for path in _files(folder, problems):
            try:
                file = cdi_file.parse(path, _bytes(path))
            except NodeRuntimeError as error:
                problems.append(str(error))
                continue
            for device in file.devices:
                name = f"{file.kind}={device.name}"
                if name in here:
                    twice.add(name)
                    problems.append(f"{name} is in {here[name].path} and in {path}")
                here[name] = _Found(path, file, device)
        known |= here
        for name in twice:
            del known[name]
    return known


def _files(folder: Path, problems: list[str]) -> list[Path]:
    try:
        if why := _unsafe(folder.stat()):
            problems.append(f"{folder} {why}")
            return []
        paths = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".yaml"})
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{folder} cannot be read: {error.strerror}")
        return []
    if len(paths) > MOST_FILES:
        problems.append(f"{folder} has more than {MOST_FILES} files; the rest is passed over")
    return paths[:MOST_FILES]


def _bytes(path: Path) -> bytes:
    """Read a file that root alone may write. Raises FailedPreconditionError."""
    try:
        # Not blocking: a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise FailedPreconditionError(f"{path} is not a file")
            if why := _unsafe(facts):
                raise FailedPreconditionError(f"{path} {why}")
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LIMIT_BYTES:
        raise FailedPreconditionError(f"{path} has more than {LIMIT_BYTES} bytes")
    return data


def _unsafe(facts: os.stat_result) -> str:
    """Return why something of the node cannot be trusted, "" where it can."""
    if facts.st_uid != 0:
        return f"belongs to user {facts.st_uid}, not to root: it is not used"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others than root: it is not used"
    return ""


def _joined(parts: Sequence[tuple[Path, cdi_file.ContainerEdits]]) -> Edits:
    hooks: dict[str, list[dict[str, object]]] = {}
    for path, edits in parts:
        for hook in edits.hooks:
            hooks.setdefault(hook.hook_name, []).append(_hook(path, hook))
    devices = [(path, device) for path, edits in parts for device in edits.device_nodes]
    return Edits(
        env=tuple(entry for path, edits in parts for entry in _environment(path, edits.env)),
        devices=tuple(_device(path, device) for path, device in devices),
        own_owner=frozenset(d.path for _, d in devices if d.uid is not None or d.gid is not None),
        mounts=tuple(_mount(path, m) for path, edits in parts for m in edits.mounts),
        hooks={name: tuple(some) for name, some in hooks.items()},
        gids=tuple(gid for _, edits in parts for gid in edits.additional_gids if gid),
    )


def _environment(path: Path, entries: Sequence[str]) -> Iterator[str]:
    for entry in entries:
        if not entry.partition("=")[0] or "=" not in entry:
            raise FailedPreconditionError(f"{path}: env: {entry[:80]!r} is not NAME=VALUE")
        yield entry


def _inside(path: Path, field: str, value: str) -> str:
    if ".." in value.split("/") or value.strip("/") == "":
        raise FailedPreconditionError(f"{path}: {field}: {value[:200]} is not a path without '..'")
    return value


def _device(path: Path, asked: cdi_file.Device) -> DeviceNode:
    inside = _inside(path, "deviceNodes.path", asked.path)
    if asked.type == "p":
        raise FailedPreconditionError(
            f"{path}: deviceNodes: {inside} is a FIFO, which is no device"
        )
    kind = asked.type.replace("u", "c")
    major, minor, mode = asked.major, asked.minor, asked.file_mode
    if not kind or major is None or minor is None:
        source = Path(asked.host_path or asked.path)
        found, facts = _look(path, source)
        if kind not in {"", found}:
            raise FailedPreconditionError(f"{path}: deviceNodes: {source} is not of type {kind}")
        kind, major, minor = found, os.major(facts.st_rdev), os.minor(facts.st_rdev)
        mode = stat.S_IMODE(facts.st_mode) if mode is None else mode
    return DeviceNode(
        path=inside,
        kind=kind,
        major=major,
        minor=minor,
        access=asked.permissions or "rwm",
        mode=0o660 if mode is None else mode,
        uid=asked.uid or 0,
        gid=asked.gid or 0,
    )


def _look(path: Path, source: Path) -> tuple[str, os.stat_result]:
    """Return what kind of device there is on the node."""
    try:
        facts = source.stat()
    except OSError as error:
        raise FailedPreconditionError(
            f"{path}: deviceNodes: {source} is not there: {error.strerror}"
        ) from error
    kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(facts.st_mode))
    if kind is None:
        raise FailedPreconditionError(f"{path}: deviceNodes: {source} is not a device")
    return kind, facts


def _mount(path: Path, asked: cdi_file.Mount) -> CdiMount:
    inside = _inside(path, "mounts.containerPath", asked.container_path)
    for option in asked.options:
        if option not in _OPTIONS:
            raise FailedPreconditionError(
                f"{path}: mounts.options: {option[:80]} is not known here; remove it"
            )
    if not Path(asked.host_path).exists():
        raise FailedPreconditionError(f"{path}: mounts.hostPath: {asked.host_path} is not there")
    return CdiMount(host_path=asked.host_path, container_path=inside, options=tuple(asked.options))


def _hook(path: Path, asked: cdi_file.Hook) -> dict[str, object]:
    if asked.hook_name not in _INSIDE:
        try:
            why = _unsafe(Path(asked.path).stat())
        except OSError as error:
            why = f"is not there: {error.strerror}"
        if why:
            raise FailedPreconditionError(f"{path}: hooks.path: {asked.path} {why}")
    hook: dict[str, object] = {"path": asked.path}
    if asked.args:
        hook["args"] = list(asked.args)
    if asked.env:
        hook["env"] = list(_environment(path, asked.env))
    if asked.timeout:
        hook["timeout"] = asked.timeout
    return hook
