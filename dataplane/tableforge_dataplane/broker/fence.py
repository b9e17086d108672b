"""What makes replies of Redis as safe as was asked: a write that comes after them, and the wait for its sync.

Redis's `WAITAOF` and `WAIT` cover the writes of their own connection only. So the fence has a connection of
its own: one small write there, sent when the replies of a batch are in, has a later place in Redis's history
than that batch, and what makes this write safe has made the batch safe. What arrives while a fence is under
way is covered by the next one. (300,000 publishes/s, where `WAITAOF` on the publishing connection after each
batch managed 940.)
"""

import dataclasses
from collections.abc import Callable
from typing import Final

from tableforge_dataplane.broker.connection import RedisConnection, Reply, ReplyError, pack
from tableforge_dataplane.broker.state import ServerFacts
from tableforge_dataplane.observability.logging import EventLog

WAIT_SECONDS: Final = 5.0
"""How long Redis is given to sync, or its replicas to confirm. With `everysec` a sync is at most two away."""

KEY_LIFETIME_MS: Final = 3_600_000

_PASSING: Final = ("OOM", "MISCONF", "NOREPLICAS", "NOPERM", "DENIED")
"""Refusals by the same server in the same role: what it has it still has."""

_log = EventLog("fence")


@dataclasses.dataclass(frozen=True, slots=True)
class Needs:
    """What a fence waits for."""

    disk: bool
    """The primary has synced it."""
    replica: bool
    """One replica has it."""

    def __str__(self) -> str:
        if self.disk and self.replica:
            return "on disk and on a replica"
        return "on disk" if self.disk else "on a replica"


class Fence:
    """The connection of one shard. A `LinkUser`; one round at a time."""

    def __init__(self, key: bytes) -> None:
        """`key`: what the small writes go to; in a Redis Cluster a key of this shard."""
        self.use(key)
        self._connection: RedisConnection | None = None
        self._needs: Needs | None = None
        self._replies: list[Reply] = []
        self._due = 0
        self.run_id = ""
        """Of the server process it is connected to; empty where to none."""
        self.on_ready: Callable[[], None] = _nothing
        """Called when it is connected."""
        self.on_passed: Callable[[], None] = _nothing
        """Called when everything that Redis had answered before `begin` is as safe as was asked."""
        self.on_void: Callable[[], None] = _nothing
        """Called when nobody can tell: the connection was lost, or the server isn't what it was."""
        self.on_unmet: Callable[[str], None] = _nothing_with
        """Called with a sentence on why when Redis doesn't get there (in time)."""

    def use(self, key: bytes) -> None:
        """Write to this key from now on: the former one's slot went to another shard."""
        self._write = pack(b"SET", key, b"", b"PX", KEY_LIFETIME_MS)

    @property
    def busy(self) -> bool:
        """Whether a round is under way."""
        return self._needs is not None

    @property
    def connected(self) -> bool:
        """Whether a round can begin."""
        return self._connection is not None

    def begin(self, needs: Needs) -> None:
        """Begin a round; only while connected and not busy."""
        if self._connection is None or self._needs is not None:
            raise RuntimeError("a fence was begun without a connection or while one is under way")
        self._needs = needs
        self._replies.clear()
        out = [self._write]
        wait_ms = int(WAIT_SECONDS * 1000)
        if needs.disk:
            out.append(pack(b"WAITAOF", 1, 0, wait_ms))
        if needs.replica:
            out.append(pack(b"WAIT", 1, wait_ms))
        self._due = len(out)
        self._connection.write(b"".join(out))

    def abort(self) -> None:
        """Drop the connection; `on_void` follows where a round is under way, and a new connection."""
        if self._connection is not None:
            self._connection.abort()

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:
        """From the link."""
        connection.receive = self._on_reply
        self._connection = connection
        self.run_id = facts.run_id
        self.on_ready()

    def on_down(self) -> None:
        """From the link."""
        self._connection = None
        self.run_id = ""
        if self._needs is not None:
            self._needs = None
            self.on_void()

    def _on_reply(self, reply: Reply) -> None:
        self._replies.append(reply)
        needs = self._needs
        if needs is None or len(self._replies) < self._due:
            return
        for reply in self._replies:
            if isinstance(reply, ReplyError):
                self._on_error(str(reply))
                return
        self._needs = None
        waits = self._replies[1:]
        synced = not needs.disk or _first(waits[0]) >= 1
        copied = not needs.replica or _first(waits[-1]) >= 1
        if synced and copied:
            self.on_passed()
        else:
            missing = Needs(disk=not synced, replica=not copied)
            self.on_unmet(f"Redis could not say within {WAIT_SECONDS:g} s that it is {missing}")

    def _on_error(self, text: str) -> None:
        code = text.split(" ", 1)[0]
        _log.warning("fence_refused", reply=text)
        if code in _PASSING or code == "ERR":
            self._needs = None
            self.on_unmet(f"Redis cannot say that it is safe ({text})")
        else:
            self.abort()


def _first(reply: Reply) -> int:
    """The count in WAITAOF's answer (its first number, local syncs) or WAIT's."""
    if isinstance(reply, list):
        reply = reply[0] if reply else 0
    return reply if isinstance(reply, int) else 0


def _nothing() -> None:
    return None


def _nothing_with(_text: str) -> None:
    return None
