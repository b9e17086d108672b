"""A cluster with options of its own where only restricted pods are let in, and what Prometheus would see."""

import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from demo import stage
from demo.kubectl import Kubectl
from tableforge_client import connect
from tableforge_operator import api
from tableforge_operator.decide.resources.alerts import alerts
from tests.operator.model.promql import asked, without_variables

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

MONITORING = Path(__file__).parents[2] / "manifests" / "monitoring"
ENVIRONMENT = [
    {"name": "REGION", "valueFrom": {"configMapKeyRef": {"name": "place", "key": "region"}}},
    {"name": "LICENCE", "valueFrom": {"secretKeyRef": {"name": "licence", "key": "key"}}},
    {"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"},
]
SPEC: dict[str, Any] = {
    "replicas": 1,
    "auth": {"required": False},
    "redis": {"managed": {"maxMemory": "32mb", "persistence": {"onDelete": "Delete"}}},
    "rollout": {"drainTimeout": "5s"},
    "service": {"port": 8080},
    "ingress": {"host": "tables.example.com", "annotations": {"kubernetes.io/ingress.class": "nobody's"}},
    "pod": {
        "labels": {"team": "tables"},
        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}},
        "topologySpreadConstraints": [
            {"topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "tolerations": [{"operator": "Exists"}],
        "extraEnv": ENVIRONMENT,
    },
}


@pytest.fixture
async def cluster(kubectl: Kubectl, namespace: str) -> dict[str, Any]:
    """The cluster, Ready."""
    await kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    made = {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "metadata": {"name": "tables"},
        "spec": SPEC,
    }
    place = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "place"}, "data": {"region": "eu"}}
    licence = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "licence"}}
    text = yaml.safe_dump_all([place, {**licence, "stringData": {"key": "sesame"}}, made])
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=text)
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/tables", "--timeout=120s")
    found: dict[str, Any] = await kubectl.json("get", "-n", namespace, "wsc/tables")
    return found


async def test_pods_are_as_asked_for_and_metrics_as_the_alerts_expect(
    kubectl: Kubectl, namespace: str, cluster: dict[str, Any]
) -> None:
    selector = "app.kubernetes.io/component=dataplane,team=tables"
    (pod,) = (await kubectl.json("get", "pods", "-n", namespace, "-l", selector))["items"]
    environment = process_environment(pod["metadata"]["name"])
    assert environment["REGION"] == "eu"
    assert environment["LICENCE"] == "sesame"
    assert environment["HTTPS_PROXY"] == "http://proxy.example:3128"

    service = await kubectl.json("get", "-n", namespace, "service/tables")
    async with connect(f"ws://{service['spec']['clusterIP']}:8080/ws") as ada:
        room = await ada.join("table:1")
        assert (await room.publish("move", {"to": "e4"})).pos
        instances = await families(f"http://{pod['status']['podIP']}:3002/metrics")
    assert "eu" not in json.dumps(cluster["status"])

    (operator,) = (await kubectl.json("get", "pods", "-n", stage.OPERATOR_NAMESPACE))["items"]
    operators = await families(f"http://{operator['status']['podIP']}:8080/metrics")
    for expression in [alert.expression for alert in alerts(api.load(cluster))]:
        assert names(expression) <= instances, expression
    rules = yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]["groups"][0]["rules"]
    for rule in rules:
        assert names(rule["expr"]) <= operators, rule["alert"]
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            assert names(without_variables(target["expr"])) <= instances | operators, panel["title"]


def names(expression: str) -> set[str]:
    """The metrics of an expression, by their families; `up` is Prometheus's own."""
    found = {selector.name for selector in asked(expression)} - {"up"}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


async def families(url: str) -> set[str]:
    """The metrics that a page is about, whether there is anything to count yet or not."""
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        assert answer.status == 200
        return set(re.findall(r"^# TYPE (\S+) ", await answer.text(), re.MULTILINE))


def process_environment(instance: str) -> dict[str, str]:
    """The environment of the process that is this instance."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended, or is somebody else's
        found = dict(variable.partition("=")[::2] for variable in variables if "=" in variable)
        if found.get("INSTANCE_ID") == instance:
            return found
    raise AssertionError(f"no process is {instance}")
