"""The HorizontalPodAutoscaler, whole, and what the API server makes of `spec.autoscaling`."""

import datetime as dt

import pytest

from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.resources.horizontal_pod_autoscaler import horizontal_pod_autoscaler
from tests.operator.model import expected
from tests.operator.model.expected import metadata
from tests.operator.model.test_crd_on_a_cluster import cr

ON = {"enabled": True}


def metric(name, percent):
    target = {"type": "Utilization", "averageUtilization": percent}
    return {"type": "Resource", "resource": {"name": name, "target": target}}


def build(cluster, *, track="a", **floor):
    return horizontal_pod_autoscaler(cluster, track=track, floor=Floor(**{"replicas": 3, **floor}))


def test_an_autoscaler_of_defaults(cluster):
    assert build(cluster({"autoscaling": ON})) == {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata("tables", expected.DATAPLANE),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "tables-a"},
            "minReplicas": 3,
            "maxReplicas": 10,
            "metrics": [metric("cpu", 70), metric("memory", 80)],
            "behavior": {
                "scaleDown": {
                    "stabilizationWindowSeconds": 600,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 35}],
                }
            },
        },
    }


def test_everything_that_the_spec_says_of_it(cluster):
    spec = {
        "autoscaling": {
            **ON,
            "maxReplicas": 40,
            "targetCPUUtilization": 0,
            "targetMemoryUtilization": 60,
        },
        "loadBalancing": {"scaleDownCooldown": "3h"},
        "rollout": {"drainTimeout": "1h"},
    }
    moved = dt.datetime(2026, 1, 1, 12, 30, 1, 999_999, tzinfo=dt.UTC)
    found = build(cluster(spec), track="b", replicas=7, changed_at=moved)
    assert found["metadata"]["annotations"] == {"tableforge.io/floor-changed-at": "2026-01-01T12:30:01Z"}
    assert found["spec"] == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "tables-b"},
        "minReplicas": 7,
        "maxReplicas": 40,
        "metrics": [metric("memory", 60)],
        "behavior": {
            "scaleDown": {
                # As far as Kubernetes goes.
                "stabilizationWindowSeconds": 3600,
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 1800}],
            }
        },
    }


REFUSED = [
    pytest.param(
        {"autoscaling": {**ON, "maxReplicas": 2}},
        "spec.replicas: Invalid value: replicas is the least number of instances while "
        "autoscaling.enabled is true, so it must be at most autoscaling.maxReplicas: lower the one or raise "
        "the other",
        id="limits the wrong way round",
    ),
    pytest.param({"autoscaling": {"maxReplicas": 0}}, "greater than or equal to 1", id="no instance at all"),
    pytest.param({"autoscaling": {"maxReplicas": 1001}}, "less than or equal to 1000", id="too many"),
    pytest.param(
        {"autoscaling": {**ON, "targetCPUUtilization": 0, "targetMemoryUtilization": 0}},
        "needs one thing at least to go by besides connections: set autoscaling.targetCPUUtilization",
        id="nothing to go by",
    ),
    pytest.param(
        {"autoscaling": ON, "pod": {"resources": {"requests": {"memory": "1Gi"}}}},
        "pod.resources.requests must have cpu: add it, or set autoscaling.targetCPUUtilization to 0",
        id="percent of no CPU",
    ),
    pytest.param(
        {"autoscaling": ON, "pod": {"resources": {"requests": {"cpu": 1}}}},
        "pod.resources.requests must have memory: add it, or set autoscaling.targetMemoryUtilization to 0",
        id="percent of no memory",
    ),
    pytest.param(
        {"loadBalancing": {"connectionThreshold": 1.5}}, "less than or equal to 1", id="beyond what fits"
    ),
    pytest.param(
        {"loadBalancing": {"connectionThreshold": 0.01}}, "greater than or equal to 0.05", id="threshold"
    ),
    pytest.param(
        {"loadBalancing": {"scaleDownCooldown": "2d"}}, "must be a duration from 1s to 24h", id="cooldown"
    ),
]


@pytest.mark.cluster
@pytest.mark.parametrize(("spec", "message"), REFUSED)
def test_what_contradicts_itself_is_refused(shared_kubectl, spec, message):
    answer = shared_kubectl("create", "--dry-run=server", "-f", "-", stdin=cr(spec))
    assert answer.code != 0
    assert message in answer.err


ACCEPTED = [
    pytest.param({"autoscaling": {**ON, "maxReplicas": 3}}, id="no room between the limits"),
    pytest.param({"autoscaling": {"maxReplicas": 2}}, id="a limit that does not count while it is off"),
    pytest.param({"replicas": 0, "autoscaling": ON}, id="none for now"),
    pytest.param({"loadBalancing": {"connectionThreshold": 1}}, id="a whole number for a share"),
    pytest.param(
        {
            "autoscaling": {**ON, "targetMemoryUtilization": 0},
            "pod": {"resources": {"requests": {"cpu": 1}}},
        },
        id="only what is requested",
    ),
    pytest.param(
        {"autoscaling": ON, "pod": {"resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}},
        id="limits that are the requests",
    ),
]


@pytest.mark.cluster
@pytest.mark.parametrize("spec", ACCEPTED)
def test_what_makes_sense_is_taken(shared_kubectl, spec):
    shared_kubectl.ok("create", "--dry-run=server", "-f", "-", stdin=cr(spec))


@pytest.mark.cluster
def test_the_scale_subresource_keeps_to_the_limit(kubectl):
    kubectl.ok("create", "-f", "-", stdin=cr({"autoscaling": {**ON, "maxReplicas": 6}}))
    kubectl.ok("scale", "wsc/tables", "--replicas=6")
    refused = kubectl("scale", "wsc/tables", "--replicas=7")
    assert "must be at most autoscaling.maxReplicas" in refused.err
    (found,) = kubectl.objects("get", "wsc/tables")
    assert found["spec"]["replicas"] == 6


@pytest.mark.cluster
def test_the_autoscaler_is_taken_as_it_is_and_applying_it_again_changes_nothing(kubectl, cluster):
    spec = {"autoscaling": {**ON, "targetCPUUtilization": 55}}
    moved = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    obj = build(cluster(spec), changed_at=moved)
    obj["metadata"] = {**obj["metadata"], "namespace": kubectl.namespace, "ownerReferences": []}
    apply = ("apply", "--server-side", "--validate=strict", "-f", "-")
    (first,) = kubectl.objects(*apply, stdin=obj)
    (second,) = kubectl.objects(*apply, stdin=obj)
    # The version is none to go by: the controller writes the status meanwhile.
    assert first["spec"] == second["spec"]
    assert kubectl.ok("diff", "--server-side", "-f", "-", stdin=obj) == ""
