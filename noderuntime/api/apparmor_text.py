"""The text of a declared AppArmor profile: one profile, and nothing that reaches beyond it.

What is refused, and why:

- an attachment (a path behind the name): it would confine the node's own programs of that path;
- a second profile, a hat or a child: it could replace one that the node has;
- includes, but for the system's ``<tunables/...>`` and ``<abstractions/...>``: the rest of the
  profile would not be what was declared;
- flags that weaken it (``complain``, ``unconfined``): that is what the mode Audit is for;
- a deny of signals from outside: nobody could stop the container.

It is read word by word, not parsed: what is not surely harmless is refused, and apparmor_parser(8) is
asked once more what the text defines before it is loaded. apparmor.d(5).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

LONGEST: Final = 32768
FLAGS: Final = ("attach_disconnected", "audit", "mediate_deleted")
PREFIX: Final = "noderuntime-"

_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_TOKEN: Final = re.compile(rf'\s+|#.*|(?:[^\s"]|{_QUOTED.pattern})+')
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_HEADER: Final = re.compile(r"profile (\S+?)(?: (?:flags ?= ?)?\(([^()]*)\))?")
_PREAMBLE: Final = re.compile(
    r"abi\s+<abi/[\w.-]+>,|#?include\s+<tunables/[\w.-]+>|@\{\w+\}\s*\+?=\s*[^\s].*"
)
_INCLUDE: Final = re.compile(r"#?include\s+<abstractions/[\w.-]+(?:/[\w.-]+)*>,?")
_INCLUDES: Final = re.compile(r"#?include\b")
_WORDS: Final = frozenset({"profile", "hat", "if", "else", "abi"})
_HAT: Final = re.compile(r"(?:^|,)\^")
_SIGNAL: Final = re.compile(r"\bdeny\s+signal\b\s*(\([^)]*\)|\w*)")
_PERMISSIONS: Final = re.compile(r"([rwaklmx]+)(,?)")  # of a rule about files
_RECEIVES: Final = re.compile(r"\b(receive|read|r|rw)\b")
# Who starts and stops a container: the node's own programs, which a distribution may have confined.
_OUTSIDE: Final = ("unconfined", "crun", "runc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileText:
    """A profile that was read: what is before it, its flags, its rules."""

    name: str
    preamble: str
    flags: tuple[str, ...]
    body: str


@dataclass(slots=True)
class _Reader:
    """The state of the reading; ``depth`` 1 is inside the profile."""

    preamble: list[str]
    header: list[str]
    body: list[str]
    depth: int = 0


def read(source: str) -> ProfileText:
    """Read the text of a SecurityProfile. Raises ValueError that names the line."""
    if len(source) > LONGEST:
        raise ValueError(f"is longer than {LONGEST} characters")
    reader = _Reader([], [], [])
    for number, line in enumerate(source.splitlines(), 1):
        try:
            _read_line(reader, line.strip())
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    if reader.depth == 0:
        raise ValueError("holds no profile: it must be `profile NAME {`, rules, and `}`")
    if reader.depth == 1:
        raise ValueError("does not end: a line with `}` alone is missing")
    name, flags = _header(" ".join(reader.header))
    body = "\n".join(reader.body)
    for access in _SIGNAL.findall(body):
        if not access or _RECEIVES.search(access):
            raise ValueError("deny signal: nobody could stop the container; deny sending alone")
    return ProfileText(name=name, preamble="\n".join(reader.preamble), flags=flags, body=body)


def compile_text(text: ProfileText, profile: str, *, complain: bool) -> tuple[str, str]:
    """Return the name in the kernel and the source for apparmor_parser(8).

    The name holds twelve digits of the content, so another text is another profile in the kernel,
    and a container keeps the one that it was started under. ``complain`` makes the kernel log what
    the rules would deny, and allow it.
    """
    if complain:
        text = replace(text, flags=(*text.flags, "complain"), body=_without_denies(text.body))
    plain = _source(text, text.name, text.name)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    name = f"{PREFIX}{profile}-{digest}"
    return name, _source(text, text.name, name)


def _without_denies(body: str) -> str:
    """Turn each deny into audit, which allows and logs: complain mode leaves a deny in force.

    There is no audit of executing alone, so a rule's x goes, and is r where nothing else is left:
    in complain mode what no rule mentions is allowed and logged.
    """
    lines: list[str] = []
    denies = False
    for line in body.splitlines():
        words: list[str] = []
        for word in line.split(" "):
            if word == "deny":
                denies = True
                words += [] if words and words[-1] == "audit" else ["audit"]
                continue
            permissions = _PERMISSIONS.fullmatch(word) if denies else None
            if permissions is not None:
                word = (permissions[1].replace("x", "") or "r") + permissions[2]
            denies = denies and not word.endswith(",")
            words.append(word)
        lines.append(" ".join(words))
    return "\n".join(lines)


def _source(text: ProfileText, old: str, new: str) -> str:
    own = re.compile(rf'\b(peer\s*=\s*"?){re.escape(old)}(?=["\s,)])')
    body = own.sub(lambda found: found[1] + new, text.body)
    flags = f" flags=({', '.join(text.flags)})" if text.flags else ""
    outside = [f"  signal (receive) peer={peer}," for peer in _OUTSIDE]
    lines = [text.preamble, f"profile {new}{flags} {{", body, *outside, "}"]
    return "\n".join(line for line in lines if line) + "\n"


def _read_line(reader: _Reader, line: str) -> None:
    if _INCLUDES.match(line):
        _include(reader, line)
        return
    words = list(_words(line))
    if not words:
        return
    if reader.depth == 0 and not reader.header and words[0] != "profile":
        if not _PREAMBLE.fullmatch(" ".join(words)):
            raise ValueError(
                "before the profile there may be abi <abi/...>, include <tunables/...> and "
                "variables alone"
            )
        reader.preamble.append(" ".join(words))
        return
    kept: list[str] = []
    for word in words:
        _read_word(reader, word, kept)
    if kept:
        reader.body.append("  " + " ".join(kept))


def _read_word(reader: _Reader, word: str, kept: list[str]) -> None:
    if reader.depth > 1:
        raise ValueError("something follows the profile: there may be one alone")
    if reader.depth == 0:
        if word == "{":
            reader.depth = 1
        else:
            reader.header.append(word)
        return
    if word == "}":
        reader.depth = 2
        return
    _require_plain(word)
    kept.append(word)


def _include(reader: _Reader, line: str) -> None:
    wanted = _PREAMBLE if reader.depth == 0 else _INCLUDE
    inside = not reader.header or reader.depth == 1
    if not inside or reader.depth > 1 or not wanted.fullmatch(line) or ".." in line:
        raise ValueError(
            "an include must be alone on its line and of the system's own: <tunables/...> before "
            "the profile, <abstractions/...> in it"
        )
    (reader.body if reader.depth else reader.preamble).append(f"  {line}" if reader.depth else line)


def _words(line: str) -> Iterator[str]:
    """Yield the words without comments; what is quoted does not end a word."""
    at = 0
    while at < len(line):
        found = _TOKEN.match(line, at)
        if found is None:
            raise ValueError("a quote is not closed")
        word, at = found[0], found.end()
        if word.isspace() or word.startswith("#"):
            continue
        yield word


def _require_plain(word: str) -> None:
    """Refuse what could open a block of its own, or is read in another way by the parser."""
    word = _QUOTED.sub("", word)
    if "#" in word:
        raise ValueError("a # inside a word: put quotes around the path")
    if re.search(r"\\[{}]", word):
        raise ValueError("an escaped brace: put quotes around the path")
    pieces = word.split(",")
    if _HAT.search(word) or not _WORDS.isdisjoint(pieces) or _INCLUDES.match(word):
        raise ValueError(
            f"{word[:40]}: there may be no other profile, hat, condition or include in it"
        )
    depth = 0
    for character in word:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            break
    if depth != 0:
        raise ValueError(
            f"{word[:40]}: there may be no block in the profile; its last brace is a word alone"
        )


def _header(header: str) -> tuple[str, tuple[str, ...]]:
    found = _HEADER.fullmatch(header)
    if found is None or not _NAME.fullmatch(found[1]):
        raise ValueError(
            f"`{header[:80]}`: must be `profile NAME {{` or `profile NAME flags=(...) {{`, with a "
            "name of letters, digits, . _ - and no path"
        )
    flags = tuple(sorted(set(re.split(r"[\s,]+", (found[2] or "").strip())) - {""}))
    for flag in flags:
        if flag not in FLAGS:
            raise ValueError(f"flag {flag[:40]}: must be one of {', '.join(FLAGS)}")
    return found[1], flags
