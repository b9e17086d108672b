"""What keeps a client connected: one task that connects, talks, and connects again."""

import asyncio
import dataclasses
import enum
import logging
import random
from collections.abc import Callable
from typing import Final

from websockets.exceptions import InvalidURI

from tableforge_client.conversation import Conversation
from tableforge_client.errors import ClosedError, UnauthorizedError
from tableforge_client.frames import Event
from tableforge_client.link import BROKEN, Link, LinkEndedError, LinkOptions
from tableforge_client.rooms import Rooms
from tableforge_client.routes import Routes, Verdict, destination
from tableforge_client.tokens import Token, TokenSource

_log = logging.getLogger("tableforge_client")


_MIGRATION_TRIES: Final = 5
_LONGEST_MIGRATION_SECONDS: Final = 60.0
_STAYS: Final = "home"
"""The `reason` of a `migrate` after which the present connection goes on, where the client doesn't follow."""
_LONGEST_OPEN_ELSEWHERE_SECONDS: Final = 3.0
"""How long one instance of its own may take to let the client in: there are the application's addresses."""


class State(enum.Enum):
    """Where the client stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """What `on_state` is told. While not connected it is told each attempt."""

    state: State
    url: str | None = None
    instance: str | None = None
    """The instance connected to, or the last one that was."""
    reason: str = ""
    """Why the last connection ended or was refused."""
    retry_in_seconds: float | None = None
    """When the next attempt is made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a client behaves; `tableforge_client.connect` documents them. Times in seconds."""

    link: LinkOptions
    allowed_hosts: tuple[str, ...]
    connect_timeout: float
    reconnect_timeout: float | None
    backoff_base: float
    backoff_longest: float
    stable_after: float
    max_pending: int
    room_buffer: int
    on_state: Callable[[StateChange], None] | None


class Engine:
    """Connects again and again until it is closed or told to stop."""

    def __init__(self, urls: list[str], *, token: Token, options: Options, rng: random.Random) -> None:
        self._options = options
        self._tokens = TokenSource(token)
        self._routes = Routes(
            urls, base_seconds=options.backoff_base, longest_seconds=options.backoff_longest, rng=rng
        )
        self._first_connected = asyncio.Event()
        self._last_end: LinkEndedError | None = None
        self._instance: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._urls = urls
        self._rng = rng
        self._next: Link | None = None
        """A welcomed connection that takes over as soon as there is none."""
        self._moving: asyncio.Task[None] | None = None
        self._elsewhere: str | None = None
        """An address that a server named, to be tried once before those of the application."""
        self._closing: set[asyncio.Task[None]] = set()
        """Connections that were moved away from, and moves that were given up, on their way out."""
        self.rooms = Rooms(max_pending=options.max_pending, buffer=options.room_buffer)
        self.conversation: Conversation | None = None
        """The present one; None while there is no connection."""
        self.state = State.CONNECTING

    async def start(self) -> None:
        """Connect for the first time. Raises ClosedError where that is refused or takes too long."""
        self._task = asyncio.create_task(self._run(), name="tableforge-client")
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                await self._first_connected.wait()
        except TimeoutError:
            await self.close(flush_timeout=0)
            raise self._too_late("connected", self._options.connect_timeout) from self._last_end
        except BaseException:
            await self.close(flush_timeout=0)
            raise
        if self.rooms.closed is not None:
            raise self.rooms.closed

    async def close(self, *, flush_timeout: float) -> None:
        """Wait for outstanding publishes (at most so long), then end everything."""
        try:
            if flush_timeout > 0 and self.rooms.closed is None:
                async with asyncio.timeout(flush_timeout):
                    await self.rooms.quiet.wait()
        except TimeoutError:
            _log.warning("closed with %d publishes unacknowledged", self.rooms.unacknowledged)
        finally:
            self._finish(ClosedError("closed", "closed by the application"), by_choice=True)
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait({self._task})
            if self._next is not None:
                await self._next.close()
                self._next = None
            if self._closing:
                await asyncio.wait(self._closing)

    async def _run(self) -> None:
        try:
            end = await self._stay_connected()
        except BaseException as error:
            # whoever waits for a room or an answer must hear of it: nobody awaits this task
            self._finish(ClosedError("internal", f"the client failed: {error!r}"), by_choice=False)
            raise
        self._finish(end, by_choice=end.code == "1000")

    async def _stay_connected(self) -> ClosedError:
        """Gives why there is no other try."""
        loop = asyncio.get_running_loop()
        limit = self._options.reconnect_timeout
        give_up_at: float | None = None
        while True:
            if self._next is not None:
                link, self._next = self._next, None
                url = link.url
                end = await self._talk(link)
                if self._next is None:
                    self._lost(url, end)
                give_up_at = None if limit is None else loop.time() + limit
                over = self._judge(end, url)
                if over is not None:
                    return over
                continue
            url, wait_seconds = self._choose()
            self._tell_waiting(url, wait_seconds)
            await asyncio.sleep(
                wait_seconds if give_up_at is None else min(wait_seconds, max(0.0, give_up_at - loop.time()))
            )
            if limit is not None and give_up_at is not None and loop.time() >= give_up_at:
                return self._too_late("reconnected", limit)
            try:
                link = await self._open(url)
            except LinkEndedError as refused:
                end = refused
                if url not in self._urls:
                    # that instance is gone, or lets nobody in: the application's own addresses, at once
                    _log.info("%s is not to be had: %s", url, end)
                    if end.verdict.everywhere:
                        self._routes.lost_elsewhere(loop.time(), end.verdict)
                    continue
                self._routes.failed(url, loop.time(), end.verdict)
            else:
                self._next = link
                continue
            over = self._judge(end, url)
            if over is not None:
                return over

    def _choose(self) -> tuple[str, float]:
        """The address to try next, and how many seconds to wait before."""
        now = asyncio.get_running_loop().time()
        url, self._elsewhere = self._elsewhere, None
        if url is not None:
            return url, self._routes.wait_seconds(now)
        return self._routes.choose(now)

    def _lost(self, url: str, end: LinkEndedError) -> None:
        """A connection that had been welcomed ended, and there is none to take its place."""
        now = asyncio.get_running_loop().time()
        if url in self._urls:
            self._routes.lost(url, now, end.verdict)
            return
        self._routes.lost_elsewhere(now, end.verdict)
        if end.code == str(BROKEN) and self._elsewhere is None:
            self._elsewhere = url  # perhaps only the way there was broken

    def _judge(self, end: LinkEndedError, url: str) -> ClosedError | None:
        """Why there is no other try; None where there is one."""
        self._last_end = end
        _log.info("connection to %s ended: %s", url, end)
        if end.verdict.new_token:
            if self._tokens.missing:
                return UnauthorizedError(end.code, "a token is required, and none was given")
            if not self._tokens.refused():
                return UnauthorizedError(end.code, end.message or "the token was refused")
            self._routes.renewed(url if url in self._urls else self._urls[0])
        elif not end.verdict.again:
            return end.as_closed()
        return None

    def _migrate(self, event: Event) -> None:
        """Connect elsewhere while the present connection still serves."""
        conversation = self.conversation
        if conversation is None or conversation.moved.is_set():
            return
        self._stop_moving()  # the newest counts
        self._moving = asyncio.create_task(self._move(conversation, event), name="tableforge-migrate")

    def _stop_moving(self) -> None:
        moving, self._moving = self._moving, None
        self._elsewhere = None
        if moving is not None and not moving.done():
            moving.cancel()
            self._see_off(moving)

    async def _move(self, conversation: Conversation, event: Event) -> None:
        present = conversation.link.url
        stays = event.reason == _STAYS
        there: str | None = None
        if event.url is not None:
            there = destination(
                event.url, present=present, urls=self._urls, allowed_hosts=self._options.allowed_hosts
            )
            if there is None:
                _log.warning("the server names another host to move to, %s: not followed", event.url)
            if there == present or (there is None and stays):
                return
        # where the connection ends before the new one stands, that is where to go
        self._elsewhere = there
        await asyncio.sleep(max(0.0, min(event.after, _LONGEST_MIGRATION_SECONDS)))
        others = [url for url in self._urls if url != present] or self._urls
        for attempt in range(_MIGRATION_TRIES):
            if attempt:
                await asyncio.sleep(self._rng.uniform(0, self._options.backoff_base))
            try:
                link = await self._open(there or self._rng.choice(others))
            except LinkEndedError as refused:
                _log.info("could not move yet: %s", refused)
                if stays and (refused.verdict.at_least_seconds > 0 or not refused.verdict.again):
                    break  # it takes nobody: here this client is served
                if not stays:
                    self._elsewhere = there = None  # any other will do: this connection ends soon
                continue
            self._elsewhere = None
            self._next = link
            conversation.moved.set()
            return
        self._elsewhere = None

    def _see_off(self, task: asyncio.Task[None]) -> None:
        """Keep it until it is over."""
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close_quietly(self, link: Link) -> None:
        await link.close()

    async def _open(self, url: str) -> Link:
        try:
            token = await self._tokens.current()
        except Exception as error:
            # the application's callable may raise anything; its token service may come back
            raise LinkEndedError(
                "no_token", f"the token callable raised {error!r}", Verdict(again=True)
            ) from error
        options = self._options.link
        if url not in self._urls:
            longest = min(options.open_timeout, _LONGEST_OPEN_ELSEWHERE_SECONDS)
            options = dataclasses.replace(options, open_timeout=longest)
        try:
            was_connected = self._instance is not None
            return await Link.open(url, token=token, options=options, was_connected=was_connected)
        except InvalidURI as error:
            raise LinkEndedError("bad_url", str(error), Verdict(again=False)) from error

    async def _talk(self, link: Link) -> LinkEndedError:
        self._tokens.accepted()
        self._instance = link.welcome.instance
        conversation = Conversation(link, self.rooms, self._tokens, on_migrate=self._migrate)
        self.conversation = conversation
        self._tell(StateChange(state=State.CONNECTED, url=link.url, instance=self._instance))
        self._first_connected.set()
        # a connection that lasts clears its address of earlier failures
        stable = asyncio.get_running_loop().call_later(
            self._options.stable_after, self._routes.stable, link.url
        )
        try:
            return await conversation.run()
        finally:
            stable.cancel()
            self.conversation = None
            if conversation.moved.is_set():
                # what was sent before is answered or sent again on the new one, which is not kept waiting
                closing = asyncio.create_task(self._close_quietly(link), name="tableforge-close")
                self._see_off(closing)
            elsewhere = self._elsewhere
            self._stop_moving()
            self._elsewhere = elsewhere

    def _too_late(self, what: str, limit_seconds: float) -> ClosedError:
        last = "" if self._last_end is None else f"; the last attempt: {self._last_end}"
        return ClosedError("unreachable", f"not {what} within {limit_seconds:g} s{last}")

    def _tell_waiting(self, url: str, wait_seconds: float) -> None:
        self._tell(
            StateChange(
                state=State.CONNECTING if self._instance is None else State.RECONNECTING,
                url=url,
                instance=self._instance,
                reason="" if self._last_end is None else str(self._last_end),
                retry_in_seconds=wait_seconds,
            )
        )

    def _tell(self, change: StateChange) -> None:
        self.state = change.state
        if self._options.on_state is not None:
            # in a turn of its own: what the application's function raises must not end the client
            asyncio.get_running_loop().call_soon(self._options.on_state, change)

    def _finish(self, error: ClosedError, *, by_choice: bool) -> None:
        if self.rooms.closed is not None:
            return
        self.rooms.close(error, by_choice=by_choice)
        reason = "" if by_choice else str(error)
        self._tell(StateChange(state=State.CLOSED, instance=self._instance, reason=reason))
        self._first_connected.set()
