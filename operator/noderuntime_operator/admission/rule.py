"""One rule of a profile as admission can judge it, and the variables that rules share.

What always holds: a rule finds an offence only where every node that serves the profile would refuse the
Pod, so in doubt it finds none. What is only set by a profile (the filter, noNewPrivileges, a read-only
root) is refused by no node, and what only a node knows (users of images, links, devices of plugins, the
size of a volume) is left to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from noderuntime.api.securityprofile import SERVICE_ACCOUNT, Section
from noderuntime_operator.admission.cel import Sentence, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``offences`` is CEL: a list (one item a container) of lists of offences.

    An offence is a list of text: field, value, and whatever ``says`` and ``remedy`` count in it.
    ``section`` None is of no section: it holds in every mode.
    """

    name: str  # of the variable that holds the offences
    section: Section | None
    field: str  # for the message without particulars
    offences: str
    says: Sentence
    remedy: Sentence


CREATED: Final = 'request.operation == "CREATE"'
ACCOUNT: Final = f'object.metadata.?annotations[?{text(SERVICE_ACCOUNT)}].orValue("")'


def pod(condition: str, field: str, value: str) -> str:
    """Return the offences of a Pod as a whole, which is judged when it is created."""
    return f"{CREATED} && {condition} ? [[[{text(field)}, {value}]]] : []"


def per_container(condition: str, field: str, *parts: str, of: str = "made") -> str:
    """Return the offences of containers ``c`` with at most one each; ``parts`` are CEL."""
    offence = f"[{of_container(field)}, {', '.join(parts)}]"
    return f"variables.{of}.map(c, {condition} ? [{offence}] : [])"


def of_container(field: str) -> str:
    """Return the path of a container's field as the node writes it."""
    return f'"containers[" + string(c.name) + "].{field}"'


def _containers(of: str) -> str:
    rest = " + ".join(
        f"dyn({of}.spec.?{field}.orValue([]))"
        for field in ("initContainers", "ephemeralContainers")
    )
    return f"dyn({of}.spec.containers) + {rest}"


def _path(raw: str) -> str:
    """Return a path without double slashes, dots and a slash at its end."""
    return f'"/" + {raw}.split("/").filter(x, x != "" && x != ".").join("/")'


_HAS_SLASH: Final = 'i[1].contains("/")'
_FIRST: Final = 'i[1].split("/")[0]'
_IS_HOST: Final = (
    f'{_HAS_SLASH} && ({_FIRST}.contains(".") || {_FIRST}.contains(":") || {_FIRST} == "localhost" '
    f"|| {_FIRST} != {_FIRST}.lowerAscii())"
)
# As policy/registries.py reads a reference.
_SPLIT: Final = (
    f"{_IS_HOST} ? [i[0], i[1], string({_FIRST}.lowerAscii()), string(i[1].substring({_FIRST}.size() + 1))] "
    ': [i[0], i[1], "docker.io", i[1]]'
)
_DOCKER: Final = 'i[2] in ["docker.io", "index.docker.io"]'
_FULL: Final = f'({_DOCKER} ? "docker.io/" : i[2] + "/") + ({_DOCKER} && !i[3].contains("/") ? "library/" : "") + i[3]'
_VOLUMES: Final = "object.spec.?volumes.orValue([])"

VARIABLES: Final[dict[str, str]] = {
    "all": _containers("object"),
    "old": f"oldObject == null ? dyn([]) : {_containers('oldObject')}",
    # Those that a node is to make: of a Pod that is there, new ephemeral ones and those of another image.
    "made": (
        f'{CREATED} ? variables.all : request.?subResource.orValue("") == "resize" ? dyn([]) : variables.all.filter(c, '
        "!variables.old.exists(o, o.name == c.name && o.image == c.image))"
    ),
    # Those whose limits a node is to set.
    "sized": (
        'request.?subResource.orValue("") == "resize" ? variables.all.filter(c, '
        "!variables.old.exists(o, o.name == c.name && o.?resources.orValue({}) == "
        "c.?resources.orValue({}))) : variables.made"
    ),
    # hostPaths with a path that can be told without the node.
    "hostPaths": (
        f'{_VOLUMES}.filter(v, has(v.hostPath) && v.hostPath.path.startsWith("/") && '
        '!(".." in v.hostPath.path.split("/"))).map(v, {"name": string(v.name), "path": '
        f"{_path('v.hostPath.path')}}})"
    ),
    # Volumes that are surely the kubelet's own folders, unlike claims, which may be anything.
    "ownVolumes": (
        f"{_VOLUMES}.filter(v, has(v.emptyDir) || has(v.configMap) || has(v.secret) || has(v.projected) "
        "|| has(v.downwardAPI) || has(v.image)).map(v, v.name)"
    ),
    "imageVolumes": f"{_VOLUMES}.filter(v, has(v.image) && has(v.image.reference))",
    # Each container's images: [container, reference].
    "images": (
        "variables.made.map(c, [[string(c.name), string(c.image)]] + c.?volumeMounts.orValue([]).filter(m, "
        "variables.imageVolumes.exists(v, v.name == m.name)).map(m, [string(c.name), "
        "string(variables.imageVolumes.filter(v, v.name == m.name)[0].image.reference)]))"
    ),
    # [container, reference, registry, the rest], then [container, reference, registry/repository:tag].
    "references": (
        f'variables.images.map(l, l.filter(i, i[1].matches("^[!-~]+$")).map(i, {_SPLIT}))'
    ),
    "repositories": f"variables.references.map(l, l.map(i, [i[0], i[1], string({_FULL})]))",
    "mounts": (
        "variables.made.map(c, c.?volumeMounts.orValue([]).map(m, {"
        '"field": dyn("containers[" + string(c.name) + "].volumeMounts[" + string(m.mountPath) + "]"), '
        f'"path": dyn({_path("m.mountPath")}), "isClean": dyn(!(".." in m.mountPath.split("/"))), '
        '"volume": dyn(m.name), "readOnly": dyn(m.?readOnly.orValue(false)), '
        '"isDirect": dyn(m.?subPath.orValue("") == "" && m.?subPathExpr.orValue("") == ""), '
        '"propagation": dyn(m.?mountPropagation.orValue("None")), '
        '"privileged": dyn(c.?securityContext.?privileged.orValue(false))}))'
    ),
}
