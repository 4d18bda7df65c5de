"""Generates ``runtime_v1/api_pb2.py`` and ``.pyi`` from cri-api's ``api.proto``: ``make generate``.

The file comes from the Go module, so the version below is all that there is to change. No gRPC
stubs are made: ``server.py`` registers the methods from the descriptors. Run as ``python -m
noderuntime.cri.generate [--check]``; needs Go and the development dependencies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

MODULE: Final = "k8s.io/cri-api@v0.37.2"
PROTO: Final = "pkg/apis/runtime/v1/api.proto"
TARGET: Final = Path(__file__).with_name("runtime_v1")
FILES: Final = ("api_pb2.py", "api_pb2.pyi")
TIMEOUT_S: Final = 300


def main() -> int:
    """Write the files, or with ``--check`` say which differ; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    is_check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(proto_folder(), Path(folder))
        made = {name: (Path(folder) / name).read_bytes() for name in FILES}
    stale = [name for name in FILES if (TARGET / name).read_bytes() != made[name]]
    if is_check:
        for name in stale:
            sys.stderr.write(f"{TARGET / name} is not what {MODULE} gives: run make generate\n")
        return 1 if stale else 0
    for name in stale:
        (TARGET / name).write_bytes(made[name])
    return 0


def proto_folder() -> Path:
    """Return the folder of ``api.proto`` in Go's module cache, fetched if it is not there."""
    command = ["go", "mod", "download", "-json", MODULE]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S)
    return (Path(json.loads(answer.stdout)["Dir"]) / PROTO).parent


def generate(source: Path, target: Path) -> None:
    """Run protoc and mypy-protobuf."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{source}"]
    command += [f"--python_out={target}", f"--mypy_out={target}", "api.proto"]
    subprocess.run(command, check=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    raise SystemExit(main())
