"""What an instance says of itself, `/stats`, of where rooms are, `/rooms`, and of who is in the fleet."""

import resource
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tableforge_dataplane.contract.fleet import Fleet, InstanceRecord, RedisState
from tableforge_dataplane.http.readiness import InstanceHealth
from tableforge_dataplane.observability.metrics import Metrics, resident_memory_bytes

MOST_A_PAGE: Final = 1000
USUAL_PAGE: Final = 100


class Memory(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Bytes."""

    used: int
    """In memory now; 0 where the system doesn't say."""
    peak: int
    """The most it ever was."""


class Cpu(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Seconds of processor time since the start."""

    user_seconds: float
    system_seconds: float


class Messages(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Since the start."""

    received: int
    sent: int


class Stats(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """`GET /stats`: this instance."""

    instance: str
    version: str
    status: str
    uptime_seconds: float
    connections: int
    rooms: int
    capacity: int
    memory: Memory
    cpu: Cpu
    messages: Messages
    queue_depth: int
    """Publishes that wait for Redis."""
    redis: RedisState


class RoomPlaces(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One room: members by instance."""

    room: str
    members: int
    instances: dict[str, int]


class Distribution(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """`GET /rooms`: which rooms have members where, from the 200 heaviest of each instance."""

    as_of: float
    rooms: list[RoomPlaces]
    cursor: str | None
    """Where the next page begins; None on the last one."""


class InstancesPage(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """`GET /api/instances`."""

    as_of: float
    instances: list[InstanceRecord]
    cursor: str | None


class Overview:
    """Puts those together."""

    def __init__(
        self,
        *,
        health: InstanceHealth,
        metrics: Metrics,
        capacity: Callable[[], int],
        queue_depth: Callable[[], int],
        fleet: Callable[[], Awaitable[Fleet]],
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._capacity = capacity
        self._queue_depth = queue_depth
        self.fleet = fleet

    def stats(self) -> Stats:
        """How this instance is now."""
        health = self._health.report()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Stats(
            instance=health.instance,
            version=health.version,
            status=health.status,
            uptime_seconds=health.uptime_seconds,
            connections=health.connections,
            rooms=health.rooms,
            capacity=self._capacity(),
            memory=Memory(used=resident_memory_bytes(), peak=usage.ru_maxrss * 1024),
            cpu=Cpu(user_seconds=round(usage.ru_utime, 3), system_seconds=round(usage.ru_stime, 3)),
            messages=Messages(
                received=self._metrics.messages_received.total, sent=self._metrics.messages_sent.total
            ),
            queue_depth=self._queue_depth(),
            redis=health.redis,
        )

    async def distribution(self, *, after: str, limit: int) -> Distribution:
        """Rooms in the order of their names, from the one that follows `after`."""
        fleet = await self.fleet()
        places: dict[str, dict[str, int]] = {}
        for record in fleet.instances:
            if record.alive:
                for load in record.heaviest_rooms:
                    if load.room > after:
                        places.setdefault(load.room, {})[record.instance] = load.members
        names = sorted(places)
        page = names[:limit]
        return Distribution(
            as_of=fleet.as_of,
            rooms=[
                RoomPlaces(room=room, members=sum(places[room].values()), instances=places[room])
                for room in page
            ],
            cursor=page[-1] if len(names) > limit else None,
        )

    async def instances(self, *, after: str, limit: int) -> InstancesPage:
        """Records in the order of the instances' names, without their rooms."""
        fleet = await self.fleet()
        later = [record for record in fleet.instances if record.instance > after]
        page = later[:limit]
        return InstancesPage(
            as_of=fleet.as_of,
            instances=[msgspec.structs.replace(record, heaviest_rooms=[], elsewhere=[]) for record in page],
            cursor=page[-1].instance if len(later) > limit else None,
        )
