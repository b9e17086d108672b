"""The operator under each set of rights that it ships with: none is missing, and none is there for nothing.

The rights are those that `kubectl kustomize` makes of the manifests, for a ServiceAccount of its own: what
other tests have installed cannot lend it any.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, Kube, resource_of
from tests.operator.engine.clusters import find, manifest, until_condition
from tests.operator.engine.gateways import ROUTED, ROUTES, install_kinds, remove_kinds
from tests.operator.engine.operators import (
    REPOSITORY,
    Operators,
    audited,
    kubectl,
    service_account_kubeconfig,
    until,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

WATCHED = "tables"
"""The namespace that the overlay names."""
PROMETHEUS_OPERATOR = Path(__file__).parents[1] / "prometheus_operator"
Right = tuple[str, str, str]
"""API group, resource and verb."""

SEEN_ELSEWHERE: dict[Right, str] = {
    ("", "persistentvolumeclaims", "patch"): "a claim that grows needs a StorageClass that lets it",
    ("", "events", "list"): "a managed Redis whose pod the API server does not take",
    ("", "configmaps", "delete"): "an environment goes once no pod was ever started with it",
    ("apps", "deployments", "delete"): "a blue-green rollout ends once its instances are ready",
}
"""Rights that need running instances, or trouble: the tests of these run under the shipped rights, too."""

FULL: dict[str, Any] = {
    "replicas": 2,
    "autoscaling": {"enabled": True, "maxReplicas": 4},
    "ingress": {"host": "tables.example", "annotations": {"kubernetes.io/ingress.class": "somebody's"}},
    **ROUTED,
}
LEAN: dict[str, Any] = {
    "autoscaling": {"enabled": False},
    "ingress": None,
    "routing": {"mode": "Service", "gateway": None},
    "monitoring": {"podMonitor": {"enabled": False}, "prometheusRule": {"enabled": False}},
    "security": {"networkPolicy": {"enabled": False}},
    "service": {"annotations": {"example.com/pool": "one"}},
    "websocket": {"port": 4001},
    "redis": {"managed": {"image": "redis:another"}},
}


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A ServiceAccount with shipped rights, in a namespace of the operator's own."""

    system: str
    watched: str
    everywhere: frozenset[Right]
    here: frozenset[Right]
    """In the watched namespace."""
    at_home: frozenset[Right]
    """In its own namespace."""

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.system}:tableforge-operator"


def built(overlay: str, *, system: str, watched: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would apply of roles and bindings, for these namespaces."""
    text = kubectl(Path("/dev/null"), "kustomize", str(REPOSITORY / "manifests" / overlay))
    return moved(yaml.safe_load_all(text), {"tableforge-system": system, WATCHED: watched})


def moved(objects: Iterable[dict[str, Any]], places: Mapping[str, str]) -> list[dict[str, Any]]:
    """The operator's roles and bindings among them, in other namespaces; what has none gets its own name."""
    system = places["tableforge-system"]
    wanted = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount")
    found = [
        obj for obj in objects if obj["kind"] in wanted and obj["metadata"]["name"] == "tableforge-operator"
    ]
    for obj in found:
        metadata = obj["metadata"]
        if "namespace" in metadata:
            metadata["namespace"] = places[metadata["namespace"]]
        else:
            metadata["name"] = obj["metadata"]["name"] = f"tableforge-operator-{system}"
        for subject in obj.get("subjects", ()):
            subject["namespace"] = places[subject["namespace"]]
        if obj.get("roleRef", {}).get("kind") == "ClusterRole":
            obj["roleRef"]["name"] = f"tableforge-operator-{system}"
    return found


def rights(objects: list[dict[str, Any]], kind: str, namespace: str | None = None) -> frozenset[Right]:
    return frozenset(
        (group, resource, verb)
        for obj in objects
        if obj["kind"] == kind and obj["metadata"].get("namespace") == namespace
        for rule in obj["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


@pytest.fixture(params=[".", "overlays/namespaces"], ids=["everywhere", "one namespace"])
def shipped(request: pytest.FixtureRequest, installed: Devcluster, namespace: str) -> Iterator[Shipped]:
    system = f"{namespace}-system"
    kubectl(installed.kubeconfig, "create", "namespace", system)
    objects = built(request.param, system=system, watched=namespace)
    kubectl(
        installed.kubeconfig,
        "apply",
        "-f",
        "-",
        stdin=json.dumps({"kind": "List", "apiVersion": "v1", "items": objects}),
    )
    kubectl(installed.kubeconfig, "apply", "--server-side", "-f", str(PROMETHEUS_OPERATOR))
    install_kinds(installed.kubeconfig)
    yield Shipped(
        system=system,
        watched=namespace,
        everywhere=rights(objects, "ClusterRole"),
        here=rights(objects, "Role", namespace),
        at_home=rights(objects, "Role", system),
    )
    gone = ("delete", "--ignore-not-found", "-f", str(PROMETHEUS_OPERATOR))
    kubectl(installed.kubeconfig, *gone, most_seconds=240)
    remove_kinds(installed.kubeconfig)
    for kind in ("clusterrole", "clusterrolebinding"):
        kubectl(installed.kubeconfig, "delete", "--ignore-not-found", kind, f"tableforge-operator-{system}")
    kubectl(installed.kubeconfig, "delete", "namespace", system, "--wait=false")


def requests(log: Path, since: int, user: str) -> list[dict[str, Any]]:
    """What a user asked for after `since`, by the API server's own record."""
    entries = audited(log, since)
    return [entry for entry in entries if entry["user"]["username"] == user and "objectRef" in entry]


def needed(entry: dict[str, Any]) -> set[Right]:
    """The rights that a request takes. An apply that creates the object takes two."""
    ref = entry["objectRef"]
    resource = "/".join(ref[part] for part in ("resource", "subresource") if part in ref)
    verbs = {entry["verb"]} | ({"create"} if entry["responseStatus"]["code"] == 201 else set())
    return {(ref.get("apiGroup", ""), resource, verb) for verb in verbs}


async def test_no_right_is_missing_and_none_is_there_for_nothing(
    kube: Kube, namespace: str, installed: Devcluster, shipped: Shipped, tmp_path: Path
) -> None:
    kubeconfig = service_account_kubeconfig(installed, tmp_path / "scoped", namespace=shipped.system)
    operators = Operators(kubeconfig, tmp_path, namespace, own_namespace=shipped.system)
    since = installed.audit_log.stat().st_size
    try:
        await operators(everywhere=bool(shipped.everywhere))
        await kube.apply(manifest(namespace, **FULL), field_manager="user", force=True)
        await until_condition(kube, namespace, "Reconciling", "True", "RedisStarting")
        for api_version, kind, name in (
            ("autoscaling/v2", "HorizontalPodAutoscaler", "tables"),
            (ROUTES.api_version, ROUTES.kind, "tables"),
            ("monitoring.coreos.com/v1", "PodMonitor", "tables"),
            ("monitoring.coreos.com/v1", "PrometheusRule", "tables"),
        ):

            async def there(what: tuple[str, str, str] = (api_version, kind, name)) -> bool:
                return await find(kube, what[0], what[1], namespace, what[2]) is not None

            await until(there, what=f"{kind} is there")
        await _take_labels(kube, namespace)
        await kube.merge(CLUSTERS, namespace, "tables", {"spec": LEAN}, field_manager="user")

        async def lean() -> bool:
            gone = [
                await find(kube, "networking.k8s.io/v1", "Ingress", namespace, "tables"),
                await find(kube, "autoscaling/v2", "HorizontalPodAutoscaler", namespace, "tables"),
                await find(kube, "monitoring.coreos.com/v1", "PrometheusRule", namespace, "tables"),
                await find(kube, "monitoring.coreos.com/v1", "PodMonitor", namespace, "tables"),
                await find(kube, ROUTES.api_version, ROUTES.kind, namespace, "tables"),
            ]
            service = await find(kube, "v1", "Service", namespace, "tables")
            return gone == [None] * 5 and service is not None and service["spec"]["ports"][0]["port"] == 4001

        await until(lean, what="what is not asked for is gone, and what was changed is as asked for")
    finally:
        await operators.stop()
    asked = requests(installed.audit_log, since, shipped.user)
    refused = [
        (entry["verb"], entry["objectRef"]) for entry in asked if entry["responseStatus"]["code"] == 403
    ]
    assert refused == []

    used: set[Right] = set()
    used_at_home: set[Right] = set()
    for entry in asked:
        at_home = entry["objectRef"].get("namespace") == shipped.system
        (used_at_home if at_home else used).update(needed(entry))
    allowed = shipped.everywhere | shipped.here
    assert SEEN_ELSEWHERE.keys() <= allowed
    assert allowed - used - SEEN_ELSEWHERE.keys() == set(), "rights that nothing needs: take them away"
    assert used_at_home == shipped.at_home
    if not shipped.everywhere:
        places = {entry["objectRef"].get("namespace") for entry in asked}
        assert places == {shipped.system, namespace}, "it asks for nothing beyond its namespaces"


async def _take_labels(kube: Kube, namespace: str) -> None:
    """Somebody takes a label of each child: each is set back, which needs the right to patch it."""
    taken = {"metadata": {"labels": {"app.kubernetes.io/name": "other"}}}
    names = {
        ("v1", "ServiceAccount"): "tables",
        ("policy/v1", "PodDisruptionBudget"): "tables",
        ("networking.k8s.io/v1", "NetworkPolicy"): "tables",
        ("networking.k8s.io/v1", "Ingress"): "tables",
        ("autoscaling/v2", "HorizontalPodAutoscaler"): "tables",
        (ROUTES.api_version, ROUTES.kind): "tables",
        ("monitoring.coreos.com/v1", "PodMonitor"): "tables",
        ("monitoring.coreos.com/v1", "PrometheusRule"): "tables",
    }
    for (api_version, kind), name in names.items():
        await kube.merge(resource_of(api_version, kind), namespace, name, taken, field_manager="eve")

    async def back() -> bool:
        found = [await find(kube, version, kind, namespace, name) for (version, kind), name in names.items()]
        return all(
            obj is not None and obj["metadata"]["labels"]["app.kubernetes.io/name"] == "tableforge"
            for obj in found
        )

    await until(back, what="the labels are set back")


async def test_the_overlay_for_namespaces_gives_the_operator_no_right_beyond_them() -> None:
    text = kubectl(Path("/dev/null"), "kustomize", str(REPOSITORY / "manifests/overlays/namespaces"))
    objects = list(yaml.safe_load_all(text))
    bound = [obj for obj in objects if obj["kind"] in ("ClusterRoleBinding", "RoleBinding")]
    assert {(obj["kind"], obj["metadata"]["namespace"], obj["roleRef"]["kind"]) for obj in bound} == {
        ("RoleBinding", "tableforge-system", "Role"),
        ("RoleBinding", WATCHED, "Role"),
    }
    everywhere = list(
        yaml.safe_load_all(kubectl(Path("/dev/null"), "kustomize", str(REPOSITORY / "manifests")))
    )
    assert rights(objects, "Role", WATCHED) == rights(
        [obj for obj in everywhere if obj["metadata"]["name"] == "tableforge-operator"], "ClusterRole"
    )
    (deployment,) = (obj for obj in objects if obj["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "TABLEFORGE_OPERATOR_NAMESPACES", "value": WATCHED} in container["env"]
    # Everything else is as it is for all namespaces, less the right to see what has no namespace.
    assert len(objects) == len(everywhere) - 2
