"""One instance, put together: the message path, and what keeps it registered, observed and ready."""

import asyncio
import contextlib
from typing import Final

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from tableforge_dataplane.broker.broker import Broker
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.http.internal import InternalHttp
from tableforge_dataplane.http.public import PublicHttp
from tableforge_dataplane.http.readiness import InstanceHealth, Readiness, redis_condition
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Exposition, Metrics
from tableforge_dataplane.protocol.native import Native
from tableforge_dataplane.registry.registry import Registry, ThisInstance
from tableforge_dataplane.rooms.hub import Hub
from tableforge_dataplane.rooms.outlet import Turn
from tableforge_dataplane.security.tokens import TokenVerifier
from tableforge_dataplane.session.session import Surroundings
from tableforge_dataplane.wire.connection import CLOSE_TIMEOUT_SECONDS, Connection
from tableforge_dataplane.wire.frames import FrameEncoder
from tableforge_dataplane.wire.handshake import Admission, select_subprotocol
from tableforge_dataplane.wire.heartbeat import Heartbeat

HANDSHAKE_TIMEOUT_SECONDS: Final = 10.0

MOST_ARRIVING: Final = 1000
"""Sockets that may be in their handshakes at once; more are dropped as soon as they are accepted."""

SETTLE_SECONDS: Final = 5.0
"""How long a leaving instance waits for acknowledgements of what it took before it closes connections."""

CLOSES_PER_STEP_SECONDS: Final = 0.02

_log = EventLog("server")


class Server:
    """`start()`, and at the end `drain()` and `stop()`. A connection's `Host`."""

    def __init__(self, settings: Settings, this: ThisInstance) -> None:
        """To be made inside a running event loop."""
        self._settings = settings
        self._this = this
        self.metrics = Metrics()
        self.turn = Turn()
        self.decoder = Native()
        self.encoder = FrameEncoder(Native())
        self.max_payload_bytes = settings.websocket.max_payload_bytes
        self.write_limit_bytes = settings.websocket.write_limit_bytes
        self._verifier = TokenVerifier(settings.auth.jwt_secret)
        self._hub = Hub(settings=settings.rooms, metrics=self.metrics, turn=self.turn)
        self.broker = Broker(settings, metrics=self.metrics, user=self._hub)
        self._hub.attach(
            channels=self.broker.subscriber,
            reader=self.broker.log,
            address=self.broker.address,
            publish_head=self.broker.publisher.head,
        )
        self.broker.on_up = self._hub.retry
        self.surroundings = Surroundings(
            settings=settings,
            instance=this.instance,
            hub=self._hub,
            publisher=self.broker.publisher,
            verifier=self._verifier,
            metrics=self.metrics,
        )
        conditions = [redis_condition(self.broker.redis_state)]
        if settings.auth.required:
            conditions.append(lambda: self._verifier.problem)
        self._readiness = Readiness(conditions)
        self._health = InstanceHealth(
            this=this,
            readiness=self._readiness,
            metrics=self.metrics,
            redis_state=self.broker.redis_state,
        )
        self._registry = Registry(
            settings,
            this=this,
            metrics=self.metrics,
            rooms=self._hub.loads,
            draining=lambda: self._readiness.draining,
            redis_state=self.broker.redis_state,
        )
        self._public = PublicHttp(self._health)
        self._internal = InternalHttp(
            settings, exposition=Exposition(self.metrics, instance=this.instance), fleet=self._registry.fleet
        )
        self._admission = Admission(
            settings=settings,
            readiness=self._readiness,
            verifier=self._verifier,
            metrics=self.metrics,
            redis_state=self.broker.redis_state,
        )
        self._heartbeat = Heartbeat(
            interval_seconds=settings.websocket.ping_interval_seconds,
            timeout_seconds=settings.websocket.pong_timeout_seconds,
        )
        self._connections: set[Connection] = set()
        self._arriving: set[Connection] = set()
        self._empty = asyncio.Event()
        self._unsettled = False
        """Whether acknowledgements were waited for in vain."""
        self._listener: WebsocketServer | None = None
        self._starting: asyncio.Task[None] | None = None
        self.port = 0
        """The port clients connect to, once started."""

    @property
    def http_port(self) -> int:
        """The internal port, once started."""
        return self._internal.port

    @property
    def ready(self) -> bool:
        """What `/ready` says."""
        return self._readiness.ready

    async def start(self) -> None:
        """Listen on both ports and begin to connect to Redis, without waiting for it. Raises OSError."""
        websocket = self._settings.websocket
        await self._internal.start()
        try:
            self._listener = await serve(
                self._on_connection,
                websocket.host,
                websocket.port,
                create_connection=self._make_connection,  # type: ignore[arg-type]  # a class, or what makes one
                process_request=self._on_request,
                select_subprotocol=select_subprotocol,
                compression=None,
                server_header=None,
                open_timeout=HANDSHAKE_TIMEOUT_SECONDS,
                ping_interval=None,
                close_timeout=CLOSE_TIMEOUT_SECONDS,
                max_size=websocket.max_payload_bytes,
                write_limit=(websocket.write_limit_bytes, websocket.write_limit_bytes // 4),
                backlog=1024,
            )
        except OSError:
            await self._internal.stop()
            raise
        self.port = next(iter(self._listener.sockets)).getsockname()[1]
        self.broker.start()
        self._hub.start()
        self._registry.start()
        self._heartbeat.start()
        self._starting = asyncio.create_task(self._readiness.start(), name="readiness")
        _log.info("listening", host=websocket.host, port=self.port)

    async def drain(self) -> None:
        """Leave in order: take nobody new, acknowledge what was taken, close everybody with 1012.

        Reconnects are spread over `drain_seconds`. Returns when nobody is left.
        """
        self._readiness.drain()
        self._registry.changed()
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._settings.scaling.drain_seconds
        _log.info(
            "draining", connections=len(self._connections), seconds=self._settings.scaling.drain_seconds
        )
        while self._connections:
            left = max(0.0, ends - loop.time())
            open_ones = [connection for connection in self._connections if not _is_closed(connection)]
            if not open_ones:
                break
            share = 1.0 if left <= CLOSES_PER_STEP_SECONDS else CLOSES_PER_STEP_SECONDS / left
            count = max(1, round(len(open_ones) * share))
            if left > 0 and len(open_ones) * CLOSES_PER_STEP_SECONDS < left:
                # fewer connections than steps: one a step, with longer steps
                await self._close_acknowledged(open_ones[:1])
                with contextlib.suppress(TimeoutError):
                    # who has nobody left needn't wait for a step's end
                    await asyncio.wait_for(self._empty.wait(), left / (len(open_ones) + 1))
            else:
                await self._close_acknowledged(open_ones[:count])
                await asyncio.sleep(CLOSES_PER_STEP_SECONDS)
        await self._settle()

    async def _close_acknowledged(self, connections: list[Connection]) -> None:
        await self._settle()
        for connection in connections:
            connection.close_with(1012, "this instance is leaving")

    async def _settle(self) -> None:
        """Wait for acknowledgements that are due; where Redis is away, clients resend elsewhere.

        That is waited for once: else each close would wait so long, and the last ones come all together.
        """
        if self.broker.publisher.depth == 0:
            return
        if self._unsettled and not self.broker.redis_state().connected:
            return
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self.broker.publisher.settled()
        except TimeoutError:
            self._unsettled = True
            _log.warning("unsettled", publishes=self.broker.publisher.depth)

    async def stop(self) -> None:
        """End everything; what is still connected is closed with 1012."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        self._readiness.drain()
        for connection in list(self._connections):
            connection.close_with(1012, "this instance is leaving")
        if self._listener is not None:
            self._listener.close(close_connections=False)
            try:
                async with asyncio.timeout(1.0):
                    await self._listener.wait_closed()
            except TimeoutError:
                for connection in list(self._connections):
                    connection.transport.abort()
        await self._heartbeat.stop()
        await self._hub.stop()
        await self._registry.stop()
        await self.broker.stop()
        await self._internal.stop()

    # A connection's host

    def _make_connection(
        self, protocol: object, server: WebsocketServer, **options: object
    ) -> ServerConnection:
        return Connection(self, protocol, server, **options)  # type: ignore[arg-type]

    def _on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        answer = self._public.answer(request)
        if answer is not None:
            return answer
        return self._admission.admit(connection, request)

    async def _on_connection(self, connection: ServerConnection) -> None:
        if isinstance(connection, Connection):
            connection.open()
            await connection.wait_closed()

    def arriving(self, connection: Connection) -> bool:
        """From a connection."""
        if len(self._arriving) >= MOST_ARRIVING:
            self.metrics.connections_refused.add("handshakes")
            return False
        self._arriving.add(connection)
        return True

    def arrived(self, connection: Connection) -> None:
        """From a connection."""
        self._arriving.discard(connection)

    def opened(self, connection: Connection) -> None:
        """From a connection."""
        self._connections.add(connection)
        self._empty.clear()
        self.metrics.connections += 1
        self._heartbeat.add(connection)

    def closing(self, connection: Connection, code: int) -> None:  # noqa: ARG002
        """From a connection."""
        self.metrics.connections_closed.add(str(code))

    def slow(self, connection: Connection) -> None:  # noqa: ARG002
        """From a connection."""
        self.metrics.slow_consumers += 1

    def lost(self, connection: Connection) -> None:
        """From a connection."""
        self._connections.discard(connection)
        self._heartbeat.remove(connection)
        if not self._connections:
            self._empty.set()
        self.metrics.connections -= 1

    def told(self, connection: Connection) -> None:  # noqa: ARG002
        """From a connection."""
        self._admission.told -= 1


def _is_closed(connection: Connection) -> bool:
    return connection.session is None or connection.session.closed
