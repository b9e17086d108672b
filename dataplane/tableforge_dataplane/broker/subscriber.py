"""The connection that receives what any instance published, for every room with members here.

Redis confirms each SUBSCRIBE and UNSUBSCRIBE in order, so a confirmation belongs to the oldest request that
is still open, whatever happened to the room in between. On a Redis Cluster of version 7 or newer channels are
sharded (SSUBSCRIBE, one a command, since they lie in different slots), and a shard that loses a slot says so.
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

SHARDED_SINCE: Final = (7, 0)
"""The Redis whose clusters have sharded Pub/Sub. Older ones send what is published to all their nodes."""

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

    def __init__(self, user: SubscriberUser, *, clustered: bool = False) -> None:
        """`clustered`: whether it is connected to nodes of a Redis Cluster."""
        self._user = user
        self._clustered = clustered
        self._sharded = False
        self.on_lost: Callable[[bytes, str], None] | None = None
        """Called with a wanted channel that this shard does not serve (any more), and what it said."""
        self.on_refusal: Callable[[str], None] = _ignore
        """Called with what Redis says to a ping while it refuses writes."""
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

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:
        """From the link."""
        self._sharded = self._clustered and facts.compatible >= SHARDED_SINCE
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
        most = 1 if self._sharded else CHANNELS_PER_COMMAND
        commands = (b"SSUBSCRIBE", b"SUNSUBSCRIBE") if self._sharded else (b"SUBSCRIBE", b"UNSUBSCRIBE")
        for position, (wanted, channel) in enumerate(ask):
            group.append(channel)
            last = position + 1 == len(ask)
            if last or ask[position + 1][0] is not wanted or len(group) == most:
                out.append(pack(commands[0] if wanted else commands[1], *group))
                group = []
        self._open.extend(ask)
        connection.write(b"".join(out))

    def _on_reply(self, reply: Reply) -> None:
        if type(reply) is not list:
            self._on_unexpected(reply)
            return
        kind = reply[0]
        if kind in (b"message", b"smessage"):
            self._on_message(reply[1], reply[2])
        elif kind in (b"subscribe", b"ssubscribe"):
            self._on_confirmed(True, reply[1])
        elif kind in (b"unsubscribe", b"sunsubscribe"):
            self._on_confirmed(False, reply[1])
        elif kind != b"pong":
            self._on_unexpected(reply)

    def _on_confirmed(self, subscribed: bool, channel: bytes) -> None:
        if not self._open or self._open[0] != (subscribed, channel):
            if self._sharded and not subscribed and channel is not None:
                self._lose(channel, "the slot went to another shard")
                return
            # e.g. an UNSUBSCRIBE nobody asked for: what is subscribed is not known any more
            self._on_unexpected([subscribed, channel])
            return
        self._open.popleft()
        if not subscribed:
            self._ended(channel)
        elif channel in self._channels and channel not in self._ending:
            self._user.on_subscribed(channel)

    def _ended(self, channel: bytes) -> None:
        self._ending[channel] -= 1
        if not self._ending[channel]:
            del self._ending[channel]

    def _lose(self, channel: bytes, text: str) -> None:
        if channel in self._channels and channel not in self._ending and self.on_lost is not None:
            self.on_lost(channel, text)

    def _on_unexpected(self, reply: Reply) -> None:
        if reply == b"PONG":  # RESP2's answer while nothing is subscribed
            return
        text = str(reply) if isinstance(reply, ReplyError) else repr(reply)[:200]
        if text.startswith("MISCONF") and isinstance(reply, ReplyError):
            # it cannot write to its disk, and refuses pings like writes: no subscription
            self.on_refusal(text)
            return
        if self._sharded and isinstance(reply, ReplyError) and self._open:
            # one channel a command: it belongs to the oldest request
            wanted, channel = self._open.popleft()
            if not wanted:
                self._ended(channel)
            else:
                self._lose(channel, text)
            return
        _log.warning("subscriber_unexpected_reply", reply=text)
        if self._connection is not None:
            self._connection.abort()


def _ignore(_text: str) -> None:
    return None
