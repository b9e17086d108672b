"""What breaks while rooms move: Redis, the instance they move to, its room for them, or who may say so.

Each time everybody publishes meanwhile, and in the end the directory is right: every room with members has
one home, at an instance that lives, the index says the same, and who can be is where its rooms are.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import msgspec
import pytest

from tableforge_dataplane.contract.endpoints import FLEET_COMMANDS_PATH
from tableforge_dataplane.contract.fleet import (
    FleetAnswer,
    FleetCommand,
    Forget,
    InstanceOrder,
    Move,
    Orders,
    RoomMove,
    Shed,
)
from tests.dataplane.homes.directories import KEYS, Directories
from tests.dataplane.homes.test_guide_ledger import (
    GATEWAY,
    KEY,
    Rooms,
    all_take_rooms,
    command,
    everybody_home,
    one_room_each,
)
from tests.dataplane.path.instances import Peers, until
from tests.support.ledger import Ledger, Verdict
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer
from tests.support.redis_cluster import (
    FAILOVER_WITHIN_SECONDS,
    FAILURES,
    RedisSentinels,
    ask,
    eventually,
)

QUICK = {
    **GATEWAY,
    "TABLEFORGE_ROLLOUT_MAX_RECONNECTS_PER_SECOND": "100",
    "TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT": "3000",
    "TABLEFORGE_REDIS_CONNECT_TIMEOUT": "1000",
    "CLEANUP_INTERVAL": "500",
    "INACTIVE_THRESHOLD": "500",
    "HEARTBEAT_INTERVAL": "10000",
}

LASTING = {"TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT": "30000"}
"""Where nobody dies, no move is to find that its target has no lease just now."""

BUSY_ROOM_MEMBERS = 9

SMALL_CAPACITY = 4


def one_is_busy(members: list[str], rooms: list[str]) -> Rooms:
    """Most are in the first room, the others in the rest of them."""
    return {
        member: [rooms[0] if number < BUSY_ROOM_MEMBERS else rooms[1 + number % (len(rooms) - 1)]]
        for number, member in enumerate(members)
    }


async def answer_to(instance: DataplaneProcess, body: FleetCommand) -> FleetAnswer | None:
    """The answer, stale or not; None where there is none now."""
    url = f"http://127.0.0.1:{instance.http_port}{FLEET_COMMANDS_PATH}"
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession() as client,
        client.post(url, data=msgspec.json.encode(body), headers=headers) as answer,
    ):
        if answer.status == 503:
            return None
        assert answer.status in (200, 409), await answer.text()
        found = msgspec.json.decode(await answer.read(), type=FleetAnswer)
        assert found.stale is (answer.status == 409)
        return found


async def at_last(instance: DataplaneProcess, body: FleetCommand) -> FleetAnswer:
    """The answer, however long it takes until Redis is there for it."""
    async with asyncio.timeout(30):
        while True:
            if (answer := await answer_to(instance, body)) is not None:
                return answer
            await asyncio.sleep(0.05)


async def quick(
    dataplane: DataplaneFleet, redis: RedisServer, look: Directories, count: int, **changes: str
) -> list[DataplaneProcess]:
    """Start so many more, and wait until all there are take rooms."""
    started = await dataplane(redis, count, **{**QUICK, **changes})  # type: ignore[arg-type]
    await all_take_rooms(look, len(dataplane.processes))
    return started


@asynccontextmanager
async def everybody_talks(
    instances: list[DataplaneProcess],
    look: Directories,
    *,
    seed: int,
    members: int = 12,
    rooms: int = 6,
    membership: Callable[[list[str], list[str]], Rooms] = one_room_each,
) -> AsyncIterator[tuple[Ledger, Rooms]]:
    """Members, all where their rooms live, who publish until the block ends; then all that was acknowledged
    has arrived or is missed."""
    async with Ledger(
        [one.url for one in instances],
        members=members,
        rooms=rooms,
        seed=seed,
        membership=membership,
        backoff_base=0.05,
    ) as ledger:
        joined = membership(ledger.book.members, ledger.book.rooms)
        quiet = asyncio.Event()
        talking = asyncio.create_task(ledger.talk(per_second=60, until=quiet))
        try:
            await everybody_home(ledger, look, joined)
            yield ledger, joined
            quiet.set()
            await talking
        finally:
            talking.cancel()
        await ledger.settle(timeout_seconds=60)
        await ledger.read_logs()


def all_to(target: str, homes: dict[str, str]) -> list[RoomMove]:
    return [RoomMove(room=room, source=home, target=target) for room, home in homes.items() if home != target]


@dataclasses.dataclass
class Mover:
    """Moves each room one instance further, again and again, asking one instance after the other."""

    instances: list[DataplaneProcess]
    look: Directories
    moved: int = 0
    """Moves that were carried out, as far as an answer said so."""

    async def run(self, over: asyncio.Event) -> None:
        names = [one.instance for one in self.instances]
        turn = 0
        while not over.is_set():
            await asyncio.sleep(0.1)
            turn += 1
            try:
                homes = await self.look.homes()
            except FAILURES:
                continue
            moves = [
                RoomMove(room=room, source=home, target=names[(names.index(home) + 1) % len(names)])
                for room, home in homes.items()
            ]
            asked = self.instances[turn % len(names)]
            if moves and (answer := await answer_to(asked, Move(fence=1, id=f"turn-{turn}", moves=moves))):
                self.moved += [one.outcome for one in answer.moves].count("moved")

    async def more(self, moves: int) -> None:
        """Wait until so many more were carried out."""
        wanted = self.moved + moves
        await until(lambda: self.moved >= wanted, within=60)


async def in_order(
    look: Directories, rooms: Rooms, instances: Collection[DataplaneProcess]
) -> dict[str, str]:
    """Wait until every room with members, and no other, has one home, at one of these; gives the homes."""
    living = {one.instance for one in instances}
    named = {room for several in rooms.values() for room in several}
    homes: dict[str, str] = {}

    async def so() -> bool:
        nonlocal homes
        homes, index = await look.both()
        return homes.keys() == named and living.issuperset(homes.values()) and index == homes

    await eventually(so, within=60)
    return homes


async def right(
    ledger: Ledger, look: Directories, rooms: Rooms, instances: Collection[DataplaneProcess]
) -> dict[str, str]:
    """Wait until the directory is in order and everybody is where it says; gives the homes."""
    await in_order(look, rooms, instances)
    await everybody_home(ledger, look, rooms)
    homes = await in_order(look, rooms, instances)
    assert all(ledger.present[member] in {homes[room] for room in joined} for member, joined in rooms.items())
    return homes


def heard_since(ledger: Ledger, acknowledged: int) -> set[str]:
    """Whose publishes were acknowledged after the first so many."""
    return {sent.member for sent in list(ledger.book.acks)[acknowledged:]}


def clean(verdict: Verdict) -> None:
    """Nothing was lost, doubled or out of order, and nobody was left without an answer."""
    assert not verdict.broken, verdict.describe()
    assert not verdict.resets, verdict.describe()
    assert not verdict.unknown, verdict.describe()
    assert verdict.acknowledged > 100


async def test_a_replica_takes_over_in_the_middle_of_moves_without_having_heard_of_the_last(
    dataplane: DataplaneFleet,
) -> None:
    async with RedisSentinels() as sentinels, AsyncExitStack() as stack:
        first, second = sentinels.servers
        environ = {
            "TABLEFORGE_REDIS_MODE": "Sentinel",
            "TABLEFORGE_REDIS_ADDRESSES": sentinels.addresses,
            "TABLEFORGE_REDIS_SENTINEL_MASTER_NAME": sentinels.name,
        }
        look = Directories(environ)
        stack.push_async_callback(look.close)
        instances = await quick(dataplane, first, look, 3, **environ, TABLEFORGE_REDIS_DURABILITY="Replica")
        async with everybody_talks(instances, look, seed=11) as (ledger, rooms):
            over = asyncio.Event()
            mover = Mover(instances, look)
            moving = asyncio.create_task(mover.run(over))
            await mover.more(12)
            second.pause()
            await ask(first, "CLIENT", "KILL", "TYPE", "replica")  # what comes now, it never gets
            await mover.more(12)
            await ledger.busy(1)
            told = int(await ask(first, "GET", KEYS.directory("moved")))
            await first.kill9()
            second.resume()
            assert int(await ask(second, "GET", KEYS.directory("moved"))) < told, "nothing was taken back"
            await eventually(lambda: _names(sentinels, second), within=FAILOVER_WITHIN_SECONDS)
            # it comes back as a replica of the other one: then `Replica` can be had again
            await first.start()
            await sentinels.follow(first, second)
            await mover.more(12)
            over.set()
            await moving
            # and moves are followed as before
            homes = await in_order(look, rooms, instances)
            names = [one.instance for one in instances]
            target = names[(names.index(homes[ledger.book.rooms[0]]) + 1) % len(names)]
            await eventually(lambda: _all_moved(instances[0], look, target, fence=1))
            assert await right(ledger, look, rooms, instances) == dict.fromkeys(homes, target)
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()
    # those that were on the way to a primary that died with them: nobody can tell
    assert all(": unknown_key: " in one for one in verdict.unknown), verdict.describe()
    assert verdict.resets or not verdict.unknown, verdict.describe()
    assert verdict.acknowledged > 100


async def _all_moved(asked: DataplaneProcess, look: Directories, target: str, *, fence: int) -> bool:
    """Whether all homes are there now. It asks for it where not: the target may not have its lease again."""
    moves = all_to(target, await look.homes())
    answer = await answer_to(asked, Move(fence=fence, id="last", moves=moves)) if moves else FleetAnswer()
    return answer is not None and all(one.outcome == "moved" for one in answer.moves)


async def _names(sentinels: RedisSentinels, server: RedisServer) -> bool:
    return await sentinels.primary() is server


@pytest.mark.parametrize("arrivals", [0, 2], ids=["before anybody comes", "while they come"])
async def test_the_target_of_a_move_is_killed(
    redis_server: RedisServer, dataplane: DataplaneFleet, look: Directories, arrivals: int
) -> None:
    # slow enough that some have come while others are still on their way
    slow = {"TABLEFORGE_ROLLOUT_MAX_RECONNECTS_PER_SECOND": "6"}
    instances = await quick(dataplane, redis_server, look, 3, **slow)
    async with everybody_talks(instances, look, seed=12) as (ledger, rooms):
        homes = await look.homes()
        target = next(one for one in instances if one.instance == homes[ledger.book.rooms[0]])
        others = [one for one in instances if one is not target]
        moves = all_to(target.instance, homes)
        assert len(moves) >= 2

        def there() -> int:
            return sum(at == target.instance for at in ledger.present.values())

        before = there()
        answer = await command(others[0], Move(fence=1, id="m", moves=moves))
        assert {one.outcome for one in answer.moves} == {"moved"}
        if arrivals:
            await until(lambda: there() >= before + arrivals)
        assert set((await look.homes()).values()) == {target.instance}
        await target.kill9()
        # whoever was told to go there is told again only after a while, and served where it is
        await in_order(look, rooms, others)
        await until(lambda: {one.instance for one in others}.issuperset(ledger.present.values()))
        served = ledger.acknowledged
        await until(lambda: heard_since(ledger, served) == set(ledger.book.members))
    clean(ledger.check())


async def test_a_room_moves_to_an_instance_that_cannot_take_all_its_members(
    redis_server: RedisServer, dataplane: DataplaneFleet, look: Directories, peers: Peers
) -> None:
    large = await quick(dataplane, redis_server, look, 2, **LASTING)
    async with everybody_talks(large, look, seed=13, members=14, rooms=4, membership=one_is_busy) as (
        ledger,
        rooms,
    ):
        busy = ledger.book.rooms[0]
        homes = await right(ledger, look, rooms, large)
        [small] = await quick(
            dataplane, redis_server, look, 1, WS_MAX_CONNECTIONS=str(SMALL_CAPACITY), **LASTING
        )
        move = RoomMove(room=busy, source=homes[busy], target=small.instance)
        answer = await command(large[0], Move(fence=1, id="m", moves=[move]))
        assert [one.outcome for one in answer.moves] == ["moved"]

        async def full() -> bool:
            here = [member for member, at in ledger.present.items() if at == small.instance]
            return (
                len(here) == SMALL_CAPACITY
                and await look.redis.zscore(KEYS.directory("places"), small.instance) is None
            )

        await eventually(full)
        # whom it has no room for is served where it was; and so is who comes now
        ada = await peers(large[1])
        await ada.join(busy)
        served = ledger.acknowledged
        await until(lambda: heard_since(ledger, served) == set(ledger.book.members))
        assert (await ada.until("message"))["room"] == busy
        assert await full()
        assert [member for member, at in ledger.present.items() if at is None] == []
        at = {member for member, at in ledger.present.items() if at == small.instance}
        assert all(rooms[member] == [busy] for member in at)
        wanted = {**homes, busy: small.instance}
        assert await look.both() == (wanted, wanted)
        assert {
            member: ledger.present[member] for member in ledger.book.members if rooms[member] != [busy]
        } == {member: homes[joined] for member, [joined] in rooms.items() if joined != busy}
    clean(ledger.check())
    assert ledger.reconnects == 0


async def test_of_two_who_give_commands_the_older_is_refused_everywhere_once_the_newer_has_spoken(
    redis_server: RedisServer, dataplane: DataplaneFleet, look: Directories
) -> None:
    instances = await quick(dataplane, redis_server, look, 3, **LASTING)
    one, two, three = (each.instance for each in instances)
    async with everybody_talks(instances, look, seed=14) as (ledger, rooms):
        newer_spoke = asyncio.Event()
        older_was_heard = asyncio.Event()
        older: list[tuple[bool, FleetAnswer]] = []
        """Whether the newer had been answered when it was sent, and what came back."""

        async def order_as_the_older() -> None:
            turn = 0
            while sum(late for late, _ in older) < 4 * len(instances):
                late = newer_spoke.is_set()
                moves = all_to(one, await look.homes()) or [RoomMove(room="hall", source=two, target=one)]
                body = Move(fence=1, id=f"older-{turn}", moves=moves)
                older.append((late, await at_last(instances[turn % 3], body)))
                turn += 1
                if turn > 3:
                    older_was_heard.set()

        async def order_as_the_newer() -> None:
            await older_was_heard.wait()
            for turn in range(12):
                # to and fro, so that there is something to move; the last word is the second instance
                target = (three, two)[turn % 2]
                body = Move(fence=2, id=f"newer-{turn}", moves=all_to(target, await look.homes()))
                answer = await at_last(instances[(turn + 1) % 3], body)
                assert not answer.stale
                newer_spoke.set()
                if turn:
                    assert {found.outcome for found in answer.moves} == {"moved"}

        await asyncio.gather(order_as_the_older(), order_as_the_newer())
        stale = [answer.stale for _, answer in older]
        assert stale == sorted(stale), "it was heard again"
        assert not stale[0]
        assert stale[-1]
        assert all(answer == FleetAnswer(stale=True, fence=2) for late, answer in older if late)
        assert await right(ledger, look, rooms, instances) == dict.fromkeys(ledger.book.rooms, two)
        await redis_server.kill9()
        await redis_server.start()
        for instance in instances:
            for body in (
                Move(fence=1, id="m", moves=all_to(one, dict.fromkeys(ledger.book.rooms, two))),
                Orders(fence=1, id="o", instances=[InstanceOrder(instance=two, cordoned=True)]),
                Shed(fence=1, id="s", instance=two, connections=3),
                Forget(fence=1, id="f", instances=[two]),
            ):
                assert await at_last(instance, body) == FleetAnswer(stale=True, fence=2)
        assert await right(ledger, look, rooms, instances) == dict.fromkeys(ledger.book.rooms, two)
        # the newer one is heard as ever
        await eventually(lambda: _all_moved(instances[0], look, three, fence=2))
        assert await right(ledger, look, rooms, instances) == dict.fromkeys(ledger.book.rooms, three)
    clean(ledger.check())
