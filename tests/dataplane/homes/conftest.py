"""Directories of homes on a real Redis, and on a Redis Cluster."""

from collections.abc import AsyncIterator

import pytest

from tests.dataplane.homes.directories import Directories
from tests.support.redis import RedisServer


@pytest.fixture
async def directories(redis_server: RedisServer) -> AsyncIterator[Directories]:
    """`one, two = await directories("one", "two", capacity=10)`: instances that live and take rooms."""
    made = Directories(redis_server.environ)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def look(redis_server: RedisServer) -> AsyncIterator[Directories]:
    """What Redis has, for a test with whole instances."""
    made = Directories(redis_server.environ)
    try:
        yield made
    finally:
        await made.close()
