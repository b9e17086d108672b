"""This instance's record and lease, kept fresh beside the message path; the fleet as Redis knows it."""

import asyncio
import dataclasses
import heapq
import operator
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, Final

import msgspec

from tableforge_dataplane.contract.fleet import (
    HEAVIEST_ROOMS,
    Fleet,
    InstanceRecord,
    RedisState,
    RoomLoad,
    Totals,
)
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics, resident_memory_bytes
from tableforge_dataplane.registry.connection import REDIS_FAILURES, connect, is_out_of_memory, state_of
from tableforge_dataplane.registry.keys import RegistryKeys
from tableforge_dataplane.registry.liveness import Liveness

LEASE_RENEWALS_PER_TIMEOUT: Final = 6

EARLIEST_REWRITE_SECONDS: Final = 2.0
"""A record whose numbers moved is written again before its time, but not more often than this."""

MOVED_BY: Final = 0.05
"""Which share connections or rooms must have moved by for that."""

LONGEST_RETRY_SECONDS: Final = 5.0

RECORDS_KEPT_SECONDS: Final = 86_400
"""After this long without any instance nothing of the cluster is left in a Redis that others use too."""

FLEET_REUSED_SECONDS: Final = 1.0
"""For this long one reading of the fleet answers everybody who asks."""

_ROOMS_PER_CALL: Final = 1000

_log = EventLog("registry")


def new_boot_id() -> str:
    """A name for this process start: `INSTANCE_ID` outlives a container's restart, this doesn't."""
    return secrets.token_hex(8)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ThisInstance:
    """Which instance this is, for as long as the process lives."""

    instance: str
    boot: str
    version: str
    started_at: float
    """Unix seconds."""


class _StoredRecord(InstanceRecord, frozen=True, rename="camel", kw_only=True):
    """As it lies in Redis: whether it is alive is for who reads it to say."""

    alive: bool = False


_STORED: Final = msgspec.json.Decoder(_StoredRecord)


class Registry:
    """Keeps this instance registered and reads the fleet.

    `rooms` gives every room with members here and their number; it is called when a record is written, and
    must not take long. `metrics` and `draining` are looked at every two seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        this: ThisInstance,
        metrics: Metrics,
        rooms: Callable[[], list[tuple[str, int]]],
        draining: Callable[[], bool],
        redis_state: Callable[[], RedisState] | None = None,
    ) -> None:
        """`redis_state`: how the message path sees Redis, for `/fleet`; where None, how the registry does."""
        scaling = settings.scaling
        self._settings = settings
        self._this = this
        self._metrics = metrics
        self._rooms = rooms
        self._draining = draining
        self._path_state = redis_state
        self._keys = RegistryKeys(settings.redis.key_prefix)
        self._renew_every = scaling.failover_timeout_seconds / LEASE_RENEWALS_PER_TIMEOUT
        self._redis = connect(
            settings.redis,
            # an answer that takes longer than a third of the timeout comes too late for the lease
            timeout_seconds=max(0.1, min(5.0, scaling.failover_timeout_seconds / 3)),
            on_connect=self._connected,
        )
        self._scripts = {
            name: self._redis.register_script(_script(name))
            for name in ("renew", "record", "withdraw", "bury")
        }
        self._liveness = Liveness(
            failover_timeout_seconds=scaling.failover_timeout_seconds,
            inactive_threshold_seconds=scaling.inactive_threshold_seconds,
        )
        self._own_state = RedisState(
            connected=False,
            reason="Connecting",
            message=f"Connecting to Redis at {settings.redis.host}:{settings.redis.port}.",
            durability=settings.redis.durability,
        )
        self._claimed = False
        self._holds_lease = False
        self._superseded_by: bytes | None = None
        self._record_wanted = asyncio.Event()
        self._written_at = -float("inf")
        self._written: tuple[int, int, bool] | None = None
        self._memory_refused = False
        self._fleet: Fleet | None = None
        self._fleet_read_at = -float("inf")
        self._reading: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def redis_state(self) -> RedisState:
        """How this registry's own connection sees Redis."""
        return self._own_state

    @property
    def registered(self) -> bool:
        """Whether this process holds the lease of its name, as far as it knows."""
        return self._holds_lease

    def start(self) -> None:
        """Begin; Redis need not be there yet."""
        self._tasks = [
            asyncio.create_task(self._keep_going(loop), name=f"registry-{loop.__name__}")
            for loop in (self._keep_lease, self._keep_record, self._keep_clean)
        ]

    def changed(self) -> None:
        """Something others should know at once (a drain began): the record is written now."""
        self._written = None
        self._record_wanted.set()

    async def stop(self) -> None:
        """Take this instance out of the registry and end. Takes a second at most where Redis is away."""
        tasks = [*self._tasks, *([self._reading] if self._reading is not None else [])]
        self._tasks = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        instance = self._this.instance
        try:
            async with asyncio.timeout(1.0):
                removed = await self._run(
                    "withdraw",
                    keys=[self._keys.records, self._keys.lease(instance), self._keys.rooms(instance)],
                    args=[instance, self._this.boot],
                )
            _log.info("instance_withdrawn" if removed else "instance_not_withdrawn")
        except REDIS_FAILURES as error:
            # its lease runs out by itself, and another instance cleans up
            _log.warning("instance_not_withdrawn", reason=state_of(error, self._settings.redis).message)
        self._holds_lease = False
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def fleet(self) -> Fleet:
        """The fleet now, or as it was last known where Redis is away. Never raises for Redis's sake."""
        if time.monotonic() - self._fleet_read_at >= FLEET_REUSED_SECONDS:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read_fleet_or_keep(), name="registry-fleet")
            # shielded: one who asked and went away must not take the answer from the others
            await asyncio.shield(self._reading)
        fleet = self._fleet
        if fleet is None:
            record = msgspec.structs.replace(self._record(self._rooms()), alive=True)
            return Fleet(
                instance=self._this.instance,
                redis=self._state(),
                as_of=0.0,
                totals=Totals(instances=1, connections=record.connections, rooms=record.rooms),
                instances=[record],
            )
        return msgspec.structs.replace(fleet, redis=self._state())

    async def _keep_going(self, loop: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await loop()
            except Exception as error:  # noqa: BLE001
                # A mistake in here must cost neither the sockets of this instance nor, for good, its lease.
                _log.error("registry_loop_failed", error=error, loop=loop.__qualname__)
                self._metrics.heartbeats_failed += 1
                await asyncio.sleep(1.0)

    # --- the lease ---------------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        failures = 0
        while True:
            try:
                await self._renew()
            except REDIS_FAILURES as error:
                failures += 1
                self._failed(error)
                await asyncio.sleep(self._retry_delay(failures))
            else:
                failures = 0
                await asyncio.sleep(self._renew_every)

    def _retry_delay(self, failures: int) -> float:
        longest = min(LONGEST_RETRY_SECONDS, self._renew_every)
        return random.uniform(0.5, 1.0) * min(longest, 0.1 * 2.0 ** min(failures, 10))  # noqa: S311

    async def _renew(self) -> None:
        scaling = self._settings.scaling
        outcome, holder = await self._run(
            "renew",
            keys=[self._keys.lease(self._this.instance)],
            args=[
                self._this.boot,
                round(scaling.failover_timeout_seconds * 1000),
                "0" if self._claimed else "1",
            ],
        )
        self._claimed = True
        self._succeeded()
        if outcome == b"superseded":
            if self._superseded_by != holder:
                _log.error(
                    "instance_id_taken",
                    boot=self._this.boot,
                    by_boot=holder.decode(),
                    advice="Give every instance an INSTANCE_ID of its own: the newer process holds this one.",
                )
            self._superseded_by = holder
            self._holds_lease = False
            return
        self._superseded_by = None
        if outcome == b"taken":
            _log.warning("instance_id_taken_over", boot=self._this.boot, from_boot=holder.decode())
        if not self._holds_lease or outcome == b"created":
            # what else was in Redis is as gone as the lease was
            self._holds_lease = True
            self.changed()
            _log.info("lease_acquired", boot=self._this.boot)

    # --- the record --------------------------------------------------------------------------------------

    async def _keep_record(self) -> None:
        interval = self._settings.scaling.heartbeat_interval_seconds
        tick = min(EARLIEST_REWRITE_SECONDS, interval)
        while True:
            try:
                async with asyncio.timeout(tick):
                    await self._record_wanted.wait()
            except TimeoutError:
                pass
            self._record_wanted.clear()
            if not self._holds_lease:
                continue
            if time.monotonic() - self._written_at < interval - tick / 2 and not self._moved():
                continue
            try:
                await self._write_record()
            except REDIS_FAILURES as error:
                self._failed(error)

    def _moved(self) -> bool:
        if self._written is None:
            return True
        connections, rooms, draining = self._written
        return (
            _moved(connections, self._metrics.connections)
            or _moved(rooms, self._metrics.rooms)
            or draining != self._draining()
        )

    async def _write_record(self) -> None:
        instance = self._this.instance
        rooms = self._rooms()
        record = self._record(rooms)
        fields = msgspec.to_builtins(record)
        del fields["alive"], fields["updatedAt"]  # for the reader, and for Redis's clock
        try:
            written = await self._run(
                "record",
                keys=[self._keys.records, self._keys.lease(instance)],
                args=[instance, self._this.boot, msgspec.json.encode(fields), RECORDS_KEPT_SECONDS * 1000],
            )
            if written:
                await self._write_rooms([room for room, _ in rooms])
        except REDIS_FAILURES as error:
            if not is_out_of_memory(error):
                raise
            # the lease goes on without memory; the numbers in the record get old, which `updatedAt` shows
            if not self._memory_refused:
                _log.warning("record_refused", reason=state_of(error, self._settings.redis).message)
            self._memory_refused = True
            self._metrics.heartbeats_failed += 1
        else:
            self._memory_refused = False
        self._written_at = time.monotonic()
        self._written = (record.connections, record.rooms, record.draining)

    async def _write_rooms(self, rooms: list[str]) -> None:
        """A HyperLogLog counts distinct rooms over instances to about 1 %, in 12 KB at most."""
        scaling = self._settings.scaling
        current = self._keys.rooms(self._this.instance)
        upcoming = self._keys.rooms_next(self._this.instance)
        lifetime_seconds = (
            scaling.heartbeat_interval_seconds
            + scaling.failover_timeout_seconds
            + scaling.inactive_threshold_seconds
        )
        if not rooms:
            await self._call(self._redis.delete(current))
            return
        # built aside and swapped in, so that no reader ever counts half of them
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.delete(upcoming)
        for start in range(0, len(rooms), _ROOMS_PER_CALL):
            pipeline.pfadd(upcoming, *rooms[start : start + _ROOMS_PER_CALL])
        pipeline.rename(upcoming, current)
        pipeline.pexpire(current, round(lifetime_seconds * 1000))
        await self._call(pipeline.execute())

    def _record(self, rooms: list[tuple[str, int]]) -> InstanceRecord:
        metrics = self._metrics
        heaviest = heapq.nlargest(HEAVIEST_ROOMS, rooms, key=operator.itemgetter(1))
        return InstanceRecord(
            instance=self._this.instance,
            boot=self._this.boot,
            version=self._this.version,
            started_at=self._this.started_at,
            updated_at=0.0,
            connections=metrics.connections,
            rooms=metrics.rooms,
            capacity=self._settings.websocket.max_connections,
            draining=self._draining(),
            alive=False,
            memory_bytes=resident_memory_bytes(),
            messages_received=metrics.messages_received.total,
            messages_sent=metrics.messages_sent.total,
            heaviest_rooms=[RoomLoad(room=room, members=members) for room, members in heaviest],
        )

    # --- the others --------------------------------------------------------------------------------------

    async def _keep_clean(self) -> None:
        interval = self._settings.scaling.cleanup_interval_seconds
        while True:
            # spread out: a fleet that was rolled out together would otherwise do this together
            await asyncio.sleep(random.uniform(0.9, 1.0) * interval)  # noqa: S311
            try:
                await self._clean_up()
            except REDIS_FAILURES as error:
                self._failed(error)

    async def _clean_up(self) -> None:
        """Names and leases only: whole records would be a megabyte per hundred instances."""
        stored: list[bytes] = await self._call(self._redis.hkeys(self._keys.records))
        names = [name.decode("utf-8", "replace") for name in stored]
        redis_time, leases = await self._leases(names)
        verdict = self._liveness.judge(
            known=frozenset(names),
            leased=frozenset(leases),
            redis_time=redis_time,
            monotonic=time.monotonic(),
        )
        for name in sorted(verdict.died):
            _log.warning("instance_died", died=name)
        if verdict.withheld == "over_half_missing":
            _log.warning("judgement_withheld", reason=verdict.withheld, known=len(names), leased=len(leases))
        for name in sorted(verdict.expired):
            buried = await self._run(
                "bury",
                keys=[self._keys.records, self._keys.lease(name), self._keys.rooms(name)],
                args=[name],
            )
            if buried:
                _log.info("instance_removed", removed=name)

    async def _read_fleet_or_keep(self) -> None:
        try:
            self._fleet = await self._read_fleet()
        except REDIS_FAILURES as error:
            self._failed(error)
        self._fleet_read_at = time.monotonic()

    async def _read_fleet(self) -> Fleet:
        stored: dict[bytes, bytes] = await self._call(self._redis.hgetall(self._keys.records))
        records: dict[str, _StoredRecord] = {}
        for field, text in stored.items():
            instance = field.decode("utf-8", "replace")
            try:
                records[instance] = _STORED.decode(text)
            except msgspec.MsgspecError as error:
                # written by another version: one record less is better than no fleet
                _log.warning("record_not_understood", of=instance, error=error)
        redis_time, leases = await self._leases(list(records))
        leased = frozenset(name for name, boot in leases.items() if records[name].boot == boot)
        verdict = self._liveness.judge(
            # a process that holds a name's lease and hasn't written its record yet is not missing
            known=frozenset(records) - (frozenset(leases) - leased),
            leased=leased,
            redis_time=redis_time,
            monotonic=time.monotonic(),
        )
        for name in sorted(verdict.died):
            _log.warning("instance_died", died=name)
        alive = [records[name] for name in records if name in verdict.alive]
        return Fleet(
            instance=self._this.instance,
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

    async def _leases(self, names: list[str]) -> tuple[float, dict[str, str]]:
        """Redis's clock, and who of `names` holds a lease with which boot id."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        if names:
            pipeline.mget([self._keys.lease(name) for name in names])
        (seconds, micros), *rest = await self._call(pipeline.execute())
        boots: list[bytes | None] = rest[0] if rest else []
        leases = {name: boot.decode() for name, boot in zip(names, boots, strict=True) if boot is not None}
        return float(seconds + micros / 1e6), leases

    async def _distinct_rooms(self, alive: list[_StoredRecord]) -> int:
        counts = [record.rooms for record in alive]
        if len(counts) < 2:
            return sum(counts)
        estimate = int(
            await self._call(self._redis.pfcount(*(self._keys.rooms(record.instance) for record in alive)))
        )
        # each instance's own count is exact, which bounds the estimate from both sides
        return min(max(estimate, *counts), sum(counts))

    # --- the connection ----------------------------------------------------------------------------------

    async def _run(self, script: str, *, keys: list[str], args: list[Any]) -> Any:
        return await self._call(self._scripts[script](keys=keys, args=args))

    async def _call(self, call: Awaitable[Any]) -> Any:
        try:
            answer = await call
        finally:
            # Before Python 3.12 `asyncio.wait_for`, with which redis-py writes, can swallow a cancellation:
            # without this the instance now and then would not end.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
        self._liveness.redis_answered(monotonic=time.monotonic())
        return answer

    def _connected(self) -> None:
        self._liveness.redis_failed()

    def _succeeded(self) -> None:
        if not self._own_state.connected:
            redis = self._settings.redis
            self._own_state = RedisState(
                connected=True,
                reason="Connected",
                message=f"Redis at {redis.host}:{redis.port} answers.",
                durability=redis.durability,
            )
            _log.info("redis_connected")

    def _failed(self, error: BaseException) -> None:
        self._liveness.redis_failed()
        self._metrics.heartbeats_failed += 1
        state = state_of(error, self._settings.redis)
        if self._own_state.reason != state.reason:
            _log.warning("redis_lost", reason=state.reason, message=state.message)
        self._own_state = state

    def _state(self) -> RedisState:
        return self._path_state() if self._path_state is not None else self._own_state


def _script(name: str) -> str:
    folder = resources.files("tableforge_dataplane.registry") / "scripts"
    return (folder / f"{name}.lua").read_text(encoding="utf-8")


def _moved(before: int, now: int) -> bool:
    return abs(now - before) > MOVED_BY * before
