"""The connection that receives what any instance published, for every room with members here.

Redis confirms each SUBSCRIBE and UNSUBSCRIBE in order, so a confirmation belongs to the oldest request that
is still open, whatever happened to the room in between.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Protocol

from tableforge_dataplane.broker.connection import RedisConnection, Reply, ReplyError, pack
from tableforge_dataplane.broker.state import ServerFacts
from tableforge_dataplane.observability.logging import EventLog

PING_INTERVAL_SECONDS: Final = 2.0
CHANNELS_PER_COMMAND: Final = 100

_log = EventLog("subscriber")


class SubscriberUser(Protocol):
    """Who gets the messages."""

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """One message, in the order Redis sent it."""

    def on_messages_end(self) -> None:
        """All messages of one read were handed over."""

    def on_subscribed(self, channel: bytes) -> None:
        """From now on nothing published to `channel` is missed, as long as this connection lives."""


class Subscriber:
    """Keeps a set of channels subscribed over any number of connections. A `LinkUser`."""

    def __init__(self, user: SubscriberUser) -> None:
        self._user = user
        self._channels: set[bytes] = set()
        self._connection: RedisConnection | None = None
        self._open: deque[tuple[bool, bytes]] = deque()
        self._ask: list[tuple[bool, bytes]] = []
        self._ending: Counter[bytes] = Counter()
        """Unsubscriptions by channel that are asked for and not confirmed."""
        self._on_message: Callable[[bytes, bytes], None] = user.on_message

    @property
    def channels(self) -> int:
        """How many channels are wanted."""
        return len(self._channels)

    def subscribe(self, channel: bytes) -> None:
        """Want `channel`; the user hears when it is there, again after each reconnect."""
        self._channels.add(channel)
        self._request(True, channel)

    def unsubscribe(self, channel: bytes) -> None:
        """Want `channel` no more."""
        self._channels.discard(channel)
        self._request(False, channel)

    def ping(self) -> None:
        """Make the server answer, so that a silent connection shows: see `RedisConnection.last_reply_at`."""
        if self._connection is not None:
            self._connection.write(pack(b"PING"))

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:  # noqa: ARG002
        """From the link."""
        connection.receive = self._on_reply
        connection.after_replies = self._user.on_messages_end
        self._connection = connection
        self._forget_requests()
        for channel in self._channels:
            self._request(True, channel)

    def on_down(self) -> None:
        """From the link."""
        self._connection = None
        self._forget_requests()

    def _forget_requests(self) -> None:
        self._open.clear()
        self._ask.clear()
        self._ending.clear()

    def _request(self, wanted: bool, channel: bytes) -> None:
        if self._connection is None:
            return
        if not self._ask:
            # a thousand joins in one turn of the loop become ten commands
            asyncio.get_running_loop().call_soon(self._write_requests)
        self._ask.append((wanted, channel))
        if not wanted:
            self._ending[channel] += 1

    def _write_requests(self) -> None:
        connection = self._connection
        if connection is None:
            return
        ask, self._ask = self._ask, []
        out: list[bytes] = []
        group: list[bytes] = []
        for position, (wanted, channel) in enumerate(ask):
            group.append(channel)
            last = position + 1 == len(ask)
            if last or ask[position + 1][0] is not wanted or len(group) == CHANNELS_PER_COMMAND:
                out.append(pack(b"SUBSCRIBE" if wanted else b"UNSUBSCRIBE", *group))
                group = []
        self._open.extend(ask)
        connection.write(b"".join(out))

    def _on_reply(self, reply: Reply) -> None:
        if type(reply) is not list:
            self._on_unexpected(reply)
            return
        kind = reply[0]
        if kind == b"message":
            self._on_message(reply[1], reply[2])
        elif kind in (b"subscribe", b"unsubscribe"):
            self._on_confirmed(kind == b"subscribe", reply[1])
        elif kind != b"pong":
            self._on_unexpected(reply)

    def _on_confirmed(self, subscribed: bool, channel: bytes) -> None:
        if not self._open or self._open[0] != (subscribed, channel):
            # e.g. an UNSUBSCRIBE nobody asked for: what is subscribed is not known any more
            self._on_unexpected([subscribed, channel])
            return
        self._open.popleft()
        if not subscribed:
            self._ending[channel] -= 1
            if not self._ending[channel]:
                del self._ending[channel]
        elif channel in self._channels and channel not in self._ending:
            self._user.on_subscribed(channel)

    def _on_unexpected(self, reply: Reply) -> None:
        if reply == b"PONG":  # RESP2's answer while nothing is subscribed
            return
        text = str(reply) if isinstance(reply, ReplyError) else repr(reply)[:200]
        _log.warning("subscriber_unexpected_reply", reply=text)
        if self._connection is not None:
            self._connection.abort()
