"""What is known of the image without pulling it: nothing, its user, or its whole config."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from noderuntime.cli.manifest.model import Text
from noderuntime.cli.manifest.workloads import LARGEST, parsed
from noderuntime.errors import ConfigError
from noderuntime.policy.model import ContainerConfig, ImageConfig, ResolvedUser
from noderuntime.policy.users import HIGHEST_ID

_USER: Final = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?", re.ASCII)
_ENTRYPOINT: Final = "(the image's entrypoint)"


def _list(value: Any) -> Any:  # noqa: ANN401 - null and absent are the same to image-spec
    return value or []


_Texts = Annotated[list[Text], BeforeValidator(_list), Field(max_length=4096)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    User: Text = ""
    Env: _Texts = []
    Entrypoint: _Texts = []
    Cmd: _Texts = []
    WorkingDir: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """``user`` is "" where nobody said; ``group`` None is unknown: only the passwd file tells."""

    user: str = ""
    group: int | None = None
    config: ImageConfig | None = None


def read(user: str, name: str, data: bytes | None) -> Image:
    """Return what ``--user`` and ``--image-config`` say. Raises ConfigError."""
    config = None if data is None else _config(name, data)
    if not user:
        return Image(user="" if config is None else _numeric(config.user), config=config)
    match = _USER.fullmatch(user)
    if match is None or any(int(each) > HIGHEST_ID for each in match.groups("0")):
        raise ConfigError(f"--user: {user[:40]!r} is not of the form 1000 or 1000:1000")
    return Image(user=match[1], group=int(match[2] or 0), config=config)


def config_for(image: Image, container: ContainerConfig) -> ImageConfig:
    """Return the image's config; where it is unknown, one with a name in place of a command."""
    if image.config is not None:
        return image.config
    return ImageConfig(entrypoint=() if container.command else (_ENTRYPOINT,))


def user_of(image: Image, container: ContainerConfig) -> ResolvedUser:
    """Return the user that the process gets; what is unknown is 0 (see ``unknown``)."""
    security = container.security
    group = security.run_as_group
    gid = (image.group or 0) if group is None else group
    groups = tuple(dict.fromkeys((gid, *security.supplemental_groups)))
    return ResolvedUser(uid=security.run_as_user or 0, gid=gid, additional_gids=groups)


def _numeric(user: str) -> str:
    """Return the number of an image's USER, "0" without one, "" for a name: passwd has its number."""
    match = _USER.fullmatch(user.partition(":")[0])
    return match[1] if match else ("" if user else "0")


def _config(name: str, data: bytes) -> ImageConfig:
    if len(data) > LARGEST:
        raise ConfigError(f"{name}: is larger than {LARGEST >> 20} MiB")
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: is not JSON: {str(error)[:200]}") from error
    body: object = document
    if isinstance(document, dict):  # image-spec has it below "config"
        body = cast("dict[str, object]", document).get("config", body)
    found = parsed(_Config, body, name, "config")
    return ImageConfig(
        user=found.User,
        env=tuple(found.Env),
        entrypoint=tuple(found.Entrypoint),
        cmd=tuple(found.Cmd),
        working_dir=found.WorkingDir,
    )
