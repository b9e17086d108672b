"""Redis over TLS: what instances accept, `check` does, and nothing else gets the password."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tableforge_dataplane.broker.connection import connect
from tableforge_dataplane.broker.state import RedisRefusedError
from tableforge_dataplane.contract import environment
from tests.dataplane.around.test_check import findings
from tests.dataplane.door.certificates import write_pair
from tests.support.children import free_port
from tests.support.redis import RedisServer

NAME = "tables-redis.internal"
PASSWORD = "of-this-test-only"


@contextlib.asynccontextmanager
async def redis_over_tls(directory: Path, *, host: str | None) -> AsyncIterator[dict[str, str]]:
    """A Redis whose certificate is for `host`, and what leads to it."""
    certificate, key, port = directory / "redis.crt", directory / "redis.key", free_port()
    write_pair(certificate, key, name="redis", host=host)
    args = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    args += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    args += ["--tls-ca-cert-file", str(certificate)]
    async with RedisServer(directory, binary="redis7", password=PASSWORD, args=tuple(args)) as server:
        yield {
            **server.environ,
            "REDIS_PORT": str(port),
            "TABLEFORGE_REDIS_TLS": "true",
            "TABLEFORGE_REDIS_TLS_CA_FILE": str(certificate),
        }


async def instance_gets_in(environ: dict[str, str]) -> bool:
    try:
        connection, _ = await connect(environment.read(environ).redis, name="test")
    except RedisRefusedError as refused:
        if "certificate" not in str(refused):
            raise
        return False
    connection.abort()
    await connection.lost
    return True


async def test_a_certificate_has_to_be_for_the_name_that_was_given(tmp_path: Path) -> None:
    async with redis_over_tls(tmp_path, host=NAME) as environ:
        named = {**environ, "TABLEFORGE_REDIS_TLS_SERVER_NAME": NAME}
        found, code = findings(**named)
        assert (code, found["version"][0]) == (0, "ok"), found
        assert await instance_gets_in(named)
        # the certificate is trusted, and is somebody else's
        for wrong in (environ, {**environ, "TABLEFORGE_REDIS_TLS_SERVER_NAME": "others-redis.internal"}):
            found, code = findings(**wrong)
            assert (code, found.keys() & {"version", "redis"}) == (1, {"redis"}), found
            assert "certificate" in found["redis"][1]
            assert not await instance_gets_in(wrong)


async def test_without_a_name_the_hosts_own_counts(tmp_path: Path) -> None:
    async with redis_over_tls(tmp_path, host=None) as environ:
        found, code = findings(**environ)
        assert (code, found["version"][0]) == (0, "ok"), found
        assert await instance_gets_in(environ)
        found, code = findings(**{**environ, "TABLEFORGE_REDIS_TLS_SERVER_NAME": NAME})
        assert (code, found.keys() & {"version", "redis"}) == (1, {"redis"}), found


@pytest.mark.parametrize("name", ["TABLEFORGE_REDIS_TLS_CA_FILE", "REDIS_PASSWORD_FILE"])
async def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    async with redis_over_tls(tmp_path, host=None) as environ:
        environ.pop("REDIS_PASSWORD")
        environ[name] = str(tmp_path / "nothing-here")
        found, code = findings(**environ)
    assert code == 1
    assert "nothing-here" in found["redis"][1]
