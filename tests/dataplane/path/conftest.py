"""Instances in this process, on a real Redis and real sockets, and the peers that talk to them."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from tests.dataplane.path.instances import Instances, Peers


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


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that an instance runs on."""
    return {"uvloop": uvloop.new_event_loop}
