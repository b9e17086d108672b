"""What is wrong with a Redis reaches RedisReady: a real Redis in trouble, a real instance that is told what
the operator renders for it, and the operator's verdict on what that instance says at /health.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio
import uvloop

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.fleet import Health
from tableforge_dataplane.registry.registry import ThisInstance, new_boot_id
from tableforge_dataplane.server import Server
from tableforge_operator import api
from tableforge_operator.decide.plan import decide
from tableforge_operator.decide.snapshot import FleetView
from tests.dataplane.door.certificates import write_pair
from tests.dataplane.faults.test_refusals import with_a_disk_again, without_a_disk
from tests.dataplane.path.instances import Peers, until
from tests.operator.engine.snapshots import SECRETS, at, conditions, ready_cluster
from tests.operator.model.expected import environ
from tests.support.children import free_port
from tests.support.redis import RedisServer
from tests.support.redis_cluster import ask


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that an instance runs on."""
    return {"uvloop": uvloop.new_event_loop}


class Outside:
    """A WebSocketCluster whose instance runs here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spec: dict[str, Any] = {}
        self._server: Server | None = None

    async def start(self, external: dict[str, Any], *, uid: str = "uid-1", **fields: Any) -> None:
        """Start an instance with what is rendered for it; Secrets lie as files in the test's folder."""
        self._spec = {"redis": {"external": external, "connectTimeout": "1s", **fields}}
        spec = {"auth": {"required": False}, **self._spec}
        made = api.load(
            {
                "metadata": {"name": "tables", "namespace": "games", "uid": uid, "generation": 1},
                "spec": spec,
            }
        )
        data = dict(environ(made))
        for ref in made.references:
            data[ref.variable] = str(self._folder / ref.name / ref.key)
        del data["TABLEFORGE_HTTP_FLEET_KEY_FILE"]
        settings = environment.read(data)
        settings = dataclasses.replace(
            settings,
            websocket=dataclasses.replace(settings.websocket, host="127.0.0.1", port=0),
            http=dataclasses.replace(settings.http, port=0),
            scaling=dataclasses.replace(settings.scaling, drain_seconds=0.1),
        )
        self._server = Server(
            settings,
            ThisInstance(instance="one", boot=new_boot_id(), version="test", started_at=time.time()),
        )
        await self._server.start()

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    def _health(self) -> Health:
        """What it says, with the places where a pod would have found the files."""
        health = self.server._health.report()
        state = health.redis
        made = api.load({"metadata": {"name": "t", "namespace": "n", "uid": "u"}, "spec": self._spec})
        for ref in made.references:
            state = msgspec.structs.replace(state, message=state.message.replace(self._path(ref), ref.file))
        return msgspec.structs.replace(health, redis=state)

    def _path(self, ref: Any) -> str:
        return str(self._folder / ref.name / ref.key)

    def redis_ready(self) -> dict[str, Any]:
        """The condition that the operator makes of it, where everything else is as it should be."""
        snapshot = ready_cluster(now=at(0), **self._spec)
        view = FleetView(healths=(self._health(),))
        plan = decide(dataclasses.replace(snapshot, fleet=view), at(120), secrets=SECRETS)
        return conditions(plan if plan.status is not None else snapshot)["RedisReady"]

    async def says(self, reason: str, *words: str) -> None:
        """Wait until RedisReady is False for this reason, in words that name these."""
        found: dict[str, Any] = {}
        try:
            async with asyncio.timeout(90):
                while found.get("reason") != reason or not all(word in found["message"] for word in words):
                    await asyncio.sleep(0.05)
                    found = self.redis_ready()
        except TimeoutError:
            pytest.fail(f"RedisReady never said {reason} {words}, but {found}")
        assert found["status"] == "False"
        assert "TABLEFORGE_" not in found["message"], "a user of the operator knows no variables"

    async def recovers(self) -> None:
        async with asyncio.timeout(90):
            while self.redis_ready()["status"] != "True":  # noqa: ASYNC110  (it is asked, it doesn't tell)
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()


@pytest.fixture
async def outside(tmp_path: Path) -> AsyncIterator[Outside]:
    made = Outside(tmp_path)
    yield made
    await made.stop()


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    made = Peers()
    yield made
    await made.close()


def place(server: RedisServer) -> dict[str, Any]:
    return {"host": server.host, "port": server.port}


def write_secret(folder: Path, name: str, key: str, value: str) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / key).write_text(value)


async def test_nobody_there(outside: Outside) -> None:
    await outside.start({"host": "127.0.0.1", "port": free_port()})
    await outside.says("RedisUnreachable", "Check spec.redis.external.host and port")


async def test_a_name_that_nobody_knows(outside: Outside) -> None:
    await outside.start({"host": "redis.invalid"})
    await outside.says("RedisUnreachable", "redis.invalid:6379", "spec.redis.external.host")


async def test_a_password_that_it_wants_and_nobody_named(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis", password="secret-word") as server:
        await outside.start(place(server))
        await outside.says("RedisAuthenticationFailed", "NOAUTH", "spec.redis.external.passwordSecretRef")


async def test_a_wrong_password_until_the_secret_is_mended(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis", password="secret-word") as server:
        write_secret(tmp_path, "login", "password", "another-word")
        await outside.start({**place(server), "passwordSecretRef": {"name": "login"}})
        await outside.says(
            "RedisAuthenticationFailed", "WRONGPASS", "Secret login (key password)", "the default user"
        )
        assert "word" not in outside.redis_ready()["message"].replace("password", "")
        write_secret(tmp_path, "login", "password", "secret-word")
        await outside.recovers()


async def test_a_secret_that_is_not_there_yet(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis", password="secret-word") as server:
        await outside.start({**place(server), "passwordSecretRef": {"name": "login", "key": "word"}})
        await outside.says("RedisPasswordMissing", "Secret login (key word)", "create")
        write_secret(tmp_path, "login", "word", "secret-word")
        await outside.recovers()


async def test_a_user_without_the_rights(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis") as server:
        await ask(server, "ACL", "SETUSER", "tables", "on", ">word", "~*", "&*", "+@connection")
        write_secret(tmp_path, "login", "password", "word")
        await outside.start({**place(server), "username": "tables", "passwordSecretRef": {"name": "login"}})
        await outside.says(
            "RedisAuthenticationFailed", "NOPERM", "user tables (spec.redis.external.username)"
        )


async def test_certificates(outside: Outside, tmp_path: Path) -> None:
    for name in ("server", "stranger"):
        (tmp_path / name).mkdir()
        write_pair(tmp_path / name / "tls.crt", tmp_path / name / "tls.key", name=name)
    port = free_port()
    args = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    args += ["--tls-cert-file", f"{tmp_path}/server/tls.crt", "--tls-key-file", f"{tmp_path}/server/tls.key"]
    args += ["--tls-ca-cert-file", f"{tmp_path}/server/tls.crt"]
    async with RedisServer(tmp_path / "redis", binary="redis7", args=tuple(args)) as server:
        await outside.start(
            {"host": server.host, "port": port, "tls": {"caSecretRef": {"name": "authorities"}}}
        )
        await outside.says("RedisUnreachable", "Secret authorities (key ca.crt) is not there")
        write_secret(tmp_path, "authorities", "ca.crt", (tmp_path / "stranger" / "tls.crt").read_text())
        await outside.says(
            "RedisUnreachable", "does not hold", "spec.redis.external.tls.caSecretRef", "tls.serverName"
        )
        write_secret(tmp_path, "authorities", "ca.crt", (tmp_path / "server" / "tls.crt").read_text())
        await outside.recovers()


async def test_tls_to_a_port_without(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis") as server:
        await outside.start({**place(server), "tls": {}})
        await outside.says("RedisUnreachable", "spec.redis.external.tls")


async def test_a_node_of_a_cluster(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis", args=("--cluster-enabled", "yes")) as server:
        await outside.start(place(server))
        await outside.says("RedisUnreachable", "set spec.redis.external.mode to Cluster")


async def test_sentinels_that_are_none(outside: Outside, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    await outside.start({"mode": "Sentinel", "sentinel": {"masterName": "tables", "addresses": [address]}})
    await outside.says("RedisUnreachable", address, "spec.redis.external.sentinel.addresses")


async def test_a_cluster_that_is_none(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis") as server:
        address = f"{server.host}:{server.port}"
        await outside.start({"mode": "Cluster", "cluster": {"addresses": [address]}})
        await outside.says("RedisUnreachable", address, "spec.redis.external.cluster.addresses")


async def test_no_append_only_file_for_disk(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis", appendfsync=None) as server:
        await outside.start(place(server), durability="Disk")
        await outside.says("RedisDurabilityNotMet", "needs appendonly yes", "spec.redis.durability")
        await ask(server, "CONFIG", "SET", "appendonly", "yes")
        await ask(server, "CONFIG", "SET", "appendfsync", "always")
        await outside.recovers()


async def test_no_replica_for_replica(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis") as server:
        await outside.start(place(server), durability="Disk+Replica")
        await outside.says("RedisDurabilityNotMet", "has no replica online", "which is Disk+Replica")


async def test_a_replica(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "first") as first, RedisServer(tmp_path / "second") as second:
        await ask(second, "REPLICAOF", first.host, first.port)
        await outside.start(place(second))
        await outside.says("RedisReadOnly", "spec.redis.external.host", "mode: Sentinel")
        await ask(second, "REPLICAOF", "NO", "ONE")
        await outside.recovers()


async def test_memory_that_is_nearly_full(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis", args=("--maxmemory", "64mb")) as server:
        await outside.start(place(server), memoryGuardPercent=80)
        await outside.recovers()
        async with redis.asyncio.Redis(host=server.host, port=server.port) as client:
            for number in range(54):
                await client.set(f"ballast-{number}", b"x" * 1_000_000)
        await outside.says("RedisOutOfMemory", "raise its maxmemory")
        await ask(server, "FLUSHALL")
        await outside.recovers()


async def test_a_disk_that_takes_no_more(outside: Outside, peers: Peers, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis") as server:
        await outside.start(place(server))
        await until(lambda: outside.server.ready)
        async with redis.asyncio.Redis(host=server.host, port=server.port) as admin:
            ada = await peers(outside.server)
            await ada.join("room")
            await without_a_disk(server, admin)
            await ada.publish("room", 1)
            await outside.says("RedisReadOnly", "MISCONF", "give it room")
            await with_a_disk_again(server, admin)
            await outside.recovers()


async def test_replicas_that_are_missing(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis") as server:
        await outside.start(place(server))
        await outside.recovers()
        await ask(server, "CONFIG", "SET", "min-replicas-to-write", 1)
        await outside.says("RedisReadOnly", "NOREPLICAS", "bring them back")
        assert "spec.redis.external.host" not in outside.redis_ready()["message"], "it is the right one"
        await ask(server, "CONFIG", "SET", "min-replicas-to-write", 0)
        await outside.recovers()


async def test_a_version_that_is_too_old_is_told_by_its_number(outside: Outside) -> None:
    async def old_redis(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No wheel has a server this old: this one says what Redis 5 says, and no more is asked of it.
        while line := await reader.readline():
            if not line.startswith(b"*"):
                continue
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2].upper())
            if words[0] == b"INFO":
                info = b"# Server\r\nredis_version:5.0.14\r\nredis_mode:standalone\r\n"
                writer.write(b"$%d\r\n%b\r\n" % (len(info), info))
            else:
                known = words[0] in (b"CLIENT", b"SELECT", b"PING")
                writer.write(b"+OK\r\n" if known else b"-ERR unknown command\r\n")
        writer.close()

    server = await asyncio.start_server(old_redis, "127.0.0.1", 0)
    async with server:
        await outside.start({"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1]})
        await outside.says("RedisVersionTooOld", "5.0.14 is too old: use Redis 6.2 or newer")
        await outside.stop()


async def test_a_prefix_that_is_another_clusters(outside: Outside, tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "redis") as server:
        first = Outside(tmp_path)
        await first.start(place(server), keyPrefix="shared", uid="uid-of-the-first")
        try:
            await first.recovers()
            await outside.start(place(server), keyPrefix="shared", uid="uid-of-the-second")
            await outside.says(
                "RedisPrefixClaimed",
                "games/tables/uid-of-the-first",
                "spec.redis.keyPrefix",
                "create it again",
            )
            assert first.redis_ready()["status"] == "True"
        finally:
            await first.stop()
