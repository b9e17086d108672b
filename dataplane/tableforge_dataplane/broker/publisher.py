"""Publishes, pipelined on one connection: what arrives while a batch is in flight makes the next batch.

No future, task or lock per message: a publication waits in a deque, its bytes go out with its batch's, and
the reply, which comes in order, is handed to its owner, behind a fence where Redis's reply is not enough.
(1.3 µs a message in batches of 20, 4 µs alone: `benchmarks/steps.py`.)

Where Redis refuses for now, everything that was refused waits, in order and before what came later, and one
publication alone tries from time to time. What is in doubt (no reply, or a fence that broke) goes again with
its key; but not what a client has named a key for and waits for no longer, its connection having ended. So
nothing is stored twice, and a room's messages of one instance keep their order.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.connection import RedisConnection, Reply, ReplyError, pack
from tableforge_dataplane.broker.fence import WAIT_SECONDS, Fence, Needs
from tableforge_dataplane.broker.publications import (
    Publication,
    asking,
    commands,
    head_of,
)
from tableforge_dataplane.broker.scripts import PUBLISH_VARIANTS, Script, publish_script
from tableforge_dataplane.broker.state import ServerFacts, refusal_in
from tableforge_dataplane.contract.settings import PerformanceSettings, ScalingSettings
from tableforge_dataplane.observability.breaker import (
    LONGEST_OPEN_SECONDS,
    CircuitBreaker,
    backoff_seconds,
)
from tableforge_dataplane.observability.logging import EventLog

BATCHES_IN_FLIGHT: Final = 10
"""So many full batches may be under way at once; what comes then waits in the queue."""

RETRY_AFTER_SECONDS: Final = 1.0

WAITING_BYTES: Final = 33_554_432
"""So much may wait for Redis, away or slow, whatever the number of messages: memory is bounded too."""

RETRIED: Final = ("NOSCRIPT", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""Refusals that say nothing was done and that it can work in a moment, on this connection or the next."""

REFUSING: Final = ("OOM", "MISCONF", "NOREPLICAS")
"""Refusals of writes by a server that is the right one: tried again after a delay, a few times."""

FENCED_MOST: Final = 100_000
"""So many stored publications may wait for a fence; further ones are refused. (A second's worth, at most.)"""

_MEANING: Final = {
    "OOM": "OOM: its memory is full",
    "MISCONF": "MISCONF: it cannot write to its disk",
    "NOREPLICAS": "NOREPLICAS: too few replicas follow it",
}

_NO_QUEUE: Final = "Redis is away, and messages are not queued here: send this one again later."

_UNKNOWN: Final = (
    "This room's log no longer reaches back to `since`: nobody can say whether the message was stored, and "
    "it was not published. Look at what is there and send it with a new key."
)

ABANDONED: Final = "Its connection has ended before Redis took it: its key tells when it is sent again."

OVERTAKEN: Final = "Redis refused it for a moment, and a later one went first: send it again."

REDIRECTED: Final = ("MOVED", "ASK", "TRYAGAIN")
"""Answers of a Redis Cluster that say nothing was done, because this room is (about to be) elsewhere."""

_VOLATILE: Final = "Redis is away, and a volatile message does not wait for it."

_log = EventLog("publisher")


def _log_refusal(text: str) -> None:
    _log.warning("redis_refused_write", reply=text)


class Publisher:
    """Writes publications to Redis in the order they came. A `LinkUser`."""

    def __init__(
        self,
        *,
        performance: PerformanceSettings,
        queue_size: int,
        publish_command: bytes = b"PUBLISH",
        script: Script | None = None,
        scaling: ScalingSettings | None = None,
    ) -> None:
        """`queue_size`: how many may wait. `publish_command`: `SPUBLISH` for sharded Pub/Sub. `script`: a
        variant of the publish script, by chance where None. `scaling`: for retries; the defaults where
        None."""
        self._script = script or publish_script(random.randrange(PUBLISH_VARIANTS))  # noqa: S311
        self._delay_seconds = performance.batch_message_delay_seconds
        self._batch_size = performance.max_batch_size
        self._queue_size = queue_size
        self._publish_command = publish_command
        self._volatile_command = publish_command
        scaling = ScalingSettings() if scaling is None else scaling
        self._retry_delay_seconds = scaling.retry_delay_seconds
        self._queueing = performance.enable_message_queuing
        self._flush_seconds = performance.queue_flush_interval_seconds
        self.breaker = CircuitBreaker(
            threshold=scaling.retry_attempts + 1, open_seconds=scaling.retry_delay_seconds
        )
        """Open while Redis is away or refuses; the link's attempts count in it, too."""
        self._attempts = 0
        """Times in a row that Redis refused for now."""
        self._held = False
        """Whether what waits is held back until the next attempt."""
        self._attempt_at = 0.0
        self._flush: asyncio.TimerHandle | None = None
        self._hindrance = ""
        """What Redis said when it last refused for now."""
        self.needs: Needs | None = None
        """What acknowledgements wait for beside Redis's reply. Set before `on_up`."""
        self._fence: Fence | None = None
        self._run_id = ""
        self._stored: deque[tuple[Publication, int, bytes, bool]] = deque()
        """What Redis has and no fence has covered yet."""
        self._stored_at = 0.0
        """When the oldest of these came (loop time)."""
        self._covered = 0
        """How many of these the fence under way covers."""
        self._void = False
        """Whether these have to go again."""
        self._pending: deque[Publication] = deque()
        self._doubted = False
        """Whether some of these may have been sent before, from here or over another instance."""
        self._in_flight: deque[Publication | None] = deque()
        self._again: list[Publication] = []
        self._connection: RedisConnection | None = None
        self._leaving = False
        """Whether the connection is being dropped: what is sent over it now would only be in doubt."""
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0
        self._waiting_bytes = 0
        """Bodies of all publications that wait or are under way."""
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._taken = 0
        """Publications ever taken into the queue."""
        self._progress: asyncio.Event = asyncio.Event()
        self._away = False
        """Whether volatile messages find nobody: Redis is away, or what waits is held back."""
        self._refusal: tuple[str, float] | None = None
        self._told_to_refuse: tuple[str, float] | None = None
        self.on_refusal: Callable[[str], None] = _log_refusal
        """Called with Redis's text when it refuses a write."""
        self.on_taken: Callable[[], None] = _nothing
        """Called when it takes writes again after that."""
        self.on_redirected: Callable[[Publication, str], None] | None = None
        """Takes over a publication that a Redis Cluster wants elsewhere, with what it said."""
        self.on_overtaken: Callable[[Publication], None] | None = None
        """Set while rooms' detours wait for what is under way here: called with what is stored meanwhile."""
        self.while_blocking: Callable[[], None] = _nothing
        """Called after each read's replies while that is set."""
        self.after_down: Callable[[], None] = _nothing
        """Called after the connection was lost and what was under way waits again."""

    @property
    def depth(self) -> int:
        """Publications that wait or are under way."""
        return len(self._pending) + len(self._in_flight) + len(self._again) + len(self._stored)

    @property
    def fenced(self) -> bool:
        """Whether a message may be delivered before it is as safe as was asked: then a copy acknowledges
        nothing."""
        return self.needs is not None

    @property
    def waiting_since(self) -> float | None:
        """Since when (loop time) replies are due; None where none are."""
        return self._sent_at if self._in_flight else None

    def head(self, address: RoomAddress) -> bytes:
        """The part of the command that is the same for all of a room's messages."""
        return head_of(address, script=self._script, publish_command=self._publish_command)

    def publish(self, publication: Publication) -> None:
        """Send it with the next batch, at once where none is in flight. The owner hears what became of it."""
        if self._refusal is not None and not self._may_try():
            message, retry_after = self._refusal
            publication.owner.refused(
                publication, "unavailable", message, max(retry_after, self.breaker.retry_after_seconds)
            )
            return
        pending = self._pending
        if len(pending) >= self._queue_size:
            publication.owner.refused(
                publication,
                "unavailable",
                f"{self._queue_size} messages wait for Redis already: send this one again later.",
                self._retry_after(),
            )
            return
        waiting_bytes = self._waiting_bytes + len(publication.body)
        if waiting_bytes > WAITING_BYTES or (publication.channel and self._away):
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
            if publication.channel and self._away
            else f"{WAITING_BYTES} bytes wait for Redis already: send this one again later."
        )
        publication.owner.refused(publication, "unavailable", message, self._retry_after())

    def _retry_after(self) -> float:
        return max(RETRY_AFTER_SECONDS, self.breaker.retry_after_seconds)

    def send_again(self, publication: Publication) -> None:
        """Send one that was taken already, over another shard: it waits, whatever the queue's bounds."""
        self._doubted = self._doubted or publication.retried
        self._waiting_bytes += len(publication.body)
        self._pending.append(publication)
        self._taken += 1
        if not self._in_flight and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._on_turn)
        elif self._in_flight and self._timer is None:
            self._timer = self._loop.call_later(self._delay_seconds, self._on_timer)

    def send_asking(self, publication: Publication) -> bool:
        """Send one to a shard that is about to get its slot; False where there is no connection."""
        connection = self._connection
        if connection is None:
            return False
        if not self._in_flight:
            self._sent_at = self._loop.time()
        self._waiting_bytes += len(publication.body)
        self._taken += 1
        self._in_flight.extend((None, publication))
        connection.write(asking(publication, self._volatile_command))
        return True

    def withdraw(self, wanted: Callable[[Publication], bool]) -> list[Publication]:
        """Give back, in order, what is `wanted` of what waits here: for its turn, or stored, for a fence.

        Whoever has its room now may lack what was stored, and must have it before what comes later.
        """
        taken = self._withdraw_stored(wanted)
        kept: deque[Publication] = deque()
        for publication in self._pending:
            (taken if wanted(publication) else kept).append(publication)
        if taken:
            self._pending = kept
            self._waiting_bytes -= sum(len(publication.body) for publication in taken)
            self._progress.set()
        return taken

    def _withdraw_stored(self, wanted: Callable[[Publication], bool]) -> list[Publication]:
        taken: list[Publication] = []
        kept: deque[tuple[Publication, int, bytes, bool]] = deque()
        covered = self._covered
        for place, stored in enumerate(self._stored):
            publication = stored[0]
            if not wanted(publication):
                kept.append(stored)
                continue
            publication.retried = True
            taken.append(publication)
            self._covered -= place < covered
        if taken:
            self._stored = kept
            self._choose_refusal()
        return taken

    def under_way(self) -> list[Publication]:
        """Those whose reply is due, or that go again first on this connection."""
        return [publication for publication in (*self._in_flight, *self._again) if publication is not None]

    def refuse(self, message: str, retry_after: float) -> None:
        """Until `take`, refuse publications as `unavailable`; those too that wait and were never sent."""
        self._told_to_refuse = (message, retry_after)
        self._choose_refusal()
        if self._connection is None or self._held:
            self._refuse_waiting(message, retry_after)

    def take(self) -> None:
        """Take publications (again)."""
        self._told_to_refuse = None
        self._choose_refusal()

    def _choose_refusal(self) -> None:
        """One field for the path of every message to look at."""
        if self._told_to_refuse is not None:
            self._refusal = self._told_to_refuse
        elif self._hindrance and self.breaker.state == "open":
            self._refusal = (self._hindrance, RETRY_AFTER_SECONDS)
        elif self._away and not self._queueing:
            self._refusal = (self._hindrance or _NO_QUEUE, RETRY_AFTER_SECONDS)
        elif len(self._stored) >= FENCED_MOST:
            self._refusal = (f"{FENCED_MOST} messages wait to be safe: send this one later.", 1.0)
        else:
            self._refusal = None

    def _may_try(self) -> bool:
        """Whether this publication is the one that tries whether a Redis that refused takes writes again."""
        if self._told_to_refuse is not None or self._connection is None or not self._hindrance:
            return False
        if self.depth or not self.breaker.may_try():
            return False
        self._choose_refusal()
        return True

    def _refuse_waiting(self, message: str, retry_after: float) -> None:
        """What waits and was never sent; what was sent may be stored, and only Redis can tell."""
        waiting, self._pending = self._pending, deque()
        for publication in waiting:
            if publication.retried:
                self._pending.append(publication)
            else:
                self._refuse_one(publication, message, retry_after)
        self._progress.set()

    def _refuse_one(self, publication: Publication, message: str, retry_after: float) -> None:
        self._waiting_bytes -= len(publication.body)
        publication.owner.refused(publication, "unavailable", message, retry_after)

    async def settled(self) -> None:
        """Wait until nothing of what is here now waits or is under way, whatever comes meanwhile."""
        target = self._taken
        while self._taken - self.depth < target:
            self._progress.clear()
            await self._progress.wait()

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:
        """From the link."""
        await connection.ask(b"SCRIPT", b"LOAD", self._script.text)
        connection.receive = self._on_reply
        connection.after_replies = self._after_replies
        self._connection = connection
        # 6.2 has no SPUBLISH: the script finds that out by itself
        self._volatile_command = self._publish_command if facts.compatible >= (7, 0) else b"PUBLISH"
        self._run_id = facts.run_id
        self._away = False
        self._release()
        self._choose_refusal()
        self._doubt_keys()
        self._send()

    def on_down(self) -> None:
        """From the link. What had no reply may or may not be stored: it goes again, first, with its key. So
        does what no fence has covered: the server may come back without it."""
        self._connection = None
        self._leaving = False
        self._away = True
        for publication in self._in_flight:
            if publication is not None:
                publication.retried = True
                self._again.append(publication)
        self._in_flight.clear()
        self._void = True
        self._go_again()
        self._release()
        self._refuse_volatile()
        self._choose_refusal()
        if not self._queueing:
            self._refuse_waiting(_NO_QUEUE, self._retry_after())
        self._progress.set()
        self.after_down()

    def _go_again(self) -> None:
        """Everything that has to, before what was never sent, in the order in which it was sent."""
        again = self._again
        if self._void:
            for publication, _, _, _ in self._stored:
                publication.retried = True
            again = [publication for publication, _, _, _ in self._stored] + again
            self._stored.clear()
            self._covered = 0
            self._void = False
            self._choose_refusal()
        self._again = []
        self._doubted = self._doubted or bool(again)
        self._pending.extendleft(reversed(again))

    def _doubt_keys(self) -> None:
        """What waited may have been sent over another instance meanwhile, where the client named the key."""
        for publication in self._pending:
            if publication.others_may_send_it:
                publication.retried = True
        self._doubted = bool(self._pending)

    def _refuse_volatile(self) -> None:
        if any(publication.channel for publication in self._pending):
            waiting, self._pending = self._pending, deque()
            for publication in waiting:
                if publication.channel:
                    self._refuse_one(publication, _VOLATILE, self._retry_after())
                else:
                    self._pending.append(publication)

    # What Redis refuses for now

    def _hold(self) -> None:
        """Redis refuses for now: wait, and try again with one publication; or give up."""
        self._attempts += 1
        self.breaker.failed()
        if self.breaker.state == "open" or not self._queueing:
            self._give_up()
            return
        self._held = self._away = True
        self._refuse_volatile()
        self._attempt_at = self._loop.time() + backoff_seconds(
            self._attempts - 1, first=self._retry_delay_seconds, longest=LONGEST_OPEN_SECONDS
        )
        if self._flush is None:
            self._flush = self._loop.call_later(self._flush_seconds, self._on_flush)

    def _on_flush(self) -> None:
        """(Every `queueFlushInterval` while something is held.)"""
        self._flush = None
        if not self._held:
            return
        if self._loop.time() < self._attempt_at or self._in_flight:
            self._flush = self._loop.call_later(self._flush_seconds, self._on_flush)
            return
        self._held = self._away = False
        self._doubt_keys()
        self._send()

    def _give_up(self) -> None:
        """Tried often enough: answer everybody who waits, and leave Redis alone for a while."""
        message, retry_after = self._hindrance, self._retry_after()
        self._release()
        waiting, self._pending = self._pending, deque()
        for publication in waiting:
            # what is in doubt was in doubt before: a resend by the client, with its key, finds out
            self._refuse_one(publication, message, retry_after)
        self._choose_refusal()
        self._progress.set()

    def _release(self) -> None:
        """Nothing is held any more."""
        self._attempts = 0
        self._held = False
        self._away = self._connection is None
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None

    def on_taking_writes(self) -> None:
        """Redis takes writes again."""
        if not self._hindrance:
            self.on_taken()
            return
        self._hindrance = ""
        self.breaker.succeeded()
        self._release()
        self._choose_refusal()
        self.on_taken()
        if not self._in_flight:
            self._send()

    # The fence

    def attach_fence(self, fence: Fence) -> None:
        """What `needs` is waited for with."""
        self._fence = fence
        fence.on_ready = self._raise_fence
        fence.on_passed = self._on_fence_passed
        fence.on_void = self._on_fence_void
        fence.on_unmet = self._on_fence_unmet

    def _raise_fence(self) -> None:
        fence, connection = self._fence, self._connection
        if (
            fence is None
            or not fence.connected
            or fence.busy
            or self._void
            or not self._stored
            or self.needs is None
            or connection is None
        ):
            return
        if fence.run_id != self._run_id:
            # two processes answer at one address: one of the two connections is about to end
            fence.abort()
            return
        self._covered = len(self._stored)
        fence.begin(self.needs)

    def _on_fence_passed(self) -> None:
        stored = self._stored
        for _ in range(self._covered):
            publication, seq, tag, duplicate = stored.popleft()
            self._waiting_bytes -= len(publication.body)
            publication.owner.published(publication, seq, tag, duplicate)
        self._fence_ended()

    def _on_fence_unmet(self, what: str) -> None:
        stored = self._stored
        for _ in range(self._covered):
            publication, _, _, _ = stored.popleft()
            self._refuse_one(
                publication,
                f"{what}: send the message again, with its key.",
                self._retry_after(),
            )
        self._fence_ended()

    def _fence_ended(self) -> None:
        was_full = len(self._stored) + self._covered >= FENCED_MOST
        self._covered = 0
        self._stored_at = self._loop.time()
        self._progress.set()
        if was_full:
            self._choose_refusal()
        self._raise_fence()

    def _on_fence_void(self) -> None:
        self._covered = 0
        if self._stored and self._connection is not None:
            self._void = True
            if not self._in_flight:
                self._go_again()
                self._send()

    def look_at_fence(self) -> None:
        """To be called now and then: where no fence comes about, whoever waits for one is told."""
        fence = self._fence
        if (
            fence is None
            or not self._stored
            or fence.busy
            or self._loop.time() - self._stored_at < WAIT_SECONDS
        ):
            return
        self._covered = len(self._stored)
        self._on_fence_unmet("Redis has the message, and whether it is safe there cannot be asked")

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
        if connection is None or self._again or self._void or self._held or self._leaving:
            return  # what has to go again goes first, as soon as nothing is in flight
        pending, in_flight = self._pending, self._in_flight
        room_left = BATCHES_IN_FLIGHT * self._batch_size - len(in_flight)
        count = min(len(pending), self._batch_size, room_left)
        if self._hindrance:
            count = min(count, 1 - len(in_flight))  # one tries, the others follow
        if count <= 0:
            return
        if self._doubted:
            self._send_wanted(connection, count)
            return
        if not in_flight:
            self._sent_at = self._loop.time()
        if count == 1:
            batch = [pending.popleft()]
            in_flight.append(batch[0])
        else:
            batch = [pending.popleft() for _ in range(count)]
            in_flight.extend(batch)
        connection.write(commands(batch, self._volatile_command))

    def _send_wanted(self, connection: RedisConnection, count: int) -> None:
        """The same where some have waited for Redis, or are in doubt: without those that a client has named a
        key for and waits for no longer. It may have sent them over another instance and gone on from there,
        whatever it heard; stored now, they could follow what it sent later."""
        batch: list[Publication] = []
        dropped: list[Publication] = []
        pending = self._pending
        while pending and len(batch) < count:
            publication = pending.popleft()
            resent = publication.others_may_send_it and publication.retried
            (dropped if resent and publication.owner.abandoned else batch).append(publication)
        self._doubted = bool(pending)
        if batch:
            if not self._in_flight:
                self._sent_at = self._loop.time()
            self._in_flight.extend(batch)
            connection.write(commands(batch, self._volatile_command))
        if dropped:
            _log.info("abandoned_publishes_dropped", count=len(dropped))
            for publication in dropped:
                self._refuse_one(publication, ABANDONED, RETRY_AFTER_SECONDS)
            self._progress.set()

    def _on_reply(self, reply: Reply) -> None:
        publication = self._in_flight.popleft()
        if publication is None:
            return
        if type(reply) is list:
            seq, tag, duplicate = reply
            if self._hindrance:
                self.on_taking_writes()
            if seq < 0:
                self._waiting_bytes -= len(publication.body)
                publication.owner.refused(publication, "unknown_key", _UNKNOWN, None)
                return
            if self._again and not duplicate:
                self._overtaken(publication)
            if self.on_overtaken is not None and not duplicate:
                self.on_overtaken(publication)
            if self.needs is None:
                self._waiting_bytes -= len(publication.body)
                publication.owner.published(publication, seq, tag, duplicate == 1)
            else:
                self._await_fence(publication, seq, tag, duplicate == 1)
            return
        if isinstance(reply, ReplyError):
            self._on_error(publication, refusal_in(reply))
            return
        self._waiting_bytes -= len(publication.body)
        if publication.channel:
            publication.owner.published(publication, 0, b"", False)
        else:
            self._fail(publication, f"Redis answered {type(reply).__name__} to a publish")

    def _await_fence(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:
        stored = self._stored
        if not stored:
            self._stored_at = self._loop.time()
        stored.append((publication, seq, tag, duplicate))
        if len(stored) == FENCED_MOST:
            self._choose_refusal()

    def _overtaken(self, publication: Publication) -> None:
        """Redis refused, and then took a later one of the same room: the earlier ones must not follow it."""
        earlier = [other for other in self._again if other.head == publication.head]
        if earlier:
            self._again = [other for other in self._again if other.head != publication.head]
            for other in earlier:
                self._refuse_one(other, OVERTAKEN, RETRY_AFTER_SECONDS)

    def _on_error(self, publication: Publication, text: str) -> None:
        code = text.split(" ", 1)[0]
        if code in REDIRECTED and self.on_redirected is not None:
            self._waiting_bytes -= len(publication.body)
            self.on_redirected(publication, text)
        elif publication.channel and code in (*RETRIED, *REFUSING):
            self._refuse_one(publication, f"Redis refuses it at the moment ({code}).", self._retry_after())
        elif code in RETRIED:
            self._again.append(publication)
            if code == "NOSCRIPT" and len(self._again) == 1 and self._connection is not None:
                self._in_flight.append(None)
                self._connection.write(pack(b"SCRIPT", b"LOAD", self._script.text))
            elif code != "NOSCRIPT" and self._connection is not None:
                self._leaving = True
                self._connection.abort()
        elif code in REFUSING:
            self._hindrance = (
                f"Redis refuses writes at the moment ({_MEANING[code]}): send this one again later."
            )
            self._again.append(publication)
            self.on_refusal(text)
        elif code in ("NOPERM", "NOAUTH", "DENIED"):
            self.on_refusal(text)
            self._refuse_one(
                publication,
                f"Redis refuses writes at the moment ({code}): send this one again later.",
                self._retry_after(),
            )
        else:
            self._waiting_bytes -= len(publication.body)
            self._fail(publication, text)

    def _fail(self, publication: Publication, text: str) -> None:
        _log.error("publish_failed", reply=text)
        publication.owner.refused(
            publication, "internal", "The message could not be stored: the instance's log says why.", None
        )

    def _after_replies(self) -> None:
        self._progress.set()
        if self.on_overtaken is not None:
            self.while_blocking()
        if self._stored:
            self._raise_fence()
        if self._in_flight:
            self._sent_at = self._loop.time()
            return
        if self._again or self._void:
            refused = bool(self._again) and bool(self._hindrance)
            self._go_again()
            if refused:
                self._hold()
        if self._pending:
            self._send()


def _nothing() -> None:
    return None
