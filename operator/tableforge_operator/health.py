"""The operator's own port: `/healthz`, `/readyz` and `/metrics`."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tableforge_operator import metrics


class HealthServer:
    """`problem` says in a sentence what is wrong, or None; `leading` whether this is the one that acts."""

    def __init__(
        self, *, host: str, port: int, problem: Callable[[], str | None], leading: Callable[[], bool]
    ) -> None:
        self._host = host
        self._port = port
        self._problem = problem
        self._leading = leading
        self._runner: web.AppRunner | None = None
        self.port = port
        """The port it listens on; known after `start` where 0 was asked for."""

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        problem = self._problem()
        return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        # Ready to serve either way: who stands by takes over when the leader goes.
        return web.Response(text="leading\n" if self._leading() else "standing by\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(metrics.REGISTRY)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
