"""The registry on a real Redis: leases, records, who counts as alive, and what is cleaned up."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import redis.asyncio

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.fleet import InstanceRecord
from tableforge_dataplane.contract.settings import Secret, Settings
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.registry import registry
from tableforge_dataplane.registry.keys import RegistryKeys
from tableforge_dataplane.registry.registry import Registry, ThisInstance, new_boot_id
from tests.support.redis import RedisServer

KEYS = RegistryKeys("test")


@dataclasses.dataclass
class Instance:
    """One registry with the numbers it reports."""

    registry: Registry
    this: ThisInstance
    metrics: Metrics
    rooms: list[tuple[str, int]]
    draining: bool = False


FAILOVER_SECONDS = 3.0
"""A lease lasts so long, and a call for a third of it: a busy machine may stand still for a while."""


def settings_for(server: RedisServer, **environ: str) -> Settings:
    return environment.read(
        {
            "REDIS_HOST": server.host,
            "REDIS_PORT": str(server.port),
            "TABLEFORGE_REDIS_KEY_PREFIX": "test",
            "HEARTBEAT_INTERVAL": "200",
            "CLEANUP_INTERVAL": "100",
            "INACTIVE_THRESHOLD": "300",
            "TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT": f"{FAILOVER_SECONDS * 1000:.0f}",
            **environ,
        }
    )


def instance(settings: Settings, name: str) -> Instance:
    metrics = Metrics()
    rooms: list[tuple[str, int]] = []
    this = ThisInstance(instance=name, boot=new_boot_id(), version="1", started_at=1.0)
    made = Instance(registry=None, this=this, metrics=metrics, rooms=rooms)  # type: ignore[arg-type]
    made.registry = Registry(
        settings,
        this=this,
        metrics=metrics,
        rooms=lambda: list(rooms),
        draining=lambda: made.draining,
    )
    return made


@asynccontextmanager
async def running(settings: Settings, *names: str) -> AsyncIterator[list[Instance]]:
    instances = [instance(settings, name) for name in names]
    for one in instances:
        one.registry.start()
    try:
        yield instances
    finally:
        for one in instances:
            await one.registry.stop()


def kill(one: Instance) -> None:
    """As `kill -9` does: no good-bye, the lease runs out by itself."""
    for task in one.registry._tasks:
        task.cancel()


async def until(condition: Callable[[], Awaitable[bool]], timeout_seconds: float = 30) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not await condition():  # noqa: ASYNC110 (Redis keeps no event for what is waited for)
            await asyncio.sleep(0.02)


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator["redis.asyncio.Redis"]:
    made = redis.asyncio.from_url(redis_server.url)
    yield made
    await made.aclose()


async def record_of(client: "redis.asyncio.Redis", name: str) -> InstanceRecord | None:
    text = await client.hget(KEYS.records, name)
    if text is None:
        return None
    return msgspec.convert({**msgspec.json.decode(text), "alive": False}, InstanceRecord)


async def shortened_and_renewed(client: "redis.asyncio.Redis") -> None:
    """Leave a lease of 20 s half its time, and wait until it has more again."""
    assert await client.pexpire(KEYS.lease("one"), 10_000)

    async def renewed() -> bool:
        return bool(await client.pttl(KEYS.lease("one")) > 10_000)

    await until(renewed)


async def seconds_of(client: "redis.asyncio.Redis") -> float:
    seconds, micros = await client.time()
    return float(seconds + micros / 1e6)


async def test_a_lease_holds_the_boot_id_and_lives_for_the_failover_timeout(
    redis_server: RedisServer, client: "redis.asyncio.Redis"
) -> None:
    settings = settings_for(redis_server, TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT="20000")
    async with running(settings, "one") as [one]:
        await until(lambda: client.exists(KEYS.lease("one")))
        assert (await client.get(KEYS.lease("one"))).decode() == one.this.boot
        assert 0 < await client.pttl(KEYS.lease("one")) <= 20_000
        for _ in range(2):
            await shortened_and_renewed(client)
            assert (await client.get(KEYS.lease("one"))).decode() == one.this.boot
            # as far as that, and never further
            assert await client.pttl(KEYS.lease("one")) <= 20_000


async def test_everything_an_instance_writes_has_a_lifetime(
    redis_server: RedisServer, client: "redis.asyncio.Redis"
) -> None:
    async with running(settings_for(redis_server), "one") as [one]:
        one.rooms.append(("a", 1))
        one.registry.changed()
        await until(lambda: client.exists(KEYS.records))
        await until(lambda: client.exists(KEYS.rooms("one")))
        async for key in client.scan_iter():
            assert await client.pttl(key) != -1, key  # (-2: it has run out meanwhile)


async def test_the_record_says_what_the_instance_has_at_redis_time(
    redis_server: RedisServer, client: "redis.asyncio.Redis"
) -> None:
    async with running(settings_for(redis_server), "one") as [one]:
        earliest = await seconds_of(client)
        one.rooms.extend([("a", 1), ("b", 7), ("c", 3)])
        one.metrics.connections, one.metrics.rooms = 9, 3
        one.metrics.messages_sent.add("chat", 5)
        one.registry.changed()

        async def written() -> bool:
            record = await record_of(client, "one")
            return record is not None and record.connections == 9

        await until(written)
        record = await record_of(client, "one")
        assert record is not None
        assert record.boot == one.this.boot
        assert (record.rooms, record.messages_sent, record.capacity) == (3, 5, 1000)
        assert [(entry.room, entry.members) for entry in record.heaviest_rooms] == [
            ("b", 7),
            ("c", 3),
            ("a", 1),
        ]
        assert earliest <= record.updated_at <= await seconds_of(client)
        assert record.memory_bytes > 1_000_000


async def test_a_record_is_rewritten_every_heartbeat(
    redis_server: RedisServer, client: "redis.asyncio.Redis"
) -> None:
    async with running(settings_for(redis_server), "one"):
        await until(lambda: client.hexists(KEYS.records, "one"))
        first = await record_of(client, "one")
        assert first is not None

        async def again() -> bool:
            record = await record_of(client, "one")
            return record is not None and record.updated_at > first.updated_at

        await until(again)


async def test_moved_numbers_are_written_before_the_heartbeat(
    redis_server: RedisServer, client: "redis.asyncio.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "EARLIEST_REWRITE_SECONDS", 0.2)
    async with running(settings_for(redis_server, HEARTBEAT_INTERVAL="60000"), "one") as [one]:
        await until(lambda: client.hexists(KEYS.records, "one"))
        one.metrics.connections = 100

        async def seen() -> bool:
            record = await record_of(client, "one")
            return record is not None and record.connections == 100

        await until(seen, timeout_seconds=30)
        written = await record_of(client, "one")
        # 5 % is not more than 5 %
        looks: list[bool] = []
        moved = Registry._moved

        def look(this: Registry) -> bool:
            looks.append(moved(this))
            return looks[-1]

        monkeypatch.setattr(Registry, "_moved", look)
        one.metrics.connections = 105

        async def looked() -> bool:
            return len(looks) >= 3

        await until(looked)
        assert not any(looks)
        assert await record_of(client, "one") == written


async def test_a_graceful_stop_leaves_nothing(
    redis_server: RedisServer, client: "redis.asyncio.Redis"
) -> None:
    async with running(settings_for(redis_server), "one") as [one]:
        one.rooms.append(("a", 1))
        one.metrics.rooms = 1
        one.registry.changed()
        await until(lambda: client.exists(KEYS.rooms("one")))
    assert await client.keys("*") == []


async def test_a_stopping_instance_leaves_its_successor_of_the_same_name_alone(
    redis_server: RedisServer, client: "redis.asyncio.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(redis_server)
    async with running(settings, "one") as [old]:
        await until(lambda: client.hexists(KEYS.records, "one"))
        async with running(settings, "one") as [new]:

            async def taken() -> bool:
                record = await record_of(client, "one")
                return record is not None and record.boot == new.this.boot and not old.registry.registered

            await until(taken)
            await old.registry.stop()
            assert (await client.get(KEYS.lease("one"))).decode() == new.this.boot
            record = await record_of(client, "one")
            assert record is not None
            assert record.boot == new.this.boot
        old.registry = instance(settings, "unused").registry
    assert {"instance_id_taken", "instance_id_taken_over"} <= {entry.message for entry in caplog.records}


async def test_the_older_process_takes_the_name_back_when_the_newer_is_gone(
    redis_server: RedisServer, client: "redis.asyncio.Redis"
) -> None:
    settings = settings_for(redis_server)
    async with running(settings, "one") as [old]:
        await until(lambda: client.hexists(KEYS.records, "one"))
        new = instance(settings, "one")
        new.registry.start()

        async def superseded() -> bool:
            return new.registry.registered and not old.registry.registered

        await until(superseded)
        kill(new)

        async def back() -> bool:
            record = await record_of(client, "one")
            return record is not None and record.boot == old.this.boot

        await until(back)
        await new.registry.stop()
        assert (await client.get(KEYS.lease("one"))).decode() == old.this.boot


async def test_the_fleet_has_everybody_and_counts_rooms_once(redis_server: RedisServer) -> None:
    async with running(settings_for(redis_server), "one", "two", "three") as instances:
        for number, one in enumerate(instances):
            one.rooms.extend([("shared", 2), (f"own-{number}", 1)])
            one.metrics.connections, one.metrics.rooms = 3, 2
            one.registry.changed()

        async def complete() -> bool:
            fleet = await instances[0].registry.fleet()
            return fleet.totals.connections == 9 and fleet.totals.rooms == 4

        await until(complete)
        fleet = await instances[1].registry.fleet()
        assert fleet.instance == "two"
        assert [(record.instance, record.alive) for record in fleet.instances] == [
            ("one", True),
            ("three", True),
            ("two", True),
        ]
        assert fleet.totals.instances == 3

        async def connected() -> bool:  # a call that a busy machine holds up for too long says otherwise
            return (await instances[1].registry.fleet()).redis.connected

        await until(connected)
        assert msgspec.json.decode(msgspec.json.encode(fleet))["totals"]["rooms"] == 4


async def test_thousands_of_rooms_are_counted_to_about_a_percent(redis_server: RedisServer) -> None:
    async with running(settings_for(redis_server), "one", "two") as [one, two]:
        one.rooms.extend((f"room-{number}", 1) for number in range(3000))
        two.rooms.extend((f"room-{number}", 1) for number in range(2000, 5000))
        for each in (one, two):
            each.metrics.rooms = 3000
            each.registry.changed()

        async def counted() -> bool:
            return abs((await one.registry.fleet()).totals.rooms - 5000) < 150

        await until(counted)
        assert len((await one.registry.fleet()).instances[0].heaviest_rooms) == 200


async def test_the_dead_are_no_longer_alive_and_their_records_go_after_the_threshold(
    redis_server: RedisServer, client: "redis.asyncio.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    async with running(settings_for(redis_server), "one", "two", "three") as [one, _, three]:
        await until(lambda: client.hexists(KEYS.records, "three"))

        async def all_alive() -> bool:
            return (await one.registry.fleet()).totals.instances == 3

        await until(all_alive)
        kill(three)

        async def seen_dead() -> bool:
            fleet = await one.registry.fleet()
            return {entry.instance: entry.alive for entry in fleet.instances}.get("three") is not True

        await until(seen_dead)

        async def gone() -> bool:
            return not await client.hexists(KEYS.records, "three")

        await until(gone)
        assert not await client.exists(KEYS.rooms("three"))
        assert sorted(await client.hkeys(KEYS.records)) == [b"one", b"two"]
        assert "instance_died" in {entry.message for entry in caplog.records}
        await three.registry.stop()


async def test_over_half_missing_removes_nobody(
    redis_server: RedisServer, client: "redis.asyncio.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    async with running(settings_for(redis_server), "one", "two", "three") as [_, two, three]:
        await until(lambda: client.hexists(KEYS.records, "three"))
        await until(lambda: client.hexists(KEYS.records, "two"))
        kill(two)
        kill(three)

        async def withheld() -> bool:
            # once a round, ten a second: for longer than a record is kept after its lease
            rounds = [entry for entry in caplog.records if entry.message == "judgement_withheld"]
            return len(rounds) >= 15

        await until(withheld, timeout_seconds=60)
        assert await client.hlen(KEYS.records) == 3


async def test_redis_killed_and_back_everybody_registers_again(
    redis_server: RedisServer, client: "redis.asyncio.Redis"
) -> None:
    async with running(settings_for(redis_server), "one", "two") as instances:
        one = instances[0]

        async def both_alive() -> bool:
            fleet = await one.registry.fleet()
            return fleet.redis.connected and fleet.totals.instances == 2

        await until(both_alive)
        await redis_server.kill9()

        async def noticed() -> bool:
            return not one.registry.redis_state.connected

        await until(noticed)
        fleet = await one.registry.fleet()
        assert fleet.redis.reason == "Unreachable"
        assert str(redis_server.port) in fleet.redis.message
        assert [record.instance for record in fleet.instances] == ["one", "two"]  # the last known
        killed_at = time.time()

        async def run_out() -> bool:
            """Whether every lease has, by the wall clock that Redis keeps them by."""
            return time.time() > killed_at + FAILOVER_SECONDS

        await until(run_out)
        await redis_server.start()
        await until(both_alive)

        async def both_leased() -> bool:
            return await client.exists(KEYS.lease("one"), KEYS.lease("two")) == 2

        await until(both_leased)


async def test_what_a_flush_took_comes_back(redis_server: RedisServer, client: "redis.asyncio.Redis") -> None:
    async with running(settings_for(redis_server, HEARTBEAT_INTERVAL="60000"), "one"):
        await until(lambda: client.hexists(KEYS.records, "one"))
        await client.flushall()
        await until(lambda: client.hexists(KEYS.records, "one"))
        assert await client.exists(KEYS.lease("one"))


async def test_before_redis_ever_answered_the_fleet_is_the_instance_itself(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "late")
    await server.start()
    await server.kill9()
    async with running(settings_for(server), "one") as [one]:
        one.metrics.connections = 4
        fleet = await one.registry.fleet()
        assert not fleet.redis.connected
        assert (fleet.as_of, fleet.totals.connections) == (0.0, 4)
        await server.start()

        async def read() -> bool:
            return (await one.registry.fleet()).as_of > 0

        await until(read)
    await server.stop()


@pytest.mark.parametrize("binary", ["valkey", "redis62"])
async def test_without_memory_the_lease_lives_on(binary: str, tmp_path: Path) -> None:
    async with (
        RedisServer(tmp_path / "full", binary=binary) as server,  # type: ignore[arg-type]
        redis.asyncio.from_url(server.url) as client,
        # a lease that has run out is not to be had again without memory: this one lasts
        running(settings_for(server, TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT="20000"), "one") as [one],
    ):
        await until(lambda: client.hexists(KEYS.records, "one"))
        await client.config_set("maxmemory", "1")
        failed = one.metrics.heartbeats_failed

        async def refused() -> bool:
            return one.metrics.heartbeats_failed > failed + 1

        await until(refused)
        await shortened_and_renewed(client)

        async def connected() -> bool:
            return one.registry.redis_state.connected

        await until(connected)
        assert (await one.registry.fleet()).totals.instances == 1
        await client.config_set("maxmemory", "0")


async def test_the_password_comes_from_its_file_at_every_connect(tmp_path: Path) -> None:
    password = tmp_path / "password"
    async with RedisServer(tmp_path / "locked", password="first-password") as server:
        plain = settings_for(server)
        settings = dataclasses.replace(
            plain, redis=dataclasses.replace(plain.redis, password=Secret(file=password))
        )
        async with running(settings, "one") as [one]:

            async def reason(wanted: str) -> bool:
                return one.registry.redis_state.reason == wanted

            await until(lambda: reason("PasswordMissing"))
            assert str(password) in one.registry.redis_state.message
            password.write_text("a-wrong-password\n")
            await until(lambda: reason("AuthenticationFailed"))
            assert "a-wrong-password" not in one.registry.redis_state.message
            password.write_text("first-password\n")
            await until(lambda: reason("Connected"))
            # rotated: new connections need the new one
            async with redis.asyncio.from_url(server.url) as admin:
                await admin.config_set("requirepass", "second-password")
                password.write_text("second-password\n")
                await admin.client_kill_filter(_type="normal", skipme=True)

                async def back() -> bool:
                    return "tableforge-registry" in [one["name"] for one in await admin.client_list()]

                await until(back)
            await until(lambda: reason("Connected"))


async def test_a_paused_redis_blocks_nobody_and_costs_a_timeout(redis_server: RedisServer) -> None:
    async with running(settings_for(redis_server), "one") as [one]:

        async def connected() -> bool:
            return one.registry.redis_state.connected

        await until(connected)
        redis_server.pause()
        try:
            async with asyncio.timeout(30):
                fleet = await one.registry.fleet()
                while fleet.redis.connected:
                    fleet = await one.registry.fleet()
                    await asyncio.sleep(0.05)
            assert fleet.redis.reason == "Unreachable"
        finally:
            redis_server.resume()
        await until(connected)
