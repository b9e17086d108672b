"""What is missing or broken shows as a condition that says what to do, and heals by itself once mended."""

import asyncio
import json
from typing import Any

import pytest

from demo.kubectl import Kubectl
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]


async def condition(kubectl: Kubectl, namespace: str, name: str, kind: str) -> dict[str, Any]:
    """The condition of that type; empty where there is none."""
    cluster = await kubectl.json("get", "-n", namespace, f"wsc/{name}")
    return next((c for c in cluster.get("status", {}).get("conditions", []) if c["type"] == kind), {})


async def message_with(
    kubectl: Kubectl, namespace: str, name: str, kind: str, words: tuple[str, ...]
) -> None:
    """Wait until the condition's message has all the words."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(120):
            while not all(word in found.get("message", "") for word in words):
                found = await condition(kubectl, namespace, name, kind)
                await asyncio.sleep(0.5)
    except TimeoutError:
        pytest.fail(f"{kind} never said {words}, but: {json.dumps(found)}")


async def test_a_missing_secret(kubectl: Kubectl, namespace: str) -> None:
    manifest = """
apiVersion: tableforge.io/v1alpha1
kind: WebSocketCluster
metadata: {name: locked}
spec:
  replicas: 1
  auth: {jwtSecretRef: {name: tables-jwt}}
  redis: {managed: {persistence: {onDelete: Delete}}}
"""
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest)
    await message_with(kubectl, namespace, "locked", "Ready", ("tables-jwt", "secret"))
    assert (await condition(kubectl, namespace, "locked", "Ready"))["status"] == "False"
    key = "0123456789abcdef0123456789abcdef"
    await kubectl(
        "create", "secret", "generic", "-n", namespace, "tables-jwt", f"--from-literal=secret={key}"
    )
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/locked", "--timeout=120s")
    shown = await kubectl("get", "-n", namespace, "wsc/locked", "-o", "yaml")
    assert key not in shown


async def test_a_redis_that_is_down(kubectl: Kubectl, namespace: str, redis_server: RedisServer) -> None:
    await redis_server.kill9()
    manifest = f"""
apiVersion: tableforge.io/v1alpha1
kind: WebSocketCluster
metadata: {{name: outside}}
spec:
  replicas: 1
  auth: {{required: false}}
  redis: {{external: {{host: 127.0.0.1, port: {redis_server.port}}}}}
"""
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest)
    await message_with(kubectl, namespace, "outside", "RedisReady", (str(redis_server.port),))
    assert (await condition(kubectl, namespace, "outside", "RedisReady"))["status"] == "False"
    await redis_server.start()
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/outside", "--timeout=110s")
    await redis_server.kill9()
    await kubectl(
        "wait", "-n", namespace, "--for=condition=RedisReady=False", "wsc/outside", "--timeout=110s"
    )
    pods = await kubectl.json("get", "pods", "-n", namespace, "-l", "tableforge.io/cluster=outside")
    ready = [
        c["status"] for pod in pods["items"] for c in pod["status"]["conditions"] if c["type"] == "Ready"
    ]
    assert ready == ["True"], "Redis away must not take the pods out of the Service"
    await redis_server.start()
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/outside", "--timeout=110s")
