"""Rooms move from home to home while everybody publishes: nothing is lost, doubled or out of order, nobody is
cut off, and no more clients connect anew at once than the cluster allows."""

import asyncio
import collections
import contextlib
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from tableforge_dataplane.contract.endpoints import FLEET_COMMANDS_PATH
from tableforge_dataplane.contract.fleet import FleetAnswer, FleetCommand, Move, RoomMove
from tests.dataplane.homes.directories import KEYS, WHOLE_DIRECTORY, Directories
from tests.dataplane.path.instances import Peer, Peers, until
from tests.support.ledger import Ledger
from tests.support.lost_time import Lost, lost_time
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer
from tests.support.redis_cluster import eventually

KEY = "the-key-of-this-cluster"
RATE = 5
"""Clients that may be made to reconnect in a second."""

BURST = RATE / 2
"""What the bucket holds (`budget.HELD_SECONDS`)."""

SPREAD_SECONDS = 1.5
"""From the grant to the client's new connection: a step's spread, and what this machine needs to connect."""

GATEWAY = {
    "TABLEFORGE_ROUTING_MODE": "Gateway",
    "TABLEFORGE_ROUTING_ADDRESS": "ws://127.0.0.1:{port}/ws",
    "TABLEFORGE_REDIS_KEY_PREFIX": "test",
    "TABLEFORGE_HTTP_FLEET_KEY": KEY,
    "TABLEFORGE_ROLLOUT_MAX_RECONNECTS_PER_SECOND": str(RATE),
    "TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT": "5000",
    # a room that nobody is in where it lives keeps its home for some of them: its members are on their way
    "HEARTBEAT_INTERVAL": "20000",
}

Rooms = Mapping[str, list[str]]


def some_rooms_each(members: list[str], rooms: list[str]) -> Rooms:
    """Three rooms each, overlapping."""
    return {
        member: [rooms[(number + step) % len(rooms)] for step in range(3)]
        for number, member in enumerate(members)
    }


def one_room_each(members: list[str], rooms: list[str]) -> Rooms:
    return {member: [rooms[number % len(rooms)]] for number, member in enumerate(members)}


async def command(instance: DataplaneProcess, body: FleetCommand) -> FleetAnswer:
    url = f"http://127.0.0.1:{instance.http_port}{FLEET_COMMANDS_PATH}"
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession() as client,
        client.post(url, data=msgspec.json.encode(body), headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return msgspec.json.decode(await answer.read(), type=FleetAnswer)


async def all_take_rooms(look: Directories, count: int) -> None:
    async def so() -> bool:
        return bool(await look.redis.zcard(KEYS.directory("places")) == count)

    await eventually(so)


async def everybody_home(ledger: Ledger, look: Directories, rooms: Rooms) -> dict[str, str]:
    """Wait until no member would be better off elsewhere; gives the rooms' homes."""
    found: dict[str, str] = {}

    async def so() -> bool:
        nonlocal found
        found = await look.homes()
        if found.keys() < {room for several in rooms.values() for room in several}:
            return False
        for member, instance in ledger.present.items():
            counts = collections.Counter(found[room] for room in rooms[member])
            if instance is None or counts[instance] < max(counts.values()):
                return False
        return True

    await eventually(so, within=90)
    return found


def too_many_at_once(times: list[float], lost: Lost | None = None) -> list[str]:
    """Every stretch of time in which more connected anew than the budget lets go. Who was to do so while time
    was lost does it right after that."""
    times = sorted(times)
    lost = lost or Lost()
    return [
        f"{last - first + 1} within {times[last] - times[first]:.2f} s"
        for first in range(len(times))
        for last in range(first, len(times))
        if last - first + 1
        > BURST
        + RATE
        * (
            times[last]
            - times[first]
            + SPREAD_SECONDS
            + lost.between(times[first] - SPREAD_SECONDS, times[last])
        )
    ]


def test_more_than_the_budget_would_be_found() -> None:
    assert not too_many_at_once([0.0, 0.1])
    assert not too_many_at_once([number / RATE for number in range(100)])
    assert too_many_at_once([number / 50 for number in range(20)])
    assert too_many_at_once([number / RATE / 1.5 for number in range(100)])


class Deaf:
    """A client that is in some rooms, reads everything, and does nothing of what it is asked."""

    def __init__(self, peer: Peer) -> None:
        self.hints: list[dict[str, Any]] = []
        self.seqs: dict[str, list[int]] = collections.defaultdict(list)
        self._peer = peer
        self._hearing = asyncio.create_task(self._hear())

    async def _hear(self) -> None:
        async for text in self._peer.socket:
            frame = json.loads(text)
            if frame["type"] == "migrate":
                self.hints.append(frame)
            elif frame["type"] == "message":
                self.seqs[frame["room"]].append(frame["seq"])

    async def stop(self) -> None:
        self._hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._hearing


async def test_twenty_clients_follow_rooms_that_move_again_and_again_and_miss_nothing(
    redis_server: RedisServer, dataplane: DataplaneFleet, look: Directories, peers: Peers
) -> None:
    instances = await dataplane(redis_server, 3, **GATEWAY)  # type: ignore[arg-type]
    await all_take_rooms(look, 3)
    names = [one.instance for one in instances]
    async with (
        lost_time() as lost,
        Ledger(
            instances[0].url, members=20, rooms=6, seed=1, membership=some_rooms_each, backoff_base=0.05
        ) as ledger,
    ):
        rooms = some_rooms_each(ledger.book.members, ledger.book.rooms)
        deaf_peer = await peers(instances[0])
        for room in ledger.book.rooms:
            await deaf_peer.join(room)
        deaf = Deaf(deaf_peer)
        over = asyncio.Event()
        talking = asyncio.create_task(ledger.talk(per_second=100, until=over))
        homes = await everybody_home(ledger, look, rooms)
        for turn, target in enumerate([names[1], names[2], names[0]]):
            moves = [
                RoomMove(room=room, source=home, target=target)
                for room, home in homes.items()
                if home != target
            ]
            answer = await command(instances[turn], Move(fence=1, id=f"turn-{turn}", moves=moves))
            assert {one.outcome for one in answer.moves} == {"moved"}
            homes = await everybody_home(ledger, look, rooms)
            assert set(homes.values()) == {target}
        over.set()
        await talking
        await ledger.settle(timeout_seconds=60)
        await ledger.read_logs()
        published = collections.Counter(sent.room for sent in ledger.book.acks)
        await until(lambda: all(len(deaf.seqs[room]) >= count for room, count in published.items()))
        await deaf.stop()
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()
    assert not verdict.resets, verdict.describe()
    assert not verdict.unknown, verdict.describe()
    assert verdict.acknowledged > 200
    assert ledger.reconnects == 0
    assert len(ledger.connected_again) >= 2 * 20  # all but the first time
    assert not (found := too_many_at_once(ledger.connected_again, lost)), found
    assert 1 <= len(deaf.hints) <= 5
    assert all(hint["url"] in [one.url for one in instances] for hint in deaf.hints)
    for room, count in published.items():
        assert deaf.seqs[room] == list(range(1, count + 1))


async def test_the_clients_of_an_instance_that_leaves_go_straight_to_their_rooms_new_homes(
    redis_server: RedisServer, dataplane: DataplaneFleet, look: Directories
) -> None:
    instances = await dataplane(
        redis_server,
        3,
        **{  # type: ignore[arg-type]
            **GATEWAY,
            "TABLEFORGE_ROLLOUT_MAX_RECONNECTS_PER_SECOND": "100",
            "TABLEFORGE_SCALING_DRAIN_TIMEOUT": "8000",
        },
    )
    await all_take_rooms(look, 3)
    urls = [one.url for one in instances]
    async with Ledger(
        urls, members=12, rooms=6, seed=2, membership=one_room_each, backoff_base=0.05
    ) as ledger:
        rooms = one_room_each(ledger.book.members, ledger.book.rooms)
        before = await everybody_home(ledger, look, rooms)
        leaving = next(one for one in instances if one.instance == before[ledger.book.rooms[0]])
        stay = {member: at for member, at in ledger.present.items() if at != leaving.instance}
        leavers = [member for member, at in ledger.present.items() if at == leaving.instance]
        assert leavers
        moved = len(ledger.again)
        over = asyncio.Event()
        talking = asyncio.create_task(ledger.talk(per_second=100, until=over))
        assert await leaving.sigterm(timeout_seconds=30) == 0
        after = await everybody_home(ledger, look, rooms)
        over.set()
        await talking
        await ledger.settle(timeout_seconds=60)
        await ledger.read_logs()
        assert leaving.instance not in after.values()
        assert {room: home for room, home in after.items() if before[room] != leaving.instance} == {
            room: home for room, home in before.items() if home != leaving.instance
        }
        assert {member: ledger.present[member] for member in stay} == stay
        # each of them connected once, to where its room lives now
        assert sorted(one.member for one in ledger.again[moved:]) == sorted(leavers)
        assert {one.left for one in ledger.again[moved:]} == {leaving.instance}
        assert [ledger.present[member] for member in leavers] == [
            after[rooms[member][0]] for member in leavers
        ]
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()
    assert not verdict.unknown, verdict.describe()
    assert ledger.reconnects == 0


async def test_nonsense_in_the_directory_costs_no_message(
    redis_server: RedisServer, dataplane: DataplaneFleet, look: Directories
) -> None:
    environ = {
        **GATEWAY,
        # soon repaired; and who is led about meanwhile is led at once
        "HEARTBEAT_INTERVAL": "500",
        "TABLEFORGE_ROLLOUT_MAX_RECONNECTS_PER_SECOND": "100",
    }
    instances = await dataplane(redis_server, 2, **environ)  # type: ignore[arg-type]
    await all_take_rooms(look, 2)
    urls = [one.url for one in instances]
    async with Ledger(
        urls, members=12, rooms=6, seed=3, membership=one_room_each, backoff_base=0.05
    ) as ledger:
        rooms = one_room_each(ledger.book.members, ledger.book.rooms)
        await everybody_home(ledger, look, rooms)
        over = asyncio.Event()
        talking = asyncio.create_task(ledger.talk(per_second=100, until=over))
        for number, name in enumerate(WHOLE_DIRECTORY):
            key = KEYS.directory(name)
            await look.redis.delete(key)
            await (look.redis.set(key, "nonsense") if number % 2 else look.redis.rpush(key, "x"))
            await ledger.more(20)
        over.set()
        await talking

        async def readable() -> bool:
            kinds = [await look.redis.type(KEYS.directory(name)) for name in WHOLE_DIRECTORY[:2]]
            return kinds == [b"hash", b"set"]

        await eventually(readable)
        await everybody_home(ledger, look, rooms)

        async def repaired() -> bool:
            homes, index = await look.both()
            return index == homes

        await eventually(repaired)
        await ledger.settle(timeout_seconds=60)
        await ledger.read_logs()
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()
    assert not verdict.unknown, verdict.describe()
    assert not verdict.resets, verdict.describe()
    assert verdict.acknowledged >= 20 * len(WHOLE_DIRECTORY)
    assert ledger.reconnects == 0
