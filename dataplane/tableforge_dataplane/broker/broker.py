"""The broker: everything between this instance and Redis, whatever number of servers that is."""

import asyncio
import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Final

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.cluster import ShardedCommands, ShardedPublisher, ShardedSubscriber
from tableforge_dataplane.broker.publications import Publishes
from tableforge_dataplane.broker.publisher import Publisher
from tableforge_dataplane.broker.recovery import CommandsByCallback, LogReader
from tableforge_dataplane.broker.scripts import PUBLISH_VARIANTS, publish_script
from tableforge_dataplane.broker.shard import GUARD_RETRY_SECONDS, WATCH_INTERVAL_SECONDS, Shard
from tableforge_dataplane.broker.shards import ClusterShards
from tableforge_dataplane.broker.state import RedisRefusedError
from tableforge_dataplane.broker.subscriber import Subscriber, SubscriberUser
from tableforge_dataplane.contract.fleet import RedisState
from tableforge_dataplane.contract.room_options import RoomOptions, parse_room_options
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.topology.client import Locate, PasswordMissingError
from tableforge_dataplane.topology.nodes import Node, NodeUnknownError
from tableforge_dataplane.topology.slots import SlotMap, tag_of
from tableforge_dataplane.topology.topology import Cluster, Sentinels, Standalone

HOPELESS: Final = ("DurabilityNotMet", "VersionTooOld", "OutOfMemory", "PrefixClaimed")
"""What only a person can mend: publishes are refused at once, where what heals by itself lets them wait."""

PASSING: Final = ("Connecting", "Unreachable")
"""What heals by itself: publishes wait. Of anything else that is so once the circuit breaker is open."""

_log = EventLog("broker")


@dataclasses.dataclass(frozen=True, slots=True)
class _Sharded:
    """What stands before a cluster's shards."""

    publisher: ShardedPublisher
    subscriber: ShardedSubscriber
    commands: ShardedCommands

    def attach(self, shard: Shard, node: Node) -> None:
        self.publisher.attach(shard.publisher, node)
        self.subscriber.attach(shard.subscriber, node)
        self.commands.attach(shard.commands, node)

    def detach(self, shard: Shard) -> None:
        self.publisher.detach(shard.publisher)
        self.subscriber.detach(shard.subscriber)
        self.commands.detach(shard.commands)


class Broker:
    """Everything between this instance and Redis."""

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics,
        user: SubscriberUser,
        topology: Standalone | Sentinels | Cluster,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._topology = topology
        self._key_prefix = settings.redis.key_prefix
        self.rules = parse_room_options("", settings.rooms, max_payload_bytes=0)
        """Every room's options, as they are now."""
        self.publish_command = b"SPUBLISH" if isinstance(topology, Cluster) else b"PUBLISH"
        """What reaches everybody who is subscribed to a channel."""
        self._user = user
        self._script = publish_script(random.randrange(PUBLISH_VARIANTS))  # noqa: S311
        self._single: Shard | None = None
        self._cluster: ClusterShards | None = None
        self._sharded: _Sharded | None = None
        self.publisher: Publishes
        self.subscriber: Subscriber | ShardedSubscriber
        self.commands: CommandsByCallback
        """For what isn't on the message path: commands with callbacks."""
        if isinstance(topology, Cluster):
            self._cluster = self._follow_cluster(topology)
        else:
            self._single = self._make_shard(topology.where, topology.locate, Subscriber(user))
            self.publisher = self._single.publisher
            self.subscriber = self._single.subscriber
            self.commands = self._single.commands
        self.log = LogReader(self.commands)
        self._tasks: list[asyncio.Task[None]] = []
        self._blocked: RedisRefusedError | None = None
        self._slots: SlotMap | None = None
        """What rooms are routed by."""
        self._state = self._connecting()
        self.on_up: Callable[[], None] = _nothing
        """Called when all connections stand again."""

    def start(self) -> None:
        """Begin to connect; never waits for Redis."""
        if self._single is not None:
            self._single.start()
        if self._cluster is not None:
            self._cluster.start()
        self._tasks = [asyncio.create_task(keep_going(self._watch, log=_log), name="broker-watch")]
        if isinstance(self._topology, Sentinels):
            follow = functools.partial(self._follow, self._topology)
            self._tasks.append(asyncio.create_task(keep_going(follow, log=_log), name="broker-follow"))

    async def stop(self) -> None:
        """Drop all connections. Publications that wait are lost to their owners: settle first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._sharded is not None:
            self._sharded.publisher.stop()
        if self._cluster is not None:
            await self._cluster.stop()
        if self._single is not None:
            await self._single.stop()

    @property
    def shards(self) -> list[Shard]:
        """Every Redis that serves rooms; none before a cluster has been found."""
        if self._cluster is not None:
            return self._cluster.serving
        return [self._single] if self._single is not None else []

    def address(self, room: str) -> RoomAddress:
        """Where `room` lives, and how far its log reaches."""
        return RoomAddress.of(self._key_prefix, room, self.rules.of(room).log)

    def options(self, room: str) -> RoomOptions:
        """What holds for `room`."""
        return self.rules.of(room)

    def redis_state(self) -> RedisState:
        """How this instance sees its Redis."""
        return self._state

    def trouble(self) -> str:
        """Why Redis did not do what it was asked for, as far as is known: a sentence."""
        silent = self._state.reason in (*PASSING, "Connected")
        return "Redis does not answer." if silent else self._state.message

    def block(self, problem: RedisRefusedError | None) -> None:
        """Redis answers and must not be used, for this reason; None: it may (again)."""
        self._blocked = problem
        self._on_changed()

    def refused(self, text: str, *, slot: int) -> None:
        """What the server of this slot answered to somebody else's write: see `Shard.refused`."""
        shard = self._cluster.shard_of(slot) if self._cluster is not None else self._single
        if shard is not None:
            shard.refused(text)

    def _make_shard(
        self, where: str, locate: Locate, subscriber: Subscriber, *, fence_key: bytes | None = None
    ) -> Shard:
        settings = self._settings
        publisher = Publisher(
            performance=settings.performance,
            queue_size=settings.scaling.message_queue_size,
            scaling=settings.scaling,
            publish_command=self.publish_command,
            script=self._script,
        )
        shard = Shard(
            settings.redis,
            where=where,
            locate=locate,
            publisher=publisher,
            subscriber=subscriber,
            fence_key=fence_key,
        )
        shard.changed = self._on_changed
        return shard

    def _follow_cluster(self, topology: Cluster) -> ClusterShards:
        redis = self._settings.redis
        pause_seconds = redis.retry_delay_on_failover_seconds
        shards = ClusterShards(topology, make=self._make_cluster_shard, pause_seconds=pause_seconds)
        head = Publisher(
            performance=self._settings.performance,
            queue_size=1,
            publish_command=self.publish_command,
            script=self._script,
        ).head
        self._sharded = sharded = _Sharded(
            publisher=ShardedPublisher(
                shards,
                head=head,
                queue_size=self._settings.scaling.message_queue_size,
                retries=redis.max_retries_per_request,
                pause_seconds=pause_seconds,
            ),
            subscriber=ShardedSubscriber(shards),
            commands=ShardedCommands(
                shards, key_prefix=redis.key_prefix, retries=redis.max_retries_per_request
            ),
        )
        self.publisher = sharded.publisher
        self.subscriber = sharded.subscriber
        self.commands = sharded.commands
        shards.on_slots = self._on_slots
        shards.on_gone = sharded.detach
        return shards

    def _make_cluster_shard(self, node: Node) -> Shard:
        async def locate() -> Node:
            return node

        shard = self._make_shard(
            str(node), locate, Subscriber(self._user, clustered=True), fence_key=self._fence_key(node)
        )
        if self._sharded is not None:
            self._sharded.attach(shard, node)
        return shard

    def _fence_key(self, node: Node) -> bytes:
        """One that this node takes; any, where it serves no slot."""
        slots = self._topology.slots if isinstance(self._topology, Cluster) else None
        slot = slots.first_of(node) if slots is not None else None
        return f"tf:{self._key_prefix}:{{{tag_of(slot or 0).decode()}}}:fence".encode()

    def _on_slots(self) -> None:
        """The cluster's slots were read anew: what waits and is subscribed goes where it belongs now."""
        if self._sharded is None or self._cluster is None or not isinstance(self._topology, Cluster):
            return
        if self._topology.slots is not self._slots:
            self._slots = self._topology.slots
            self._sharded.publisher.rerouted()
            if self._settings.redis.durability != "Memory" and self._slots is not None:
                for node in self._slots.primaries:
                    self._cluster.shard_of_node(node).use_fence_key(self._fence_key(node))
        self._sharded.subscriber.rerouted()
        self._on_changed()

    def _connecting(self) -> RedisState:
        return RedisState(
            connected=False,
            reason="Connecting",
            message=f"Connecting to Redis at {self._topology.where}.",
            durability=self._settings.redis.durability,
        )

    def _judge(self) -> RedisState:
        """What all connections together say."""
        facts = next((shard.facts for shard in self.shards if shard.facts is not None), None)
        version = f"{facts.product} {facts.version}" if facts is not None else ""
        durability = self._settings.redis.durability
        connected = all(shard.up for shard in self.shards) and bool(self.shards)
        problems = [shard.problem for shard in self.shards if shard.problem is not None]
        if self._cluster is not None and self._cluster.problem is not None:
            connected = False
            problems.append(RedisRefusedError("Unreachable", f"Redis Cluster: {self._cluster.problem}."))
        if self._blocked is not None:
            problem: RedisRefusedError | None = self._blocked
            connected = False
        elif connected:
            problem = next((shard.write_problem for shard in self.shards if shard.write_problem), None)
        else:
            problem = min(problems, key=lambda problem: problem.reason == "Unreachable", default=None)
        if problem is not None:
            reason, message = problem.reason, problem.message
        elif connected:
            reason, message = "Connected", f"Connected to {version} at {self._topology.where}."
        else:
            return self._connecting()
        return RedisState(
            connected=connected, reason=reason, message=message, version=version, durability=durability
        )

    def _on_changed(self) -> None:
        state = self._judge()
        if state != self._state:
            before, self._state = self._state, state
            self._metrics.redis_connected = state.connected
            if (before.connected, before.reason) != (state.connected, state.reason):
                write = _log.info if state.reason == "Connected" else _log.warning
                write("redis_state", reason=state.reason, message=state.message)
            if state.connected and not before.connected:
                self.on_up()
        if self._cluster is not None and not state.connected:
            self._cluster.look_again()
        self._close_publishers_where_useless()
        self._note_breakers()

    def _close_publishers_where_useless(self) -> None:
        for shard in self.shards:
            problem = self._blocked or shard.problem or shard.memory_problem
            given_up = shard.publisher.breaker.state == "open" and problem is not None
            if problem is not None and (
                problem.reason in HOPELESS or (given_up and problem.reason not in PASSING)
            ):
                shard.publisher.refuse(problem.message, GUARD_RETRY_SECONDS)
            else:
                shard.publisher.take()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            self._metrics.publish_queue_depth = self.publisher.depth
            self._note_breakers()

    def _note_breakers(self) -> None:
        """The worst of all shards', for whoever looks."""
        states = {shard.publisher.breaker.state for shard in self.shards}
        self._metrics.breakers["publish"] = next(
            (state for state in ("open", "half-open") if state in states), "closed"
        )

    async def _follow(self, sentinels: Sentinels) -> None:
        """A primary that was replaced may go on answering: the sentinels are asked who it is."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            try:
                node = await sentinels.locate()
            except (NodeUnknownError, PasswordMissingError):
                continue  # the links say so where it matters
            for shard in self.shards:
                for link in shard.links.values():
                    if link.up and link.node != node:
                        _log.warning("primary_replaced", was=str(link.node), now=str(node))
                        link.abort()


def _nothing() -> None:
    return None
