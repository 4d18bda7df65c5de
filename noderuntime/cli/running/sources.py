"""ConfigMaps and Secrets that stand beside the Pod in its file, and what Pods take out of them.

Nothing else of a cluster is there: what a Pod needs of it is refused, with the field.
Source: k8s.io/api ``core/v1`` v1.37.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from noderuntime.cli.manifest.model import Metadata, Name, Open, Part, Path, Text, Word
from noderuntime.cli.manifest.workloads import documents, parsed
from noderuntime.errors import ConfigError

Kind = Literal["ConfigMap", "Secret"]


class _ConfigMap(Open):
    data: dict[Word, str] = Field(default_factory=dict[str, str])
    binary_data: dict[Word, str] = Field(default_factory=dict[str, str])


class _Secret(Open):
    data: dict[Word, str] = Field(default_factory=dict[str, str])
    string_data: dict[Word, str] = Field(default_factory=dict[str, str])


class FieldRef(Open):
    """ObjectFieldSelector."""

    field_path: Word


class ResourceRef(Open):
    """ResourceFieldSelector."""

    resource: Word
    container_name: Name | None = None
    divisor: Annotated[str, Field(max_length=32)] = "1"


class KeyRef(Open):
    """ConfigMapKeySelector and SecretKeySelector."""

    name: Name
    key: Word
    optional: bool = False


class ValueFrom(Part):
    """EnvVarSource."""

    field_ref: FieldRef | None = None
    resource_field_ref: ResourceRef | None = None
    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None


class ObjectRef(Open):
    """ConfigMapEnvSource and SecretEnvSource."""

    name: Name
    optional: bool = False


class EnvFrom(Part):
    """EnvFromSource."""

    prefix: Text = ""
    config_map_ref: ObjectRef | None = None
    secret_ref: ObjectRef | None = None


class Item(Open):
    """KeyToPath."""

    key: Word
    path: Path
    mode: Annotated[int, Field(ge=0, le=0o777)] | None = None


class Files(Open):
    """ConfigMapVolumeSource, SecretVolumeSource, and both as a source of a projected volume."""

    name: Name | None = None
    secret_name: Name | None = None
    items: list[Item] = Field(default_factory=list[Item], max_length=4096)
    default_mode: Annotated[int, Field(ge=0, le=0o777)] | None = None
    optional: bool = False


class ToldItem(Open):
    """DownwardAPIVolumeFile."""

    path: Path
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceRef | None = None
    mode: Annotated[int, Field(ge=0, le=0o777)] | None = None


class Told(Open):
    """DownwardAPIVolumeSource."""

    items: list[ToldItem] = Field(default_factory=list[ToldItem], max_length=4096)
    default_mode: Annotated[int, Field(ge=0, le=0o777)] | None = None


class Projection(Open):
    """One source of a projected volume."""

    config_map: Files | None = None
    secret: Files | None = None
    downward_api: Annotated[Told | None, Field(alias="downwardAPI")] = None
    service_account_token: dict[str, Any] | None = None


class Projected(Open):
    """ProjectedVolumeSource."""

    sources: list[Projection] = Field(default_factory=list[Projection], max_length=4096)
    default_mode: Annotated[int, Field(ge=0, le=0o777)] | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """What there is, by (kind, namespace, name): each its data by key."""

    objects: Mapping[tuple[str, str, str], Mapping[str, bytes]] = field(
        default_factory=dict[tuple[str, str, str], Mapping[str, bytes]]
    )

    def data(
        self, kind: Kind, namespace: str, name: str, where: str, *, optional: bool
    ) -> Mapping[str, bytes]:
        """Return an object's data; nothing where it is optional. Raises ConfigError."""
        found = self.objects.get((kind, namespace, name))
        if found is None and not optional:
            raise ConfigError(
                f"{where}: the {kind} {namespace}/{name} is in no cluster here: put it beside the Pod, "
                "into the same file"
            )
        return found or {}


def read(file: str, data: bytes, namespace: str) -> Sources:
    """Read the ConfigMaps and Secrets of a file. Raises ConfigError."""
    found: dict[tuple[str, str, str], Mapping[str, bytes]] = {}
    for document in documents(file, data):
        body = cast("Mapping[str, Any]", document if isinstance(document, dict) else {})
        kind = body.get("kind")
        if kind not in ("ConfigMap", "Secret"):
            continue
        named = parsed(Metadata, body.get("metadata") or {}, f"{file}: {kind}", "metadata")
        where = f"{file}: {kind} {named.name}"
        if named.name is None:
            raise ConfigError(f"{file}: {kind}: metadata.name: is required")
        if kind == "ConfigMap":
            each = parsed(_ConfigMap, body, where, "")
            content = {key: text.encode() for key, text in each.data.items()}
            content |= {
                k: _decoded(v, f"{where}: binaryData.{k}") for k, v in each.binary_data.items()
            }
        else:
            secret = parsed(_Secret, body, where, "")
            content = {k: _decoded(v, f"{where}: data.{k}") for k, v in secret.data.items()}
            content |= {key: text.encode() for key, text in secret.string_data.items()}
        found[kind, named.namespace or namespace, named.name] = content
    return Sources(found)


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"{where}: is not base64") from error
