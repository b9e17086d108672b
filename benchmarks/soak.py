"""Memory over time at a bounded load: clients join, leave, publish and reconnect, for as long as asked.

`python -m benchmarks.soak --minutes 60` prints the instance's resident memory every minute, and fails where
it grows: the last third's median may lie so much above that of the third before it, and no more. After half
an hour everything has warmed up that will: from then on hardly anything may be added.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import statistics
import sys
from typing import Any

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from benchmarks.contestants import UNLIMITED
from benchmarks.load import resident_bytes
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer

ROOMS = 200
STEP_SECONDS = 0.05
"""Between two things that a client does, on average ten times as long."""

LONG_SECONDS = 1800.0


@dataclasses.dataclass(frozen=True)
class Bound:
    """How far the last third may lie above the one before it."""

    share: float
    spare_bytes: int
    """Whatever the share: a heap is never quite still."""

    def __call__(self, before_bytes: float) -> float:
        return before_bytes * (1 + self.share) + self.spare_bytes


SHORT = Bound(share=0.05, spare_bytes=4_194_304)
"""Of a minute's run, most of which is warming up."""

LONG = Bound(share=0.005, spare_bytes=524_288)
"""Of 75 MB 0.9 MB in twenty minutes; an hour's run stayed between 75.0 and 75.6 MB after its first third."""


@dataclasses.dataclass
class Done:
    """What the clients did."""

    connections: int = 0
    joins: int = 0
    publishes: int = 0
    received: int = 0


async def _client(server: DataplaneProcess, done: Done, seed: int) -> None:
    """Comes, does this and that, goes without or with a good-bye, and comes again with its positions."""
    rng = random.Random(seed)  # noqa: S311
    positions: dict[str, str] = {}
    while True:
        options: dict[str, Any] = {} if rng.random() < 0.5 else {"compression": None}
        try:
            socket = await connect(
                f"ws://{server.host}:{server.port}/ws", ping_interval=None, close_timeout=1, **options
            )
        except (OSError, InvalidHandshake):
            await asyncio.sleep(1.0)
            continue
        done.connections += 1
        reading = asyncio.create_task(_read(socket, positions, done))
        try:
            for _ in range(rng.randrange(10, 60)):
                await asyncio.sleep(rng.uniform(0, 20) * STEP_SECONDS)
                await socket.send(json.dumps(_command(rng, positions, done)))
        except ConnectionClosed:
            pass  # the next round begins with a new one
        if rng.random() < 0.3:
            socket.transport.abort()
        await socket.close()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _command(rng: random.Random, positions: dict[str, str], done: Done) -> dict[str, Any]:
    room = f"room-{rng.randrange(ROOMS)}"
    kind = rng.random()
    if kind < 0.3 or not positions:
        done.joins += 1
        command: dict[str, Any] = {"type": "join", "room": room}
        if room in positions:
            command["pos"] = positions[room]
        return command
    chosen = rng.choice(list(positions))
    if kind < 0.45:
        return {"type": "leave", "room": chosen}
    done.publishes += 1
    return {
        "type": "publish",
        "id": done.publishes,
        "room": chosen,
        "event": f"event-{rng.randrange(100)}",
        "data": "x" * rng.choice((10, 100, 1000, 5000)),
        "echo": rng.random() < 0.5,
        "volatile": rng.random() < 0.2,
    }


async def _read(socket: ClientConnection, positions: dict[str, str], done: Done) -> None:
    while True:
        try:
            event = json.loads(await socket.recv())
        except ConnectionClosed:
            return
        if event["type"] == "message":
            done.received += 1
        if event.get("pos") and event.get("room"):
            while len(positions) >= 20:
                positions.pop(next(iter(positions)))
            positions[event["room"]] = event["pos"]


def grown(samples: list[int], *, seconds: float) -> str | None:
    """What is wrong with these, taken over so long, a sentence; None where they are flat. The first third
    warms up."""
    third = len(samples) // 3
    before = statistics.median(samples[third : 2 * third])
    after = statistics.median(samples[2 * third :])
    allowed = (LONG if seconds >= LONG_SECONDS else SHORT)(before)
    if after <= allowed:
        return None
    return f"from {before / 1e6:.1f} to {after / 1e6:.1f} MB, {allowed / 1e6:.1f} MB were allowed"


async def soak(seconds: float, clients: int, *, every_seconds: float = 60.0) -> str | None:
    """Run the load; what `grown` says in the end."""
    done = Done()
    samples: list[int] = []
    fleet = DataplaneFleet()
    async with RedisServer(appendfsync="everysec") as redis:
        try:
            (server,) = await fleet(
                redis, 1, TABLEFORGE_ROOMS_LOG_MAX_MESSAGES="100", **{**UNLIMITED, "LOG_LEVEL": "warning"}
            )
            tasks = [asyncio.create_task(_client(server, done, seed)) for seed in range(clients)]
            loop = asyncio.get_running_loop()
            begun = loop.time()
            said_at = begun
            while loop.time() - begun < seconds:
                await asyncio.sleep(min(1.0, seconds / 60))
                samples.append(resident_bytes(server.pid))
                if loop.time() - said_at >= every_seconds:
                    said_at = loop.time()
                    print(
                        f"{(said_at - begun) / 60:5.1f} min: {samples[-1] / 1e6:6.1f} MB, {done}", flush=True
                    )
            for task in tasks:
                task.cancel()
            failed = [
                error
                for error in await asyncio.gather(*tasks, return_exceptions=True)
                if not isinstance(error, asyncio.CancelledError)
            ]
            if failed:
                return f"a client failed: {failed[0]!r}"
            if not done.received:
                return "no message was ever received"
        finally:
            await fleet.stop()
    print(f"done: {done}; {samples[0] / 1e6:.1f} MB first, {samples[-1] / 1e6:.1f} MB last", flush=True)
    return grown(samples, seconds=seconds)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--clients", type=int, default=50, help="how many at once (50)")
    options = parser.parse_args()
    problem = uvloop.run(soak(options.minutes * 60, options.clients))
    if problem is not None:
        print(f"Memory grew: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
