"""The words of a plan: its limits, what is in it, and what stood in its way."""

import dataclasses
from collections.abc import Mapping
from typing import Final, Literal

from tableforge_operator.decide.rebalancing.load import Load, Measure

MOST_NAMED: Final = 5
"""Rooms that a plan names as too busy."""

Obstacle = Literal["RoomTooBusy", "NoCapacity", "BudgetTooSmall", "RoomsCooling", "NotRouted", "NothingFits"]
"""Why load stays uneven though there was a plan.

`RoomTooBusy`: a room is heavier than would make a difference elsewhere. `NoCapacity`: who has less to carry
is full. `BudgetTooSmall`: what should move has more members than may move in a cycle. `RoomsCooling`: what
could move has moved lately. `NotRouted`: clients cannot be sent to who has less to carry. `NothingFits`: no
instance has anything that would help elsewhere.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a plan keeps to."""

    aim: float
    """The spread from which on nothing more is planned."""
    most_moves: int
    """Rooms; in `Service` mode instances that shed."""
    most_clients: int
    """Clients that may be made to move."""


@dataclasses.dataclass(frozen=True, slots=True)
class RoomMove:
    """A room goes from one instance to another."""

    room: str
    source: str
    target: str
    members: int
    """On the source, when it was planned."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shed:
    """An instance sends clients elsewhere."""

    instance: str
    connections: int


@dataclasses.dataclass(frozen=True, slots=True)
class BusyRoom:
    """A room that makes its instance busy and cannot be moved to any use."""

    room: str
    instance: str
    members: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do, and what it comes to."""

    moves: tuple[RoomMove, ...] = ()
    sheds: tuple[Shed, ...] = ()
    closed: tuple[str, ...] = ()
    """Instances that take no new clients meanwhile, so that who is sent away arrives where it should."""
    before: float = 0.0
    after: float = 0.0
    """The spread that is expected."""
    obstacle: Obstacle | None = None
    """What keeps `after` from being less; the most telling where there are several."""
    busy: tuple[BusyRoom, ...] = ()
    """The rooms behind `RoomTooBusy`, the heaviest first, no more than `MOST_NAMED`."""
    rooms_looked_at: int = 0
    """What the plan cost: it must not grow with rooms of instances that nothing moves from."""

    @property
    def clients(self) -> int:
        """How many are made to move."""
        return sum(move.members for move in self.moves) + sum(shed.connections for shed in self.sheds)

    def __bool__(self) -> bool:
        return bool(self.moves or self.sheds)


@dataclasses.dataclass(kw_only=True)
class Bins:
    """The instances that take part, by name, as columns that a plan works on."""

    names: list[str]
    strengths: list[float]
    connections: list[float]
    loads: list[float]
    here: list[int]
    """Connections at this moment, which may not be what counts (`connections`)."""
    free: list[int]
    """How many more fit in."""
    reachable: list[bool]
    mean: float

    @classmethod
    def of(cls, load: Load, measure: Measure, usual: Mapping[str, float]) -> "Bins":
        """Of a load; `usual` goes before the connections of the moment."""
        found = sorted((one for one in load.instances if one.takes_part), key=lambda one: one.name)
        strengths = [one.strength(measure) for one in found]
        connections = [max(usual.get(one.name, float(one.connections)), 0.0) for one in found]
        return cls(
            names=[one.name for one in found],
            strengths=strengths,
            connections=connections,
            loads=[number / strength for number, strength in zip(connections, strengths, strict=True)],
            here=[one.connections for one in found],
            free=[max(one.capacity - one.connections, 0) for one in found],
            reachable=[one.reachable for one in found],
            mean=sum(connections) / sum(strengths) if found else 0.0,
        )
