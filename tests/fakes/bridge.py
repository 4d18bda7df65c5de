"""A fake of network/kernel.py: the links and host ports of one bridge, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from noderuntime.errors import NetworkError
from noderuntime.network.kernel import BridgeGoneError, Joint, Survey
from noderuntime.network.nftables import HostPort
from noderuntime.network.rtnetlink import Link


class FakeBridge:
    """``BridgeKernel``. A link that was let go of stays until ``namespace_goes``, as the real does."""

    def __init__(self) -> None:
        self.is_made = False
        self.aliases: dict[str, str] = {}
        self.closed: set[str] = set()
        self.ports: set[HostPort] = set()
        self.calls: list[str] = []
        self.faults: dict[str, BaseException] = {}

    def _at(self, call: str) -> None:
        self.calls.append(call)
        if (fault := self.faults.pop(call, None)) is not None:
            raise fault

    def survey(self) -> Survey:
        self._at("survey")
        links = tuple(
            Link(index=i, name=name, alias=alias, is_up=True)
            for i, (name, alias) in enumerate(self.aliases.items(), 10)
        )
        if not self.is_made:
            return Survey(links=(), ports=(), is_whole=False)
        return Survey(links=links, ports=tuple(self.ports), is_whole=True)

    def require_room(self) -> None:
        self._at("require_room")

    def prepare(self, ports: Iterable[HostPort], links: Iterable[str]) -> None:
        self._at("prepare")
        self.is_made, self.ports = True, set(ports)
        del links

    def join(self, joint: Joint) -> None:
        self._at("join")
        if not self.is_made:
            raise BridgeGoneError("there is no bridge")
        if joint.alias in self.aliases.values():
            raise NetworkError("file exists")
        self.aliases[joint.name] = joint.alias
        self.closed.discard(joint.name)
        self.ports |= set(joint.ports)

    def part(self, name: str, ports: Sequence[HostPort]) -> None:
        self._at("part")
        self.ports -= set(ports)
        if name in self.aliases:
            self.closed.add(name)

    def delete(self, names: Iterable[str]) -> None:
        self._at("delete")
        for name in names:
            self.aliases.pop(name, None)

    def unmap(self, ports: Sequence[HostPort]) -> None:
        self._at("unmap")
        self.ports -= set(ports)

    def remove(self) -> None:
        self._at("remove")
        self.is_made = False
        self.aliases.clear()
        self.ports.clear()

    def namespace_goes(self, name: str) -> None:
        self.aliases.pop(name, None)
