"""Leases of the plugin host-local that a power loss has emptied: a leak for ever, but for this.

The plugin writes the owner into a file that is named after the address, and does not sync it. After
a power loss the file may be there and empty. Its DEL finds a lease by its owner and so never finds
this one, and its ADD gives the address to nobody. Our own records are synced and know the owners.
Source: containernetworking/plugins, plugins/ipam/host-local/backend/disk.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from noderuntime.host import durable
from noderuntime.network.conflist import Document, NetworkList

DEFAULT: Final = Path("/var/lib/cni/networks")
TYPE: Final = "host-local"


def mend(networks: Iterable[NetworkList], owners: Mapping[str, str], interface: str) -> list[str]:
    """Give emptied leases back to their owners (address -> sandbox ID); those of nobody are removed.

    Returns the addresses. Blocking. Raises HostError, OSError.
    """
    found: list[str] = []
    for folder in sorted({folder for network in networks for folder in _folders(network)}):
        with _locked(folder) as is_ours:
            for file in _emptied(folder) if is_ours else ():
                found.append(file.name)
                if owner := owners.get(file.name):
                    durable.write(file, f"{owner}\r\n{interface}".encode())
                else:
                    durable.remove(file)
    return found


def _folders(network: NetworkList) -> Iterator[Path]:
    for plugin in network.plugins:
        ipam = plugin.get("ipam")
        if isinstance(ipam, dict):
            told = cast("Document", ipam)
            if told.get("type") == TYPE:
                folder = Path(str(told.get("dataDir") or DEFAULT)) / network.name
                if folder.is_dir():
                    yield folder


def _emptied(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        try:
            ipaddress.ip_address(file.name)
        except ValueError:
            continue
        if file.is_file() and file.stat().st_size == 0:
            yield file


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the plugin's own lock: who writes a lease now has it. False where somebody does."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
