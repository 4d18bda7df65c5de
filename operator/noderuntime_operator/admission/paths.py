"""Rules about paths of the node, as they are written in the Pod.

A hostPath that is refused as written is refused by every node: a link cannot make it better, as the node
judges both names. A subPath is bound by the kubelet to a folder of its own, and a claim may be a hostPath
or not: these are left to the node.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from noderuntime.policy.denial import listed
from noderuntime.policy.rules import HandlerRules
from noderuntime_operator.admission.cel import cut, texts
from noderuntime_operator.admission.rule import Rule

_WORDS: Final = ("HostToContainer", "Bidirectional")
_COVERS: Final = '(r == v.path || r == "/" || v.path.startsWith(r + "/"))'


def rules(own: HandlerRules) -> Iterator[Rule]:
    """Yield them in the order of the node's checks."""
    every = tuple(dict.fromkeys(rule.path for rule in own.host_paths))
    writable = tuple(dict.fromkeys(rule.path for rule in own.host_paths if not rule.readonly))
    yield Rule(
        name="hostPathsAllowed",
        section="hostPaths",
        field="volumeMounts",
        offences=_mounting(
            f"!{_any(every)}",
            '"hostPath " + string(v.path)',
            "string(v.path)",
            field="string(m.field)",
            where="true",
        ),
        says=(f"hostPaths has {listed(tuple(rule.path for rule in own.host_paths))}",),
        remedy=("use another kind of volume, or add ", 2, " to hostPaths"),
    )
    if set(every) - set(writable):
        yield Rule(
            name="hostPathsReadOnly",
            section="hostPaths",
            field="volumeMounts.readOnly",
            offences=_mounting(
                f"{_any(every)} && !{_any(writable)}",
                '"false for " + string(v.path)',
                _above(every),
                field='string(m.field) + ".readOnly"',
                where="!m.readOnly",
            ),
            says=("hostPaths has ", 2, " with readOnly: true"),
            remedy=("set readOnly: true on the volumeMount",),
        )
    for word, other in (_WORDS, _WORDS[::-1]):
        yield from _propagation(own, every, word, other)
    if not own.privileged:
        yield _contained()


def _propagation(
    own: HandlerRules, every: tuple[str, ...], word: str, other: str
) -> Iterator[Rule]:
    may = tuple(dict.fromkeys(rule.path for rule in own.host_paths if word in rule.propagation))
    if not set(every) - set(may):
        return
    may_other = tuple(rule.path for rule in own.host_paths if other in rule.propagation)
    instead = f'({_any(may_other)} ? "{other}" : "None")'
    yield Rule(
        name=f"propagation{word}",
        section="hostPaths",
        field="volumeMounts.mountPropagation",
        offences=_mounting(
            f"{_any(every)} && !{_any(may)}",
            f'"{word} for " + string(v.path)',
            _above(every),
            instead,
            field='string(m.field) + ".mountPropagation"',
            where=f'm.propagation == "{word}"',
        ),
        says=("hostPaths has ", 2, " with propagation: ", 3),
        remedy=("use ", 3, f", or add {word} to its propagation"),
    )


def _contained() -> Rule:
    """Bidirectional for what is surely the kubelet's: mounts made inside would appear on the node."""
    own = (
        "(m.volume in variables.ownVolumes || "
        "!m.isDirect && variables.hostPaths.exists(v, v.name == m.volume))"
    )
    return Rule(
        name="propagationContained",
        section="hostPaths",
        field="volumeMounts.mountPropagation",
        offences=(
            f'variables.mounts.map(l, l.filter(m, m.propagation == "Bidirectional" && {own})'
            '.map(m, [string(m.field) + ".mountPropagation", "Bidirectional"]))'
        ),
        says=("privileged is Deny",),
        remedy=("use HostToContainer or None",),
    )


def _any(paths: tuple[str, ...]) -> str:
    return f"{texts(paths)}.exists(r, {_COVERS})" if paths else "false"


def _above(paths: tuple[str, ...]) -> str:
    """Return the first of the paths that the volume is in, as the node's sentence has it."""
    return f"{texts(paths)}.filter(r, {_COVERS})[0]"


def _mounting(volumes: str, value: str, *parts: str, field: str, where: str) -> str:
    """Return the offences of mounts ``m``, ``where`` it holds, of those hostPaths ``v`` that ``volumes`` says.

    The volumes are looked through once, and not again for every mount.
    """
    found = f"variables.hostPaths.filter(v, {volumes}).map(v, [string(v.name), {', '.join([value, *parts])}])"
    shown = ", ".join(cut(f"w[{number}]") for number in range(1, 2 + len(parts)))
    return (
        f"[{found}].map(ws, variables.mounts.map(l, l.filter(m, m.isDirect && {where} && "
        "ws.exists(w, w[0] == m.volume)).map(m, ws.filter(w, w[0] == m.volume)"
        f".map(w, [{field}, {shown}])[0])))[0]"
    )
