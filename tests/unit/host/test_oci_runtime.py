from __future__ import annotations

import json
from pathlib import Path

import pytest

from noderuntime.errors import HostError
from noderuntime.host.netns import sysctl_path
from noderuntime.host.oci_runtime import OciCli, clean_message, update_document
from noderuntime.host.ports import NamespaceRequest
from noderuntime.policy.model import Resources


@pytest.mark.parametrize(
    ("said", "clean"),
    [
        pytest.param(
            "2026-11-24T21:00:00.123456Z: executable file `x` not found\n",
            "executable file `x` not found",
            id="crun",
        ),
        pytest.param(
            'time="2026-11-24T21:00:00Z" level=error msg="runc create failed: unable to \\"x\\""\n',
            'unable to "x"',
            id="runc",
        ),
        pytest.param('{"level":"error","msg":"deep","time":"x"}', "deep", id="json"),
        pytest.param("warning: a\nerror: b  c\n\n", "b c", id="the last line"),
        pytest.param("bad \x1b[31mred\x00", "bad ?[31mred?", id="what a terminal would obey"),
        pytest.param("", "", id="nothing"),
        pytest.param("x" * 5000, "x" * 1000, id="very long"),
    ],
)
def test_a_runtimes_words_are_cleaned(said: str, clean: str) -> None:
    assert clean_message(said) == clean


def test_an_update_holds_only_what_was_asked_for() -> None:
    assert update_document(Resources()) == {}
    resources = Resources(
        cpu_shares=512,
        memory_limit_bytes=5,
        hugepage_limits_bytes={"2MB": 0},
        unified={"memory.high": "4"},
    )
    assert update_document(resources) == {
        "cpu": {"shares": 512},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "memory": {"limit": 5},
        "unified": {"memory.high": "4"},
    }


def scripted(tmp_path: Path, script: str) -> OciCli:
    binary = tmp_path / "crun"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    (tmp_path / "root" / "c1").mkdir(parents=True)
    (tmp_path / "root" / "c1" / "status").write_text("{}")
    return OciCli(binary, tmp_path / "root", systemd_cgroup=True)


async def test_a_failure_names_verb_container_and_reason(tmp_path: Path) -> None:
    runtime = scripted(tmp_path, 'echo "error: no luck" >&2; exit 1')
    with pytest.raises(HostError, match=r"^crun start of container c1 failed: no luck$"):
        await runtime.start("c1")
    for call in (runtime.kill("c1", 9), runtime.delete("c1"), runtime.state("c1")):
        with pytest.raises(HostError, match="of container c1 failed: no luck"):
            await call
    with pytest.raises(HostError, match="update of container c1 failed"):
        await runtime.update("c1", Resources(cpu_shares=2))


async def test_an_unknown_container_is_success_without_a_call(tmp_path: Path) -> None:
    runtime = scripted(tmp_path, "exit 1")
    await runtime.kill("c2", 9)
    await runtime.delete("c2")
    await runtime.update("c1", Resources())
    assert await runtime.state("c2") is None


async def test_a_call_has_root_driver_and_input(tmp_path: Path) -> None:
    runtime = scripted(tmp_path, f'echo "$@" > {tmp_path}/args; cat > {tmp_path}/input')
    await runtime.update("c1", Resources(cpu_quota_us=-1))
    arguments = f"--root={tmp_path}/root --systemd-cgroup update --resources - c1\n"
    assert (tmp_path / "args").read_text() == arguments
    assert json.loads((tmp_path / "input").read_text()) == {"cpu": {"quota": -1}}


def ended(tmp_path: Path, config: str = "{}") -> Path:
    """The runtime's files of c1, and its bundle."""
    state, bundle = tmp_path / "root" / "c1", tmp_path / "bundle"
    (state / "exec.fifo").touch()
    bundle.mkdir()
    (bundle / "config.json").write_text(config)
    return bundle


async def test_what_has_ended_is_forgotten_without_a_program(tmp_path: Path) -> None:
    scripted(tmp_path, "exit 1")
    runtime = OciCli(tmp_path / "crun", tmp_path / "root")
    await runtime.forget("c1", ended(tmp_path))
    await runtime.forget("c1", tmp_path / "bundle")
    assert not runtime.knows("c1")


async def test_with_hooks_the_program_itself_deletes(tmp_path: Path) -> None:
    scripted(tmp_path, f"rm -r {tmp_path}/root/c1; touch {tmp_path}/deleted")
    runtime = OciCli(tmp_path / "crun", tmp_path / "root")
    await runtime.forget("c1", ended(tmp_path, '{"hooks": {}}'))
    assert (tmp_path / "deleted").exists()


async def test_where_systemd_has_the_scope_the_program_itself_deletes(tmp_path: Path) -> None:
    runtime = scripted(tmp_path, f"rm -r {tmp_path}/root/c1; touch {tmp_path}/deleted")
    await runtime.forget("c1", ended(tmp_path))
    assert (tmp_path / "deleted").exists()


async def test_a_forgetting_that_was_cut_off_is_ended_by_a_delete(tmp_path: Path) -> None:
    runtime = scripted(tmp_path, "exit 1")
    (tmp_path / "root" / "c1" / "status").unlink()
    await runtime.delete("c1")
    assert not runtime.knows("c1")


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("running", "running"),
        ("paused", "running"),
        ("creating", "created"),
        ("stopped", "stopped"),
    ],
)
async def test_states_are_three(tmp_path: Path, answer: str, state: str) -> None:
    runtime = scripted(tmp_path, f'echo \'{{"status": "{answer}"}}\'')
    assert await runtime.state("c1") == state


async def test_a_state_that_is_not_understood_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="not understood"):
        await scripted(tmp_path, "echo []").state("c1")


async def test_killing_what_has_ended_is_success(tmp_path: Path) -> None:
    script = 'case "$2$3" in *kill*) exit 1;; *) echo \'{"status": "stopped"}\';; esac'
    await scripted(tmp_path, script).kill("c1", 15)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param("net.ipv4.tcp_syncookies", "net/ipv4/tcp_syncookies", id="dots"),
        pytest.param("net/ipv4/conf/eth0.1/x", "net/ipv4/conf/eth0.1/x", id="slashes"),
        pytest.param("net.ipv4.conf.eth0/1.x", "net/ipv4/conf/eth0.1/x", id="both"),
        pytest.param("kernel.sem", "kernel/sem", id="ipc"),
        pytest.param("kernel.domainname", "kernel/domainname", id="uts"),
    ],
)
def test_sysctls_are_found_in_both_spellings(name: str, path: str) -> None:
    everything = NamespaceRequest(network=True, ipc=True, uts=True)
    assert sysctl_path(name, everything) == Path("/proc/sys") / path
