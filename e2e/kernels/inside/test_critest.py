"""The specs of CRI's conformance suite that need AppArmor, under each OCI runtime."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conformance import suite
from e2e.kernels.inside.kit import HANDLERS, REPOSITORY, served

CRITEST = REPOSITORY / ".cluster/bin/critest"
LIMIT_S = 200.0
SOCKET = "unix:///run/noderuntime/noderuntime.sock"


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[None]:
    with served():
        yield


def apparmor_specs() -> set[str]:
    """The specs that the suite skips where there is no AppArmor."""
    groups = tomllib.loads(suite.EXPECTED.read_text())["skips"]
    return {spec for group in groups for spec in group["specs"] if spec.startswith("AppArmor ")}


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("handler", HANDLERS)
def test_every_spec_of_apparmor_passes(tmp_path: Path, handler: str) -> None:
    report, config = tmp_path / "junit.xml", tmp_path / "crictl.yaml"
    config.write_text("{}\n")
    # The suite loads its profiles by sudo; there is nobody but root here.
    sudo = tmp_path / "bin/sudo"
    sudo.parent.mkdir()
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    done = subprocess.run(
        [
            *(CRITEST, "--config", config, "--runtime-endpoint", SOCKET),
            *("--runtime-handler", handler, "--ginkgo.focus=AppArmor", "--ginkgo.seed=1"),
            *("--ginkgo.no-color", f"--ginkgo.junit-report={report}"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{sudo.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    outcomes = {found.name: found for found in suite.read_report(report)}
    failed = [found for found in outcomes.values() if found.state == suite.FAILED]
    assert failed == [], done.stdout[-8000:]
    passed = {name for name, found in outcomes.items() if found.state == suite.PASSED}
    assert apparmor_specs() <= passed
