"""Who is in which room: what this instance tells Redis of its own sockets, and who is taken out of it.

Every user of this instance is written with the number of sockets, never with a difference, so that saying
it again repairs whatever Redis lost. Writes are gathered for a tick: however many come and go in a room
meanwhile, it costs one. A user whose connection broke stays for a moment, so that a reconnect is neither
`left` nor `joined`, here or on another instance.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.entries import Entry, MalformedEntryError
from tableforge_dataplane.broker.presence import (
    LIFETIME_SECONDS,
    USERS_PER_WRITE,
    PresenceStore,
    RoomPresence,
    change_of,
)
from tableforge_dataplane.contract.room_options import RoomOptions
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.rooms.outlet import Outlet
from tableforge_dataplane.rooms.watching import Watchers

TICK_SECONDS: Final = 0.1
"""Changes of one room that come within it are one."""

ROOMS_PER_SLICE: Final = 200
"""After so many rooms other work goes first."""

ROOMS_PER_TICK: Final = 1000
"""What a crowd that comes at once makes Redis do in a tick; the rest follows in the next."""

KEEP_SECONDS: Final = 5.0
"""How often it is looked whose lifetime is to begin anew."""

REFUSED_PAUSE_SECONDS: Final = 1.0
"""A room whose write Redis did not take is tried again after this."""

MOST_GONE: Final = 1000
"""Holders remembered as being no more."""

_log = EventLog("presence")

Judge = Callable[[frozenset[str]], Awaitable[frozenset[str]]]
"""Says which of these holders are no more; an empty set where that can't be said now."""


class _Here:
    """One room with users on this instance."""

    __slots__ = ("address", "kept_at", "pause_until", "sockets", "watchers", "writing", "written")

    def __init__(self, address: RoomAddress) -> None:
        self.address = address
        self.sockets: dict[str, int] = {}
        """Users with sockets in the room here; those with 0 are given a moment to come back."""
        self.written: dict[str, int] = {}
        """What Redis was told, as far as is known."""
        self.writing = False
        self.pause_until = 0.0
        self.kept_at = 0.0
        self.watchers: Watchers | None = None

    def changes(self) -> list[tuple[str, int]]:
        """What Redis is still to be told."""
        written = self.written
        # 0 for who lingers would be `left`: Redis goes on to hear of one
        changed = [
            (user, count or 1) for user, count in self.sockets.items() if written.get(user) != (count or 1)
        ]
        changed += [(user, 0) for user in written if user not in self.sockets]
        return changed[:USERS_PER_WRITE]


class Presence:
    """The presence of all rooms, as this instance sees and makes it."""

    def __init__(
        self,
        store: PresenceStore,
        *,
        address: Callable[[str], RoomAddress],
        options: Callable[[str], RoomOptions],
        judge: Judge,
        grace_seconds: float,
        judge_every_seconds: float,
    ) -> None:
        """`options`: what holds for a room of this name. `grace_seconds`: how long a user whose
        last connection broke still counts as present."""
        self._store = store
        self._address = address
        self._options = options
        self._judge = judge
        self.grace_seconds = grace_seconds
        self._judge_every_seconds = judge_every_seconds
        self._loop = asyncio.get_running_loop()
        self._rooms: dict[str, _Here] = {}
        self._dirty: dict[str, None] = {}
        self._lingering: deque[tuple[float, str, str]] = deque()
        """Until when, room and user."""
        self._watched: dict[str, None] = {}
        """Rooms whose watchers are to be told something at the next tick."""
        self._holders: set[str] = set()
        """Others that were seen in any room here."""
        self._doubted = asyncio.Event()
        self._gone: dict[str, None] = {}
        self._asked: dict[str, list[Callable[[RoomPresence | None], None]]] = {}
        self._reading: set[str] = set()
        """Rooms that Redis was asked for, one reading each at a time."""
        self._kept_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to write."""
        self._tasks = [
            asyncio.create_task(keep_going(self._tick_forever, log=_log), name="presence-tick"),
            asyncio.create_task(keep_going(self._judge_forever, log=_log), name="presence-judge"),
        ]

    def judge_now(self) -> None:
        """Somebody is known to be gone: see now whether who is here was there."""
        self._doubted.set()

    async def stop(self) -> None:
        """End, and say that nobody is here any more; a second at most where Redis is slow."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lingering.clear()
        for name, here in self._rooms.items():
            here.sockets.clear()
            here.pause_until = 0.0
            self._dirty[name] = None
        deadline = self._loop.time() + 1.0
        while self._rooms and self._store.connected and self._loop.time() < deadline:
            await self._write_dirty()
            await asyncio.sleep(0.005)

    def kept(self, room: str) -> bool:
        """Whether it is kept who is in the room."""
        return self._options(room).presence

    def shown(self, room: str, *, guest: bool) -> bool:
        """Whether a client whose token allows it may see who is there."""
        return self._options(room).may_see_presence(guest=guest)

    # Users of this instance

    def enter(self, room: str, user: str) -> bool:
        """One more socket of `user` is in the room here; False where nobody keeps who is there."""
        if not self._options(room).presence:
            return False
        here = self._rooms.get(room)
        if here is None:
            here = self._rooms[room] = _Here(self._address(room))
            here.kept_at = self._loop.time()
        here.sockets[user] = here.sockets.get(user, 0) + 1
        self._dirty[room] = None
        return True

    def leave(self, room: str, user: str, *, lingers: bool) -> None:
        """One socket less of those that entered.

        `lingers`: the connection broke, so that the user may be back in a moment.
        """
        here = self._rooms.get(room)
        if here is None or user not in here.sockets:
            return
        here.sockets[user] -= 1
        if here.sockets[user] <= 0:
            if lingers and self.grace_seconds > 0:
                here.sockets[user] = 0
                self._lingering.append((self._loop.time() + self.grace_seconds, room, user))
                return
            del here.sockets[user]
        self._dirty[room] = None

    # Members who want to hear who comes and goes

    def watch(self, room: str, outlet: Outlet) -> None:
        """Tell `outlet` who comes and goes; the room has been entered."""
        here = self._rooms.get(room)
        if here is None:
            return
        if here.watchers is None:
            here.watchers = Watchers(room)
        here.watchers.add(outlet)
        if here.watchers.needs_reading:
            self.ask(room, _ignore)

    def unwatch(self, room: str, outlet: Outlet) -> None:
        """Tell it no more."""
        here = self._rooms.get(room)
        if here is None or here.watchers is None:
            return
        here.watchers.remove(outlet)
        if not here.watchers:
            here.watchers = None

    def on_change(self, room: str, entry: Entry) -> None:
        """From the hub: a change of the room's presence, by any instance."""
        try:
            change = change_of(entry)
        except MalformedEntryError as error:
            _log.error("channel_malformed", error, room=room)
            return
        self._saw(change.holder)
        here = self._rooms.get(room)
        if here is None or here.watchers is None:
            return
        if here.watchers.take(change):
            self._watched[room] = None
        if here.watchers.needs_reading:
            self.ask(room, _ignore)

    # Who is there

    def ask(self, room: str, callback: Callable[[RoomPresence | None], None]) -> None:
        """Who is in the room, all over the cluster; None where Redis does not answer.

        Those who watch it are told what differs from what they know before `callback` is called, and of what
        is newer than the answer only afterwards. All who ask in one turn of the loop, or while the room is
        read, share a reading.
        """
        waiting = self._asked.get(room)
        if waiting is not None:
            waiting.append(callback)
            return
        self._asked[room] = [callback]
        if room not in self._reading:
            self._loop.call_soon(self._read, room)

    def _read(self, room: str) -> None:
        callbacks = self._asked.pop(room)
        here = self._rooms.get(room)
        address = here.address if here is not None else self._address(room)
        if here is not None:
            if here.watchers is not None:
                here.watchers.begin_reading()
            if room in self._dirty and not here.writing:
                self._write(room, here)  # it goes first on the same connection
        again = False

        def on_presence(presence: RoomPresence | None) -> None:
            nonlocal again
            if presence is not None:
                ghosts = self._ghosts(presence)
                if ghosts and not again:
                    again = True
                    self._store.bury(address, ghosts, _no_matter)
                    self._store.read(address, on_presence)
                    return
            try:
                self._tell_and_answer(room, presence, callbacks)
            finally:
                self._reading.discard(room)
                if room in self._asked:
                    self._loop.call_soon(self._read, room)

        self._reading.add(room)
        self._store.read(address, on_presence)

    def _tell_and_answer(
        self,
        room: str,
        presence: RoomPresence | None,
        callbacks: list[Callable[[RoomPresence | None], None]],
    ) -> None:
        here = self._rooms.get(room)
        watchers = here.watchers if here is not None else None
        if watchers is not None:
            if presence is None:
                watchers.lost()
                self._watched[room] = None
            else:
                watchers.compare(presence)
                watchers.tell()
        for callback in callbacks:
            callback(presence)
        if watchers is not None and (watchers.catch_up() or watchers.needs_reading):
            self._watched[room] = None

    def _ghosts(self, presence: RoomPresence) -> list[str]:
        ghosts: set[str] = set()
        for present in presence.members:
            for holder in present.holders:
                if holder in self._gone:
                    ghosts.add(holder)
                else:
                    self._saw(holder)
        return sorted(ghosts)

    def _saw(self, holder: str) -> None:
        if holder not in ("-", self._store.holder) and holder not in self._gone:
            self._holders.add(holder)

    # From time to time

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._loop.time()
            while self._lingering and self._lingering[0][0] <= now:
                self._end_lingering(*self._lingering.popleft()[1:])
            if not self._store.connected:
                continue
            await self._write_dirty()
            watched, self._watched = self._watched, {}
            for room in watched:
                here = self._rooms.get(room)
                if here is None or here.watchers is None:
                    continue
                here.watchers.tell()
                if here.watchers.needs_reading:
                    self.ask(room, _ignore)
            if now - self._kept_at > KEEP_SECONDS:
                self._kept_at = now
                await self._keep(now)

    def _end_lingering(self, room: str, user: str) -> None:
        here = self._rooms.get(room)
        # who came and went again meanwhile leaves a moment early: nobody promised how long it lasts
        if here is not None and here.sockets.get(user) == 0:
            del here.sockets[user]
            self._dirty[room] = None

    def say_again(self) -> None:
        """Redis was away, if only for a moment: what it was told, it may have lost, and what it said, been
        missed."""
        for name, here in self._rooms.items():
            here.written = dict.fromkeys(here.written, -1)
            here.pause_until = 0.0
            self._dirty[name] = None
            if here.watchers is not None:
                here.watchers.lost()
                self._watched[name] = None
                if name in self._reading:
                    self.ask(name, _ignore)  # what is being read may be of before

    async def _write_dirty(self) -> None:
        now = self._loop.time()
        held: list[str] = []
        for number in range(min(len(self._dirty), ROOMS_PER_TICK)):
            room = next(iter(self._dirty), None)
            if room is None:
                break
            here = self._rooms.get(room)
            del self._dirty[room]
            if here is None:
                continue
            if here.writing or here.pause_until > now:
                held.append(room)
                continue
            self._write(room, here)
            if number % ROOMS_PER_SLICE == ROOMS_PER_SLICE - 1:
                await asyncio.sleep(0)
        for room in held:
            self._dirty[room] = None

    def _write(self, room: str, here: _Here) -> None:
        """Tell Redis; one call a room at a time, so that what it was told is known."""
        self._dirty.pop(room, None)
        told = here.changes()
        if not told:
            self._forget_if_empty(room, here)
            return
        here.writing = True

        def on_written(taken: bool) -> None:
            here.writing = False
            if not taken:
                here.pause_until = self._loop.time() + REFUSED_PAUSE_SECONDS
                self._dirty[room] = None
                return
            for user, count in told:
                if count:
                    here.written[user] = count
                else:
                    here.written.pop(user, None)
            if here.changes():
                self._dirty[room] = None
            else:
                self._forget_if_empty(room, here)

        self._store.write(here.address, told, on_written)

    def _forget_if_empty(self, room: str, here: _Here) -> None:
        if not here.sockets and not here.written and here.watchers is None and self._rooms.get(room) is here:
            del self._rooms[room]

    async def _keep(self, now: float) -> None:
        due = [name for name, here in self._rooms.items() if now - here.kept_at > LIFETIME_SECONDS / 4]
        for number, name in enumerate(due[:ROOMS_PER_TICK]):
            here = self._rooms.get(name)
            if here is None:
                continue
            here.kept_at = now
            self._store.keep(here.address, functools.partial(self._kept, name))
            if number % ROOMS_PER_SLICE == ROOMS_PER_SLICE - 1:
                await asyncio.sleep(0)

    def _kept(self, name: str, there: bool | None) -> None:
        here = self._rooms.get(name)
        if here is not None and there is False and here.written:
            here.written = dict.fromkeys(here.written, -1)
            self._dirty[name] = None

    # Instances that are no more

    async def _judge_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._judge_every_seconds):
                    await self._doubted.wait()
            except TimeoutError:
                pass
            self._doubted.clear()
            if not self._holders or not self._store.connected:
                continue
            gone = await self._judge(frozenset(self._holders))
            if gone:
                await self._bury(sorted(gone))

    async def _bury(self, gone: list[str]) -> None:
        _log.info("presence_of_gone_instances", holders=gone, rooms=len(self._rooms))
        for holder in gone:
            self._holders.discard(holder)
            self._gone[holder] = None
        while len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]
        for number, here in enumerate(list(self._rooms.values())):
            self._store.bury(here.address, gone, _no_matter)
            if number % ROOMS_PER_SLICE == ROOMS_PER_SLICE - 1:
                await asyncio.sleep(0)


def _ignore(_presence: RoomPresence | None) -> None:
    return None


def _no_matter(_taken: bool) -> None:
    """What was not removed now is removed by who asks next: the holder is known to be gone."""
