"""AppArmor enforcing: what the Pod asks for holds for the container and for its execs."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.api.revision import RevisionHandler, make_revision
from noderuntime.engine.engine import Engine
from noderuntime.errors import FailedPreconditionError, HostError
from noderuntime.host.apparmor import KernelAppArmor
from noderuntime.policy import apparmor
from noderuntime.policy.model import ContainerSecurity, ProfileType, SecurityProfileRef
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene, engine_on, made_node

HANDLERS = ["", "runc"]
LABEL = "busybox cat /proc/self/attr/current"
WRITE = "echo x >/tmp/denied || busybox true; busybox ls /tmp"
NO_WRITES = """profile nr-test-no-writes flags=(attach_disconnected) {
  file,
  capability,
  network,
  signal (receive) peer=unconfined,
  deny /tmp/** w,
}
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with made_node(tmp_path_factory.mktemp("nr-apparmor")) as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    async with engine_on(node) as engine:
        yield engine


@pytest.fixture
async def no_writes() -> AsyncIterator[SecurityProfileRef]:
    """A profile that whoever keeps the node has loaded."""
    kernel = KernelAppArmor()
    await kernel.load("nr-test-no-writes", NO_WRITES)
    yield SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="nr-test-no-writes")
    await kernel.unload("nr-test-no-writes")


async def run(
    node: RealNode, engine: Engine, handler: str, security: ContainerSecurity, script: str
) -> tuple[str, str]:
    """Return what the container's own process wrote, and what an exec of the same script does."""
    sandbox = replace(node.sandbox(), privileged=security.privileged)
    sandbox_id = await engine.run_sandbox(sandbox, handler)
    wait = "trap 'exit 0' TERM; while :; do busybox sleep 0.05; done"
    container = node.container(script=f"({script}) >/out 2>&1; {wait}")
    container_id = await engine.create_container(sandbox_id, replace(container, security=security))
    await engine.start_container(container_id)
    ready = "until busybox test -s /out; do busybox sleep 0.05; done; busybox cat /out"
    own = await engine.exec_sync(container_id, ("/bin/busybox", "sh", "-c", ready), 20.0)
    other = await engine.exec_sync(container_id, ("/bin/busybox", "sh", "-c", script), 20.0)
    await engine.stop_container(container_id, 10.0)
    await engine.remove_sandbox(sandbox_id)
    return own.stdout.decode(), (other.stdout + other.stderr).decode()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_pod_that_says_nothing_runs_under_the_default(
    node: RealNode, engine: Engine, handler: str
) -> None:
    said = await run(node, engine, handler, ContainerSecurity(), LABEL)
    assert said == (f"{apparmor.DEFAULT} (enforce)\n",) * 2


@pytest.mark.parametrize(
    "security",
    [
        ContainerSecurity(apparmor=SecurityProfileRef(type=ProfileType.UNCONFINED)),
        ContainerSecurity(privileged=True),
    ],
    ids=["unconfined", "privileged"],
)
async def test_a_pod_that_is_to_be_unconfined_is(
    node: RealNode, engine: Engine, security: ContainerSecurity
) -> None:
    assert await run(node, engine, "", security, LABEL) == ("unconfined\n",) * 2


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_profile_by_name_denies_a_write_to_the_container_and_to_an_exec(
    node: RealNode, engine: Engine, handler: str, no_writes: SecurityProfileRef
) -> None:
    security = ContainerSecurity(apparmor=no_writes, no_new_privs=True)
    for said in await run(node, engine, handler, security, WRITE):
        assert "Permission denied" in said
        assert "denied\n" not in said.replace("Permission denied\n", "")


async def test_the_default_lets_files_be_written_but_not_the_kernels(
    node: RealNode, engine: Engine
) -> None:
    # With everything that a privileged Pod has, so that only AppArmor stands in the way.
    default = SecurityProfileRef(type=ProfileType.RUNTIME_DEFAULT)
    security = ContainerSecurity(apparmor=default, privileged=True)
    script = (
        "echo x >/tmp/file && busybox cat /tmp/file; "
        "(echo 1 >/proc/sys/vm/drop_caches); (echo x >/proc/sysrq-trigger); "
        "busybox mount -t tmpfs none /tmp; (echo 1 >/sys/kernel/profiling); "
        "busybox kill -0 1 && echo signals; "
        "busybox cat /proc/sys/kernel/shmmax >/dev/null && echo reads"
    )
    for said in await run(node, engine, "", security, script):
        assert said.count("ermission denied") == 4, said
        assert {"x", "signals", "reads"} <= set(said.splitlines())


async def test_a_profile_that_is_not_loaded_is_refused_by_its_name(
    node: RealNode, engine: Engine
) -> None:
    asked = SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="nr-test-missing")
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    container = replace(node.container(), security=ContainerSecurity(apparmor=asked))
    with pytest.raises(FailedPreconditionError, match="nr-test-missing is not loaded"):
        await engine.create_container(sandbox_id, container)


async def test_a_profile_in_use_is_not_taken_from_its_processes(
    node: RealNode, engine: Engine, no_writes: SecurityProfileRef
) -> None:
    security = ContainerSecurity(apparmor=no_writes)
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    container_id = await engine.create_container(
        sandbox_id, replace(node.container(), security=security)
    )
    await engine.start_container(container_id)
    with pytest.raises(HostError, match="confines a running process"):
        await KernelAppArmor().unload("nr-test-no-writes")
    await engine.remove_sandbox(sandbox_id)


async def test_what_the_parser_refuses_is_told_in_its_words() -> None:
    with pytest.raises(HostError, match="syntax error"):
        await KernelAppArmor().load("x", "profile x { nonsense }")
    assert "x" not in KernelAppArmor().profiles()


async def test_removing_what_is_not_loaded_is_success() -> None:
    await KernelAppArmor().unload("nr-test-missing")


def test_the_default_profile_is_what_the_parser_takes_without_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "default"
    file.write_text(apparmor.default_text())
    done = subprocess.run(
        ["apparmor_parser", "--skip-kernel-load", "--skip-cache", file],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


DECLARED = """profile web flags=(attach_disconnected) {
  file,
  network,
  capability,
  signal (send, receive) peer=web,
  deny /tmp/** w,
}
"""


def declare(node: RealNode, **profiles: dict[str, object]) -> None:
    """Write a revision with a handler for each profile."""
    handlers = tuple(
        RevisionHandler.model_validate(
            {"name": name, "nodeRuntime": name, "profile": {"name": name, "spec": spec}}
        )
        for name, spec in profiles.items()
    )
    beside = node.config.revision.with_name("beside")
    beside.write_text(make_revision(handlers).model_dump_json(by_alias=True))
    beside.rename(node.config.revision)


@pytest.fixture
async def undeclared(node: RealNode, engine: Engine) -> AsyncIterator[None]:
    """Take the revision away, and with it what it had loaded."""
    yield
    await Scene(node, engine).remove_everything()
    node.config.revision.unlink()
    await engine.look_at_handlers()
    ours = [name for name in KernelAppArmor().profiles() if name.startswith("noderuntime-")]
    assert set(ours) <= {apparmor.DEFAULT}


@pytest.mark.usefixtures("undeclared")
async def test_a_declared_text_denies_a_write_to_the_container_and_to_an_exec(
    node: RealNode, engine: Engine
) -> None:
    declare(node, confined={"appArmor": {"profile": DECLARED}})
    security = ContainerSecurity(masked_paths=DEFAULT_MASKED, readonly_paths=DEFAULT_READONLY)
    for said in await run(node, engine, "confined", security, f"{WRITE}; {LABEL}"):
        assert "Permission denied" in said
        assert "noderuntime-confined-" in said
        assert " (enforce)\n" in said
        assert "\ndenied\n" not in said


@pytest.mark.usefixtures("undeclared")
async def test_a_declared_text_in_audit_denies_nothing(node: RealNode, engine: Engine) -> None:
    declare(node, confined={"appArmor": {"profile": DECLARED}, "auditSections": ["appArmor"]})
    security = ContainerSecurity(masked_paths=DEFAULT_MASKED, readonly_paths=DEFAULT_READONLY)
    for said in await run(node, engine, "confined", security, f"{WRITE}; {LABEL}"):
        assert "denied\n" in said
        assert "Permission denied" not in said
        assert " (complain)\n" in said


@pytest.mark.usefixtures("undeclared")
async def test_a_declared_text_denies_nothing_to_the_pods_of_an_exception_alone(
    node: RealNode, engine: Engine
) -> None:
    namespace = node.sandbox().pod.namespace
    security = ContainerSecurity(masked_paths=DEFAULT_MASKED, readonly_paths=DEFAULT_READONLY)
    for excepted, mode in ((namespace, "complain"), (f"not-{namespace}", "enforce")):
        exception = {
            "namespace": excepted,
            "sections": ["appArmor"],
            "expires": "2100-01-01T00:00:00Z",
        }
        declare(node, confined={"appArmor": {"profile": DECLARED}, "exceptions": [exception]})
        for said in await run(node, engine, "confined", security, f"{WRITE}; {LABEL}"):
            assert f" ({mode})\n" in said
            assert ("Permission denied" in said) is (mode == "enforce")
            assert ("\ndenied\n" in f"\n{said}") is (mode == "complain")


@pytest.mark.usefixtures("undeclared")
async def test_a_text_that_this_parser_refuses_withholds_its_handler_with_its_words(
    node: RealNode, engine: Engine
) -> None:
    bad = "profile web {\n  nonsense /x,\n}\n"
    declare(node, broken={"appArmor": {"profile": bad}}, whole={})
    await engine.look_at_handlers()
    status = engine.status()
    assert [each.name for each in status.withheld] == ["broken"]
    assert "syntax error" in status.withheld[0].message
    assert "whole" in [handler.name for handler in status.handlers]


@pytest.mark.usefixtures("undeclared")
async def test_a_handler_that_demands_selinux_is_not_offered_by_a_kernel_without(
    node: RealNode, engine: Engine
) -> None:
    declare(node, labelled={"seLinux": {}}, whole={})
    with pytest.raises(FailedPreconditionError, match="demands SELinux"):
        await engine.run_sandbox(node.sandbox(), "labelled")
    assert "labelled" not in [handler.name for handler in engine.status().handlers]


@pytest.mark.usefixtures("undeclared")
async def test_a_container_keeps_the_profile_that_it_was_started_under(
    node: RealNode, engine: Engine
) -> None:
    declare(node, confined={"appArmor": {"profile": DECLARED}})
    sandbox_id = await engine.run_sandbox(node.sandbox(), "confined")
    security = ContainerSecurity(masked_paths=DEFAULT_MASKED, readonly_paths=DEFAULT_READONLY)
    container_id = await engine.create_container(
        sandbox_id, replace(node.container(), security=security)
    )
    await engine.start_container(container_id)
    old = engine.container(container_id).apparmor
    declare(node, confined={"appArmor": {"profile": DECLARED.replace("/tmp/**", "/etc/**")}})
    await engine.look_at_handlers()
    said = await engine.exec_sync(container_id, ("/bin/busybox", "sh", "-c", LABEL), 20.0)
    assert said.stdout.decode() == f"{old} (enforce)\n"
    assert len([n for n in KernelAppArmor().profiles() if n.startswith("noderuntime-conf")]) == 2
    await engine.remove_sandbox(sandbox_id)
    await engine.look_at_handlers()
    assert old not in KernelAppArmor().profiles()
