"""What the scripts do to a room's presence, on the newest and the oldest server they run on."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis.asyncio

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.entries import MalformedEntryError, from_channel
from tableforge_dataplane.broker.presence import MOST_MEMBERS, PresenceChange, change_of
from tableforge_dataplane.broker.scripts import PRESENCE, PRESENCE_BURY, PRESENCE_READ
from tableforge_dataplane.contract.room_options import LogLimits
from tableforge_dataplane.contract.settings import RoomSettings
from tests.support.redis import Binary, RedisServer

ADDRESS = RoomAddress.of("test", "lobby", LogLimits.of_rooms(RoomSettings()))
ONE, TWO = "one|1", "two|2"
LIFETIME_MS = 60_000


class Room:
    """The room's scripts, called by hand, and what they publish."""

    def __init__(self, client: "redis.asyncio.Redis", pubsub: Any) -> None:
        self.client = client
        self._pubsub = pubsub

    async def write(self, holder: str, **sockets: int) -> tuple[int, int]:
        pairs = [part for pair in sockets.items() for part in pair]
        rev, users = await self.client.eval(
            PRESENCE.text.decode(),
            1,
            ADDRESS.presence,
            ADDRESS.channel,
            b"PUBLISH",
            LIFETIME_MS,
            holder,
            MOST_MEMBERS,
            *pairs,
        )
        return rev, users

    async def bury(self, *holders: str) -> int:
        return int(
            await self.client.eval(
                PRESENCE_BURY.text.decode(),
                1,
                ADDRESS.presence,
                ADDRESS.channel,
                b"PUBLISH",
                MOST_MEMBERS,
                *holders,
            )
        )

    async def read(self, most: int = MOST_MEMBERS) -> tuple[int, int, dict[bytes, bytes]]:
        rev, count, fields = await self.client.eval(PRESENCE_READ.text.decode(), 1, ADDRESS.presence, most)
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        found.pop(b"rev", None)
        return rev, count, found

    async def change(self) -> PresenceChange:
        """The next one that was published."""
        message = await self._pubsub.get_message(timeout=30)
        assert message is not None
        return change_of(from_channel(message["data"]))

    async def silent(self) -> None:
        """Nothing was published but what was looked at."""
        await self.client.publish(ADDRESS.channel, "-1 0 0 0 marker {}")
        assert (await self.change()).holder == "marker"


@pytest.fixture(params=["valkey", "redis62"])
async def room(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[Room]:
    binary: Binary = request.param
    async with RedisServer(tmp_path / "redis", binary=binary, appendfsync=None) as server:
        client = redis.asyncio.Redis(host=server.host, port=server.port)
        pubsub = client.pubsub()
        try:
            await pubsub.subscribe(ADDRESS.channel)
            subscribed = await pubsub.get_message(timeout=30)
            assert subscribed is not None
            assert subscribed["type"] == "subscribe"
            yield Room(client, pubsub)
        finally:
            await pubsub.aclose()
            await client.aclose()


async def test_only_the_first_and_the_last_socket_of_a_user_are_told(room: Room) -> None:
    rev, users = await room.write(ONE, ada=1)
    assert (rev > 1_600_000_000_000, users) == (True, 1)
    change = PresenceChange(rev=rev, count=1, holder=ONE, joined=["ada"], left=[])
    assert await room.change() == change
    assert await room.write(TWO, ada=2) == (rev, 1)
    assert await room.write(ONE, ada=0) == (rev, 1)
    assert await room.write(ONE, ada=0) == (rev, 1)
    await room.silent()
    assert await room.write(TWO, ada=0, bob=1) == (rev + 1, 1)
    assert await room.change() == PresenceChange(
        rev=rev + 1, count=1, holder=TWO, joined=["bob"], left=["ada"]
    )
    await room.write(TWO, bob=0)
    assert await room.client.exists(ADDRESS.presence) == 0
    assert await room.read() == (0, 0, {})


async def test_saying_it_again_changes_nothing_but_the_lifetime(room: Room) -> None:
    said = await room.write(ONE, ada=3)
    before = await room.read()
    await room.client.pexpire(ADDRESS.presence, 1000)
    assert await room.write(ONE, ada=3) == said
    assert await room.read() == before
    assert await room.client.pttl(ADDRESS.presence) > LIFETIME_MS / 2


async def test_a_rev_never_runs_back(room: Room) -> None:
    rev, _ = await room.write(ONE, ada=1)
    await room.client.delete(ADDRESS.presence)
    again, _ = await room.write(ONE, ada=1)
    assert again >= rev


async def test_users_may_be_called_anything(room: Room) -> None:
    names = ["rev", "a b", "one|1=2", 'qu"ote\\', "ä€😀", "u", "%s", "/"]
    await room.write(ONE, **dict.fromkeys(names, 1))
    assert (await room.change()).joined == names
    assert set((await room.read())[2]) == {b"u" + name.encode() for name in names}
    await room.write(TWO, **dict.fromkeys(names, 1))
    await room.write(ONE, **dict.fromkeys(names, 0))
    await room.write(TWO, **dict.fromkeys(names, 0))
    assert (await room.change()).left == names


async def test_a_dead_holder_takes_its_users_along_and_nobody_else(room: Room) -> None:
    await room.write(ONE, ada=1, bob=1)
    # a name that begins like the dead one's is another one
    await room.write("one|12", cy=1)
    rev, _ = await room.write(TWO, bob=1)
    for _ in range(2):
        await room.change()
    assert await room.bury(ONE, "three|3") == 2
    assert await room.change() == PresenceChange(rev=rev + 1, count=2, holder="-", joined=[], left=["ada"])
    assert await room.bury(ONE) == 0
    await room.silent()
    assert set((await room.read())[2]) == {b"ubob", b"ucy"}
    await room.bury(TWO, "one|12")
    assert await room.client.exists(ADDRESS.presence) == 0


async def test_a_crowd_is_counted_and_read_in_part(room: Room) -> None:
    for start in range(0, 1500, 500):
        await room.write(ONE, **{f"u{number}": 1 for number in range(start, start + 500)})
    changes = [await room.change() for _ in range(3)]
    assert [change.count for change in changes] == [500, 1000, 1500]
    assert [change.joined is None for change in changes] == [False, True, True]
    _, count, found = await room.read()
    assert count == 1500
    assert MOST_MEMBERS * 0.9 <= len(found) <= MOST_MEMBERS * 1.2


@pytest.mark.parametrize("payload", [b"-1 1 1 0 - nonsense", b"-1 x 1 0 - {}", b'-1 1 1 0 - {"joined":[1]}'])
def test_what_no_script_wrote_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedEntryError):
        change_of(from_channel(payload))


def test_a_change_is_read_as_it_was_written() -> None:
    body = msgspec.json.encode({"joined": ["a"], "left": ["b"]})
    change = change_of(from_channel(b"-1 5 2 0 one|1 " + body))
    assert change == PresenceChange(rev=5, count=2, holder="one|1", joined=["a"], left=["b"])
