"""The decisions about a Pod, all of them: the same code as on a node, every section in Audit.

Thus a denial ends nothing, and each is told. What it does (refuse, or only be recorded) is then said
by the section's real mode. The config.json is the one that would run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from noderuntime.api.quantity import show_bytes
from noderuntime.cli.explaining import image as images
from noderuntime.cli.explaining.image import Image
from noderuntime.cli.manifest import amounts, requests
from noderuntime.cli.manifest.requests import ContainerRequest
from noderuntime.cli.manifest.workloads import Workload
from noderuntime.cri import convert
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError
from noderuntime.policy import checks, decide, exceptions, selinux, spec
from noderuntime.policy.denial import Denial, listed
from noderuntime.policy.features import HostFeatures, missing_features
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerGrant,
    HostFacts,
    ImageFacts,
    LsmFacts,
    NamespaceMode,
    ProfileType,
    SandboxConfig,
    SandboxGrant,
)
from noderuntime.policy.rules import SHM_BYTES, HandlerRules
from noderuntime.policy.spec import SpecLayout

Verdict = Literal["allowed", "set", "recorded", "unknown", "refused"]
# The rules in the order of the checks; what is judged for the Pod is not told again for a container.
_OF_POD: Final = tuple(dict.fromkeys(section for section, _ in checks.SANDBOX_CHECKS))
_OF_CONTAINER: Final = tuple(
    dict.fromkeys(
        section
        for section, _ in checks.CONTAINER_CHECKS
        if section == "privileged" or section not in _OF_POD
    )
)
# What a profile sets: the parts of a grant, by the field of the profile.
_SET: Final[Mapping[str, tuple[str, ...]]] = {
    "capabilities": ("capabilities", "ambient"),
    "seccomp": ("seccomp", "seccomp_document"),
    "appArmor": ("apparmor",),
    "seLinux": ("selinux",),
    "resources": ("resources", "pids_limit"),
    "noNewPrivileges": ("no_new_privileges",),
    "rootFilesystem": ("readonly_rootfs",),
    "maskedPaths": ("masked_paths",),
    "readonlyPaths": ("readonly_paths",),
    "ulimits": ("ulimits",),
}
# How the policy's sentences about what it set begin (``ContainerGrant.changes``).
_SENTENCES: Final = {
    "seccomp": "securityContext.seccompProfile",
    "appArmor": "securityContext.appArmorProfile",
    "resources": "resources.",
    "noNewPrivileges": "securityContext.allowPrivilegeEscalation",
    "rootFilesystem": "securityContext.readOnlyRootFilesystem",
}
_RUN: Final = "/run/noderuntime"
# For a filter that only the node reads: parsed, and as a file.
_ANY_FILTER: Final = {"defaultAction": "SCMP_ACT_ERRNO"}
_ANY_FILE: Final = json.dumps(_ANY_FILTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A field of the profile: what it says to this container, and why."""

    field: str
    verdict: Verdict
    denials: tuple[Denial, ...] = ()
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerReport:
    """``error`` is what no runtime of ours would run, whatever the profile says; "" for none."""

    name: str
    place: str
    rows: tuple[Row, ...] = ()
    error: str = ""
    notes: tuple[str, ...] = ()
    plain: Mapping[str, Any] | None = None  # config.json without a profile
    governed: Mapping[str, Any] | None = None  # and with it


@dataclass(frozen=True, slots=True, kw_only=True)
class PodReport:
    """All about one Pod."""

    workload: Workload
    rules: HandlerRules
    rows: tuple[Row, ...] = ()
    error: str = ""
    notes: tuple[str, ...] = ()
    shm_bytes: int = SHM_BYTES
    containers: tuple[ContainerReport, ...] = ()

    @property
    def verdict(self) -> Literal["runs", "unknown", "refused"]:
        """Whether the Pod would run."""
        parts: tuple[PodReport | ContainerReport, ...] = (self, *self.containers)
        found = {row.verdict for part in parts for row in part.rows}
        if "refused" in found or any(part.error for part in parts):
            return "refused"
        return "unknown" if "unknown" in found else "runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """Everything that is the same for all containers of a Pod."""

    rules: HandlerRules
    sandbox: SandboxConfig
    image: Image
    machine: str


def judge(
    workload: Workload, rules: HandlerRules, image: Image, *, now_s: float, machine: str
) -> PodReport:
    """Judge a Pod under the rules at ``now_s`` of the epoch. Raises ConfigError.

    ``machine`` is the node's, as uname(2) has it: the filter has its system calls.
    """
    try:
        sandbox = convert.sandbox_config(requests.sandbox(workload))
        held = exceptions.rules_at(rules, sandbox, now_s)
        grant = decide.admit_sandbox(_audited(held), sandbox)
    except (InvalidArgumentError, FailedPreconditionError) as error:
        return PodReport(workload=workload, rules=rules, error=str(error))
    findings = grant.findings if isinstance(grant, SandboxGrant) else (grant,)
    known = _Judged(rules=held, sandbox=sandbox, image=image, machine=machine)
    asked = requests.containers(workload, _image_user(image))
    return PodReport(
        workload=workload,
        rules=held,
        rows=tuple(_row(held, name, findings) for name in _OF_POD),
        notes=tuple(_notes(rules, held, grant)),
        shm_bytes=grant.shm_bytes if isinstance(grant, SandboxGrant) else SHM_BYTES,
        containers=tuple(_judge_one(known, request) for request in asked),
    )


def _image_user(image: Image) -> str | None:
    return image.user or (image.config.user.partition(":")[0] if image.config else None) or None


def _audited(rules: HandlerRules) -> HandlerRules:
    """Return rules that refuse nothing; the filter stays as its own mode has it."""
    return replace(rules, audit=True)


def _judge_one(known: _Judged, request: ContainerRequest) -> ContainerReport:
    name = request.container.name
    try:
        config = convert.container_config(request.config)
        facts = ImageFacts(
            config=images.config_for(known.image, config), user=images.user_of(known.image, config)
        )
        host = HostFacts(
            mountinfo=request.mountinfo,
            seccomp_file=_ANY_FILE,
            seccomp_artifact=_ANY_FILTER,
            lsm=_kernel(known, config, None),
        )
        open_fields = _open_fields(known, request, config)
        judged = _audited(_without(known.rules, open_fields))
        plain = decide.admit_container(None, known.sandbox, config, facts, host)
        host = replace(host, lsm=_kernel(known, config, known.rules))
        grant = decide.admit_container(judged, known.sandbox, config, facts, host)
    except (InvalidArgumentError, FailedPreconditionError) as error:
        return ContainerReport(name=name, place=request.place, error=str(error))
    if isinstance(plain, Denial) or isinstance(grant, Denial):  # Audit denies nothing
        return ContainerReport(name=name, place=request.place, error="cannot be judged")
    names = dict.fromkeys((*_OF_CONTAINER, *_SET))
    findings = (*grant.findings, *_image_volumes(judged, config))
    return ContainerReport(
        name=name,
        place=request.place,
        rows=tuple(
            _row(known.rules, each, findings, _says(each, plain, grant), open_fields)
            for each in names
        ),
        notes=tuple(_container_notes(known, request)),
        plain=_document(known, config, plain),
        governed=_document(known, config, grant),
    )


def _kernel(known: _Judged, config: ContainerConfig, rules: HandlerRules | None) -> LsmFacts:
    """Return a node's: it has what the profile demands and the Pod names, and nothing else.

    ``rules`` are those that the Pod runs under, for its level; None is without a profile.
    """
    declared, asked = known.rules.apparmor, config.security.apparmor
    names = {
        declared.name if declared is not None else "",
        asked.localhost_ref if asked is not None else "",
    }
    wants = asked is not None and asked.type is not ProfileType.UNCONFINED
    apparmor = wants or (declared is not None and bool(declared.name))
    return LsmFacts(
        apparmor=apparmor,
        can_load_apparmor=apparmor,
        apparmor_profiles=frozenset(names - {""}),
        selinux=known.rules.selinux is not None,
        selinux_process=selinux.DEFAULT_PROCESS,
        selinux_file=selinux.DEFAULT_FILE,
        selinux_level=selinux.fixed_level(rules, known.sandbox) or selinux.level_of_pod(0),
    )


def _image_volumes(rules: HandlerRules, config: ContainerConfig) -> Iterator[Denial]:
    """Yield what the node says when it mounts an image as a volume (``engine.admission``)."""
    for mount in config.mounts:
        if mount.image:
            denials = checks.judge_image(rules, mount.image_reference, container=config.name)
            yield from checks.of_section("images", denials)


def _row(
    rules: HandlerRules,
    field: str,
    findings: Iterable[Denial],
    says: tuple[str, ...] = (),
    open_fields: frozenset[str] = frozenset(),
) -> Row:
    denials = tuple(each for each in findings if each.section == field)
    verdict: Verdict = "set" if says else "allowed"
    if field == "runAs" and open_fields:
        verdict = "allowed" if rules.audits("runAs") else "unknown"
        says = tuple(f"{each} is known by the image alone" for each in sorted(open_fields))
    if denials:
        section = denials[0].section
        recorded = section is not None and rules.audits(section)
        verdict = "recorded" if recorded else "refused"
    return Row(field=field, verdict=verdict, denials=denials, says=says)


def _says(field: str, plain: ContainerGrant, grant: ContainerGrant) -> tuple[str, ...]:
    """Return what the profile sets there; nothing where it changes nothing."""
    if all(getattr(plain, part) == getattr(grant, part) for part in _SET.get(field, ())):
        return ()
    limits = tuple(f"{each.name} {each.soft}:{each.hard}" for each in grant.ulimits)
    most = grant.pids_limit
    beside: dict[str, tuple[str, ...]] = {
        "capabilities": (f"the container has {listed(grant.capabilities, 'none')}",),
        "seLinux": () if grant.selinux is None else (f"the label is {grant.selinux.process}",),
        "resources": () if most is None else (f"at most {most} processes and threads",),
        "maskedPaths": (_added(plain.masked_paths, grant.masked_paths),),
        "readonlyPaths": (_added(plain.readonly_paths, grant.readonly_paths),),
        "ulimits": (listed(limits),),
    }
    said = (each for each in grant.changes if each.startswith(_SENTENCES.get(field, "-")))
    return (*said, *beside.get(field, ())) or ("the profile's own",)


def _added(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    return f"adds {listed(tuple(path for path in after if path not in before))}"


def _open_fields(
    known: _Judged, request: ContainerRequest, config: ContainerConfig
) -> frozenset[str]:
    """Return the fields of the process's user that the profile bounds and only the image tells."""
    rules, image = known.rules, known.image
    found = set[str]()
    if _has_image_user(known, request) and not image.user:
        found |= {"runAsUser"} if rules.non_root or rules.users else set()
    if config.security.run_as_group is None and image.group is None and rules.groups:
        found.add("runAsGroup")
    if not config.security.supplemental_groups_strict and image.group is None:
        found |= {"supplementalGroups"} if rules.supplemental_groups else set()
    return frozenset(found)


def _has_image_user(known: _Judged, request: ContainerRequest) -> bool:
    own = request.container.security_context.run_as_user
    return own is None and known.sandbox.run_as_user is None


def _without(rules: HandlerRules, fields: frozenset[str]) -> HandlerRules:
    """Return the rules that say nothing of what is unknown."""
    if "runAsUser" in fields:
        rules = replace(rules, non_root=False, users=())
    if "runAsGroup" in fields:
        rules = replace(rules, groups=())
    return rules


def _notes(rules: HandlerRules, held: HandlerRules, grant: SandboxGrant | Denial) -> Iterable[str]:
    for need in missing_features(rules, HostFeatures()):
        yield f"{need.section} demands {need.feature}: only nodes that have it offer the handler"
    relaxed = sorted(held.audit_sections - rules.audit_sections)
    if relaxed:
        yield f"an exception holds for this Pod now; only recorded: {', '.join(relaxed)}"
    if isinstance(grant, SandboxGrant) and grant.shm_bytes != SHM_BYTES:
        yield f"shared memory has {show_bytes(grant.shm_bytes)}, as resources.shm says"


def _container_notes(known: _Judged, request: ContainerRequest) -> Iterable[str]:
    container, rules, image = request.container, known.rules, known.image
    user = request.config.linux.security_context
    unknown = [] if container.command or image.config else ["its command"]
    if _has_image_user(known, request) and not image.user:
        name = user.run_as_username
        unknown.insert(0, f"the number of its user {name}" if name else "its user")
    if unknown:
        of_user = "user" in unknown[0]
        yield (
            f"known by the image alone: {' and '.join(unknown)}{' (0 below)' if of_user else ''}; tell "
            f"it with {'--user or ' if of_user else ''}--image-config"
        )
    if rules.seccomp.artifact:
        yield f"the filter is the artifact {rules.seccomp.artifact}, which is not fetched here"
    from_cluster = [each.name for each in container.env if each.value_from is not None]
    if from_cluster or container.env_from:
        yield "variables with valueFrom, and those of envFrom, have values in the cluster alone"
    brought = amounts.extended(container)
    if brought:
        yield f"devices of {', '.join(brought)} are brought by a plugin of the node: not judged here"


def _document(known: _Judged, config: ContainerConfig, grant: ContainerGrant) -> dict[str, Any]:
    """Return config.json, with paths as a node has them."""
    pod = known.sandbox
    own_network = pod.namespaces.network is NamespaceMode.POD
    own_ipc = pod.namespaces.ipc is NamespaceMode.POD
    folder = f"{_RUN}/sandboxes/{pod.pod.name}"
    pins = f"{folder}/namespaces"
    pid = config.security.namespaces.pid
    shared = {
        NamespaceMode.POD: f"{pins}/pid",
        NamespaceMode.TARGET: f"{_RUN}/containers/{config.security.namespaces.target_id}/pid",
    }
    layout = SpecLayout(
        rootfs=f"{_RUN}/containers/{config.name}/rootfs",
        network_ns=f"{pins}/net" if own_network else None,
        ipc_ns=f"{pins}/ipc" if own_ipc else None,
        uts_ns=f"{pins}/uts" if own_network else None,
        host_pid=pid is NamespaceMode.NODE,
        pid_ns=shared.get(pid),
        user_ns=None if pod.namespaces.user is None else f"{pins}/user",
        users=pod.namespaces.user,
        cgroups_path=f"{pod.cgroup_parent}/{config.name}",
        cgroup_v2=True,
        hostname=pod.hostname if own_network else "",
        terminal=config.tty,
        shm_path=f"{folder}/shm" if own_ipc else "/dev/shm",  # noqa: S108 - the node's
        resolv_conf=f"{folder}/resolv.conf",
        hostname_file=f"{folder}/hostname",
        mounts=tuple(
            replace(mount, host_path=f"{_RUN}/images/{mount.image}") if mount.image else mount
            for mount in config.mounts
        ),
        machine=known.machine,
    )
    return spec.build(grant, layout)
