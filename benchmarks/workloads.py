"""What is measured of every server, side by side: CPU per unit of work, and memory."""

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable
from typing import Final

from benchmarks.contestants import Contestant, Running, running
from benchmarks.installation import Installed
from benchmarks.load import Load, LoadError, Shape, busy_seconds, cpu_seconds, resident_bytes

WARM_UP_SECONDS: Final = 1.0
WARM_UP_CONNECTIONS: Final = 500
CONNECTIONS: Final = 4000
SETTLE_SECONDS: Final = 3.0

Values = dict[str, float]
"""Named figures of one run; CPU in µs, latencies in ms, memory in KB."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """One row of the table."""

    name: str
    title: str
    figure: str
    """Which of the values is the row's."""
    unit: str
    run: Callable[[Running, Contestant, float], Awaitable[Values]]
    measured_with: str | None = None
    """The workload whose runs have this row's figure too."""


async def measure(load: Load, servers: Running, seconds: float) -> Values:
    """What happens in the next seconds, in whatever state the load is.

    Raises LoadError where the server closes connections, or nothing comes back: that is no figure.
    """
    load.take_latencies()
    loop = asyncio.get_running_loop()
    began, own, everything = loop.time(), cpu_seconds(os.getpid()), busy_seconds()
    cpu, redis = servers.cpu(), servers.redis_cpu()
    messages, deliveries = load.messages, load.deliveries
    await asyncio.sleep(seconds)
    took = loop.time() - began
    cpu, redis = servers.cpu() - cpu, servers.redis_cpu() - redis
    own, everything = cpu_seconds(os.getpid()) - own, busy_seconds() - everything
    messages, deliveries = load.messages - messages, load.deliveries - deliveries
    if load.lost:
        raise LoadError(f"it closed {load.lost} connections at {messages / took:,.0f} messages a second")
    if not messages:
        raise LoadError(f"no message came back in {seconds} s")
    latencies = load.take_latencies()
    return {
        "messages_per_second": messages / took,
        "deliveries_per_message": deliveries / messages,
        "cpu_per_message": cpu / messages * 1e6,
        "cpu_per_delivery": cpu / deliveries * 1e6,
        "redis_cpu_per_message": redis / messages * 1e6,
        "cores": cpu / took,
        "generator_cores": own / took,
        "others_cores": max(0.0, everything - own - cpu - redis) / took,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
    }


def _rooms(shape: Shape, outstanding: int) -> Callable[[Running, Contestant, float], Awaitable[Values]]:
    async def run(servers: Running, contestant: Contestant, seconds: float) -> Values:
        load = Load(contestant.dialect)
        try:
            await load.open(servers.addresses, shape)
            load.keep_outstanding(outstanding)
            await asyncio.sleep(WARM_UP_SECONDS)
            return await measure(load, servers, seconds)
        finally:
            await load.close()

    return run


async def _connections(servers: Running, contestant: Contestant, _seconds: float) -> Values:
    load = Load(contestant.dialect)
    await load.connect(servers.addresses[0], WARM_UP_CONNECTIONS)
    await load.close()
    await asyncio.sleep(WARM_UP_SECONDS)
    cpu, memory = servers.cpu(), sum(map(resident_bytes, servers.pids))
    try:
        await load.connect(servers.addresses[0], CONNECTIONS)
        cpu = servers.cpu() - cpu
        await asyncio.sleep(SETTLE_SECONDS)
        memory = sum(map(resident_bytes, servers.pids)) - memory
    finally:
        await load.close()
    return {
        "cpu_per_connection": cpu / CONNECTIONS * 1e6,
        "memory_per_connection": memory / CONNECTIONS / 1024,
    }


ALL: Final = (
    Workload(
        "room-4",
        "one room, 500 members, 4 outstanding: CPU per delivery",
        "cpu_per_delivery",
        "µs",
        _rooms(Shape(rooms=1, members=500), 4),
    ),
    Workload(
        "room-16",
        "the same, 16 outstanding",
        "cpu_per_delivery",
        "µs",
        _rooms(Shape(rooms=1, members=500), 16),
    ),
    Workload(
        "rooms",
        "200 rooms of 5: CPU per message (5 deliveries)",
        "cpu_per_message",
        "µs",
        _rooms(Shape(rooms=200, members=5), 1),
    ),
    Workload("connections", "CPU per accepted connection", "cpu_per_connection", "µs", _connections),
    Workload(
        "memory",
        "memory per idle connection",
        "memory_per_connection",
        "KB",
        _connections,
        measured_with="connections",
    ),
)


async def run(
    workload: Workload, contestant: Contestant, installed: Installed | None, *, seconds: float
) -> Values:
    """One run on servers of its own. Raises DidNotStartError and LoadError."""
    async with running(contestant, installed) as servers:
        return await workload.run(servers, contestant, seconds)
