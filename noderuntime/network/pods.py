"""The Pod network of a node: CNI where it is configured, the built-in bridge where it is not.

Which of the two attaches a Pod is decided when it is attached, so a network plugin that installs
itself later gets the Pods from then on. Who attached a Pod detaches it: CNI has it on disk, the
bridge in the kernel. A handler with a CNI folder of its own never gets the bridge: it wants that
network and no other.
"""

from __future__ import annotations

from collections.abc import Iterable

from noderuntime.errors import NetworkError
from noderuntime.network.bridge import BridgeNetwork
from noderuntime.network.cni import CniNetwork
from noderuntime.network.ports import Attachment


class PodNetwork:
    """The ``Network`` of ports.py."""

    def __init__(self, cni: CniNetwork, bridge: BridgeNetwork | None) -> None:
        """``bridge`` is None where the node's settings have it off."""
        self._cni = cni
        self._bridge = bridge

    def not_ready_because(self) -> str:
        """Return why no Pod can be attached now, or "" when one can."""
        bridge = self._bridge_now()
        return self._cni.not_ready_because() if bridge is None else bridge.not_ready_because()

    def served_by(self) -> str:
        """Return what attaches Pods now, for people."""
        bridge = self._bridge_now()
        return self._cni.served_by() if bridge is None else bridge.served_by()

    async def check_status(self) -> None:
        """Ask the network that attaches Pods now, and the bridge also while it has Pods."""
        bridge = self._bridge
        if bridge is not None and (not self._cni.is_configured() or bridge.is_in_use()):
            await bridge.check_status()
        await self._cni.check_status()

    async def attach(self, attachment: Attachment) -> tuple[str, ...]:
        """Attach; returns the addresses, the primary first. Raises NetworkError."""
        bridge = self._bridge_now() if attachment.cni_conf_dir is None else None
        if bridge is None:
            return await self._cni.attach(attachment)
        return await bridge.attach(attachment)

    async def detach(self, attachment: Attachment) -> None:
        """Detach from whichever has it; never attached is success. Raises NetworkError."""
        if self._bridge is not None and self._bridge.has(attachment.sandbox_id):
            await self._bridge.detach(attachment)
        else:
            await self._cni.detach(attachment)

    async def check(self, attachment: Attachment) -> None:
        """Raise NetworkError when the attachment is not as it was made."""
        if self._bridge is not None and self._bridge.has(attachment.sandbox_id):
            await self._bridge.check(attachment)
        else:
            await self._cni.check(attachment)

    def attached(self) -> tuple[str, ...]:
        """Return the IDs of all sandboxes that hold, or may hold, something of a network."""
        bridged = () if self._bridge is None else self._bridge.attached()
        return tuple(sorted({*self._cni.attached(), *bridged}))

    async def collect(self, sandbox_ids: Iterable[str]) -> None:
        """Take back what no sandbox of these holds, of both; the first error is raised."""
        known = set(sandbox_ids)
        failure: NetworkError | None = None
        if self._bridge is not None:
            try:
                await self._bridge.collect(known)
            except NetworkError as error:
                failure = error
        await self._cni.collect(known)
        if failure is not None:
            raise failure

    def _bridge_now(self) -> BridgeNetwork | None:
        """Return the bridge when it is what attaches Pods now."""
        return None if self._bridge is None or self._cni.is_configured() else self._bridge
