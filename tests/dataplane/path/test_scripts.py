"""What the scripts do to a room's keys, on the newest and the oldest server they run on."""

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.scripts import JOIN, PUBLISH
from tableforge_dataplane.contract.room_options import LogLimits
from tableforge_dataplane.contract.settings import RoomSettings
from tests.support.redis import Binary, RedisServer

ADDRESS = RoomAddress.of("test", "lobby", LogLimits.of_rooms(RoomSettings()))
HOUR_MS = 3_600_000


class Room:
    """The room's scripts, called by hand."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self.client = client
        self._tags = random.Random(7)

    async def join(self, *, max_age_ms: int = HOUR_MS) -> tuple[int, bytes]:
        seq, tag = await self.client.eval(JOIN.text, 2, ADDRESS.meta, ADDRESS.log, self.tag(), max_age_ms)
        return seq, tag

    async def publish(
        self,
        body: bytes = b"{}",
        *,
        key: bytes | None = None,
        since: bytes = b"",
        most: int = 1000,
        most_bytes: int = 1_000_000,
        max_age_ms: int = HOUR_MS,
    ) -> list[Any]:
        answer: list[Any] = await self.client.eval(
            PUBLISH.text,
            2,
            ADDRESS.meta,
            ADDRESS.log,
            ADDRESS.channel,
            b"PUBLISH",
            most,
            most_bytes,
            max_age_ms,
            self.tag(),
            b"origin",
            key if key is not None else b"k:" + self.tag(),
            since,
            body,
        )
        return answer

    async def log(self) -> list[tuple[int, bytes, dict[bytes, bytes]]]:
        entries = await self.client.xrange(ADDRESS.log)
        return [(int(name.split(b"-")[0]), name.split(b"-")[1], fields) for name, fields in entries]

    async def keys(self) -> set[bytes]:
        return {field for field in await self.client.hkeys(ADDRESS.meta) if field.startswith(b"k:")}

    def tag(self) -> bytes:
        return b"%d" % self._tags.getrandbits(52)


@pytest.fixture(params=["valkey", "redis62"])
async def room(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[Room]:
    binary: Binary = request.param
    async with RedisServer(tmp_path / "redis", binary=binary, appendfsync=None) as server:
        client = redis.asyncio.Redis(host=server.host, port=server.port)
        try:
            yield Room(client)
        finally:
            await client.aclose()


async def test_each_message_follows_its_predecessor_by_number_and_tag(room: Room) -> None:
    seq, tag = await room.join()
    assert seq == 0
    for number in range(1, 6):
        assert (await room.publish(b"{}"))[0] == number
    chain = await room.log()
    assert [entry[0] for entry in chain] == [1, 2, 3, 4, 5]
    for _, own, fields in chain:
        assert fields[b"h"].split(b" ")[0] == tag
        tag = own
    assert await room.join() == (5, tag)


async def test_what_is_published_is_what_is_stored(room: Room) -> None:
    await room.join()
    async with room.client.pubsub() as listener:
        await listener.subscribe(ADDRESS.channel)
        assert (await listener.get_message(timeout=30))["type"] == "subscribe"
        seq, tag, duplicate = await room.publish(b'{"a": 1 2}')
        message = await listener.get_message(timeout=30)
    ((stored_seq, stored_tag, fields),) = await room.log()
    assert (seq, tag, duplicate) == (stored_seq, stored_tag, 0)
    prev, ts, origin, before = fields[b"h"].split(b" ")
    assert message["data"] == b" ".join([b"1", tag, prev, ts, origin, b'{"a": 1 2}'])
    assert (origin, before) == (b"origin", b"0")


async def test_a_repeated_key_is_answered_with_the_first_position_and_stored_once(room: Room) -> None:
    await room.join()
    first = await room.publish(key=b"k:once")
    await room.publish()
    again = await room.publish(key=b"k:once", since=b"0-1")
    assert again == [first[0], first[1], 1]
    assert len(await room.log()) == 2


async def test_a_resend_is_stored_only_where_the_log_reaches_back_to_since(room: Room) -> None:
    seq, tag = await room.join()
    beginning = b"%d-%b" % (seq, tag)
    _, first_tag, _ = await room.publish()
    assert (await room.publish(since=beginning))[0] == 2
    assert (await room.publish(since=b"1-" + first_tag))[0] == 3
    newest = (await room.log())[-1]
    assert (await room.publish(since=b"3-" + newest[1]))[0] == 4
    assert (await room.publish(since=b"1-999"))[0] == -1, "another history"
    assert (await room.publish(since=b"4-999"))[0] == -1, "another history's newest"
    assert (await room.publish(since=b"99-1"))[0] == -1, "ahead of the log"
    for _ in range(80):
        await room.publish(most=32)
    assert (await room.publish(since=beginning))[0] == -1, "trimmed"
    assert (await room.log())[-1][0] == 84


async def test_a_resend_into_a_room_that_is_gone_is_not_stored(room: Room) -> None:
    assert (await room.publish(since=b"3-77"))[0] == -1
    assert await room.client.dbsize() == 0


async def test_the_log_keeps_so_many_messages_and_their_keys(room: Room) -> None:
    await room.join()
    lengths = []
    for _ in range(200):
        await room.publish(most=40)
        lengths.append(await room.client.xlen(ADDRESS.log))
    assert max(lengths) <= 40 + 32
    assert min(lengths[40:]) >= 40
    chain = await room.log()
    assert await room.keys() == {fields[b"k"] for _, _, fields in chain}
    assert chain[-1][0] == 200


async def test_the_log_keeps_no_more_than_so_many_bytes(room: Room) -> None:
    await room.join()
    sizes = random.Random(3)
    for _ in range(300):
        await room.publish(b"x" * sizes.randrange(2000), most_bytes=20_000)
        kept = sum(len(fields[b"m"]) for _, _, fields in await room.log())
        assert kept <= 20_000
    assert kept > 12_000
    assert await room.keys() == {fields[b"k"] for _, _, fields in await room.log()}


async def test_one_message_larger_than_the_log_is_kept_until_the_next(room: Room) -> None:
    await room.join()
    await room.publish(b"x" * 50_000, most_bytes=20_000)
    assert [entry[0] for entry in await room.log()] == [1]
    await room.publish(most_bytes=20_000)
    assert [entry[0] for entry in await room.log()] == [2]


async def test_old_messages_go(room: Room) -> None:
    await room.join(max_age_ms=1)
    await room.publish()
    await room.publish()
    # two hours later: what the entries say of their time is moved back instead of the clock
    for seq, tag, fields in await room.log():
        prev, ts, origin, before = fields[b"h"].split(b" ")
        older = b" ".join([prev, b"%.3f" % (float(ts) - 7200), origin, before])
        name = b"%d-%b" % (seq, tag)
        await room.client.xdel(ADDRESS.log, name)
        await room.client.rename(ADDRESS.log, b"{lobby}aside")
        await room.client.xadd(ADDRESS.log, {**fields, b"h": older}, id=name)
        for other_name, other in await room.client.xrange(b"{lobby}aside"):
            await room.client.xadd(ADDRESS.log, other, id=other_name)
        await room.client.delete(b"{lobby}aside")
        break
    await room.client.hset(ADDRESS.meta, "a", int(await room.client.hget(ADDRESS.meta, "a")) - 7_200_000)
    await room.publish()
    assert [entry[0] for entry in await room.log()] == [2, 3]


async def test_both_keys_live_at_least_as_long_as_a_message_is_kept(room: Room) -> None:
    await room.join(max_age_ms=60_000)
    for _ in range(3):
        await room.publish(max_age_ms=60_000)
        for key in (ADDRESS.meta, ADDRESS.log):
            assert 60_000 <= await room.client.pttl(key) <= 67_500


async def test_a_log_without_its_meta_is_a_history_that_is_over(room: Room) -> None:
    await room.join()
    await room.publish()
    await room.publish()
    await room.client.delete(ADDRESS.meta)
    assert (await room.publish())[0] == 1
    assert [entry[0] for entry in await room.log()] == [1]


async def test_where_memory_is_short_nothing_is_done_by_halves(room: Room) -> None:
    await room.join()
    await room.publish()
    before = await room.client.hgetall(ADDRESS.meta)
    await room.client.config_set("maxmemory", "1")
    with pytest.raises(ResponseError, match=r"OOM|maxmemory"):
        await room.publish()
    assert await room.client.hgetall(ADDRESS.meta) == before
    assert len(await room.log()) == 1
