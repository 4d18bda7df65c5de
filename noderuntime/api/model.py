"""The base of every model that comes from a file or the API server: strict, frozen, camelCase."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

GROUP: Final = "noderuntime.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "noderuntime.io/v1alpha1"


class ApiModel(BaseModel):
    """An unknown field is an error; Python names are snake_case, JSON names camelCase."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True
    )
