"""The load generator: raw sockets on uvloop that do as little as they can, the same for every server.

One core is enough for it beside any of the servers on the other: a message that arrives costs it one read and
one count of bytes (about 4 µs), one that is sent one write. It decodes nothing.
"""

import asyncio
import dataclasses
import gc
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

from benchmarks.dialects import Dialect

TICKS: Final = os.sysconf("SC_CLK_TCK")

PAYLOAD_BYTES: Final = 128

TEXT: Final = b"x" * (PAYLOAD_BYTES - 2)
"""As JSON, with its quotes, 128 bytes."""

OPENED_AT_ONCE: Final = 20
OPENING_SECONDS: Final = 30.0

SEND_EVERY_SECONDS: Final = 0.001
"""How finely a given rate is spread."""

_REQUEST: Final = (
    "GET {path} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

Address = tuple[str, int]


class LoadError(RuntimeError):
    """A server did not do what the conversation needs."""


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process, all its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_seconds() -> float:
    """CPU time so far of everything on this machine."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Who is where."""

    rooms: int
    members: int
    """In each room."""
    rooms_each: int = 1
    """Every connection is in so many rooms, together with the same others."""


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, dialect: Dialect, rooms: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        self._dialect = dialect
        self._rooms = rooms
        self._marker = dialect.message
        self._head = b""
        self._awaited = b"\r\n\r\n"
        self._joined = 0
        self.ready: asyncio.Future[None] = loop.create_future()
        self.received = 0
        """Messages so far."""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the event loop."""
        self.transport = cast("asyncio.Transport", transport)
        room = self._rooms[0] if self._rooms else ""
        self.transport.write(_REQUEST.format(path=self._dialect.path(room)).encode())

    def connection_lost(self, exc: Exception | None) -> None:
        """From the event loop."""
        if not self.ready.done():
            self.ready.set_exception(LoadError(f"closed before it was ready: {exc or self._head[:200]!r}"))

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        if not self.ready.done():
            self._on_answer(data)
            return
        copies = data.count(self._marker)
        if copies:
            self.received += copies
        elif data[: len(self._dialect.ping)] == self._dialect.ping:
            self.transport.write(self._dialect.pong)

    def _on_answer(self, data: bytes) -> None:
        dialect = self._dialect
        self._head += data
        if self._awaited == b"\r\n\r\n":
            head, separator, rest = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            if b" 101 " not in head:
                self.ready.set_exception(LoadError(f"refused: {self._head[:300]!r}"))
                return
            self._head, self._awaited = rest, dialect.welcome
            if dialect.hello:
                self.transport.write(dialect.hello)
        if self._awaited == dialect.welcome and dialect.welcome in self._head:
            self._head, self._awaited = b"", dialect.joined
            if dialect.join is not None:
                self.transport.write(b"".join(map(dialect.join, self._rooms)))
        if self._awaited == dialect.joined:
            expected = 0 if dialect.join is None else len(self._rooms)
            if self._head.count(dialect.joined or b"-") >= expected:
                self._head = b""
                self.ready.set_result(None)


class Publisher(Client):
    """The client of each room that publishes; it is the only one, so each message is its own."""

    def __init__(self, dialect: Dialect, rooms: Sequence[str]) -> None:
        super().__init__(dialect, rooms)
        self._frames = [dialect.publish(room, TEXT) for room in rooms]
        self._next = 0
        self._tail = b""
        self._now = time.perf_counter  # uvloop's clock has milliseconds
        self.closed_loop = False
        """Whether each copy that comes back makes a new message."""
        self.sent_at: deque[float] = deque()
        """When each message left that has not come back."""
        self.latencies: list[float] = []
        """Seconds from a message's departure until its copy is back."""

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        if not self.ready.done():
            self._on_answer(data)
            return
        # a marker cut in two would stop a closed loop for good
        whole = self._tail + data
        copies = whole.count(self._marker)
        self._tail = whole[1 - len(self._marker) :] if copies == 0 or whole[-1:] != b"}" else b""
        if copies:
            self.received += copies
            now = self._now()
            for _ in range(min(copies, len(self.sent_at))):
                self.latencies.append(now - self.sent_at.popleft())
            if self.closed_loop:
                self.send(copies)
        elif data[: len(self._dialect.ping)] == self._dialect.ping:
            self.transport.write(self._dialect.pong)

    def send(self, count: int) -> None:
        """Publish so many."""
        frames, at = self._frames, self._next
        out = [frames[(at + index) % len(frames)] for index in range(count)]
        self._next = (at + count) % len(frames)
        now = self._now()
        self.sent_at.extend([now] * count)
        self.transport.write(out[0] if count == 1 else b"".join(out))


def _same(client: Client) -> Callable[[], Client]:
    return lambda: client


class Load:
    """The clients of one run."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._loop = asyncio.get_running_loop()
        self._publishers: list[Publisher] = []
        self._members: list[Client] = []
        self._timer: asyncio.TimerHandle | None = None
        self._rate = 0.0
        self._began = 0.0
        self._sent = 0

    async def open(self, addresses: Sequence[Address], shape: Shape) -> None:
        """Connect and join; a room's members are spread over the addresses. Raises LoadError."""
        waiting: list[tuple[Client, Address]] = []
        for first in range(0, shape.rooms, shape.rooms_each):
            names = [f"room-{room}" for room in range(first, min(first + shape.rooms_each, shape.rooms))]
            for member in range(shape.members):
                client: Client
                if member == 0:
                    client = publisher = Publisher(self._dialect, names)
                    self._publishers.append(publisher)
                else:
                    client = Client(self._dialect, names)
                    self._members.append(client)
                waiting.append((client, addresses[(first + member) % len(addresses)]))
        await self._connect(waiting)

    async def connect(self, address: Address, count: int) -> None:
        """Connect clients that join nothing. Raises LoadError."""
        clients = [Client(self._dialect, [""] if self._dialect.join is None else []) for _ in range(count)]
        self._members.extend(clients)
        await self._connect([(client, address) for client in clients])

    async def _connect(self, waiting: list[tuple[Client, Address]]) -> None:
        left = iter(waiting)

        async def some() -> None:
            for client, (host, port) in left:
                await self._loop.create_connection(_same(client), host, port)
                async with asyncio.timeout(OPENING_SECONDS):
                    await client.ready

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(OPENED_AT_ONCE, len(waiting))):
                    group.create_task(some())
        except* (OSError, TimeoutError, LoadError) as errors:
            raise LoadError(f"{type(errors.exceptions[0]).__name__}: {errors.exceptions[0]}") from None
        gc.collect()
        gc.freeze()

    def keep_outstanding(self, count: int) -> None:
        """Each publisher sends a new message whenever one came back, so that `count` are under way."""
        for publisher in self._publishers:
            publisher.closed_loop = True
            publisher.send(count)

    def keep_rate(self, per_second: float) -> None:
        """All publishers together send so many a second, in turn, whether or not they come back."""
        self._rate, self._began, self._sent = per_second, self._loop.time(), 0
        if self._timer is None:
            self._on_timer()

    def _on_timer(self) -> None:
        publishers = self._publishers
        due = int((self._loop.time() - self._began) * self._rate)
        for index in range(self._sent, due):
            publisher = publishers[index % len(publishers)]
            if not publisher.transport.is_closing():  # `lost` has it
                publisher.send(1)
        self._sent = due
        self._timer = self._loop.call_later(SEND_EVERY_SECONDS, self._on_timer)

    @property
    def messages(self) -> int:
        """Published and come back, so far."""
        return sum(publisher.received for publisher in self._publishers)

    @property
    def lost(self) -> int:
        """Connections that the server has closed: those that it counts as too slow, under too much load."""
        return sum(client.transport.is_closing() for client in (*self._publishers, *self._members))

    @property
    def under_way(self) -> int:
        """Sent and not come back."""
        return sum(len(publisher.sent_at) for publisher in self._publishers)

    @property
    def deliveries(self) -> int:
        """Messages received by anybody, so far."""
        return self.messages + sum(client.received for client in self._members)

    def take_latencies(self) -> list[float]:
        """Seconds of every message since the last call, sorted."""
        found: list[float] = []
        for publisher in self._publishers:
            found += publisher.latencies
            publisher.latencies = []
        return sorted(found)

    async def close(self) -> None:
        """Drop all connections."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for client in [*self._publishers, *self._members]:
            if not client.ready.done():
                client.ready.cancel()
            elif not client.ready.cancelled():
                client.ready.exception()  # looked at: nobody else will
            if hasattr(client, "transport"):
                client.transport.abort()
        self._publishers.clear()
        self._members.clear()
        gc.unfreeze()
        await asyncio.sleep(0.2)
