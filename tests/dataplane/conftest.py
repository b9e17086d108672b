"""Instances in this process, on a real Redis and real sockets, and the peers that talk to them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.dataplane.path.instances import Instances, Peers
from tests.support.redis import RedisServer


@pytest.fixture
async def redis_server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A running Valkey with `appendfsync always`, or under `every_redis` each server in turn."""
    async with RedisServer(tmp_path / "redis", binary=getattr(request, "param", "valkey")) as server:
        yield server


@pytest.fixture
async def instances() -> AsyncIterator[Instances]:
    """`one, two = await instances(redis_server, 2, websocket={"max_connections": 3})`."""
    made = Instances()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    """`ada = await peers(one)`: a connection that has been welcomed."""
    made = Peers()
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def make_redis(tmp_path: Path) -> AsyncIterator[Callable[..., RedisServer]]:
    """A server with options of one's own; started by the test."""
    made: list[RedisServer] = []

    def make(**options: Any) -> RedisServer:
        made.append(RedisServer(tmp_path / f"redis-{len(made)}", **options))
        return made[-1]

    try:
        yield make
    finally:
        for server in made:
            await server.stop()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that an instance runs on."""
    return {"uvloop": uvloop.new_event_loop}
