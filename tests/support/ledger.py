"""The ledger: who was promised what, who got what, and whether the two agree.

`Book` holds the entries and judges them; it knows no sockets. `Ledger` makes them: members that are in every
room, or in some, publish, and write down what they receive. Use:

    async with Ledger(url, members=4, rooms=20, seed=seed) as ledger:
        await ledger.publish(2000, over_seconds=40)     # while the test breaks things
        await ledger.settle(timeout_seconds=30)
        await ledger.read_logs()                        # what is stored is judged, too
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()

A reset takes back what came before: a message may come again after it, at another place; and where it goes on
further ahead, what lies between was announced as missing. Between two resets everything holds as ever.
"""

import asyncio
import collections
import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from tableforge_client import (
    Ack,
    Client,
    History,
    Message,
    Reset,
    Room,
    State,
    StateChange,
    TableForgeError,
    connect,
)
from tests.support.lost_time import Lost

SHOWN = 20
"""Findings of each kind that are described one by one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """One publish, by whom, and its place among that member's publishes to the room."""

    room: str
    member: str
    number: int

    def __str__(self) -> str:
        return f"{self.member}'s #{self.number} in {self.room}"


@dataclasses.dataclass(frozen=True, slots=True)
class Got:
    """One message as a member received it. `at` is the monotonic time, `instance` where it came through."""

    sent: Sent
    seq: int
    pos: str
    instance: str
    at: float
    resets: int = 0
    """How many resets the member was told in this room before."""


@dataclasses.dataclass(frozen=True, slots=True)
class Again:
    """A connection made in place of another one. Times are monotonic seconds."""

    member: str
    at: float
    left: str
    """The instance that it was connected to before."""
    left_since: float
    """When that connection was made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison found. Every list but `resets` and `missed` is a broken promise."""

    acknowledged: int
    deliveries: int
    """Messages received, by all members together."""
    unknown: list[str]
    """Publishes that ended without an acknowledgement: promised nothing."""
    lost: list[str]
    doubled: list[str]
    out_of_order: list[str]
    contradicted: list[str]
    """Acknowledgements that say otherwise than what members received, or than each other."""
    unequal: list[str]
    """Messages that some members got and others did not, acknowledged or not."""
    gaps: list[str]
    """Messages that an instance left out without announcing it, so that the client had to ask for them."""
    resets: list[str]
    """What was announced as lost or not continued: honest, but with a durable Redis nothing to expect."""
    missed: list[str]
    """Acknowledged messages that a member did not get, and was told so: a reset went on after them."""

    @property
    def broken(self) -> bool:
        """Whether the promise was broken, resets and what they announced aside."""
        return bool(
            self.lost or self.doubled or self.out_of_order or self.contradicted or self.unequal or self.gaps
        )

    def describe(self) -> str:
        """A line of counts, and then every finding."""
        lines = [f"{self.acknowledged} acknowledged, {self.deliveries} deliveries"]
        for field in dataclasses.fields(self):
            found = getattr(self, field.name)
            if isinstance(found, list):
                lines[0] += f", {len(found)} {field.name.replace('_', ' ')}"
                lines += [f"  {field.name}: {text}" for text in found[:SHOWN]]
                if len(found) > SHOWN:
                    lines.append(f"  {field.name}: … and {len(found) - SHOWN} more")
        return "\n".join(lines)


class Book:
    """All entries, and the judgement."""

    def __init__(
        self,
        members: Sequence[str],
        rooms: Sequence[str],
        *,
        membership: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`membership`: the rooms that each member is in; None: each is in all."""
        self.members = list(members)
        self.rooms = list(rooms)
        self.rooms_of = {m: list(rooms if membership is None else membership[m]) for m in members}
        self.members_of: dict[str, list[str]] = {room: [] for room in rooms}
        for member, joined in self.rooms_of.items():
            for room in joined:
                self.members_of[room].append(member)
        self.acks: dict[Sent, Ack] = {}
        self.unknown: dict[Sent, str] = {}
        self.got: dict[tuple[str, str], list[Got]] = {(m, r): [] for m in members for r in self.rooms_of[m]}
        """By member and room, in the order of arrival."""
        self.logs: dict[str, list[Got]] = {}
        """What each room's log holds in the end, in its order; by room, where it was read."""
        self.resets: list[tuple[str, Reset]] = []
        self.gaps: Mapping[tuple[str, str], int] = {}

    def newest(self) -> dict[str, Ack]:
        """Of each room the acknowledgement with the highest `seq`, where there is one."""
        found: dict[str, Ack] = {}
        for sent, ack in self.acks.items():
            if sent.room not in found or ack.seq > found[sent.room].seq:
                found[sent.room] = ack
        return found

    def resumed(self) -> dict[tuple[str, str], int]:
        """Where the last reset let a member go on in a room; what comes after it has to come (again)."""
        return {(member, reset.room): _number(reset.pos) for member, reset in self.resets}

    def everybody_has(self, acks: Mapping[str, Ack]) -> bool:
        """Whether each of these, in its room, reached every member, or was announced as missing.

        (By its place and not by its number: a failover gives numbers out again, and members may still hold
        what it took back.)
        """
        resumed = self.resumed()
        return all(
            ack.seq <= resumed.get((member, room), 0)
            or any(one.pos == ack.pos for one in reversed(self.got[member, room]))
            for room, ack in acks.items()
            for member in self.members_of[room]
        )

    def check(self) -> Verdict:
        lost: list[str] = []
        doubled: list[str] = []
        out_of_order: list[str] = []
        contradicted: list[str] = []
        unequal: list[str] = []
        missed: list[str] = []
        acks_by_room: dict[str, list[tuple[Sent, Ack]]] = {room: [] for room in self.rooms}
        for sent, ack in self.acks.items():
            acks_by_room[sent.room].append((sent, ack))
        resumed = self.resumed()
        for room in self.rooms:
            contradicted += _acks_that_collide(acks_by_room[room])
            everybody: dict[Sent, set[str]] = collections.defaultdict(set)
            unbroken = [member for member in self.members_of[room] if (member, room) not in resumed]
            for member in self.members_of[room]:
                got = self.got[member, room]
                places: dict[Sent, list[str]] = collections.defaultdict(list)
                for one in got:
                    places[one.sent].append(one.pos)
                for sent in places:
                    everybody[sent].add(member)
                for sent, ack in acks_by_room[room]:
                    if ack.pos in places.get(sent, ()):
                        continue
                    if ack.seq <= resumed.get((member, room), 0):
                        missed.append(
                            f"{sent}, acknowledged as {ack.pos}, was announced to {member} as missing"
                        )
                    elif sent in places:
                        contradicted.append(
                            f"{sent} was acknowledged as {ack.pos}, but reached {member} as {places[sent][0]}"
                        )
                    else:
                        lost.append(f"{sent}, acknowledged as {ack.pos}, never reached {member}")
                doubled += _twice(member, got)
                out_of_order += _disorder(member, got, self.unknown)
            unequal += [
                f"{sent} reached {', '.join(sorted(whom))} only, unacknowledged"
                for sent, whom in everybody.items()
                if sent not in self.acks and whom.intersection(unbroken) and not whom.issuperset(unbroken)
            ]
            if room in self.logs:
                log = self.logs[room]
                stored = {one.pos: one.sent for one in log}
                lost += [
                    f"{sent}, acknowledged as {ack.pos}, is not in the log"
                    for sent, ack in acks_by_room[room]
                    if stored.get(ack.pos) != sent
                ]
                doubled += _twice("the log", log)
                out_of_order += _disorder("the log", log, self.unknown)
        return Verdict(
            acknowledged=len(self.acks),
            deliveries=sum(len(got) for got in self.got.values()),
            unknown=[f"{sent}: {why}" for sent, why in self.unknown.items()],
            lost=lost,
            doubled=doubled,
            out_of_order=out_of_order,
            contradicted=contradicted,
            unequal=unequal,
            gaps=[f"{member} in {room}: {n}" for (member, room), n in self.gaps.items() if n],
            resets=[
                f"{member} in {reset.room}: {reset.reason} at {reset.pos}, told by {reset.told_by}"
                for member, reset in self.resets
            ],
            missed=missed,
        )


def _number(pos: str | None) -> int:
    """The `seq` in a `pos`."""
    return int(pos.partition("-")[0]) if pos else 0


def _acks_that_collide(acks: list[tuple[Sent, Ack]]) -> list[str]:
    first: dict[int, Sent] = {}
    found: list[str] = []
    for sent, ack in acks:
        other = first.setdefault(ack.seq, sent)
        if other != sent:
            found.append(f"{sent} and {other} were both acknowledged as number {ack.seq}")
    return found


def _twice(member: str, got: list[Got]) -> list[str]:
    first: dict[Sent, Got] = {}
    found: list[str] = []
    for one in got:
        other = first.get(one.sent)
        if other is None or other.resets != one.resets:
            first[one.sent] = one
        else:
            found.append(f"{one.sent} reached {member} as {other.pos} and again as {one.pos}")
    return found


def _disorder(member: str, got: list[Got], unknown: Mapping[Sent, str]) -> list[str]:
    """What came in another order than it was sent.

    Who was told `unknown_key` may find the message stored all the same, by an instance that it was on before:
    where that one had given it to Redis already when its connection ended, or does not know yet that it has,
    as with one that is silent. Its place was promised to nobody. What else it held back it drops.
    """
    found: list[str] = []
    latest: dict[str, Got] = {}
    before: Got | None = None
    for one in got:
        if before is not None and one.resets == before.resets and one.seq != before.seq + 1:
            found.append(f"{member} received {one.pos} in {one.sent.room} after {before.pos}")
        if before is not None and one.resets != before.resets:
            latest.clear()
        before = one
        if unknown.get(one.sent, "").startswith("unknown_key: "):
            continue
        earlier = latest.get(one.sent.member)
        if earlier is not None and one.sent.number < earlier.sent.number:
            found.append(
                f"{member} received {one.sent} ({one.pos}) after #{earlier.sent.number} ({earlier.pos})"
            )
        latest[one.sent.member] = one
    return found


@dataclasses.dataclass
class _Member:
    name: str
    client: Client
    rooms: dict[str, Room] = dataclasses.field(default_factory=dict)
    reconnects: int = 0
    address: str = ""
    instance: str = ""
    connected_at: float = 0.0
    instances: set[str] = dataclasses.field(default_factory=set)


class Ledger:
    """Members that publish and write down; see the module."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        members: int,
        rooms: int,
        seed: int,
        room_prefix: str = "ledger",
        outstanding: int = 8,
        burst: int = 1,
        membership: Callable[[list[str], list[str]], Mapping[str, Sequence[str]]] | None = None,
        **client_options: Any,
    ) -> None:
        """`outstanding`: publishes a member has on the way at once. `burst`: how many it makes in one go.
        `membership`: from all members and all rooms, the rooms that each member is in; None: each is in all.
        `client_options`: for `connect`."""
        names = [f"member-{n}" for n in range(1, members + 1)]
        all_rooms = [f"{room_prefix}:{n}" for n in range(1, rooms + 1)]
        joined = None if membership is None else membership(names, all_rooms)
        self.book = Book(names, all_rooms, membership=joined)
        self._url = url
        self._client_options = client_options
        self._rng = random.Random(seed)
        self._outstanding = outstanding
        self._burst = burst
        self._members: list[_Member] = []
        self._numbers: collections.Counter[tuple[str, str]] = collections.Counter()
        self._news = asyncio.Event()
        self._in_flight = 0
        self._began_or_ended = asyncio.Event()
        self._stack = AsyncExitStack()
        self.again: list[Again] = []
        """The connections that members made, their first ones aside."""
        self.lost = Lost()
        """Time in which this process stood still: who was told to move could not meanwhile."""

    async def __aenter__(self) -> Self:
        try:
            await self._enter()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.book.gaps = {
            (member.name, name): room.gaps for member in self._members for name, room in member.rooms.items()
        }
        await self._stack.aclose()

    @property
    def reconnects(self) -> int:
        """How often members lost their connection."""
        return sum(member.reconnects for member in self._members)

    @property
    def connected_again(self) -> list[float]:
        """When members connected, their first connections aside (monotonic seconds)."""
        return [one.at for one in self.again]

    @property
    def instances(self) -> dict[str, set[str]]:
        """Every instance each member was on."""
        return {member.name: member.instances for member in self._members}

    @property
    def present(self) -> dict[str, str | None]:
        """The instance each member is on now; None while it is on none."""
        return {member.name: member.client.instance for member in self._members}

    @property
    def addresses(self) -> dict[str, str]:
        """Where each member connected last."""
        return {member.name: member.address for member in self._members}

    @property
    def acknowledged(self) -> int:
        return len(self.book.acks)

    async def busy(self, at_least: int) -> None:
        """Wait until so many publishes are on the way: when a fault finds something to lose."""
        while self._in_flight < at_least:
            self._began_or_ended.clear()
            await self._began_or_ended.wait()

    async def more(self, acknowledged: int) -> None:
        """Wait until so many more publishes are acknowledged."""
        wanted = self.acknowledged + acknowledged
        while self.acknowledged < wanted:
            self._began_or_ended.clear()
            await self._began_or_ended.wait()

    async def publish(self, count: int, *, over_seconds: float) -> None:
        """Publish `count` messages, all members together, evenly over the time where the service keeps up.

        Ends when each is acknowledged, or has failed for good.
        """
        share, rest = divmod(count, len(self._members))
        async with asyncio.TaskGroup() as group:
            for index, member in enumerate(self._members):
                own = share + (index < rest)
                group.create_task(self._publish_as(member, own, over_seconds / max(1, own)))

    async def talk(self, *, per_second: float, until: asyncio.Event) -> None:
        """Publish steadily, each message as a member that chance picks; ends when all of it is acknowledged.

        Where the service doesn't keep up, or the test doesn't, it becomes fewer, and never a flood later.
        """
        slots = asyncio.Semaphore(self._outstanding * len(self._members))
        async with asyncio.TaskGroup() as group:
            while not until.is_set():
                await slots.acquire()
                publishing = group.create_task(
                    self._publish_one(*self._next(self._rng.choice(self._members)))
                )
                publishing.add_done_callback(lambda _: slots.release())
                await asyncio.sleep(1 / per_second)

    async def settle(self, *, timeout_seconds: float) -> None:
        """Wait until every member has everything that was acknowledged; gives up silently: `check` judges."""
        newest = self.book.newest()
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self.book.everybody_has(newest):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass

    async def read_logs(self) -> None:
        """Read every room's log from its beginning, so that `check` judges what is stored, too."""
        for room in self.book.rooms:
            log: list[Got] = []
            page = await self._history(room, after="0-0")
            while True:
                log += [
                    Got(_sent(message), message.seq, message.pos, "", time.monotonic())
                    for message in page.messages
                    if isinstance(message, Message)
                ]
                if page.complete:
                    break
                page = await self._history(room, after=page.pos)
            self.book.logs[room] = log

    def check(self) -> Verdict:
        """The judgement; after the `async with` block."""
        return self.book.check()

    async def _enter(self) -> None:
        self._stack.push_async_callback(_end, asyncio.create_task(self.lost.count()))
        for name in self.book.members:
            member = _Member(name, connect(self._url, on_state=self._observer(name), **self._client_options))
            self._members.append(member)
            await self._stack.enter_async_context(member.client)
            async with asyncio.TaskGroup() as group:
                joins = {
                    room: group.create_task(member.client.join(room)) for room in self.book.rooms_of[name]
                }
            member.rooms = {room: join.result() for room, join in joins.items()}
        for member in self._members:
            for name, room in member.rooms.items():
                listening = asyncio.create_task(self._listen(member, name, room))
                self._stack.push_async_callback(_end, listening)

    def _observer(self, name: str) -> Any:
        last: State | None = None

        def on_state(change: StateChange) -> None:
            nonlocal last
            member = next(one for one in self._members if one.name == name)
            if change.state is State.RECONNECTING and last is State.CONNECTED:
                member.reconnects += 1
            if change.state is State.CONNECTED and change.url:
                member.address = change.url
            if change.state is State.CONNECTED and change.instance:
                now = time.monotonic()
                if member.instances:
                    self.again.append(Again(name, now, member.instance, member.connected_at))
                member.instance, member.connected_at = change.instance, now
                member.instances.add(change.instance)
            last = change.state

        return on_state

    async def _listen(self, member: _Member, name: str, room: Room) -> None:
        entries = self.book.got[member.name, name]
        resets = 0
        async for item in room:
            match item:
                case Message(seq=seq, pos=pos):
                    instance = member.client.instance or ""
                    entries.append(Got(_sent(item), seq, pos, instance, time.monotonic(), resets))
                case Reset():
                    resets += 1
                    self.book.resets.append((member.name, item))
            self._news.set()

    async def _publish_as(self, member: _Member, count: int, interval_seconds: float) -> None:
        slots = asyncio.Semaphore(self._outstanding)
        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as group:
            for turn in range(count):
                if turn % self._burst == 0:
                    await asyncio.sleep(max(0.0, due - loop.time()))
                due += interval_seconds
                await slots.acquire()
                publishing = group.create_task(self._publish_one(*self._next(member)))
                publishing.add_done_callback(lambda _: slots.release())

    def _next(self, member: _Member) -> tuple[_Member, Sent]:
        """What a member publishes next, to one of its rooms."""
        name = self._rng.choice(self.book.rooms_of[member.name])
        self._numbers[member.name, name] += 1
        return member, Sent(room=name, member=member.name, number=self._numbers[member.name, name])

    async def _publish_one(self, member: _Member, sent: Sent) -> None:
        self._in_flight += 1
        self._began_or_ended.set()
        try:
            ack = await member.rooms[sent.room].publish("entry", {"by": sent.member, "n": sent.number})
        except TableForgeError as error:
            self.book.unknown[sent] = str(error)
        else:
            self.book.acks[sent] = ack
        finally:
            self._in_flight -= 1
            self._began_or_ended.set()

    async def _history(self, room: str, *, after: str | None) -> History:
        """Asked until it is answered: a member may be on its way back from what the test did."""
        async with asyncio.timeout(60):
            while True:
                await asyncio.sleep(0.02)  # who asks faster is told to slow down
                with contextlib.suppress(TableForgeError):
                    return await self._members[0].client.history(room, after=after)
                await asyncio.sleep(0.5)


def _sent(message: Message) -> Sent:
    return Sent(room=message.room, member=message.data["by"], number=message.data["n"])


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
