"""The guest's side of ``boot.py``: runs the commands that appear in the shared folder.

A command is ``N.json``, numbered from 0; its output goes to ``N.out`` as it comes and its exit
status to ``N.rc`` at the end. Started by systemd, or as the first process: then it also does what
an init must. Only the standard library is used.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, TypedDict

SHARE = Path("/share")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POLL_S = 0.02
DRAIN_S = 0.5
CHUNK_BYTES = 1 << 16
FILE_SYSTEMS = (  # type, target; where there is no systemd
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("securityfs", "/sys/kernel/security"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
)


class Order(TypedDict):
    """What ``N.json`` holds."""

    argv: list[str]
    environment: dict[str, str]
    folder: str
    timeout_s: float


def main() -> None:
    """Prepare, say that the guest is up, and serve for ever."""
    os.environ.update(PATH=PATH, HOME="/root", LC_ALL="C.UTF-8", PYTHONDONTWRITEBYTECODE="1")
    if os.getpid() == 1:
        be_init()
    words = Path("/proc/cmdline").read_text().split()
    told = {key: value for key, _, value in (word.partition("=") for word in words)}
    mount("hostfs", "/share", told["guest.share"])
    # Before anything else: modules for what is mounted later come from there.
    Path("/usr/lib/modules").mkdir(exist_ok=True)
    mount("hostfs", "/usr/lib/modules", told["guest.modules"], "ro")
    if "guest.disk" in told:
        subprocess.run(["mount", "/dev/ubdb", "/disk"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    (SHARE / "up").touch()
    serve()


def be_init() -> None:
    """Mount what systemd would, hand the cgroup controllers down, leave a process to reap orphans."""
    subprocess.run(["mount", "-o", "remount,rw", "/"], check=True)
    for kind, target in FILE_SYSTEMS:
        Path(target).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", kind, kind, target], check=False, capture_output=True)
    root = Path("/sys/fs/cgroup")
    for name in (root / "cgroup.controllers").read_text().split():
        (root / "cgroup.subtree_control").write_text(f"+{name}")
    if os.fork():
        while True:
            os.wait()


def mount(kind: str, target: str, option: str, *more: str) -> None:
    """Mount one of the outside's folders."""
    options = ",".join((option, *more))
    subprocess.run(["mount", "-t", kind, "none", target, "-o", options], check=True)


def serve() -> None:
    """Take one command after the other; each runs beside the others."""
    number = 0
    while True:
        order = SHARE / f"{number}.json"
        if not order.exists():
            time.sleep(POLL_S)
            continue
        threading.Thread(target=run, args=(number, json.loads(order.read_text()))).start()
        number += 1


def run(number: int, order: Order) -> None:
    """Run a command to its end; what it says is outside at once, also if the power is cut."""
    out = os.open(SHARE / f"{number}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    environment = os.environ | order["environment"]
    try:
        process = subprocess.Popen(
            order["argv"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=order["folder"],
            start_new_session=True,
        )
    except OSError as error:
        os.write(out, f"{error}\n".encode())
        end(number, out, 127)
        return
    threading.Thread(target=limit, args=(process, order["timeout_s"]), daemon=True).start()
    reader = threading.Thread(target=copy, args=(process.stdout, out), daemon=True)
    reader.start()
    code = process.wait()
    # What it left running may have its output open: that is not waited for.
    reader.join(DRAIN_S)
    end(number, out, code)


def copy(source: IO[bytes], target: int) -> None:
    """Copy until the end."""
    while data := os.read(source.fileno(), CHUNK_BYTES):
        os.write(target, data)
        os.fsync(target)


def limit(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """End a command and all of its session at its limit."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def end(number: int, out: int, code: int) -> None:
    """Write the exit status, whole or not at all."""
    os.fsync(out)
    beside = SHARE / f"{number}.rc.new"
    with beside.open("w") as file:
        file.write(str(code))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(SHARE / f"{number}.rc")


main()
