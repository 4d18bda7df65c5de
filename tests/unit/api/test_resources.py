from __future__ import annotations

import pytest
from pydantic import ValidationError

from noderuntime.api.noderuntime import NodeRuntimeSpec, ResourceAmounts
from noderuntime.api.revision import RevisionHandler, RevisionProfile, make_revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.api.state import NodeRuntimeStateSpec


@pytest.mark.parametrize(("given", "read"), [(2, "2"), ("500m", "500m"), ("1Gi", "1Gi")])
def test_a_quantity_is_read_from_text_and_from_a_whole_number(given: object, read: str) -> None:
    assert ResourceAmounts.model_validate({"cpu": given}).cpu == read


@pytest.mark.parametrize("given", [True, 0.5, ["1"]])
def test_a_quantity_is_nothing_else(given: object) -> None:
    with pytest.raises(ValidationError):
        ResourceAmounts.model_validate({"cpu": given})


def test_an_empty_profile_denies() -> None:
    profile = SecurityProfileSpec()
    assert (profile.mode, profile.privileged, profile.no_new_privileges) == (
        "Enforce",
        "Deny",
        "Required",
    )
    assert profile.host_namespaces == profile.capabilities.allow == ()


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(ValidationError, match="hander"):
        NodeRuntimeSpec.model_validate(
            {"handler": "a", "securityProfileRef": {"name": "b"}, "hander": "c"}
        )


@pytest.mark.parametrize("folder", ["etc/cni", "/etc/cni/", "//etc", "/"])
def test_a_folder_of_cni_configurations_is_an_absolute_path(folder: str) -> None:
    spec = {"handler": "a", "securityProfileRef": {"name": "b"}, "engine": {"cniConfDir": folder}}
    with pytest.raises(ValidationError, match=r"engine\.cniConfDir"):
        NodeRuntimeSpec.model_validate(spec)
    spec["engine"] = {"cniConfDir": "/etc/cni/fast.d"}
    assert NodeRuntimeSpec.model_validate(spec).engine.cni_conf_dir == "/etc/cni/fast.d"


def test_a_digest_is_checked() -> None:
    ref = {"name": "noderuntime-aaaaaaaaaaaa", "digest": "sha256:no"}
    with pytest.raises(ValidationError, match=r"revision\.digest"):
        NodeRuntimeStateSpec.model_validate({"nodeName": "n", "revision": ref})


def test_a_revision_does_not_depend_on_the_order_of_its_handlers() -> None:
    handlers = tuple(
        RevisionHandler(
            name=name,
            node_runtime=name,
            profile=RevisionProfile(name="web", spec=SecurityProfileSpec()),
        )
        for name in ("b", "a")
    )
    assert make_revision(handlers) == make_revision(handlers[::-1])
    assert make_revision(handlers).digest != make_revision(handlers[:1]).digest
