"""The promise on a Redis Cluster, at random: nodes killed, cut off and paused, slots moved under traffic.

With `Replica` no acknowledged message is lost as long as a shard's other node had caught up before the
primary went, which the saboteur waits for. Unacknowledged ones may be: who saw them is told `reset`. Seeds
and the full run as in `test_ledger_under_faults.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tableforge_dataplane.topology.slots import slot_of
from tests.dataplane.faults.sabotage import (
    FULL,
    INSTANCES_RARE,
    ROOMY,
    Draw,
    Fault,
    Saboteur,
    break_while_publishing,
    hold,
    instance_faults,
    link_faults,
    seed_of,
    server_faults,
)
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.proxy import FaultProxy
from tests.support.redis import RedisServer
from tests.support.redis_cluster import (
    RedisCluster,
    ask,
    eventually,
    is_primary,
    is_settled,
    is_synced,
)

WITHIN = 60.0
MESSAGES = 10_000 if FULL else 1_000
IN_SHORT = ("cut node", "client kill", "kill primary", "cut while slots move")


class Site:
    """Three instances behind a proxy each; three primaries and their replicas, behind a proxy each."""

    def __init__(
        self, redis: RedisCluster, instances: list[DataplaneProcess], to_instances: list[FaultProxy]
    ) -> None:
        self.redis = redis
        self.instances = instances
        self.to_instances = to_instances

    @property
    def urls(self) -> list[str]:
        return [f"ws://127.0.0.1:{proxy.port}/ws" for proxy in self.to_instances]

    @property
    def before_instances(self) -> dict[str, Fault]:
        return {**link_faults("clients", self.to_instances), **instance_faults(self.instances)}

    @property
    def behind_instances(self) -> dict[str, Fault]:
        return {
            **link_faults("node", list(self.redis.proxies.values())),
            **server_faults(self.redis.nodes),
            "kill primary": self._kill_primary,
            "stale primary": self._stale_primary,
            "kill replica": self._kill_replica,
            "planned failover": self._fail_over,
            "move slots": self._move_slots,
            "cut while slots move": self._cut_while_slots_move,
        }

    @property
    def shards(self) -> list[tuple[RedisServer, RedisServer]]:
        """The two nodes of each; which one is the primary changes."""
        pairs = zip(self.redis.primaries, self.redis.replicas, strict=True)
        return [(primary, replica) for primary, (replica,) in pairs]

    async def whole(self) -> None:
        """All nodes agree, and each shard's other node has all that its primary has."""

        async def so() -> bool:
            for node in self.redis.nodes:
                await node.start()
            return await self.redis.agree() and all([await self._is_whole(*pair) for pair in self.shards])

        await eventually(so, within=WITHIN)

    async def mend(self) -> None:
        """Everything runs, nothing is held back."""
        for proxy in (*self.redis.proxies.values(), *self.to_instances):
            proxy.heal()
        for process in (*self.redis.nodes, *self.instances):
            if process.running:
                process.resume()
        await self.whole()
        for instance in self.instances:
            await instance.start()

    async def _is_whole(self, one: RedisServer, two: RedisServer) -> bool:
        primary, replica = (one, two) if await is_primary(one) else (two, one)
        return (
            await is_primary(primary)
            and await is_synced(replica)
            and await is_settled(primary)
            and await is_settled(replica)
        )

    async def _shard(self, draw: Draw) -> tuple[RedisServer, RedisServer]:
        """Primary and replica of one."""
        one, two = draw.of(self.shards)
        return (one, two) if await is_primary(one) else (two, one)

    async def _kill_primary(self, draw: Draw) -> None:
        """Its replica, which takes its place, lacks what came in the last moment."""
        primary, replica = await self._shard(draw)
        replica.pause()
        await ask(primary, "CLIENT", "KILL", "TYPE", "replica")  # what comes now, it never gets
        await asyncio.sleep(draw.seconds)
        await primary.kill9()
        replica.resume()
        await eventually(lambda: is_primary(replica), within=WITHIN)
        await asyncio.sleep(draw.seconds)
        await primary.start()

    async def _stale_primary(self, draw: Draw) -> None:
        """It goes on, after its replica took its place, until it hears of that."""
        primary, replica = await self._shard(draw)
        primary.pause()
        await eventually(lambda: is_primary(replica), within=WITHIN)
        primary.resume()

    async def _kill_replica(self, draw: Draw) -> None:
        _, replica = await self._shard(draw)
        await replica.kill9()
        await asyncio.sleep(draw.seconds)
        await replica.start()

    async def _fail_over(self, draw: Draw) -> None:
        _, replica = await self._shard(draw)
        await ask(replica, "CLUSTER", "FAILOVER")
        await eventually(lambda: is_primary(replica), within=WITHIN)

    async def _move_slots(self, draw: Draw) -> None:
        await self._move(draw, cut=False)

    async def _cut_while_slots_move(self, draw: Draw) -> None:
        await self._move(draw, cut=True)

    async def _move(self, draw: Draw, *, cut: bool) -> None:
        """The slot of a room that is busy, in steps: before, with one of its keys, and with all of them."""
        slot = slot_of(b"ledger:%d" % (1 + draw.number % 20))
        source = await self.redis.owner(slot)
        others = [pair for pair in self.shards if source not in pair]
        one, two = others[draw.first]
        target = one if await is_primary(one) else two
        await self.redis.begin_move(slot, source=source, target=target)
        keys: list[Any] = sorted(await ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 10))
        if keys:
            await self.redis.move_keys(slot, source=source, target=target, keys=(draw.of(keys),))
        await asyncio.sleep(draw.seconds / 3)
        if cut:
            self.redis.proxies[source if draw.number % 2 else target].cut()
        await self.redis.move_keys(slot, source=source, target=target)
        await asyncio.sleep(draw.seconds / 3)
        if cut:
            self.redis.proxies[target if draw.number % 2 else source].cut()
        await self.redis.end_move(slot, source=source, target=target)
        # nobody waits for the target's replica to have the keys, and they were acknowledged long ago
        await self._caught_up(target)

    async def _caught_up(self, primary: RedisServer) -> None:
        goal = (await ask(primary, "INFO", "replication"))["master_repl_offset"]

        async def caught_up() -> bool:
            replication = await ask(primary, "INFO", "replication")
            return bool(replication["connected_slaves"]) and replication["slave0"]["offset"] >= goal

        await eventually(caught_up, within=WITHIN)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisCluster(replicas=1, proxied=True))
        fleet = DataplaneFleet(tmp_path)
        stack.push_async_callback(fleet.stop)
        instances = await fleet(
            redis.primaries[0],
            3,
            TABLEFORGE_REDIS_MODE="Cluster",
            TABLEFORGE_REDIS_ADDRESSES=redis.addresses,
            TABLEFORGE_REDIS_DURABILITY="Replica",
            **ROOMY,
        )
        to_instances = [await stack.enter_async_context(FaultProxy(one.port)) for one in instances]
        yield Site(redis, instances, to_instances)


@pytest.mark.timeout(900)
async def test_nothing_acknowledged_is_lost_doubled_or_out_of_order_wherever_a_room_lives(site: Site) -> None:
    seed = seed_of("cluster")
    behind = site.behind_instances
    verdict = await break_while_publishing(
        site.urls,
        [
            Saboteur(site.before_instances, seed=f"{seed} before", rare=INSTANCES_RARE),
            Saboteur(
                behind if FULL else {kind: behind[kind] for kind in IN_SHORT},
                seed=f"{seed} behind",
                whole=site.whole,
            ),
        ],
        mend=site.mend,
        messages=MESSAGES,
        over_seconds=150.0 if FULL else 10.0,
        least_faults=200 if FULL else 10,
        seed=seed,
    )
    hold(verdict, messages=MESSAGES)
