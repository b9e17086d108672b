"""A fleet as a model: rooms with members on instances, who follow moves, report late, and come and go.

It stands where instances, clients and their network would: it carries out the cycle's commands and tells
records. Time is a number; chance comes from a seed.
"""

import dataclasses
import datetime as dt
import random
from collections.abc import Callable, Iterator
from typing import Final

from tableforge_operator.decide.rebalancing import cycle
from tableforge_operator.decide.rebalancing.load import Instance, Load, Rooms, spread_of
from tableforge_operator.decide.rebalancing.state import (
    Command,
    MoveRooms,
    News,
    Report,
    Settings,
    ShedClients,
    Sight,
    State,
)

NAMED: Final = 200
"""Rooms that a record names."""
STARTED: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass
class ModelInstance:
    """One instance: what is true, and what it last told."""

    name: str
    phase: float
    """When, within a heartbeat, it writes its record."""
    capacity: int = 2000
    rooms: dict[str, int] = dataclasses.field(default_factory=dict)
    alive: bool = True
    cordoned: bool = False
    """By a person."""
    closed: bool = False
    """By the planner."""
    following: int = 0
    done: tuple[str, ...] = ()
    told: Instance | None = None
    told_rooms: Rooms = dataclasses.field(default_factory=Rooms)

    @property
    def connections(self) -> int:
        return sum(self.rooms.values())


@dataclasses.dataclass(frozen=True)
class Moved:
    """A room that went from one instance to another."""

    at: float
    room: str
    source: str
    target: str
    members: int


@dataclasses.dataclass
class _Going:
    room: str
    source: str
    target: str
    left: int


@dataclasses.dataclass
class _Sending:
    id: str
    source: str
    left: int


class Model:
    """The fleet and the operator's cycle before it."""

    def __init__(
        self,
        settings: Settings,
        *,
        seed: int = 0,
        noise: float = 0.0,
        stubborn: float = 0.0,
        late: float = 0.0,
    ) -> None:
        """`noise`: by which share a record's numbers are off at most. `stubborn`: the share of a room's
        members that don't follow. `late`: how probable it is that an instance leaves out a record.
        """
        self.settings, self.noise, self.stubborn, self.late = settings, noise, stubborn, late
        self.chance = random.Random(seed)  # noqa: S311
        self.now = 0.0
        self.instances: dict[str, ModelInstance] = {}
        self.homes: dict[str, str] = {}
        self.state: State = cycle.begin(now=0.0)
        self.report: Report | None = None
        self.moved: list[Moved] = []
        self.sent = 0
        """Clients that were made to move."""
        self.most_sent_in_a_second = 0.0
        self.news: list[News] = []
        self.planned: list[float] = []
        """When plans were made."""
        self.spreads: list[tuple[float, float]] = []
        self.connections: dict[str, list[tuple[float, float]]] = {}
        """Of each instance, while it was there."""
        self.request: str | None = None
        self.on_move: Callable[[Moved], None] = lambda _: None
        self._going: list[_Going] = []
        self._sending: dict[str, _Sending] = {}

    # What happens to the fleet.

    def add_instance(self, name: str, *, capacity: int = 2000) -> ModelInstance:
        phase = self.chance.random() * self.settings.heartbeat_seconds
        instance = self.instances[name] = ModelInstance(name, phase=phase, capacity=capacity)
        self._tell(instance)
        return instance

    def remove_instance(self, name: str) -> None:
        """It is gone: its rooms find homes where there is least, and their members with them."""
        gone = self.instances.pop(name)
        for room, members in sorted(gone.rooms.items()):
            target = min(self._open(), key=lambda one: (one.connections / one.capacity, one.name))
            self.homes[room] = target.name
            target.rooms[room] = target.rooms.get(room, 0) + members
        self._going = [one for one in self._going if name not in (one.source, one.target)]

    def add_room(self, room: str, members: int, home: str) -> None:
        self.homes[room] = home
        self.instances[home].rooms[room] = members

    def grow(self, room: str, members: int) -> None:
        """Members come, or (less than 0) go, at the room's home."""
        here = self.instances[self.homes[room]].rooms
        here[room] = max(here.get(room, 0) + members, 0)

    # Time.

    def run(self, seconds: float, *, step: float = 10.0) -> Iterator[float]:
        """So many seconds, looked at by the operator at each step; yields after each."""
        until = self.now + seconds
        while self.now < until:
            self._advance(step)
            self._operate()
            yield self.now

    def _advance(self, seconds: float) -> None:
        before, self.now = self.now, self.now + seconds
        self._follow(seconds)
        heartbeat = self.settings.heartbeat_seconds
        for one in self.instances.values():
            due = int((self.now - one.phase) / heartbeat) > int((before - one.phase) / heartbeat)
            if due and self.chance.random() >= self.late:
                self._tell(one)
        self.spreads.append((self.now, spread_of(self.truth(), self.settings.measure)))
        for one in self.instances.values():
            self.connections.setdefault(one.name, []).append((self.now, one.connections))

    def truth(self) -> Load:
        """The load without noise, now."""
        return Load(
            instances=tuple(
                Instance(
                    name=one.name,
                    connections=one.connections,
                    capacity=one.capacity,
                    accepting=not one.cordoned,
                    alive=one.alive,
                    updated_at=self.now,
                )
                for one in self.instances.values()
            ),
            as_of=self.now,
        )

    def _follow(self, seconds: float) -> None:
        # What nobody took before is nobody's now: so no second has more than the budget.
        sent, left = 0, int(seconds * self.settings.reconnects_per_second)
        still_open = self._open()
        while left > 0 and (self._going or self._sending):
            if self._going:
                one = self._going[0]
                source, target = self.instances[one.source], self.instances[one.target]
                number = min(one.left, left, source.rooms.get(one.room, 0))
                if number <= 0:
                    source.following -= one.left
                    self._going.pop(0)
                    continue
                source.rooms[one.room] -= number
                if not source.rooms[one.room]:
                    del source.rooms[one.room]
                target.rooms[one.room] = target.rooms.get(one.room, 0) + number
                source.following -= number
                one.left -= number
            else:
                number = self._send(still_open, left)
            left -= number
            sent += number
        self.sent += sent
        self.most_sent_in_a_second = max(self.most_sent_in_a_second, sent / seconds)

    def _send(self, still_open: list[ModelInstance], most: int) -> int:
        """Some clients of an instance that sheds arrive anywhere that is open."""
        name = min(self._sending)
        one = self._sending[name]
        source = self.instances.get(name)
        if source is None or one.left <= 0 or not source.rooms:
            if source is not None:
                source.done = (*source.done[-99:], one.id)
            del self._sending[name]
            return 0
        room = self.chance.choice(sorted(source.rooms))
        number = min(one.left, source.rooms[room], most, 5)
        source.rooms[room] -= number
        if not source.rooms[room]:
            del source.rooms[room]
        for _ in range(number):
            target = self.chance.choice(still_open or [source])
            target.rooms[room] = target.rooms.get(room, 0) + 1
        one.left -= number
        return number

    def _open(self) -> list[ModelInstance]:
        return [one for one in self.instances.values() if one.alive and not one.cordoned and not one.closed]

    def _tell(self, one: ModelInstance) -> None:
        factor = 1 + self.chance.uniform(-self.noise, self.noise)
        heaviest = sorted(one.rooms.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMED]
        one.told = Instance(
            name=one.name,
            connections=round(one.connections * factor),
            capacity=one.capacity,
            accepting=not one.cordoned,
            alive=one.alive,
            closed=one.closed,
            following=max(one.following, 0),
            updated_at=self.now,
            done=one.done,
        )
        one.told_rooms = Rooms(
            [room for room, _ in heaviest],
            [round(members * factor) for _, members in heaviest],
            frozenset(room for room, _ in heaviest if self.homes[room] != one.name),
        )

    def load(self) -> Load:
        """What the records say."""
        return Load(
            instances=tuple(one.told for one in self.instances.values() if one.told is not None),
            rooms={one.name: one.told_rooms for one in self.instances.values()},
            as_of=self.now,
        )

    # The operator.

    def _operate(self) -> None:
        turn = cycle.step(
            self.state,
            sight=Sight(load=self.load(), seen_at=self.now),
            settings=self.settings,
            now=self.now,
            wall=STARTED + dt.timedelta(seconds=self.now),
            request=self.request,
            reign="1",
        )
        self.state, self.report = turn.state, turn.report
        self.news += turn.news
        if any(news.reason == "RebalanceStarted" for news in turn.news):
            self.planned.append(self.now)
        for one in self.instances.values():
            one.closed = one.name in turn.closed
        for command in turn.commands:
            self._take(command)

    def _take(self, command: Command) -> None:
        match command:
            case MoveRooms():
                outcomes = {
                    move.room: self.move(move.room, move.source, move.target) for move in command.moves
                }
                self.state = cycle.answered(self.state, command.id, outcomes)
            case ShedClients():
                if command.connections:
                    self._sending[command.instance] = _Sending(
                        command.id, command.instance, command.connections
                    )
                else:
                    self._sending.pop(command.instance, None)
                self.state = cycle.answered(self.state, command.id)

    def move(self, room: str, source: str, target: str) -> str:
        if self.homes.get(room) != source:
            return "elsewhere"
        if target not in self.instances:
            return "no_target"
        members = self.instances[source].rooms.get(room, 0)
        self.homes[room] = target
        going = members - int(self.stubborn * members)
        self.instances[source].following += going
        self._going.append(_Going(room, source, target, going))
        moved = Moved(self.now, room, source, target, members)
        self.moved.append(moved)
        self.on_move(moved)
        return "moved"
