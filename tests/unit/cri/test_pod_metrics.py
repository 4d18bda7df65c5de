"""Metrics as the kubelet's collector takes them: each has a descriptor, and as many labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noderuntime.cri import pod_metrics
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from tests.unit.cri.test_server import run_pod

if TYPE_CHECKING:
    from tests.unit.cri.conftest import Client

# What critest 1.37 wants (pkg/validate/pod.go), without the prefix container_.
WANTED = """
blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total
cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total
cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes
fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total
hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen memory_cache memory_failcnt
memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss
memory_swap memory_usage_bytes memory_working_set_bytes network_receive_bytes_total
network_receive_errors_total network_receive_packets_dropped_total network_receive_packets_total
network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total
network_transmit_packets_total oom_events_total pressure_cpu_stalled_seconds_total
pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total
pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total
pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota
spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes
spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft
""".split()


async def test_every_wanted_metric_is_described_once(cri: Client) -> None:
    answer = await cri.call("ListMetricDescriptors")
    names = [each.name for each in answer.descriptors]
    assert len(names) == len(set(names))
    assert {f"container_{name}" for name in WANTED} <= set(names)
    assert all(each.help and each.label_keys for each in answer.descriptors)


async def test_every_metric_has_a_value_for_each_label_of_its_descriptor(cri: Client) -> None:
    await run_pod(cri)
    keys = {d.name: d.label_keys for d in (await cri.call("ListMetricDescriptors")).descriptors}
    (pod,) = (await cri.call("ListPodSandboxMetrics")).pod_metrics
    (container,) = pod.container_metrics
    for metric in (*pod.metrics, *container.metrics):
        assert len(metric.label_values) == len(keys[metric.name]), metric.name
    assert {m.name for m in (*pod.metrics, *container.metrics)} == set(keys)


async def test_labels_are_those_of_cadvisor(cri: Client) -> None:
    sandbox_id, container_id = await run_pod(cri)
    (pod,) = (await cri.call("ListPodSandboxMetrics")).pod_metrics
    usage = next(
        m for m in pod.container_metrics[0].metrics if m.name == "container_cpu_usage_seconds_total"
    )
    assert dict(zip(pod_metrics.LABELS, usage.label_values, strict=True)) == {
        "container": "app",
        "id": f"/kubepods/pod/{container_id}",
        "image": "app:1",
        "name": container_id,
        "namespace": "default",
        "pod": "web",
    }
    assert (usage.value.value, usage.metric_type, usage.timestamp) == (2, pb.COUNTER, 0)
    received = next(m for m in pod.metrics if m.name == "container_network_receive_bytes_total")
    assert received.label_values == ["", "/kubepods/pod", "", sandbox_id, "default", "web", "eth0"]


async def test_the_stream_has_each_pod_once(cri: Client) -> None:
    sandbox_id, _ = await run_pod(cri)
    answers = await cri.call("StreamPodSandboxMetrics")
    assert [m.pod_sandbox_id for a in answers for m in a.pod_sandbox_metrics] == [sandbox_id]
