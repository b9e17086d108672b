"""What can change about a managed Redis changes while clients stay, and nothing acknowledged is lost."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from demo import stage
from demo.kubectl import Kubectl
from tableforge_client import Message, connect
from tests.support.ledger import Ledger

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
async def _leave_at_once(kubectl: Kubectl, namespace: str) -> AsyncIterator[None]:
    """Nobody is there any more whom the pods would have to send elsewhere."""
    yield
    await kubectl("delete", "wsc", "--all", "-n", namespace)
    await kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=0", "--force")


def manifest(**managed: Any) -> str:
    cluster = {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "metadata": {"name": "tables"},
        "spec": {
            "replicas": 2,
            "auth": {"required": False},
            "redis": {"managed": managed},
            "scaling": {"heartbeatInterval": "1s"},
            "clustering": {"failoverTimeout": "5s"},
            "rollout": {"drainTimeout": "1s"},
        },
    }
    return json.dumps(cluster)


class Tables:
    """The WebSocketCluster `tables` in a namespace."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._namespace = namespace

    async def apply(self, **managed: Any) -> None:
        """Returns once it is as it was asked for."""
        await self._kubectl("apply", "-n", self._namespace, "-f", "-", stdin=manifest(**managed))
        await self._kubectl(
            "wait",
            "-n",
            self._namespace,
            "--for=condition=Ready",
            "wsc/tables",
            "--timeout=150s",
            timeout_seconds=160,
        )

    async def try_image(self, image: str) -> None:
        """Ask for an image that cannot run; returns once the status says so."""
        await self._kubectl("apply", "-n", self._namespace, "-f", "-", stdin=manifest(image=image))
        async with asyncio.timeout(90):
            said = ""
            while image not in said:
                said = json.dumps((await self.get("wsc", "tables"))["status"]["conditions"])
                await asyncio.sleep(0.5)

    async def get(self, *words: str) -> Any:
        return await self._kubectl.json("get", "-n", self._namespace, *words)

    async def url(self) -> str:
        service = await self.get("service", "tables")
        return f"ws://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}/ws"

    async def instances(self) -> dict[str, int]:
        """The pods' uids, with how often their containers were restarted."""
        pods = await self.get(
            "pods", "-l", "tableforge.io/cluster=tables,app.kubernetes.io/component=dataplane"
        )
        return {
            pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"]
            for pod in pods["items"]
        }

    async def password(self, generation: int) -> str:
        uid = (await self.get("wsc", "tables"))["metadata"]["uid"]
        secret = await self.get("secret", f"tables-redis-{uid[:8]}-{generation}")
        return base64.b64decode(secret["data"]["password"]).decode()

    async def redis(self, password: str) -> "redis.asyncio.Redis":
        service = await self.get("service", "tables-redis")
        return redis.asyncio.Redis(
            host=service["spec"]["clusterIP"], password=password, retry=Retry(NoBackoff(), 0), protocol=2
        )


async def _info(tables: Tables, generation: int) -> dict[str, Any]:
    """Asked until it is reached: the Service leads to a new pod some time after that is ready."""
    client = await tables.redis(await tables.password(generation))
    async with client, asyncio.timeout(60):
        while True:
            try:
                found: dict[str, Any] = await client.info()
            except redis.exceptions.ConnectionError:
                await asyncio.sleep(0.5)
            else:
                return found


async def test_a_new_version_more_memory_and_a_new_password_while_clients_publish(
    kubectl: Kubectl, namespace: str
) -> None:
    tables = Tables(kubectl, namespace)
    await tables.apply(image="test/redis-7.4", maxMemory="64mb")
    before = await tables.instances()
    assert len(before) == 2
    async with Ledger(await tables.url(), members=3, rooms=4, seed=11, backoff_longest=2.0) as ledger:
        over = asyncio.Event()

        async def publish() -> None:
            while not over.is_set():
                await ledger.publish(30, over_seconds=1)

        publishing = asyncio.create_task(publish())
        first = await _info(tables, 1)
        assert first["redis_version"].startswith("7.4")
        await tables.try_image("nobody/has:this")
        await tables.apply(image="test/redis-8", maxMemory="96mb")
        second = await _info(tables, 1)
        assert second["redis_version"].startswith("8.")
        assert second["maxmemory"] == 96 * 1024 * 1024
        old = await tables.password(1)
        await tables.apply(image="test/redis-8", maxMemory="96mb", passwordGeneration=2)
        workload = await tables.get("statefulset", "tables-redis")
        (auth,) = [
            volume["secret"]["secretName"]
            for volume in workload["spec"]["template"]["spec"]["volumes"]
            if volume["name"] == "auth"
        ]
        assert auth.endswith("-2")
        assert not auth.endswith("-1-2")
        assert (await _info(tables, 2))["run_id"] != second["run_id"]
        stranger = await tables.redis(old)
        async with stranger:
            with pytest.raises(redis.exceptions.RedisError, match="invalid username-password"):
                await stranger.ping()
        over.set()
        await publishing
        await ledger.settle(timeout_seconds=60)
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()
    assert not verdict.unknown, verdict.describe()
    assert not verdict.resets, verdict.describe()
    assert ledger.reconnects == 0, "a client lost its connection"
    assert await tables.instances() == before, "an instance was replaced or restarted"
    shown = json.dumps(await tables.get("wsc", "tables"))
    assert old not in shown

    # deleted and made again under its name, it finds its rooms
    claim = await tables.get("pvc", "data-tables-redis-0")
    await kubectl("delete", "-n", namespace, "wsc/tables")
    await stage.eventually_empty(
        kubectl, "statefulsets,deployments,pods", "-n", namespace, timeout_seconds=120
    )
    await tables.apply(image="test/redis-8", maxMemory="96mb")
    assert (await tables.get("pvc", "data-tables-redis-0"))["metadata"]["uid"] == claim["metadata"]["uid"]
    async with connect(await tables.url()) as ada:
        for name, newest in ledger.book.newest().items():
            room = await ada.join(name)
            ack = await room.publish("entry", "one more")
            assert ack.seq == newest.seq + 1


async def test_a_secret_deleted_by_hand_is_there_again_for_a_redis_that_starts_anew(
    kubectl: Kubectl, namespace: str
) -> None:
    tables = Tables(kubectl, namespace)
    await tables.apply()
    password = await tables.password(1)
    url = await tables.url()
    async with connect(url) as ada, connect(url) as ben:
        from_ada, to_ben = await ada.join("room"), await ben.join("room")
        uid = (await tables.get("wsc", "tables"))["metadata"]["uid"]
        await kubectl("delete", "-n", namespace, f"secret/tables-redis-{uid[:8]}-1")
        await kubectl("delete", "-n", namespace, "pod/tables-redis-0")
        async with asyncio.timeout(150):
            await from_ada.publish("entry", "after all")
            said = await to_ben.receive()
    assert isinstance(said, Message)
    assert said.data == "after all"
    assert await tables.password(1) == password
