"""This instance's record and lease, kept fresh beside the message path; the fleet as Redis knows it."""

import asyncio
import dataclasses
import heapq
import operator
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tableforge_dataplane.contract.fleet import (
    HEAVIEST_ROOMS,
    Fleet,
    InstanceRecord,
    RedisState,
    RoomLoad,
)
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics, resident_memory_bytes
from tableforge_dataplane.registry.budget import ReconnectBudget
from tableforge_dataplane.registry.connection import REDIS_FAILURES, refusal_in, state_of
from tableforge_dataplane.registry.headcount import Headcount, HeadcountExchange
from tableforge_dataplane.registry.link import Link
from tableforge_dataplane.registry.liveness import Liveness
from tableforge_dataplane.registry.others import HOMES_FREED_AT_ONCE, HOMES_LEFT, Others
from tableforge_dataplane.topology.client import Locate

LEASE_RENEWALS_PER_TIMEOUT: Final = 6

EARLIEST_REWRITE_SECONDS: Final = 2.0
"""A record whose numbers moved is written again before its time, but not more often than this."""

MOVED_BY: Final = 0.05
"""Which share connections or rooms must have moved by for that."""

LONGEST_RETRY_SECONDS: Final = 5.0

RECORDS_KEPT_SECONDS: Final = 86_400
"""After this long without any instance nothing of the cluster is left in a Redis that others use too."""

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
        locate: Locate | None = None,
        headcount: Headcount | None = None,
    ) -> None:
        """`redis_state`: how the message path sees Redis, for `/fleet`; where None, how the registry does."""
        scaling = settings.scaling
        self._settings = settings
        self._this = this
        self._metrics = metrics
        self._rooms = rooms
        self._draining = draining
        self._path_state = redis_state
        self._renew_every = scaling.failover_timeout_seconds / LEASE_RENEWALS_PER_TIMEOUT
        self._liveness = Liveness(
            failover_timeout_seconds=scaling.failover_timeout_seconds,
            inactive_threshold_seconds=scaling.inactive_threshold_seconds,
        )
        self.link = Link(settings, metrics=metrics, liveness=self._liveness, locate=locate)
        """To Redis, for whatever is kept beside the registry."""
        self._redis, self._keys = self.link.redis, self.link.keys
        self._headcounts = HeadcountExchange(
            headcount if headcount is not None else Headcount(),
            redis=self._redis,
            call=self.link.call,
            keys=self._keys,
            instance=this.instance,
            boot=this.boot,
            interval_seconds=self._renew_every,
            draining=draining,
        )
        self.others = Others(
            self.link,
            instance=this.instance,
            liveness=self._liveness,
            state=self._state,
            own=lambda: self._record(self._rooms()),
        )
        """Who else there is, and how they are."""
        self.budget = ReconnectBudget(
            per_second=settings.rollout.max_reconnects_per_second,
            ask=self._take_reconnects,
            instances=lambda: self.others.alive,
            away=lambda: not self._state().connected,
        )
        """What is drawn from before clients are made to reconnect."""
        self._claimed = False
        self.claim_problem: str | None = (
            f"The key prefix {settings.redis.key_prefix} is not claimed for this cluster yet."
            if settings.redis.claim
            else None
        )
        """Why this instance must not use its key prefix (yet)."""
        self.on_claim: Callable[[str | None], None] = _nothing_with
        """Called when `claim_problem` has changed."""
        self._holds_lease = False
        self._superseded_by: bytes | None = None
        self._record_wanted = asyncio.Event()
        self._written_at = -float("inf")
        self._written: tuple[int, int, bool] | None = None
        self._record_refused = False
        self._live_settings = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.on_lease: Callable[[], None] = _nothing
        """Called when this process has got the lease of its name (again)."""
        self.describe: Callable[[InstanceRecord], InstanceRecord] = _as_it_is
        """Adds to this instance's record what others know of it."""

    @property
    def redis_state(self) -> RedisState:
        """How this registry's own connection sees Redis."""
        return self.link.state

    @property
    def registered(self) -> bool:
        """Whether this process holds the lease of its name, as far as it knows."""
        return self._holds_lease

    def start(self) -> None:
        """Begin; Redis need not be there yet."""
        self._tasks = [
            asyncio.create_task(self._keep_going(loop), name=f"registry-{loop.__name__}")
            for loop in (self._keep_lease, self._keep_record, self._keep_clean, self._keep_headcount)
        ]

    def renew(self, settings: Settings) -> None:
        """Tell another capacity, and keep to another budget, from now on."""
        told = self._settings.capacity
        self._settings = settings
        self.budget.per_second = settings.rollout.max_reconnects_per_second
        if settings.capacity != told:
            self.changed()

    def hold_live_settings(self, fingerprint: str) -> None:
        """Tell that this instance goes by another live settings file."""
        self._live_settings = fingerprint
        self.changed()

    def changed(self) -> None:
        """Something others should know at once (a drain began): the record is written now."""
        self._written = None
        self._record_wanted.set()

    async def stop(self) -> None:
        """Take this instance out of the registry and end. Takes a second at most where Redis is away."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self.others.stop(), return_exceptions=True)
        instance = self._this.instance
        try:
            async with asyncio.timeout(1.0):
                outcome = HOMES_LEFT
                while outcome == HOMES_LEFT:
                    outcome = await self.link.run_directory(
                        "withdraw", instance, self._this.boot, HOMES_FREED_AT_ONCE
                    )
            _log.info("instance_withdrawn" if outcome else "instance_not_withdrawn")
        except REDIS_FAILURES as error:
            # its lease runs out by itself, and another instance cleans up what is left
            _log.warning("instance_not_withdrawn", reason=state_of(error, self._settings.redis).message)
        self._holds_lease = False
        await self.link.close()

    async def fleet(self) -> Fleet:
        """The fleet now, or as it was last known where Redis is away. Never raises for Redis's sake."""
        return await self.others.fleet()

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
                self.link.failed(error)
                await asyncio.sleep(self._retry_delay(failures))
            else:
                failures = 0
                await asyncio.sleep(self._renew_every)

    def _retry_delay(self, failures: int) -> float:
        longest = min(LONGEST_RETRY_SECONDS, self._renew_every)
        return random.uniform(0.5, 1.0) * min(longest, 0.1 * 2.0 ** min(failures, 10))  # noqa: S311

    async def _renew(self) -> None:
        scaling = self._settings.scaling
        if not await self._claim_prefix():
            self._holds_lease = False
            return
        outcome, holder = await self.link.run(
            "renew",
            keys=[self._keys.lease(self._this.instance)],
            args=[
                self._this.boot,
                round(scaling.failover_timeout_seconds * 1000),
                "0" if self._claimed else "1",
            ],
        )
        self._claimed = True
        self.link.succeeded()
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
            self.on_lease()

    async def _claim_prefix(self) -> bool:
        """Whether the key prefix is this cluster's: two on one prefix would mix rooms and records."""
        redis = self._settings.redis
        if not redis.claim:
            return True
        lifetime_ms = round(self._settings.scaling.failover_timeout_seconds * 1000)
        holder = await self.link.run("claim", keys=[self._keys.claim], args=[redis.claim, lifetime_ms])
        mine = bool(holder == redis.claim.encode())
        problem = (
            None
            if mine
            else f"Another cluster, {holder.decode(errors='replace')}, uses the key prefix "
            f"{redis.key_prefix} on this Redis: give this one a TABLEFORGE_REDIS_KEY_PREFIX of its own, "
            "or end the other."
        )
        if problem != self.claim_problem:
            if problem is not None:
                self.link.succeeded()  # Redis does answer
                _log.error("prefix_claimed", by=holder.decode(errors="replace"), prefix=redis.key_prefix)
            self.claim_problem = problem
            self.on_claim(problem)
        return mine

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
                self.link.failed(error)

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
            written = await self.link.run(
                "record",
                keys=[self._keys.records, self._keys.lease(instance)],
                args=[instance, self._this.boot, msgspec.json.encode(fields), RECORDS_KEPT_SECONDS * 1000],
            )
            if written:
                await self._write_rooms([room for room, _ in rooms])
        except REDIS_FAILURES as error:
            if refusal_in(error) is None:
                raise
            # the lease goes on without memory; the numbers in the record get old, which `updatedAt` shows
            if not self._record_refused:
                _log.warning("record_refused", reason=state_of(error, self._settings.redis).message)
            self._record_refused = True
            self._metrics.heartbeats_failed += 1
        else:
            self._record_refused = False
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
            await self.link.call(self._redis.delete(current))
            return
        # built aside and swapped in, so that no reader ever counts half of them
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.delete(upcoming)
        for start in range(0, len(rooms), _ROOMS_PER_CALL):
            pipeline.pfadd(upcoming, *rooms[start : start + _ROOMS_PER_CALL])
        pipeline.rename(upcoming, current)
        pipeline.pexpire(current, round(lifetime_seconds * 1000))
        await self.link.call(pipeline.execute())

    def _record(self, rooms: list[tuple[str, int]]) -> InstanceRecord:
        metrics = self._metrics
        heaviest = heapq.nlargest(HEAVIEST_ROOMS, rooms, key=operator.itemgetter(1))
        record = InstanceRecord(
            instance=self._this.instance,
            boot=self._this.boot,
            version=self._this.version,
            started_at=self._this.started_at,
            updated_at=0.0,
            connections=metrics.connections,
            rooms=metrics.rooms,
            capacity=self._settings.capacity,
            draining=self._draining(),
            alive=False,
            memory_bytes=resident_memory_bytes(),
            messages_received=metrics.messages_received.total,
            messages_sent=metrics.messages_sent.total,
            heaviest_rooms=[RoomLoad(room=room, members=members) for room, members in heaviest],
            redis_password=self._settings.redis.password.number(),
            live_settings=self._live_settings,
        )
        return self.describe(record)

    async def _keep_headcount(self) -> None:
        while True:
            if self._holds_lease:
                try:
                    await self._headcounts.exchange()
                except REDIS_FAILURES as error:
                    self._headcounts.failed()
                    self.link.failed(error)
            else:
                self._headcounts.failed()
            await self._headcounts.wait()

    # --- the others --------------------------------------------------------------------------------------

    async def _keep_clean(self) -> None:
        interval = self._settings.scaling.cleanup_interval_seconds
        while True:
            # spread out: a fleet that was rolled out together would otherwise do this together
            await asyncio.sleep(random.uniform(0.9, 1.0) * interval)  # noqa: S311
            try:
                await self.others.clean_up()
            except REDIS_FAILURES as error:
                self.link.failed(error)

    async def _take_reconnects(self, rate: float, most: float, wanted: int) -> int:
        return int(await self.link.run("reconnects", keys=[self._keys.reconnects], args=[rate, most, wanted]))

    def _state(self) -> RedisState:
        return self._path_state() if self._path_state is not None else self.link.state


def _as_it_is(record: InstanceRecord) -> InstanceRecord:
    return record


def _nothing() -> None:
    return None


def _nothing_with(_problem: str | None) -> None:
    return None


def _moved(before: int, now: int) -> bool:
    return abs(now - before) > MOVED_BY * before
