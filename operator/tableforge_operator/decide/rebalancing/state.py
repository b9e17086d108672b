"""What rebalancing goes by, what it remembers, and what it wants: the words of `cycle`."""

import dataclasses
import datetime as dt
import math
from collections.abc import Mapping
from typing import Final, Literal

from tableforge_operator.decide.rebalancing.averages import Averages
from tableforge_operator.decide.rebalancing.load import Load, Measure
from tableforge_operator.decide.rebalancing.planner import Mode
from tableforge_operator.decide.rebalancing.plans import BusyRoom, Obstacle, RoomMove, Shed

MOST_COOLING: Final = 20_000
"""Rooms that are remembered as moved. Where it would take more, fewer are moved."""

Phase = Literal["Idle", "Rebalancing", "Stopped", "Blocked"]
Reason = (
    Obstacle
    | Literal[
        "WithinThreshold",
        "OneInstance",
        "NoConnections",
        "Rebalancing",
        "AboveThreshold",
        "InstancesLeave",
        "ClientsStay",
        "NobodyAccepts",
        "NoInstances",
        "Measuring",
        "Disabled",
        "FleetUnknown",
        "RedisAway",
        "RecordsStale",
    ]
)
"""Why the condition `Balanced` is as it is."""
NewsReason = Literal[
    "RebalanceBlocked",
    "RebalanceFinished",
    "RebalanceNotNeeded",
    "RebalanceRefused",
    "RebalanceStarted",
    "RebalanceStopped",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the cluster's spec says."""

    enabled: bool = True
    """`clustering.enableLoadRebalancing`."""
    mode: Mode = "Service"
    """`routing.mode`."""
    measure: Measure = "capacity"
    """`weight` where `loadBalancing.strategy` is `Weighted`."""
    threshold: float = 0.3
    interval_seconds: float = 60.0
    most_moves: int = 50
    """`maxMovesPerCycle`."""
    cooldown_seconds: float = 600.0
    """`moveCooldown`."""
    reconnects_per_second: int = 200
    """`rollout.maxReconnectsPerSecond`: of the whole cluster, whatever the reason."""
    heartbeat_seconds: float = 30.0
    """How often an instance writes its record at least."""

    @property
    def most_clients(self) -> int:
        """Clients that one cycle may make move."""
        return int(self.reconnects_per_second * self.interval_seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sight:
    """The fleet as the operator last saw it."""

    load: Load | None
    """None: nobody has told."""
    seen_at: float = 0.0
    """Monotonic seconds of the answer it is from."""
    redis_connected: bool = True
    leaving: str = ""
    """Why instances are on their way out, or will be next, as the end of a sentence; empty where none is.

    A plan would fill who leaves next, and needs the budget that draws on those who leave.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class MoveRooms:
    """A command to send to any instance until it is answered."""

    id: str
    moves: tuple[RoomMove, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ShedClients:
    """A command, likewise. 0 connections: what was asked before is taken back."""

    id: str
    instance: str
    connections: int


Command = MoveRooms | ShedClients

Fate = Literal["planned", "waiting", "done", "failed", "dropped"]
"""`planned`: nobody was told yet. `dropped`: nobody was, and nobody will be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moving:
    """A move of a plan that is under way, or was."""

    move: RoomMove
    fate: Fate = "planned"
    why: str = ""
    """Why it failed or was dropped, as the end of a sentence."""
    left: int
    """Members that were last seen at the source."""
    seen_at: float
    """`Instance.updated_at` of that."""
    calm: int = 0
    """Records in a row in which nobody was on the way and nobody had left."""

    @property
    def clients(self) -> int:
        """Whom it makes move."""
        return self.move.members


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shedding:
    """A shed that is under way, or was."""

    shed: Shed
    id: str
    fate: Fate = "waiting"
    why: str = ""

    @property
    def clients(self) -> int:
        """Whom it makes move."""
        return self.shed.connections


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A plan that is being carried out."""

    id: str
    started_at: float
    deadline: float
    moves: tuple[Moving, ...] = ()
    sheds: tuple[Shedding, ...] = ()
    closed: frozenset[str] = frozenset()
    closed_at: float | None = None
    """When all of `closed` were seen closed: nobody is sent away before."""
    begun: tuple[Command, ...] = ()
    """What was asked of the fleet so far, in that order."""
    answered: frozenset[str] = frozenset()
    """Ids of the commands that were answered."""
    next_at: float = -math.inf
    """When more moves may begin, though the last ones are not done."""
    stopped: str = ""
    """Why nothing more of it begins; empty where it goes on."""
    clients: int
    misplaced: float
    """The share of clients that were on the wrong instance before."""
    cut_short: bool
    """Whether it leaves more to do for the next one."""

    @property
    def parts(self) -> tuple[Moving | Shedding, ...]:
        """All that it consists of."""
        return (*self.moves, *self.sheds)

    @property
    def unanswered(self) -> tuple[Command, ...]:
        """What was asked and not answered."""
        return tuple(one for one in self.begun if one.id not in self.answered)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Of the last plan, the one under way included."""

    planned: int = 0
    """Rooms; in `Service` mode instances that shed."""
    done: int = 0
    failed: int = 0
    spread_before: float = 0.0
    at: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What is remembered from turn to turn. A new operator begins without: `cycle.begin`."""

    born_at: float
    averages: Averages = Averages()
    work: Work | None = None
    cooling: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Rooms that must stay, and until when."""
    planned_at: float | None = None
    fruitless: int = 0
    """Plans in a row that came to nothing: each doubles the time to the next."""
    known: frozenset[str] = frozenset()
    """The instances that have taken part, and are still there."""
    goes_on: bool = False
    """Whether the last plan was cut short: the next one need not be sure again."""
    obstacle: Obstacle | None = None
    busy: tuple[BusyRoom, ...] = ()
    told: str = ""
    """The obstacle that was last told as news."""
    balanced: bool | None = None
    last: Result = Result()
    last_request: str | None = None
    cancels: tuple[ShedClients, ...] = ()
    cancel_until: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class News:
    """For an Event."""

    type: Literal["Normal", "Warning"]
    reason: NewsReason
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """For `.status.rebalance` and the condition `Balanced`."""

    phase: Phase
    balanced: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str
    moves_planned: int
    moves_done: int
    moves_failed: int
    spread_before: float
    spread: float | None
    """None: the load is not known."""
    last_plan_at: dt.datetime | None
    last_request: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn comes to."""

    state: State
    commands: tuple[Command, ...] = ()
    """To be sent, and `cycle.answered` called with the answer; until then the next turn names them again."""
    closed: frozenset[str] = frozenset()
    """Instances that must take no new clients for now. Every other cordon of the planner's is taken back."""
    report: Report
    news: tuple[News, ...] = ()
    finished: Result | None = None
    """Of a plan that ended in this turn; another one may have begun since."""
    again_in_seconds: float
    """When there may be something to do, at the latest."""
