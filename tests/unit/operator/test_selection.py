from __future__ import annotations

from typing import Any

import pytest

from noderuntime.api.noderuntime import NodeSelector
from noderuntime.api.selection import matches
from noderuntime_operator.reconcile.plan import holds
from noderuntime_operator.reconcile.selection import affinity_term, shared_labels

LABELS = {"pool": "web", "zone": "a"}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        pytest.param({}, True, id="empty"),
        pytest.param({"matchLabels": {"pool": "web"}}, True, id="label"),
        pytest.param({"matchLabels": {"pool": "db"}}, False, id="other value"),
        pytest.param({"matchLabels": {"gpu": "yes"}}, False, id="absent label"),
        pytest.param({"matchLabels": {"pool": "web", "zone": "b"}}, False, id="one of two"),
        pytest.param(expression("zone", "In", "a", "b"), True, id="in"),
        pytest.param(expression("zone", "In", "b"), False, id="not in the list"),
        pytest.param(expression("gpu", "In", "yes"), False, id="in, absent"),
        pytest.param(expression("zone", "NotIn", "b"), True, id="not in"),
        pytest.param(expression("zone", "NotIn", "a"), False, id="not in, but is"),
        pytest.param(expression("gpu", "NotIn", "yes"), True, id="not in, absent"),
        pytest.param(expression("pool", "Exists"), True, id="exists"),
        pytest.param(expression("gpu", "Exists"), False, id="exists, absent"),
        pytest.param(expression("gpu", "DoesNotExist"), True, id="does not exist"),
        pytest.param(expression("pool", "DoesNotExist"), False, id="does not exist, but does"),
        pytest.param(
            {"matchLabels": {"pool": "web"}} | expression("gpu", "Exists"), False, id="both needed"
        ),
    ],
)
def test_a_node_is_selected_as_kubernetes_would(selector: dict[str, Any], wanted: bool) -> None:
    assert matches(NodeSelector.model_validate(selector), LABELS) is wanted


def test_a_selector_becomes_a_term_of_a_node_affinity() -> None:
    selector = {"matchLabels": {"b": "2", "a": "1"}} | expression("gpu", "Exists")
    assert affinity_term(NodeSelector.model_validate(selector)) == {
        "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["1"]},
            {"key": "b", "operator": "In", "values": ["2"]},
            {"key": "gpu", "operator": "Exists"},
        ]
    }
    assert affinity_term(NodeSelector()) == {}


def test_a_runtimeclass_says_only_what_all_selectors_ask_for() -> None:
    both = [{"matchLabels": {"os": "linux", "pool": "a"}}, {"matchLabels": {"os": "linux"}}]
    selectors = [NodeSelector.model_validate(each) for each in both]
    assert shared_labels(selectors) == {"os": "linux"}


@pytest.mark.parametrize(
    ("live", "wanted", "same"),
    [
        ({"a": 1, "added": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": [{"b": 1, "added": 2}]}, {"a": [{"b": 1}]}, True),
        ({}, {"a": {}}, True),
        ({"a": "x"}, {"a": {"b": 1}}, False),
        ({"a": None}, {"a": [1]}, False),
        ({"a": True}, {"a": True}, True),
    ],
)
def test_what_the_server_added_is_no_difference(live: Any, wanted: Any, same: bool) -> None:
    assert holds(live, wanted) is same
