"""A Redis of one's own in every shape it comes in: the cluster gets Ready, and clients on two pods talk."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from demo.kubectl import Kubectl
from tableforge_client import Client, Message, connect
from tests.dataplane.door.certificates import write_pair
from tests.support.children import free_port
from tests.support.redis import RedisServer
from tests.support.redis_cluster import RedisCluster, RedisSentinels

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

OLD, NEW = "the-first-password", "the-second-password"


@pytest.fixture(autouse=True)
async def _leave_at_once(kubectl: Kubectl, namespace: str) -> AsyncIterator[None]:
    """Nobody is there any more whom the pods would have to send elsewhere."""
    yield
    await kubectl("delete", "wsc", "--all", "-n", namespace)
    await kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=0", "--force")


async def apply(kubectl: Kubectl, namespace: str, external: dict[str, Any], **redis_: Any) -> None:
    """A WebSocketCluster `outside` with two instances on that Redis; returns once it is Ready."""
    manifest = {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "metadata": {"name": "outside"},
        "spec": {
            "replicas": 2,
            "auth": {"required": False},
            "rollout": {"drainTimeout": "1s"},
            "redis": {"external": external, **redis_},
        },
    }
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(manifest))
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/outside", "--timeout=120s")


async def pods(kubectl: Kubectl, namespace: str) -> list[dict[str, Any]]:
    found = await kubectl.json("get", "pods", "-n", namespace, "-l", "tableforge.io/cluster=outside")
    items: list[dict[str, Any]] = found["items"]
    return items


@contextlib.asynccontextmanager
async def two_clients(kubectl: Kubectl, namespace: str) -> AsyncIterator[tuple[Client, Client]]:
    """A client on each of the two pods."""
    one, two = [f"ws://{pod['status']['podIP']}:3001/ws" for pod in await pods(kubectl, namespace)]
    async with connect(one) as ada, connect(two) as ben:
        assert ada.instance != ben.instance
        yield ada, ben


async def talk(ada: Client, ben: Client, room: str) -> None:
    from_ada, to_ben = await ada.join(room), await ben.join(room)
    for number in range(5):
        await from_ada.publish("move", number)
    heard = [await to_ben.receive() for _ in range(5)]
    assert [item.data for item in heard if isinstance(item, Message)] == list(range(5))


async def redis_ready(kubectl: Kubectl, namespace: str) -> str:
    """The message of RedisReady, which is True."""
    cluster = await kubectl.json("get", "-n", namespace, "wsc/outside")
    (found,) = [one for one in cluster["status"]["conditions"] if one["type"] == "RedisReady"]
    assert (found["status"], found["reason"]) == ("True", "Connected"), found
    message: str = found["message"]
    return message


def host_and_port(addresses: str) -> list[str]:
    return addresses.split(",")


async def test_a_primary_behind_sentinels(kubectl: Kubectl, namespace: str) -> None:
    async with RedisSentinels(down_after_ms=30_000) as sentinels:
        await apply(
            kubectl,
            namespace,
            {
                "mode": "Sentinel",
                "sentinel": {"masterName": sentinels.name, "addresses": host_and_port(sentinels.addresses)},
            },
            durability="Replica",
        )
        assert "a replica has it, too" in await redis_ready(kubectl, namespace)
        async with two_clients(kubectl, namespace) as (ada, ben):
            await talk(ada, ben, "table:1")


async def test_a_redis_cluster(kubectl: Kubectl, namespace: str) -> None:
    async with RedisCluster() as nodes:
        await apply(
            kubectl,
            namespace,
            {"mode": "Cluster", "cluster": {"addresses": host_and_port(nodes.addresses)[:2]}},
        )
        assert "Redis has it in memory" in await redis_ready(kubectl, namespace)
        async with two_clients(kubectl, namespace) as (ada, ben):
            # rooms on all shards, with overwhelming probability
            for number in range(12):
                await talk(ada, ben, f"table:{number}")


async def secret(kubectl: Kubectl, namespace: str, *words: str) -> None:
    """Create a Secret, or replace what is in it."""
    manifest = await kubectl("create", "secret", *words, "-n", namespace, "--dry-run=client", "-o", "yaml")
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest)


async def test_a_server_with_tls_whose_password_changes(
    kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    for name in ("server", "client"):
        write_pair(
            tmp_path / f"{name}.crt",
            tmp_path / f"{name}.key",
            name=name,
            host="redis.example" if name == "server" else None,
        )
    port = free_port()
    args = ["--tls-port", str(port), "--tls-auth-clients", "yes"]
    args += ["--tls-cert-file", str(tmp_path / "server.crt"), "--tls-key-file", str(tmp_path / "server.key")]
    args += ["--tls-ca-cert-file", str(tmp_path / "client.crt")]
    async with RedisServer(tmp_path / "redis", binary="redis7", args=tuple(args)) as server:
        admin = redis.asyncio.Redis(host=server.host, port=server.port)
        await admin.execute_command("ACL", "SETUSER", "tables", "on", f">{OLD}", "~*", "&*", "+@all")
        await secret(kubectl, namespace, "generic", "login", f"--from-literal=password={OLD}")
        await secret(
            kubectl, namespace, "generic", "authorities", f"--from-file=ca.crt={tmp_path / 'server.crt'}"
        )
        await secret(
            kubectl,
            namespace,
            "tls",
            "ours",
            f"--cert={tmp_path / 'client.crt'}",
            f"--key={tmp_path / 'client.key'}",
        )
        await apply(
            kubectl,
            namespace,
            {
                "host": server.host,
                "port": port,
                "username": "tables",
                "passwordSecretRef": {"name": "login"},
                "tls": {
                    "caSecretRef": {"name": "authorities"},
                    "clientCertificateSecretRef": {"name": "ours"},
                    "serverName": "redis.example",
                },
            },
            durability="Disk",
        )
        assert "it is on disk" in await redis_ready(kubectl, namespace)
        before = {pod["metadata"]["uid"] for pod in await pods(kubectl, namespace)}
        async with two_clients(kubectl, namespace) as (ada, ben):
            await talk(ada, ben, "before")
            await admin.execute_command("ACL", "SETUSER", "tables", "resetpass", f">{NEW}")
            await secret(kubectl, namespace, "generic", "login", f"--from-literal=password={NEW}")
            # every connection has to be made anew, with the new password
            await admin.execute_command("ACL", "LOG", "RESET")
            killed = await admin.execute_command("CLIENT", "KILL", "USER", "tables")
            assert killed > 0
            await talk(ada, ben, "after")
        users = [one["user"] for one in await admin.client_list()]
        assert users.count("tables") >= 2
        assert {pod["metadata"]["uid"] for pod in await pods(kubectl, namespace)} == before
        restarts = [
            status["restartCount"]
            for pod in await pods(kubectl, namespace)
            for status in pod["status"]["containerStatuses"]
        ]
        assert restarts == [0, 0]
        shown = await kubectl("get", "-n", namespace, "wsc/outside", "-o", "yaml")
        assert OLD not in shown
        assert NEW not in shown
        await admin.aclose()
