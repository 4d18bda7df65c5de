"""What is not as it must be is said before anything is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from e2e.cluster import census
from e2e.cluster.layout import Layout
from e2e.conftest import require_none
from e2e.framework.cluster import assert_as_before


def test_a_taken_port_is_told_with_its_holder_and_nothing_is_started(layout: Layout) -> None:
    require_none(layout)
    before = census.take()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 5000))
        listener.listen()
        done = subprocess.run(
            [sys.executable, "-m", "e2e.cluster", "up"],
            cwd=layout.repository,
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert "nothing was started" in done.stderr
    assert "port 5000, which registry needs, is taken by" in done.stderr
    assert f"(PID {os.getpid()})" in done.stderr
    assert not layout.state.exists()
    assert_as_before(before)
