"""One instance, put together: the message path, and what keeps it registered, observed and ready."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from websockets.http11 import Request, Response

from tableforge_dataplane.broker.broker import Broker
from tableforge_dataplane.broker.control import Control
from tableforge_dataplane.broker.listing import RoomListing
from tableforge_dataplane.broker.presence import PresenceStore
from tableforge_dataplane.broker.state import RedisRefusedError
from tableforge_dataplane.contract.room_options import RoomRules
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.homes.commanding import Commanding
from tableforge_dataplane.homes.guide import Guest, Guide
from tableforge_dataplane.homes.homes import Homes
from tableforge_dataplane.homes.shedding import Shedding
from tableforge_dataplane.http.bearer import BearerKey
from tableforge_dataplane.http.commands import FleetCommands
from tableforge_dataplane.http.internal import InternalHttp
from tableforge_dataplane.http.overview import Overview
from tableforge_dataplane.http.posting import Posting
from tableforge_dataplane.http.public import PublicHttp
from tableforge_dataplane.http.readiness import InstanceHealth, Readiness, redis_condition
from tableforge_dataplane.http.server_api import ServerApi
from tableforge_dataplane.live import LiveSource
from tableforge_dataplane.observability.logging import EventLog, set_level
from tableforge_dataplane.observability.metrics import Exposition, Metrics
from tableforge_dataplane.observability.reporting import Reporter
from tableforge_dataplane.protocol.native import Native
from tableforge_dataplane.registry.headcount import Headcount
from tableforge_dataplane.registry.keys import REGISTRY_SLOT
from tableforge_dataplane.registry.registry import Registry, ThisInstance
from tableforge_dataplane.rooms.hub import Hub
from tableforge_dataplane.rooms.options import OptionsSource
from tableforge_dataplane.rooms.outlet import Turn
from tableforge_dataplane.rooms.presence import Presence
from tableforge_dataplane.security.tokens import TokenVerifier
from tableforge_dataplane.session.membership import Membership
from tableforge_dataplane.session.surroundings import Surroundings
from tableforge_dataplane.session.wall_clock import WallClock
from tableforge_dataplane.topology.topology import topology_of
from tableforge_dataplane.wire.compression import Encoders, offered
from tableforge_dataplane.wire.connection import Connection, Decoder
from tableforge_dataplane.wire.door import Door
from tableforge_dataplane.wire.frames import count
from tableforge_dataplane.wire.handshake import Admission, Handshake
from tableforge_dataplane.wire.heartbeat import Heartbeat
from tableforge_dataplane.wire.leaving import REASON, Departure
from tableforge_dataplane.wire.preface import ProxyPreface
from tableforge_dataplane.wire.relief import Relief
from tableforge_dataplane.wire.tls import Certificate

SETTLE_SECONDS: Final = 5.0
"""How long a leaving instance waits for acknowledgements of what it took before it closes connections."""

LOOK_FOR_REDIS_EVERY_SECONDS: Final = 0.02

GIVE_AWAY_SHARE: Final = 0.25
"""How much of its time to leave an instance spends at most on giving its rooms other homes."""

MOST_JUDGED_EVERY_SECONDS: Final = 15.0
"""How often it is asked at least whether instances with users in the same rooms still live."""

_log = EventLog("server")
_library_log = logging.getLogger("websockets.server")


class Server:
    """`start()`, and at the end `drain()` and `stop()`. A connection's `Host`."""

    def __init__(
        self, settings: Settings, this: ThisInstance, *, reread: Callable[[], Settings] | None = None
    ) -> None:
        """To be made inside a running event loop.

        `reread` gives the settings as they are now, or raises SettingsError; where it is None they stay as
        they are.
        """
        self._settings = settings
        self._this = this
        self.metrics = Metrics()
        self.turn = Turn()
        self.decoder: Decoder = Native()
        self.encoders = Encoders(Native(), settings.performance, self.metrics)
        self.max_payload_bytes = settings.websocket.max_payload_bytes
        self.write_limit_bytes = settings.websocket.write_limit_bytes
        self.handshake_timeout_seconds = settings.security.handshake_timeout_seconds
        # the library's own would keep a context for each connection
        self._extensions = offered(settings.performance)
        headcount = Headcount()
        self._door = Door(
            settings, metrics=self.metrics, headcount=headcount, clock=asyncio.get_running_loop().time
        )
        self._certificate = Certificate(settings.websocket) if settings.websocket.tls_cert_file else None
        self._verifier = TokenVerifier(settings.auth, log=EventLog("tokens"))
        self._hub = Hub(settings=settings.rooms, metrics=self.metrics, turn=self.turn)
        self._topology = topology_of(settings.redis)
        self.broker = Broker(settings, metrics=self.metrics, user=self._hub, topology=self._topology)
        self._hub.attach(
            channels=self.broker.subscriber,
            reader=self.broker.log,
            address=self.broker.address,
            publish_head=self.broker.publisher.head,
            rules=lambda: self.broker.rules,
        )
        self.broker.on_up = self._on_redis_up
        self.room_options = OptionsSource(settings, apply=self._apply_room_options)
        self.presence = Presence(
            PresenceStore(
                self.broker.commands,
                holder=f"{this.instance}|{this.boot}",
                publish_command=self.broker.publish_command,
            ),
            address=self.broker.address,
            options=self.broker.options,
            judge=self._gone,
            grace_seconds=settings.rooms.presence_grace_seconds,
            judge_every_seconds=min(MOST_JUDGED_EVERY_SECONDS, settings.scaling.failover_timeout_seconds / 2),
        )
        self._hub.on_presence = self.presence.on_change
        self.control = Control(
            key_prefix=settings.redis.key_prefix,
            instance=this.instance,
            boot=this.boot,
            channels=self.broker.subscriber,
            commands=self.broker.commands,
            publish_command=self.broker.publish_command,
        )
        self._hub.others[self.control.everybody] = self.control.on_question
        self._hub.others[self.control.own] = self.control.on_answer
        self.surroundings = Surroundings(
            settings=settings,
            instance=this.instance,
            hub=self._hub,
            publisher=self.broker.publisher,
            verifier=self._verifier,
            metrics=self.metrics,
            users=self._door,
            presence=self.presence,
            redis_trouble=self.broker.trouble,
        )
        self.control.handle("disconnect", self.surroundings.roster.disconnect)
        self.control.handle("remove", self.surroundings.roster.remove)
        conditions = [
            redis_condition(self.broker.redis_state),
            self._claim_problem,
        ]
        if settings.auth.required:
            conditions.append(lambda: self._verifier.problem)
        if (certificate := self._certificate) is not None:
            conditions.append(lambda: certificate.problem)
        self._readiness = Readiness(conditions)
        self._health = InstanceHealth(
            this=this,
            readiness=self._readiness,
            metrics=self.metrics,
            redis_state=self.broker.redis_state,
            problems=self._problems,
        )
        self._registry = Registry(
            settings,
            this=this,
            metrics=self.metrics,
            rooms=self._hub.loads,
            draining=lambda: self._readiness.draining,
            redis_state=self.broker.redis_state,
            headcount=headcount,
            locate=lambda: self._topology.locate(REGISTRY_SLOT),
        )
        self._registry.on_claim = self._on_claim
        self._registry.link.on_refusal = lambda code: self.broker.refused(code, slot=REGISTRY_SLOT)
        self.homes = Homes(
            settings,
            this=this.instance,
            boot=this.boot,
            registry=self._registry,
            metrics=self.metrics,
            draining=lambda: self._readiness.draining,
        )
        self.homes.notify = lambda notice: self.control.tell("homes", notice)
        self.homes.on_forgotten = self.presence.judge_now
        self.control.handle("homes", self.homes.on_notice)
        self._public = PublicHttp(self._health, instance=this.instance)
        self._internal = InternalHttp(
            settings,
            exposition=Exposition(self.metrics, instance=this.instance),
            fleet=self._registry.fleet,
            page=self._health.page,
            commands=FleetCommands(
                Commanding(directory=self.homes.directory, notify=self.homes.notify, metrics=self.metrics),
                barred=self._claim_problem,
            ),
            api=self._server_api(),
        )
        self._admission = Admission(
            settings=settings,
            readiness=self._readiness,
            verifier=self._verifier,
            metrics=self.metrics,
            redis_state=self.broker.redis_state,
            door=self._door,
            cordoned=lambda: self.homes.cordoned,
        )
        self._heartbeat = Heartbeat(
            interval_seconds=settings.websocket.ping_interval_seconds,
            timeout_seconds=settings.websocket.pong_timeout_seconds,
        )
        self._connections: set[Connection] = set()
        self._wall_clock = WallClock(self._clock_jumped)
        self._relief = Relief(
            settings.monitoring,
            connections=self._connections,
            budget=self._registry.budget,
            metrics=self.metrics,
        )
        self.guide = Guide(
            self.homes,
            budget=self._registry.budget,
            metrics=self.metrics,
            members=self._members,
            everybody=lambda: [guest for one in self._connections if (guest := _guest(one)) is not None],
            whole_look_every_seconds=settings.scaling.heartbeat_interval_seconds,
        )
        self.shedding = Shedding(
            self.homes,
            candidates=lambda: list(self._connections),
            may_go=self._may_go,
            budget=self._registry.budget,
            metrics=self.metrics,
            settle=self._settle,
        )
        self.homes.on_change = self._on_homes
        self.homes.following = self.metrics.following = self._following
        if self.homes.kept:
            self.homes.on_moved = self.guide.moved
            self._hub.on_entered = self.homes.entered
            self._hub.on_emptied = self.homes.emptied
            self.surroundings.on_rooms = self.guide.look_at
        self._reporter = Reporter(settings.monitoring, metrics=self.metrics, health=self._health.report)
        self._live: LiveSource | None = None
        if reread is not None and settings.live.file:
            self._live = LiveSource(
                settings, reread=reread, apply=self.renew, held=self._registry.hold_live_settings
            )
        self._empty = asyncio.Event()
        self._unsettled = False
        """Whether acknowledgements were waited for in vain."""
        self._listener: asyncio.Server | None = None
        self._starting: asyncio.Task[None] | None = None
        self.port = 0
        """The port clients connect to, once started."""

    def _server_api(self) -> ServerApi:
        settings = self._settings
        return ServerApi(
            key=BearerKey(
                settings.http.api_key,
                variable="TABLEFORGE_HTTP_API_KEY",
                purpose="the server API, /stats and /rooms are off without a key.",
                whose="the API's key",
            ),
            metrics=self.metrics,
            posting=Posting(
                self.broker, max_payload_bytes=settings.websocket.max_payload_bytes, boot=self._this.boot
            ),
            presence=self.presence,
            control=self.control,
            listing=RoomListing(
                key_prefix=settings.redis.key_prefix,
                shards=lambda: [shard.commands for shard in self.broker.shards],
            ),
            overview=Overview(
                health=self._health,
                metrics=self.metrics,
                capacity=lambda: self._settings.capacity,
                queue_depth=lambda: self.metrics.publish_queue_depth,
                fleet=self._registry.fleet,
            ),
            history=self._hub.history,
            homes=self.homes.homes_of,
            max_payload_bytes=settings.websocket.max_payload_bytes,
        )

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
            self._listener = await asyncio.get_running_loop().create_server(
                self._make_connection, websocket.host, websocket.port, backlog=1024
            )
        except OSError:
            await self._internal.stop()
            raise
        self.port = next(iter(self._listener.sockets)).getsockname()[1]
        self._verifier.start()
        self.broker.start()
        self._hub.start()
        self.room_options.start()
        self.presence.start()
        self.control.start()
        self._registry.start()
        self.homes.start()
        if self.homes.kept:
            self.guide.start()
        self.shedding.start()
        self._heartbeat.start()
        self._wall_clock.start()
        self._relief.start()
        self._reporter.start()
        if self._live is not None:
            self._live.start()
        self._starting = asyncio.create_task(self._readiness.start(), name="readiness")
        _log.info("listening", host=websocket.host, port=self.port)

    async def redis_answers(self) -> None:
        """Wait until Redis can be used, as long as one connect may take.

        Raises RedisRefusedError with what is wrong. For who doesn't want to wait any longer.
        """
        seconds = self._settings.redis.connect_timeout_seconds
        ends = asyncio.get_running_loop().time() + seconds
        while not (state := self.broker.redis_state()).connected:
            if asyncio.get_running_loop().time() > ends:
                raise RedisRefusedError(
                    "Unreachable" if state.reason in ("Connected", "Connecting") else state.reason,
                    state.message,
                )
            await asyncio.sleep(LOOK_FOR_REDIS_EVERY_SECONDS)

    def renew(self, settings: Settings) -> None:
        """Go on with these settings, which differ from those before in what may change while it runs only.

        Nobody is closed for it: who has more rooms or connections than a new limit allows keeps them.
        """
        before, self._settings = self._settings, settings
        self.handshake_timeout_seconds = settings.security.handshake_timeout_seconds
        self.surroundings.renew(settings)
        if settings.security != before.security:
            self._door.renew(settings.security)
            for connection in self._connections:
                if connection.session is not None:
                    connection.session.renew_limits()
        self.room_options.renew(settings)
        self.presence.grace_seconds = settings.rooms.presence_grace_seconds
        self._hub.renew(settings.rooms)
        self._admission.renew(settings)
        self._verifier.renew(settings.auth)
        self._registry.renew(settings)
        self.homes.renew(settings)
        if settings.monitoring != before.monitoring:
            self._relief.renew(settings.monitoring)
        self._reporter.renew(settings.monitoring)
        self._internal.with_metrics = settings.monitoring.enable_metrics
        set_level(settings.logging.level)

    def _apply_room_options(self, rules: RoomRules) -> None:
        self.broker.rules = rules
        self._hub.renew_options()

    async def drain(self) -> None:
        """Leave in order: take nobody new, acknowledge what was taken, close everybody with 1012.

        Reconnects are spread over `drain_seconds` and kept within the cluster's budget. Returns when nobody
        is left, or all are closed.
        """
        self._readiness.drain()
        self._registry.changed()
        seconds = self._settings.scaling.drain_seconds
        _log.info("draining", connections=len(self._connections), seconds=seconds)
        await self.guide.stop()
        await self.shedding.stop()
        began = asyncio.get_running_loop().time()
        # its clients are told where their rooms live from now on
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * GIVE_AWAY_SHARE):
                await self.homes.give_away()
        if self._connections:
            await Departure(
                connections=self._connections,
                budget=self._registry.budget,
                metrics=self.metrics,
                window_seconds=seconds - (asyncio.get_running_loop().time() - began),
                destination=self._new_home,
                settle=self._settle,
                empty=self._empty,
            ).run()
        await self._settle()

    def _new_home(self, connection: Connection) -> str | None:
        guest = _guest(connection)
        return self.guide.destination(guest, leaves=True) if guest is not None else None

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
        await self.guide.stop()
        await self.shedding.stop()
        for connection in list(self._connections):
            connection.close_with(1012, REASON)
        if self._listener is not None:
            self._listener.close()
            try:
                async with asyncio.timeout(1.0):
                    await self._listener.wait_closed()
            except TimeoutError:
                for connection in list(self._connections):
                    connection.transport.abort()
        if self._live is not None:
            await self._live.stop()
        await self._reporter.stop()
        await self._relief.stop()
        await self._heartbeat.stop()
        self._wall_clock.stop()
        await self.room_options.stop()
        await self._hub.stop()
        await self.presence.stop()
        await self.homes.stop()
        await self._registry.stop()
        await self.broker.stop()
        await self._verifier.stop()
        await self._internal.stop()

    def _members(self, room: str) -> list[Guest]:
        return [one for one in self._hub.occupants(room) if isinstance(one, Membership)]

    def _may_go(self, connection: Connection) -> bool:
        """Whether it may as well be elsewhere: where rooms have homes, who is in some belongs there."""
        guest = _guest(connection)
        return guest is not None and not (self.homes.kept and any(True for _ in guest.shared_rooms()))

    def _following(self) -> int:
        return self.guide.following() + self.shedding.following()

    def _on_homes(self) -> None:
        self.guide.changed()
        self.shedding.changed()

    def _clock_jumped(self) -> None:
        for connection in list(self._connections):
            if connection.session is not None:
                connection.session.clock_jumped()

    def _on_redis_up(self) -> None:
        self._hub.retry()
        self._hub.compare()
        self.presence.say_again()

    async def _gone(self, holders: frozenset[str]) -> frozenset[str]:
        return await self._registry.others.gone(holders)

    def _claim_problem(self) -> str | None:
        return self._registry.claim_problem

    def _problems(self) -> list[str]:
        """Of keys and certificates, whether others are in use meanwhile or not."""
        auth, certificate = self._settings.auth, self._certificate
        keys = auth.jwt_secret.configured or auth.public_key.configured or auth.jwks_url != ""
        found = self._verifier.problems() if keys else []
        if certificate is not None and certificate.trouble is not None:
            found.append(certificate.trouble)
        if self._live is not None and self._live.problem is not None:
            found.append(self._live.problem)
        return found

    def _on_claim(self, problem: str | None) -> None:
        self.broker.block(RedisRefusedError("PrefixClaimed", problem) if problem is not None else None)

    # A connection's host

    def _make_connection(self) -> Connection:
        protocol = Handshake(
            extensions=self._extensions, max_size=self.max_payload_bytes, logger=_library_log
        )
        return Connection(self, protocol)

    def asked(self, connection: Connection, request: Request) -> Response | Awaitable[Response | None] | None:
        """From a connection."""
        answer = self._public.answer(request)
        if answer is not None:
            return answer
        return self._admission.admit(connection, request)

    def arriving(self, connection: Connection) -> bool:
        """From a connection."""
        connection.visitor = visitor = self._door.accepted(connection.transport.get_extra_info("peername"))
        if visitor is None:
            return False
        if visitor.proxy_expected:
            connection.proxy = ProxyPreface()
        if self._certificate is not None:
            connection.tls = self._certificate.context()
            if connection.tls is None:
                self._door.arrived(visitor)
                self.dropped("tls")
                return False
        return True

    def announced(self, connection: Connection, header: ProxyPreface) -> bool:
        """From a connection."""
        visitor = connection.visitor
        return visitor is None or not header.told or self._door.announced(visitor, header.source)

    def dropped(self, reason: str) -> None:
        """From a connection."""
        self.metrics.connections_refused.add(reason)

    def arrived(self, connection: Connection) -> None:
        """From a connection."""
        if connection.visitor is not None:
            self._door.arrived(connection.visitor)

    def opened(self, connection: Connection) -> None:
        """From a connection."""
        self._connections.add(connection)
        self._empty.clear()
        self.metrics.connections += 1
        self._heartbeat.add(connection)
        if self._settings.monitoring.enable_detailed_logging and connection.session is not None:
            _log.info("connection_opened", session=connection.session.name)
        if connection.visitor is not None and connection.refusal is None:
            self._door.entered(connection.visitor)

    def closing(self, connection: Connection, code: int) -> None:
        """From a connection."""
        self.metrics.connections_closed.add(str(code))
        session = connection.session
        if connection.visitor is None or session is None or connection.refusal is not None:
            return
        if not session.turned_away:
            self._door.offended(connection.visitor, code, None if session.guest else session.user)

    def slow(self, connection: Connection) -> None:
        """From a connection."""
        self.metrics.slow_consumers += 1
        if connection.session is not None and (frames := connection.session.outlet.frames):
            self.metrics.messages_dropped.add("slow_consumer", count(frames))

    def lost(self, connection: Connection) -> None:
        """From a connection."""
        self._connections.discard(connection)
        self._heartbeat.remove(connection)
        if connection.visitor is not None:
            self._door.left(connection.visitor)
        if not self._connections:
            self._empty.set()
        self.metrics.connections -= 1
        if self._settings.monitoring.enable_detailed_logging and connection.session is not None:
            session = connection.session
            _log.info(
                "connection_closed", session=session.name, user=session.user, code=connection.close_code
            )

    def told(self, connection: Connection) -> None:  # noqa: ARG002
        """From a connection."""
        self._admission.told -= 1


def _guest(connection: Connection) -> Membership | None:
    """The client, where it has been welcomed and is still there."""
    session = connection.session
    if session is None or session.closed or session.identity is None:
        return None
    return session.membership
