from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from noderuntime.api.noderuntime import NodeRuntimeSpec
from noderuntime.api.pages import EXAMPLES
from noderuntime.api.revision import RevisionHandler, RevisionProfile, make_revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.policy import inherit
from noderuntime.policy.load import rules_of

FOLDER = Path(__file__).resolve().parents[3] / "examples"


def objects() -> list[dict[str, Any]]:
    return [
        each
        for file in sorted(FOLDER.glob("*.yaml"))
        for each in yaml.safe_load_all(file.read_text())
    ]


def spec_of(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each["spec"] for each in objects() if each["kind"] == kind)
    return found


def check_rules(runtime: dict[str, Any], profile: dict[str, Any]) -> None:
    spec = NodeRuntimeSpec.model_validate(runtime)
    handler = RevisionHandler(
        name=spec.handler,
        node_runtime="restricted",
        profile=RevisionProfile(name="web", spec=SecurityProfileSpec.model_validate(profile)),
        allowed_registries=spec.images.allowed_registries,
        resources=spec.resources,
    )
    assert rules_of(handler, make_revision((handler,)).digest).handler == spec.handler


def test_a_node_can_serve_the_examples() -> None:
    check_rules(spec_of("NodeRuntime"), spec_of("SecurityProfile"))


def test_a_node_can_serve_the_examples_of_the_pages() -> None:
    specs = {kind: yaml.safe_load(text)["spec"] for kind, text in EXAMPLES.items()}
    check_rules(specs["NodeRuntime"], specs["SecurityProfile"])


def test_the_profiles_of_the_examples_are_resolved_and_compiled() -> None:
    profiles = {
        each["metadata"]["name"]: SecurityProfileSpec.model_validate(each["spec"])
        for each in objects()
        if each["kind"] == "SecurityProfile"
    }
    for name in profiles:
        inherit.check(name, inherit.resolve(name, profiles))
    assert {"web", "payments"} <= set(profiles)


def test_the_examples_belong_together() -> None:
    runtime = spec_of("NodeRuntime")
    pod = spec_of("Deployment")["template"]["spec"]
    assert pod["runtimeClassName"] == runtime["handler"]
    (container,) = pod["containers"]
    registries = runtime["images"]["allowedRegistries"]
    assert any(container["image"].startswith(f"{prefix}/") for prefix in registries)
    assert runtime["securityProfileRef"]["name"] == "web"
