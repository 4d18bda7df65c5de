"""``python -m e2e.conformance``: the suite, on a node of its own, whole or a part of it."""

from __future__ import annotations

import argparse
import sys

from e2e.cluster.layout import this_layout
from e2e.cluster.state import ClusterError
from e2e.conformance import node, suite


def main() -> int:
    """Returns the exit status: 0 if everything was as ``expected.toml`` says."""
    parser = argparse.ArgumentParser(prog="python -m e2e.conformance", description=__doc__)
    parser.add_argument("--handler", choices=sorted(node.HANDLERS), default="crun")
    parser.add_argument("--focus", default="", help="a regular expression: only these specs")
    parser.add_argument("--websocket", action="store_true", help="streams over WebSocket")
    arguments = parser.parse_args()
    try:
        node.prepare(this_layout())
        wanted = suite.Run(arguments.handler, arguments.focus, arguments.websocket)
        line, found = suite.judge(this_layout(), wanted)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join([*found, line]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
