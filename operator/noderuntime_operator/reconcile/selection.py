"""Label selectors over nodes, as a Pod's node affinity and as a RuntimeClass has them."""

from __future__ import annotations

from typing import Any

from noderuntime.api.noderuntime import NodeSelector


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
