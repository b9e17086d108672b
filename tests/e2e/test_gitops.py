"""Argo CD and Flux see a cluster as it is, by what a real operator writes about real pods."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from demo import stage
from demo.kubectl import Kubectl
from tests.support.argo_cd import Health, health
from tests.support.kstatus import compute
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

CHECK = (stage.MANIFESTS / "gitops" / "argocd" / "health.lua").read_text()
AGREE = {
    "Progressing": {"InProgress"},
    "Healthy": {"Current"},
    "Degraded": {"Failed"},
    "Suspended": {"InProgress", "Current", "Failed"},  # kstatus knows no pause
}
NOBODY_HAS = "registry.example/nobody/has:it"


def manifest(redis: RedisServer, name: str, **spec: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "tableforge.io/v1alpha1",
            "kind": "WebSocketCluster",
            "metadata": {"name": name},
            "spec": {
                "replicas": 1,
                "redis": {"external": {"host": "127.0.0.1", "port": redis.port}},
                "rollout": {"drainTimeout": "1s", "progressDeadline": "30s"},
                **spec,
            },
        }
    )


async def until(
    kubectl: Kubectl, namespace: str, name: str, status: str, said: Callable[[str], bool] = bool
) -> Health:
    """Wait until Argo CD would show this status, with such a message. At each look Flux agrees with it."""
    last = None
    try:
        async with asyncio.timeout(120):
            while True:
                cluster = await kubectl.json("get", "-n", namespace, f"wsc/{name}")
                last = health(CHECK, cluster)
                assert compute(cluster).status in AGREE[last.status], cluster
                if last.status == status and said(last.message):
                    return last
                await asyncio.sleep(0.5)
    except TimeoutError:
        pytest.fail(f"{name} never was {status}, last: {last}")


async def test_a_clusters_life_as_argo_cd_shows_it(
    kubectl: Kubectl, namespace: str, redis_server: RedisServer
) -> None:
    broken = manifest(redis_server, "broken", image=NOBODY_HAS, auth={"required": False})
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=broken)
    # not at once, but when nothing has moved for progressDeadline
    await until(kubectl, namespace, "broken", "Progressing")
    locked = manifest(redis_server, "locked", auth={"jwtSecretRef": {"name": "tables-jwt"}})
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=locked)

    told = await until(kubectl, namespace, "broken", "Degraded", lambda said: NOBODY_HAS in said)
    assert "spec.image" in told.message
    told = await until(kubectl, namespace, "locked", "Degraded", lambda said: "tables-jwt" in said)
    assert "does not exist" in told.message

    key = "--from-literal=secret=0123456789abcdef0123456789abcdef"
    await kubectl("create", "secret", "generic", "-n", namespace, "tables-jwt", key)
    patch = '{"spec": {"image": null}}'
    await kubectl("patch", "-n", namespace, "wsc/broken", "--type=merge", "-p", patch)
    for name in ("locked", "broken"):
        told = await until(kubectl, namespace, name, "Healthy")
        assert "1" in told.message
        ready = await kubectl("wait", "-n", namespace, "--for=condition=Ready", f"wsc/{name}", "--timeout=0")
        assert "condition met" in ready

    await kubectl("annotate", "-n", namespace, "wsc/locked", "tableforge.io/paused=true")
    await until(kubectl, namespace, "locked", "Suspended")
    await kubectl("scale", "-n", namespace, "wsc/locked", "--replicas=2")
    await until(kubectl, namespace, "locked", "Suspended")
    await kubectl("annotate", "-n", namespace, "wsc/locked", "tableforge.io/paused-")
    await until(kubectl, namespace, "locked", "Healthy", lambda said: "2" in said)
