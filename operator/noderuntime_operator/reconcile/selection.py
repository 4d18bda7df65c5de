"""Label selectors over nodes: whom they match, and the same as a Pod's node affinity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from noderuntime.api.noderuntime import NodeSelector, SelectorRequirement


def matches(selector: NodeSelector, labels: Mapping[str, str]) -> bool:
    """Tell whether a node with these labels is selected; as metav1.LabelSelector has it."""
    exact = all(labels.get(key) == value for key, value in selector.match_labels.items())
    return exact and all(_meets(each, labels) for each in selector.match_expressions)


def _meets(requirement: SelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            assert_never(requirement.operator)


def affinity_term(selector: NodeSelector) -> dict[str, Any]:
    """Return the node selector term that matches the same nodes; empty where every node is selected."""
    expressions: list[dict[str, Any]] = [
        {"key": key, "operator": "In", "values": [value]}
        for key, value in sorted(selector.match_labels.items())
    ]
    for each in selector.match_expressions:
        values = {"values": sorted(each.values)} if each.values else {}
        expressions.append({"key": each.key, "operator": each.operator, **values})
    return {"matchExpressions": expressions} if expressions else {}


def shared_labels(selectors: list[NodeSelector]) -> dict[str, str]:
    """Return the labels that every one of the selectors asks for: all that a RuntimeClass can say of them."""
    first, *others = selectors
    return {
        key: value
        for key, value in sorted(first.match_labels.items())
        if all(other.match_labels.get(key) == value for other in others)
    }
