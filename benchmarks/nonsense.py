"""What it costs an instance and its other clients when somebody sends nonsense and comes back at once.

`python -m benchmarks.nonsense`: three sockets send frames of 100 KB that mean nothing, as fast as they are
read, and connect again as soon as they are closed; a neighbour in the same instance measures how long a
publish takes to come back. With `--cheap` they only connect again and again.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Sequence

from websockets.asyncio.client import connect

from benchmarks.load import cpu_seconds
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer

ATTACKERS = 3
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
NONSENSE = b"\x81\xff" + (100_000).to_bytes(8) + b"\0\0\0\0" + b"x" * 100_000


async def attack(port: int, frame: bytes, seconds: float) -> int:
    """How many connections were made."""
    attempts = 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        attempts += 1
        writer = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.2", port, local_addr=("127.0.0.2", 0))
            writer.write(HANDSHAKE)
            answer = await reader.read(65_536)
            while answer.startswith(b"HTTP/1.1 101") and frame and time.monotonic() < ends:
                writer.write(frame)
                await writer.drain()
                if reader.at_eof():
                    break
        except OSError:
            continue
        finally:
            if writer is not None:
                writer.transport.abort()
    return attempts


def attackers(port: int, frame: bytes, seconds: float) -> None:
    """A process of their own: what they do must not delay the neighbour's clock."""

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(attack(port, frame, seconds) for _ in range(ATTACKERS)))

    with contextlib.suppress(KeyboardInterrupt):
        print(f"{sum(asyncio.run(all_of_them())) / seconds:.1f} connections a second")


async def neighbour(process: DataplaneProcess, seconds: float) -> list[float]:
    """Milliseconds from publish to delivery, ten a second."""
    found: list[float] = []
    async with connect(process.url, compression=None) as socket:
        await socket.send('{"type":"join","room":"a"}')
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.perf_counter()
            await socket.send('{"type":"publish","room":"a","event":"e","data":1}')
            while '"message"' not in str(await socket.recv()):
                pass
            found.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.05)
    return found


async def run(seconds: float, cheap: bool) -> None:
    """Quiet first, then with the attack."""
    async with RedisServer() as redis:
        fleet = DataplaneFleet()
        (process,) = await fleet(
            redis,
            1,
            WS_HOST="0.0.0.0",  # noqa: S104
            TABLEFORGE_SECURITY_TRUSTED_PROXIES="none",
            TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE="100000",
        )
        try:
            quiet = await neighbour(process, seconds / 2)
            attacking = multiprocessing.get_context("spawn").Process(
                target=attackers, args=(process.port, b"" if cheap else NONSENSE, seconds + 1)
            )
            attacking.start()
            await asyncio.sleep(1.0)
            before, began = cpu_seconds(process.pid), time.monotonic()
            loud = await neighbour(process, seconds)
            share = (cpu_seconds(process.pid) - before) / (time.monotonic() - began)
            await asyncio.to_thread(attacking.join)
        finally:
            await fleet.stop()
    middle = f"median {statistics.median(quiet):.2f} -> {statistics.median(loud):.2f} ms"
    slow = [statistics.quantiles(times, n=100)[98] for times in (quiet, loud)]
    print(f"{middle}, p99 {slow[0]:.1f} -> {slow[1]:.1f} ms; {share:.0%} of a core")


def main(arguments: Sequence[str] | None = None) -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cheap", action="store_true", help="only connect, again and again")
    options = parser.parse_args(arguments)
    asyncio.run(run(options.seconds, options.cheap))


if __name__ == "__main__":
    main()
