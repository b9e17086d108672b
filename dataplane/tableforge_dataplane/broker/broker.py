"""The broker: three connections to Redis, what they say together, and the guard on its memory."""

import asyncio
from collections.abc import Callable
from typing import Final

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.connection import Link, RedisConnection, Reply, ReplyError, pack
from tableforge_dataplane.broker.publisher import Publisher
from tableforge_dataplane.broker.recovery import Commands, LogReader
from tableforge_dataplane.broker.state import RedisRefusedError, ServerFacts, info_fields, judge
from tableforge_dataplane.broker.subscriber import PING_INTERVAL_SECONDS, Subscriber, SubscriberUser
from tableforge_dataplane.contract.fleet import RedisState
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics

WATCH_INTERVAL_SECONDS: Final = 1.0
GUARD_RETRY_SECONDS: Final = 5.0

SYNCED: Final = ((b"appendonly", b"yes"), (b"appendfsync", b"always"))
"""What Redis must be set to so that what it acknowledges is on its disk."""

_log = EventLog("broker")


class _CheckedPublisher:
    """The publisher's link user: it writes only where Redis keeps what was asked for."""

    def __init__(self, publisher: Publisher, *, disk: bool, where: str) -> None:
        self._publisher = publisher
        self._disk = disk
        self._where = where

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:
        """Raises RedisRefusedError where durability is not what was asked for."""
        if self._disk:
            for name, wanted in SYNCED:
                try:
                    answer = await connection.ask(b"CONFIG", b"GET", name)
                except ReplyError as error:
                    raise RedisRefusedError(
                        "DurabilityNotMet",
                        f"Redis at {self._where} does not let its configuration be read ({error}): allow "
                        "CONFIG GET, or ask for durability Memory.",
                    ) from None
                found = _setting(answer)
                if found != wanted:
                    raise RedisRefusedError(
                        "DurabilityNotMet",
                        f"Redis at {self._where} runs with {name.decode()} {found.decode()}: durability Disk "
                        f"needs {name.decode()} {wanted.decode()}.",
                    )
        await self._publisher.on_up(connection, facts)

    def on_down(self) -> None:
        self._publisher.on_down()


class Broker:
    """Everything between this instance and Redis."""

    def __init__(self, settings: Settings, *, metrics: Metrics, user: SubscriberUser) -> None:
        redis = settings.redis
        self._settings = settings
        self._metrics = metrics
        self._where = f"{redis.host}:{redis.port}"
        self._key_prefix = redis.key_prefix
        self._guard_percent = redis.memory_guard_percent
        self.publisher = Publisher(
            performance=settings.performance,
            rooms=settings.rooms,
            queue_size=settings.scaling.message_queue_size,
        )
        self.publisher.on_refusal = self._on_refusal
        self.subscriber = Subscriber(user)
        self._commands = Commands()
        self.log = LogReader(self._commands, settings.rooms)
        checked = _CheckedPublisher(self.publisher, disk=redis.durability == "Disk", where=self._where)
        self._links = {
            "publisher": Link(redis, name="publisher", user=checked),
            "subscriber": Link(redis, name="subscriber", user=self.subscriber),
            "commands": Link(redis, name="commands", user=self._commands),
        }
        for link in self._links.values():
            link.changed = self._on_changed
        self._tasks: list[asyncio.Task[None]] = []
        self._up = 0
        self._state = RedisState(
            connected=False,
            reason="Connecting",
            message=f"Connecting to Redis at {self._where}.",
            durability=redis.durability,
        )
        self._write_problem: RedisRefusedError | None = None
        self.on_up: Callable[[], None] = _nothing
        """Called when all connections stand again."""

    def start(self) -> None:
        """Begin to connect; never waits for Redis."""
        for link in self._links.values():
            link.start()
        self._tasks = [
            asyncio.create_task(self._watch(), name="redis-watch"),
            asyncio.create_task(self._ping(), name="redis-ping"),
        ]

    async def stop(self) -> None:
        """Drop all connections. Publications that wait are lost to their owners: settle first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links.values():
            await link.stop()

    def address(self, room: str) -> RoomAddress:
        """Where `room` lives."""
        return RoomAddress.of(self._key_prefix, room)

    def redis_state(self) -> RedisState:
        """How this instance sees its Redis."""
        return self._state

    def _on_changed(self) -> None:
        links = list(self._links.values())
        problems = [link.problem for link in links if link.problem is not None]
        facts = next((link.facts for link in links if link.facts is not None), None)
        version = f"{facts.product} {facts.version}" if facts is not None else ""
        durability = self._settings.redis.durability
        if all(link.up for link in links):
            problem = self._write_problem
            state = RedisState(
                connected=True,
                reason="Connected" if problem is None else problem.reason,
                message=f"Connected to {version} at {self._where}." if problem is None else problem.message,
                version=version,
                durability=durability,
            )
        elif problems:
            # the most telling one: a link that waits for its first turn has nothing to say
            problem = min(problems, key=lambda problem: problem.reason == "Unreachable")
            state = RedisState(
                connected=False,
                reason=problem.reason,
                message=problem.message,
                version=version,
                durability=durability,
            )
        else:
            state = RedisState(
                connected=False,
                reason="Connecting",
                message=f"Connecting to Redis at {self._where}.",
                version=version,
                durability=durability,
            )
        up = sum(link.up for link in links)
        came_up, self._up = up > self._up, up
        if came_up:  # and not whenever one is up: two that fail would chase each other
            for link in links:
                if not link.up:
                    link.hurry()
        if state != self._state:
            before, self._state = self._state, state
            self._metrics.redis_connected = state.connected
            if (before.connected, before.reason) != (state.connected, state.reason):
                write = _log.info if state.reason == "Connected" else _log.warning
                write("redis_state", reason=state.reason, message=state.message)
            if state.connected and not before.connected:
                self.on_up()
        self._close_publisher_where_useless()

    def _close_publisher_where_useless(self) -> None:
        """What only a person can mend is refused at once; what heals by itself waits in the queue."""
        state = self._state
        if state.reason in ("DurabilityNotMet", "VersionTooOld", "OutOfMemory"):
            self.publisher.refuse(state.message, GUARD_RETRY_SECONDS)
        else:
            self.publisher.take()

    def _on_refusal(self, text: str) -> None:
        self._write_problem = judge(text, where=self._where)
        self._on_changed()

    async def _ping(self) -> None:
        """A connection that is open and silent is dropped: a half-dead network looks like that."""
        loop = asyncio.get_running_loop()
        patience = self._settings.redis.connect_timeout_seconds
        while True:
            await asyncio.sleep(PING_INTERVAL_SECONDS / 2)
            now = loop.time()
            subscriber = self._links["subscriber"].connection
            if subscriber is not None:
                if now - subscriber.last_reply_at > PING_INTERVAL_SECONDS + patience:
                    _log.warning("redis_silent", link="subscriber")
                    subscriber.abort()
                elif now - subscriber.last_reply_at >= PING_INTERVAL_SECONDS / 2:
                    self.subscriber.ping()
            waiting_since = self.publisher.waiting_since
            if waiting_since is not None and now - waiting_since > patience:
                _log.warning("redis_silent", link="publisher")
                self._links["publisher"].abort()

    async def _watch(self) -> None:
        """The memory guard; its INFO also shows whether the commands' connection still answers."""
        answered = asyncio.Event()
        replies: list[Reply] = []

        def on_info(reply: Reply) -> None:
            replies.append(reply)
            answered.set()

        while True:
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            self._metrics.publish_queue_depth = self.publisher.depth
            if not self._commands.connected:
                continue
            answered.clear()
            replies.clear()
            self._commands.send(pack(b"INFO", b"memory"), on_info)
            if self._settings.redis.durability == "Disk":
                self._look_at_syncing()
            try:
                async with asyncio.timeout(self._settings.redis.connect_timeout_seconds):
                    await answered.wait()
            except TimeoutError:
                _log.warning("redis_silent", link="commands")
                self._links["commands"].abort()
                await answered.wait()
            if isinstance(replies[0], bytes):
                self._judge_memory(info_fields(replies[0]))

    def _look_at_syncing(self) -> None:
        """Somebody may change Redis's configuration while it runs: then the publisher's connection is made
        anew, and refused."""
        for name, wanted in SYNCED:

            def on_setting(reply: Reply, wanted: bytes = wanted) -> None:
                if isinstance(reply, list) and _setting(reply) != wanted:
                    self._links["publisher"].abort()

            self._commands.send(pack(b"CONFIG", b"GET", name), on_setting)

    def _judge_memory(self, memory: dict[str, str]) -> None:
        try:
            used, most = int(memory.get("used_memory", "0")), int(memory.get("maxmemory", "0"))
        except ValueError:
            return
        problem = None
        if most > 0 and used * 100 >= most * self._guard_percent:
            problem = RedisRefusedError(
                "OutOfMemory",
                f"Redis at {self._where} uses {used * 100 // most} % of its {most // 1_048_576} MB: raise "
                "its maxmemory, or keep less (rooms' logs shrink as they age).",
            )
        # what Redis itself refused is forgotten here: the next publish shows whether it still does
        changed = (problem is None) != (self._write_problem is None)
        self._write_problem = problem
        if changed:
            self._on_changed()


def _setting(answer: Reply) -> bytes:
    """The value in CONFIG GET's answer."""
    value = answer[1] if isinstance(answer, list) and len(answer) > 1 else b"?"
    return value if isinstance(value, bytes) else b"?"


def _nothing() -> None:
    return None
