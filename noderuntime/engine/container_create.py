"""CreateContainer: writable layer, root mount, user, policy, OCI bundle; then record and reply."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from noderuntime.engine import admission, decisions, selinux
from noderuntime.engine.devices import device_nodes
from noderuntime.engine.host_paths import HostPaths
from noderuntime.engine.image_volumes import (
    mount_image_volumes,
    mount_snapshot,
    remove_image_volumes,
    source_key,
)
from noderuntime.engine.limits import honourable, ulimits
from noderuntime.engine.node import Node
from noderuntime.engine.pid_target import pid_namespace, pin_target
from noderuntime.engine.sandbox_files import hostname_of, make_closed
from noderuntime.engine.sandbox_init import look_for_init, shares_pid
from noderuntime.engine.state import (
    ContainerId,
    ContainerRecord,
    ContainerState,
    SandboxRecord,
    SandboxState,
)
from noderuntime.engine.steps import Step, Verb, perform
from noderuntime.engine.user_namespace import mounted_volumes, owners_of
from noderuntime.engine.work import ContainerWork, new_id
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from noderuntime.host.cdi import edits_of
from noderuntime.host.users import resolve_user
from noderuntime.policy import spec
from noderuntime.policy.cdi import with_edits
from noderuntime.policy.model import (
    ContainerConfig,
    HostFacts,
    ImageFacts,
    NamespaceMode,
    ResolvedUser,
    SandboxConfig,
)
from noderuntime.policy.spec import SpecLayout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from noderuntime.images.ports import Image


DEV_SHM = Path("/dev/shm")  # noqa: S108 - the node's own, for a Pod with hostIPC


async def create_container(node: Node, sandbox_id: str, config: ContainerConfig) -> ContainerId:
    """Return the new container, or the one there is for the same name and attempt."""
    sandbox = node.store.sandboxes.require(sandbox_id)
    if not config.name:
        raise InvalidArgumentError("config.metadata: a container needs a name")
    key = ("create_container", sandbox.id, config.name, str(config.attempt))
    return await node.jobs.join(key, partial(_create, node, sandbox, config))


async def _create(node: Node, sandbox: SandboxRecord, config: ContainerConfig) -> ContainerId:
    existing = node.store.containers.named((sandbox.id, config.name, config.attempt))
    if existing is not None:
        if existing.state in (ContainerState.CREATED, ContainerState.RUNNING):
            return existing.id
        raise FailedPreconditionError(
            f"container {existing.id} is {config.name}, attempt {config.attempt}, already and has "
            "exited; remove it first or use another attempt"
        )
    await require_ready(node, sandbox.id)
    admission.require_namespaces(config.security.namespaces)
    admission.require_shared_pid(sandbox.config, config)
    config = replace(config, resources=honourable(node.parts.cgroups, config.resources))
    served = await node.handlers.settled(sandbox.handler, sandbox.config.pod.namespace)
    handler = admission.for_pod(served, sandbox.config, node.now_ns())
    image = node.parts.images.find(config.image)
    if image is None:
        raise NotFoundError(f"image {config.image} is not on this node; pull it first")
    asked = decisions.asking(node, decisions.CREATE_CONTAINER, sandbox.config.pod, config.name)
    reference = admission.admit_image_of(asked, handler, config, image)
    container_id = ContainerId(new_id())
    record = ContainerRecord(
        id=container_id,
        sandbox_id=sandbox.id,
        config=config,
        image_id=image.id,
        image_reference=reference,
        revision=handler.revision,
        node_runtime=handler.node_runtime,
        profile=handler.profile,
        state=ContainerState.CREATED,
        created_at_ns=node.now_ns(),
        log_path=log_path_of(sandbox.config, config),
        cgroup_path=node.parts.cgroups.oci_path(sandbox.config.cgroup_parent, container_id),
        oci_runtime=sandbox.oci_runtime,
        stop_signal=config.stop_signal or image.config.stop_signal,
    )
    work = ContainerWork(node=node, record=record, sandbox=sandbox, handler=handler, image=image)
    await selinux.look(work, sandbox)
    await perform(CREATE_CONTAINER, work)
    return record.id


async def require_ready(node: Node, sandbox_id: str) -> SandboxRecord:
    """Return the sandbox; raises FailedPreconditionError when it is stopped or being stopped."""
    sandbox = node.store.sandboxes.get(sandbox_id)
    if sandbox is not None and shares_pid(sandbox):
        await look_for_init(node, sandbox)
        sandbox = node.store.sandboxes.get(sandbox_id)
    if sandbox is None or sandbox.state is not SandboxState.READY:
        raise FailedPreconditionError(f"sandbox {sandbox_id} is not ready; run a new one")
    if sandbox.id in node.store.closing:
        raise FailedPreconditionError(f"sandbox {sandbox_id} is being stopped")
    return sandbox


def log_path_of(sandbox: SandboxConfig, container: ContainerConfig) -> str:
    """Return the absolute log path, "" where none was asked for. Raises InvalidArgumentError."""
    if not sandbox.log_directory or not container.log_path:
        return ""
    relative = PurePosixPath(container.log_path)
    if relative.is_absolute() or ".." in relative.parts:
        raise InvalidArgumentError(
            f"config.log_path: {container.log_path} is not below the sandbox's log_directory"
        )
    return str(PurePosixPath(sandbox.log_directory) / relative)


async def _make_bundle(work: ContainerWork) -> None:
    bundle = work.node.paths.bundle(work.record.id)
    owners = owners_of(work)
    await work.node.disk.run(make_closed, bundle, None if owners is None else owners.gid)


async def remove_bundle(work: ContainerWork) -> None:
    """Remove the bundle's folder."""
    await work.node.disk.remove_tree(work.node.paths.bundle(work.record.id))


async def _prepare(work: ContainerWork) -> None:
    if work.image is None:
        raise NotFoundError(f"container {work.record.id} has no image")
    work.snapshot = await work.node.parts.images.prepare(work.record.id, work.image)


async def discard_snapshot(work: ContainerWork) -> None:
    """Remove the writable layer."""
    await work.node.parts.images.discard(work.record.id)


async def _mount_root(work: ContainerWork) -> None:
    snapshot = work.snapshot
    if snapshot is None:
        raise NotFoundError(f"container {work.record.id} has no writable layer")
    await mount_snapshot(work, snapshot, work.node.paths.rootfs(work.record.id))
    await pin_target(work)


async def unmount_root(work: ContainerWork) -> None:
    """Unmount the container's root, and whatever else is mounted in its bundle."""
    await work.node.parts.mounts.unmount(work.node.paths.bundle(work.record.id))


async def _write_spec(work: ContainerWork) -> None:
    with HostPaths() as paths:
        await _write_spec_of(work, paths)


async def _write_spec_of(work: ContainerWork, paths: HostPaths) -> None:
    node, record = work.node, work.record
    if work.sandbox is None or work.handler is None or work.image is None:
        raise NotFoundError(f"container {record.id} has no sandbox")
    sandbox = work.sandbox
    asked = user_of(record.config, work.image)
    user, host = await node.disk.run(_look, work, sandbox, asked, paths)
    rules = work.handler.rules
    artifact = None if rules is None else node.artifacts.filter_of(rules.seccomp.artifact)
    host = replace(host, seccomp_artifact=artifact)
    facts = ImageFacts(config=work.image.config, user=user)
    judged = replace(record.config, image_reference=record.image_reference)
    asker = decisions.asking_to_create(work)
    grant = admission.admit_container(asker, work.handler, sandbox.config, judged, facts, host)
    await node.apparmor.require(grant.apparmor)
    pinned = paths.pinned()
    await selinux.relabel_volumes(work, grant, host.real_paths, pinned)
    grant = replace(grant, ulimits=ulimits(node.parts.config.ulimits, grant.ulimits))
    devices = await node.disk.run(
        device_nodes, record.config, host.real_paths, privileged=grant.privileged
    )
    sources = {**host.real_paths, **work.image_volumes}
    layout = replace(layout_of(node, sandbox, record, sources), devices=devices)
    volumes = await mounted_volumes(work, layout.mounts, grant.recursive_readonly, pinned)
    layout = replace(layout, mounts=volumes)
    document = spec.build(grant, layout)
    gids = grant.user.additional_gids
    if record.config.cdi_devices:
        folders = node.parts.config.cdi.spec_dirs
        edits = await node.disk.run(edits_of, folders, record.config.cdi_devices)
        document = with_edits(document, edits)
        gids = tuple(dict.fromkeys((*gids, *edits.gids)))
    sealed = await node.filters.seal(document, Path(record.oci_runtime), node.disk)
    target = node.paths.spec(record.id)
    await node.disk.run(write_private, target, json.dumps(sealed).encode())
    work.record = replace(
        record,
        uid=grant.user.uid,
        gid=grant.user.gid,
        additional_gids=gids,
        apparmor=grant.apparmor,
        config=replace(record.config, resources=grant.resources),
    )


def _look(
    work: ContainerWork, sandbox: SandboxRecord, user: str, paths: HostPaths
) -> tuple[ResolvedUser, HostFacts]:
    """Read what the decision needs, in one turn of a thread."""
    config = work.record.config
    own = work.handler is None or work.handler.rules is None
    security = config.security
    resolved = resolve_user(
        work.node.paths.rootfs(work.record.id),
        user,
        group=security.run_as_group,
        supplemental=security.supplemental_groups,
        strict=security.supplemental_groups_strict,
    )
    real = paths.real_paths(config, sandbox.config.pod.uid, hold=not own)
    return resolved, admission.host_facts(config, real, work.lsm, own=own)


def user_of(config: ContainerConfig, image: Image) -> str:
    """Return ``user[:group]`` as ``resolve_user`` reads it: the Pod's, else the image's."""
    security = config.security
    if security.run_as_user is not None:
        return str(security.run_as_user)
    return security.run_as_username or image.config.user


def layout_of(
    node: Node, sandbox: SandboxRecord, record: ContainerRecord, real_paths: Mapping[str, str]
) -> SpecLayout:
    """Return where things are, for config.json. Mounts are bound by the paths that were judged."""
    pins, options = node.paths.namespaces(sandbox.id), sandbox.config.namespaces
    own_network = options.network is NamespaceMode.POD
    own_ipc = options.ipc is NamespaceMode.POD
    return SpecLayout(
        rootfs=str(node.paths.rootfs(record.id)),
        network_ns=str(pins / "net") if own_network else None,
        ipc_ns=str(pins / "ipc") if own_ipc else None,
        uts_ns=str(pins / "uts") if own_network else None,
        host_pid=record.config.security.namespaces.pid is NamespaceMode.NODE,
        pid_ns=pid_namespace(node, sandbox, record),
        user_ns=None if options.user is None else str(pins / "user"),
        users=options.user,
        cgroups_path=record.cgroup_path,
        cgroup_v2=node.parts.cgroups.is_unified(),
        hostname=hostname_of(sandbox) if own_network else "",
        terminal=record.config.tty,
        shm_path=str(node.paths.shm(sandbox.id)) if own_ipc else str(DEV_SHM),
        resolv_conf=str(node.paths.resolv_conf(sandbox.id)),
        hostname_file=str(node.paths.hostname(sandbox.id)),
        mounts=tuple(
            replace(mount, host_path=real_paths[source_key(i) if mount.image else mount.host_path])
            for i, mount in enumerate(record.config.mounts)
        ),
    )


def write_private(path: Path, data: bytes) -> None:
    """Write a file of run_dir that only we and the OCI runtime read; it holds the environment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


async def _commit(work: ContainerWork) -> None:
    await work.node.store.containers.put(work.record)


async def drop_record(work: ContainerWork) -> None:
    """Forget the container."""
    await work.node.store.containers.drop(work.record.id)


CREATE_CONTAINER: Final[Verb[ContainerWork]] = Verb(
    name="create_container",
    steps=(
        Step(name="bundle", do=_make_bundle, undo=remove_bundle),
        Step(name="snapshot", do=_prepare, undo=discard_snapshot),
        Step(name="rootfs", do=_mount_root, undo=unmount_root),
        Step(name="image_volumes", do=mount_image_volumes, undo=remove_image_volumes),
        Step(name="spec", do=_write_spec),
        Step(name="record", do=_commit, undo=drop_record),
    ),
)
