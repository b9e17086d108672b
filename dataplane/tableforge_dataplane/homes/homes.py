"""The homes of rooms, as this instance takes part in them: it places, keeps, gives away and learns.

The directory in Redis is what is wanted; every instance converges to it and says in its record how it is. A
notification makes that immediate, and one that is lost only delays it until the lease is renewed next.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from tableforge_dataplane.contract.fleet import InstanceOrder, InstanceRecord, Shed
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.homes.directory import ROOMS_PER_CALL, ROOMS_PER_LOOK, Directory, Standing, State
from tableforge_dataplane.homes.here import Here
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol.names import PERSONAL
from tableforge_dataplane.registry.connection import REDIS_FAILURES, is_out_of_memory
from tableforge_dataplane.registry.registry import LEASE_RENEWALS_PER_TIMEOUT, MOVED_BY, Registry

SHEDS_REMEMBERED: Final = 100
"""Orders to shed that were carried out: sent again, they are the same."""

SHEDS_TOLD: Final = 10
"""Of those, how many the record names."""

LOOKED_AT_SECONDS: Final = 1.0
"""How often it is seen whether this instance takes rooms still: being full must not wait for the lease."""

EMPTY_FOR_HEARTBEATS: Final = 6
"""A room that nobody is in where it lives keeps its home so long: its members may be on their way there. The
operator waits no longer for a move whose clients need little of the budget."""

MOST_NAMED: Final = 10_000
"""Rooms to look at because others said so; with more, while Redis doesn't answer, all are looked at."""

GIVE_AWAY_WITHIN_SECONDS: Final = 2.0
"""A leaving instance has no more time than that for it; then its homes are freed as a dead one's are."""

_log = EventLog("homes")


class Notice(msgspec.Struct, frozen=True):
    """What one instance tells all others: which homes and orders to look at now, not at the next renewal."""

    rooms: list[str] = []
    instances: list[str] = []
    """They were told something."""
    forgotten: list[str] = []
    """They are gone for good."""


_notice: Final = msgspec.json.Decoder(Notice)


class Homes:
    """Where rooms live, and what this instance was told to be.

    With `routing.mode` Service no room has a home: then only what this instance is told is looked after.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry,
        metrics: Metrics,
        draining: Callable[[], bool],
        boot: str,
        this: str,
    ) -> None:
        """`this`: the instance's name, `boot` its process's. `draining`: whether it leaves."""
        self.this = this
        """This instance's name."""
        self.cordoned = False
        """Whether it was told to take no room and no client that could go elsewhere. In every mode."""
        self.address: str | None = None
        """Where clients reach this instance and no other, as it was told or set; None: nowhere (yet)."""
        self.weight = float(settings.routing.weight)
        """How much it carries beside the others, as it was told or set."""
        self.on_change: Callable[[], None] = _nothing
        """Called, once a turn of the loop, after a home of a room with members here, an address of one of
        those homes, `shed` or `cordoned` has changed."""
        self.on_moved: Callable[[list[str]], None] = _nothing_with
        """Called with rooms with members here whose homes have changed."""
        self.following: Callable[[], int] = _nobody
        """How many clients are on their way elsewhere: for the record."""
        self.on_forgotten: Callable[[], None] = _nothing
        """Called when instances are gone for good."""
        self.notify: Callable[[Notice], None] = _tell_nobody
        """Tells all instances, this one included. What gets lost is seen later."""
        self.kept = settings.routing.mode == "Gateway"
        """Whether rooms have homes."""
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._draining = draining
        self.directory = Directory(
            registry.link, instance=this, boot=boot, strategy=settings.load_balancing.strategy
        )
        self._renew_every = settings.scaling.failover_timeout_seconds / LEASE_RENEWALS_PER_TIMEOUT
        self._heartbeat = settings.scaling.heartbeat_interval_seconds
        self._loop = asyncio.get_running_loop()
        self._here = Here(this)
        self._addresses: dict[str, str] = {}
        self._asked_about: set[str] = set()
        """Instances whose addresses were asked for last, those included that take nobody."""
        self._dead: frozenset[str] = frozenset()
        self._order: InstanceOrder | None = None
        self._shed: Shed | None = None
        self._sheds_done: deque[str] = deque(maxlen=SHEDS_REMEMBERED)
        self._to_remove: dict[str, None] = {}
        """Of those, what may still lie in Redis, where a process that starts anew must not find it."""
        self._telling = False
        self._again = asyncio.Event()
        """Set where there is something to look at before the lease is renewed."""
        self._wanted = asyncio.Event()
        """Set where rooms want homes."""
        self._named: dict[str, None] = {}
        """Rooms to be looked at because somebody said so."""
        self._state: State = "takes"
        """What the directory was last told of this instance."""
        self._told_numbers = (0, 0)
        """Homes and followers, as the record has them."""
        self._moved: int | None = None
        """What the count of moves was when all homes were looked at last."""
        self._whole_due = -float("inf")
        self._memory_refused = False
        self._tasks: list[asyncio.Task[None]] = []
        self._adopt(None)
        registry.describe = self.describe
        registry.on_lease = self._again.set

    # What others call

    def start(self) -> None:
        """Begin; Redis need not be there yet."""
        loops = [self._keep, self._place_forever] if self.kept else [self._keep]
        self._tasks = [
            asyncio.create_task(keep_going(loop, log=_log), name=f"homes-{loop.__name__.strip('_')}")
            for loop in loops
        ]

    async def stop(self) -> None:
        """End. What lives here is freed when the registry withdraws this instance."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def stands(self) -> bool:
        """Whether the directory was told of this instance, so that rooms find a home here."""
        return self._moved is not None

    def renew(self, settings: Settings) -> None:
        """Another capacity holds from now on."""
        self._settings = settings
        self._again.set()

    def entered(self, room: str) -> None:
        """The room has its first member here. Cheap, waits for nothing and never raises."""
        if not self.kept or room.startswith(PERSONAL):
            return
        self._here.entered(room)
        if self._here.wanted:
            self._wanted.set()

    def emptied(self, room: str) -> None:
        """The room has no member here any more. Cheap, waits for nothing and never raises."""
        self._here.emptied(room, now=self._loop.time())

    def home_of(self, room: str) -> str | None:
        """The instance that is the home of a room with members here, as last heard; None: none is known."""
        return self._here.rooms.get(room)

    async def homes_of(self, rooms: list[str]) -> list[str | None]:
        """The homes of any rooms, as Redis has them. Raises one of REDIS_FAILURES."""
        if not self.kept:
            return [None] * len(rooms)
        homes: list[str | None] = []
        for part in _parts(rooms, ROOMS_PER_LOOK):
            homes += await self.directory.look(part)
        return homes

    def address_of(self, instance: str) -> str | None:
        """Where clients reach that instance and no other, as last heard; None: nobody has said, or it takes
        nobody now.

        It is known of this instance, and of those that are homes of rooms with members here.
        """
        return self.address if instance == self.this else self._addresses.get(instance)

    @property
    def shed(self) -> Shed | None:
        """The order to send clients elsewhere that holds now; None: there is none, or it was carried out.

        One with `connections` 0 says that the rest of an earlier one is not wanted any more; it, too, is to
        be reported by `shed_done`.
        """
        return self._shed

    def shed_done(self, identifier: str) -> None:
        """The order with this id was carried out, as far as it could be: the record names it from now on."""
        if identifier not in self._sheds_done:
            self._sheds_done.append(identifier)
            self._registry.changed()
        if self._shed is not None and self._shed.id == identifier:
            self._shed = None
        self._to_remove[identifier] = None
        self._again.set()

    async def give_away(self) -> None:
        """This instance leaves: it takes no more rooms, and each that lives here gets another home.

        Returns once that is so, or Redis didn't answer for too long; never raises for Redis's sake. Then
        `home_of` names the new homes and `on_change` was called.
        """
        if not self.kept or not self._registry.registered:
            return
        given = 0
        try:
            async with asyncio.timeout(GIVE_AWAY_WITHIN_SECONDS):
                # out of the places first: what is given away must not come back
                await self.directory.give_away([])
                async for rooms in self.directory.own():
                    for part in _parts(rooms, ROOMS_PER_CALL):
                        self._learn(part, await self.directory.give_away(part))
                        self.notify(Notice(rooms=part))
                        given += len(part)
                await self._learn_addresses()
        except REDIS_FAILURES as error:
            _log.warning("homes_not_given_away", given=given, left=len(self._here.own), error=error)
        else:
            _log.info("homes_given_away", given=given)
        self._changed()

    def describe(self, record: InstanceRecord) -> InstanceRecord:
        """This instance's record, with what there is to say of homes and orders."""
        homes, following = self._told_numbers = (self._metrics.homes, self.following())
        here = self._here.rooms
        return msgspec.structs.replace(
            record,
            cordoned=self.cordoned,
            weight=self.weight,
            address=self.address,
            homes=homes,
            elsewhere=[one.room for one in record.heaviest_rooms if here.get(one.room) != self.this]
            if self.kept
            else [],
            following=following,
            commands=list(self._sheds_done)[-SHEDS_TOLD:],
        )

    def on_notice(self, body: msgspec.Raw) -> int:
        """From an instance: whether it concerns this one. Raises msgspec.MsgspecError."""
        notice = _notice.decode(body)
        concerned = self.this in notice.instances
        if notice.forgotten:
            self._registry.others.forget(name for name in notice.forgotten if name != self.this)
            self.on_forgotten()
            concerned = True
        if self.kept and notice.rooms:
            self._named.update(dict.fromkeys(notice.rooms))
            if len(self._named) > MOST_NAMED:
                self._named.clear()
                self._whole_due = -float("inf")
            concerned = True
        if concerned:
            self._again.set()
        return int(concerned)

    # What Redis says

    async def _keep(self) -> None:
        due = self._loop.time()
        while True:
            try:
                async with asyncio.timeout(min(LOOKED_AT_SECONDS, self._renew_every)):
                    await self._again.wait()
            except TimeoutError:
                pass
            now = self._loop.time()
            if now < due and not self._again.is_set() and self._state_now() == self._state:
                continue
            self._again.clear()
            # jittered: a fleet that was rolled out together would otherwise ask together
            due = now + random.uniform(0.9, 1.0) * self._renew_every  # noqa: S311
            if not self._registry.registered:
                continue
            try:
                await self._look()
            except REDIS_FAILURES as error:
                self._registry.link.failed(error)

    async def _look(self) -> None:
        done = list(self._to_remove)
        told = await self.directory.told(done)
        for identifier in done:
            self._to_remove.pop(identifier, None)
        if told.order != self._order:
            self._adopt(told.order)
        if told.shed is not None and told.shed.id in self._sheds_done:
            self._to_remove[told.shed.id] = None
        elif told.shed != self._shed:
            self._shed = told.shed
            self._changed()
        if not self.kept:
            return
        standing = await self._stand()
        now = self._loop.time()
        if now >= self._whole_due:
            await self._look_at_all()
            await self.directory.sweep()
            self._whole_due = now + random.uniform(0.8, 1.0) * self._heartbeat  # noqa: S311
        elif standing is not None and standing.moved != self._moved:
            here = self._here
            if standing.changed is None:
                await self._look_at(list(here.rooms))
            else:
                await self._look_at(
                    [room for room in standing.changed if room in here.rooms or room in here.own]
                )
        if standing is not None:
            self._moved = standing.moved
        if self._named:
            named, self._named = list(self._named), {}
            await self._look_at(named)
        await self._learn_addresses()
        await self._free_empty(now)
        self._here.want_homes(takes=standing is not None and standing.takes_rooms)
        if self._here.wanted:
            self._wanted.set()
        numbers = (self._metrics.homes, self.following())
        if any(_differs(told, now) for told, now in zip(self._told_numbers, numbers, strict=True)):
            self._registry.changed()

    def _adopt(self, order: InstanceOrder | None) -> None:
        """Be as the operator says, and as the settings say where it says nothing."""
        self._order = order
        routing = self._settings.routing
        before = (self.cordoned, self.weight, self.address)
        self.cordoned = order.cordoned if order is not None else False
        self.weight = float(routing.weight)
        if order is not None and order.weight is not None:
            self.weight = order.weight
        if self.kept:
            told = order.address if order is not None else None
            self.address = told or routing.address or None
        if before != (self.cordoned, self.weight, self.address):
            _log.info("order_adopted", cordoned=self.cordoned, weight=self.weight, address=self.address)
            self._registry.changed()
            self._changed()

    def _state_now(self) -> State:
        if self._draining():
            return "leaves"
        return "full" if self._metrics.connections >= self._settings.capacity else "takes"

    async def _stand(self) -> Standing | None:
        """Say whether this instance takes rooms, and hear how things stand; None where that can't be now."""
        state = self._state_now()
        routing = self._settings.routing
        try:
            standing = await self.directory.stand(
                state,
                address=routing.address,
                weight=routing.weight,
                connections=self._metrics.connections,
                capacity=self._settings.capacity,
                moved=self._moved,
            )
        except REDIS_FAILURES as error:
            if not is_out_of_memory(error):
                raise
            # homes stay what they are without memory; the registry says that there is none
            self._registry.link.failed(error)
            return None
        self._state = state
        if standing is not None:
            self._metrics.homes = standing.homes
        return standing

    async def _look_at_all(self) -> None:
        before = set(self._here.own)
        found: set[str] = set()
        async for rooms in self.directory.own():
            found.update(rooms)
            self._learn(rooms, [self.this] * len(rooms))
        # one that came meanwhile may have been missed by the reading
        strangers = [room for room in before - found if room in self._here.own]
        await self._look_at([*strangers, *self._here.rooms])

    async def _look_at(self, rooms: list[str]) -> None:
        for part in _parts(rooms, ROOMS_PER_LOOK):
            self._learn(part, await self.directory.look(part))

    def _learn(self, rooms: Iterable[str], homes: Iterable[str | None]) -> None:
        now = self._loop.time()
        changed = [
            room for room, home in zip(rooms, homes, strict=True) if self._here.learn(room, home, now=now)
        ]
        if changed:
            self.on_moved(changed)
            self._changed()

    async def _learn_addresses(self) -> None:
        """Where clients reach the homes of rooms with members here; and which of these are dead."""
        addresses: dict[str, str] = {}
        silent: set[str] = set()
        asked_about = self._here.homes()
        for part in _parts(sorted(asked_about), ROOMS_PER_LOOK):
            for instance, (address, leased, takes) in (await self.directory.addresses(part)).items():
                if not leased:
                    silent.add(instance)  # nobody is sent there, whether it is dead already or not
                elif not takes:
                    continue  # cordoned, full or leaving: who is elsewhere stays where it is
                elif (where := address or self._addresses.get(instance)) is not None:
                    addresses[instance] = where
        self._asked_about = asked_about
        if addresses != self._addresses:
            self._addresses = addresses
            self._changed()
        self._dead = await self._registry.others.lost(frozenset(silent)) if silent else frozenset()
        if self._dead:
            self._here.want(self._here.at(self._dead), itself=True)

    async def _free_empty(self, now: float) -> None:
        long_ago = now - EMPTY_FOR_HEARTBEATS * self._heartbeat
        while rooms := self._here.empty_since(long_ago, most=ROOMS_PER_LOOK):
            await self.directory.free(rooms)
            self._learn(rooms, [None] * len(rooms))

    async def _place_forever(self) -> None:
        """Rooms get homes as their first members come. Where Redis doesn't answer they get them later."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if not self._registry.registered:
                await asyncio.sleep(min(LOOKED_AT_SECONDS, self._renew_every))
                self._wanted.set()
                continue
            try:
                while batch := self._here.take_wanted(ROOMS_PER_CALL):
                    for itself in (False, True):
                        rooms = [room for room, wants_itself in batch if wants_itself is itself]
                        if rooms:
                            homes = await self.directory.place(rooms, itself=itself, dead=self._dead)
                            self._learn(rooms, homes)
                            if None in homes:
                                # asking for the others changes nothing: they wait for the next renewal
                                self._here.nobody_takes()
                            if {*homes} - {None, self.this} - self._asked_about:
                                self._again.set()  # nobody has said yet where that one is
            except REDIS_FAILURES as error:
                # they are homeless, which is seen when Redis answers again
                if is_out_of_memory(error) and not self._memory_refused:
                    _log.warning("homes_refused", advice="Redis has reached its maxmemory: give it more.")
                self._memory_refused = is_out_of_memory(error)
                self._registry.link.failed(error)

    def _changed(self) -> None:
        if not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        self.on_change()


def _parts(rooms: list[str], most: int) -> Iterable[list[str]]:
    return (rooms[start : start + most] for start in range(0, len(rooms), most))


def _differs(told: int, now: int) -> bool:
    """Whether that is worth a new record before its time."""
    return abs(now - told) > MOVED_BY * told


def _nothing() -> None:
    return None


def _nothing_with(_rooms: list[str]) -> None:
    return None


def _nobody() -> int:
    return 0


def _tell_nobody(_notice: Notice) -> None:
    return None
