"""A container's variables, and the references in its words, as the kubelet makes them.

Source: kubelet ``pkg/kubelet/kubelet_pods.go`` (makeEnvironmentVariables), ``third_party/forked/
golang/expansion``, ``pkg/fieldpath``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from noderuntime.api import quantity
from noderuntime.cli.manifest.model import Container
from noderuntime.cli.manifest.workloads import parsed
from noderuntime.cli.running.here import Here
from noderuntime.cli.running.sources import EnvFrom, FieldRef, KeyRef, Kind, ResourceRef, ValueFrom
from noderuntime.errors import ConfigError

_REFERENCE: Final = re.compile(r"\$(?:(\$)|\(([^()]*)\))")
_KEYED: Final = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")


def of(here: Here, container: Container, ip: str, where: str) -> dict[str, bytes]:
    """Return the variables in their order; ``ip`` is the Pod's. Raises ConfigError."""
    found: dict[str, bytes] = {}
    for index, raw in enumerate(container.env_from):
        found |= _all_of(here, raw, f"{where}.envFrom[{index}]")
    for index, each in enumerate(container.env):
        if each.value_from is None:
            found[each.name] = expanded(each.value, found).encode()
            continue
        field = f"{where}.env[{index}].valueFrom"
        value = _value(here, container, parsed(ValueFrom, each.value_from, field, ""), ip, field)
        if value is not None:
            found[each.name] = value
    return found


def expanded(text: str, variables: Mapping[str, bytes]) -> str:
    """Replace ``$(NAME)`` by its value; ``$$`` is one dollar, an unknown name stays as it is."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        known = variables.get(match[2])
        return match[0] if known is None else known.decode(errors="replace")

    return _REFERENCE.sub(value, text)


def field_value(here: Here, ref: FieldRef, ip: str, where: str) -> str:
    """Return a field of the Pod. Raises ConfigError for one that is not known here."""
    pod, path = here.workload.pod, ref.field_path
    keyed = _KEYED.match(path)
    if keyed is not None:
        known = pod.metadata.labels if keyed[1] == "labels" else pod.metadata.annotations
        return known.get(keyed[2], "")
    own = pod.spec.host_network
    known = {
        "metadata.name": here.workload.name,
        "metadata.namespace": here.workload.namespace,
        "metadata.uid": here.uid,
        "metadata.labels": _listed(pod.metadata.labels),
        "metadata.annotations": _listed(pod.metadata.annotations),
        "spec.nodeName": os.uname().nodename,
        "spec.serviceAccountName": pod.spec.service_account_name or "default",
        "status.hostIP": "127.0.0.1" if own else here.gateway,
        "status.hostIPs": "127.0.0.1" if own else here.gateway,
        "status.podIP": ip or "127.0.0.1",
        "status.podIPs": ip or "127.0.0.1",
    }
    if path not in known:
        raise ConfigError(f"{where}.fieldPath: {path} is not known without a cluster")
    return known[path]


def resource_value(container: Container, ref: ResourceRef, where: str) -> str:
    """Return a limit or a request of the container, in units of the divisor, rounded up."""
    group, _, name = ref.resource.partition(".")
    amounts = {"limits": container.resources.limits, "requests": container.resources.requests}
    given = amounts.get(group, {}).get(name)
    if given is None:
        raise ConfigError(f"{where}.resource: the container has no {ref.resource}")
    try:
        divisor = quantity.parse(ref.divisor) if ref.divisor not in ("0", "") else 1
        return str(-(-quantity.parse(given) // divisor))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _listed(values: Mapping[str, str]) -> str:
    return "\n".join(f'{key}="{value}"' for key, value in sorted(values.items()))


def _all_of(here: Here, raw: Mapping[str, object], where: str) -> dict[str, bytes]:
    source = parsed(EnvFrom, raw, where, "")
    found: dict[str, bytes] = {}
    kinds: tuple[Kind, ...] = ("ConfigMap", "Secret")
    for kind, ref in zip(kinds, (source.config_map_ref, source.secret_ref), strict=True):
        if ref is not None:
            data = here.sources.data(
                kind, here.workload.namespace, ref.name, where, optional=ref.optional
            )
            found |= {f"{source.prefix}{key}": value for key, value in data.items()}
    return found


def _value(
    here: Here, container: Container, source: ValueFrom, ip: str, where: str
) -> bytes | None:
    """Return the value; None is no variable at all (an optional key that is not there)."""
    if source.field_ref is not None:
        return field_value(here, source.field_ref, ip, f"{where}.fieldRef").encode()
    if source.resource_field_ref is not None:
        return resource_value(
            container, source.resource_field_ref, f"{where}.resourceFieldRef"
        ).encode()
    if source.config_map_key_ref is not None:
        return _key(here, "ConfigMap", source.config_map_key_ref, f"{where}.configMapKeyRef")
    if source.secret_key_ref is not None:
        return _key(here, "Secret", source.secret_key_ref, f"{where}.secretKeyRef")
    raise ConfigError(f"{where}: names no source")


def _key(here: Here, kind: Kind, ref: KeyRef, where: str) -> bytes | None:
    data = here.sources.data(kind, here.workload.namespace, ref.name, where, optional=ref.optional)
    if ref.key not in data and not ref.optional:
        raise ConfigError(f"{where}.key: the {kind} {ref.name} has no key {ref.key}")
    return data.get(ref.key)
