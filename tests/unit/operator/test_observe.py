"""What the operator makes of an API server without admission policies, or that does not show them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import httpx2
import pytest
from lightkube import AsyncClient

from noderuntime_operator.kinds import RESOURCES
from noderuntime_operator.observe import observe
from noderuntime_operator.reconcile.plan import Kind
from tests.fakes.operator_cluster import SETTINGS

ADMISSION = (RESOURCES[Kind.ADMISSION_POLICY], RESOURCES[Kind.ADMISSION_BINDING])


class ListsNothing:
    """A client whose lists are empty, but for admission: these answer with ``status``."""

    def __init__(self, status: int) -> None:
        self._status = status

    async def list(self, resource: Any, **options: Any) -> AsyncIterator[Any]:
        del options
        if resource in ADMISSION and self._status != 200:
            request = httpx2.Request("GET", "https://127.0.0.1/apis")
            response = httpx2.Response(self._status, text="page not found", request=request)
            response.raise_for_status()
        nothing: list[Any] = []
        for each in nothing:
            yield each


def client(status: int) -> AsyncClient:
    return cast("AsyncClient", ListsNothing(status))


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (200, ""),
        (404, "the API server does not serve ValidatingAdmissionPolicy admissionregistration"),
        (403, "the operator may not list ValidatingAdmissionPolicies: upgrade the chart"),
    ],
)
async def test_an_api_server_without_admission_policies_is_no_error(
    status: int, problem: str
) -> None:
    found = (await observe(client(status), SETTINGS)).admission
    assert found.problem.startswith(problem) and bool(found.problem) == bool(problem)


async def test_another_error_is_one() -> None:
    with pytest.raises(httpx2.HTTPStatusError):
        await observe(client(500), SETTINGS)
