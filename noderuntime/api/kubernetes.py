"""What a CRD's schema knows beyond JSON Schema: CEL rules and list types, written at the field.

Both are ``json_schema_extra`` of pydantic; ``api/crd.py`` carries them into the CRDs.
Source: Kubernetes, "Extend the Kubernetes API with CustomResourceDefinitions" (validation rules,
structural schemas, merge strategies of server-side apply).
"""

from __future__ import annotations

from typing import Any

Extra = dict[str, Any]  # pydantic's own JsonDict; Any because a schema is free-form JSON

RULES = "x-kubernetes-validations"
LIST_TYPE = "x-kubernetes-list-type"
LIST_MAP_KEYS = "x-kubernetes-list-map-keys"
INT_OR_STRING = "x-kubernetes-int-or-string"
MAP_TYPE = "x-kubernetes-map-type"
FAILURE = "x-failure"  # for docs/resources alone: no part of a CRD


def rules(*pairs: tuple[str, str]) -> Extra:
    """CEL rules as (rule, message); the message is what the user reads."""
    return {RULES: [{"rule": rule, "message": message} for rule, message in pairs]}


def a_set(*pairs: tuple[str, str]) -> Extra:
    """A list without duplicates; server-side apply tracks the owner of each item."""
    return {LIST_TYPE: "set"} | (rules(*pairs) if pairs else {})


def atomic(*pairs: tuple[str, str]) -> Extra:
    """A list with one owner, replaced whole."""
    return {LIST_TYPE: "atomic"} | (rules(*pairs) if pairs else {})


def keyed(*keys: str) -> Extra:
    """A list of objects that these fields tell apart."""
    return {LIST_TYPE: "map", LIST_MAP_KEYS: list(keys)}


def failure(sentence: str) -> Extra:
    """What happens to a Pod that breaks the field, for its page in docs/resources."""
    return {FAILURE: sentence}
