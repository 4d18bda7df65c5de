"""Which paths of the node a container may mount, and what is a path of the node at all.

CRI does not tell volumes from hostPaths; only the path does. The kubelet's own are
``.../pods/UID/{volumes,volume-subpaths,containers,plugins,etc-hosts}`` with this Pod's UID, which
nobody knows before the Pod exists, so no Pod can name one as a hostPath. All other paths are the
node's.

Two things hide a path of the node, so the engine hands over what only the node knows
(``HostFacts``): a subPath is bound to ``volume-subpaths`` by the kubelet whatever volume it is
of, a hostPath too; the mount table says what is behind. A symlink below an allowed path may lead
out of it; the real path says where. What is not handed over is not assumed: such a mount is
judged as a path of the node.
Source: kubelet ``pkg/kubelet/config/defaults.go``; CVE-2021-25741 (subPath);
proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from posixpath import normpath
from typing import Final, TypeVar

from noderuntime.errors import FailedPreconditionError, InvalidArgumentError
from noderuntime.policy.denial import Denial, listed, printable
from noderuntime.policy.facts import ContainerFacts
from noderuntime.policy.model import ContainerConfig, HostFacts, Mount, Propagation
from noderuntime.policy.rules import DeviceRule, HostPathRule

_Rule = TypeVar("_Rule", HostPathRule, DeviceRule)

_KUBELET_DIRS: Final = frozenset(("volumes", "volume-subpaths", "containers", "plugins"))
_PROPAGATIONS: Final = {
    Propagation.HOST_TO_CONTAINER: "HostToContainer",
    Propagation.BIDIRECTIONAL: "Bidirectional",
}
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_SPECIAL: Final = re.compile(r"[ \t\n\\]")  # what the kernel writes as \NNN
# Files that lxcfs lays over /proc; anything else there could fake what the OCI runtime writes to.
PROC_FILES: Final = frozenset(
    f"/proc/{name}"
    for name in [
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "slabinfo",
        "stat",
        "swaps",
        "uptime",
    ]
)
OWN_FOLDERS: Final = frozenset(("/dev", "/dev/pts"))  # the runtime makes these itself


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of mountinfo: ``root`` within the file system ``device`` is at ``point``."""

    device: str
    root: str
    point: str


def require_well_formed(container: ContainerConfig) -> None:
    """Raise InvalidArgumentError for a path that is not absolute, or leads up again."""
    for mount in container.mounts:
        paths = (mount.container_path,) if mount.image else (mount.container_path, mount.host_path)
        for path in paths:
            if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
                raise InvalidArgumentError(
                    f"containers[{container.name}].volumeMounts: {printable(path) or 'a path'} "
                    "is not an absolute path without '..'"
                )
        if normpath(mount.container_path).strip("/") == "":
            raise InvalidArgumentError(
                f"containers[{container.name}].volumeMounts: a volume cannot be mounted on /"
            )


def require_own_dev(container: ContainerConfig) -> None:
    """Raise InvalidArgumentError for a volume on /dev or over /proc, unless it is privileged.

    The OCI runtime masks files of /proc with the /dev/null that it finds, and sets through /proc
    what confines the process. Links that lead there are found at the start (host/own_mounts.py).
    """
    if container.security.privileged:
        return
    for mount in container.mounts:
        path = _clean(mount.container_path)
        if _covers_confinement(path):
            raise InvalidArgumentError(
                f"containers[{container.name}].{_field(mount)}.mountPath: nothing may be mounted on "
                f"{printable(path, 80)} of a container that is not privileged; mount it elsewhere, "
                "for instance below /host"
            )


def may_cover(paths: Iterable[str]) -> frozenset[str]:
    """Return those of the paths that are files of /proc which a volume may cover."""
    return PROC_FILES.intersection(map(_clean, paths))


def need_the_table(container: ContainerConfig) -> bool:
    """Tell whether a decision about these mounts reads the node's mount table; most read none."""
    return any(
        mount.propagation is not Propagation.PRIVATE
        or "volume-subpaths" in mount.host_path
        or _clean(mount.container_path) == "/dev/shm"  # noqa: S108 - the container's; policy/shm.py
        for mount in container.mounts
        if not mount.image
    )


def require_propagation(container: ContainerConfig, host: HostFacts) -> None:
    """Raise FailedPreconditionError where mounts could not propagate as they are asked to.

    What is mounted below a path is seen elsewhere only where the mount that the path is in is
    shared; to hear of the node's, a slave of a shared one is enough. A node whose mount table was
    not handed over is not judged.
    """
    for mount in container.mounts:
        if mount.propagation is Propagation.PRIVATE or mount.image or not host.mountinfo:
            continue
        path = _clean(host.real_paths.get(mount.host_path, mount.host_path))
        point, tags = _mount_of(path, host.mountinfo)
        both = mount.propagation is Propagation.BIDIRECTIONAL
        if "shared" in tags or ("master" in tags and not both):
            continue
        raise FailedPreconditionError(
            f"containers[{container.name}].{_field(mount)}.mountPropagation: "
            f"{'Bidirectional' if both else 'HostToContainer'} is not possible, as "
            f"{printable(path, 200)} is in the mount {printable(point, 200)}, which is not shared"
            f"{'' if both else ' nor a slave'} on this node; make it so (mount --make-shared), or use "
            f"{'HostToContainer or None' if 'master' in tags else 'None'}"
        )


def _mount_of(path: str, mountinfo: str) -> tuple[str, frozenset[str]]:
    """Return the mount point that a path is in, and the mount's tags (shared, master, ...)."""
    point, line = _innermost(path, mountinfo)
    fields = line.partition(" - ")[0].split(" ")
    return point or "/", frozenset(tag.partition(":")[0] for tag in fields[6:])


def _innermost(path: str, mountinfo: str) -> tuple[str, str]:
    """Return the mount at a path or around it, and its line; both "" where there is none."""
    parts = path.rstrip("/").split("/")
    above = {"/".join(parts[:number]) or "/" for number in range(1, len(parts) + 1)}
    written = {_written(each): each for each in above}
    point = found = ""
    for line in mountinfo.splitlines():
        fields = line.split(" ", 5)  # a node has thousands of lines: the rest is seldom wanted
        here = written.get(fields[4], "") if len(fields) > 5 else ""
        # What was mounted later lies over what was before.
        if here and len(here) >= len(point):
            point, found = here, line
    return point, found


def host_paths_are_allowed(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse mounts of the node's paths that the profile does not list, or lists read-only."""
    uid = facts.sandbox.pod.uid
    for mount in facts.container.mounts:
        if mount.image:
            continue  # nothing of the node's; its registry was asked for
        path = _clean(mount.host_path)
        if not is_kubelets(path, uid):
            real = _clean(facts.host.real_paths.get(mount.host_path, path))
            for judged in dict.fromkeys((path, real)):
                yield from _judge(facts, mount, judged)
        elif _is_subpath(path, uid):
            yield from _judge_subpath(facts, mount, path)


def propagation_is_contained(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse Bidirectional for volumes: mounts made inside would appear on the node.

    What a path of the node may have says its rule (``host_paths_are_allowed``).
    """
    uid = facts.sandbox.pod.uid
    for mount in facts.container.mounts:
        if mount.propagation is not Propagation.BIDIRECTIONAL or facts.rules.privileged:
            continue
        if mount.image or is_kubelets(mount.host_path, uid):
            yield facts.deny(
                f"{_field(mount)}.mountPropagation",
                "Bidirectional",
                "privileged is Deny",
                "use HostToContainer or None",
            )


def proc_is_not_covered(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse mounts over /proc and /dev.

    The OCI runtime sets attributes through the one (CVE-2019-16884), and masks with /dev/null.
    """
    if facts.container.security.privileged:
        return
    for mount in facts.container.mounts:
        path = _clean(mount.container_path)
        if _covers_confinement(path):
            yield facts.deny(
                f"{_field(mount)}.mountPath",
                path,
                f"nothing may be mounted over {'/proc' if is_below(path, '/proc') else path}",
                "mount it elsewhere, for instance below /host",
            )


def _covers_confinement(path: str) -> bool:
    return path in OWN_FOLDERS or (is_below(path, "/proc") and path not in PROC_FILES)


def recursive_readonly(facts: ContainerFacts) -> frozenset[str]:
    """Return the container paths of the node's read-only mounts: submounts stay read-only too."""
    uid = facts.sandbox.pod.uid
    return frozenset(
        mount.container_path
        for mount in facts.container.mounts
        if mount.readonly
        and not mount.image
        and (_is_subpath(mount.host_path, uid) or not is_kubelets(mount.host_path, uid))
    )


def is_kubelets(path: str, pod_uid: str) -> bool:
    """Tell whether ``path`` is a folder or file that the kubelet made for this Pod."""
    parts = _clean(path).split("/")
    for index, part in enumerate(parts):
        if part == "pods" and pod_uid and parts[index + 1 : index + 2] == [pod_uid]:
            rest = parts[index + 2 :]
            return rest == ["etc-hosts"] or (len(rest) > 1 and rest[0] in _KUBELET_DIRS)
    return False


def behind(path: str, mountinfo: str) -> tuple[str, ...]:
    """Return the paths on the node at which the same folder is seen, ``path`` itself left out.

    Empty where ``path`` is no mount of its own, or is a whole file system that is nowhere else.
    """
    # A node has thousands of mounts: only the lines that matter are parsed.
    lines = mountinfo.splitlines()
    written = _written(path)
    named = _parse(line for line in lines if f" {written} " in line)
    own = next((entry for entry in reversed(named) if entry.point == path), None)
    if own is None:
        return ()
    same_device = _parse(line for line in lines if f" {own.device} " in line)
    others = (e for e in same_device if e.device == own.device and e.point != path)
    return tuple(
        _clean(f"{entry.point}/{own.root[len(entry.root) :]}")
        for entry in others
        if is_below(own.root, entry.root)
    )


def tmpfs_options(path: str, mountinfo: str) -> str | None:
    """Return the options of the tmpfs that is mounted at ``path`` or around it, or None."""
    kind = _innermost(path, mountinfo)[1].partition(" - ")[2].split(" ")
    return kind[2] if len(kind) > 2 and kind[0] == "tmpfs" else None


def _judge_subpath(facts: ContainerFacts, mount: Mount, path: str) -> Iterator[Denial]:
    """Refuse it unless what is behind is a volume of this Pod, or an allowed path of the node."""
    uid = facts.sandbox.pod.uid
    sources = behind(path, facts.host.mountinfo) or (path,)
    if any(is_kubelets(source, uid) and not _is_subpath(source, uid) for source in sources):
        return
    verdicts = [tuple(_judge(facts, mount, source)) for source in sources]
    if all(verdicts):
        yield from verdicts[0]


def _judge(facts: ContainerFacts, mount: Mount, path: str) -> Iterator[Denial]:
    rules = facts.rules.host_paths
    above = covering(path, rules)
    shown = path if path == _clean(mount.host_path) else f"{path} (behind {mount.host_path})"
    if not above:
        paths = tuple(rule.path for rule in rules)
        yield facts.deny(
            _field(mount),
            f"hostPath {shown}",
            f"hostPaths has {listed(paths)}",
            f"use another kind of volume, or add {printable(path, 80)} to hostPaths",
        )
        return
    if not mount.readonly and not _is_writable(above):
        yield facts.deny(
            f"{_field(mount)}.readOnly",
            f"false for {shown}",
            f"hostPaths has {above[0].path} with readOnly: true",
            "set readOnly: true on the volumeMount",
        )
    allowed = tuple(sorted({word for rule in above for word in rule.propagation}))
    asked = _PROPAGATIONS.get(mount.propagation)
    if asked is not None and asked not in allowed:
        yield facts.deny(
            f"{_field(mount)}.mountPropagation",
            f"{asked} for {shown}",
            f"hostPaths has {above[0].path} with propagation: {listed(allowed, 'None')}",
            f"use {listed(allowed, 'None')}, or add {asked} to its propagation",
        )


def _field(mount: Mount) -> str:
    return f"volumeMounts[{mount.container_path}]"


def _is_writable(above: list[HostPathRule]) -> bool:
    """Any writable rule is enough: who may write a folder can write what is in it anyway."""
    return not all(rule.readonly for rule in above)


def _is_subpath(path: str, uid: str) -> bool:
    return f"/pods/{uid}/volume-subpaths/" in path


def covering(path: str, rules: tuple[_Rule, ...]) -> list[_Rule]:
    """Return the rules whose path is the clean ``path``, or a folder that it is in."""
    parts = path.split("/")
    folders = {"/".join(parts[:number]) for number in range(2, len(parts) + 1)} | {"/"}
    return [rule for rule in rules if rule.path in folders]


def is_below(path: str, folder: str) -> bool:
    """Tell whether a clean path is the folder, or in it."""
    return folder in ("/", path) or path.startswith(folder + "/")


def _clean(path: str) -> str:
    return "/" + normpath(path).lstrip("/")


def _parse(lines: Iterable[str]) -> tuple[_Entry, ...]:
    fields = (line.split(" ") for line in lines)
    return tuple(
        _Entry(parts[2], _unescape(parts[3]), _unescape(parts[4]))
        for parts in fields
        if len(parts) > 4
    )


def _written(path: str) -> str:
    """Return a path as mountinfo has it."""
    return _SPECIAL.sub(lambda match: f"\\{ord(match[0]):03o}", path)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
