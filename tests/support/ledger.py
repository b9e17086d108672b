"""The ledger: who was promised what, who got what, and whether the two agree.

`Book` holds the entries and judges them; it knows no sockets. `Ledger` makes them: members that are all in
every room, publish, and write down what they receive. Use:

    async with Ledger(url, members=4, rooms=20, seed=seed) as ledger:
        await ledger.publish(2000, over_seconds=40)     # while the test breaks things
        await ledger.settle(timeout_seconds=30)
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()
"""

import asyncio
import collections
import dataclasses
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from tableforge_client import Ack, Client, Message, Reset, Room, State, StateChange, TableForgeError, connect

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison found. Every list but `resets` is a broken promise."""

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

    @property
    def broken(self) -> bool:
        """Whether the promise was broken, resets aside."""
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

    def __init__(self, members: Sequence[str], rooms: Sequence[str]) -> None:
        self.members = list(members)
        self.rooms = list(rooms)
        self.acks: dict[Sent, Ack] = {}
        self.unknown: dict[Sent, str] = {}
        self.got: dict[tuple[str, str], list[Got]] = {(m, r): [] for m in members for r in rooms}
        """By member and room, in the order of arrival."""
        self.resets: list[tuple[str, Reset]] = []
        self.gaps: Mapping[tuple[str, str], int] = {}

    def highest(self) -> dict[str, int]:
        """The highest acknowledged `seq` of each room."""
        found = dict.fromkeys(self.rooms, 0)
        for sent, ack in self.acks.items():
            found[sent.room] = max(found[sent.room], ack.seq)
        return found

    def check(self) -> Verdict:
        lost: list[str] = []
        doubled: list[str] = []
        out_of_order: list[str] = []
        contradicted: list[str] = []
        unequal: list[str] = []
        acks_by_room: dict[str, list[tuple[Sent, Ack]]] = {room: [] for room in self.rooms}
        for sent, ack in self.acks.items():
            acks_by_room[sent.room].append((sent, ack))
        for room in self.rooms:
            contradicted += _acks_that_collide(acks_by_room[room])
            everybody: dict[Sent, set[str]] = collections.defaultdict(set)
            for member in self.members:
                got = self.got[member, room]
                by_sent = {one.sent: one for one in reversed(got)}  # the first of each
                for sent in by_sent:
                    everybody[sent].add(member)
                lost += [
                    f"{sent}, acknowledged as {ack.pos}, never reached {member}"
                    for sent, ack in acks_by_room[room]
                    if sent not in by_sent
                ]
                contradicted += [
                    f"{sent} was acknowledged as {ack.pos}, but reached {member} as {by_sent[sent].pos}"
                    for sent, ack in acks_by_room[room]
                    if sent in by_sent and (by_sent[sent].pos, by_sent[sent].seq) != (ack.pos, ack.seq)
                ]
                doubled += _twice(member, got)
                out_of_order += _disorder(member, got)
            unequal += [
                f"{sent} reached {', '.join(sorted(whom))} only, unacknowledged"
                for sent, whom in everybody.items()
                if sent not in self.acks and len(whom) < len(self.members)
            ]
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
        )


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
        if other is None:
            first[one.sent] = one
        else:
            found.append(f"{one.sent} reached {member} as {other.pos} and again as {one.pos}")
    return found


def _disorder(member: str, got: list[Got]) -> list[str]:
    found: list[str] = []
    latest: dict[str, Got] = {}
    before: Got | None = None
    for one in got:
        if before is not None and one.resets == before.resets and one.seq != before.seq + 1:
            found.append(f"{member} received {one.pos} in {one.sent.room} after {before.pos}")
        earlier = latest.get(one.sent.member)
        if earlier is not None and one.sent.number < earlier.sent.number:
            found.append(
                f"{member} received {one.sent} ({one.pos}) after #{earlier.sent.number} ({earlier.pos})"
            )
        latest[one.sent.member] = one
        before = one
    return found


@dataclasses.dataclass
class _Member:
    name: str
    client: Client
    rooms: dict[str, Room] = dataclasses.field(default_factory=dict)
    reconnects: int = 0
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
        **client_options: Any,
    ) -> None:
        """`outstanding`: publishes a member has on the way at once. `burst`: how many it makes in one go.
        `client_options`: for `connect`."""
        names = [f"member-{n}" for n in range(1, members + 1)]
        self.book = Book(names, [f"{room_prefix}:{n}" for n in range(1, rooms + 1)])
        self._url = url
        self._client_options = client_options
        self._rng = random.Random(seed)
        self._outstanding = outstanding
        self._burst = burst
        self._members: list[_Member] = []
        self._numbers: collections.Counter[tuple[str, str]] = collections.Counter()
        self._news = asyncio.Event()
        self._in_flight = 0
        self._began_one = asyncio.Event()
        self._stack = AsyncExitStack()

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
    def instances(self) -> dict[str, set[str]]:
        """Every instance each member was on."""
        return {member.name: member.instances for member in self._members}

    @property
    def acknowledged(self) -> int:
        return len(self.book.acks)

    async def busy(self, at_least: int) -> None:
        """Wait until so many publishes are on the way: when a fault finds something to lose."""
        while self._in_flight < at_least:
            self._began_one.clear()
            await self._began_one.wait()

    async def publish(self, count: int, *, over_seconds: float) -> None:
        """Publish `count` messages, all members together, evenly over the time where the service keeps up.

        Ends when each is acknowledged, or has failed for good.
        """
        share, rest = divmod(count, len(self._members))
        async with asyncio.TaskGroup() as group:
            for index, member in enumerate(self._members):
                own = share + (index < rest)
                group.create_task(self._publish_as(member, own, over_seconds / max(1, own)))

    async def settle(self, *, timeout_seconds: float) -> None:
        """Wait until every member has everything that was acknowledged; gives up silently: `check` judges."""
        highest = self.book.highest()
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._everybody_has(highest):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass

    def check(self) -> Verdict:
        """The judgement; after the `async with` block."""
        return self.book.check()

    async def _enter(self) -> None:
        for name in self.book.members:
            member = _Member(name, connect(self._url, on_state=self._observer(name), **self._client_options))
            self._members.append(member)
            await self._stack.enter_async_context(member.client)
            async with asyncio.TaskGroup() as group:
                joins = {room: group.create_task(member.client.join(room)) for room in self.book.rooms}
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
            if change.state is State.CONNECTED and change.instance:
                member.instances.add(change.instance)
            last = change.state

        return on_state

    async def _listen(self, member: _Member, name: str, room: Room) -> None:
        entries = self.book.got[member.name, name]
        resets = 0
        async for item in room:
            match item:
                case Message(data=data, seq=seq, pos=pos):
                    sent = Sent(room=name, member=data["by"], number=data["n"])
                    instance = member.client.instance or ""
                    entries.append(Got(sent, seq, pos, instance, time.monotonic(), resets))
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
                name = self._rng.choice(self.book.rooms)
                self._numbers[member.name, name] += 1
                sent = Sent(room=name, member=member.name, number=self._numbers[member.name, name])
                publishing = group.create_task(self._publish_one(member, sent))
                publishing.add_done_callback(lambda _: slots.release())

    async def _publish_one(self, member: _Member, sent: Sent) -> None:
        self._in_flight += 1
        self._began_one.set()
        try:
            ack = await member.rooms[sent.room].publish("entry", {"by": sent.member, "n": sent.number})
        except TableForgeError as error:
            self.book.unknown[sent] = str(error)
        else:
            self.book.acks[sent] = ack
        finally:
            self._in_flight -= 1

    def _everybody_has(self, highest: Mapping[str, int]) -> bool:
        return all(
            seq == 0 or (bool(got := self.book.got[member, room]) and got[-1].seq >= seq)
            for member in self.book.members
            for room, seq in highest.items()
        )


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
