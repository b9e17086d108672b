"""The Redis that tests stand on: it starts, dies, comes back with its data, and never outlives the test."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.support.children import free_port
from tests.support.redis import Binary, RedisFailedError, RedisServer


@pytest.mark.parametrize("binary", ["valkey", "redis62"])
async def test_a_killed_server_comes_back_on_its_port_with_its_data(binary: Binary, tmp_path: Path) -> None:
    async with RedisServer(tmp_path, binary=binary) as server:
        port = server.port
        async with redis.asyncio.from_url(server.url) as client:
            await client.set("seat", "3")
        await server.kill9()
        assert not server.running
        await server.start()
        assert server.port == port
        async with redis.asyncio.from_url(server.url) as client:
            assert await client.get("seat") == b"3"


async def test_without_an_append_only_file_it_comes_back_empty(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, appendfsync=None) as server:
        async with redis.asyncio.from_url(server.url) as client:
            await client.set("seat", "3")
        await server.kill9()
        await server.start()
        async with redis.asyncio.from_url(server.url) as client:
            assert await client.get("seat") is None


async def test_a_password_is_asked_for_and_not_on_the_command_line(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, password="open-sesame-42") as server:
        async with redis.asyncio.from_url(server.url) as client:
            assert await client.ping()
        async with redis.asyncio.Redis(
            host=server.host, port=server.port, retry=Retry(NoBackoff(), 0)
        ) as client:
            with pytest.raises(redis.asyncio.RedisError, match="authenticat"):
                await client.ping()
        assert b"open-sesame" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()


async def test_a_paused_server_is_silent_and_goes_on(redis_server: RedisServer) -> None:
    async with redis.asyncio.from_url(redis_server.url, socket_timeout=0.2) as client:
        redis_server.pause()
        with pytest.raises(redis.asyncio.RedisError):
            await client.ping()
    redis_server.resume()
    async with redis.asyncio.from_url(redis_server.url) as client:
        assert await client.ping()


async def test_stopping_a_paused_server_ends_it(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    await server.start()
    pid = server.pid
    server.pause()
    await server.stop()
    assert not Path(f"/proc/{pid}").exists()


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, args=("--maxmemory-policy", "nonsense"))
    with pytest.raises(RedisFailedError, match="maxmemory-policy"):
        await server.start()


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import asyncio, os, pathlib, signal
        from tests.support.redis import RedisServer
        async def main():
            server = RedisServer(pathlib.Path({str(tmp_path)!r}))
            await server.start()
            print(server.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=120, check=False, text=True
    )
    assert ended.returncode == -signal.SIGKILL
    pid = int(ended.stdout)
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:  # readable once the process has ended
        import select

        assert select.select([descriptor], [], [], 60)[0], "the server outlived its parent"
    finally:
        os.close(descriptor)


def test_a_free_port_is_outside_the_range_of_outgoing_connections() -> None:
    low, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert all(free_port() < int(low) for _ in range(20))
