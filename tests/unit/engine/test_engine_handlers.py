"""Which handlers are served: whole revisions or none, and a sentence that says why not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from noderuntime.api.config import Config, HandlerConfig
from noderuntime.api.profile_process import Capabilities
from noderuntime.api.revision import (
    Revision,
    RevisionDefault,
    RevisionHandler,
    RevisionProfile,
    digest_of,
    make_revision,
)
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.engine.apparmor import Profiles
from noderuntime.engine.artifacts import SeccompArtifacts
from noderuntime.engine.disk import Disk
from noderuntime.engine.handlers import HandlerTable
from noderuntime.engine.offers import Offers
from noderuntime.errors import ConfigError, FailedPreconditionError
from noderuntime.policy.features import HostFeatures
from tests.fakes.engine import config_of, new_world
from tests.fakes.images import FakeImages
from tests.fakes.lsm import FakeAppArmor
from tests.fakes.world import publish


def declared(name: str = "restricted", **spec: object) -> RevisionHandler:
    profile = RevisionProfile(name="web", spec=SecurityProfileSpec.model_validate(spec))
    return RevisionHandler(name=name, node_runtime=name, profile=profile)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "current"


@pytest.fixture
def table(tmp_path: Path) -> HandlerTable:
    return table_of(config_of(new_world(tmp_path)))


def table_of(config: Config) -> HandlerTable:
    """Return the table of a node that can do nothing special."""
    profiles, artifacts = Profiles(FakeAppArmor(), Disk()), SeccompArtifacts(FakeImages(Path("/")))
    return HandlerTable(config, Offers(HostFeatures, profiles, artifacts, lambda _: ""))


async def nothing() -> None:
    """Tidy up nothing."""


def test_the_default_is_the_nodes_own_when_no_handler_is_named(table: HandlerTable) -> None:
    assert table.get("") == table.get("crun")
    assert table.get("").rules is None
    assert table.names() == ("", "crun")


def test_a_handler_is_refused_when_there_is_no_revision(table: HandlerTable) -> None:
    with pytest.raises(
        FailedPreconditionError,
        match='handler "restricted" is not served by this node: there is no revision at',
    ):
        table.get("restricted")


def test_a_revision_is_served_when_it_appears_and_changes(table: HandlerTable, path: Path) -> None:
    first = make_revision((declared(),))
    publish(path, first)
    handler = table.get("restricted")
    assert (handler.revision, handler.oci_runtime) == (first.digest, Path("/usr/bin/crun"))
    assert handler.rules is not None
    second = make_revision((declared("other"),))
    publish(path, second)
    with pytest.raises(FailedPreconditionError, match="does not have it"):
        table.get("restricted")
    assert table.get("other").revision == table.revision == second.digest
    path.unlink()
    table.refresh()
    assert (table.revision, table.error, table.names()) == ("", "", ("", "crun"))


def test_rules_are_compiled_once_when_the_file_stays(table: HandlerTable, path: Path) -> None:
    publish(path, make_revision((declared(),)))
    assert table.get("restricted").rules is table.get("restricted").rules


def bad_digest() -> str:
    document = make_revision((declared(),)).model_dump(mode="json", by_alias=True)
    document["handlers"][0]["profile"]["spec"]["privileged"] = "Allow"
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("{", "Invalid JSON", id="torn"),
        pytest.param("", "Invalid JSON", id="empty"),
        pytest.param("{}", "digest", id="without its fields"),
        pytest.param(bad_digest(), "its content has sha256:", id="of another digest"),
        pytest.param(
            make_revision((declared("crun"),)).model_dump_json(by_alias=True),
            "one of the node's own",
            id="that takes the node's own handler",
        ),
        pytest.param(
            make_revision((declared(), declared())).model_dump_json(by_alias=True),
            "declared twice",
            id="with a handler twice",
        ),
        pytest.param(
            make_revision(
                (declared(), declared("bad", capabilities=Capabilities(allow=("NOT_ONE",))))
            ).model_dump_json(by_alias=True),
            "NOT_ONE is not a Linux capability",
            id="with one handler that does not compile",
        ),
    ],
)
def test_none_of_a_revision_is_served_when_it_is(
    table: HandlerTable, path: Path, text: str, why: str
) -> None:
    publish(path, make_revision((declared(),)))
    table.get("restricted")
    path.write_text(text)
    with pytest.raises(FailedPreconditionError) as refused:
        table.get("restricted")
    assert why in str(refused.value)
    assert why in table.error
    assert table.revision == ""
    assert table.names() == ("", "crun")
    assert table.get("").rules is None


def test_a_config_is_refused_when_its_default_handler_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="default_handler: kata"):
        table_of(config_of(new_world(tmp_path), default_handler="kata"))


def test_a_handlers_program_is_the_nodes_when_it_has_one_of_that_name(tmp_path: Path) -> None:
    own = {"plain": HandlerConfig(oci_runtime=Path("/opt/crun"))}
    config = config_of(new_world(tmp_path), handlers=own, default_handler="plain")
    publish(config.revision, make_revision((declared(),)))
    table = table_of(config)
    assert table.get("restricted").oci_runtime == Path("/opt/crun")
    assert table.programs() == (Path("/opt/crun"),)


def test_a_handler_has_the_network_that_the_node_or_the_revision_gives_it(tmp_path: Path) -> None:
    own = {"crun": HandlerConfig(), "lab": HandlerConfig(cni_conf_dir=Path("/etc/cni/lab.d"))}
    config = config_of(new_world(tmp_path), handlers=own)
    named = declared("fast").model_copy(update={"cni_conf_dir": "/etc/cni/fast.d"})
    publish(config.revision, make_revision((declared(), named)))
    table = table_of(config)
    assert table.get("crun").cni_conf_dir is table.get("restricted").cni_conf_dir is None
    assert table.get("lab").cni_conf_dir == Path("/etc/cni/lab.d")
    assert table.get("fast").cni_conf_dir == Path("/etc/cni/fast.d")


async def test_a_revision_is_seen_when_it_is_renamed_into_place(
    table: HandlerTable, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    seen = asyncio.Event()
    refresh = table.refresh

    def refresh_and_tell() -> None:
        refresh()
        if table.revision:
            seen.set()

    monkeypatch.setattr(table, "refresh", refresh_and_tell)
    watch = asyncio.Task(table.watch(nothing))
    await asyncio.sleep(0)
    revision = make_revision((declared(),))
    publish(path, revision)
    async with asyncio.timeout(2):
        await seen.wait()
    assert table.revision == revision.digest
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


# Pods that name no handler


DEFAULT = RevisionDefault(handler="restricted", exempt_namespaces=("noderuntime-system",))


def test_a_pod_that_names_no_handler_is_governed_but_in_exempt_namespaces(
    table: HandlerTable, path: Path
) -> None:
    publish(path, make_revision((declared(),), DEFAULT))
    governed = table.get("", "shop")
    assert (governed.name, governed.node_runtime, governed.profile) == (
        "restricted",
        "restricted",
        "web",
    )
    assert table.get("crun", "shop").rules is None  # it names a handler
    assert table.get("", "noderuntime-system").rules is None
    assert table.get("").rules is None  # a pull for nobody
    assert table.default == DEFAULT
    publish(path, make_revision((declared(),)))
    assert table.get("", "shop").rules is None


@pytest.mark.parametrize("again", [False, True], ids=["", "and the runtime was started anew"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="gone"),
        pytest.param("{", id="torn"),
        pytest.param(bad_digest(), id="of another digest"),
    ],
)
def test_pods_that_were_governed_are_refused_when_the_revision_is(
    tmp_path: Path, path: Path, text: str | None, again: bool
) -> None:
    config = config_of(new_world(tmp_path))
    table = table_of(config)
    publish(path, make_revision((declared(),), DEFAULT))
    table.refresh()
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    if again:
        table = table_of(config)
    with pytest.raises(FailedPreconditionError) as refused:
        table.get("", "shop")
    assert 'namespace shop that names no handler is governed by "restricted"' in str(refused.value)
    assert "is not served by this node" in str(refused.value)
    assert table.get("", "noderuntime-system").rules is None
    publish(path, make_revision(()))  # what the node is told when nothing governs it any more
    assert table.get("", "shop").rules is None
    path.write_text("{")
    assert table_of(config).get("", "shop").rules is None


def test_a_node_that_was_never_told_of_a_default_runs_pods_when_its_revision_is_damaged(
    table: HandlerTable, path: Path
) -> None:
    publish(path, make_revision((declared(),)))
    table.refresh()
    path.write_text("{")
    assert table.get("", "shop").rules is None


def test_nothing_is_run_without_a_handler_when_what_is_kept_is_damaged_too(
    tmp_path: Path, path: Path
) -> None:
    config = config_of(new_world(tmp_path))
    publish(path, make_revision((declared(),), DEFAULT))
    table_of(config).refresh()
    (config.state_dir / "default").write_text("{")
    path.write_text("{")
    table = table_of(config)
    for namespace in ("shop", "noderuntime-system"):
        with pytest.raises(FailedPreconditionError, match="default, which says whom .* is damaged"):
            table.get("", namespace)
    publish(path, make_revision((declared(),), DEFAULT))
    assert table.get("", "shop").name == "restricted"


def test_a_default_that_is_not_declared_makes_a_revision_invalid(
    table: HandlerTable, path: Path
) -> None:
    publish(path, make_revision((declared("other"),), DEFAULT))
    table.refresh()
    assert "default: handler restricted is not declared" in table.error
    assert table.names() == ("", "crun")


def test_a_default_is_in_the_digest_and_a_revision_without_one_is_as_it_was(path: Path) -> None:
    without = make_revision((declared(),))
    assert "default" not in without.model_dump(mode="json", by_alias=True)
    assert make_revision((declared(),), DEFAULT).digest != without.digest
    widened = make_revision((declared(),), DEFAULT).model_dump(mode="json", by_alias=True)
    widened["default"]["exemptNamespaces"] = ["noderuntime-system", "shop"]
    revision = Revision.model_validate(widened)
    assert digest_of(revision.handlers, revision.default) != revision.digest


def test_which_pods_are_governed_is_written_down_when_there_is_room_again(
    tmp_path: Path, path: Path
) -> None:
    config = config_of(new_world(tmp_path))
    config.state_dir.write_text("in the way")  # no folder can be made here
    table = table_of(config)
    publish(path, make_revision((declared(),), DEFAULT))
    assert table.get("", "shop").name == "restricted"
    config.state_dir.unlink()
    asyncio.run(table.look())
    assert (
        RevisionDefault.model_validate_json((config.state_dir / "default").read_text()) == DEFAULT
    )
