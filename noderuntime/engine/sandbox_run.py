"""RunPodSandbox: folder, files, shm, init, namespaces, network; then the record, then the reply."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from noderuntime.engine import admission
from noderuntime.engine.decisions import asking
from noderuntime.engine.node import Node
from noderuntime.engine.sandbox_files import hostname_of, write_files
from noderuntime.engine.sandbox_init import remove_init, start_init
from noderuntime.engine.selinux import label_pod, level_of
from noderuntime.engine.state import SandboxId, SandboxRecord, SandboxState
from noderuntime.engine.steps import Step, Verb, perform
from noderuntime.engine.work import SandboxWork, new_id
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError
from noderuntime.host.ports import NamespaceRequest
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import NamespaceMode, SandboxConfig
from noderuntime.policy.rules import SHM_BYTES

SHM_MODE = 0o1777


async def run_sandbox(node: Node, config: SandboxConfig, handler: str) -> SandboxId:
    """Return the new sandbox, or the one there is for the same Pod and attempt."""
    pod = config.pod
    if not (pod.name and pod.namespace and pod.uid):
        raise InvalidArgumentError("config.metadata: name, namespace and uid are all needed")
    key = ("run_sandbox", pod.namespace, pod.name, pod.uid, str(pod.attempt))
    return await node.jobs.join(key, partial(_run, node, config, handler))


async def _run(node: Node, config: SandboxConfig, handler: str) -> SandboxId:
    pod = config.pod
    existing = node.store.sandboxes.named(pod)
    if existing is not None:
        if existing.handler != handler:
            raise FailedPreconditionError(
                f'sandbox {existing.id} is this Pod\'s, under handler "{existing.handler}"; remove it '
                f'before it is run under "{handler}"'
            )
        if existing.state is SandboxState.READY and existing.id not in node.store.closing:
            return existing.id
        raise FailedPreconditionError(
            f"sandbox {existing.id} of Pod {config.pod.namespace}/{config.pod.name}, attempt "
            f"{config.pod.attempt}, was stopped; remove it first or use another attempt"
        )
    found = await node.handlers.settled(handler, pod.namespace)
    served = admission.for_pod(found, config, node.now_ns())
    if config.namespaces.user is not None and not node.parts.mounts.features().idmapped:
        raise FailedPreconditionError(
            "hostUsers: false needs a kernel of 5.19 or later that lets user namespaces be made; "
            "run this Pod on another node"
        )
    asked = asking(node, "RunPodSandbox", pod=config.pod)
    grant = admission.admit_sandbox(asked, served, config)
    sandbox_id = SandboxId(new_id())
    with level_of(node, sandbox_id, config, served.rules) as level:
        record = SandboxRecord(
            id=sandbox_id,
            config=config,
            handler=handler,
            revision=served.revision,
            node_runtime=served.node_runtime,
            profile=served.profile,
            oci_runtime=str(served.oci_runtime),
            cni_conf_dir=str(served.cni_conf_dir or ""),
            state=SandboxState.READY,
            created_at_ns=node.now_ns(),
            selinux_level=level,
        )
        await perform(RUN_SANDBOX, SandboxWork(node=node, record=record, grant=grant))
    return record.id


def attachment_of(node: Node, record: SandboxRecord) -> Attachment | None:
    """Return the sandbox's attachment to the Pod network; None with the node's network."""
    if record.config.namespaces.network is NamespaceMode.NODE:
        return None
    return Attachment(
        sandbox_id=record.id,
        netns=node.paths.namespaces(record.id) / "net",
        pod=record.config.pod,
        port_mappings=record.config.port_mappings,
        cni_conf_dir=Path(record.cni_conf_dir) if record.cni_conf_dir else None,
    )


async def _make_files(work: SandboxWork) -> None:
    paths, record = work.node.paths, work.record
    await work.node.disk.run(write_files, paths, record)
    await label_pod(work, paths.resolv_conf(record.id), paths.hostname(record.id))


async def remove_files(work: SandboxWork) -> None:
    """Remove the sandbox's folder."""
    await work.node.disk.remove_tree(work.node.paths.sandbox(work.record.id))


async def _mount_shm(work: SandboxWork) -> None:
    if work.record.config.namespaces.ipc is NamespaceMode.POD:
        target = work.node.paths.shm(work.record.id)
        size = SHM_BYTES if work.grant is None else work.grant.shm_bytes
        await work.node.parts.mounts.tmpfs(target, size_bytes=size, mode=SHM_MODE)
        await label_pod(work, target)


async def unmount_shm(work: SandboxWork) -> None:
    """Unmount the Pod's /dev/shm."""
    await work.node.parts.mounts.unmount(work.node.paths.shm(work.record.id))


async def _make_namespaces(work: SandboxWork) -> None:
    options = work.record.config.namespaces
    own_network = options.network is NamespaceMode.POD
    request = NamespaceRequest(
        network=own_network,
        ipc=options.ipc is NamespaceMode.POD,
        uts=own_network,  # hostNetwork shares the host's name as well
        pid=options.pid is NamespaceMode.POD,
        user=options.user is not None,
        init=work.init,
        hostname=hostname_of(work.record) if own_network else "",
        sysctls=work.grant.sysctls if work.grant is not None else {},
    )
    if request.network or request.ipc or request.uts or request.pid:
        directory = work.node.paths.namespaces(work.record.id)
        await work.node.parts.namespaces.create(directory, request)
    if not request.pid:
        await remove_init(work)  # it was there for its user namespace


async def remove_namespaces(work: SandboxWork) -> None:
    """Unpin the sandbox's namespaces."""
    await work.node.parts.namespaces.remove(work.node.paths.namespaces(work.record.id))


async def _attach(work: SandboxWork) -> None:
    attachment = attachment_of(work.node, work.record)
    if attachment is not None:
        addresses = await work.node.parts.network.attach(attachment)
        work.record = replace(work.record, addresses=addresses)


async def detach(work: SandboxWork) -> None:
    """Detach the sandbox from the Pod network, unless that is done."""
    attachment = attachment_of(work.node, work.record)
    if attachment is not None and not work.record.released:
        await work.node.parts.network.detach(attachment)


async def _commit(work: SandboxWork) -> None:
    await work.node.store.sandboxes.put(work.record)


async def drop_record(work: SandboxWork) -> None:
    """Forget the sandbox."""
    await work.node.store.sandboxes.drop(work.record.id)


RUN_SANDBOX: Final[Verb[SandboxWork]] = Verb(
    name="run_sandbox",
    steps=(
        Step(name="files", do=_make_files, undo=remove_files),
        Step(name="shm", do=_mount_shm, undo=unmount_shm),
        Step(name="init", do=start_init, undo=remove_init, span="sandbox.init"),
        Step(
            name="namespaces",
            do=_make_namespaces,
            undo=remove_namespaces,
            span="sandbox.namespaces",
        ),
        Step(name="network", do=_attach, undo=detach, span="network.attach", deadline_s=180.0),
        Step(name="record", do=_commit, undo=drop_record),
    ),
)
