"""Checks of single values that come from the caller: texts, paths, numbers.

Each raises InvalidArgumentError that names the field as CRI spells it; a value is quoted
shortened, and never where it may be a secret. What passes holds no NUL, so that it cannot end
early in a system call, and no control character where it may reach a log, a file of lines or a
name on disk.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from noderuntime.errors import InvalidArgumentError

MAX_NAME: Final = 253  # a Kubernetes name
MAX_PATH: Final = 4095  # PATH_MAX without its NUL, limits.h
MAX_ARGUMENT: Final = 131071  # MAX_ARG_STRLEN without its NUL, execve(2)
MAX_ARGUMENTS: Final = 2 << 20  # what execve(2) takes in all with an 8 MiB stack
MAX_LABELS: Final = 1 << 20  # of all keys and values of one map; the kubelet allows 256 KiB a Pod
MAX_ITEMS: Final = 4096

T = TypeVar("T")

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TOKEN: Final = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]+")


def fault(field: str, value: object, why: str) -> InvalidArgumentError:
    """Return the error that names the field, quotes the value (shortened) and says why."""
    quoted = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return InvalidArgumentError(f"{field}: {quoted} {why}")


def text(field: str, value: str, limit: int) -> str:
    """Return ``value`` if it has at most ``limit`` bytes and no NUL."""
    if "\0" in value:
        raise InvalidArgumentError(f"{field}: holds a NUL character")
    if len(value) > limit or len(value.encode()) > limit:
        raise InvalidArgumentError(f"{field}: is longer than {limit} bytes")
    return value


def line(field: str, value: str, limit: int = MAX_NAME) -> str:
    """Return ``value`` if it is a text without control characters."""
    if _CONTROL.search(text(field, value, limit)):
        raise fault(field, value, "holds a control character")
    return value


def name(field: str, value: str, limit: int = MAX_NAME) -> str:
    """Return ``value`` if it may be one component of a path: not empty, no slash, not a dot."""
    if not value:
        raise InvalidArgumentError(f"{field}: is required")
    if "/" in line(field, value, limit) or value in {".", ".."}:
        raise fault(field, value, "must be one component of a path")
    return value


def token(field: str, value: str, limit: int = MAX_NAME) -> str:
    """Return ``value`` if it is one word: not empty, no white space."""
    if not _TOKEN.fullmatch(text(field, value, limit)):
        raise fault(field, value, "must be one word without white space")
    return value


def tokens(field: str, values: Iterable[str]) -> tuple[str, ...]:
    """Return ``values`` if each is one word."""
    return tuple(token(f"{field}[{i}]", v) for i, v in enumerate(bounded(field, values)))


def absolute_path(field: str, value: str) -> str:
    """Return ``value`` if it is an absolute path that does not climb."""
    if not line(field, value, MAX_PATH).startswith("/"):
        raise fault(field, value, "must be an absolute path")
    if ".." in value.split("/"):
        raise fault(field, value, "must not hold ..")
    return value


def relative_path(field: str, value: str) -> str:
    """Return ``value`` if it is a path that stays below the folder it is joined to."""
    if line(field, value, MAX_PATH).startswith("/"):
        raise fault(field, value, "must be a relative path")
    if ".." in value.split("/"):
        raise fault(field, value, "must not hold ..")
    return value


def arguments(field: str, values: Iterable[str]) -> tuple[str, ...]:
    """Return ``values`` if execve(2) can take them."""
    found = tuple(
        text(f"{field}[{i}]", v, MAX_ARGUMENT) for i, v in enumerate(bounded(field, values))
    )
    if sum(len(value.encode()) + 1 for value in found) > MAX_ARGUMENTS:
        raise InvalidArgumentError(f"{field}: is longer than {MAX_ARGUMENTS} bytes in all")
    return found


def mapping(field: str, values: Mapping[str, str], limit: int = MAX_LABELS) -> dict[str, str]:
    """Return labels or annotations: keys are words, values any text."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in values.items())
    if size > limit:
        raise InvalidArgumentError(f"{field}: is larger than {limit} bytes in all")
    return {
        token(f"{field} key", key, 512): text(f"{field}[{key}]", value, limit)
        for key, value in values.items()
    }


def networks(field: str, value: str) -> str:
    """Return ``value`` if it is empty or a comma-separated list of networks (CIDR)."""
    for each in line(field, value).split(",") if value else ():
        try:
            ipaddress.ip_network(each.strip(), strict=False)
        except ValueError as error:
            raise fault(field, each, "is not a network such as 10.244.0.0/24") from error
    return value


def number(field: str, value: int, low: int, high: int) -> int:
    """Return ``value`` if it is between ``low`` and ``high``, both included."""
    if not low <= value <= high:
        raise InvalidArgumentError(f"{field}: {value} is not between {low} and {high}")
    return value


def bounded(field: str, values: Iterable[T]) -> tuple[T, ...]:
    """Return ``values`` as a tuple of at most ``MAX_ITEMS``."""
    found = tuple(values)
    if len(found) > MAX_ITEMS:
        raise InvalidArgumentError(f"{field}: has more than {MAX_ITEMS} items")
    return found
