"""The other instances as Redis knows them: the fleet, who of it is dead, what is cleaned up of these."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from tableforge_dataplane.contract.fleet import Fleet, InstanceRecord, RedisState, Totals
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.registry.connection import REDIS_FAILURES
from tableforge_dataplane.registry.link import Link
from tableforge_dataplane.registry.liveness import Liveness, Verdict

FLEET_REUSED_SECONDS: Final = 1.0
"""For this long one reading of the fleet answers everybody who asks."""

HOMES_FREED_AT_ONCE: Final = 500
"""Of an instance that is removed: about 2 ms of Redis's time."""

HOMES_LEFT: Final = 2
"""What a script says that removed as many as it might."""

FORGOTTEN_REMEMBERED: Final = 1000
"""Instances that are gone for good, as Kubernetes said."""

_log = EventLog("registry")


class _StoredRecord(InstanceRecord, frozen=True, rename="camel", kw_only=True):
    """As it lies in Redis: whether it is alive is for who reads it to say."""

    alive: bool = False


_STORED: Final = msgspec.json.Decoder(_StoredRecord)


class Others:
    """Reads names, leases and records, and judges by them."""

    def __init__(
        self,
        link: Link,
        *,
        instance: str,
        liveness: Liveness,
        state: Callable[[], RedisState],
        own: Callable[[], InstanceRecord],
    ) -> None:
        """`state`: how Redis is, for who asks for the fleet. `own`: this instance's record as of now, for
        when no other can be read."""
        self._link = link
        self._instance = instance
        self._liveness = liveness
        self._state = state
        self._own = own
        self.alive = 1
        """How many instances live, this one included, as last known."""
        self._fleet: Fleet | None = None
        self._fleet_read_at = -float("inf")
        self._reading: asyncio.Task[None] | None = None
        self._forgotten: dict[str, None] = {}

    async def stop(self) -> None:
        """End what is being read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def fleet(self) -> Fleet:
        """The fleet now, or as it was last known where Redis is away. Never raises for Redis's sake."""
        if time.monotonic() - self._fleet_read_at >= FLEET_REUSED_SECONDS:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read_fleet_or_keep(), name="registry-fleet")
            # shielded: one who asked and went away must not take the answer from the others
            await asyncio.shield(self._reading)
        fleet = self._fleet
        if fleet is None:
            record = msgspec.structs.replace(self._own(), alive=True)
            return Fleet(
                instance=self._instance,
                redis=self._state(),
                as_of=0.0,
                totals=Totals(instances=1, connections=record.connections, rooms=record.rooms),
                instances=[record],
            )
        return msgspec.structs.replace(fleet, redis=self._state())

    async def gone(self, holders: frozenset[str]) -> frozenset[str]:
        """Which of these processes, `<instance>|<boot>` each, are no more: dead, stopped, or replaced.

        Nobody where that can't be said now.
        """
        of = {holder: holder.rpartition("|")[::2] for holder in holders}
        judged = await self._lost(frozenset(instance for instance, _ in of.values()))
        if judged is None:
            return frozenset()
        lost, leases = judged
        return frozenset(
            holder
            for holder, (instance, boot) in of.items()
            if (leases[instance] != boot if instance in leases else instance in lost)
        )

    async def lost(self, instances: frozenset[str]) -> frozenset[str]:
        """Which of these instances are no more: dead, or stopped. Nobody where that can't be said now."""
        judged = await self._lost(instances)
        return judged[0] if judged is not None else frozenset()

    def forget(self, instances: Iterable[str]) -> None:
        """Kubernetes says that they are gone: without a lease they are, whatever else speaks for them."""
        for name in instances:
            self._forgotten[name] = None
        while len(self._forgotten) > FORGOTTEN_REMEMBERED:
            del self._forgotten[next(iter(self._forgotten))]
        self._fleet_read_at = -float("inf")

    async def _lost(self, instances: frozenset[str]) -> tuple[frozenset[str], dict[str, str]] | None:
        """Who of them is no more, and the leases of the others; None where Redis doesn't answer."""
        try:
            known, leases, verdict = await self._judged(set(instances))
        except REDIS_FAILURES as error:
            self._link.failed(error)
            return None
        answering = self._liveness.answering(monotonic=time.monotonic())
        for name in leases:
            self._forgotten.pop(name, None)
        lost = frozenset(
            name
            for name in instances
            if name not in leases
            and (name in verdict.dead or name in self._forgotten or (answering and name not in known))
        )
        return lost, leases

    async def _judged(self, others: set[str]) -> tuple[frozenset[str], dict[str, str], Verdict]:
        """Who has a record, the leases of these and of `others`, and what that means.

        Names and leases only: whole records would be a megabyte per hundred instances.
        """
        stored: list[bytes] = await self._link.call(self._link.redis.hkeys(self._link.keys.records))
        known = frozenset(name.decode("utf-8", "replace") for name in stored)
        redis_time, leases, silent = await self._leases(sorted(known | others))
        verdict = self._liveness.judge(
            known=known,
            leased=known & frozenset(leases),
            silent=silent,
            redis_time=redis_time,
            monotonic=time.monotonic(),
        )
        self.alive = len(verdict.alive)
        for name in sorted(verdict.died):
            _log.warning("instance_died", died=name)
        return known, leases, verdict

    async def clean_up(self) -> None:
        """Remove the records of those that have been dead long enough. Raises one of REDIS_FAILURES."""
        names, leases, verdict = await self._judged(set())
        if verdict.withheld == "over_half_missing":
            _log.warning("judgement_withheld", reason=verdict.withheld, known=len(names), leased=len(leases))
        for name in sorted(verdict.expired):
            outcome = HOMES_LEFT
            while outcome == HOMES_LEFT:
                outcome = await self._link.run_directory("bury", name, HOMES_FREED_AT_ONCE)
            if outcome:
                _log.info("instance_removed", removed=name)

    async def _read_fleet_or_keep(self) -> None:
        try:
            self._fleet = await self._read_fleet()
        except REDIS_FAILURES as error:
            self._link.failed(error)
        self._fleet_read_at = time.monotonic()

    async def _read_fleet(self) -> Fleet:
        stored: dict[bytes, bytes] = await self._link.call(self._link.redis.hgetall(self._link.keys.records))
        records: dict[str, _StoredRecord] = {}
        for field, text in stored.items():
            instance = field.decode("utf-8", "replace")
            try:
                records[instance] = _STORED.decode(text)
            except msgspec.MsgspecError as error:
                # written by another version: one record less is better than no fleet
                _log.warning("record_not_understood", of=instance, error=error)
        redis_time, leases, silent = await self._leases(list(records))
        leased = frozenset(name for name, boot in leases.items() if records[name].boot == boot)
        verdict = self._liveness.judge(
            # a process that holds a name's lease and hasn't written its record yet is not missing
            known=frozenset(records) - (frozenset(leases) - leased),
            leased=leased,
            silent=silent,
            redis_time=redis_time,
            monotonic=time.monotonic(),
        )
        self.alive = len(verdict.alive)
        for name in sorted(verdict.died):
            _log.warning("instance_died", died=name)
        alive = [records[name] for name in records if name in verdict.alive]
        return Fleet(
            instance=self._instance,
            redis=self._state(),
            as_of=redis_time,
            totals=Totals(
                instances=len(alive),
                connections=sum(record.connections for record in alive),
                rooms=await self._distinct_rooms(alive),
            ),
            instances=[
                msgspec.structs.replace(records[name], alive=name in verdict.alive)
                for name in sorted(records)
            ],
        )

    async def _leases(self, names: list[str]) -> tuple[float, dict[str, str], frozenset[str]]:
        """Redis's clock, who of `names` holds a lease with which boot id, and who of them is silent.

        Who is silent is asked only where somebody is missing: it matters for nothing else.
        """
        pipeline = self._link.redis.pipeline(transaction=False)
        pipeline.time()
        if names:
            pipeline.mget([self._link.keys.lease(name) for name in names])
        (seconds, micros), *rest = await self._link.call(pipeline.execute())
        boots: list[bytes | None] = rest[0] if rest else []
        leases = {name: boot.decode() for name, boot in zip(names, boots, strict=True) if boot is not None}
        silent: frozenset[str] = frozenset()
        if leases and len(leases) < len(names):
            for name in leases:
                pipeline.pttl(self._link.keys.lease(name))
            left: list[int] = await self._link.call(pipeline.execute())
            silent = frozenset(
                name
                for name, milliseconds in zip(leases, left, strict=True)
                if self._liveness.is_silent(milliseconds / 1000)
            )
        return float(seconds + micros / 1e6), leases, silent

    async def _distinct_rooms(self, alive: list[_StoredRecord]) -> int:
        counts = [record.rooms for record in alive]
        if len(counts) < 2:
            return sum(counts)
        estimate = int(
            await self._link.call(
                self._link.redis.pfcount(*(self._link.keys.rooms(record.instance) for record in alive))
            )
        )
        # each instance's own count is exact, which bounds the estimate from both sides
        return min(max(estimate, *counts), sum(counts))
