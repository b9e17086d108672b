"""The sample does with kubectl what a Kubernetes user expects."""

import asyncio
import collections
import json
from pathlib import Path

import aiohttp
import pytest

from demo import stage
from demo.kubectl import Kubectl, KubectlError
from devcluster import Devcluster
from tableforge_client import Message, connect
from tests.support.changes import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

OPERATOR_USER = f"system:serviceaccount:{stage.OPERATOR_NAMESPACE}:tableforge-operator"
WRITES = {"create", "update", "patch", "delete", "deletecollection"}


def operator_writes(audit_log: Path, namespace: str) -> collections.Counter[str]:
    """How often the operator wrote which resource in a namespace."""
    counted: collections.Counter[str] = collections.Counter()
    with audit_log.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break  # it is being written
            entry = json.loads(line)
            what, who = entry.get("objectRef", {}), entry["user"]["username"]
            if who == OPERATOR_USER and entry["verb"] in WRITES and what.get("namespace") == namespace:
                counted[what["resource"]] += 1
    return counted


async def reconciles(kubectl: Kubectl) -> float:
    """How many passes the operator has finished, from its own metrics."""
    pods = await kubectl.json("get", "pods", "-n", stage.OPERATOR_NAMESPACE)
    address = pods["items"][0]["status"]["podIP"]
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}:8080/metrics") as answer:
        text = await answer.text()
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("tableforge_operator_reconciles_total")
    )


async def passes(kubectl: Kubectl, count: int) -> None:
    """Wait until the operator has finished so many more passes."""
    before = await reconciles(kubectl)
    async with asyncio.timeout(90):
        while await reconciles(kubectl) < before + count:  # noqa: ASYNC110  (a metric is asked, it doesn't tell)
            await asyncio.sleep(0.5)


@pytest.fixture
async def sample(kubectl: Kubectl, namespace: str) -> str:
    """A namespace in which the sample is Ready and counted."""
    await kubectl("apply", "-n", namespace, "-f", str(stage.SAMPLE))
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/tables", "--timeout=120s")
    # Ready comes from the pods, the number of instances from the fleet, whose newest read may be older
    await kubectl(
        "wait", "-n", namespace, "--for=jsonpath={.status.instances}=3", "wsc/tables", "--timeout=110s"
    )
    return namespace


async def test_what_kubectl_shows(kubectl: Kubectl, sample: str) -> None:
    header, row = (await kubectl("get", "-n", sample, "wsc")).splitlines()
    shown = dict(zip(header.split(), row.split(), strict=True))
    assert shown | {"AGE": "-"} == {
        "NAME": "tables",
        "READY": "True",
        "INSTANCES": "3",
        "CONNECTIONS": "0",
        "ROOMS": "0",
        "AGE": "-",
    }
    described = await kubectl("describe", "-n", sample, "wsc/tables")
    for word in ("Ready", "RedisReady", "Observed Generation", "Instance Table:", "Events:"):
        assert word in described
    explained = await kubectl("explain", "wsc.spec.redis.durability")
    assert "Disk" in explained
    assert "DESCRIPTION:" in explained
    logs = await kubectl("logs", "-n", sample, "-l", "app.kubernetes.io/component=dataplane", "--tail=20")
    assert all(json.loads(line) for line in logs.splitlines())
    assert logs.strip()


async def test_scaling(kubectl: Kubectl, sample: str) -> None:
    await kubectl("scale", "-n", sample, "wsc/tables", "--replicas=4")
    await kubectl(
        "wait", "-n", sample, "--for=jsonpath={.status.readyReplicas}=4", "wsc/tables", "--timeout=110s"
    )
    await kubectl("wait", "-n", sample, "--for=condition=Ready", "wsc/tables", "--timeout=60s")
    scale = await kubectl.json("get", "-n", sample, "--subresource=scale", "wsc/tables")
    assert scale["status"]["replicas"] == 4
    selected = await kubectl.json("get", "pods", "-n", sample, "-l", scale["status"]["selector"])
    assert len(selected["items"]) == 4
    await kubectl("scale", "-n", sample, "wsc/tables", "--replicas=1")
    await kubectl(
        "wait", "-n", sample, "--for=jsonpath={.status.readyReplicas}=1", "wsc/tables", "--timeout=110s"
    )


async def test_applying_the_same_file_twice_writes_nothing(
    kubectl: Kubectl, sample: str, devcluster: Devcluster
) -> None:
    async def others() -> object:
        everywhere = await kubectl.json("get", "wsc", "-A")
        names = {cluster["metadata"]["namespace"] for cluster in everywhere["items"]} - {sample}
        return names or None

    await until(others, "all passes are of this cluster")
    before: collections.Counter[str] = collections.Counter()
    async with asyncio.timeout(120):
        # what it found out late about the fleet is in the status by now
        while before != (writes := operator_writes(devcluster.audit_log, sample)):
            before = writes
            await passes(kubectl, 3)
    assert before, "the audit log shows none of the operator's writes: this test would see nothing"
    said = await kubectl("apply", "-n", sample, "-f", str(stage.SAMPLE))
    assert "unchanged" in said
    await passes(kubectl, 3)
    assert operator_writes(devcluster.audit_log, sample) == before


async def test_the_other_samples_that_bring_all_they_need_run_too(kubectl: Kubectl, namespace: str) -> None:
    names = ("tables-autoscaling", "tables-blue-green")
    for name in names:
        await kubectl("apply", "-n", namespace, "-f", str(stage.SAMPLE.with_name(f"{name}.yaml")))
    for name in names:
        await kubectl("wait", "-n", namespace, "--for=condition=Ready", f"wsc/{name}", "--timeout=115s")
    autoscaler = await kubectl.json("get", "-n", namespace, "hpa/tables-autoscaling")
    assert (autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]) == (2, 6)
    deployments = await kubectl.json("get", "deployments", "-n", namespace)
    assert {(d["metadata"]["name"], d["status"].get("readyReplicas")) for d in deployments["items"]} == {
        ("tables-autoscaling-a", 2),
        ("tables-blue-green-a", 2),
    }


async def test_two_pods_talk(kubectl: Kubectl, sample: str) -> None:
    pods = await kubectl.json(
        "get",
        "pods",
        "-n",
        sample,
        "-l",
        "tableforge.io/cluster=tables,app.kubernetes.io/component=dataplane",
    )
    one, two, *_ = [f"ws://{pod['status']['podIP']}:3001/ws" for pod in pods["items"]]
    async with connect(one) as ada, connect(two) as ben:
        assert ada.instance != ben.instance
        from_ada, to_ben = await ada.join("table:1"), await ben.join("table:1")
        ack = await from_ada.publish("move", {"to": "e4"})
        item = await to_ben.receive()
        assert isinstance(item, Message)
        assert (item.event, item.data, item.seq, item.pos) == ("move", {"to": "e4"}, 1, ack.pos)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("spec: {replicas: -1}", "spec.replicas"),
        ("spec: {replicas: 3, auth: {required: true}}", "jwtSecretRef"),
        ("spec: {auth: {required: false}, websocket: {pingInterval: soon}}", "spec.websocket.pingInterval"),
        ("spec: {auth: {required: false}, replica: 3}", "spec.replica"),
    ],
)
async def test_a_wrong_value_is_refused(kubectl: Kubectl, namespace: str, change: str, said: str) -> None:
    manifest = (
        f"apiVersion: tableforge.io/v1alpha1\nkind: WebSocketCluster\nmetadata: {{name: wrong}}\n{change}\n"
    )
    with pytest.raises(KubectlError) as refusal:
        await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest)
    assert said in str(refusal.value)
