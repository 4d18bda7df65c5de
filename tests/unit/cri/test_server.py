"""The socket, every method of both services, and how errors arrive."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import stat
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.cri.server import clear_the_way
from noderuntime.engine.offers import Withheld
from noderuntime.errors import (
    ConfigError,
    DeniedError,
    HostError,
    RegistryUnavailableError,
    UnavailableError,
)
from noderuntime.policy.model import PodIdentity, SandboxConfig
from noderuntime.telemetry import metrics, trace
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.unit.cri.conftest import Client

NOT_SERVED = {
    "CheckpointPod",
    "RestorePod",
}


def sandbox_config() -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="web", namespace="default", uid="u1"),
        labels={"app": "web"},
        linux=pb.LinuxPodSandboxConfig(cgroup_parent="/kubepods/podu1"),
    )


def container_config() -> pb.ContainerConfig:
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="app", attempt=2),
        image=pb.ImageSpec(image="sha256:" + "ab" * 32, user_specified_image="app:1"),
        log_path="app/2.log",
        labels={"io.kubernetes.container.name": "app"},
        mounts=[pb.Mount(container_path="/dev/termination-log", host_path="/var/lib/k/t")],
    )


async def run_pod(cri: Client) -> tuple[str, str]:
    sandbox = await cri.call("RunPodSandbox", pb.RunPodSandboxRequest(config=sandbox_config()))
    request = pb.CreateContainerRequest(
        pod_sandbox_id=sandbox.pod_sandbox_id, config=container_config()
    )
    container = await cri.call("CreateContainer", request)
    await cri.call("StartContainer", pb.StartContainerRequest(container_id=container.container_id))
    return sandbox.pod_sandbox_id, container.container_id


async def failure(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_the_socket_is_for_owner_and_group_only(cri: Client) -> None:
    assert stat.S_IMODE(cri.path.stat().st_mode) == 0o660


@pytest.mark.parametrize(
    "name",
    [
        m.name
        for s in pb.DESCRIPTOR.services_by_name.values()
        for m in s.methods
        if m.name != "GetContainerEvents"  # has no end of its own: test_events.py
    ],
)
async def test_every_method_answers_an_empty_request_without_internal(
    cri: Client, name: str
) -> None:
    try:
        await cri.call(name)
        code = grpc.StatusCode.OK
    except aio.AioRpcError as error:
        code = error.code()
    if name in NOT_SERVED:
        assert code is grpc.StatusCode.UNIMPLEMENTED
    else:
        assert code in {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


async def test_the_agents_socket_answers_status_and_refuses_what_changes_the_node(
    agents_cri: Client,
) -> None:
    answer = await agents_cri.call("Status", pb.StatusRequest(verbose=True))
    assert "noderuntime" in answer.info
    for name, request in (
        ("RunPodSandbox", pb.RunPodSandboxRequest(config=sandbox_config())),
        ("ExecSync", pb.ExecSyncRequest(container_id="c", cmd=["true"])),
        ("RemoveImage", pb.RemoveImageRequest()),
    ):
        code, _ = await failure(agents_cri.call(name, request))
        assert code is grpc.StatusCode.UNIMPLEMENTED, name


async def test_version_fills_every_field(cri: Client) -> None:
    answer = await cri.call("Version")
    assert (answer.runtime_name, answer.runtime_api_version) == ("noderuntime", "v1")
    assert answer.version
    assert answer.runtime_version


async def test_status_tells_conditions_handlers_and_the_agents_part(cri: Client) -> None:
    cri.engine.network_problem = "no CNI configuration in /etc/cni/net.d"
    cri.engine.stale = ("default/web/app",)
    cri.engine.withheld = (
        Withheld(name="confined", reason="MissingFeature", message="no AppArmor"),
    )
    answer = await cri.call("Status", pb.StatusRequest(verbose=True))
    assert [(c.type, c.status, c.message) for c in answer.status.conditions] == [
        ("RuntimeReady", True, ""),
        ("NetworkReady", False, "no CNI configuration in /etc/cni/net.d"),
    ]
    assert [handler.name for handler in answer.runtime_handlers] == ["", "restricted"]
    assert answer.runtime_handlers[1].features.recursive_read_only_mounts
    assert json.loads(answer.info["noderuntime"]) == {
        "revision": "sha256:" + "0" * 64,
        "revisionError": "",
        "handlers": ["restricted"],
        "staleContainers": ["default/web/app"],
        "ungovernedPods": 1,
        "default": None,
        "unknownSyscalls": {},
        "withheldHandlers": [
            {"name": "confined", "reason": "MissingFeature", "message": "no AppArmor"}
        ],
    }


async def test_status_is_short_when_not_verbose(cri: Client) -> None:
    assert not (await cri.call("Status")).info


async def test_runtime_config_names_the_cgroup_driver(cri: Client) -> None:
    assert (await cri.call("RuntimeConfig")).linux.cgroup_driver == pb.CGROUPFS


async def test_a_pods_life_is_told_as_the_kubelet_reads_it(cri: Client) -> None:
    sandbox_id, container_id = await run_pod(cri)
    answer = await cri.call(
        "PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=True)
    )
    assert answer.status.network.ip == "10.244.0.2"
    assert [each.ip for each in answer.status.network.additional_ips] == ["fd00::2"]
    assert answer.status.linux.namespaces.options.network == pb.POD
    assert answer.status.linux.namespaces.options.pid == pb.CONTAINER
    assert json.loads(answer.info["info"])["ociRuntime"] == "/usr/bin/crun"
    answer = await cri.call(
        "ContainerStatus", pb.ContainerStatusRequest(container_id=container_id[:10])
    )
    assert answer.status.id == container_id
    assert answer.status.state == pb.CONTAINER_RUNNING
    assert answer.status.image.image == "registry.test/app:1"
    assert answer.status.image_ref.startswith("registry.test/app@sha256:")
    assert answer.status.image_id.startswith("sha256:ab")
    assert answer.status.log_path.endswith("app/2.log")
    assert answer.status.mounts[0].host_path == "/var/lib/k/t"
    assert answer.status.stop_signal == pb.SIGNAL_SIGTERM


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({}, 1),
        ({"label_selector": {"app": "web"}}, 1),
        ({"label_selector": {"app": "db"}}, 0),
        ({"id": "nothing"}, 0),
        ({"state": pb.PodSandboxStateValue(state=pb.SANDBOX_READY)}, 1),
        ({"state": pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)}, 0),
    ],
)
async def test_lists_and_streams_of_sandboxes_filter_alike(
    cri: Client, wanted: dict[str, Any], count: int
) -> None:
    await run_pod(cri)
    answer = await cri.call(
        "ListPodSandbox", pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**wanted))
    )
    assert len(answer.items) == count
    parts = await cri.call(
        "StreamPodSandboxes", pb.StreamPodSandboxesRequest(filter=pb.PodSandboxFilter(**wanted))
    )
    assert [each for part in parts for each in part.pod_sandboxes] == list(answer.items)


async def test_lists_of_containers_filter_by_prefix_state_and_sandbox(cri: Client) -> None:
    sandbox_id, container_id = await run_pod(cri)
    for wanted, count in (
        (pb.ContainerFilter(id=container_id[:8], pod_sandbox_id=sandbox_id), 1),
        (pb.ContainerFilter(pod_sandbox_id="other"), 0),
        (pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_EXITED)), 0),
    ):
        answer = await cri.call("ListContainers", pb.ListContainersRequest(filter=wanted))
        assert len(answer.containers) == count
    parts = await cri.call("StreamContainers")
    assert [each.id for part in parts for each in part.containers] == [container_id]


async def test_a_stream_of_many_comes_in_parts(cri: Client) -> None:
    for _ in range(205):
        await cri.engine.run_sandbox(_model(), "")
    parts = await cri.call("StreamPodSandboxes")
    assert [len(part.pod_sandboxes) for part in parts] == [100, 100, 5]


async def test_stats_leave_stopped_containers_out(cri: Client) -> None:
    sandbox_id, container_id = await run_pod(cri)
    pods = await cri.call("ListPodSandboxStats")
    assert pods.stats[0].linux.network.default_interface.name == "eth0"
    assert pods.stats[0].linux.process.process_count.value == 2
    assert pods.stats[0].linux.containers[0].attributes.id == container_id
    assert (await cri.call("StreamContainerStats"))[0].container_stats[0].cpu.timestamp
    await cri.call("StopContainer", pb.StopContainerRequest(container_id=container_id))
    assert not (await cri.call("ListContainerStats")).stats
    one = pb.PodSandboxStatsRequest(pod_sandbox_id=sandbox_id)
    assert not (await cri.call("PodSandboxStats", one)).stats.linux.containers


async def test_exec_sync_answers_the_exit_code(cri: Client) -> None:
    _, container_id = await run_pod(cri)
    answer = await cri.call(
        "ExecSync", pb.ExecSyncRequest(container_id=container_id, cmd=["a", "b"], timeout=1)
    )
    assert (answer.stdout, answer.exit_code) == (b"a b", 3)


async def test_exec_of_a_stopped_container_is_a_failed_precondition(cri: Client) -> None:
    _, container_id = await run_pod(cri)
    await cri.call("StopContainer", pb.StopContainerRequest(container_id=container_id))
    request = pb.ExecRequest(container_id=container_id, cmd=["sh"], stdout=True)
    assert (await failure(cri.call("Exec", request)))[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_exec_answers_a_url_bound_to_what_was_asked(cri: Client) -> None:
    _, container_id = await run_pod(cri)
    request = pb.ExecRequest(container_id=container_id[:12], cmd=["sh"], stdout=True)
    assert (await cri.call("Exec", request)).url.startswith("http://127.0.0.1")
    ticket: Any = cri.urls.tickets[0]
    assert (ticket.container_id, ticket.argv, ticket.stdin) == (container_id, ("sh",), False)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DeniedError("capability SYS_ADMIN\nis refused"), "PERMISSION_DENIED", "SYS_ADMIN is"),
        (HostError("mount failed", errno=1), "UNKNOWN", "mount failed"),
        (RegistryUnavailableError("no answer"), "UNKNOWN", "RegistryUnavailable: no answer"),
        (UnavailableError("x" * 9000), "UNAVAILABLE", "xxx"),
    ],
)
async def test_an_error_of_ours_arrives_as_its_code_and_one_line(
    cri: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, text: str
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cri.engine, "pull_image", fail)
    request = pb.PullImageRequest(image=pb.ImageSpec(image="app:1"))
    found, details = await failure(cri.call("PullImage", request))
    assert found.name == code
    assert text in details


async def test_a_bug_is_internal_logged_once_and_keeps_its_text_to_itself(
    cri: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("password=hunter2")

    monkeypatch.setattr(cri.engine, "status", fail)
    with caplog.at_level(logging.INFO):
        code, details = await failure(cri.call("Status"))
    assert code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in details
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == [
        "call failed unexpectedly"
    ]


async def test_bytes_that_are_no_message_are_the_callers_fault(cri: Client) -> None:
    code, details = await failure(cri.raw("/runtime.v1.RuntimeService/Status", b"\xff\xff\xff"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "Status" in details


async def test_an_unknown_method_is_unimplemented(cri: Client) -> None:
    call = cri.raw("/runtime.v1.RuntimeService/Dance", b"")
    assert (await failure(call))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_cancelled_call_leaves_the_server_answering(
    cri: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = asyncio.Event()

    async def wait(*_: object, **__: object) -> None:
        started.set()
        await asyncio.sleep(30)

    monkeypatch.setattr(cri.engine, "stop_sandbox", wait)
    request = pb.StopPodSandboxRequest(pod_sandbox_id="a")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(cri.call("StopPodSandbox", request))
        await started.wait()
        task.cancel()
    assert (await cri.call("Version")).runtime_name == "noderuntime"


def test_a_stale_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    clear_the_way(path)
    assert not path.exists()


def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(UnavailableError, match="another runtime"):
            clear_the_way(path)


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="not a socket"):
        clear_the_way(path)


def _model() -> SandboxConfig:
    return SandboxConfig(pod=PodIdentity(name="a", namespace="b", uid="c"))


class Collected(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


async def test_a_call_joins_the_callers_trace_and_a_denial_is_its_status(cri: Client) -> None:
    exporter = Collected()
    trace.configure(
        trace.TraceSettings(endpoint="http://127.0.0.1:1", sampling_rate_per_million=0), exporter
    )
    try:
        request = pb.RunPodSandboxRequest(config=sandbox_config(), runtime_handler="forbidden")
        parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        call = cri.raw(
            "/runtime.v1.RuntimeService/RunPodSandbox",
            request.SerializeToString(),
            metadata=(("traceparent", parent),),
        )
        assert (await failure(call))[0] is grpc.StatusCode.PERMISSION_DENIED
    finally:
        await trace.shutdown()
    span = next(each for each in exporter.spans if each.name == "cri.RunPodSandbox")
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == "ab" * 16
    assert span.status.description == "profile web: hostPID is refused"


async def test_a_call_is_counted_by_its_method_and_code(cri: Client) -> None:
    await failure(cri.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id="none")))
    wanted = 'noderuntime_cri_requests_total{code="NOT_FOUND",method="PodSandboxStatus"}'
    await until(lambda: wanted in metrics.render().decode())  # counted once it is answered
