"""Waiting for components: by their own health endpoints, with a deadline, with the log's end."""

from __future__ import annotations

import json
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from e2e.cluster import processes
from e2e.cluster.layout import Layout
from e2e.cluster.state import ClusterError, State


def context(layout: Layout, client: str | None, authority: str = "ca") -> ssl.SSLContext:
    """TLS that trusts one of our authorities, with one of our client certificates."""
    made = ssl.create_default_context(cafile=str(layout.pki / f"{authority}.crt"))
    if client:
        made.load_cert_chain(layout.pki / f"{client}.crt", layout.pki / f"{client}.key")
    return made


def get(url: str, tls: ssl.SSLContext | None = None, timeout_s: float = 5) -> bytes:
    """GET; raises OSError when it is not answered with a success."""
    with urllib.request.urlopen(url, context=tls, timeout=timeout_s) as answer:  # noqa: S310
        content: bytes = answer.read()
    return content


def get_json(url: str, tls: ssl.SSLContext | None = None) -> dict[str, Any]:
    """GET a JSON object."""
    content: dict[str, Any] = json.loads(get(url, tls))
    return content


def accepts(address: str) -> bool:
    """Whether something listens at host:port; raises OSError when it is refused."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        return True


def wait_until(
    what: str,
    is_so: Callable[[], bool],
    *,
    state: State,
    layout: Layout,
    components: tuple[str, ...] = (),
    limit_s: float = 60,
) -> None:
    """Wait; raises ClusterError when a component ends meanwhile or the time is up."""
    deadline = time.monotonic() + limit_s
    while True:
        for name in components:
            processes.require_alive(state, layout, name)
        try:
            if is_so():
                return
        except (OSError, ValueError, KeyError):
            pass  # not there yet
        if time.monotonic() > deadline:
            logs = "\n".join(
                f"the end of {name}'s log:\n{processes.tail(layout.logs / f'{name}.log')}"
                for name in components
            )
            raise ClusterError(f"{what} did not come to be within {limit_s:.0f} s. {logs}")
        time.sleep(0.1)


def answers(url: str, tls: ssl.SSLContext | None = None) -> Callable[[], bool]:
    """A check that a URL answers with a success."""

    def is_so() -> bool:
        get(url, tls)
        return True

    return is_so
