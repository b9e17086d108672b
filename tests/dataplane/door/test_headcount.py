"""Limits by address and user over all instances: what they tell one another, and what a crash leaves."""

import asyncio
import contextlib
import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from websockets.exceptions import InvalidStatus

from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.registry.headcount import ENTRIES_IN_ALL, FEWEST_ENTRIES, SMALL_FLEET, Headcount
from tableforge_dataplane.security.tokens import mint
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer
from tests.support.redis_cluster import eventually

KEY = "a-key-that-is-long-enough-for-hs256"
BEHIND = {"trusted_proxies": "127.0.0.1/32"}
BEATS = {"failover_timeout_seconds": 3.0, "drain_seconds": 0.5}
"""Two beats a second; a count lasts three, and a busy machine may stand still for a while."""


def told(*counts: dict[str, int], instances: int = 2) -> Headcount:
    """Who knows of nobody but what others with these counts tell."""
    summaries = []
    for each in counts:
        other = Headcount()
        other.use_salt(b"salt")
        for key, count in each.items():
            for _ in range(count):
                other.enter(key)
        summaries.append(other.summary(instances=instances))
    made = Headcount()
    made.use_salt(b"salt")
    made.learn(summaries)
    return made


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers(1, 20), max_size=8), max_size=4))
def test_what_others_have_is_their_sum(counts: list[dict[str, int]]) -> None:
    made = told(*counts)
    for key in {key for each in counts for key in each} | {"nobody"}:
        assert made.elsewhere(key) == sum(each.get(key, 0) for each in counts)
        assert made.here(key) == 0


@given(st.lists(st.sampled_from("ab"), max_size=30))
def test_who_has_left_leaves_nothing(keys: list[str]) -> None:
    count = Headcount()
    for key in keys:
        count.enter(key)
    for key in keys:
        count.leave(key)
    assert count.summary(instances=1) == b""
    assert count._here == {}


def test_a_summary_has_a_bound_and_the_largest_counts_come_first() -> None:
    count = Headcount()
    for number in range(ENTRIES_IN_ALL + 10):
        count.enter(f"a:{number}")
    count.enter("a:7")
    assert len(count.summary(instances=1)) == ENTRIES_IN_ALL * 10
    # beyond a small fleet single connections stay at home
    assert len(count.summary(instances=SMALL_FLEET + 1)) == 10
    for number in range(1000):
        count.enter(f"a:{number}")
    assert len(count.summary(instances=100_000)) == FEWEST_ENTRIES * 10
    reader = Headcount()
    reader.use_salt(count._salt)
    reader.learn([count.summary(instances=100_000)])
    assert reader.elsewhere("a:7") == 3


def test_a_summary_names_nobody_and_another_salt_makes_nothing_of_it() -> None:
    made = told({"a:192.0.2.1": 3})
    assert made.elsewhere("a:192.0.2.1") == 3
    assert b"192.0.2.1" not in b"".join(made._elsewhere)
    made.use_salt(b"another")
    assert made.elsewhere("a:192.0.2.1") == 0


async def test_an_address_and_a_user_have_their_limits_over_all_instances(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(
        redis_server,
        2,
        scaling=BEATS,
        auth={"jwt_secret": Secret(value=KEY)},
        security={**BEHIND, "max_connections_per_ip": 3, "max_connections_per_user": 2},
    )
    address = {"additional_headers": {"X-Forwarded-For": "198.51.100.1"}}
    bearer = f"Bearer {mint(KEY, user='ada', lifetime_seconds=600, rights=None)}"
    user = {"additional_headers": {"Authorization": bearer}}
    mine = [await peers(one, **address) for _ in range(3)]
    users = [await peers(two, **user) for _ in range(2)]
    await until(lambda: two._door._headcount.elsewhere("a:198.51.100.1") == 3)
    await until(lambda: one._door._headcount.elsewhere("u:ada") == 2)
    for server, options in ((two, address), (one, user)):
        with pytest.raises(InvalidStatus) as refused:
            await peers(server, **options)
        assert refused.value.response.status_code == 429
    await peers(two, additional_headers={"X-Forwarded-For": "198.51.100.2"})
    await mine[0].socket.close()
    await users[0].socket.close()
    await until(lambda: two._door._headcount.elsewhere("a:198.51.100.1") == 2)
    await until(lambda: one._door._headcount.elsewhere("u:ada") == 1)
    await peers(two, **address)
    await peers(one, **user)


async def test_a_leaving_instances_clients_do_not_count_twice(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(
        redis_server,
        2,
        scaling={**BEATS, "drain_seconds": 30},
        security={**BEHIND, "max_connections_per_ip": 2},
    )
    address = {"additional_headers": {"X-Forwarded-For": "198.51.100.1"}}
    for _ in range(2):
        await peers(one, **address)
    await until(lambda: two._door._headcount.elsewhere("a:198.51.100.1") == 2)
    draining = asyncio.create_task(one.drain())
    # both connections are still there: it takes half a minute to close them
    await until(lambda: two._door._headcount.elsewhere("a:198.51.100.1") == 0, within=60)
    assert one._door._headcount.here("a:198.51.100.1") > 0
    for _ in range(2):
        await peers(two, **address)
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)


async def test_without_redis_the_limit_here_holds_and_what_others_told_is_forgotten(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(
        redis_server, 2, scaling=BEATS, security={**BEHIND, "max_connections_per_ip": 2}
    )
    await peers(one, additional_headers={"X-Forwarded-For": "198.51.100.1"})
    await until(lambda: two._door._headcount.elsewhere("a:198.51.100.1") == 1)
    await redis_server.kill9()
    await until(lambda: two._door._headcount.elsewhere("a:198.51.100.1") == 0)
    assert one._door._headcount.here("a:198.51.100.1") == 1
    await redis_server.start()
    # another salt by then, and yet the same counts
    await until(lambda: two._door._headcount.elsewhere("a:198.51.100.1") == 1, within=60)


async def test_a_killed_instance_leaves_no_count_behind(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    settings = {
        "TABLEFORGE_SECURITY_TRUSTED_PROXIES": "127.0.0.1/32",
        "TABLEFORGE_SECURITY_MAX_CONNECTIONS_PER_IP": "2",
        "TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT": "3000",
    }
    one, two = await dataplane(redis_server, 2, **settings)
    knocks = [await _knocked(one) for _ in range(2)]
    assert all(each.answer == b"101" for each in knocks)

    async def let_in() -> bool:
        found = await _knocked(two)
        await found.leave()
        return found.answer == b"101"

    async def turned_away() -> bool:
        return not await let_in()

    await eventually(turned_away)
    await one.kill9()
    await eventually(let_in)
    for each in knocks:
        each.writer.close()
    redis: Any = Redis(host=redis_server.host, port=redis_server.port)
    async with redis:

        async def forgotten() -> bool:
            return not await redis.keys("*headcount:instance-1")

        await eventually(forgotten)
        kept = await redis.keys("*headcount*")
        # (-2: it has run out meanwhile)
        assert all([await redis.pttl(key) != -1 for key in [*kept, *await redis.keys("*salt")]])


@dataclasses.dataclass
class Knock:
    """A handshake from one address, and what came of it."""

    at: DataplaneProcess
    answer: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def leave(self) -> None:
        """Close it, and wait until the instance counts nobody."""
        self.writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await self.reader.read()
        self.writer.close()

        async def empty() -> bool:
            _, page = await self.at.get("/metrics", port=self.at.http_port)
            (line,) = re.findall(rb"^tableforge_websocket_connections_total.* (\S+)$", page, re.MULTILINE)
            return float(line) == 0

        await eventually(empty)


async def _knocked(at: DataplaneProcess) -> Knock:
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"X-Forwarded-For: 198.51.100.1\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    return Knock(at, (await reader.readuntil(b"\r\n")).split()[1], reader, writer)
