"""How cost and latency change with rate, rooms, members, instances and durability: a figure at one size says
little."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from benchmarks.contestants import Contestant, Running, running
from benchmarks.installation import Installed
from benchmarks.load import Load, Shape
from benchmarks.workloads import WARM_UP_SECONDS, Values, measure

SHARES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Of what a closed loop reaches."""

ROOMS: Final = (10, 100, 1000, 10_000)
MEMBERS: Final = (1, 5, 50, 500, 5000)
INSTANCES: Final = (1, 2, 4)

RATE: Final = 2000.0
"""Messages a second where the rate is not what changes: below what every server can do."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One place on a curve."""

    x: float
    values: Values


Points = AsyncIterator[Point]


async def _at(
    contestant: Contestant,
    servers: Running,
    shape: Shape,
    seconds: float,
    *,
    rate: float | None = None,
    outstanding: int = 1,
) -> Values:
    load = Load(contestant.dialect)
    try:
        await load.open(servers.addresses, shape)
        if rate is None:
            load.keep_outstanding(outstanding)
        else:
            load.keep_rate(rate)
        await asyncio.sleep(WARM_UP_SECONDS)
        return await measure(load, servers, seconds)
    finally:
        await load.close()


async def saturation(contestant: Contestant, installed: Installed | None, seconds: float) -> Points:
    """Latency over the rate, 200 rooms of 5: from half of what a closed loop reaches to all of it."""
    async with running(contestant, installed) as servers:
        async for point in saturated(contestant, servers, seconds):
            yield point


async def saturated(contestant: Contestant, servers: Running, seconds: float) -> Points:
    """The same, of servers that run."""
    shape = Shape(rooms=200, members=5)
    most = (await _at(contestant, servers, shape, seconds))["messages_per_second"]
    load = Load(contestant.dialect)
    try:
        await load.open(servers.addresses, shape)
        for share in SHARES:
            load.keep_rate(most * share)
            await asyncio.sleep(WARM_UP_SECONDS)
            values = await measure(load, servers, seconds)
            yield Point(values["messages_per_second"], values | {"share": share})
    finally:
        await load.close()


async def rooms(contestant: Contestant, installed: Installed | None, seconds: float) -> Points:
    """Cost over the number of rooms of 5 at one rate. From 1,000 rooms on a connection is in ten of them."""
    for count in ROOMS:
        shape = Shape(rooms=count, members=5, rooms_each=10 if count >= 1000 else 1)
        async with running(contestant, installed) as servers:
            yield Point(count, await _at(contestant, servers, shape, seconds, rate=RATE))


async def members(contestant: Contestant, installed: Installed | None, seconds: float) -> Points:
    """Cost over the members of one room, 4 messages outstanding."""
    for count in MEMBERS:
        async with running(contestant, installed) as servers:
            yield Point(
                count,
                await _at(contestant, servers, Shape(rooms=1, members=count), seconds, outstanding=4),
            )


async def instances(contestant: Contestant, installed: Installed | None, seconds: float) -> Points:
    """Cost over the number of instances on one Redis, the members of 200 rooms of 5 spread over them."""
    for count in INSTANCES:
        async with running(contestant, installed, instances=count) as servers:
            shape = Shape(rooms=200, members=5)
            yield Point(count, await _at(contestant, servers, shape, seconds, rate=RATE))


@dataclasses.dataclass(frozen=True)
class Curve:
    """One plot."""

    name: str
    title: str
    x: str
    y: str
    figure: str
    points: Callable[[Contestant, Installed | None, float], Points]
    contestants: Sequence[str]
    x_is_logarithmic: bool = True
    y_is_logarithmic: bool = True


_FOUR: Final = ("tableforge", "guide", "socketio", "centrifuge-history")
_TWO: Final = ("tableforge", "guide", "centrifuge-history")

ALL: Final = (
    Curve(
        "saturation",
        "Latency against throughput: 200 rooms of 5, one instance",
        "messages a second",
        "p99 from publish to own copy, ms",
        "p99_ms",
        saturation,
        _FOUR,
        x_is_logarithmic=False,
    ),
    Curve(
        "rooms",
        f"Cost against the number of rooms: rooms of 5, {RATE:,.0f} messages a second in all",
        "rooms",
        "server CPU per message, µs",
        "cpu_per_message",
        rooms,
        _TWO,
        y_is_logarithmic=False,
    ),
    Curve(
        "members",
        "Cost against the size of a room: one room, 4 messages outstanding",
        "members",
        "server CPU per delivery, µs",
        "cpu_per_delivery",
        members,
        _TWO,
    ),
    Curve(
        "instances",
        f"Cost against the number of instances: 200 rooms of 5, {RATE:,.0f} messages a second",
        "instances on one Redis",
        "CPU of all instances per message, µs",
        "cpu_per_message",
        instances,
        _TWO,
        x_is_logarithmic=False,
        y_is_logarithmic=False,
    ),
)
