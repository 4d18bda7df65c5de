"""The API server, as far as a plan needs it: lists, page by page, one object at a time.

Source: Kubernetes API conventions (chunked lists); kubectl's order of kubeconfig files.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import httpx2
import yaml
from lightkube import ApiError, AsyncClient, KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError as LightkubeConfigError
from lightkube.generic_resource import (
    GenericGlobalResource,
    GenericNamespacedResource,
    create_api_info,  # pyright: ignore[reportUnknownVariableType]  # untyped `verbs`
    create_global_resource,  # pyright: ignore[reportUnknownVariableType]
)

from noderuntime.api.model import GROUP, VERSION
from noderuntime.errors import UnavailableError
from noderuntime.policy.denial import printable

Body: TypeAlias = Mapping[str, Any]  # an object of the API, free-form JSON

PAGE: Final = 250  # objects that are in memory at once
REQUEST_S: Final = 30.0
DEFAULT_FILE: Final = "~/.kube/config"


class Kind(StrEnum):
    """What is listed."""

    NODE_RUNTIME = "NodeRuntime"
    SECURITY_PROFILE = "SecurityProfile"
    RUNTIME_CLASS = "RuntimeClass"
    NODE = "Node"
    POD = "Pod"


class _Node(GenericGlobalResource):
    # Not by create_global_resource: of the core group it makes one class a process, for who comes first.
    _api_info = create_api_info("", "v1", "Node", "nodes")


class _Pod(GenericNamespacedResource):
    _api_info = create_api_info("", "v1", "Pod", "pods")


_RESOURCES: Final[dict[Kind, Any]] = {
    Kind.NODE_RUNTIME: create_global_resource(GROUP, VERSION, "NodeRuntime", "noderuntimes"),
    Kind.SECURITY_PROFILE: create_global_resource(
        GROUP, VERSION, "SecurityProfile", "securityprofiles"
    ),
    Kind.RUNTIME_CLASS: create_global_resource(
        "node.k8s.io", "v1", "RuntimeClass", "runtimeclasses"
    ),
    Kind.NODE: _Node,
    Kind.POD: _Pod,
}
_OURS: Final = (Kind.NODE_RUNTIME, Kind.SECURITY_PROFILE)


class Cluster(Protocol):
    """What a plan asks of a cluster."""

    def items(self, kind: Kind, namespace: str = "") -> AsyncIterator[Body]:
        """Yield every object of a kind; Pods of one namespace where it is named.

        Raises UnavailableError where the API server is away, or does not let us.
        """
        ...


class ApiServer:
    """The real one, through lightkube."""

    def __init__(self, client: AsyncClient, address: str) -> None:
        """``address`` is for the sentence of an error."""
        self._client = client
        self.address = address

    async def items(self, kind: Kind, namespace: str = "") -> AsyncIterator[Body]:
        """See Cluster. No kind of ours, so no noderuntime in the cluster, is none of them."""
        place: dict[str, Any] = {"namespace": namespace or "*"} if kind is Kind.POD else {}
        listing: Any = self._client.list  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        found: AsyncIterator[Body] = aiter(listing(_RESOURCES[kind], chunk_size=PAGE, **place))
        while True:
            try:
                item = await anext(found, None)
            except ApiError as error:
                if error.status.code == 404 and kind in _OURS:
                    return
                raise self._away(kind, error) from error
            # Types that are no answer of an API server end in the decoder, by any of the last three.
            except (httpx2.HTTPError, LightkubeConfigError, OSError, *_NO_ANSWER) as error:
                raise self._away(kind, error) from error
            if item is None:
                return
            yield item

    def _away(self, kind: Kind, error: Exception) -> UnavailableError:
        said = printable(str(error) or type(error).__name__, 300)
        return UnavailableError(f"the API server at {self.address}: no list of {kind}s: {said}")


_NO_ANSWER: Final = (ValueError, TypeError, AttributeError)


@asynccontextmanager
async def connected(file: str, context: str) -> AsyncIterator[ApiServer]:
    """Connect by a kubeconfig and a context in it, "" for what kubectl would take.

    Raises UnavailableError where none of it leads to an API server.
    """
    config = _config(file, context)
    try:
        client = AsyncClient(config=config, timeout=httpx2.Timeout(REQUEST_S))
    except (LightkubeConfigError, OSError, ValueError) as error:
        raise UnavailableError(f"there is no way to the API server: {error}") from error
    async with client:
        yield ApiServer(client, config.cluster.server)


def _config(file: str, context: str) -> SingleConfig:
    source = file or _usual_file()
    try:
        loaded = KubeConfig.from_file(source) if source else KubeConfig.from_service_account()
        found = loaded.get(context or None)
    except (LightkubeConfigError, OSError, KeyError, yaml.YAMLError, *_NO_ANSWER) as error:
        where = f"the kubeconfig {source}" if source else "no kubeconfig, and not in a Pod"
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UnavailableError(
            f"there is no way to the API server: {where}: {printable(missing, 300)}; name one with "
            "--kubeconfig, and its context with --context"
        ) from error
    if found is None:  # only with a default, which is not given
        raise UnavailableError(f"there is no way to the API server: {source} has no context")
    return found if found.user is not None else found._replace(user=User())


def _usual_file() -> str:
    """Return the kubeconfig that kubectl would take, "" for the account of the Pod around us."""
    named = [each for each in os.environ.get("KUBECONFIG", "").split(os.pathsep) if each]
    if named:
        return next((each for each in named if Path(each).is_file()), named[0])
    usual = Path(DEFAULT_FILE).expanduser()
    in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ
    return "" if in_cluster and not usual.is_file() else str(usual)
