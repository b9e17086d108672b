"""One Redis that takes writes, and the three connections to it: publishes, subscriptions, commands."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from tableforge_dataplane.broker.connection import Link, LinkUser, RedisConnection, Reply, pack
from tableforge_dataplane.broker.durability import needs_of, online_replicas, setting_in
from tableforge_dataplane.broker.fence import KEY_LIFETIME_MS, Fence
from tableforge_dataplane.broker.publisher import REFUSING, Publisher
from tableforge_dataplane.broker.recovery import Commands
from tableforge_dataplane.broker.state import RedisRefusedError, ServerFacts, info_fields, judge
from tableforge_dataplane.broker.subscriber import PING_INTERVAL_SECONDS, Subscriber
from tableforge_dataplane.contract.settings import Durability, RedisSettings
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.topology.client import Locate

WATCH_INTERVAL_SECONDS: Final = 1.0
GUARD_RETRY_SECONDS: Final = 5.0

PATIENCE_STEPS: Final = 5
"""An answer is waited for in so many steps: of those a loop that stands still loses one, and reads in the
next what came meanwhile."""

_log = EventLog("broker")


class _CheckedPublisher:
    """The publisher's link user: it writes only where Redis keeps what was asked for."""

    def __init__(self, publisher: Publisher, *, durability: Durability, clustered: bool, where: str) -> None:
        self._publisher = publisher
        self._durability: Durability = durability
        self._clustered = clustered
        self._where = where

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:
        """Raises RedisRefusedError where durability is not what was asked for."""
        if self._clustered:
            info = info_fields(await connection.ask(b"CLUSTER", b"INFO"))
            if info.get("cluster_state") != "ok":
                # what a cluster refuses while it is down must not go again before all of it can
                raise RedisRefusedError(
                    "Unreachable", f"The Redis Cluster is down, as {self._where} sees it: mend its nodes."
                )
        self._publisher.needs = await needs_of(connection, facts, asked=self._durability, where=self._where)
        await self._publisher.on_up(connection, facts)

    def on_down(self) -> None:
        self._publisher.on_down()


class Shard:
    """The connections to one Redis, what they say together, and the guard on its memory."""

    def __init__(
        self,
        redis: RedisSettings,
        *,
        where: str,
        locate: Locate,
        publisher: Publisher,
        subscriber: Subscriber,
        fence_key: bytes | None = None,
    ) -> None:
        """`where`: the place, for people. `locate` is asked before each connect. `fence_key`: what this
        server takes the fence's writes to; where None a key that any standalone server takes."""
        self.where = where
        self.publisher = publisher
        self.subscriber = subscriber
        self.commands = Commands()
        self._redis = redis
        publisher.on_refusal = subscriber.on_refusal = self._on_refusal
        self.commands.on_error = self.refused
        publisher.on_taken = self._on_taken
        publisher.breaker.changed = self._on_breaker_changed
        checked = _CheckedPublisher(
            publisher, durability=redis.durability, clustered=redis.mode == "Cluster", where=where
        )
        users: dict[str, LinkUser] = {
            "publisher": checked,
            "subscriber": subscriber,
            "commands": self.commands,
        }
        self._fence_key = f"tf:{redis.key_prefix}:fence".encode() if fence_key is None else fence_key
        self._fence: Fence | None = None
        if redis.durability != "Memory":
            self._fence = Fence(self._fence_key)
            publisher.attach_fence(self._fence)
            users["fence"] = self._fence
        self.links = {name: Link(redis, name=name, user=user, locate=locate) for name, user in users.items()}
        for link in self.links.values():
            link.changed = self._on_changed
        self.links["publisher"].changed = self._on_publisher_changed
        self._up = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._refused: RedisRefusedError | None = None
        """What it said when it last refused a write, until it takes one."""
        self.memory_problem: RedisRefusedError | None = None
        """Its memory is nearly full."""
        self.changed: Callable[[], None] = _nothing
        """Called after anything of this changed."""

    @property
    def up(self) -> bool:
        """Whether all connections stand."""
        return all(link.up for link in self.links.values())

    @property
    def write_problem(self) -> RedisRefusedError | None:
        """Why it takes no writes although it answers: it said so, or soon will."""
        return self.memory_problem or self._refused

    @property
    def facts(self) -> ServerFacts | None:
        """What the server last said of itself."""
        return next((link.facts for link in self.links.values() if link.facts is not None), None)

    @property
    def problem(self) -> RedisRefusedError | None:
        """Why not all connections stand: the most telling reason; None too before that is known."""
        problems = [link.problem for link in self.links.values() if link.problem is not None]
        # a link that waits for its first turn has nothing to say
        return min(problems, key=lambda problem: problem.reason == "Unreachable", default=None)

    def use_fence_key(self, key: bytes) -> None:
        """The fence's writes go here from now on: slots have moved."""
        if key != self._fence_key:
            self._fence_key = key
            if self._fence is not None:
                self._fence.use(key)

    def refused(self, text: str) -> None:
        """An error reply, to whatever was asked of it; where it refuses writes for now, that is its state."""
        if text.split(" ", 1)[0] in REFUSING:
            self._on_refusal(text)

    def start(self) -> None:
        """Begin to connect."""
        for link in self.links.values():
            link.start()
        self._tasks = [
            asyncio.create_task(keep_going(self._watch, log=_log), name="redis-watch"),
            asyncio.create_task(keep_going(self._ping, log=_log), name="redis-ping"),
        ]

    async def stop(self) -> None:
        """Drop all connections. Publications that wait are lost to their owners: settle first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self.links.values():
            await link.stop()

    def abort(self) -> None:
        """Drop the connections; new ones follow."""
        for link in self.links.values():
            link.abort()

    def _on_changed(self) -> None:
        links = self.links.values()
        up = sum(link.up for link in links)
        came_up, self._up = up > self._up, up
        if came_up:  # and not whenever one is up: two that fail would chase each other
            for link in links:
                if not link.up:
                    link.hurry()
        self.changed()

    def _on_publisher_changed(self) -> None:
        link = self.links["publisher"]
        if link.problem is not None:
            self.publisher.breaker.failed()
        elif link.up:
            self.publisher.breaker.succeeded()
        self._on_changed()

    def _on_refusal(self, text: str) -> None:
        self._refused = judge(text, where=self.where)
        self.changed()

    def _try_a_write(self) -> None:
        """Redis refused: a small write finds out whether it still does, and costs no publish its answer."""

        def on_reply(reply: Reply) -> None:
            if reply == b"OK":
                self.publisher.on_taking_writes()

        self.commands.send(pack(b"SET", self._fence_key, b"", b"PX", KEY_LIFETIME_MS), on_reply)

    def _on_breaker_changed(self) -> None:
        self.changed()

    def _on_taken(self) -> None:
        self._refused = None
        self.changed()

    async def _ping(self) -> None:
        """A connection that is open and silent is dropped: a half-dead network looks like that."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + PING_INTERVAL_SECONDS / 2
            await asyncio.sleep(PING_INTERVAL_SECONDS / 2)
            now = loop.time()
            # what came while this loop stood still is read before the next look
            patience = self._redis.connect_timeout_seconds + max(0.0, now - due)
            subscriber = self.links["subscriber"].connection
            if subscriber is not None:
                if now - subscriber.last_reply_at > PING_INTERVAL_SECONDS + patience:
                    _log.warning("redis_silent", link="subscriber", where=self.where)
                    subscriber.abort()
                elif now - subscriber.last_reply_at >= PING_INTERVAL_SECONDS / 2:
                    self.subscriber.ping()
            self.publisher.look_at_fence()
            waiting_since = self.publisher.waiting_since
            if waiting_since is not None and now - waiting_since > patience:
                _log.warning("redis_silent", link="publisher", where=self.where)
                self.links["publisher"].abort()

    async def _watch(self) -> None:
        """Memory, role and replicas; what is asked also shows whether the commands' connection answers."""
        answered = asyncio.Event()
        replies: list[Reply] = []

        def on_info(reply: Reply) -> None:
            replies.append(reply)
            answered.set()

        while True:
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            if not self.commands.connected:
                continue
            answered.clear()
            replies.clear()
            self.commands.send(pack(b"INFO", b"replication"), self._look_at_replication)
            self.commands.send(pack(b"INFO", b"memory"), on_info)
            if self._refused is not None:
                self._try_a_write()
            if self._redis.durability != "Memory" and self.links["publisher"].up:
                self._look_at_durability()
            for _ in range(PATIENCE_STEPS):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._redis.connect_timeout_seconds / PATIENCE_STEPS):
                        await answered.wait()
                        break
            else:
                _log.warning("redis_silent", link="commands", where=self.where)
                self.links["commands"].abort()
                await answered.wait()
            if isinstance(replies[0], bytes):
                self._judge_memory(info_fields(replies[0]))

    def _look_at_durability(self) -> None:
        """Somebody may change Redis's configuration while it runs: then the publisher's connection is made
        anew, and what it takes to promise is looked at again."""
        needs = self.publisher.needs
        if needs is None or not needs.disk:
            disk = "Disk" in self._redis.durability

            def on_policy(reply: Reply) -> None:
                if isinstance(reply, list) and setting_in(reply) != b"always":
                    self.links["publisher"].abort()

            if disk:
                self.commands.send(pack(b"CONFIG", b"GET", b"appendfsync"), on_policy)

        def on_enabled(reply: Reply) -> None:
            if isinstance(reply, bytes) and info_fields(reply).get("aof_enabled") == "0":
                self.links["publisher"].abort()

        if "Disk" in self._redis.durability:
            self.commands.send(pack(b"INFO", b"persistence"), on_enabled)

    def _look_at_replication(self, reply: Reply) -> None:
        """It may become a replica while nobody publishes, or lose its own: the publisher's connection, made
        anew, finds out what that means. (Whose a Cluster's slots are, the cluster says.)"""
        if not isinstance(reply, bytes):
            return
        replication = info_fields(reply)
        if replication.get("role") == "slave":
            wrong = self._redis.mode != "Cluster"
        else:
            wrong = "Replica" in self._redis.durability and not online_replicas(replication)
            # only where `min-replicas-to-write` asks for some
            if replication.get("min_slaves_good_slaves") == "0":
                self._on_refusal("NOREPLICAS")
        if wrong and self.links["publisher"].up:
            self.links["publisher"].abort()

    def _judge_memory(self, memory: dict[str, str]) -> None:
        try:
            used, most = int(memory.get("used_memory", "0")), int(memory.get("maxmemory", "0"))
        except ValueError:
            return
        problem = None
        if most > 0 and used * 100 >= most * self._redis.memory_guard_percent:
            problem = RedisRefusedError(
                "OutOfMemory",
                f"Redis at {self.where} uses {used * 100 // most} % of its {most // 1_048_576} MB: raise "
                "its maxmemory, or keep less (rooms' logs shrink as they age).",
            )
        changed = (problem is None) != (self.memory_problem is None)
        self.memory_problem = problem
        if changed:
            self.changed()


def _nothing() -> None:
    return None
