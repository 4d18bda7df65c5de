"""The process of one pull: ``python -m noderuntime.images.worker``.

It talks to the registry and has hostile bytes unpacked, so that neither the runtime's memory nor
its event loop knows of them; to cancel a pull is to kill it. Stdin: one JSON request a line, with
the credentials in the first. Stdout: one JSON event a line. No secret is in argv or in the
environment.

Request: ``{root, run, parent, reference, hosts_dir, layout, credentials, known}``; with ``artifact``
the answer is the event ``artifact`` with its text, and the end. Events:
``known`` (the digest is here already, end) or ``image``; then, for each further line ``{"make":
[chain, ...]}``, a ``layer`` for each and ``made``; ``error`` ends. The jail is forked before
anything is read.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from noderuntime.errors import NodeRuntimeError
from noderuntime.images import jail

if TYPE_CHECKING:
    from noderuntime.images.job import Event


def main() -> int:
    """Serve one request; the exit code only tells whether something went wrong."""
    confined = jail.start()
    os.chdir("/")
    request = json.loads(sys.stdin.buffer.readline() or b"null")
    if request is None:
        return 1
    jail.die_with(request["parent"])
    from noderuntime.images.job import run  # not at the top: urllib3 is not for the jail

    try:
        run(request, confined, _commands(), _emit)
    except NodeRuntimeError as error:
        _emit({"event": "error", "reason": error.reason, "message": str(error)})
        return 1
    except Exception:  # noqa: BLE001 - the parent is to know, whatever it is
        _emit({"event": "error", "reason": "Bug", "message": traceback.format_exc(limit=-6)})
        return 1
    return 0


def _commands() -> Iterator[Mapping[str, Any]]:
    for line in sys.stdin.buffer:
        yield json.loads(line)


def _emit(event: Event) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # no wait for threads: what they were making is dropped by the parent
