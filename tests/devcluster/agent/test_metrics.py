"""The resource metrics API: what `kubectl top` shows, and an autoscaler that goes by it."""

from typing import Any

import pytest

from devcluster.agent import selectors
from devcluster.agent.fields import quantity
from tests.devcluster.agent.workloads import deployment, eventually, pod, shell
from tests.support.kubectl import Kubectl, KubectlError

pytestmark = pytest.mark.cluster

BURN = "while :; do :; done"
PATIENCE_SECONDS = 240


def top(kubectl: Kubectl, *arguments: str) -> dict[str, tuple[float, float]]:
    """What `kubectl top pods` shows: cores and bytes by pod."""
    lines = kubectl("top", "pods", "--no-headers", *arguments).splitlines()
    return {
        name: (float(quantity(cpu)), float(quantity(memory)))
        for name, cpu, memory in (line.split() for line in lines)
    }


def test_top_shows_what_the_processes_of_a_pod_use(kubectl: Kubectl) -> None:
    # The one that works is not the container's first process.
    kubectl.apply(pod("burns", shell(f"({BURN}) & wait")))
    kubectl.apply(pod("sleeps", shell("exec sleep 1000")))

    def look() -> dict[str, tuple[float, float]] | None:
        found = top(kubectl)  # an error while there are no metrics yet
        burns, sleeps = (found.get(name, (0, 0))[0] for name in ("burns", "sleeps"))
        # Starting is work, too, even of who then sleeps.
        return found if burns >= 0.05 and "sleeps" in found and sleeps <= 0.01 else None

    found = eventually(look, within_seconds=PATIENCE_SECONDS)
    assert all(memory >= 100_000 for _, memory in found.values())
    assert list(top(kubectl, "--selector=app=sleeps")) == ["sleeps"]
    assert "burns" in kubectl("top", "pods", "burns", "--containers")
    ((_, cpu, _, memory, _),) = (
        line.split() for line in Kubectl(kubectl.kubeconfig)("top", "nodes", "--no-headers").splitlines()
    )
    assert quantity(cpu) >= quantity("50m")
    assert quantity(memory) > 0
    kubectl("delete", "pod", "burns", "--now")
    eventually(lambda: "burns" not in top(kubectl), within_seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("resource", "busy"),
    [
        ("cpu", "while [ ! -e /page/quiet ]; do :; done"),
        (
            "memory",
            "held=$(head -c 32000000 /dev/zero | tr '\\0' x); while [ ! -e /page/quiet ]; do sleep 0.2; done",
        ),
    ],
    ids=["cpu", "memory"],
)
def test_an_autoscaler_follows_the_load_up_and_down(kubectl: Kubectl, resource: str, busy: str) -> None:
    requests = {"requests": {"cpu": "20m", "memory": "16Mi"}}
    script = f"{busy}; exec sleep 1000"
    volume = {"name": "page", "configMap": {"name": "page", "optional": True}}
    container = shell(script, resources=requests, volumeMounts=[{"name": "page", "mountPath": "/page"}])
    kubectl.apply(deployment("web", container, replicas=1, volumes=[volume]))
    kubectl.apply(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "web"},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
                "minReplicas": 1,
                "maxReplicas": 2,
                "metrics": [
                    {
                        "type": "Resource",
                        "resource": {
                            "name": resource,
                            "target": {"type": "Utilization", "averageUtilization": 50},
                        },
                    }
                ],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            },
        }
    )

    def replicas() -> int:
        number: int = kubectl.get("deployment", "web")["spec"]["replicas"]
        return number

    eventually(lambda: replicas() == 2, within_seconds=PATIENCE_SECONDS)
    conditions: list[dict[str, Any]] = kubectl.get("hpa", "web")["status"]["conditions"]
    assert {one["type"]: one["status"] for one in conditions}["ScalingActive"] == "True"
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "page"}, "data": {"quiet": "yes"}}
    )
    eventually(lambda: replicas() == 1, within_seconds=PATIENCE_SECONDS)


def test_an_api_that_is_aggregated_hides_behind_the_rights_of_who_asks(kubectl: Kubectl) -> None:
    kubectl("create", "serviceaccount", "nobody")
    nobody = f"--as=system:serviceaccount:{kubectl.namespace}:nobody"
    raw = f"/apis/metrics.k8s.io/v1beta1/namespaces/{kubectl.namespace}/pods"
    with pytest.raises(KubectlError, match="cannot list resource"):
        kubectl("get", "--raw", raw, nobody)
    kubectl("create", "role", "tops", "--verb=list", "--resource=pods.metrics.k8s.io")
    kubectl("create", "rolebinding", "tops", "--role=tops", f"--serviceaccount={kubectl.namespace}:nobody")
    eventually(lambda: "PodMetricsList" in kubectl("get", "--raw", raw, nobody))


@pytest.mark.parametrize(
    ("selector", "matching"),
    [
        ("", {"a", "b", "c"}),
        ("app=web", {"a", "b"}),
        ("app==web,tier!=back", {"a"}),
        ("tier in (front, middle)", {"a"}),
        ("app,tier notin (front)", {"b"}),
        ("!app", {"c"}),
        (" app = web , tier = back ", {"b"}),
    ],
)
def test_selectors(selector: str, matching: set[str]) -> None:
    labels = {"a": {"app": "web", "tier": "front"}, "b": {"app": "web", "tier": "back"}, "c": {"x": "y"}}
    selects = selectors.parse(selector)
    assert {name for name, found in labels.items() if selects(found)} == matching


@pytest.mark.parametrize("selector", ["a b", "a in", "=x", "a in (b"])
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(ValueError, match="is no label selector"):
        selectors.parse(selector)
