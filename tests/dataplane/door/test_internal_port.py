"""The internal port takes no more files than it needs, whoever reaches it."""

import asyncio
import contextlib

import pytest

from tableforge_dataplane.http import patience
from tests.dataplane.path.instances import Instances
from tests.support.redis import RedisServer


async def test_who_takes_long_to_ask_on_the_internal_port_is_dropped(
    redis_server: RedisServer, instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = await instances(redis_server)

    async def asks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"200 OK")

    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Goes on with headers until it is dropped."""
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"X: y\r\n")
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.1):
                            await reader.read(65_536)
        writer.close()

    honest = await asyncio.open_connection("127.0.0.1", one.http_port)
    await asks(*honest)
    with monkeypatch.context() as hurry:
        hurry.setattr(patience, "REQUEST_SECONDS", 0.5)
        hurry.setattr(patience, "KEEPALIVE_SECONDS", 0.5)
        await drips(*await asyncio.open_connection("127.0.0.1", one.http_port))
        # nor after honest requests
        await asks(*honest)
        await drips(*honest)
    # and there are only so many at once
    monkeypatch.setattr(patience, "MOST_CONNECTIONS", 3)
    kept = [await asyncio.open_connection("127.0.0.1", one.http_port) for _ in range(4)]
    with contextlib.suppress(ConnectionError):
        assert await kept[3][0].read() == b""
    kept[0][1].write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in await kept[0][0].read(65_536)
    for _, writer in kept:
        writer.close()
