"""Which declared handler governs the Pods that name none, also while the revision is not readable.

What the last whole revision said is kept on the node. A revision that is damaged or gone says
nothing of whom it governs, so what is kept holds: Pods that name no handler are refused then, and
not run without their profile. Exempt namespaces stay exempt, noderuntime's own among them, so that
the agent can run and write the revision anew. A whole revision without a default ends it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydantic import ValidationError

from noderuntime.api.revision import RevisionDefault
from noderuntime.errors import FailedPreconditionError, NodeRuntimeError
from noderuntime.host import durable

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

FILE = "default"  # below state_dir


class Governing:
    """The default of the revision, and its copy on disk. Reads and writes block, and are rare."""

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self._path = path
        self._default: RevisionDefault | None = None
        self._damage = ""
        self._is_read = False
        self._is_kept = True

    @property
    def default(self) -> RevisionDefault | None:
        """What holds now, None where Pods that name no handler are the node's own affair."""
        self._read()
        return self._default

    def serve(self, default: RevisionDefault | None) -> None:
        """Let what a whole revision says hold, and keep it."""
        self._read()
        if default != self._default or self._damage:
            self._default, self._damage, self._is_kept = default, "", False
        self.keep()

    def keep(self) -> None:
        """Write what holds down, unless that is done; a disk that is full is tried again."""
        if self._is_kept:
            return
        try:
            if self._default is None:
                durable.remove(self._path)
            else:
                self._path.parent.mkdir(0o711, parents=True, exist_ok=True)
                durable.write(self._path, self._default.model_dump_json(by_alias=True).encode())
        except (NodeRuntimeError, OSError) as error:
            _log.warning("which Pods are governed is not kept yet", extra={"error": str(error)})
        else:
            self._is_kept = True

    def handler_for(self, namespace: str) -> str:
        """Return the handler that governs a Pod there that names none; "" is the node's own default.

        Raises FailedPreconditionError where nobody knows.
        """
        self._read()
        if self._damage:
            raise FailedPreconditionError(
                f"{self._path}, which says whom a profile governs, is damaged ({self._damage}), and there "
                "is no revision that can be read; a Pod that names no handler is not run until one is there"
            )
        if self._default is None or namespace in self._default.exempt_namespaces:
            return ""
        return self._default.handler

    def unreadable(self, namespace: str, why: str) -> FailedPreconditionError:
        """Return the refusal of a Pod that names no handler, whose handler cannot be had."""
        handler = "" if self._default is None else self._default.handler
        return FailedPreconditionError(
            f'a Pod of namespace {namespace} that names no handler is governed by "{handler}" on this '
            f"node: {why}"
        )

    def _read(self) -> None:
        if self._is_read:
            return
        self._is_read = True
        try:
            data = durable.read(self._path)
            if data is not None:
                self._default = RevisionDefault.model_validate_json(data)
        except (NodeRuntimeError, ValidationError) as error:
            self._damage = " ".join(str(error).split())[:200]
            _log.error("which Pods are governed cannot be read", extra={"error": self._damage})
