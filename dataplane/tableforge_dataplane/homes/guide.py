"""Guides clients to the homes of their rooms: each connection to where most of its rooms live.

It looks at how things are, not at what happened: whatever it misses, it sees at its next look at everybody.
All it does is tell: who doesn't go is served here, as before.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from tableforge_dataplane.homes.astray import Astray, best_home
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol.events import Event, Migrate

LOOK_AFTER_SECONDS: Final = 0.1
"""What changes within so long is looked at together."""

STEP_SECONDS: Final = 0.5
"""How often clients are told, and over what time those of one step are spread."""

MOST_IN_A_STEP: Final = 1000

ROOMS_PER_SLICE: Final = 2000
"""After so many rooms (a millisecond) other work gets its turn."""

_log = EventLog("guide")


class Guest(Protocol):
    """A client, as far as it matters here."""

    def __hash__(self) -> int: ...

    @property
    def closed(self) -> bool:
        """Whether its connection is over."""

    def shared_rooms(self) -> Iterable[str]:
        """The rooms it is in, but for its own log."""

    def tell(self, event: Event) -> None:
        """Where there is still somebody to hear it."""


class Homes(Protocol):
    """Where rooms live."""

    @property
    def this(self) -> str: ...

    def home_of(self, room: str) -> str | None: ...

    def address_of(self, instance: str) -> str | None: ...


class Budget(Protocol):
    """What the cluster may do."""

    async def take(self, wanted: int) -> int:
        """How many of `wanted` may be made to reconnect now."""


class Guide:
    """From `start()` to `stop()`."""

    def __init__(
        self,
        homes: Homes,
        *,
        budget: Budget,
        metrics: Metrics,
        members: Callable[[str], Iterable[Guest]],
        everybody: Callable[[], Iterable[Guest]],
        whole_look_every_seconds: float,
    ) -> None:
        """`members`: those of a room, here; `everybody`: all of this instance. Both give copies."""
        self._homes = homes
        self._budget = budget
        self._metrics = metrics
        self._members = members
        self._everybody = everybody
        self._every = whole_look_every_seconds
        self._loop = asyncio.get_running_loop()
        self._astray: Astray[Guest] = Astray()
        self._guests: dict[Guest, None] = {}
        """To be looked at."""
        self._rooms: dict[str, None] = {}
        """Whose members are to be looked at."""
        self._stuck: dict[Guest, None] = {}
        """Who should be elsewhere, and nobody has said how to get there."""
        self._looked_at = 0
        """Rooms since other work had its turn."""
        self._wake = asyncio.Event()
        self._whole_due = self._loop.time() + self._every
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(keep_going(self._run, log=_log), name="guide")

    async def stop(self) -> None:
        """Nobody is told anything any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def look_at(self, guest: Guest) -> None:
        """Its rooms are others, or it is gone. (0.1 µs: `benchmarks/steps.py`.)"""
        if guest.closed:
            self._guests.pop(guest, None)
            self._stuck.pop(guest, None)
            self._astray.gone(guest)
        else:
            self._guests[guest] = None
            self._wake.set()

    def moved(self, rooms: Iterable[str]) -> None:
        """These rooms have other homes."""
        self._rooms.update(dict.fromkeys(rooms))
        self._wake.set()

    def changed(self) -> None:
        """Something else has changed; an address, perhaps."""
        if self._stuck:
            self._guests.update(self._stuck)
            self._wake.set()

    def following(self) -> int:
        """How many were told to go and may still do so."""
        return self._astray.following(now=self._loop.time())

    def destination(self, guest: Guest, *, leaves: bool = False) -> str | None:
        """Where it would be better off; None: here, or nobody has said how to get there.

        `leaves`: this instance does.
        """
        homes = self._homes
        home = best_home(guest.shared_rooms(), homes.home_of, this=homes.this, leaves=leaves)
        return homes.address_of(home) if home is not None else None

    async def _run(self) -> None:
        while True:
            await self._rest()
            await asyncio.sleep(LOOK_AFTER_SECONDS)
            self._wake.clear()
            await self._look()
            if await self._tell():
                await asyncio.sleep(STEP_SECONDS - LOOK_AFTER_SECONDS)

    async def _rest(self) -> None:
        due = self._astray.next_due()
        try:
            async with asyncio.timeout_at(self._whole_due if due is None else min(due, self._whole_due)):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        """See who should be elsewhere, of those whom a change concerns, or from time to time of all."""
        if self._loop.time() >= self._whole_due:
            self._whole_due = self._loop.time() + self._every
            self._guests.clear()
            self._rooms.clear()
            await self._look_at_each(self._everybody())
            return
        guests, self._guests = self._guests, {}
        await self._look_at_each(guests)
        rooms, self._rooms = self._rooms, {}
        for room in rooms:
            await self._look_at_each(self._members(room))

    async def _look_at_each(self, guests: Iterable[Guest]) -> None:
        for guest in guests:
            if self._looked_at >= ROOMS_PER_SLICE:
                self._looked_at = 0
                await asyncio.sleep(0)
            if not guest.closed:
                self.look_at_one(guest)

    def look_at_one(self, guest: Guest) -> None:
        """See whether it should be elsewhere. (1.3 µs with 10 rooms: `benchmarks/steps.py`.)"""
        homes = self._homes
        rooms = list(guest.shared_rooms())
        self._looked_at += len(rooms) + 1
        home = best_home(rooms, homes.home_of, this=homes.this)
        reachable = home is not None and homes.address_of(home) is not None
        if home is not None and not reachable:
            self._stuck[guest] = None
        else:
            self._stuck.pop(guest, None)
        if reachable:
            self._astray.stray(guest, now=self._loop.time())
        else:
            self._astray.at_home(guest)

    async def _tell(self) -> bool:
        """Tell some of those who should be elsewhere; whether there was anybody to be told."""
        wanted = self._astray.due(most=MOST_IN_A_STEP, now=self._loop.time())
        if not wanted:
            return False
        granted = await self._budget.take(wanted)
        chosen = self._astray.take(granted, now=self._loop.time())
        for number, guest in enumerate(chosen):
            url = self.destination(guest)
            if url is None:
                self._astray.at_home(guest)
                continue
            after = STEP_SECONDS * number / len(chosen)
            guest.tell(Migrate(url=url, after=round(after, 3), reason="home"))
            self._metrics.migrate_hints.add("home")
        return True
