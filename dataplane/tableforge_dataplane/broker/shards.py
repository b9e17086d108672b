"""The shards of a Redis Cluster: made, followed through failovers and moves of slots, and let go."""

import asyncio
from collections.abc import Callable
from typing import Final

from tableforge_dataplane.broker.shard import WATCH_INTERVAL_SECONDS, Shard
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.topology.nodes import Node
from tableforge_dataplane.topology.topology import Cluster

REFRESH_SECONDS: Final = 10.0
"""How often the slots are asked for where nothing seems to have changed."""

LONGEST_PAUSE_SECONDS: Final = 1.0
"""Between two readings of the slots while something is wrong."""

KEPT_SECONDS: Final = 10.0
"""How long the connections to a node that serves no slot are kept after a redirection went there."""

_log = EventLog("shards")


class ClusterShards:
    """One `Shard` for each primary; a failover or a moved slot is the same to it: other owners of slots."""

    def __init__(self, cluster: Cluster, *, make: Callable[[Node], Shard], pause_seconds: float) -> None:
        """`make`: a shard for a node, not started yet."""
        self._cluster = cluster
        self._make = make
        self._pause_seconds = pause_seconds
        self._shards: dict[Node, Shard] = {}
        self._used_at: dict[Node, float] = {}
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self.on_slots: Callable[[], None] = _nothing
        """Called in the turn in which the slots were read anew."""
        self.on_gone: Callable[[Shard], None] = _nothing_with
        """Called with a shard that is let go."""
        cluster.changed = self._on_slots

    @property
    def all(self) -> list[Shard]:
        """Everything there is a connection to."""
        return list(self._shards.values())

    @property
    def serving(self) -> list[Shard]:
        """Those that serve slots; empty before the slots are known."""
        slots = self._cluster.slots
        return [self._shards[node] for node in sorted(slots.primaries)] if slots is not None else []

    @property
    def problem(self) -> str | None:
        """Why the slots are not known; None where they are, or nobody was asked yet."""
        slots = self._cluster.slots
        if slots is None:
            return self._cluster.problem
        missing = sum(owner is None for owner in slots.owners)
        return f"{missing} of the cluster's slots are served by nobody" if missing else None

    def start(self) -> None:
        """Begin to look for the cluster."""
        self._wanted.set()
        self._tasks = [
            asyncio.create_task(keep_going(self._follow, log=_log), name="shards-follow"),
            asyncio.create_task(keep_going(self._let_go, log=_log), name="shards-let-go"),
        ]

    async def stop(self) -> None:
        """Drop all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._stopping, return_exceptions=True)
        await self._cluster.stop()
        for shard in self._shards.values():
            await shard.stop()

    def shard_of(self, slot: int) -> Shard | None:
        """Who serves the slot, as far as is known."""
        slots = self._cluster.slots
        owner = slots.owners[slot] if slots is not None else None
        return self._shards.get(owner) if owner is not None else None

    def shard_of_node(self, node: Node) -> Shard:
        """The connections to a node that serves slots."""
        return self._shards[node]

    def shard_at(self, node: Node) -> Shard:
        """The connections to this node, made where there are none."""
        self._used_at[node] = asyncio.get_running_loop().time()
        return self._shard(node)

    def look_again(self) -> None:
        """The slots should be asked for anew: somebody was sent elsewhere, or a connection is lost."""
        self._wanted.set()

    def _shard(self, node: Node) -> Shard:
        shard = self._shards.get(node)
        if shard is None:
            _log.info("shard_found", node=str(node))
            shard = self._shards[node] = self._make(node)
            shard.start()
        return shard

    def _on_slots(self) -> None:
        slots = self._cluster.slots
        if slots is not None:
            for node in slots.primaries:
                self._shard(node)
        self.on_slots()

    async def _follow(self) -> None:
        pause = self._pause_seconds
        while True:
            try:
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            before = self._cluster.slots
            await self._cluster.refresh()
            if self._cluster.slots is before:
                self.on_slots()  # who was turned away tries again
            serving = self.serving
            if serving and self.problem is None and all(shard.up for shard in serving):
                pause = self._pause_seconds
            else:
                self._wanted.set()
                pause = min(pause * 1.5, max(LONGEST_PAUSE_SECONDS, self._pause_seconds))
            await asyncio.sleep(pause)

    async def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            slots = self._cluster.slots
            if slots is None:
                continue
            for node, shard in list(self._shards.items()):
                idle = shard.publisher.depth == 0 and shard.subscriber.channels == 0
                used_at = self._used_at.get(node, -KEPT_SECONDS)
                if node in slots.primaries or not idle or loop.time() - used_at < KEPT_SECONDS:
                    continue
                _log.info("shard_let_go", node=str(node))
                del self._shards[node]
                self._used_at.pop(node, None)
                self.on_gone(shard)
                stopping = asyncio.create_task(shard.stop(), name="shard-stop")
                self._stopping.add(stopping)
                stopping.add_done_callback(self._stopping.discard)


def _nothing() -> None:
    return None


def _nothing_with(_shard: Shard) -> None:
    return None
