"""A TCP proxy that misbehaves on demand: cut, delayed, throttled, silent in one direction or both."""

import asyncio
import contextlib
from typing import Final, Literal, Self

Direction = Literal["to server", "to client"]

DIRECTIONS: Final[tuple[Direction, ...]] = ("to server", "to client")

_CHUNK: Final = 16_384


class FaultProxy:
    """Listens on a port of 127.0.0.1 and carries bytes to `port` there; faults hold for all connections."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        """Where it listens, once started."""
        self.delay_seconds: dict[Direction, float] = dict.fromkeys(DIRECTIONS, 0.0)
        """How much later each piece arrives."""
        self.bytes_per_second: dict[Direction, float | None] = dict.fromkeys(DIRECTIONS, None)
        self._open: dict[Direction, asyncio.Event] = {}
        self._server: asyncio.Server | None = None
        self._carriers: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.accepted = 0
        """Connections ever accepted."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        for direction in DIRECTIONS:
            self._open[direction] = asyncio.Event()
            self._open[direction].set()
        self._server = await asyncio.start_server(self._on_client, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for carrier in self._carriers:
            carrier.cancel()
        await asyncio.gather(*self._carriers, return_exceptions=True)

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        count = len(self._writers) // 2
        for writer in list(self._writers):
            writer.transport.abort()
        return count

    def silence(self, *directions: Direction) -> None:
        """Connections stay open and nothing passes in these directions (all where none is named)."""
        for direction in directions or DIRECTIONS:
            self._open[direction].clear()

    def slow(self, *, delay_seconds: float = 0.0, bytes_per_second: float | None = None) -> None:
        """In both directions, from now on."""
        for direction in DIRECTIONS:
            self.delay_seconds[direction] = delay_seconds
            self.bytes_per_second[direction] = bytes_per_second

    def heal(self) -> None:
        """No faults any more. What was held back goes on."""
        self.slow()
        for direction in DIRECTIONS:
            self._open[direction].set()

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self._writers.add(server_writer)
        for source, sink, direction in (
            (reader, server_writer, DIRECTIONS[0]),
            (server_reader, writer, DIRECTIONS[1]),
        ):
            carrier = asyncio.create_task(self._carry(source, sink, direction, {writer, server_writer}))
            self._carriers.add(carrier)
            carrier.add_done_callback(self._carriers.discard)

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        direction: Direction,
        both: set[asyncio.StreamWriter],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if delay := self.delay_seconds[direction]:
                    await asyncio.sleep(delay)
                if rate := self.bytes_per_second[direction]:
                    await asyncio.sleep(len(data) / rate)
                await self._open[direction].wait()
                if sink.is_closing():
                    break  # what was held back comes too late
                sink.write(data)
                await sink.drain()
        for writer in both:
            self._writers.discard(writer)
            writer.transport.abort()
