"""What is asked of the node and of a whole Pod: Status in full, Pod CIDR, Pod limits, checkpoints."""

from __future__ import annotations

import json

import grpc
import pytest

from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.cri.status import without_secrets
from tests.unit.cri.conftest import Client
from tests.unit.cri.test_server import failure, run_pod


async def test_verbose_status_tells_the_settings_and_the_program(cri: Client) -> None:
    await cri.call(
        "UpdateRuntimeConfig",
        pb.UpdateRuntimeConfigRequest(
            runtime_config=pb.RuntimeConfig(
                network_config=pb.NetworkConfig(pod_cidr="10.244.0.0/24,fd00::/64")
            )
        ),
    )
    answer = await cri.call("Status", pb.StatusRequest(verbose=True))
    assert set(answer.info) == {"noderuntime", "config", "runtime"}
    assert json.loads(answer.info["config"])["handlers"]["crun"]["oci_runtime"] == "/usr/bin/crun"
    runtime = json.loads(answer.info["runtime"])
    assert (runtime["cgroupDriver"], runtime["podCIDR"]) == ("CGROUPFS", "10.244.0.0/24,fd00::/64")
    assert runtime["network"] == "CNI network fake"
    assert not (await cri.call("Status")).info


def test_a_setting_whose_name_speaks_of_a_secret_is_hidden() -> None:
    settings = {"images": {"auth_token": "hunter2", "password": ""}, "list": [{"secret": "x"}]}
    assert without_secrets(settings) == {
        "images": {"auth_token": "(hidden)", "password": ""},
        "list": [{"secret": "(hidden)"}],
    }


@pytest.mark.parametrize("cidr", ["10.244.0.0/99", "nonsense", "10.0.0.0/8,"])
async def test_a_pod_cidr_that_is_none_is_refused(cri: Client, cidr: str) -> None:
    config = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr=cidr))
    code, text = await failure(
        cri.call("UpdateRuntimeConfig", pb.UpdateRuntimeConfigRequest(runtime_config=config))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "pod_cidr" in text


async def test_new_limits_of_a_pod_are_kept_and_told(cri: Client) -> None:
    sandbox_id, _ = await run_pod(cri)
    await cri.call(
        "UpdatePodSandboxResources",
        pb.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id=sandbox_id,
            overhead=pb.LinuxContainerResources(cpu_shares=10),
            resources=pb.LinuxContainerResources(memory_limit_in_bytes=1 << 30),
        ),
    )
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=True)
    info = json.loads((await cri.call("PodSandboxStatus", request)).info["info"])
    assert info["overhead"]["cpu_shares"] == 10
    assert info["resources"]["memory_limit_bytes"] == 1 << 30


async def test_limits_of_a_pod_that_is_not_there_are_not_found(cri: Client) -> None:
    request = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id="none")
    code, _ = await failure(cri.call("UpdatePodSandboxResources", request))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_checkpoint_is_unimplemented_with_what_is_missing(cri: Client) -> None:
    _, container_id = await run_pod(cri)
    request = pb.CheckpointContainerRequest(container_id=container_id, location="/var/lib/c.tar")
    code, text = await failure(cri.call("CheckpointContainer", request))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "criu" in text
    request.location = "relative.tar"
    assert (await failure(cri.call("CheckpointContainer", request)))[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    )
