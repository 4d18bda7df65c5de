"""Whom a label selector over nodes matches. Source: metav1.LabelSelector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

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
