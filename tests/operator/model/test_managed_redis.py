"""The managed Redis: StatefulSet and configuration, whole, and the configuration on a real server."""

import asyncio
import copy

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tableforge_operator.decide.resources.passwords import FIRST, Passwords
from tableforge_operator.decide.resources.redis_config_map import redis_config_map
from tableforge_operator.decide.resources.redis_stateful_set import redis_stateful_set
from tableforge_operator.decide.resources.secrets import redis_secrets
from tests.operator.model import expected
from tests.operator.model.expected import metadata
from tests.support.children import Child
from tests.support.redis import server_binary, server_environ

CONF = """\
port 6379
dir /data
include /var/run/tableforge/redis/auth.conf
appendonly yes
appendfsync always
save ""
maxmemory 256mb
maxmemory-policy noeviction
client-output-buffer-limit pubsub 32mb 8mb 60
tcp-keepalive 60
"""


def test_the_configuration_of_defaults(cluster):
    tables = cluster()
    assert redis_config_map(tables, tables.managed_redis) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata("tables-redis", expected.REDIS),
        "data": {"redis.conf": CONF},
    }


def test_memory_durability_syncs_once_a_second(cluster):
    tables = cluster({"redis": {"durability": "Memory", "managed": {"maxMemory": "2gb"}}})
    conf = redis_config_map(tables, tables.managed_redis)["data"]["redis.conf"]
    assert "appendfsync everysec\n" in conf
    assert "maxmemory 2gb\n" in conf


def test_the_stateful_set_of_defaults(cluster):
    tables = cluster()
    assert redis_stateful_set(tables, tables.managed_redis, config_hash="c0ffee") == {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata("tables-redis", expected.REDIS),
        "spec": {
            "replicas": 1,
            "podManagementPolicy": "Parallel",
            "serviceName": "tables-redis",
            "revisionHistoryLimit": 3,
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "selector": {"matchLabels": expected.REDIS},
            "template": {
                "metadata": {
                    "labels": {**expected.COMMON, **expected.REDIS},
                    "annotations": {"tableforge.io/config-hash": "c0ffee"},
                },
                "spec": {
                    "serviceAccountName": "tables",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "seccompProfile": {"type": "RuntimeDefault"},
                        "runAsUser": 999,
                        "runAsGroup": 999,
                        "fsGroup": 999,
                        "fsGroupChangePolicy": "OnRootMismatch",
                    },
                    "containers": [
                        {
                            "name": "redis",
                            "image": "valkey/valkey:9.1",
                            "args": ["/etc/redis/redis.conf"],
                            "ports": [{"name": "redis", "containerPort": 6379, "protocol": "TCP"}],
                            "resources": {
                                "requests": {"cpu": "100m", "memory": "320Mi"},
                                "limits": {"memory": "640Mi"},
                            },
                            "livenessProbe": {
                                "tcpSocket": {"port": "redis"},
                                "initialDelaySeconds": 30,
                                "periodSeconds": 10,
                                "timeoutSeconds": 5,
                                "failureThreshold": 6,
                            },
                            "readinessProbe": {
                                "tcpSocket": {"port": "redis"},
                                "initialDelaySeconds": 1,
                                "periodSeconds": 3,
                                "timeoutSeconds": 3,
                                "failureThreshold": 3,
                            },
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"]},
                                "readOnlyRootFilesystem": True,
                            },
                            "volumeMounts": [
                                {"name": "data", "mountPath": "/data"},
                                {"name": "config", "mountPath": "/etc/redis", "readOnly": True},
                                {"name": "auth", "mountPath": "/var/run/tableforge/redis", "readOnly": True},
                            ],
                        }
                    ],
                    "volumes": [
                        {"name": "config", "configMap": {"name": "tables-redis"}},
                        {
                            "name": "auth",
                            "secret": {
                                "secretName": "tables-redis-0d1e2f30-1",
                                "items": [{"key": "auth.conf", "path": "auth.conf"}],
                                "defaultMode": 0o444,
                            },
                        },
                    ],
                },
            },
            "volumeClaimTemplates": [
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {"name": "data", "labels": {**expected.COMMON, **expected.REDIS}},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "1Gi"}},
                    },
                }
            ],
        },
    }


def test_every_field_of_the_managed_redis_acts(cluster):
    tables = cluster(
        {
            "redis": {
                "managed": {
                    "image": "redis:8",
                    "maxMemory": "1gb",
                    "storage": {"size": "10Gi", "storageClassName": "fast"},
                    "persistence": {"onDelete": "Delete"},
                }
            }
        }
    )
    spec = redis_stateful_set(tables, tables.managed_redis, config_hash="c0ffee")["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    container = spec["template"]["spec"]["containers"][0]
    assert container["image"] == "redis:8"
    assert container["resources"] == {
        "requests": {"cpu": "100m", "memory": "1088Mi"},
        "limits": {"memory": "2176Mi"},
    }
    assert spec["volumeClaimTemplates"][0]["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "10Gi"}},
        "storageClassName": "fast",
    }


def test_the_template_of_a_claim_stays_as_it_is_once_it_is_there(cluster):
    before = cluster({"redis": {"managed": {"storage": {"storageClassName": "fast"}}}})
    made = redis_stateful_set(before, before.managed_redis, config_hash="c0ffee")
    # what an API server adds
    (template,) = copy.deepcopy(made)["spec"]["volumeClaimTemplates"]
    template["spec"]["volumeMode"] = "Filesystem"
    template["status"] = {"phase": "Pending"}
    live = {**made, "spec": {**made["spec"], "volumeClaimTemplates": [template]}}
    after = cluster({"redis": {"managed": {"storage": {"size": "9Gi", "storageClassName": "fast"}}}})
    assert redis_stateful_set(after, after.managed_redis, config_hash="c0ffee", live=live) == made


@pytest.mark.parametrize("binary", ["valkey", "redis7", "redis8"])
async def test_a_real_server_takes_the_old_and_the_new_password_and_no_other(
    cluster, secrets, tmp_path, binary
):
    hashes = {generation: (secrets.redis_password_hash(generation),) for generation in (1, 2)}
    both, _ = redis_secrets(cluster(), secrets, Passwords(taken=(1, 2), given=1, hashes=hashes))
    (tmp_path / "auth.conf").write_text(both["stringData"]["auth.conf"])
    (tmp_path / "redis.conf").write_text(
        f"port 0\nunixsocket {tmp_path}/socket\ndir {tmp_path}\ninclude {tmp_path}/auth.conf\n"
    )
    server = Child(
        [str(server_binary(binary)), str(tmp_path / "redis.conf")],
        log=tmp_path / "log",
        environ=server_environ(binary),
    )
    try:
        async with asyncio.timeout(60):
            while not (tmp_path / "socket").exists():
                assert server.returncode is None, server.output()
                await asyncio.sleep(0.02)
        path = str(tmp_path / "socket")
        for generation in (1, 2):
            word = secrets.redis_password(generation)
            async with redis.asyncio.Redis(unix_socket_path=path, password=word) as client:
                assert await client.set("key", generation)
                assert await client.execute_command("CONFIG", "GET", "appendonly")
        once = Retry(NoBackoff(), 0)
        for word in (secrets.redis_password(3), None):
            async with redis.asyncio.Redis(
                unix_socket_path=path, password=word, protocol=2, retry=once
            ) as stranger:
                with pytest.raises(redis.exceptions.RedisError, match=r"(?i)auth|pass"):
                    await stranger.ping()
    finally:
        await server.stop()


async def test_a_real_server_takes_the_configuration(cluster, secrets, tmp_path):
    tables = cluster()
    (tmp_path / "data").mkdir()
    auth = tmp_path / "auth.conf"
    (made,) = redis_secrets(tables, secrets, FIRST)
    auth.write_text(made["stringData"]["auth.conf"])
    conf = redis_config_map(tables, tables.managed_redis)["data"]["redis.conf"]
    # The paths are a container's, and clients come by a socket of our own.
    conf = conf.replace("/data", f"{tmp_path}/data").replace("/var/run/tableforge/redis/auth.conf", str(auth))
    conf = conf.replace("port 6379", f"port 0\nunixsocket {tmp_path}/socket")
    (tmp_path / "redis.conf").write_text(conf)
    server = await asyncio.create_subprocess_exec(
        server_binary("valkey"), str(tmp_path / "redis.conf"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        async with asyncio.timeout(60):
            while b"Ready to accept connections" not in await server.stdout.readline():
                pass
        path = str(tmp_path / "socket")
        async with redis.asyncio.Redis(unix_socket_path=path, password=secrets.redis_password(1)) as client:
            found = await client.config_get("append*", "maxmemory*", "save")
            assert found["appendonly"] == "yes"
            assert found["appendfsync"] == "always"
            assert found["maxmemory"] == str(256 * 1024 * 1024)
            assert found["maxmemory-policy"] == "noeviction"
            assert found["save"] == ""
        once = Retry(NoBackoff(), 0)
        async with redis.asyncio.Redis(unix_socket_path=path, protocol=2, retry=once) as stranger:
            with pytest.raises(redis.exceptions.ConnectionError, match="Authentication required"):
                await stranger.ping()
    finally:
        if server.returncode is None:
            server.terminate()
        await server.communicate()
