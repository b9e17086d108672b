"""All children of a cluster together: which, in which order, stable, and taken by the real API server."""

import json
from typing import Any

import pytest

from tableforge_operator.decide.resources import OWNED_KINDS, SECRET, children, scale_selector

EXTERNAL = {
    "redis": {"external": {"host": "redis.example.com", "passwordSecretRef": {"name": "login"}}},
    "auth": {"required": True, "jwtSecretRef": {"name": "jwt"}},
    "pod": {
        "resources": {"requests": {"cpu": 1}, "limits": {"cpu": 2, "memory": "1Gi"}},
        "nodeSelector": {"pool": "sockets"},
        "tolerations": [
            {"key": "sockets", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
        ],
        "labels": {"team": "tables"},
        "annotations": {"example.com/note": "hello"},
        "topologySpreadConstraints": [{"topologyKey": "kubernetes.io/hostname"}],
        "priorityClassName": "system-cluster-critical",
        "imagePullPolicy": "IfNotPresent",
        "imagePullSecrets": [{"name": "registry"}],
        "extraEnv": [
            {"name": "A", "value": ""},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        ],
    },
    "service": {"type": "NodePort", "port": 80, "annotations": {"example.com/internal": "true"}},
    "ingress": {"host": "tables.example.com", "className": "nginx", "tlsSecretName": "tls"},
}
STORAGE_CLASS = {
    "redis": {"managed": {"storage": {"storageClassName": "fast"}, "persistence": {"onDelete": "Delete"}}}
}
SPECS = [
    pytest.param({}, id="defaults"),
    pytest.param(EXTERNAL, id="external Redis and every option of the pod"),
    pytest.param(STORAGE_CLASS, id="managed Redis with options"),
]


def keys(objects: tuple[dict[str, Any], ...]) -> list[str]:
    return [f"{obj['kind']}/{obj['metadata']['name']}" for obj in objects]


def test_a_managed_cluster_owns_these_in_this_order(cluster, secrets):
    found = children(cluster(), secrets=secrets)
    assert keys(found.applied) == [
        "ServiceAccount/tables",
        "ConfigMap/tables-config-d4c7e9c0",
        "ConfigMap/tables-live",
        "Service/tables",
        "Service/tables-instances",
        "PodDisruptionBudget/tables",
        "NetworkPolicy/tables",
        "NetworkPolicy/tables-redis",
        "ConfigMap/tables-redis",
        "Service/tables-redis",
        "StatefulSet/tables-redis",
        "Deployment/tables-a",
    ]
    assert keys(found.secrets) == ["Secret/tables-fleet-0d1e2f30-c30e26fe", "Secret/tables-redis-0d1e2f30-1"]


def test_with_an_external_redis_there_is_none_of_ours(cluster, secrets):
    found = children(cluster(EXTERNAL), secrets=secrets)
    assert not [key for key in keys(found.applied + found.secrets) if "redis" in key]


@pytest.mark.parametrize("spec", SPECS)
def test_only_known_kinds_are_owned(cluster, secrets, spec):
    found = children(cluster(spec), secrets=secrets)
    known = {(kind.api_version, kind.kind) for kind in OWNED_KINDS}
    assert {(obj["apiVersion"], obj["kind"]) for obj in found.applied} <= known
    assert {(obj["apiVersion"], obj["kind"]) for obj in found.secrets} == {(SECRET.api_version, SECRET.kind)}


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_cluster_gives_the_same_bytes(cluster, secrets, spec):
    assert json.dumps(children(cluster(spec), secrets=secrets).applied) == json.dumps(
        children(cluster(spec), secrets=secrets).applied
    )


def test_a_changed_setting_rolls_the_instances_and_leaves_redis_alone(cluster, secrets):
    def hashes(spec: dict[str, Any]) -> tuple[str, str]:
        redis, instances = children(cluster(spec), secrets=secrets).applied[-2:]
        key = "tableforge.io/config-hash"
        return (
            redis["spec"]["template"]["metadata"]["annotations"][key],
            instances["spec"]["template"]["metadata"]["annotations"][key],
        )

    before = hashes({})
    assert hashes({"replicas": 9}) == before
    assert hashes({"monitoring": {"logLevel": "debug"}}) == before, "it reaches running instances by a file"
    changed = hashes({"monitoring": {"logFormat": "text"}})
    assert changed[0] == before[0]
    assert changed[1] != before[1]
    changed = hashes({"redis": {"managed": {"maxMemory": "300mb"}}})
    assert changed[0] != before[0]
    assert changed[1] == before[1]


def test_no_secret_is_in_what_is_applied(cluster, secrets):
    found = children(cluster(), secrets=secrets)
    text = json.dumps(found.applied) + repr(found)
    assert secrets.fleet_key not in text
    assert secrets.redis_password(1) not in text


def test_the_longest_name_fits_every_child(cluster, secrets):
    found = children(cluster(name="a" * 40), secrets=secrets)
    for obj in found.applied:
        if obj["kind"] == "Service":
            assert len(obj["metadata"]["name"]) <= 63
        if obj["kind"] == "StatefulSet":  # with a dash and a hash it is the value of a label
            assert len(obj["metadata"]["name"]) <= 63 - 11
        if obj["kind"] == "Deployment":  # with a hash, five characters and two dashes it is a pod's name
            assert len(obj["metadata"]["name"]) <= 63 - 17


def test_the_scale_selector_finds_both_tracks(cluster):
    assert scale_selector(cluster()) == "app.kubernetes.io/component=dataplane,tableforge.io/cluster=tables"


@pytest.mark.cluster
@pytest.mark.parametrize("spec", SPECS)
def test_the_api_server_takes_every_child_strictly(shared_kubectl, cluster, secrets, spec):
    found = children(cluster(spec, namespace="default"), secrets=secrets)
    apply = ("apply", "--server-side", "--validate=strict", "--dry-run=server")
    said = shared_kubectl.ok(*apply, "-f", "-", stdin=list(found.applied + found.secrets))
    assert len(said.splitlines()) == len(found.applied) + len(found.secrets)
    assert all(line.endswith("serverside-applied (server dry run)") for line in said.splitlines())


@pytest.mark.cluster
@pytest.mark.parametrize("spec", SPECS)
def test_applying_twice_changes_nothing(kubectl, cluster, secrets, spec):
    # No live cluster stands behind the owner reference: the garbage collector would take the children away.
    applied = [
        dict(obj) for obj in children(cluster(spec, namespace=kubectl.namespace), secrets=secrets).applied
    ]
    for obj in applied:
        obj["metadata"] = {
            name: value for name, value in obj["metadata"].items() if name != "ownerReferences"
        }

    def apply() -> list[tuple[str, str, int]]:
        kubectl.ok("apply", "--server-side", "--field-manager=tableforge-operator", "-f", "-", stdin=applied)
        live = kubectl.objects(
            "get", "deploy,sts,svc,cm,sa,pdb,netpol,ing", "-l", "tableforge.io/cluster=tables"
        )
        return sorted(
            (obj["kind"], obj["metadata"]["name"], obj["metadata"].get("generation", 0)) for obj in live
        )

    first = apply()
    assert len(first) == len(applied)
    assert apply() == first


@pytest.mark.cluster
@pytest.mark.parametrize("spec", SPECS)
def test_pods_are_restricted(kubectl, cluster, secrets, spec):
    kubectl.ok(
        "label",
        "namespace",
        kubectl.namespace,
        "pod-security.kubernetes.io/enforce=restricted",
        namespaced=False,
    )
    applied = children(cluster(spec, namespace=kubectl.namespace), secrets=secrets).applied
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "tables"}}
    kubectl.ok("create", "-f", "-", stdin=account)
    templates = [obj["spec"]["template"] for obj in applied if obj["kind"] in ("Deployment", "StatefulSet")]
    assert templates
    for template in templates:
        pod_spec = dict(template["spec"])
        # The StatefulSet's controller adds the claim's volume.
        if any(mount["name"] == "data" for mount in pod_spec["containers"][0]["volumeMounts"]):
            claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data-tables-redis-0"}}
            pod_spec["volumes"] = [*pod_spec["volumes"], claim]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": pod_spec}
        kubectl.ok("create", "--dry-run=server", "-f", "-", stdin=pod)
        pod["spec"] = {**pod_spec, "hostNetwork": True}
        assert "violates PodSecurity" in kubectl("create", "--dry-run=server", "-f", "-", stdin=pod).err
