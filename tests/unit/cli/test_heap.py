"""The heap of the C library has one arena, however many threads there were."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, sys, threading
from noderuntime.cli.heap import keep_small
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
if sys.argv[2] == "small":
    keep_small()
wait = threading.Barrier(5)
def work():
    libc.malloc(1000)
    wait.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
wait.wait()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "is_one"), [("small", True), ("as it is", False)])
def test_threads_share_an_arena_when_the_heap_is_kept_small(
    how: str, is_one: bool, tmp_path: Path
) -> None:
    subprocess.run((sys.executable, "-c", PROGRAM, tmp_path / "info", how), check=True, cwd=".")
    arenas = re.findall(r"<heap nr=", (tmp_path / "info").read_text())
    assert (len(arenas) == 1) is is_one
