"""Reading a Localhost profile: bounded, a regular file, and never under a profile of ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from noderuntime.engine.admission import SECCOMP_LIMIT_BYTES, host_facts, read_seccomp
from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.model import ContainerSecurity, LsmFacts, ProfileType, SecurityProfileRef
from tests.fakes.engine import container_config


def test_a_profile_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "web.json"
    file.write_text("{}")
    assert read_seccomp(str(file)) == "{}"


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "large"])
def test_what_is_not_a_file_of_some_size_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(bytes(SECCOMP_LIMIT_BYTES + 1))
    with pytest.raises(InvalidArgumentError, match="seccomp profile"):
        read_seccomp(str(path))


@pytest.mark.parametrize(("own", "privileged"), [(False, False), (True, True)])
def test_a_profile_that_cannot_count_is_not_read(*, own: bool, privileged: bool) -> None:
    reference = SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="/nowhere")
    security = ContainerSecurity(seccomp=reference, privileged=privileged)
    facts = host_facts(container_config(security=security), {}, LsmFacts(), own=own)
    assert facts.seccomp_file is None
