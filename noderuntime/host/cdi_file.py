"""One CDI file as it is written: its JSON or YAML, strictly, with bounds.

A field that is not known here is refused, and so is what is known and not honoured: RDT classes
(``intelRdt``) and network devices (``netDevices``). YAML has no aliases here: a short file could
stand for a huge one. Source: cncf-tags/container-device-interface SPEC.md 1.0.0, schema.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noderuntime.api import yaml_text
from noderuntime.errors import FailedPreconditionError

VERSIONS: Final = re.compile(r"v?(0\.[3-9]\.0|1\.[01]\.0)")
_MOST: Final = 4096  # entries of a list
_SHORT: Final = 4096

Text = Annotated[str, Field(max_length=_SHORT, pattern=r"^[^\x00]*$")]
Route = Annotated[str, Field(max_length=_SHORT, pattern=r"^/[^\x00]*$")]
Number = Annotated[int, Field(ge=0, le=2**32 - 2)]
HookName = Literal[
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Device(_Part):
    """A device node; what is not said is read from the node at ``hostPath``."""

    path: Route
    host_path: Route | None = Field(None, alias="hostPath")
    type: Literal["b", "c", "u", "p", ""] = ""
    major: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    minor: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    file_mode: Annotated[int, Field(ge=0, le=0o7777)] | None = Field(None, alias="fileMode")
    permissions: Annotated[str, Field(pattern=r"^[rwm]{0,3}$")] = ""
    uid: Number | None = None
    gid: Number | None = None


class Mount(_Part):
    """A mount of a path of the node."""

    host_path: Route = Field(alias="hostPath")
    container_path: Route = Field(alias="containerPath")
    type: Literal["", "bind", "none"] = ""
    options: Annotated[list[Text], Field(max_length=32)] = []


class Hook(_Part):
    """A program of the node that the OCI runtime starts."""

    hook_name: HookName = Field(alias="hookName")
    path: Route
    args: Annotated[list[Text], Field(max_length=_MOST)] = []
    env: Annotated[list[Text], Field(max_length=_MOST)] = []
    timeout: Annotated[int, Field(ge=0, le=3600)] | None = None


class ContainerEdits(_Part):
    """What changes in a container."""

    env: Annotated[list[Text], Field(max_length=_MOST)] = []
    device_nodes: Annotated[list[Device], Field(max_length=_MOST)] = Field([], alias="deviceNodes")
    mounts: Annotated[list[Mount], Field(max_length=_MOST)] = []
    hooks: Annotated[list[Hook], Field(max_length=256)] = []
    additional_gids: Annotated[list[Number], Field(max_length=256)] = Field(
        [], alias="additionalGids"
    )


class NamedDevice(_Part):
    """One device of the file's kind."""

    name: Text
    annotations: dict[Text, Text] = {}
    edits: ContainerEdits = Field(alias="containerEdits")


class CdiFile(_Part):
    """The whole file."""

    version: str = Field(alias="cdiVersion", max_length=32)
    kind: Text
    annotations: dict[Text, Text] = {}
    devices: Annotated[list[NamedDevice], Field(max_length=_MOST)] = []
    edits: ContainerEdits = Field(ContainerEdits.model_validate({}), alias="containerEdits")


def parse(path: Path, data: bytes) -> CdiFile:
    """Read a file's bytes. Raises FailedPreconditionError that names the file and the field."""
    try:
        document = json.loads(data) if path.suffix == ".json" else _yaml(data)
        parsed = CdiFile.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise FailedPreconditionError(f"{path}: {where}: {first['msg'].lower()}") from error
    except (ValueError, RecursionError) as error:
        kind = path.suffix.removeprefix(".").upper()
        raise FailedPreconditionError(f"{path} is not {kind}: {str(error)[:200]}") from error
    if not VERSIONS.fullmatch(parsed.version):
        raise FailedPreconditionError(
            f"{path}: cdiVersion: {parsed.version} is not known here; 0.3.0 to 1.1.0 are"
        )
    return parsed


def _yaml(data: bytes) -> object:
    found = yaml_text.documents(data)
    if len(found) > 1:
        raise ValueError("it has more than one document")
    return found[0] if found else None
