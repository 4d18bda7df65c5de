"""A handler is offered when the node has what its profile demands, and not before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from noderuntime.api.revision import RevisionHandler, make_revision
from noderuntime.engine import offers
from noderuntime.errors import FailedPreconditionError, HostError
from tests.fakes.engine import container_config, sandbox_config

if TYPE_CHECKING:
    from noderuntime.engine.engine import Engine
    from tests.fakes.engine import World

TEXT = "profile mine {\n  file,\n}\n"
BY_TEXT: dict[str, object] = {"appArmor": {"profile": TEXT}}
BY_NAME: dict[str, object] = {"appArmor": {"name": "of-the-node"}}
PLAIN: dict[str, object] = {}


def serve(world: World, **profiles: dict[str, object]) -> str:
    """Declare a handler for each profile; return the digest."""
    handlers = tuple(
        RevisionHandler.model_validate(
            {"name": name, "nodeRuntime": name, "profile": {"name": name, "spec": spec}}
        )
        for name, spec in profiles.items()
    )
    return world.publish(make_revision(handlers))


async def settled(engine: Engine, digest: str) -> None:
    """Have the engine serve the revision."""
    await engine.look_at_handlers()
    assert engine.status().revision == digest


def offered(engine: Engine) -> list[str]:
    return [each.name for each in engine.status().handlers if each.name not in ("", "crun")]


async def test_a_handler_whose_kernel_lacks_apparmor_is_not_offered_and_the_rest_is(
    engine: Engine, world: World
) -> None:
    await settled(engine, serve(world, confined=BY_TEXT, plain=PLAIN))
    status = engine.status()
    assert offered(engine) == ["plain"]
    assert status.revision_handlers == ("plain",)
    assert status.revision_error == ""
    [withheld] = status.withheld
    assert (withheld.name, withheld.reason) == ("confined", "MissingFeature")
    assert "demands AppArmor" in withheld.message
    with pytest.raises(FailedPreconditionError, match='"confined" is not served .* AppArmor'):
        await engine.run_sandbox(sandbox_config(), "confined")
    assert engine.sandboxes() == ()
    await engine.run_sandbox(sandbox_config(), "plain")


async def test_a_handler_that_demands_selinux_or_users_is_not_offered_without(
    engine: Engine, world: World
) -> None:
    world.user_namespaces = False
    digest = serve(world, labelled={"seLinux": {}}, mapped={"userNamespace": "Required"})
    await settled(engine, digest)
    said = {each.name: each.message for each in engine.status().withheld}
    assert offered(engine) == []
    assert "demands SELinux" in said["labelled"]
    assert "demands UserNamespaces" in said["mapped"]


async def test_a_text_is_loaded_before_its_handler_is_offered(engine: Engine, world: World) -> None:
    world.apparmor.enabled = True
    digest = serve(world, confined=BY_TEXT)
    assert (engine.status().revision, offered(engine)) == ("", [])
    assert "are being loaded" in engine.status().revision_error
    await engine.run_sandbox(sandbox_config(), "confined")  # waits for it
    assert (engine.status().revision, offered(engine)) == (digest, ["confined"])
    [name] = world.apparmor.loaded
    assert name.startswith("noderuntime-confined-")
    assert f"profile {name} {{" in world.apparmor.loaded[name]


async def test_a_text_that_the_parser_refuses_withholds_its_handler_alone(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.apparmor.enabled = True
    world.apparmor.faults["*"] = HostError("apparmor_parser failed: line 2: syntax error")
    await settled(engine, serve(world, confined=BY_TEXT, plain=PLAIN))
    assert offered(engine) == ["plain"]
    [withheld] = engine.status().withheld
    assert withheld.reason == "AppArmorProfileRefused"
    assert "line 2: syntax error" in withheld.message
    calls = len(world.apparmor.calls)
    with pytest.raises(FailedPreconditionError, match="syntax error"):
        await engine.run_sandbox(sandbox_config(), "confined")
    assert len(world.apparmor.calls) == calls  # it is not tried for each Pod
    world.apparmor.faults.clear()
    monkeypatch.setattr(offers, "LOAD_AGAIN_S", 0.0)
    await look_again(engine)
    assert offered(engine) == ["confined", "plain"]
    assert engine.status().withheld == ()


EXCEPTED: dict[str, object] = {
    **BY_TEXT,
    "exceptions": [
        {"namespace": "default", "sections": ["appArmor"], "expires": "2100-01-01T00:00:00Z"}
    ],
}


async def test_a_text_with_an_exception_is_loaded_in_complain_mode_too(
    engine: Engine, world: World
) -> None:
    world.apparmor.enabled = True
    await settled(engine, serve(world, confined=EXCEPTED))
    found = {"complain" in text: name for name, text in world.apparmor.loaded.items()}
    assert set(found) == {True, False}
    for namespace, name in (("default", found[True]), ("other", found[False])):
        pod = sandbox_config()
        pod = replace(pod, pod=replace(pod.pod, namespace=namespace, uid=namespace))
        sandbox = await engine.run_sandbox(pod, "confined")
        container = await engine.create_container(sandbox, container_config())
        assert engine.container(container).apparmor == name
    for each in engine.sandboxes():
        await engine.remove_sandbox(each.id)
    serve(world)
    await look_again(engine)
    assert world.apparmor.loaded == {}


async def test_a_handler_is_withheld_until_both_modes_of_its_text_are_loaded(
    engine: Engine, world: World
) -> None:
    world.apparmor.enabled = True
    await settled(engine, serve(world, confined=EXCEPTED))
    audited = next(name for name, text in world.apparmor.loaded.items() if "complain" in text)
    del world.apparmor.loaded[audited]
    world.apparmor.faults[audited] = HostError("apparmor_parser failed: no complain")
    await look_again(engine)
    assert offered(engine) == []
    assert "no complain" in engine.status().withheld[0].message


@pytest.mark.parametrize("mode", ["Enforce", "Audit"])
async def test_a_label_that_the_nodes_policy_does_not_know_withholds_its_handler(
    engine: Engine, world: World, mode: str
) -> None:
    usual = "system_u:system_r:container_t:s0:c0,c1"
    files = "system_u:object_r:container_file_t:s0"
    world.selinux.enabled = True
    world.selinux.known = {usual, f"{files}:c0,c1", world.selinux.process, world.selinux.file}
    profiles: dict[str, dict[str, object]] = {
        "own": {"seLinux": {"type": "web_t"}, "mode": mode},
        "shared": {"seLinux": {"level": "s0:c1"}},
        "usual": {"seLinux": {}},
    }
    await settled(engine, serve(world, **profiles))
    assert offered(engine) == ["usual"]
    own, shared = engine.status().withheld
    assert {own.reason, shared.reason} == {"SELinuxLabelUnknown"}
    assert "seLinux of SecurityProfile own" in own.message
    assert "does not know the label system_u:system_r:web_t:s0:c0,c1" in own.message
    with pytest.raises(FailedPreconditionError, match="does not know the label"):
        await engine.run_sandbox(sandbox_config(), "own")
    world.selinux.known |= {f"{files}:c1", "system_u:system_r:container_t:s0:c1"}
    await look_again(engine)
    assert offered(engine) == ["shared", "usual"]


async def test_a_named_profile_must_be_loaded_on_the_node_and_stay_so(
    engine: Engine, world: World
) -> None:
    world.apparmor.enabled = True
    await settled(engine, serve(world, named=BY_NAME))
    [withheld] = engine.status().withheld
    assert withheld.reason == "AppArmorProfileNotLoaded"
    world.apparmor.loaded["of-the-node"] = ""
    await look_again(engine)
    assert offered(engine) == ["named"]
    world.apparmor.loaded.clear()
    await look_again(engine)
    assert offered(engine) == []


async def test_a_text_that_someone_removed_is_loaded_again(engine: Engine, world: World) -> None:
    world.apparmor.enabled = True
    await settled(engine, serve(world, confined=BY_TEXT))
    world.apparmor.loaded.clear()
    await look_again(engine)
    assert offered(engine) == ["confined"]
    assert len(world.apparmor.loaded) == 1


async def test_an_old_text_stays_loaded_as_long_as_a_container_runs_under_it(
    engine: Engine, world: World
) -> None:
    world.apparmor.enabled = True
    await settled(engine, serve(world, confined=BY_TEXT))
    [old] = world.apparmor.loaded
    world.apparmor.loaded["noderuntime-of-someone-else"] = ""
    sandbox = await engine.run_sandbox(sandbox_config(), "confined")
    container = await engine.create_container(sandbox, container_config())
    await engine.start_container(container)
    assert engine.container(container).apparmor == old
    other: dict[str, object] = {"appArmor": {"profile": TEXT.replace("file,", "file, network,")}}
    await settled(engine, serve(world, confined=other))
    await look_again(engine)
    assert len(world.apparmor.loaded) == 3
    await engine.stop_container(container, 1.0)
    await engine.remove_container(container)
    world.apparmor.in_use.add(old)  # an exec that is not gone yet
    await look_again(engine)
    assert old in world.apparmor.loaded
    world.apparmor.in_use.clear()
    await look_again(engine)
    assert old not in world.apparmor.loaded
    assert "noderuntime-of-someone-else" in world.apparmor.loaded
    assert len(world.apparmor.loaded) == 2


async def look_again(engine: Engine) -> None:
    """Do what the engine does every few seconds."""
    await engine.look_at_handlers()
