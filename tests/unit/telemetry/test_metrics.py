from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from noderuntime.telemetry import metrics


def test_an_answered_call_is_counted_by_method_and_code() -> None:
    metrics.observe_rpc("Tested", "OK", 0.002)
    text = metrics.render().decode()
    assert 'noderuntime_cri_requests_total{code="OK",method="Tested"} 1.0' in text
    assert 'noderuntime_cri_request_duration_seconds_count{method="Tested"} 1.0' in text


def test_a_denial_is_counted_by_profile_and_field() -> None:
    for container in ("a", "b"):
        metrics.count_denial("web", f"containers[{container}].securityContext.privileged")
    metrics.count_finding("web", "privileged")
    text = metrics.render().decode()
    assert (
        'noderuntime_policy_denials_total{field="containers[].securityContext.privileged"' in text
    )
    assert 'noderuntime_policy_findings_total{field="privileged",profile="web"} 1.0' in text


def test_a_pull_is_counted_by_outcome() -> None:
    metrics.observe_pull("RegistryUnavailable", 1)
    assert 'image_pulls_total{outcome="RegistryUnavailable"} 1.0' in metrics.render().decode()


def test_the_build_is_told() -> None:
    assert 'noderuntime_build_info{version="' in metrics.render().decode()


def test_the_node_is_read_at_each_scrape_and_not_before() -> None:
    readings = [metrics.NodeReading(sandboxes={"SANDBOX_READY": 2}, revision="sha256:1")]
    registry = CollectorRegistry(auto_describe=True)
    registry.register(metrics.NodeCollector(lambda: readings.pop()))
    assert len(readings) == 1
    text = generate_latest(registry).decode()
    assert 'noderuntime_sandboxes{state="SANDBOX_READY"} 2.0' in text
    assert 'noderuntime_revision_info{digest="sha256:1"} 1.0' in text
