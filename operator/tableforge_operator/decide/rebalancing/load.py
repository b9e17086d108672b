"""The load of a fleet at one moment, in columns: what plans are made from."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, Literal

from tableforge_dataplane.contract.fleet import Fleet, InstanceRecord

Measure = Literal["capacity", "weight"]
"""What an instance's connections are compared with: what it takes, or what it is said to carry."""

MOST: Final = 2**53
"""More than anything in a record can mean. Beyond it sums and quotients end in infinity, 0 or an error."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One instance, as its record has it."""

    name: str
    connections: int
    capacity: int
    """The most connections it takes."""
    weight: float = 1.0
    accepting: bool = True
    """Whether nobody but the planner keeps new clients from it."""
    draining: bool = False
    alive: bool = True
    reachable: bool = True
    """Whether clients can be sent to it and no other. Asked only where rooms have homes."""
    closed: bool = False
    """Whether the planner's own cordon holds."""
    following: int = 0
    """Clients that were told to move and haven't yet."""
    updated_at: float = 0.0
    """Unix seconds, Redis's clock: when it told this."""
    done: tuple[str, ...] = ()
    """Ids of the sheds that it last carried out whole."""

    @property
    def takes_part(self) -> bool:
        """Whether its load is to be even with the others'."""
        return self.alive and self.accepting and not self.draining

    def strength(self, measure: Measure) -> float:
        """What its connections are divided by. Nonsense in a record counts as next to nothing, never as 0."""
        return max(float(self.capacity if measure == "capacity" else self.weight), 1e-6)


@dataclasses.dataclass(frozen=True, slots=True)
class Rooms:
    """The heaviest rooms of one instance: two columns. In any order: who needs one sorts."""

    names: Sequence[str] = ()
    members: Sequence[int] = ()
    """On this instance only."""
    elsewhere: Collection[str] = ()
    """Those that have no home here, so that none can be moved from here."""


NO_ROOMS = Rooms()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """The fleet."""

    instances: Sequence[Instance]
    rooms: Mapping[str, Rooms] = dataclasses.field(default_factory=dict)
    """By instance."""
    as_of: float = 0.0
    """Unix seconds, Redis's clock, of the read."""


def load_of(fleet: Fleet, *, cordoned: Collection[str] = (), closed: Collection[str] | None = None) -> Load:
    """What the instances' records say.

    `cordoned`: instances that a person keeps new clients from. `closed`: those from which the planner's own
    cordon keeps them; None: those that say they are cordoned, and not by a person.
    """
    return Load(
        instances=tuple(
            _instance(
                record,
                cordoned=record.instance in cordoned,
                closed=record.cordoned if closed is None else record.instance in closed,
            )
            for record in fleet.instances
        ),
        rooms=_Named(fleet.instances),
        as_of=_bounded(fleet.as_of),
    )


class _Named(Mapping[str, Rooms]):
    """The rooms that records name, in columns only once they are asked for: plans look at few instances'."""

    def __init__(self, records: Sequence[InstanceRecord]) -> None:
        self._records = {record.instance: record for record in records}

    def __getitem__(self, name: str) -> Rooms:
        record = self._records[name]
        heaviest = record.heaviest_rooms
        return Rooms(
            [one.room for one in heaviest],
            [one.members for one in heaviest],
            frozenset(record.elsewhere),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def _instance(record: InstanceRecord, *, cordoned: bool, closed: bool) -> Instance:
    return Instance(
        name=record.instance,
        connections=int(_bounded(record.connections)),
        capacity=int(_bounded(record.capacity)),
        weight=_bounded(record.weight),
        accepting=not cordoned,
        draining=record.draining,
        alive=record.alive,
        reachable=record.address is not None,
        closed=closed and not cordoned,
        following=record.following,
        updated_at=_bounded(record.updated_at),
        done=tuple(record.commands),
    )


def _bounded(number: float) -> float:
    return min(max(number, 0), MOST)


def spread(loads: Collection[float], mean: float) -> float:
    """(max − min) / mean; 0 where there is nothing to compare."""
    return (max(loads) - min(loads)) / mean if loads and mean > 0 else 0.0


def spread_of(load: Load, measure: Measure) -> float:
    """Of the instances that take part, as they are."""
    taking_part = [one for one in load.instances if one.takes_part]
    strength = sum(one.strength(measure) for one in taking_part)
    if not strength:
        return 0.0
    mean = sum(one.connections for one in taking_part) / strength
    return spread([one.connections / one.strength(measure) for one in taking_part], mean)


def misplaced_of(load: Load, measure: Measure) -> float:
    """The share of the clients that would have to be elsewhere for all loads to be the same."""
    taking_part = [one for one in load.instances if one.takes_part]
    total = sum(one.connections for one in taking_part)
    if not total:
        return 0.0
    mean = total / sum(one.strength(measure) for one in taking_part)
    return sum(max(one.connections - mean * one.strength(measure), 0.0) for one in taking_part) / total
