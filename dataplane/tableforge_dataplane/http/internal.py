"""The internal port: `/metrics` for Prometheus, `/fleet` for the operator. No public Service exposes it."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from tableforge_dataplane.contract.endpoints import FLEET_PATH, METRICS_PATH
from tableforge_dataplane.contract.fleet import Fleet
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import CONTENT_TYPE, Exposition
from tableforge_dataplane.security.keys import WatchedSecret

MAX_BODY_BYTES: Final = 64 * 1024
ANSWER_WITHIN_SECONDS: Final = 10.0

_KEY_PURPOSE = "/fleet is off without a key; the operator derives one and mounts it."

_log = EventLog("http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class InternalHttp:
    """Serves the internal port from `start()` to `stop()`."""

    def __init__(
        self,
        settings: Settings,
        *,
        exposition: Exposition,
        fleet: Callable[[], Awaitable[Fleet]],
    ) -> None:
        self._host = settings.websocket.host
        self._wanted_port = settings.http.port
        self._exposition = exposition
        self._fleet = fleet
        self._key = WatchedSecret(
            settings.http.fleet_key, variable="TABLEFORGE_HTTP_FLEET_KEY", purpose=_KEY_PURPOSE
        )
        self._runner: web.AppRunner | None = None
        self.port = 0
        """The port it listens on, once started."""

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer_in_time])
        app.router.add_get(METRICS_PATH, self._metrics_page)
        app.router.add_get(FLEET_PATH, self._fleet_page)
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=75.0, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._wanted_port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = int(runner.addresses[0][1])
        _log.info("internal_http_listening", host=self._host, port=self.port)

    async def stop(self) -> None:
        """Stop listening and close what is open."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._exposition.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _fleet_page(self, request: web.Request) -> web.Response:
        key = self._key.current()
        if key is None:
            return _error(404, "not_found", self._key.problem or _KEY_PURPOSE)
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # compared as bytes: compare_digest refuses text that isn't ASCII
        matches = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key.encode())
        if scheme.lower() != "bearer" or not matches:
            refused = _error(
                401, "unauthorized", "Send the key of this cluster: Authorization: Bearer <key>."
            )
            refused.headers["WWW-Authenticate"] = 'Bearer realm="tableforge"'
            return refused
        body = msgspec.json.encode(await self._fleet())
        return web.Response(
            body=body, headers={"Content-Type": "application/json", "Cache-Control": "no-store"}
        )


@web.middleware
async def _answer_in_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_SECONDS):
            return await handler(request)
    except TimeoutError:
        return _error(
            503, "unavailable", f"There was no answer within {ANSWER_WITHIN_SECONDS:g} s: try again."
        )
    except web.HTTPException as refused:
        if refused.status == 404:
            return _error(404, "not_found", f"There are {METRICS_PATH} and {FLEET_PATH}.")
        raise


def _error(status: int, code: str, message: str) -> web.Response:
    body = msgspec.json.encode({"error": {"code": code, "message": message}})
    return web.Response(status=status, body=body, headers={"Content-Type": "application/json"})
