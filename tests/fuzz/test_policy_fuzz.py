"""Hostile text wherever the policy reads some: an answer or an error of ours, nothing else."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from noderuntime.api.quantity import milli_cpu, size_bytes
from noderuntime.errors import ConfigError, InvalidArgumentError
from noderuntime.policy import decide
from noderuntime.policy.capabilities import of_status
from noderuntime.policy.denial import Denial
from noderuntime.policy.model import HostFacts, Mount
from noderuntime.policy.mounts import behind, is_kubelets
from noderuntime.policy.registries import is_allowed, prefix_of, repository_of
from noderuntime.policy.spec import SpecLayout, build
from tests.unit.policy.factories import (
    KUBELET,
    UID,
    admit,
    container,
    image,
    rules,
    sandbox,
    security,
)

pytestmark = pytest.mark.slow
many = settings(max_examples=1000, deadline=None, database=None)
pathish = st.text(alphabet=st.sampled_from("/.a\\0 \npods"), max_size=40).map(
    lambda text: text.replace("pods", f"pods/{UID}/volumes")
)
OWN = rules(
    {"hostPaths": [{"path": "/srv"}], "capabilities": {"allow": ["CHOWN"]}},
    allowedRegistries=["registry.example.com"],
)


@many
@given(
    text=st.text(alphabet=st.characters() | st.sampled_from("0123456789.eEmkKMGi+-"), max_size=40)
)
def test_a_quantity_is_a_number_of_63_bits_or_a_value_error(text: str) -> None:
    for read in (milli_cpu, size_bytes):
        with contextlib.suppress(ValueError):
            assert 0 <= read(text) < 1 << 63


@many
@given(text=st.text(alphabet=st.sampled_from("aA0.-_/:@[]~ \n"), max_size=60))
def test_a_reference_below_a_registry_starts_with_its_name(text: str) -> None:
    repository = repository_of(text)
    if repository is not None:
        host, _, path = repository.partition("/")
        assert host == host.lower()
        assert path
        assert "\n" not in repository
    for evil in (f"registry.example.com{text}", f"{text}registry.example.com/x"):
        if is_allowed(evil, (prefix_of("registry.example.com"),)):
            assert evil.lower().startswith("registry.example.com/")


@many
@given(path=pathish, table=st.text(max_size=200))
def test_a_path_that_is_not_below_the_pods_folder_is_never_the_kubelets(
    path: str, table: str
) -> None:
    if is_kubelets(path, UID):
        assert f"/pods/{UID}/" in path.replace("/./", "/").replace("//", "/") or ".." in path
    behind(path, table)
    of_status(table.replace("CapBnd", ""))


@many
@given(
    name=st.text(max_size=30),
    value=st.text(max_size=60),
    host_path=pathish.map(lambda path: "/" + path),
    container_path=pathish.map(lambda path: "/" + path),
    capability=st.text(max_size=20) | st.sampled_from(["CHOWN", "ALL", "cap_sys_admin"]),
)
def test_a_hostile_container_is_granted_denied_or_invalid(**text: str) -> None:
    asked = container(
        security(capabilities_add=(text["capability"],), capabilities_drop=(text["value"],)),
        name=text["name"],
        command=(text["value"] or "x",),
        env=((text["name"], text["value"]),),
        working_dir=text["value"],
        image_reference=text["value"],
        mounts=(Mount(container_path=text["container_path"], host_path=text["host_path"]),),
        annotations={text["name"]: text["value"]},
    )
    host = HostFacts(mountinfo=f"1 1 8:1 / / rw\n2 1 8:1 {text['value']} {KUBELET} rw")
    for own in (None, OWN):
        try:
            answer: Any = admit(own, asked, facts=image(env=(text["value"],)), host=host)
        except InvalidArgumentError as error:
            assert "\n" not in error.for_kubelet()
            continue
        if isinstance(answer, Denial):
            assert answer.sentence().isprintable()
        else:
            build(answer, SpecLayout(rootfs="/rootfs", machine="x86_64"))


@many
@given(
    name=st.text(alphabet=st.sampled_from("netipv4.core/_-\n "), max_size=40),
    value=st.text(max_size=20),
)
def test_a_hostile_sysctl_never_leaves_the_namespaces(name: str, value: str) -> None:
    try:
        answer = decide.admit_sandbox(None, sandbox(sysctls={name: value}))
    except InvalidArgumentError:
        return
    assert not isinstance(answer, Denial)
    for key in answer.sysctls:
        assert key.startswith(("net.", "fs.mqueue.", "kernel."))
        assert ".." not in key


@many
@given(
    capability=st.text(max_size=20),
    call=st.text(min_size=1, max_size=20),
    path=st.text(max_size=20).map(lambda text: "/" + text),
    registry=st.text(max_size=20),
    amount=st.text(max_size=20),
)
def test_a_hostile_profile_is_compiled_or_a_config_error(**text: str) -> None:
    with contextlib.suppress(ConfigError, ValidationError):
        rules(
            {
                "capabilities": {"allow": [text["capability"]]},
                "seccomp": {"deny": [{"names": [text["call"]]}]},
                "hostPaths": [{"path": text["path"]}],
            },
            allowedRegistries=[text["registry"]],
            resources={"limits": {"cpu": text["amount"]}},
        )
