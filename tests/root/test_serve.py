"""``noderuntime serve`` as a process: it starts, is asked, is killed, starts again, ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from e2e.cluster import unit
from noderuntime.cri.client import RuntimeStatus, read_status
from tests.root.mounts_kit import unmount_below

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
socket = "{folder}/run/nr.sock"
state_dir = "{folder}/state"
run_dir = "{folder}/run"
revision = "{folder}/current"
[cni]
conf_dir = "{folder}/cni"
bridge_subnets = []
[metrics]
address = "127.0.0.1:{port}"
"""


class Served:
    """One configuration, and the process that serves it now."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.socket = folder / "run" / "nr.sock"
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG.format(folder=folder, port=port))
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "noderuntime", "serve", "--config", str(self.config)],
                cwd=ROOT,
                env=os.environ | unit.environment(),
                stderr=log,
            )
        return self.process

    async def status(self) -> RuntimeStatus:
        deadline = time.monotonic() + 60
        while not self.socket.exists():
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return await read_status(self.socket, 30)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}", timeout=30
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        # The runtime makes its folder a mount of its own, which outlives it as Pods do.
        unmount_below(self.folder)


@pytest.fixture
def served(tmp_path: Path, unused_tcp_port: int) -> Generator[Served]:
    served = Served(tmp_path, unused_tcp_port)
    yield served
    served.end()


async def test_serve_answers_tells_the_truth_and_ends_at_sigterm(served: Served) -> None:
    process = served.start()
    status = await served.status()
    assert status.name == "noderuntime"
    assert {"", "crun"} <= set(status.handlers)
    assert status.served.handlers == ()  # none of a revision: the node's own are not counted
    assert served.get("/healthz") == (200, "ok\n")
    code, why = served.get("/readyz")
    assert code == 503
    assert "CNI" in why
    code, text = served.get("/metrics")
    assert code == 200
    assert 'noderuntime_cri_requests_total{code="OK",method="Status"} 1.0' in text
    process.terminate()
    assert process.wait(60) == 0
    assert not served.socket.exists()


async def test_serve_starts_again_after_it_was_killed(served: Served) -> None:
    process = served.start()
    await served.status()
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert served.socket.exists()  # a dead one, which the next start replaces
    served.socket.unlink()
    served.start()
    assert (await served.status()).name == "noderuntime"


async def test_a_second_serve_on_the_same_folders_is_refused(served: Served) -> None:
    served.start()
    await served.status()
    second = subprocess.run(
        [sys.executable, "-m", "noderuntime", "serve", "--config", str(served.config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "another noderuntime uses" in second.stderr
    assert "Traceback" not in second.stderr
    assert (await served.status()).name == "noderuntime"


async def test_metrics_are_valid_for_promtool(served: Served) -> None:
    served.start()
    await served.status()
    _, text = served.get("/metrics")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


async def test_serve_takes_less_than_its_bound_of_memory_when_idle(served: Served) -> None:
    process = served.start()
    await served.status()
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    pss_kib = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    assert pss_kib < 70 * 1024
