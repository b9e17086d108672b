"""One WebSocket connection to one instance, from the handshake to its end. It knows frames, not rooms."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Literal, Self
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from tableforge_client import frames
from tableforge_client.errors import ClosedError
from tableforge_client.frames import Event, FrameError
from tableforge_client.routes import Verdict, after_close, after_status, is_local

BROKEN: int = 1006
"""The close code for a connection that broke without one, never sent."""

LARGEST_FRAME_BYTES: int = 4 * 1024 * 1024
"""The most a server may send in one frame: well above the largest `maxPayloadBytes` that can be
configured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """How connections are made. Times in seconds."""

    auth: Literal["header", "frame"]
    open_timeout: float
    ping_interval: float
    ping_timeout: float


class LinkEndedError(Exception):
    """The connection is over, or was never made; `verdict` says what that means."""

    def __init__(self, code: str, message: str, verdict: Verdict) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.verdict = verdict

    def as_closed(self) -> ClosedError:
        """For the application, where there is no next try."""
        return ClosedError(self.code, self.message)


class Link:
    """A welcomed connection. Made by `Link.open`."""

    def __init__(self, socket: ClientConnection, url: str, welcome: Event) -> None:
        self._socket = socket
        self.url = url
        self.welcome = welcome
        self.last_error: Event | None = None
        """The last `error` frame that answered no command: what a close that follows it is about."""

    @classmethod
    async def open(cls, url: str, *, token: str | None, options: LinkOptions, was_connected: bool) -> Self:
        """Connect, authenticate, and wait for the welcome.

        Raises LinkEndedError; InvalidURI for what is no WebSocket address.
        """
        headers = {"Authorization": f"Bearer {token}"} if token and options.auth == "header" else {}
        attempt = websocket_connect(
            url,
            subprotocols=[frames.SUBPROTOCOL],  # type: ignore[list-item]  # a NewType of str
            additional_headers=headers,
            compression=None,
            open_timeout=options.open_timeout,
            ping_interval=options.ping_interval,
            ping_timeout=options.ping_timeout,
            close_timeout=2,
            max_size=LARGEST_FRAME_BYTES,
            # a proxy from the environment has no way to this machine's own addresses
            proxy=None if is_local(urlsplit(url).hostname or "") else True,
        )
        try:
            socket = await attempt
        except InvalidURI:
            raise
        except InvalidStatus as error:
            status = error.response.status_code
            verdict = after_status(
                status,
                retry_after=error.response.headers.get("Retry-After"),
                was_connected=was_connected,
            )
            text = (error.response.body or b"")[:300].decode("utf-8", "replace").strip()
            message = text or error.response.reason_phrase
            raise LinkEndedError(f"http-{status}", message, verdict) from error
        except (OSError, TimeoutError, EOFError, InvalidHandshake) as error:
            again = Verdict(again=True)
            raise LinkEndedError("unreachable", _sentence(error), again) from error
        try:
            if token and options.auth == "frame":
                await socket.send(frames.auth(token))
            welcome = await cls._welcome(socket, options.open_timeout)
        except BaseException:
            await socket.close()
            raise
        return cls(socket, url, welcome)

    @staticmethod
    async def _welcome(socket: ClientConnection, timeout_seconds: float) -> Event:
        error: Event | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    event = frames.decode(await socket.recv())
                    if event.type == "welcome":
                        return event
                    if event.type == "error":
                        error = event
        except ConnectionClosed as closed:
            raise _ended(closed, error) from closed
        except TimeoutError as late:
            raise LinkEndedError(
                "no_welcome", f"no welcome within {timeout_seconds:g} s", Verdict(again=True)
            ) from late
        except FrameError as bad:
            raise LinkEndedError("bad_welcome", str(bad), Verdict(again=False)) from bad

    async def send(self, frame: str) -> None:
        """Send one frame; waits while the socket's buffer is full. Raises LinkEndedError."""
        try:
            await self._socket.send(frame)
        except ConnectionClosed as closed:
            raise _ended(closed, self.last_error) from closed

    async def events(self) -> AsyncIterator[Event]:
        """Frames as they come. It ends only by LinkEndedError. Who doesn't ask holds back the server."""
        try:
            while True:
                event = frames.decode(await self._socket.recv())
                if event.type == "error" and event.id is None:
                    self.last_error = event
                yield event
        except ConnectionClosed as closed:
            raise _ended(closed, self.last_error) from closed
        except FrameError as bad:
            raise LinkEndedError("bad_frame", str(bad), Verdict(again=True)) from bad

    async def close(self) -> None:
        """Say goodbye with 1000, and wait for the other side's for at most 2 s."""
        await self._socket.close()


def _ended(closed: ConnectionClosed, error: Event | None) -> LinkEndedError:
    code = BROKEN if closed.rcvd is None else closed.rcvd.code
    if closed.rcvd is not None:
        reason = closed.rcvd.reason or (f"{error.code}: {error.message}" if error is not None else "")
    else:
        reason = (closed.sent.reason if closed.sent is not None else "") or "the connection broke"
    return LinkEndedError(str(code), reason, after_close(code))


def _sentence(error: BaseException) -> str:
    return str(error) or type(error).__name__
