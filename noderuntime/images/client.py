"""The runtime's side of the worker process: start it, talk to it, and be sure that it is gone.

Each worker holds a shared lock on a file of its own, which its children inherit. So an exclusive
lock is given when the last of them has ended, however it ended, and only then is removed what they
made. Source: flock(2).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

import noderuntime
from noderuntime.errors import HostError, ImageError, RegistryUnavailableError
from noderuntime.images.content import Content
from noderuntime.images.layers import Layers
from noderuntime.images.ports import Credentials

MAX_LINE: Final = 32 << 20
END_S: Final = 30.0
_ENVIRONMENT: Final = ("http_proxy", "https_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")
_ERRORS: Final = {
    RegistryUnavailableError.reason: RegistryUnavailableError,
    ImageError.reason: ImageError,
}


class Worker:
    """One process, as an async context; leaving it kills it and removes what it half-made."""

    def __init__(self, root: Path, hosts_dir: Path, threads: Executor) -> None:
        """Take the store's folder and threads; the process starts with the context."""
        self._threads = threads
        self._content = Content(root)
        self._layers = Layers(root)
        self._root = root
        self._hosts_dir = hosts_dir
        self._run = os.urandom(8).hex()
        self._lock = lock_path(self._content, self._run)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Start the process."""
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "noderuntime.images.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=(fd,),
                limit=MAX_LINE,
                env=_environment(),
            )
        except OSError as error:
            self._lock.unlink(missing_ok=True)
            raise ImageError(f"the image worker cannot be started: {error.strerror}") from error
        except asyncio.CancelledError:
            self._lock.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill it, wait for all of it, remove what it left."""
        process = self._process
        if process is not None and process.returncode is None:
            process.kill()
        cleaning = asyncio.get_running_loop().run_in_executor(self._threads, self._clean)
        try:
            await asyncio.shield(cleaning)
        finally:
            if process is not None:
                await process.wait()

    def _clean(self) -> None:
        wait_for_end(self._lock)
        drop_leavings(self._content, self._layers, self._run)

    async def ask(
        self,
        reference: str,
        credentials: Credentials | None,
        known: frozenset[str],
        layout: Path | None,
    ) -> Mapping[str, Any]:
        """Send the request; return the event ``known`` or ``image``."""
        await self._send(
            {
                **self._request(reference),
                "layout": str(layout) if layout else "",
                "credentials": _plain(credentials),
                "known": sorted(known),
            }
        )
        return await self.event()

    async def artifact(self, reference: str, credentials: Credentials | None) -> str:
        """Ask for an artifact's text. Raises what the worker tells."""
        request = {**self._request(reference), "artifact": True}
        await self._send({**request, "credentials": _plain(credentials)})
        return str((await self.event())["text"])

    def _request(self, reference: str) -> dict[str, object]:
        return {
            "root": str(self._root),
            "run": self._run,
            "parent": os.getpid(),
            "reference": reference,
            "hosts_dir": str(self._hosts_dir),
            "layout": "",
            "credentials": None,
            "known": [],
        }

    async def make(self, chains: list[str]) -> None:
        """Ask for layers; the events follow."""
        await self._send({"make": chains})

    async def event(self) -> Mapping[str, Any]:
        """Return the next event; raises what the worker tells, or ImageError if it died."""
        process = self._running()
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            code = await process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            raise ImageError(f"the image worker {how} in the middle of its work")
        event: Mapping[str, Any] = json.loads(line)
        if event["event"] != "error":
            return event
        kind = _ERRORS.get(event["reason"])
        if kind is None and event["reason"] == "Bug":
            raise RuntimeError(f"the image worker failed:\n{event['message']}")
        raise (kind or ImageError)(event["message"])

    async def _send(self, document: Mapping[str, object]) -> None:
        process = self._running()
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        process.stdin.write(json.dumps(document).encode() + b"\n")
        try:
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return  # it has ended: ``event`` tells how

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the worker was not started")
        return self._process


def lock_path(content: Content, run: str) -> Path:
    """Return the lock file of the worker ``run``."""
    return content.ingest / f"{run}.lock"


def recover(content: Content, layers: Layers) -> None:
    """Wait for workers of an earlier life (they die with it), remove what all have left."""
    for path in content.ingest.glob("*.lock"):
        wait_for_end(path)
        drop_leavings(content, layers, path.name.removesuffix(".lock"))


def wait_for_end(lock: Path) -> None:
    """Wait until no process of the worker is left; raises HostError after ``END_S``."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        deadline = time.monotonic() + END_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HostError(f"the image worker of {lock} does not end") from None
                time.sleep(0.002)
            else:
                return
    finally:
        os.close(fd)


def drop_leavings(content: Content, layers: Layers, run: str) -> None:
    """Remove everything half-made of the worker ``run``, its lock last."""
    layers.drop_making(run)
    for path in content.ingest.glob(f"*.{run}"):
        path.unlink(missing_ok=True)
    lock_path(content, run).unlink(missing_ok=True)


def _plain(credentials: Credentials | None) -> dict[str, str] | None:
    return None if credentials is None else asdict(credentials)


def _environment() -> dict[str, str]:
    """Return what the worker needs: our packages, the proxies, and no more."""
    package = Path(noderuntime.__file__).resolve().parent.parent
    kept = {k: v for k, v in os.environ.items() if k.lower() in _ENVIRONMENT}
    return {
        **kept,
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(package),
        "PYTHONSAFEPATH": "1",
        "PYTHONNOUSERSITE": "1",
    }
