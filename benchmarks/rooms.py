"""CPU per delivery and per message of one instance, from /proc, at durability Memory.

`python -m benchmarks.rooms` runs: one room of 500 members with 4 and with 16 messages outstanding, 200 rooms
of 5 with one outstanding each, and connections that only connect and stay. Redis's own CPU is given beside
the instance's. Everything is on loopback, so the system's share includes half of what the clients' sockets
cost; compare runs on one machine only.
"""

import argparse
import asyncio
import dataclasses
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import cast

import uvloop

from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer

PAYLOAD_BYTES = 128
TICKS = os.sysconf("SC_CLK_TCK")

UNLIMITED = {
    "WS_MAX_CONNECTIONS": "20000",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND": "1000000",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE": "60000000",
    "TABLEFORGE_SECURITY_MAX_BYTES_PER_SECOND": "1073741824",
}


def cpu_seconds(pid: int) -> tuple[float, float]:
    """User and system CPU time so far of the process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def resident_bytes(pid: int) -> int:
    """Memory of the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class RawClient(asyncio.Protocol):
    """A WebSocket client that does as little as it can, so that both cores are the server's and Redis's."""

    def __init__(self, on_data: Callable[["RawClient", bytes], None]) -> None:
        self.on_data = on_data
        self.transport: asyncio.Transport
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the event loop."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(
            b"GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        if self.joined.done():
            self.on_data(self, data)
            return
        self._head += data
        if not self.opened.done() and b'"welcome"' in self._head:
            self.opened.set_result(None)
        if b'"joined"' in self._head:
            self.joined.set_result(None)

    def send(self, payload: bytes) -> None:
        """A masked text frame; a mask of zeros leaves the payload as it is."""
        length = len(payload)
        header = bytes((0x81, 0x80 | length)) if length < 126 else b"\x81\xfe" + length.to_bytes(2)
        self.transport.write(header + b"\0\0\0\0" + payload)


@dataclasses.dataclass
class Measured:
    """One run."""

    seconds: float
    messages: int
    deliveries: int
    server_user: float
    server_system: float
    redis: float

    def line(self, name: str) -> str:
        """For people."""
        server = self.server_user + self.server_system
        return (
            f"{name}: {self.messages / self.seconds:,.0f} messages/s, "
            f"{self.deliveries / self.seconds:,.0f} deliveries/s; CPU per delivery "
            f"{server / self.deliveries * 1e6:.2f} µs, per message {server / self.messages * 1e6:.1f} µs "
            f"(user {self.server_user / self.messages * 1e6:.1f}, system "
            f"{self.server_system / self.messages * 1e6:.1f}), "
            f"Redis {self.redis / self.messages * 1e6:.1f} µs"
        )


async def rooms(
    server: DataplaneProcess,
    redis: RedisServer,
    *,
    count: int,
    members: int,
    outstanding: int,
    seconds: float,
) -> Measured:
    """`count` rooms of `members`; each room's first member keeps `outstanding` messages under way."""
    loop = asyncio.get_running_loop()
    received = 0
    own = 0
    text = b"x" * (PAYLOAD_BYTES - 2)

    def on_member(_client: RawClient, data: bytes) -> None:
        nonlocal received
        received += data.count(b'"type":"message"')

    def on_publisher(client: RawClient, data: bytes) -> None:
        nonlocal received, own
        copies = data.count(b'"type":"message"')
        received += copies
        own += copies
        for _ in range(copies):
            client.send(frames[client])

    frames: dict[RawClient, bytes] = {}
    clients: list[RawClient] = []
    for room in range(count):
        for member in range(members):
            handler = on_publisher if member == 0 else on_member
            _, client = await loop.create_connection(
                lambda handler=handler: RawClient(handler), server.host, server.port
            )
            await client.opened
            client.send(b'{"type":"join","room":"room-%d"}' % room)
            await client.joined
            clients.append(client)
            if member == 0:
                frames[client] = b'{"type":"publish","id":1,"room":"room-%d","event":"chat","data":"%b"}' % (
                    room,
                    text,
                )
    for client, frame in frames.items():
        for _ in range(outstanding):
            client.send(frame)
    await asyncio.sleep(seconds / 4)
    before, redis_before = cpu_seconds(server.pid), cpu_seconds(redis.pid)
    begun, received_before, own_before = loop.time(), received, own
    await asyncio.sleep(seconds)
    after, redis_after = cpu_seconds(server.pid), cpu_seconds(redis.pid)
    measured = Measured(
        seconds=loop.time() - begun,
        messages=own - own_before,
        deliveries=received - received_before,
        server_user=after[0] - before[0],
        server_system=after[1] - before[1],
        redis=sum(redis_after) - sum(redis_before),
    )
    for client in clients:
        client.transport.abort()
    return measured


async def connections(server: DataplaneProcess, *, count: int) -> tuple[float, float]:
    """CPU seconds per connection made, and bytes of memory per connection that stays."""
    loop = asyncio.get_running_loop()
    before, memory_before = sum(cpu_seconds(server.pid)), resident_bytes(server.pid)
    clients: list[RawClient] = []
    for _ in range(count):
        _, client = await loop.create_connection(
            lambda: RawClient(lambda _client, _data: None), server.host, server.port
        )
        await client.opened
        clients.append(client)
    cost = (sum(cpu_seconds(server.pid)) - before) / count
    memory = (resident_bytes(server.pid) - memory_before) / count
    for client in clients:
        client.transport.abort()
    return cost, memory


async def run(seconds: float, repeats: int) -> None:
    """All workloads, `repeats` times, medians at the end of each line's group."""
    async with RedisServer(appendfsync="everysec") as redis:
        for name, count, members, outstanding in (
            ("one room, 500 members, 4 outstanding", 1, 500, 4),
            ("one room, 500 members, 16 outstanding", 1, 500, 16),
            ("200 rooms of 5", 200, 5, 1),
        ):
            results = []
            for _ in range(repeats):
                fleet = DataplaneFleet()
                try:
                    (server,) = await fleet(redis, 1, **UNLIMITED)
                    measured = await rooms(
                        server, redis, count=count, members=members, outstanding=outstanding, seconds=seconds
                    )
                finally:
                    await fleet.stop()
                print(measured.line(name), flush=True)
                results.append(measured)
            per_delivery = statistics.median(
                (result.server_user + result.server_system) / result.deliveries for result in results
            )
            print(f"  median: {per_delivery * 1e6:.2f} µs per delivery", flush=True)
        fleet = DataplaneFleet()
        try:
            (server,) = await fleet(redis, 1, **UNLIMITED)
            cost, memory = await connections(server, count=2000)
            print(f"per connection: {cost * 1e6:.0f} µs to accept, {memory / 1024:.1f} KB to keep")
        finally:
            await fleet.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each run is measured (4)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each workload (3)")
    options = parser.parse_args()
    uvloop.run(run(options.seconds, options.repeats))


if __name__ == "__main__":
    main()
