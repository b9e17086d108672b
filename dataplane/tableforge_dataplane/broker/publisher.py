"""Publishes, pipelined on one connection: what arrives while a batch is in flight makes the next batch.

No future, task or lock per message: a publication waits in a deque, its bytes go out with its batch's, and
the reply, which comes in order, is handed to its owner. (1.3 µs a message in batches of 20, 4 µs
alone: `benchmarks/steps.py`.)
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.connection import RedisConnection, Reply, ReplyError, pack
from tableforge_dataplane.broker.scripts import PUBLISH_VARIANTS, Script, publish_script
from tableforge_dataplane.broker.state import ServerFacts
from tableforge_dataplane.contract.settings import PerformanceSettings, RoomSettings
from tableforge_dataplane.observability.logging import EventLog

BATCHES_IN_FLIGHT: Final = 10
"""So many full batches may be under way at once; what comes then waits in the queue."""

RETRY_AFTER_SECONDS: Final = 1.0

WAITING_BYTES: Final = 33_554_432
"""So much may wait for Redis, away or slow, whatever the number of messages: memory is bounded too."""

TAG_BITS: Final = 52

RETRIED: Final = ("NOSCRIPT", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""Refusals that say nothing was done and that it can work in a moment, on this connection or the next."""

_VOLATILE: Final = "Redis is away, and a volatile message does not wait for it."

RefusalCode = Literal["unavailable", "unknown_key", "internal"]

_log = EventLog("publisher")


def _log_refusal(text: str) -> None:
    _log.warning("redis_refused_write", reply=text)


# seeded by the system; its own generator would be a system call a message, and tags are no secrets
_getrandbits = random.Random().getrandbits  # noqa: S311


def new_tag() -> bytes:
    """52 random bits in decimal: they stay exact in Lua's and JavaScript's numbers."""
    return b"%d" % _getrandbits(TAG_BITS)


class PublicationOwner(Protocol):
    """Who waits for what becomes of a publication."""

    def published(self, publication: "Publication", seq: int, tag: bytes, duplicate: bool) -> None:
        """Redis has it, as safely as was asked: this is what an acknowledgement stands on."""

    def refused(
        self, publication: "Publication", code: RefusalCode, message: str, retry_after: float | None
    ) -> None:
        """It was not stored, or nobody can say whether it was (`unknown_key`)."""


class Publication(msgspec.Struct, kw_only=True, eq=False):
    """One message on its way into a room's log. (A struct: they are made fast. Owners extend it.)"""

    head: bytes
    """`Publisher.head` of its room."""
    tag: bytes
    """From `new_tag`."""
    origin: bytes
    """The session; `!` in front where the sender wants no copy. No spaces."""
    key: bytes
    """The idempotency key's field in the room's meta."""
    body: bytes
    owner: PublicationOwner
    since: bytes = b""
    """The position a resend by the client names; empty on its first attempt."""
    base_seq: int = -1
    """With `base_tag`, the room's position here when it was first sent: what own retries name as `since`."""
    base_tag: bytes = b""
    channel: bytes = b""
    """Set for a volatile message: it goes to the channel alone, and is not worth waiting for Redis."""
    others_may_send_it: bool = False
    """The client named the key, so that it may have sent the same over another instance meanwhile."""
    retried: bool = False


class Publisher:
    """Writes publications to Redis in the order they came. A `LinkUser`."""

    def __init__(
        self,
        *,
        performance: PerformanceSettings,
        rooms: RoomSettings,
        queue_size: int,
        publish_command: bytes = b"PUBLISH",
        script: Script | None = None,
    ) -> None:
        """`queue_size`: how many may wait. `publish_command`: `SPUBLISH` for sharded Pub/Sub. `script`: a
        variant of the publish script, by chance where None."""
        self._script = script or publish_script(random.randrange(PUBLISH_VARIANTS))  # noqa: S311
        self._delay_seconds = performance.batch_message_delay_seconds
        self._batch_size = performance.max_batch_size
        self._queue_size = queue_size
        self._publish_command = publish_command
        self._limits = (
            rooms.log_max_messages,
            rooms.log_max_bytes,
            int(rooms.log_max_age_seconds * 1000),
        )
        self._pending: deque[Publication] = deque()
        self._in_flight: deque[Publication | None] = deque()
        self._again: list[Publication] = []
        self._connection: RedisConnection | None = None
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0
        self._waiting_bytes = 0
        """Bodies of all publications that wait or are under way."""
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._taken = 0
        """Publications ever taken into the queue."""
        self._progress: asyncio.Event = asyncio.Event()
        self._refusal: tuple[str, float] | None = None
        self.on_refusal: Callable[[str], None] = _log_refusal
        """Called with Redis's text when it refuses a write."""

    @property
    def depth(self) -> int:
        """Publications that wait or are under way."""
        return len(self._pending) + len(self._in_flight) + len(self._again)

    @property
    def waiting_since(self) -> float | None:
        """Since when (loop time) replies are due; None where none are."""
        return self._sent_at if self._in_flight else None

    def head(self, address: RoomAddress) -> bytes:
        """The part of the command that is the same for all of a room's messages."""
        constant = pack(
            b"EVALSHA",
            self._script.sha,
            2,
            address.meta,
            address.log,
            address.channel,
            self._publish_command,
            *self._limits,
        )
        return b"*15" + constant[constant.index(b"\r\n") :]

    def publish(self, publication: Publication) -> None:
        """Send it with the next batch, at once where none is in flight. The owner hears what became of it."""
        if self._refusal is not None:
            message, retry_after = self._refusal
            publication.owner.refused(publication, "unavailable", message, retry_after)
            return
        pending = self._pending
        if len(pending) >= self._queue_size:
            publication.owner.refused(
                publication,
                "unavailable",
                f"{self._queue_size} messages wait for Redis already: send this one again later.",
                RETRY_AFTER_SECONDS,
            )
            return
        waiting_bytes = self._waiting_bytes + len(publication.body)
        if waiting_bytes > WAITING_BYTES or (publication.channel and self._connection is None):
            self._refuse_to_wait(publication)
            return
        self._waiting_bytes = waiting_bytes
        pending.append(publication)
        self._taken += 1
        if self._in_flight:
            if len(pending) >= self._batch_size:
                self._send()
            elif self._timer is None:
                self._timer = self._loop.call_later(self._delay_seconds, self._on_timer)
        elif not self._scheduled:
            # at the end of this turn of the loop, so that what it still brings goes along
            self._scheduled = True
            self._loop.call_soon(self._on_turn)

    def _refuse_to_wait(self, publication: Publication) -> None:
        message = (
            _VOLATILE
            if publication.channel and self._connection is None
            else f"{WAITING_BYTES} bytes wait for Redis already: send this one again later."
        )
        publication.owner.refused(publication, "unavailable", message, RETRY_AFTER_SECONDS)

    def refuse(self, message: str, retry_after: float) -> None:
        """Until `take`, refuse publications as `unavailable`; those too that wait and were never sent."""
        self._refusal = (message, retry_after)
        if self._connection is not None:
            return
        waiting, self._pending = self._pending, deque()
        for publication in waiting:
            if publication.retried:
                self._pending.append(publication)  # it may be stored: only Redis can tell
            else:
                self._waiting_bytes -= len(publication.body)
                publication.owner.refused(publication, "unavailable", message, retry_after)
        self._progress.set()

    def take(self) -> None:
        """Take publications (again)."""
        self._refusal = None

    async def settled(self) -> None:
        """Wait until nothing of what is here now waits or is under way, whatever comes meanwhile."""
        target = self._taken
        while self._taken - self.depth < target:
            self._progress.clear()
            await self._progress.wait()

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:  # noqa: ARG002
        """From the link."""
        await connection.ask(b"SCRIPT", b"LOAD", self._script.text)
        connection.receive = self._on_reply
        connection.after_replies = self._after_replies
        self._connection = connection
        for publication in self._pending:
            if publication.others_may_send_it:
                publication.retried = True
        self._send()

    def on_down(self) -> None:
        """From the link. What had no reply may or may not be stored: it goes again, first, with its key."""
        self._connection = None
        unanswered = [publication for publication in self._in_flight if publication is not None]
        self._in_flight.clear()
        for publication in [*unanswered, *self._pending]:
            if publication.channel:
                self._waiting_bytes -= len(publication.body)
                publication.owner.refused(publication, "unavailable", _VOLATILE, RETRY_AFTER_SECONDS)
        unanswered = [publication for publication in unanswered if not publication.channel]
        if any(publication.channel for publication in self._pending):
            self._pending = deque(publication for publication in self._pending if not publication.channel)
        for publication in unanswered:
            publication.retried = True
        again, self._again = self._again, []
        self._pending.extendleft(reversed(again + unanswered))
        self._progress.set()

    def _on_turn(self) -> None:
        self._scheduled = False
        if not self._in_flight:
            self._send()

    def _on_timer(self) -> None:
        self._timer = None
        if self._pending and self._connection is not None:
            self._send()

    def _send(self) -> None:
        connection = self._connection
        if connection is None or self._again:
            return  # what has to go again goes first, as soon as nothing is in flight
        pending, in_flight = self._pending, self._in_flight
        room_left = BATCHES_IN_FLIGHT * self._batch_size - len(in_flight)
        count = min(len(pending), self._batch_size, room_left)
        if count <= 0:
            return
        if not in_flight:
            self._sent_at = self._loop.time()
        out = []
        for _ in range(count):
            publication = pending.popleft()
            in_flight.append(publication)
            if publication.channel:
                out.append(self._volatile(publication))
                continue
            since = publication.since
            if publication.retried and not since and publication.base_seq >= 0:
                since = b"%d-%b" % (publication.base_seq, publication.base_tag)
            tag, origin, key, body = publication.tag, publication.origin, publication.key, publication.body
            out.append(
                b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
                % (
                    publication.head,
                    len(tag),
                    tag,
                    len(origin),
                    origin,
                    len(key),
                    key,
                    len(since),
                    since,
                    len(body),
                    body,
                )
            )
        connection.write(b"".join(out))

    def _volatile(self, publication: Publication) -> bytes:
        payload = b"0 0 0 %.3f %b %b" % (time.time(), publication.origin, publication.body)
        return pack(self._publish_command, publication.channel, payload)

    def _on_reply(self, reply: Reply) -> None:
        publication = self._in_flight.popleft()
        if publication is None:
            return
        self._waiting_bytes -= len(publication.body)
        if type(reply) is list:
            seq, tag, duplicate = reply
            if seq >= 0:
                publication.owner.published(publication, seq, tag, duplicate == 1)
            else:
                publication.owner.refused(
                    publication,
                    "unknown_key",
                    "This room's log no longer reaches back to `since`: nobody can say whether the message "
                    "was stored, and it was not published. Look at what is there and send it with a new key.",
                    None,
                )
        elif isinstance(reply, ReplyError):
            self._on_error(publication, str(reply))
        elif publication.channel:
            publication.owner.published(publication, 0, b"", False)
        else:
            self._fail(publication, f"Redis answered {type(reply).__name__} to a publish")

    def _on_error(self, publication: Publication, text: str) -> None:
        code = text.split(" ", 1)[0]
        if code in RETRIED:
            self._waiting_bytes += len(publication.body)
            self._again.append(publication)
            if code == "NOSCRIPT" and len(self._again) == 1 and self._connection is not None:
                self._in_flight.append(None)
                self._connection.write(pack(b"SCRIPT", b"LOAD", self._script.text))
            elif code != "NOSCRIPT" and self._connection is not None:
                self._connection.abort()
            return
        if code in ("OOM", "MISCONF", "NOREPLICAS", "NOPERM", "NOAUTH", "DENIED"):
            self.on_refusal(text)
            publication.owner.refused(
                publication,
                "unavailable",
                f"Redis refuses writes at the moment ({code}): send this one again later.",
                RETRY_AFTER_SECONDS,
            )
            return
        self._fail(publication, text)

    def _fail(self, publication: Publication, text: str) -> None:
        _log.error("publish_failed", reply=text)
        publication.owner.refused(
            publication, "internal", "The message could not be stored: the instance's log says why.", None
        )

    def _after_replies(self) -> None:
        self._progress.set()
        if self._in_flight:
            self._sent_at = self._loop.time()
            return
        if self._again:
            again, self._again = self._again, []
            self._pending.extendleft(reversed(again))
        if self._pending:
            self._send()
