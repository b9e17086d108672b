"""The internal port: `/metrics` for Prometheus, `/fleet` for the operator, the server API for backends, the
health pages for probes.

No public Service exposes it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from tableforge_dataplane.contract.endpoints import (
    FLEET_COMMANDS_PATH,
    FLEET_PATH,
    HEALTH_PATH,
    LIVE_PATH,
    METRICS_PATH,
    READY_PATH,
)
from tableforge_dataplane.contract.fleet import Fleet
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.http.answers import CallError, answer, refusal
from tableforge_dataplane.http.bearer import BearerKey
from tableforge_dataplane.http.commands import FleetCommands
from tableforge_dataplane.http.patience import KEEPALIVE_SECONDS, Patience
from tableforge_dataplane.http.readiness import Page
from tableforge_dataplane.http.server_api import ServerApi
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import CONTENT_TYPE, Exposition

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
        page: Callable[[str], Page | None],
        commands: FleetCommands | None = None,
        api: ServerApi | None = None,
    ) -> None:
        """`page`: what `/live`, `/ready` and `/health` say. `commands`: None leaves `/fleet/commands` out.
        `api`: None leaves the server API, `/stats` and `/rooms` out."""
        self._host = settings.websocket.host
        self._wanted_port = settings.http.port
        self.with_metrics = settings.monitoring.enable_metrics
        """Whether `/metrics` answers."""
        self._exposition = exposition
        self._fleet = fleet
        self._page = page
        self._commands = commands
        self._api = api
        self._key = BearerKey(
            settings.http.fleet_key,
            variable="TABLEFORGE_HTTP_FLEET_KEY",
            purpose=_KEY_PURPOSE,
            whose="the key of this cluster",
        )
        self._patience = Patience()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self.port = 0
        """The port it listens on, once started."""

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._patiently, _answer_in_time])
        app.router.add_get(METRICS_PATH, self._metrics_page)
        app.router.add_get(FLEET_PATH, self._fleet_page)
        if self._commands is not None:
            app.router.add_post(FLEET_COMMANDS_PATH, self._keyed(self._commands.take))
        for path in (LIVE_PATH, READY_PATH, HEALTH_PATH):
            app.router.add_get(path, self._health_page)
        if self._api is not None:
            self._api.add_to(app.router)
        runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS, shutdown_timeout=1.0
        )
        await runner.setup()
        try:
            if (make := runner.server) is None:
                raise RuntimeError("aiohttp's runner has been set up and has no server")
            self._listener = await asyncio.get_running_loop().create_server(
                self._patience.watch(make), self._host, self._wanted_port, backlog=128
            )
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = int(next(iter(self._listener.sockets)).getsockname()[1])
        _log.info("internal_http_listening", host=self._host, port=self.port)

    async def stop(self) -> None:
        """Stop listening and close what is open."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _patiently(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        self._patience.asked(transport)
        try:
            return await handler(request)
        finally:
            self._patience.answered(transport)

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        if not self.with_metrics:
            raise web.HTTPNotFound
        return web.Response(body=self._exposition.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _health_page(self, request: web.Request) -> web.Response:
        if (page := self._page(request.path)) is None:
            raise web.HTTPNotFound
        headers = {"Content-Type": page.content_type, "Cache-Control": "no-store"}
        return web.Response(status=page.status, body=page.body, headers=headers)

    async def _fleet_page(self, request: web.Request) -> web.Response:
        self._key.check(request)
        return answer(await self._fleet())

    def _keyed(self, handler: Handler) -> Handler:
        async def check_first(request: web.Request) -> web.StreamResponse:
            # before a byte of the body is read: who has no key costs nothing
            self._key.check(request)
            return await handler(request)

        return check_first


@web.middleware
async def _answer_in_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_SECONDS):
            return await handler(request)
    except CallError as refused:
        return refusal(refused)
    except TimeoutError:
        return refusal(
            CallError(
                "unavailable", f"There was no answer within {ANSWER_WITHIN_SECONDS:g} s: try again.", 1.0
            )
        )
    except web.HTTPException as refused:
        if refused.status == 404:
            return refusal(
                CallError("not_found", f"There is nothing at {request.path}: see docs/server-api.md.")
            )
        if refused.status == 405:
            return refusal(CallError("bad_method", f"{request.path} takes {refused.headers.get('Allow')}."))
        raise
