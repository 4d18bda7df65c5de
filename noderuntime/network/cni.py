"""Pods on a CNI network: ADD, DEL, CHECK, STATUS and GC of the chain in ``conf_dir``.

What an ADD was given and what it returned is on disk (``state_dir/network/ID.json``) before the
first plugin runs and after the last, so that the DEL gets the same configuration and result, also
after a restart and also when the network's file changed meanwhile. The engine never runs two verbs
for one sandbox at once. Source: CNI spec 1.1, sections 3 and 4.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from noderuntime.errors import HostError, InvalidArgumentError, NetworkError
from noderuntime.host import durable
from noderuntime.host.threads import in_pool
from noderuntime.network import conflist, leases
from noderuntime.network.conflist import Document, NetworkList
from noderuntime.network.plugin import Call, Plugins
from noderuntime.network.ports import Attachment

_log = logging.getLogger(__name__)

INTERFACE: Final = "eth0"
_STATUS_TIMEOUT_S: Final = 10.0
_CACHE_LIMIT_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cached:
    """One attachment as it is on disk; ``result`` is None until the ADD was through."""

    network: NetworkList
    result: Document | None
    netns: str
    arguments: str
    capabilities: Document


class CniNetwork:
    """The ``Network`` of ports.py."""

    def __init__(self, conf_dir: Path, bin_dirs: Sequence[Path], state_dir: Path) -> None:
        """``state_dir``: where the attachments are kept; made if missing."""
        self._conf_dir = conf_dir
        self._state_dir = state_dir
        self._plugins = Plugins(bin_dirs)
        self._status_error = ""
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)

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
        self._status_error = ""
        call = Call(verb="STATUS", timeout_s=_STATUS_TIMEOUT_S)
        try:
            network = conflist.load(self._conf_dir)
            if conflist.version_at_least(network.version, (1, 1)):
                for plugin in network.plugins:
                    await self._plugins.run(str(plugin["type"]), call, _config(network, plugin, {}))
        except NetworkError as error:
            self._status_error = str(error)

    async def attach(self, attachment: Attachment) -> tuple[str, ...]:
        """ADD; a failed or cancelled one is followed by its DEL. Raises NetworkError."""
        network = conflist.load(self._conf_dir)
        cached = _Cached(
            network=network,
            result=None,
            netns=str(attachment.netns),
            arguments=_arguments(attachment),
            capabilities={"portMappings": _port_mappings(attachment)},
        )
        await self._remember(attachment.sandbox_id, cached)
        try:
            result = await self._add(attachment.sandbox_id, cached)
            addresses = addresses_of(result)
            await self._remember(attachment.sandbox_id, _with_result(cached, result))
        except BaseException as error:
            try:
                await self._delete(attachment.sandbox_id, cached)
            except NetworkError as cleanup:
                error.add_note(f"and while cleaning up: {cleanup}")
            else:
                await durable.remove_async(self._file(attachment.sandbox_id))
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
        return tuple(sorted(file.stem for file in self._state_dir.glob("*.json")))

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
        with suppress(NetworkError):
            networks.append(conflist.load(self._conf_dir))
        for sandbox_id in self.attached():
            cached = self._recall(sandbox_id)
            if cached is None or cached.result is None:
                continue
            networks.append(cached.network)
            with suppress(NetworkError):
                owners |= dict.fromkeys(addresses_of(cached.result), sandbox_id)
        try:
            mended = await in_pool(leases.mend, networks, owners, INTERFACE)
        except (HostError, OSError) as error:
            _log.error("emptied leases could not be mended", extra={"error": str(error)})
            return
        if mended:
            _log.warning("a power loss had emptied leases", extra={"addresses": mended})

    async def _collect_garbage(self, known: set[str]) -> None:
        with suppress(NetworkError):  # no network now: nothing to collect from
            network = conflist.load(self._conf_dir)
            if network.disable_gc or not conflist.version_at_least(network.version, (1, 1)):
                return
            valid = [{"containerID": id_, "ifname": INTERFACE} for id_ in sorted(known)]
            for plugin in network.plugins:
                config = {**_config(network, plugin, {}), "cni.dev/valid-attachments": valid}
                with suppress(NetworkError):  # the others may still collect theirs
                    await self._plugins.run(str(plugin["type"]), Call(verb="GC"), config)

    async def _add(self, sandbox_id: str, cached: _Cached) -> Document:
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
        await durable.remove_async(self._file(sandbox_id))

    async def _delete(self, sandbox_id: str, cached: _Cached) -> None:
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
        cached: _Cached,
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

    def _unknown(self) -> _Cached | None:
        """Return what a DEL is given when nothing is known but the sandbox's ID.

        The plugins find addresses by that ID, and interfaces go with their namespace. Where there is
        no network now, nobody can be asked.
        """
        try:
            network = conflist.load(self._conf_dir)
        except NetworkError:
            return None
        return _Cached(network=network, result=None, netns="", arguments="", capabilities={})

    def _file(self, sandbox_id: str) -> Path:
        if not sandbox_id or "/" in sandbox_id or sandbox_id.startswith("."):
            raise InvalidArgumentError(f"sandbox ID {sandbox_id!r} is not one")
        return self._state_dir / f"{sandbox_id}.json"

    async def _remember(self, sandbox_id: str, cached: _Cached) -> None:
        document = {
            "network": {
                "name": cached.network.name,
                "version": cached.network.version,
                "plugins": list(cached.network.plugins),
                "disableCheck": cached.network.disable_check,
                "disableGC": cached.network.disable_gc,
                "source": str(cached.network.source),
            },
            "result": cached.result,
            "netns": cached.netns,
            "arguments": cached.arguments,
            "capabilities": cached.capabilities,
        }
        await durable.write_async(self._file(sandbox_id), json.dumps(document).encode())

    def _recall(self, sandbox_id: str) -> _Cached | None:
        file = self._file(sandbox_id)
        data = None if file.is_dir() else durable.read(file, limit_bytes=_CACHE_LIMIT_BYTES)
        if data is None and not file.is_dir():
            return None
        try:
            if data is None:
                raise ValueError("is a folder")  # noqa: TRY301
            return _parse_cached(json.loads(data))
        except (ValueError, KeyError, TypeError) as error:
            _log.error(
                "an attachment is corrupted and was set aside; its pod is taken off today's network",
                extra={"file": str(file), "error": str(error)},
            )
            _set_aside(file)
            return self._unknown()


def _set_aside(file: Path) -> None:
    """Keep a copy for who wants to know; the file itself stays until a DEL has succeeded."""
    aside = file.with_name(f"{file.name}.corrupt")
    with suppress(OSError):
        if file.is_dir():
            file.replace(aside)
        else:
            shutil.copyfile(file, aside)


def _exists(path: str) -> bool:
    return Path(path).exists()


def _parse_cached(document: Mapping[str, object]) -> _Cached:
    network = cast("dict[str, object]", document["network"])
    return _Cached(
        network=NetworkList(
            name=str(network["name"]),
            version=str(network["version"]),
            plugins=tuple(cast("list[Document]", network["plugins"])),
            disable_check=bool(network["disableCheck"]),
            disable_gc=bool(network["disableGC"]),
            source=Path(str(network["source"])),
        ),
        result=cast("Document | None", document["result"]),
        netns=str(document["netns"]),
        arguments=str(document["arguments"]),
        capabilities=cast("Document", document["capabilities"]),
    )


def _with_result(cached: _Cached, result: Document) -> _Cached:
    return _Cached(
        network=cached.network,
        result=result,
        netns=cached.netns,
        arguments=cached.arguments,
        capabilities=cached.capabilities,
    )


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
