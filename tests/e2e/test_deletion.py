"""Deletion never hangs: the cluster, its namespace, or the operator first and the cluster afterwards."""

import asyncio

import pytest

from demo import stage
from demo.kubectl import Kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

SMALL = """
apiVersion: tableforge.io/v1alpha1
kind: WebSocketCluster
metadata: {name: small}
spec:
  replicas: 1
  auth: {required: false}
  redis: {managed: {persistence: {onDelete: Delete}}}
"""


async def running(kubectl: Kubectl, namespace: str) -> None:
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=SMALL)
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/small", "--timeout=120s")


async def gone(kubectl: Kubectl, namespace: str) -> None:
    kinds = "wsc,deploy,rs,sts,pods,svc,cm,secrets,sa,pdb,pvc"
    await stage.eventually_empty(
        kubectl, kinds, "-n", namespace, "-l", "tableforge.io/cluster=small", timeout_seconds=120
    )


async def test_deleting_the_cluster_leaves_nothing(kubectl: Kubectl, namespace: str) -> None:
    await running(kubectl, namespace)
    finalizers = (await kubectl.json("get", "-n", namespace, "wsc/small"))["metadata"].get("finalizers")
    assert finalizers is None
    async with asyncio.timeout(60):
        await kubectl("delete", "-n", namespace, "wsc/small")
    await gone(kubectl, namespace)


async def test_deleting_the_namespace(kubectl: Kubectl, namespace: str) -> None:
    await running(kubectl, namespace)
    await kubectl("delete", "namespace", namespace, "--timeout=180s", timeout_seconds=190)
    with pytest.raises(Exception, match="not found"):
        await kubectl("get", "namespace", namespace)


async def test_deleting_the_operator_first(kubectl: Kubectl, namespace: str) -> None:
    await running(kubectl, namespace)
    operator = ("-n", stage.OPERATOR_NAMESPACE, stage.OPERATOR_DEPLOYMENT)
    await kubectl("delete", *operator, "--timeout=110s")
    try:
        await stage.eventually_empty(kubectl, "pods", "-n", stage.OPERATOR_NAMESPACE, timeout_seconds=120)
        async with asyncio.timeout(60):
            await kubectl("delete", "-n", namespace, "wsc/small")
        await gone(kubectl, namespace)
    finally:
        await stage.install_operator(kubectl)
