from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from noderuntime.cli import main as cli
from noderuntime.cli.main import main, parser

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "command", [[], ["install"], ["serve", "--nonsense"], ["status", "-o", "x"]]
)
def test_wrong_usage_ends_with_code_2(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_error_of_ours_is_one_sentence_and_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--socket", str(tmp_path / "none.sock"), "--timeout", "0.2"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("noderuntime: the runtime at ")
    assert "Traceback" not in said


def test_the_agent_says_so_when_it_does_not_know_its_node(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NODE_NAME", raising=False)
    monkeypatch.setattr("noderuntime.telemetry.log.setup", int)
    assert main(["agent"]) == 1
    assert "set NODE_NAME" in capsys.readouterr().err


def test_the_agent_takes_its_node_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_NAME", "node-a")
    options = parser().parse_args(["agent"])
    assert options.node_name == "node-a"
    assert options.socket == cli.SOCKET_OF_THE_AGENT


@pytest.mark.slow
def test_help_loads_nothing_that_is_heavy() -> None:
    script = (
        "import sys; from noderuntime.cli.main import parser; parser().format_help(); "
        "print(sorted({n.split('.')[0] for n in sys.modules} & "
        "{'grpc', 'lightkube', 'pydantic', 'opentelemetry', 'asyncio', 'prometheus_client'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
