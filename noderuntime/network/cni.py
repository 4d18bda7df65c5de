"""Pods on a CNI network: ADD, DEL, CHECK, STATUS and GC of the chain in ``conf_dir``.

What an ADD was given and what it returned is on disk (``records``), for its DEL. A handler may have
a folder of its own in place of ``conf_dir``: the attachment names it. The engine never runs two verbs
for one sandbox at once. Source: CNI spec 1.1, sections 3 and 4.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from noderuntime.errors import HostError, InvalidArgumentError, NetworkError
from noderuntime.host.threads import in_pool
from noderuntime.network import conflist, leases
from noderuntime.network.conflist import Document, NetworkList
from noderuntime.network.plugin import Call, Plugins
from noderuntime.network.ports import Attachment
from noderuntime.network.records import Cached, CorruptedError, Records
from noderuntime.telemetry import metrics

_log = logging.getLogger(__name__)

INTERFACE: Final = "eth0"
_STATUS_TIMEOUT_S: Final = 10.0


class CniNetwork:
    """The ``Network`` of ports.py."""

    def __init__(self, conf_dir: Path, bin_dirs: Sequence[Path], state_dir: Path) -> None:
        """``state_dir``: where the attachments are kept; made if missing."""
        self._conf_dir = conf_dir
        self._records = Records(state_dir)
        self._plugins = Plugins(bin_dirs)
        self._status_error = ""

    def is_configured(self) -> bool:
        """Tell whether there is a configuration, be it a good one or not."""
        try:
            return bool(conflist.files_in(self._conf_dir))
        except NetworkError:  # one that cannot be read is not none
            return True

    def served_by(self) -> str:
        """Return what attaches Pods now, for people."""
        try:
            network = conflist.load(self._conf_dir)
        except NetworkError as error:
            return f"nothing: {error}"
        return f"CNI network {network.name} ({network.source})"

    def not_ready_because(self) -> str:
        """Return why no Pod can be attached now, or "" when one can."""
        try:
            network = conflist.load(self._conf_dir)
            for plugin in network.plugins:
                self._plugins.find(str(plugin["type"]))
        except NetworkError as error:
            return str(error)
        return self._status_error

    async def check_status(self) -> None:
        """Ask the plugins (STATUS, spec 1.1); ``not_ready_because`` tells their answer."""
        self._status_error = await self._ask()

    async def _ask(self) -> str:
        """Return what a plugin says against attaching Pods, "" when none does."""
        call = Call(verb="STATUS", timeout_s=_STATUS_TIMEOUT_S)
        try:
            network = conflist.load(self._conf_dir)
            if conflist.version_at_least(network.version, (1, 1)):
                for plugin in network.plugins:
                    await self._plugins.run(str(plugin["type"]), call, _config(network, plugin, {}))
        except NetworkError as error:
            return str(error)
        return ""

    async def attach(self, attachment: Attachment) -> tuple[str, ...]:
        """ADD; a failed or cancelled one is followed by its DEL. Raises NetworkError."""
        network = conflist.load(attachment.cni_conf_dir or self._conf_dir)
        if network.source.parent != self._conf_dir:
            await self._records.remember_folder(network.source.parent)
        cached = Cached(
            network=network,
            result=None,
            netns=str(attachment.netns),
            arguments=_arguments(attachment),
            capabilities={"portMappings": _port_mappings(attachment)},
        )
        await self._records.remember(attachment.sandbox_id, cached)
        try:
            result = await self._add(attachment.sandbox_id, cached)
            addresses = addresses_of(result)
            await self._records.remember(attachment.sandbox_id, replace(cached, result=result))
        except BaseException as error:
            try:
                await self._delete(attachment.sandbox_id, cached)
            except NetworkError as cleanup:
                error.add_note(f"and while cleaning up: {cleanup}")
            else:
                await self._records.forget(attachment.sandbox_id)
            raise
        return addresses

    async def detach(self, attachment: Attachment) -> None:
        """DEL with what the ADD was given; never attached is success. Raises NetworkError."""
        await self._let_go(attachment.sandbox_id)

    async def check(self, attachment: Attachment) -> None:
        """CHECK: raises NetworkError when the attachment is not as it was made."""
        cached = self._recall(attachment.sandbox_id)
        if cached is None or cached.result is None:
            raise NetworkError(f"sandbox {attachment.sandbox_id} is not attached to a network")
        network = cached.network
        if network.disable_check or not conflist.version_at_least(network.version, (0, 4)):
            return
        for plugin in network.plugins:
            await self._step("CHECK", attachment.sandbox_id, cached, plugin, cached.result)

    def attached(self) -> tuple[str, ...]:
        """Return the IDs of all sandboxes that hold, or may hold, something of the network."""
        return self._records.ids()

    async def collect(self, sandbox_ids: Iterable[str]) -> None:
        """Forget attachments of unknown sandboxes (DEL), then GC where the plugins know it."""
        known = set(sandbox_ids)
        await self._mend_leases()
        failures: list[NetworkError] = []
        for sandbox_id in self.attached():
            if sandbox_id not in known:
                try:
                    await self._let_go(sandbox_id)
                except NetworkError as error:
                    failures.append(error)
        await self._collect_garbage(known)
        for other in failures[1:]:
            failures[0].add_note(str(other))
        if failures:
            raise failures[0]

    async def _mend_leases(self) -> None:
        """Before any DEL, which finds addresses by their owners; nothing is attached meanwhile."""
        networks: list[NetworkList] = []
        owners: dict[str, str] = {}
        for folder in (self._conf_dir, *self._records.folders()):
            with suppress(NetworkError):
                networks.append(conflist.load(folder))
        for sandbox_id in self.attached():
            with suppress(CorruptedError, NetworkError):
                cached = self._records.look(sandbox_id)
                if cached is None:
                    continue
                networks.append(cached.network)  # also of an ADD that was cut off
                if cached.result is not None:
                    owners |= dict.fromkeys(addresses_of(cached.result), sandbox_id)
        try:
            mended = await in_pool(leases.mend, networks, owners, INTERFACE)
        except (HostError, OSError) as error:
            _log.error("emptied leases could not be mended", extra={"error": str(error)})
            return
        if mended:
            _log.warning("a power loss had emptied leases", extra={"addresses": mended})

    async def _collect_garbage(self, known: set[str]) -> None:
        """GC of every network that is configured, was used, or that a Pod is on."""
        directories = {self._conf_dir, *self._records.folders()}
        for sandbox_id in self.attached():
            with suppress(CorruptedError):
                cached = self._records.look(sandbox_id)
                directories |= set() if cached is None else {cached.conf_dir}
        for directory in sorted(directories):
            with suppress(NetworkError):  # no network now: nothing to collect from
                await self._collect_garbage_of(conflist.load(directory), known)

    async def _collect_garbage_of(self, network: NetworkList, known: set[str]) -> None:
        if network.disable_gc or not conflist.version_at_least(network.version, (1, 1)):
            return
        valid = [{"containerID": id_, "ifname": INTERFACE} for id_ in sorted(known)]
        for plugin in network.plugins:
            config = {**_config(network, plugin, {}), "cni.dev/valid-attachments": valid}
            with suppress(NetworkError):  # the others may still collect theirs
                await self._plugins.run(str(plugin["type"]), Call(verb="GC"), config)

    async def _add(self, sandbox_id: str, cached: Cached) -> Document:
        result: Document | None = None
        for plugin in cached.network.plugins:
            answer = await self._step("ADD", sandbox_id, cached, plugin, result)
            result = answer if answer is not None else result
        if result is None:
            raise NetworkError(f"CNI network {cached.network.name!r} gave no result")
        return result

    async def _let_go(self, sandbox_id: str) -> None:
        cached = self._recall(sandbox_id)
        if cached is not None:
            await self._delete(sandbox_id, cached)
        # Also where nothing is known: a kill may have left the file half written.
        await self._records.forget(sandbox_id)

    async def _delete(self, sandbox_id: str, cached: Cached) -> None:
        """Run every plugin last first, also when one fails; the first error is raised."""
        first: NetworkError | None = None
        for plugin in reversed(cached.network.plugins):
            try:
                await self._step("DEL", sandbox_id, cached, plugin, cached.result)
            except NetworkError as error:
                if first is None:
                    first = error
                else:
                    first.add_note(str(error))
        if first is not None:
            raise first

    async def _step(
        self,
        verb: str,
        sandbox_id: str,
        cached: Cached,
        plugin: Document,
        previous: Document | None,
    ) -> Document | None:
        # Spec 1.1, DEL: a network namespace that is gone is given as "", not as a dead path.
        netns = cached.netns if verb != "DEL" or _exists(cached.netns) else ""
        call = Call(
            verb=verb,
            container_id=sandbox_id,
            netns=netns,
            interface=INTERFACE,
            arguments=cached.arguments,
        )
        config = _config(cached.network, plugin, cached.capabilities)
        if previous is not None and (
            verb == "ADD" or conflist.version_at_least(cached.network.version, (0, 4))
        ):
            config = {**config, "prevResult": previous}
        return await self._plugins.run(str(plugin["type"]), call, config)

    def _unknown(self) -> Cached | None:
        """Return what a DEL is given when nothing is known but the sandbox's ID.

        The plugins find addresses by that ID, and interfaces go with their namespace. Where there is
        no network now, nobody can be asked.
        """
        try:
            network = conflist.load(self._conf_dir)
        except NetworkError:
            return None
        return Cached(network=network, result=None, netns="", arguments="", capabilities={})

    def _recall(self, sandbox_id: str) -> Cached | None:
        try:
            return self._records.recall(sandbox_id)
        except CorruptedError as error:
            metrics.count_damaged_record("attachment")
            _log.error(
                "an attachment is corrupted and was set aside; its pod is taken off today's network",
                extra={"file": str(error.file), "sandbox": sandbox_id, "error": str(error)},
            )
            return self._unknown()


def _exists(path: str) -> bool:
    return Path(path).exists()


def _config(network: NetworkList, plugin: Document, capabilities: Document) -> Document:
    """Return the configuration for one plugin: name and version, and what it can take of ours."""
    able = plugin.get("capabilities")
    wanted: Document = cast("Document", able) if isinstance(able, dict) else {}
    runtime = {name: value for name, value in capabilities.items() if wanted.get(name) and value}
    config = {name: value for name, value in plugin.items() if name != "capabilities"}
    config |= {"name": network.name, "cniVersion": network.version}
    return {**config, "runtimeConfig": runtime} if runtime else config


def _arguments(attachment: Attachment) -> str:
    """Return CNI_ARGS as other runtimes have them; a value cannot smuggle another pair in."""
    pairs = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": attachment.pod.namespace,
        "K8S_POD_NAME": attachment.pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": attachment.sandbox_id,
        "K8S_POD_UID": attachment.pod.uid,
    }
    for name, value in pairs.items():
        if any(c in value for c in ";=\0"):
            raise InvalidArgumentError(
                f"{name} {value!r} holds a character that CNI has no room for"
            )
    return ";".join(f"{name}={value}" for name, value in pairs.items())


def _port_mappings(attachment: Attachment) -> list[dict[str, object]]:
    return [
        {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol.lower(),
            "hostIP": mapping.host_ip,
        }
        for mapping in attachment.port_mappings
        if mapping.host_port > 0
    ]


def addresses_of(result: Document) -> tuple[str, ...]:
    """Return the Pod's addresses of a result, the primary first; raises NetworkError without one.

    Before spec 0.3 a result has ip4 and ip6; since then a list, in which an address may belong to
    an interface of the host, which is not the Pod's.
    """
    found: list[str] = []
    interfaces = result.get("interfaces")
    known = cast("list[Document]", interfaces) if isinstance(interfaces, list) else []
    ips = result.get("ips")
    for entry in cast("list[Document]", ips) if isinstance(ips, list) else []:
        index = entry.get("interface")
        if isinstance(index, int) and 0 <= index < len(known) and not known[index].get("sandbox"):
            continue
        found.append(str(entry.get("address", "")))
    for name in ("ip4", "ip6"):
        old = result.get(name)
        if isinstance(old, dict):
            found.append(str(cast("Document", old).get("ip", "")))
    try:
        addresses = tuple(str(ipaddress.ip_interface(address).ip) for address in found)
    except ValueError as error:
        raise NetworkError(f"the CNI network gave something that is no address: {error}") from error
    if not addresses:
        raise NetworkError("the CNI network gave the pod no address")
    return addresses
