import json
import tomllib
from pathlib import Path

import pytest

from e2e.cluster import components
from e2e.cluster.layout import RUNTIME_ETC, Layout
from noderuntime.api.config import Config

LAYOUT = Layout(Path("/repository"))


def test_the_runtime_accepts_its_configuration() -> None:
    command = components.runtime(LAYOUT, tracing=False)
    text = command.files[RUNTIME_ETC / "config.toml"]

    config = Config.model_validate(tomllib.loads(text))

    assert config.socket == Config().socket
    assert config.cni.bin_dirs == (LAYOUT.cni / "bin",)
    assert config.default_handler in config.handlers


@pytest.mark.parametrize("tracing", [False, True])
def test_the_kubelet_traces_only_when_asked(*, tracing: bool) -> None:
    (content,) = components.kubelet(LAYOUT, tracing=tracing).files.values()

    assert ("tracing" in json.loads(content)) == tracing


def test_the_kubelet_knows_no_other_runtime_and_no_anonymous_client() -> None:
    (content,) = components.kubelet(LAYOUT, tracing=False).files.values()
    config = json.loads(content)

    assert config["containerRuntimeEndpoint"] == "unix:///run/noderuntime/noderuntime.sock"
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}


def test_the_api_server_authorizes_nodes_and_roles_and_no_anonymous_client() -> None:
    argv = components.api_server(LAYOUT).argv

    assert "--authorization-mode=Node,RBAC" in argv
    assert "--enable-admission-plugins=NodeRestriction" in argv
    assert "--anonymous-auth=false" in argv
