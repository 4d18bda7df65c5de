"""How two documents differ: which fields, and in short from what to what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from noderuntime.policy.denial import printable

LONGEST: Final = 160
_SHOWN: Final = 6  # entries of a list
_NOTHING: Final[tuple[object, ...]] = (None, "", [], (), {})  # left out and empty are the same
# What tells an entry of a list from the others, in config.json and in our resources.
_LABELS: Final = ("destination", "path", "name", "names", "type", "namespace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A field, and in one line each what it was and will be; of a list what goes and what comes."""

    field: str
    before: str
    after: str
    container: str = ""  # "" is the Pod's, or an object's

    def sentence(self) -> str:
        """Return ``field: before -> after``; of a list ``field: -a +b``."""
        where = f"{self.container}: " if self.container else ""
        if self.before.startswith("-") or self.after.startswith(("+", "~")):
            return f"{where}{self.field}: {' '.join(filter(None, (self.before, self.after)))}"
        return f"{where}{self.field}: {self.before or 'nothing'} -> {self.after or 'nothing'}"


def changes(
    before: object, after: object, container: str = "", field: str = ""
) -> Iterator[Change]:
    """Yield what differs between two values of JSON, field by field; nothing where they are equal."""
    if before == after:
        return
    old, new = _mapping(before, after), _mapping(after, before)
    if old is not None and new is not None:
        for key in dict.fromkeys((*old, *new)):
            inner = f"{field}.{key}" if field else str(key)
            yield from changes(old.get(key), new.get(key), container, inner)
        return
    if before in _NOTHING and after in _NOTHING:
        return
    were, are = _list(before), _list(after)
    if were is not None and are is not None:
        gone, come = _apart(were, are)
    else:
        gone, come = _text(before), _text(after)
    yield Change(field=field, before=gone, after=come, container=container)


def _mapping(value: object, beside: object = None) -> Mapping[str, Any] | None:
    """Return an object, and nothing beside one as an empty one; None for what is none."""
    if value is None and isinstance(beside, dict):
        return {}
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else None


def _list(value: object) -> Sequence[Any] | None:
    """Return a list, and nothing as an empty one; None for what is none."""
    if value is None:
        return ()
    return cast("Sequence[Any]", value) if isinstance(value, list | tuple) else None


def _apart(before: Sequence[Any], after: Sequence[Any]) -> tuple[str, str]:
    """Return ``-gone`` and ``+come``; ``~name`` is an entry that stays and is another inside."""
    old, new = Counter(map(_json, before)), Counter(map(_json, after))
    gone = [_label(json.loads(each)) for each in (old - new).elements()]
    come = [_label(json.loads(each)) for each in (new - old).elements()]
    if not gone and not come:
        return "", "~order"
    both = list(dict.fromkeys(each for each in come if each in gone))
    went = _listed("-", [each for each in gone if each not in both])
    came = (_listed("+", [each for each in come if each not in both]), _listed("~", both))
    return went, " ".join(filter(None, came))


def _listed(sign: str, labels: Sequence[str]) -> str:
    shown = [sign + each for each in labels[:_SHOWN]]
    more = len(labels) - _SHOWN
    return " ".join(shown) + (f" {sign}({more} more)" if more > 0 else "")


def _label(entry: object) -> str:
    body = _mapping(entry)
    if body is None:
        return _text(entry, 60)
    name: object = next((body[key] for key in _LABELS if key in body), body)
    names = _list(name)
    return _text(",".join(map(str, names)) if names else name, 60)


def _text(value: object, longest: int = LONGEST) -> str:
    if value is None:
        return ""
    return printable(value if isinstance(value, str) else _json(value), longest)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
