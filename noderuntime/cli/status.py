"""``noderuntime status``: asks the runtime over its socket and prints what it says, for people or as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from noderuntime.cri.client import Default, RuntimeStatus, read_status

if TYPE_CHECKING:
    import argparse


def main(options: argparse.Namespace) -> int:
    """Print the status; 0 when Pods can be run, 1 when the runtime says that they cannot."""
    status = asyncio.run(read_status(options.socket, options.timeout))
    print(as_json(status) if options.output == "json" else as_text(status))
    return 0 if all(condition.status for condition in status.conditions) else 1


def as_json(status: RuntimeStatus) -> str:
    """Return the status for programs; keys are added, never renamed."""
    document = {
        "runtime": {"name": status.name, "version": status.version},
        "conditions": [
            {"type": c.type, "status": c.status, "reason": c.reason, "message": c.message}
            for c in status.conditions
        ],
        "handlers": list(status.handlers),
        **status.served.model_dump(by_alias=True, mode="json", exclude={"handlers"}),
        "revisionHandlers": list(status.served.handlers),
    }
    return json.dumps(document, indent=2)


def as_text(status: RuntimeStatus) -> str:
    """Return the status for people."""
    served = status.served
    own = [name or "(default)" for name in status.handlers if name not in served.handlers]
    lines = [f"{status.name} {status.version}"]
    for condition in status.conditions:
        said = "yes" if condition.status else "NO"
        why = "" if condition.status else f": {condition.message or condition.reason}"
        lines.append(f"  {condition.type:<16}{said}{why}")
    lines += [
        f"  {'Revision':<16}{served.revision or 'none'}",
        *([f"  {'':<16}NOT SERVED: {served.revision_error}"] if served.revision_error else []),
        f"  {'  its handlers':<16}{', '.join(served.handlers) or 'none'}",
        f"  {'Other handlers':<16}{', '.join(own) or 'none'}",
        *([f"  {'Default':<16}{_governed(served.default)}"] if served.default else []),
        f"  {'Ungoverned':<16}{_pods(served.ungoverned_pods)} under no profile",
    ]
    for handler, names in sorted(served.unknown_syscalls.items()):
        lines.append(f"  {handler}: no filter of this node can name {', '.join(names)}")
    if served.withheld_handlers:
        lines.append("  Handlers that this node cannot offer:")
        lines += [f"    {each.name}: {each.message}" for each in served.withheld_handlers]
    if served.stale_containers:
        lines.append("  Under an earlier revision, until they are restarted:")
        lines += [f"    {name}" for name in served.stale_containers]
    return "\n".join(lines)


def _governed(default: Default) -> str:
    exempt = ", ".join(default.exempt_namespaces) or "none"
    return f"{default.handler} governs Pods that name no handler; exempt namespaces: {exempt}"


def _pods(number: int) -> str:
    return "1 Pod" if number == 1 else f"{number} Pods"
