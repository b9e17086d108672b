"""What a spec says reaches the instances: without a restart where it can, by new pods where it cannot."""

import asyncio
import json
import ssl
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.asyncio.client import connect

from demo.kubectl import Kubectl
from tests.dataplane.door.certificates import write_pair
from tests.dataplane.path.instances import Frame, Peer
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

KEY = ed25519.Ed25519PrivateKey.generate()


def manifest(redis: RedisServer, **spec: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "tableforge.io/v1alpha1",
            "kind": "WebSocketCluster",
            "metadata": {"name": "tables"},
            "spec": {
                "replicas": 1,
                "auth": {"publicKeys": {"configMapRef": {"name": "token-keys", "key": "public.pem"}}},
                "websocket": {"tls": {"secretName": "certificate"}},
                "rollout": {"drainTimeout": "1s"},
                "redis": {"external": {"host": "127.0.0.1", "port": redis.port}},
                **spec,
            },
        }
    )


async def pod(kubectl: Kubectl, namespace: str) -> dict[str, Any] | None:
    """The one that is ready and stays; None while there is none, or more than one."""
    found = await kubectl.json("get", "pods", "-n", namespace, "-l", "tableforge.io/cluster=tables")
    ready = [
        item
        for item in found["items"]
        if not item["metadata"].get("deletionTimestamp")
        and any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"].get("conditions", []))
    ]
    return ready[0] if len(ready) == len(found["items"]) == 1 else None


async def another_pod(kubectl: Kubectl, namespace: str, uid: str) -> dict[str, Any]:
    """Wait until the one that is ready is not the one with this uid."""
    async with asyncio.timeout(120):
        while True:
            found = await pod(kubectl, namespace)
            if found is not None and found["metadata"]["uid"] != uid:
                return found
            await asyncio.sleep(0.5)


async def says(kubectl: Kubectl, namespace: str, *words: str) -> None:
    """Wait until the condition Ready has these words in its message."""
    message = ""
    try:
        async with asyncio.timeout(90):
            while not all(word in message for word in words):
                cluster = await kubectl.json("get", "-n", namespace, "wsc/tables")
                conditions = cluster.get("status", {}).get("conditions", [])
                message = next((c["message"] for c in conditions if c["type"] == "Ready"), "")
                await asyncio.sleep(0.5)
    except TimeoutError:
        pytest.fail(f"Ready never said {words}, but: {message}")


@pytest.fixture
async def secured(kubectl: Kubectl, namespace: str, redis_server: RedisServer, tmp_path: Path) -> str:
    """A cluster with TLS on its port and tokens checked by a public key, first without either of them."""
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest(redis_server))
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    await says(kubectl, namespace, "ConfigMap token-keys")
    await kubectl("create", "configmap", "-n", namespace, "token-keys", f"--from-literal=public.pem={public}")
    await says(kubectl, namespace, "Secret certificate")
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    write_pair(certificate, key, name="tables")
    await kubectl(
        "create", "secret", "tls", "-n", namespace, "certificate", f"--cert={certificate}", f"--key={key}"
    )
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/tables", "--timeout=120s")
    return namespace


def token(user: str) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 600}, KEY, "EdDSA")


async def refused_join(peer: Peer) -> str:
    """Join room after room until one is refused; what the refusal says."""
    async with asyncio.timeout(120):
        for number in range(10_000):
            await peer.say({"type": "join", "id": number, "room": f"room:{number % 5}"})
            answer: Frame = await peer.hear()
            while answer.get("id") != number:
                answer = await peer.hear()
            if answer["type"] == "error":
                return str(answer["message"])
            await asyncio.sleep(0.25)
    raise AssertionError("unreachable")


async def test_limits_change_under_connected_clients_and_the_rest_makes_new_pods(
    kubectl: Kubectl, secured: str, redis_server: RedisServer
) -> None:
    cluster = await kubectl.json("get", "-n", secured, "wsc/tables")
    assert cluster["status"]["url"] == f"wss://tables.{secured}.svc:3001/ws"
    service = await kubectl.json("get", "-n", secured, "service/tables")
    assert service["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/wss"
    before = await pod(kubectl, secured)
    assert before is not None
    deployment = await kubectl.json("get", "-n", secured, "deployment/tables-a")
    context = ssl.create_default_context()
    context.check_hostname = False  # the test's certificate is for another address than the pod's
    context.verify_mode = ssl.CERT_NONE
    async with connect(
        f"wss://{before['status']['podIP']}:3001/ws",
        ssl=context,
        additional_headers={"Authorization": f"Bearer {token('ada')}"},
    ) as socket:
        ada = Peer(socket)
        assert (await ada.hear_type("welcome"))["user"] == "ada"
        await ada.join("room:0")
        live = manifest(
            redis_server,
            security={"maxRoomsPerConnection": 2},
            monitoring={"logLevel": "debug", "enableDetailedLogging": True},
        )
        await kubectl("apply", "-n", secured, "-f", "-", stdin=live)
        assert "may be in 2 rooms" in await refused_join(ada)
        await ada.say({"type": "ping", "id": "still here"})
        assert (await ada.until("pong"))["id"] == "still here"
    logs = await kubectl("logs", "-n", secured, before["metadata"]["name"])
    (changed,) = [line for line in map(json.loads, logs.splitlines()) if line["event"] == "live_settings"]
    assert changed["log_level"] == "debug"
    async with asyncio.timeout(60):
        while '"connection_closed"' not in logs:
            await asyncio.sleep(0.5)
            logs = await kubectl("logs", "-n", secured, before["metadata"]["name"])
    after = await pod(kubectl, secured)
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    now = await kubectl.json("get", "-n", secured, "deployment/tables-a")
    assert now["metadata"]["generation"] == deployment["metadata"]["generation"]

    # what a client is told at its welcome takes a new pod
    restart = manifest(redis_server, websocket={"tls": {"secretName": "certificate"}, "pingInterval": "7s"})
    await kubectl("apply", "-n", secured, "-f", "-", stdin=restart)
    new = await another_pod(kubectl, secured, before["metadata"]["uid"])
    async with connect(
        f"wss://{new['status']['podIP']}:3001/ws",
        ssl=context,
        additional_headers={"Authorization": f"Bearer {token('ada')}"},
    ) as socket:
        assert (await Peer(socket).hear_type("welcome"))["pingInterval"] == 7
