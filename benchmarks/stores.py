"""What instances cost and how long a message takes on each kind of Redis: durabilities, and shards."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from benchmarks.contestants import UNLIMITED, Contestant, DidNotStartError, Running
from benchmarks.curves import Points, saturated
from benchmarks.load import Load, Shape
from benchmarks.workloads import WARM_UP_SECONDS, Values, measure
from tests.support.processes import DataplaneFailedError, DataplaneFleet
from tests.support.redis import RedisServer
from tests.support.redis_cluster import RedisCluster

SHAPE: Final = Shape(rooms=200, members=5)


@dataclasses.dataclass(frozen=True)
class Connected:
    """A Redis that is up."""

    first: RedisServer
    pids: list[int]
    environ: dict[str, str]


@contextlib.asynccontextmanager
async def _alone(appendfsync: bool) -> AsyncIterator[Connected]:
    async with RedisServer(appendfsync="always" if appendfsync else None) as redis:
        yield Connected(redis, [redis.pid], {})


@contextlib.asynccontextmanager
async def _with_replica(appendfsync: bool) -> AsyncIterator[Connected]:
    async with (
        RedisServer(appendfsync="always" if appendfsync else None) as primary,
        RedisServer(
            appendfsync="always" if appendfsync else None,
            args=("--replicaof", primary.host, str(primary.port)),
        ) as replica,
    ):
        yield Connected(primary, [primary.pid, replica.pid], {})


@contextlib.asynccontextmanager
async def _sharded() -> AsyncIterator[Connected]:
    async with RedisCluster() as cluster:
        yield Connected(
            cluster.primaries[0],
            [one.pid for one in cluster.nodes],
            {"TABLEFORGE_REDIS_MODE": "Cluster", "TABLEFORGE_REDIS_ADDRESSES": cluster.addresses},
        )


@dataclasses.dataclass(frozen=True)
class Store:
    """One row."""

    name: str
    title: str
    durability: str
    start: Callable[[], AbstractAsyncContextManager[Connected]]
    instances: int = 1


ALL: Final = (
    Store("memory", "`Memory`, one Redis", "Memory", lambda: _alone(False)),
    Store("disk", "`Disk`, `appendfsync always`", "Disk", lambda: _alone(True)),
    Store("replica", "`Replica`, one replica", "Replica", lambda: _with_replica(False)),
    Store("disk-replica", "`Disk+Replica`", "Disk+Replica", lambda: _with_replica(True)),
    Store("memory-2", "`Memory`, one Redis, 2 instances", "Memory", lambda: _alone(False), 2),
    Store("memory-4", "`Memory`, one Redis, 4 instances", "Memory", lambda: _alone(False), 4),
    Store("shards", "`Memory`, a Cluster of 3 shards", "Memory", _sharded),
    Store("shards-2", "`Memory`, a Cluster of 3 shards, 2 instances", "Memory", _sharded, 2),
    Store("shards-4", "`Memory`, a Cluster of 3 shards, 4 instances", "Memory", _sharded, 4),
)


@dataclasses.dataclass(frozen=True)
class Plot:
    """Latency against throughput, from half load to saturation."""

    name: str
    title: str
    stores: tuple[str, ...]
    """A line each."""


PLOTS: Final = (
    Plot(
        "durability",
        "Latency against throughput at each durability: 200 rooms of 5, one instance",
        ("memory", "disk", "replica", "disk-replica"),
    ),
    Plot(
        "shards",
        "Latency against throughput on one Redis and on 3 shards: 200 rooms of 5",
        ("memory", "memory-2", "memory-4", "shards", "shards-2", "shards-4"),
    ),
)

CURVE: Final = "durability"
"""Under this name the points of `saturation` are kept, by store."""


async def run(store: Store, ours: Contestant, seconds: float) -> Values:
    """200 rooms of 5, one message outstanding in each. Raises DidNotStartError and LoadError."""
    async with _running(store) as servers:
        load = Load(ours.dialect)
        try:
            await load.open(servers.addresses, SHAPE)
            load.keep_outstanding(1)
            await asyncio.sleep(WARM_UP_SECONDS)
            return await measure(load, servers, seconds)
        finally:
            await load.close()


async def saturation(store: Store, ours: Contestant, seconds: float) -> Points:
    """Latency over the rate. Raises DidNotStartError and LoadError."""
    async with _running(store) as servers:
        async for point in saturated(ours, servers, seconds):
            yield point


@contextlib.asynccontextmanager
async def _running(store: Store) -> AsyncIterator[Running]:
    async with store.start() as redis, contextlib.AsyncExitStack() as stack:
        fleet = DataplaneFleet()
        stack.push_async_callback(fleet.stop)
        environ = {
            **UNLIMITED,
            "LOG_LEVEL": "warning",
            "TABLEFORGE_REDIS_DURABILITY": store.durability,
            **redis.environ,
        }
        try:
            found = await fleet(redis.first, store.instances, wait_until_ready=True, **environ)
        except* DataplaneFailedError as errors:
            raise DidNotStartError(str(errors.exceptions[0])) from None
        yield Running([(one.host, one.port) for one in found], [one.pid for one in found], redis.pids)
