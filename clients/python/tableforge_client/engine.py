"""What keeps a client connected: one task that connects, talks, and connects again."""

import asyncio
import dataclasses
import enum
import logging
import random
from collections.abc import Callable

from websockets.exceptions import InvalidURI

from tableforge_client.conversation import Conversation
from tableforge_client.errors import ClosedError, UnauthorizedError
from tableforge_client.link import Link, LinkEndedError, LinkOptions
from tableforge_client.rooms import Rooms
from tableforge_client.routes import Routes, Verdict
from tableforge_client.tokens import Token, TokenSource

_log = logging.getLogger("tableforge_client")


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
            url, wait_seconds = self._routes.choose(loop.time())
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
                self._routes.failed(url, loop.time(), end.verdict)
            else:
                end = await self._talk(link)
                self._routes.lost(url, loop.time(), end.verdict)
                give_up_at = None if limit is None else loop.time() + limit
            self._last_end = end
            _log.info("connection to %s ended: %s", url, end)
            if end.verdict.new_token:
                if self._tokens.missing:
                    return UnauthorizedError(end.code, "a token is required, and none was given")
                if not self._tokens.refused():
                    return UnauthorizedError(end.code, end.message or "the token was refused")
                self._routes.renewed(url)
            elif not end.verdict.again:
                return end.as_closed()

    async def _open(self, url: str) -> Link:
        try:
            token = await self._tokens.current()
        except Exception as error:
            # the application's callable may raise anything; its token service may come back
            raise LinkEndedError(
                "no_token", f"the token callable raised {error!r}", Verdict(again=True)
            ) from error
        try:
            was_connected = self._instance is not None
            return await Link.open(url, token=token, options=self._options.link, was_connected=was_connected)
        except InvalidURI as error:
            raise LinkEndedError("bad_url", str(error), Verdict(again=False)) from error

    async def _talk(self, link: Link) -> LinkEndedError:
        self._tokens.accepted()
        self._instance = link.welcome.instance
        self.conversation = Conversation(link, self.rooms, self._tokens)
        self._tell(StateChange(state=State.CONNECTED, url=link.url, instance=self._instance))
        self._first_connected.set()
        # a connection that lasts clears its address of earlier failures
        stable = asyncio.get_running_loop().call_later(
            self._options.stable_after, self._routes.stable, link.url
        )
        try:
            return await self.conversation.run()
        finally:
            stable.cancel()
            self.conversation = None

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
