"""One budget for everything that makes clients reconnect: in Redis, shared; without Redis, in shares."""

import asyncio
from collections import Counter

import pytest
from websockets.exceptions import ConnectionClosed

from tableforge_dataplane.registry.budget import Bucket, ReconnectBudget
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.lost_time import lost_time
from tests.support.redis import RedisServer

PER_SECOND = 40


def test_a_bucket_holds_so_much_and_fills_so_fast() -> None:
    bucket = Bucket()
    assert bucket.take(100, rate=10.0, most=5.0, now=100.0) == 5
    assert bucket.take(1, rate=10.0, most=5.0, now=100.0) == 0
    assert bucket.take(9, rate=10.0, most=5.0, now=100.25) == 2
    assert bucket.take(9, rate=10.0, most=5.0, now=100.375) == 1
    assert bucket.take(9, rate=10.0, most=5.0, now=50.0) == 0, "a clock set back gives nothing"
    assert bucket.take(9, rate=10.0, most=5.0, now=1e6) == 5


async def test_instances_share_the_bucket_in_redis(redis_server: RedisServer, instances: Instances) -> None:
    fleet = await instances(redis_server, 3, rollout={"max_reconnects_per_second": PER_SECOND})
    budgets = [one._registry.budget for one in fleet]
    loop = asyncio.get_running_loop()
    began, taken = loop.time(), 0
    async with asyncio.timeout(30), lost_time() as lost:
        # how many it gives in a second is the question; of time in which nobody asks it keeps little
        while loop.time() - began < 1.0 or taken < PER_SECOND:
            taken += sum(await asyncio.gather(*(budget.take(100) for budget in budgets)))
            await asyncio.sleep(0.02)
    took = loop.time() - began
    assert taken <= PER_SECOND * (took + 0.5) + 1
    assert took < 5 + 2 * lost.seconds, "it fills as fast as it should"


async def test_without_redis_each_has_its_share(redis_server: RedisServer, instances: Instances) -> None:
    one, two = await instances(redis_server, 2, rollout={"max_reconnects_per_second": PER_SECOND})
    await until(lambda: one._registry.registered and two._registry.registered)

    async with asyncio.timeout(30):
        while (await one._registry.fleet()).totals.instances != 2:  # noqa: ASYNC110  # Redis tells nobody
            await asyncio.sleep(0.1)
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await one._registry.budget.take(1000) == PER_SECOND / 2 / 2
    taken = await one._registry.budget.take(1000)
    assert taken <= PER_SECOND / 2 * (loop.time() - began) + 1


async def test_a_redis_that_says_nothing_delays_nobody_for_long() -> None:
    asked = 0

    async def ask(_rate: float, _most: float, _wanted: int) -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60)
        return 0

    budget = ReconnectBudget(per_second=100, ask=ask, instances=lambda: 1)
    # ten times as long as it is waited for once would be ten seconds
    async with asyncio.timeout(8):
        for _ in range(10):
            await budget.take(1)
    assert asked == 1


async def test_three_instances_that_leave_together_keep_to_the_clusters_budget(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    fleet = await instances(
        redis_server,
        3,
        rollout={"max_reconnects_per_second": 15},
        scaling={"drain_seconds": 6.0},
    )
    leavers = [await peers(one) for one in fleet for _ in range(40)]
    loop = asyncio.get_running_loop()
    told_at: list[float] = []
    codes: Counter[int | None] = Counter()

    async def follow(peer: Peer, obedient: bool) -> None:
        migrate = await peer.until("migrate")
        assert migrate["reason"] == "leaving"
        told_at.append(loop.time() + migrate["after"])
        if obedient:
            await asyncio.sleep(migrate["after"])  # as it was told to
            await peer.socket.close()
        codes[await peer.closed()] += 1

    following = [asyncio.create_task(follow(peer, number % 2 == 0)) for number, peer in enumerate(leavers)]
    began = loop.time()
    async with lost_time() as lost:
        await asyncio.gather(*(one.drain() for one in fleet), *following)
    assert codes == {1000: 60, 1012: 60}
    assert len(told_at) == 120
    # each alone would have sent 10 a second away, all together 30; the last quarter makes up for it
    early = sum(at - began < 3.0 for at in told_at)
    most = (3.0 + 0.5) * 15 + 3
    assert (3.0 - lost.seconds) * 15 * 0.5 <= early <= most, "more than the cluster may do, or too little"
    last = max(told_at)
    at_once = sum(at > last - 0.4 for at in told_at)
    assert at_once <= 35 + 45 * lost.seconds, "all that were left went at the end"
    assert last - began < 6.5 + lost.seconds, "the budget alone takes longer"
    assert loop.time() - began < 9.0 + lost.seconds


async def test_the_windows_end_holds_even_where_the_budget_does_not_reach(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(
        redis_server, rollout={"max_reconnects_per_second": 1}, scaling={"drain_seconds": 1.0}
    )
    leavers = [await peers(one) for _ in range(30)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    closed = asyncio.gather(*(peer.closed() for peer in leavers))
    await one.drain()
    assert loop.time() - began < 15, "one a second"
    assert await closed == [1012] * 30


async def test_who_follows_at_once_ends_the_drain_early(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, scaling={"drain_seconds": 30.0})
    ada = await peers(one)

    async def go() -> None:
        await ada.until("migrate")
        await ada.socket.close()

    going = asyncio.create_task(go())
    async with asyncio.timeout(15):
        await one.drain()
    await going


async def test_what_was_acknowledged_before_the_end_is_there(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, scaling={"drain_seconds": 1.0})
    witness, leavers = await peers(two), [await peers(one) for _ in range(10)]
    await witness.join("lobby")
    acknowledged: set[str] = set()

    async def publish(number: int, peer: Peer) -> None:
        await peer.join("lobby")
        count = 0
        try:
            while True:
                count += 1
                text = f"{number}-{count}"
                await peer.published("lobby", text, echo=False)
                acknowledged.add(text)
                await asyncio.sleep(0.02)  # a pace
        except ConnectionClosed:
            assert peer.socket.close_code == 1012

    publishing = [asyncio.create_task(publish(*each)) for each in enumerate(leavers)]
    await until(lambda: len(acknowledged) > 20)
    await one.drain()
    await asyncio.gather(*publishing)
    await witness.publish("lobby", "the end")
    heard: set[str] = set()
    while "the end" not in heard:
        heard.add((await witness.until("message"))["data"])
    assert acknowledged <= heard


@pytest.mark.parametrize("wanted", [0, 1, 1000])
async def test_nobody_gets_more_than_asked(
    redis_server: RedisServer, instances: Instances, wanted: int
) -> None:
    (one,) = await instances(redis_server, rollout={"max_reconnects_per_second": 10})
    assert await one._registry.budget.take(wanted) == min(wanted, 5)
