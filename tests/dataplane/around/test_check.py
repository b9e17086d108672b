"""`tableforge-dataplane check`: what it says of real servers, and of facts no test can make."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from tableforge_dataplane.contract.settings import RedisSettings, Settings, WebsocketSettings
from tableforge_dataplane.launch.advice import about_files, about_redis
from tableforge_dataplane.launch.probe import NodeFacts, RedisFacts, probe
from tests.support.children import free_port
from tests.support.redis import Binary, RedisServer
from tests.support.redis_cluster import RedisCluster, RedisSentinels, ask, eventually

COMMAND = str(Path(sys.executable).parent / "tableforge-dataplane")
GOOD = NodeFacts(
    where="redis:6379",
    product="Redis",
    version="7.4.1",
    compatible=(7, 4),
    config={
        "maxmemory": "1073741824",
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "always",
        "client-output-buffer-limit": "normal 0 0 0 slave 1 1 60 pubsub 33554432 8388608 60",
        "min-replicas-to-write": "0",
    },
    aof_enabled=True,
    aof_failing=False,
    role="master",
    replicas_online=0,
    used_memory_bytes=1 << 20,
    maxmemory_bytes=1 << 30,
    write_seconds=0.001,
    write_problem=None,
    sync_seconds=None,
    clock_offset_seconds=0.1,
)

EACH_SECOND: dict[str, Any] = {"config": {"appendfsync": "everysec"}}


def check(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [COMMAND, "check", *arguments],
        env={"PATH": os.environ["PATH"], "WS_HOST": "127.0.0.1", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def findings(**environ: str) -> tuple[dict[str, tuple[str, str]], int]:
    done = check("--json", **environ)
    body = json.loads(done.stdout)
    assert body["ok"] == (done.returncode == 0)
    return {entry["topic"]: (entry["level"], entry["message"]) for entry in body["findings"]}, done.returncode


async def test_a_redis_that_is_as_it_should_be(tmp_path: Path) -> None:
    arguments = ("--maxmemory", "256mb", "--client-output-buffer-limit", "pubsub 32mb 8mb 60")
    async with RedisServer(tmp_path, password="of-this-test-only", args=arguments) as server:
        found, code = findings(**server.environ, TABLEFORGE_REDIS_DURABILITY="Disk")
    assert code == 0
    # a busy disk may take long, which is a warning
    assert {level for topic, (level, _) in found.items() if topic != "fsync"} == {"ok"}
    assert found["fsync"][0] in ("ok", "warn")
    assert found["version"][1].startswith("Valkey 9.")
    assert "syncs every message" in found["persistence"][1]
    assert "ms (median), its sync to disk included" in found["fsync"][1]
    assert "nobody is registered" in found["key prefix"][1]
    assert "of-this-test-only" not in str(found)


async def test_a_redis_that_would_lose_messages(tmp_path: Path) -> None:
    arguments = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    arguments += ("--client-output-buffer-limit", "pubsub 1mb 1mb 10")
    async with RedisServer(tmp_path, appendfsync=None, args=arguments) as server:
        found, code = findings(**server.environ, TABLEFORGE_REDIS_DURABILITY="Disk")
        relaxed, _ = findings(**server.environ)
    assert code == 1
    assert found["eviction"][0] == "fail"
    assert "noeviction" in found["eviction"][1]
    assert found["persistence"] == (
        "fail",
        f"durability Disk needs `appendonly yes` at 127.0.0.1:{server.port}.",
    )
    assert found["pubsub buffer"][0] == "warn"
    assert relaxed["persistence"][0] == "warn"


async def test_syncs_that_can_be_waited_for_are_measured(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, binary="redis8", appendfsync="everysec") as server:
        found, code = findings(**server.environ, TABLEFORGE_REDIS_DURABILITY="Disk")
    assert (code, "is on disk after" in found["fsync"][1]) == (0, True)
    assert found["memory"][0] == "warn"


@pytest.mark.parametrize("binary", ["redis62", "redis7", "valkey"])
async def test_a_redis_whose_syncs_cannot_be_waited_for_fails_here_as_it_does_at_the_start(
    tmp_path: Path, binary: Binary
) -> None:
    async with RedisServer(tmp_path, binary=binary, appendfsync="everysec") as server:
        found, code = findings(**server.environ, TABLEFORGE_REDIS_DURABILITY="Disk")
    assert (code, found["persistence"][0]) == (1, "fail")
    assert "appendfsync always there, or everysec with Redis 8 or newer" in found["persistence"][1]


async def test_nothing_is_left_behind(redis_server: RedisServer) -> None:
    check(**redis_server.environ)
    with redis.Redis(port=redis_server.port) as client:
        assert client.dbsize() == 0


def test_a_redis_that_does_not_answer_or_refuses_is_named() -> None:
    port = free_port()
    done = check(REDIS_HOST="127.0.0.1", REDIS_PORT=str(port))
    assert done.returncode == 1
    assert f"fail  redis: Redis at 127.0.0.1:{port} cannot be used" in done.stdout


async def test_a_wrong_password_is_named_and_does_not_show(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, password="of-this-test-only") as server:
        environ = {**server.environ, "REDIS_PASSWORD": "wrong-and-secret"}
        done = check(**environ)
    assert done.returncode == 1
    assert "refuses us" in done.stdout
    assert "wrong-and-secret" not in done.stdout + done.stderr


def test_keys_are_looked_at_too() -> None:
    environ = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "1", "AUTH_REQUIRED": "true"}
    found, _ = findings(**environ, JWT_SECRET_FILE="/nowhere/key")
    assert found["tokens"][0] == "fail"
    assert "/nowhere/key does not exist" in found["tokens"][1]
    found, _ = findings(**environ, JWT_SECRET="k" * 32, REDIS_PUBSUB_DB="1")
    assert found["tokens"][0] == "ok"
    assert found["settings"][0] == "warn"


def test_settings_that_cannot_be_used_end_it_with_2() -> None:
    done = check(WS_PORT="70000")
    assert (done.returncode, done.stdout) == (2, "")
    assert "WS_PORT='70000'" in done.stderr


def levels(settings: Settings | None = None, **changed: Any) -> dict[str, str]:
    config = {**GOOD.config, **changed.pop("config", {})}
    node = dataclasses.replace(GOOD, config=config, **changed)
    found = about_redis(RedisFacts(nodes=(node,)), settings or Settings())
    return {finding.topic: finding.level for finding in found}


def asking(durability: Any, mode: Any = "Standalone") -> Settings:
    return Settings(redis=RedisSettings(durability=durability, mode=mode))


@pytest.mark.parametrize(
    ("settings", "changed", "topic", "level"),
    [
        (Settings(), {}, "fsync", "ok"),
        (Settings(), {"write_seconds": 0.02}, "fsync", "warn"),
        (Settings(), {"write_seconds": 0.02, "config": {"appendfsync": "everysec"}}, "latency", "warn"),
        (Settings(), {"compatible": (6, 0)}, "version", "fail"),
        (asking("Memory", "Cluster"), {"compatible": (6, 2)}, "version", "warn"),
        (Settings(), {"role": "slave"}, "writes", "fail"),
        (Settings(), {"write_problem": "OOM command not allowed"}, "writes", "fail"),
        (Settings(), {"aof_failing": True}, "persistence", "fail"),
        (Settings(), {"aof_enabled": False}, "persistence", "warn"),
        (asking("Disk"), {}, "persistence", "ok"),
        (asking("Disk"), {**EACH_SECOND, "compatible": (8, 0), "sync_seconds": 0.5}, "fsync", "warn"),
        (asking("Disk"), {**EACH_SECOND, "compatible": (7, 4), "sync_seconds": 0.5}, "persistence", "fail"),
        (
            asking("Disk"),
            {"compatible": (8, 0), "config": {"appendfsync": "no"}, "sync_seconds": 0.5},
            "persistence",
            "fail",
        ),
        (asking("Replica"), {}, "replicas", "fail"),
        (asking("Replica"), {"replicas_online": 1}, "replicas", "warn"),
        (
            asking("Disk+Replica"),
            {"replicas_online": 1, "config": {"min-replicas-to-write": "1"}},
            "replicas",
            "ok",
        ),
        (Settings(), {"maxmemory_bytes": 0}, "memory", "warn"),
        (Settings(), {"used_memory_bytes": 900 << 20}, "memory", "warn"),
        (Settings(), {"clock_offset_seconds": -30.0}, "clock", "warn"),
    ],
)
def test_what_was_seen_decides(settings: Settings, changed: dict[str, Any], topic: str, level: str) -> None:
    assert levels(settings, **changed)[topic] == level


def test_what_may_not_be_asked_is_concluded_from_by_nobody() -> None:
    found = levels(config=dict.fromkeys(GOOD.config, None))
    assert found.keys().isdisjoint({"eviction", "pubsub buffer"})
    assert "fail" not in found.values()


def test_as_many_files_may_be_open_as_connections_need() -> None:
    settings = Settings(websocket=WebsocketSettings(max_connections=1000))
    assert about_files(1024, settings).level == "fail"
    assert "ulimit -n" in about_files(1024, settings).message
    assert about_files(4096, settings).level == "ok"


@pytest.mark.parametrize(
    ("claim", "level", "said"),
    [
        ("", "warn", "the cluster blue claims tables"),
        ("green", "fail", "the cluster blue claims tables"),
        ("blue", "ok", "which this cluster, blue, claims"),
    ],
)
async def test_who_claims_the_key_prefix_is_told(
    redis_server: RedisServer, claim: str, level: str, said: str
) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.set("tf:tables:{registry}:claim", "blue", px=60_000)
    environ = {**redis_server.environ, "TABLEFORGE_REDIS_KEY_PREFIX": "tables"}
    found, code = findings(**environ, **({"TABLEFORGE_REDIS_CLAIM": claim} if claim else {}))
    assert (found["key prefix"][0], code) == (level, int(level == "fail"))
    assert said in found["key prefix"][1]


async def test_every_primary_of_a_cluster_is_looked_at() -> None:
    async with RedisCluster(args=("--maxmemory-policy", "allkeys-lru")) as cluster:
        environ = {"TABLEFORGE_REDIS_MODE": "Cluster", "TABLEFORGE_REDIS_ADDRESSES": cluster.addresses}
        done = check("--json", **environ, TABLEFORGE_REDIS_DURABILITY="Disk")
        found = json.loads(done.stdout)["findings"]
        # a write may take long on a busy machine, which is a warning
        for topic, levels in (("eviction", "fail"), ("latency", "ok warn"), ("persistence", "fail")):
            said = [e["message"] for e in found if e["topic"] == topic and e["level"] in levels.split()]
            assert len(said) == 3, found
            for node in cluster.primaries:
                assert any(f":{node.port}" in message for message in said)
        [alone] = [entry for entry in found if "Primaries without a replica" in entry["message"]]
        assert (alone["level"], done.returncode) == ("warn", 1)
        for node in cluster.primaries:
            assert await ask(node, "DBSIZE") == 0


async def test_a_cluster_that_has_lost_a_node_is_told() -> None:
    async with RedisCluster() as cluster:
        environ = {"TABLEFORGE_REDIS_MODE": "Cluster", "TABLEFORGE_REDIS_ADDRESSES": cluster.addresses}
        await cluster.primaries[0].kill9()
        await eventually(lambda: _has_failed(cluster.primaries[1]))
        done = check("--json", **environ)
        found = json.loads(done.stdout)["findings"]
        failed = [entry["message"] for entry in found if entry["level"] == "fail"]
    assert done.returncode == 1
    assert any("state is fail" in message for message in failed)
    # and what else there is to say of it is said
    assert any(f":{cluster.primaries[0].port} cannot be used" in message for message in failed)
    assert sum(entry["topic"] == "version" for entry in found) == 2


async def _has_failed(node: RedisServer) -> bool:
    return b"cluster_state:fail" in await ask(node, "CLUSTER", "INFO")


async def test_the_primary_is_found_by_its_sentinels() -> None:
    async with RedisSentinels(name="tables", down_after_ms=30_000) as sentinels:
        environ = {
            "TABLEFORGE_REDIS_MODE": "Sentinel",
            "TABLEFORGE_REDIS_ADDRESSES": sentinels.addresses,
            "TABLEFORGE_REDIS_SENTINEL_MASTER_NAME": "tables",
        }
        primary = await sentinels.primary()
        found, code = findings(**environ, TABLEFORGE_REDIS_DURABILITY="Replica")
        assert code == 0, found
        assert f":{primary.port}" in found["version"][1]
        environ["TABLEFORGE_REDIS_ADDRESSES"] += f",127.0.0.1:{free_port()}"
        found, code = findings(**environ)
        assert "No answer from these sentinels" in str(found)
        environ["TABLEFORGE_REDIS_SENTINEL_MASTER_NAME"] = "others"
        found, code = findings(**environ)
        assert (code, found["redis"][0]) == (1, "fail")


async def test_a_replica_is_not_taken_for_its_primary(tmp_path: Path) -> None:
    async with RedisServer(tmp_path / "primary") as primary:
        follow = ("--replicaof", f"127.0.0.1 {primary.port}")
        async with RedisServer(tmp_path / "replica", args=follow) as replica:
            facts = probe(RedisSettings(host=replica.host, port=replica.port))
    [node] = facts.nodes
    assert node.role == "slave"
    assert "READONLY" in str(node.write_problem) or "read only" in str(node.write_problem)
