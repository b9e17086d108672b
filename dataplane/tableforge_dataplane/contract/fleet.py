"""The messages of the internal HTTP API: what an instance says of itself and of the fleet.

Field names are camelCase on the wire. Ages are measured with Redis's clock, never with an instance's own.
"""

from typing import Literal

import msgspec

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
    ]
    message: str
    """One sentence: what is wrong and what would be right. No secrets."""
    version: str = ""
    durability: Literal["Memory", "Disk"] = "Memory"
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
