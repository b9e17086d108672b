"""The messages of the internal HTTP API: what an instance says of itself and of the fleet.

Field names are camelCase on the wire. Ages are measured with Redis's clock, never with an instance's own.
"""

from typing import Literal

import msgspec

from tableforge_dataplane.contract.settings import Durability

HEAVIEST_ROOMS: int = 200
"""How many of its heaviest rooms an instance names in its record."""


class RoomLoad(msgspec.Struct, frozen=True, rename="camel", array_like=True):
    """One room on one instance."""

    room: str
    members: int
    """Members on this instance only."""


class InstanceRecord(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What one instance last wrote about itself (every `HEARTBEAT_INTERVAL`)."""

    instance: str
    """`INSTANCE_ID`: the pod's name. It outlives a restart of the container; `boot` doesn't."""
    boot: str
    version: str
    started_at: float
    """Unix seconds, the instance's clock."""
    updated_at: float
    """Unix seconds, Redis's clock at the write."""
    connections: int
    rooms: int
    """Rooms with at least one member here."""
    capacity: int
    """The most connections this instance takes."""
    draining: bool
    alive: bool
    """Whether it counted as alive at `Fleet.as_of`: its lease had not run out; or it lived before, and nobody
    can say yet (Redis came back less than a failover timeout ago) or ought to (over half the fleet is
    missing). Never stored: filled in by who reads it."""
    memory_bytes: int = 0
    messages_received: int = 0
    """Publishes accepted from clients since the start."""
    messages_sent: int = 0
    """Frames of type `message` handed to sockets since the start."""
    heaviest_rooms: list[RoomLoad] = []
    redis_password: int = 0
    """Which of several passwords of Redis it takes at its next connect; 0 where none has a number."""
    cordoned: bool = False
    """Whether it was told to take no room and no client that could go elsewhere."""
    weight: float = 1.0
    """How much it carries beside the others, by what it was told or by its own setting."""
    address: str | None = None
    """Where clients reach this instance and no other: a path on the service's own host, or a whole URL. None:
    there is no such place, or nobody has told it yet."""
    homes: int = 0
    """Rooms that have their home here."""
    elsewhere: list[str] = []
    """Those of `heaviest_rooms` whose home is not here, as far as is known: none can be moved from here."""
    following: int = 0
    """Clients that are on their way to another instance: they were told to move, and haven't yet."""
    commands: list[str] = []
    """Ids of the last commands to shed that it has carried out whole, the newest last."""
    live_settings: str = ""
    """`live.fingerprint` of the live settings file that it goes by; empty where it has or tells none."""


class RedisState(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """How the answering instance sees its Redis."""

    connected: bool
    reason: Literal[
        "Connected",
        "Connecting",
        "Unreachable",
        "AuthenticationFailed",
        "OutOfMemory",
        "ReadOnly",
        "DurabilityNotMet",
        "VersionTooOld",
        "PasswordMissing",
        "PrefixClaimed",
    ]
    message: str
    """One sentence: what is wrong and what would be right. No secrets."""
    version: str = ""
    durability: Durability = "Memory"
    """What an acknowledgement means right now."""


class Totals(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Sums over the instances that are alive."""

    instances: int
    connections: int
    rooms: int
    """Rooms with at least one member anywhere, each counted once."""


class Fleet(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """`GET /fleet`: the fleet as one instance sees it."""

    instance: str
    """The instance that answers."""
    redis: RedisState
    as_of: float
    """Redis's clock at the read; where Redis is away, that of the last read that worked."""
    totals: Totals
    instances: list[InstanceRecord]


class Health(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """`GET /health`: for people, balancers and, where no instance is ready, the operator. 200 or 503."""

    status: Literal["healthy", "degraded", "starting", "draining"]
    """`healthy` answers 200; the others 503."""
    instance: str
    version: str
    ready: bool
    """What `/ready` answers: started once and not draining. Redis away later does not change it."""
    waiting_for: list[str]
    """What keeps the instance from starting, a sentence each, naming what to create or mend."""
    redis: RedisState
    connections: int
    rooms: int
    uptime_seconds: float
    problems: list[str] = []
    """What is amiss although it started, a sentence each: keys or certificates that are gone or cannot be
    read any more. Where one of them keeps everybody out, it is `degraded`."""
    circuit_breakers: dict[str, str] = {}
    """State of each circuit breaker around Redis: `closed`, `half-open` or `open`."""


class InstanceOrder(msgspec.Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """How one instance should be; it says in its record how it is."""

    instance: str
    cordoned: bool = False
    weight: float | None = None
    """None: as its own setting says."""
    address: str | None = None


class RoomMove(msgspec.Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """A room's home goes from one instance to another."""

    room: str
    source: str
    """Where it is supposed to be: moved meanwhile, it stays where it is."""
    target: str


class Move(msgspec.Struct, frozen=True, rename="camel", kw_only=True, tag_field="kind", tag="move"):
    """Rooms get other homes, and the clients follow."""

    fence: int
    id: str
    moves: list[RoomMove]


class Shed(msgspec.Struct, frozen=True, rename="camel", kw_only=True, tag_field="kind", tag="shed"):
    """An instance sends some of its clients elsewhere."""

    fence: int
    id: str
    instance: str
    connections: int


class Forget(msgspec.Struct, frozen=True, rename="camel", kw_only=True, tag_field="kind", tag="forget"):
    """Instances are gone for good: Kubernetes says so."""

    fence: int
    id: str
    instances: list[str]


class Orders(msgspec.Struct, frozen=True, rename="camel", kw_only=True, tag_field="kind", tag="instances"):
    """How instances should be: the last word for each that is named; others keep theirs."""

    fence: int
    id: str
    instances: list[InstanceOrder]


FleetCommand = Move | Shed | Forget | Orders
"""`POST /fleet/commands`: to any instance, for the whole fleet. `fence`: the number of the operator's reign;
one that is older than the latest is refused. `id`: 1 to 64 characters; sent again, it is the same."""

MOST_MOVES = 1000
"""Moves in one command, instances in one order."""


class MoveOutcome(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What became of one move."""

    room: str
    outcome: Literal["moved", "elsewhere", "no_target", "no_such_room"]
    """`moved`: its home is `target`, now or since the command came before. `elsewhere`: its home was not
    `source`, and stays. `no_target`: the target is dead, cordoned, full, leaving or has no address.
    `no_such_room`: it has no home, because nobody is in it any more."""


class FleetAnswer(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The answer to a command: 200; or 409 with `stale` where a later operator has given commands."""

    stale: bool = False
    fence: int = 0
    """The latest that was seen."""
    moves: list[MoveOutcome] = []
    unknown: list[str] = []
    """Instances that were named and don't exist."""
