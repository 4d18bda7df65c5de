"""kubectl as people use it: logs, exec -it, attach, port-forward, cp."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.framework import pods
from e2e.framework.cluster import Cluster
from e2e.framework.waiting import wait_for


@pytest.fixture
def target(cluster: Cluster, namespace: str) -> str:
    """A Pod that echoes what it is told and serves TCP; its namespace."""
    script = "echo started; echo oops >&2; while read line; do echo got:$line; done; sleep 100000"
    cluster.apply(
        pods.pod(
            "target",
            pods.shell(script, stdin=True, **pods.AS_USER)
            | {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
            pods.agnhost("netexec", "--http-port=8080", name="web", **pods.AS_USER),
            handler="restricted",
            volumes=[{"name": "data", "emptyDir": {}}],
            securityContext={"fsGroup": 1000},
        ),
        namespace=namespace,
    )
    cluster.wait_ready("target", namespace)
    return namespace


def test_logs_have_both_streams_and_follow(cluster: Cluster, target: str) -> None:
    def both() -> bool:
        text = cluster.kubectl("logs", "-n", target, "target", "-c", "main")
        return "started\n" in text and "oops\n" in text

    assert wait_for("both streams in the log", both)
    assert cluster.kubectl("logs", "-n", target, "target", "-c", "main", "--tail=1")


def test_exec_returns_output_and_the_exit_code(cluster: Cluster, target: str) -> None:
    done = cluster.kubectl.run(
        "exec",
        "-n",
        target,
        "target",
        "-c",
        "main",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    )
    assert (done.stdout, done.returncode) == ("out\n", 7)
    assert "err\n" in done.stderr


def test_exec_passes_standard_input_to_its_end(cluster: Cluster, target: str) -> None:
    text = "".join(f"line {number}\n" for number in range(20000))
    done = cluster.kubectl.run(
        "exec", "-i", "-n", target, "target", "-c", "main", "--", "cat", text=text
    )
    assert done.stdout == text


def test_exec_it_is_a_terminal(cluster: Cluster, target: str) -> None:
    words = ("exec", "-it", "-n", target, "target", "-c", "main", "--", "sh")
    with terminal(cluster.kubectl.argv(*words)) as keyboard:
        os.write(keyboard, b"tty; echo size=$(stty size); exit 5\n")
        seen = read_until(keyboard, b"size=")
    assert b"/dev/pts/" in seen
    assert b"size=41 97" in seen


@contextmanager
def terminal(argv: list[str]) -> Iterator[int]:
    """Run a program on a terminal of its own; ends it at the end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 41, 97, 0, 0))
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as program:
        os.close(theirs)
        try:
            yield ours
        finally:
            program.kill()
            os.close(ours)


def read_until(descriptor: int, word: bytes, limit_s: float = 20) -> bytes:
    """Read from a terminal until its output (the echo of the input has none) has a digit behind."""
    seen = b""
    deadline = time.monotonic() + limit_s
    while not re.search(word + rb"\d", seen):
        left = deadline - time.monotonic()
        assert left > 0, seen
        if select.select([descriptor], [], [], left)[0]:
            seen += os.read(descriptor, 4096)
    return seen


def test_attach_speaks_with_the_process(cluster: Cluster, target: str) -> None:
    argv = cluster.kubectl.argv("attach", "-i", "-n", target, "target", "-c", "main")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as attached:
        assert attached.stdin
        assert attached.stdout
        attached.stdin.write(b"hello\n")
        attached.stdin.flush()
        try:
            lines = iter(attached.stdout.readline, b"")
            assert any(line == b"got:hello\n" for line in lines)
        finally:
            attached.send_signal(signal.SIGKILL)


def test_port_forward_reaches_the_pod(cluster: Cluster, target: str) -> None:
    argv = cluster.kubectl.argv("port-forward", "-n", target, "pod/target", ":8080")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout
            found = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
            assert found
            for _ in range(5):
                assert b"target" in get(int(found[1]), "/hostname")
        finally:
            forward.kill()


def get(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_cp_brings_a_file_there_and_back(cluster: Cluster, target: str, tmp_path: Path) -> None:
    source, back = tmp_path / "there", tmp_path / "back"
    source.write_bytes(os.urandom(3_000_000))
    cluster.kubectl("cp", str(source), f"{target}/target:/data/file", "-c", "main")
    cluster.kubectl("cp", f"{target}/target:/data/file", str(back), "-c", "main")
    assert back.read_bytes() == source.read_bytes()
