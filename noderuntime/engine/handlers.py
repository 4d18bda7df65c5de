"""The handlers that this node serves now: its own from config.toml, and those of the revision.

What always holds: the revision is served whole or not at all. A file that cannot be read, parsed,
verified or compiled serves none of its handlers, and ``error`` says why; so a Pod that names one of
them is refused rather than run without its profile. Rules are compiled once a revision. What a
handler needs of the kernel is there before the revision is served, or the handler is withheld
(``offers.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from noderuntime.api.revision import Revision, RevisionHandler, digest_of
from noderuntime.engine.governing import FILE, Governing
from noderuntime.engine.offers import ARTIFACT_MISSING
from noderuntime.errors import ConfigError, FailedPreconditionError, NodeRuntimeError
from noderuntime.host import durable
from noderuntime.host.watch import Renames
from noderuntime.policy.load import rules_of

if TYPE_CHECKING:
    from noderuntime.api.config import Config
    from noderuntime.api.revision import RevisionDefault
    from noderuntime.engine.offers import Offers, Withheld
    from noderuntime.policy.rules import HandlerRules

_log = logging.getLogger(__name__)

LIMIT_BYTES = 8 * 1024 * 1024
LOOK_AGAIN_S = 5.0  # for a file that is written in place, or a folder that is not there yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A handler that is served. For the node's own, ``rules`` is None and ``revision`` is ""."""

    name: str
    oci_runtime: Path
    cni_conf_dir: Path | None = None  # a network of its own
    rules: HandlerRules | None = None
    revision: str = ""

    @property
    def node_runtime(self) -> str:
        """The NodeRuntime that declares it, "" for the node's own."""
        return "" if self.rules is None else self.rules.node_runtime

    @property
    def profile(self) -> str:
        """The SecurityProfile that it has, "" for the node's own."""
        return "" if self.rules is None else self.rules.profile


class HandlerTable:
    """Reads the revision file when it changed; ``refresh`` costs one stat(2) when it did not."""

    def __init__(self, config: Config, offers: Offers) -> None:
        """Serve the node's own handlers; the revision is read by the first ``refresh``."""
        self._path = config.revision
        self._offers = offers
        self._own: Mapping[str, Handler] = {
            name: Handler(name=name, oci_runtime=own.oci_runtime, cni_conf_dir=own.cni_conf_dir)
            for name, own in config.handlers.items()
        }
        if config.default_handler not in self._own:
            raise ConfigError(
                f"default_handler: {config.default_handler} is not one of [handlers.NAME]"
            )
        self._default = self._own[config.default_handler]
        self._declared: Mapping[str, Handler] = {}
        self._compiled: Mapping[str, Handler] = {}
        self._withheld: Mapping[str, Withheld] = {}
        self._governing = Governing(config.state_dir / FILE)
        self._loading = ""  # the digest of a revision that waits for what is loaded
        self._seen: tuple[int, ...] | None = ()  # never equal to a stat: the first look reads
        self.revision = ""
        self.error = ""

    def refresh(self) -> None:
        """Look at the file, and serve what it holds if it is another one than before."""
        seen = _identity(self._path)
        if seen == self._seen:
            return
        # Nothing of the former revision is served while the new one is looked at: fails closed.
        self._declared, self._compiled, self._withheld, self._loading = {}, {}, {}, ""
        self.revision, self.error = "", "the revision could not be loaded"
        self._seen = seen
        try:
            revision = self._read()
            handlers = {} if revision is None else self._compile(revision)
        except (NodeRuntimeError, ValueError) as error:
            self.error = f"{self._path}: {' '.join(str(error).split())}"
            _log.error("the revision is not served", extra={"error": self.error})
            return
        if revision is not None:  # else what the last one said holds: it is missing
            self._governing.serve(revision.default)
        self._compiled = handlers
        digest = "" if revision is None else revision.digest
        if self._offers.must_load(self._rules()):
            self._loading = digest
            self.error = f"the AppArmor profiles of revision {digest} are being loaded; try again"
            return
        self._serve(digest)

    async def settle(self) -> None:
        """Look at the file, and wait until what its handlers need is loaded or refused."""
        self.refresh()
        if self._loading:
            waiting, compiled = self._loading, self._compiled
            await self._offers.load(self._rules())
            if self._loading == waiting and self._compiled is compiled:
                self._serve(waiting)

    def wanted_profiles(self) -> frozenset[str]:
        """Return the AppArmor profiles that declared handlers name."""
        found = [rules.apparmor for rules in self._rules() if rules.apparmor is not None]
        return frozenset(name for each in found for name in (each.name, *each.texts()))

    def wanted_artifacts(self) -> frozenset[str]:
        """Return the seccomp artifacts that declared handlers name, those not offered too."""
        return frozenset(r.seccomp.artifact for r in self._rules() if r.seccomp.artifact)

    def withheld(self) -> tuple[Withheld, ...]:
        """Return the declared handlers that this node cannot offer."""
        return tuple(self._withheld[name] for name in sorted(self._withheld))

    def _rules(self) -> tuple[HandlerRules, ...]:
        return tuple(each.rules for each in self._compiled.values() if each.rules is not None)

    def _serve(self, digest: str) -> None:
        self.revision, self.error, self._loading = digest, "", ""
        self._offer()
        _log.info(
            "the revision is served",
            extra={"revision": self.revision, "handlers": ",".join(sorted(self._declared))},
        )

    def _offer(self) -> None:
        """Offer what can be offered now; the log tells what changes."""
        before, self._withheld = self._withheld, self._offers.withheld(self._rules())
        self._declared = {
            name: each for name, each in self._compiled.items() if name not in self._withheld
        }
        for name, each in self._withheld.items():
            if before.get(name) != each:
                _log.error(
                    "a handler is not offered",
                    extra={"handler": name, "reason": each.reason, "error": each.message},
                )

    async def look(self) -> None:
        """Settle, then offer what has become possible, and withhold what is so no more."""
        await self.settle()
        self._governing.keep()
        compiled = self._compiled
        if self.revision and not self._loading:
            await self._offers.load(self._rules())
            if self._compiled is compiled:  # else another revision came meanwhile
                self.offer_again()

    def offer_again(self) -> None:
        """Judge anew what of the served revision can be offered: something may have come."""
        if self.revision and not self._loading:
            self._offer()

    async def settled(self, name: str, namespace: str | None = None) -> Handler:
        """Settle, and return the handler as ``get`` does; what it waits for is tried once more."""
        await self.settle()
        meant = self._meant(name, namespace)
        found, withheld = self._compiled.get(meant), self._withheld.get(meant)
        if found is None or found.rules is None or withheld is None:
            return self.get(name, namespace)
        if withheld.reason == ARTIFACT_MISSING:
            await self._offers.fetch(found.rules)
            self.offer_again()  # the reason may be another one, too
        return self.get(name, namespace)

    @property
    def default(self) -> RevisionDefault | None:
        """Which handler governs Pods that name none, None where none does."""
        return self._governing.default

    def get(self, name: str, namespace: str | None = None) -> Handler:
        """Return the handler; "" is the default, for a Pod of ``namespace`` maybe a declared one.

        Without a namespace it is nobody's. Raises FailedPreconditionError with the reason.
        """
        self.refresh()
        if name or namespace is None:
            return self._named(name)
        meant = self._meant(name, namespace)
        try:
            return self._named(meant)
        except FailedPreconditionError as error:
            raise self._governing.unreadable(namespace, str(error)) from error

    def _meant(self, name: str, namespace: str | None) -> str:
        """Return the handler that is asked for, or governs who names none; "" is the node's own."""
        if name or namespace is None:
            return name
        return self._governing.handler_for(namespace)

    def _named(self, name: str) -> Handler:
        handler = self._default if not name else self._own.get(name) or self._declared.get(name)
        if handler is None and name in self._withheld:
            raise FailedPreconditionError(
                f'handler "{name}" is not served by this node: {self._withheld[name].message}'
            )
        if handler is None:
            why = self.error or (
                f"the revision {self.revision} does not have it"
                if self.revision
                else f"there is no revision at {self._path}"
            )
            raise FailedPreconditionError(f'handler "{name}" is not served by this node: {why}')
        return handler

    def names(self) -> tuple[str, ...]:
        """Return the names of all handlers; the first is "", the default."""
        return ("", *sorted({*self._own, *self._declared}))

    def declared(self) -> tuple[str, ...]:
        """Return the names of the handlers that the revision declares."""
        return tuple(sorted(self._declared))

    def rules(self) -> Mapping[str, HandlerRules]:
        """Return the rules of the handlers that the revision declares."""
        found = ((name, handler.rules) for name, handler in sorted(self._declared.items()))
        return {name: rules for name, rules in found if rules is not None}

    def programs(self) -> tuple[Path, ...]:
        """Return every OCI runtime that a handler names now."""
        handlers = (*self._own.values(), *self._declared.values())
        return tuple(sorted({handler.oci_runtime for handler in handlers}))

    async def watch(self, tidy: Callable[[], Awaitable[None]]) -> None:
        """Refresh when a file is renamed into place, and every few seconds, until cancelled.

        ``tidy`` is called each time, with everything settled.
        """
        while True:
            await self.look()
            await tidy()
            await _wait_for_change(self._path.parent, LOOK_AGAIN_S)

    def _read(self) -> Revision | None:
        data = durable.read(self._path, limit_bytes=LIMIT_BYTES)
        if data is None:
            return None
        revision = Revision.model_validate_json(data)
        digest = digest_of(revision.handlers, revision.default)
        if digest != revision.digest:
            raise ConfigError(f"its digest is {revision.digest}, its content has {digest}")
        return revision

    def _compile(self, revision: Revision) -> dict[str, Handler]:
        handlers: dict[str, Handler] = {}
        for declared in revision.handlers:
            if declared.name in self._own:
                raise ConfigError(
                    f"handler {declared.name} is one of the node's own, in its config.toml; "
                    "rename one of them"
                )
            if declared.name in handlers:
                raise ConfigError(f"handler {declared.name} is declared twice")
            handlers[declared.name] = Handler(
                name=declared.name,
                oci_runtime=self._program(declared),
                cni_conf_dir=Path(declared.cni_conf_dir) if declared.cni_conf_dir else None,
                rules=rules_of(declared, revision.digest),
                revision=revision.digest,
            )
        if revision.default is not None and revision.default.handler not in handlers:
            raise ConfigError(f"default: handler {revision.default.handler} is not declared")
        return handlers

    def _program(self, declared: RevisionHandler) -> Path:
        named = self._own.get(declared.oci_runtime)
        if named is not None:
            return named.oci_runtime
        for own in self._own.values():
            if own.oci_runtime.name == declared.oci_runtime:
                return own.oci_runtime
        return Path("/usr/bin") / declared.oci_runtime


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


async def _wait_for_change(directory: Path, timeout_s: float) -> None:
    """Return when a file was renamed into the folder, or after ``timeout_s``."""
    try:
        with Renames(directory) as renames:
            async with asyncio.timeout(timeout_s):
                await anext(renames)
    except TimeoutError:
        return
    except OSError:  # the folder is not there
        await asyncio.sleep(timeout_s)
