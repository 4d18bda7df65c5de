"""What the decision log says of each verb that asks a profile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from noderuntime.engine.engine import Engine
from noderuntime.errors import DeniedError, ImageError
from noderuntime.policy.model import (
    ContainerSecurity,
    Mount,
    NamespaceMode,
    Namespaces,
    PodIdentity,
    Resources,
)
from noderuntime.telemetry import metrics, trace
from tests.fakes.engine import (
    IMAGE,
    PROC_MOUNT_DEFAULT,
    World,
    container_config,
    new_engine,
    sandbox_config,
)
from tests.unit.engine.test_engine_gate import serve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

PROFILE: dict[str, Any] = {
    "resources": {"memory": {"max": "1Mi"}},
    "images": {"allowedRegistries": ["registry.example.com"]},
}
AUDIT = {**PROFILE, "mode": "Audit"}
MORE = Resources(memory_limit_bytes=2 << 20)
POD = PodIdentity(name="web-0", namespace="shop", uid="u-1")


@pytest.fixture
async def engine(world: World) -> Engine:
    engine = new_engine(world)
    await engine.recover()
    return engine


async def told(engine: Engine, world: World) -> list[dict[str, Any]]:
    """End the engine; return what it has written down."""
    await engine.close()
    path = world.root / "state" / "decisions" / "decisions.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def live(engine: Engine, handler: str = "restricted") -> str:
    """Run a Pod with a container."""
    config = sandbox_config(pod=POD)
    sandbox_id = await engine.run_sandbox(config, handler)
    await engine.pull_image(IMAGE, None, handler=handler, pod=config)
    container_id = await engine.create_container(
        sandbox_id, container_config(security=PROC_MOUNT_DEFAULT)
    )
    await engine.start_container(container_id)
    return container_id


async def test_each_verb_that_is_allowed_has_a_line(engine: Engine, world: World) -> None:
    serve(world, PROFILE)
    container_id = await live(engine)
    await engine.update_resources(container_id, Resources(memory_limit_bytes=1 << 19))
    lines = await told(engine, world)
    assert [(line["verb"], line["verdict"]) for line in lines] == [
        ("RunPodSandbox", "Allowed"),
        ("PullImage", "Allowed"),
        ("CreateContainer", "Allowed"),
        ("UpdateContainerResources", "Allowed"),
    ]
    for line in lines:
        assert line.pop("time").endswith("Z")
        assert line.pop("revision").startswith("sha256:")
    assert lines[0] == {
        "verb": "RunPodSandbox",
        "namespace": "shop",
        "pod": "web-0",
        "uid": "u-1",
        "handler": "restricted",
        "nodeRuntime": "r",
        "profile": "web",
        "mode": "Enforce",
        "verdict": "Allowed",
    }
    assert lines[2]["container"] == lines[3]["container"] == container_config().name
    assert any("seccompProfile is the profile's filter" in each for each in lines[2]["changes"])


async def test_each_verb_that_is_denied_has_a_line(engine: Engine, world: World) -> None:
    serve(world, PROFILE)
    container_id = await live(engine)
    sandbox_id = engine.container(container_id).sandbox_id
    other = PodIdentity(name="other", namespace="shop", uid="u-2")
    on_node = sandbox_config(pod=other, namespaces=Namespaces(pid=NamespaceMode.NODE))
    asks = (
        engine.run_sandbox(on_node, "restricted"),
        engine.pull_image("evil.example.com/app:1", None, handler="restricted"),
        engine.create_container(
            sandbox_id, container_config(name="b", image_reference="evil.example.com/app:1")
        ),
        engine.create_container(
            sandbox_id,
            container_config(name="c", security=ContainerSecurity(capabilities_add=("SYS_ADMIN",))),
        ),
        engine.update_resources(container_id, MORE),
    )
    for ask in asks:
        with pytest.raises(DeniedError, match="is refused by SecurityProfile web"):
            await ask
    lines = (await told(engine, world))[3:]
    found = [(line["verb"], line["verdict"], line["denials"][0]["section"]) for line in lines]
    assert found == [
        ("RunPodSandbox", "Denied", "hostNamespaces"),
        ("PullImage", "Denied", "images"),
        ("CreateContainer", "Denied", "images"),
        ("CreateContainer", "Denied", "capabilities"),
        ("UpdateContainerResources", "Denied", "resources"),
    ]
    assert "pod" not in lines[1]  # a pull for nobody
    assert lines[3]["container"] == "c"
    assert lines[0]["denials"] == [
        {
            "field": "hostPID",
            "value": "true",
            "rule": "hostNamespaces has nothing",
            "remedy": "remove hostPID from the Pod, or add PID to hostNamespaces",
            "section": "hostNamespaces",
        }
    ]


async def test_an_image_volume_that_is_denied_has_a_line(engine: Engine, world: World) -> None:
    serve(world, PROFILE)
    sandbox_id = await engine.run_sandbox(sandbox_config(pod=POD), "restricted")
    mount = Mount(container_path="/d", image=IMAGE, image_reference="evil.example.com/d:1")
    config = container_config(security=PROC_MOUNT_DEFAULT, mounts=(mount,))
    with pytest.raises(DeniedError):
        await engine.create_container(sandbox_id, config)
    last = (await told(engine, world))[-1]
    assert (last["verb"], last["verdict"], last["pod"]) == ("CreateContainer", "Denied", "web-0")
    assert last["denials"][0]["value"] == "evil.example.com/d:1"


async def test_what_audit_lets_pass_is_audited(engine: Engine, world: World) -> None:
    serve(world, AUDIT)
    container_id = await live(engine)
    await engine.update_resources(container_id, MORE)
    with pytest.raises(ImageError, match="has no image"):  # asked for, so it was let pass
        await engine.pull_image("other.example.com/app:1", None, handler="restricted")
    lines = await told(engine, world)
    assert [line["verdict"] for line in lines] == ["Allowed"] * 3 + ["Audited"] * 2
    assert {line["mode"] for line in lines} == {"Audit"}
    assert [line["findings"][0]["section"] for line in lines[3:]] == ["resources", "images"]


async def test_a_handler_without_a_profile_writes_nothing(engine: Engine, world: World) -> None:
    await live(engine, "crun")
    assert await told(engine, world) == []
    assert not (world.root / "state" / "decisions").exists()


async def test_a_hostile_name_is_one_line_of_its_own(engine: Engine, world: World) -> None:
    serve(world, PROFILE)
    sandbox_id = await engine.run_sandbox(sandbox_config(pod=POD), "restricted")
    name = 'c","verdict":"Allowed"}\n{"verb":"RunPodSandbox' + "\u202e" * 100_000
    asked = ContainerSecurity(capabilities_add=("SYS_ADMIN",))
    with pytest.raises(DeniedError):
        await engine.create_container(sandbox_id, container_config(name=name, security=asked))
    lines = await told(engine, world)
    assert [line["verdict"] for line in lines] == ["Allowed", "Denied"]
    assert lines[1]["cut"] is True


async def test_a_disk_without_room_for_the_log_changes_no_decision(
    engine: Engine, world: World
) -> None:
    serve(world, PROFILE)
    (world.root / "state").mkdir(exist_ok=True)
    (world.root / "state" / "decisions").write_text("in the way")
    container_id = await live(engine)
    with pytest.raises(DeniedError):
        await engine.update_resources(container_id, MORE)
    await engine.close()


class Finished(SpanExporter):
    """Keeps the attributes of the spans that end, by the span's name."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, Any]]] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += [(span.name, dict(span.attributes or {})) for span in spans]
        return SpanExportResult.SUCCESS


async def test_the_trace_says_what_was_decided(engine: Engine, world: World) -> None:
    finished = Finished()
    trace.configure(
        trace.TraceSettings(endpoint="http://127.0.0.1:1", sampling_rate_per_million=1_000_000),
        finished,
    )
    serve(world, PROFILE)
    with trace.span("cri.Test"):
        trace_id = trace.trace_id()
        container_id = await live(engine)
        with pytest.raises(DeniedError):
            await engine.update_resources(container_id, MORE)
    await trace.shutdown()
    decided = [each for name, each in finished.spans if name == "policy.admit"]
    assert {each["noderuntime.profile"] for each in decided if "noderuntime.verdict" in each} == {
        "web"
    }
    assert decided[0]["noderuntime.verdict"] == "Allowed"
    assert decided[-1]["noderuntime.verdict"] == "Denied"
    assert decided[-1]["noderuntime.denied_field"] == "containers[*].resources.limits.memory"
    assert {line["trace_id"] for line in await told(engine, world)} == {trace_id}


async def test_decisions_are_counted_by_verdict_profile_and_section(
    engine: Engine, world: World
) -> None:
    def count(verdict: str, section: str) -> float:
        labels = {"verdict": verdict, "profile": "web", "section": section}
        name = "noderuntime_policy_decisions_total"
        return metrics.REGISTRY.get_sample_value(name, labels) or 0.0

    before = count("Allowed", ""), count("Denied", "resources")
    serve(world, PROFILE)
    container_id = await live(engine)
    with pytest.raises(DeniedError):
        await engine.update_resources(container_id, MORE)
    await engine.close()
    assert (count("Allowed", ""), count("Denied", "resources")) == (before[0] + 3, before[1] + 1)
