"""Directories of several instances on one Redis, without the instances: each asks as it would."""

import dataclasses
from typing import Any

import msgspec

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.settings import PlacementStrategy, Settings
from tableforge_dataplane.homes.directory import ROOMS_PER_CALL, Directory, Standing, State
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.registry.keys import REGISTRY_SLOT, RegistryKeys
from tableforge_dataplane.registry.link import Link
from tableforge_dataplane.registry.liveness import Liveness
from tableforge_dataplane.topology.topology import topology_of

KEYS = RegistryKeys("test")

LEASE_MS = 3_600_000

WHOLE_DIRECTORY = (
    *("homes", "homes-of:instance-1", "places", "stands", "leaving"),
    *("moved", "orders", "sheds", "fence", "swept"),
)
"""The names of all its keys."""


def settings_for(**environ: str) -> Settings:
    return environment.read({"TABLEFORGE_REDIS_KEY_PREFIX": "test", **environ})


BOTH_HALVES = """
local found = {redis.call('HGETALL', KEYS[1])}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('SMEMBERS', key)
end
return found
"""
"""The homes and the indexes at one moment: who reads one after the other sees rooms on their way."""


@dataclasses.dataclass
class One:
    """An instance as far as its directory goes."""

    name: str
    directory: Directory
    link: Link
    connections: int = 0
    capacity: int = 100
    weight: float = 100
    address: str = ""

    async def stand(self, state: State = "takes", *, moved: int | None = None) -> Standing | None:
        return await self.directory.stand(
            state,
            address=self.address,
            weight=self.weight,
            connections=self.connections,
            capacity=self.capacity,
            moved=moved,
        )

    async def place(
        self, *rooms: str, itself: bool = False, dead: frozenset[str] = frozenset()
    ) -> list[str | None]:
        homes: list[str | None] = []
        for start in range(0, len(rooms), ROOMS_PER_CALL):
            part = rooms[start : start + ROOMS_PER_CALL]
            homes += await self.directory.place(part, itself=itself, dead=dead)
        return homes

    async def own(self) -> set[str]:
        return {room async for rooms in self.directory.own() for room in rooms}


class Directories:
    """Makes them and lets their instances live and die."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._settings = settings_for(**environ)
        topology = topology_of(self._settings.redis)
        self._locate = lambda: topology.locate(REGISTRY_SLOT)
        self.link = self._link()
        """For what a test asks itself."""
        self.redis: Any = self.link.redis
        """Its client; what it answers has no type worth the name."""
        self.all: dict[str, One] = {}

    async def __call__(
        self, *names: str, strategy: PlacementStrategy = "LeastConnections", **more: Any
    ) -> list[One]:
        """Instances that live, are registered and take rooms."""
        made = []
        for name in names:
            link = self._link()
            directory = Directory(link, instance=name, boot=f"{name}-boot", strategy=strategy)
            one = One(name, directory, link, **{"address": f"/i/{name}/ws", **more})
            self.all[name] = one
            await self.live(one)
            await one.stand()
            made.append(one)
        return made

    async def live(self, one: One) -> None:
        """It has a lease and a record."""
        record = msgspec.json.encode({"instance": one.name, "boot": f"{one.name}-boot"})
        await self.redis.hset(KEYS.records, one.name, record)
        await self.redis.set(KEYS.lease(one.name), f"{one.name}-boot", px=LEASE_MS)

    async def die(self, one: One) -> None:
        """Its lease has run out."""
        await self.redis.delete(KEYS.lease(one.name))

    async def bury(self, name: str, at_once: int = 500) -> int:
        """As the clean-up does it; how often it had to be asked."""
        for times in range(1, 1000):
            if await self.link.run_directory("bury", name, at_once) != 2:
                return times
        raise AssertionError("there is no end to it")

    async def homes(self) -> dict[str, str]:
        """Every room's home, as Redis has it."""
        found = await self.redis.hgetall(KEYS.homes)
        return {room.decode(): home.decode() for room, home in found.items()}

    async def index(self) -> dict[str, str]:
        """The same, as the instances' indexes have it. Fails where a room is in two."""
        _, index = await self.both()
        return index

    async def both(self) -> tuple[dict[str, str], dict[str, str]]:
        """The homes and the index, at one moment."""
        pattern = KEYS.directory("homes-of:")
        fields, *indexes = await self.redis.eval(BOTH_HALVES, 1, KEYS.homes, pattern)
        homes = {room.decode(): home.decode() for room, home in zip(fields[::2], fields[1::2], strict=True)}
        index: dict[str, str] = {}
        for key, rooms in zip(indexes[::2], indexes[1::2], strict=True):
            for room in rooms:
                assert room.decode() not in index, f"{room} is in two indexes"
                index[room.decode()] = key.decode()[len(pattern) :]
        return homes, index

    async def moved(self) -> int:
        return int(await self.redis.get(KEYS.directory("moved")) or 0)

    async def close(self) -> None:
        for link in (self.link, *(one.link for one in self.all.values())):
            await link.close()

    def _link(self) -> Link:
        return Link(
            self._settings,
            metrics=Metrics(),
            liveness=Liveness(failover_timeout_seconds=30, inactive_threshold_seconds=30),
            locate=self._locate,
        )
