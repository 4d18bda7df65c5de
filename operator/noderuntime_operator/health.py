"""``/healthz``: no pass hangs. ``/readyz``: the last pass went through, so the API server answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from noderuntime_operator.loop import Loop


@asynccontextmanager
async def serving(loop: Loop, address: str) -> AsyncGenerator[None]:
    """Serve both at ``HOST:PORT`` while in the block; raises OSError where the port is taken."""

    async def answer(request: web.Request) -> web.Response:
        good = loop.is_alive if request.path == "/healthz" else loop.is_ready
        return web.Response(text="ok\n" if good else "not ok\n", status=200 if good else 503)

    application = web.Application()
    application.add_routes([web.get("/healthz", answer), web.get("/readyz", answer)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    host, _, port = address.rpartition(":")
    try:
        await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
        yield
    finally:
        await runner.cleanup()
