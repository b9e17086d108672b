"""What only the cluster can know ends in a condition and an Event that name the field and the fix.

Every trouble is a real one of a real API server and its controllers, but for what kubelets and schedulers
say. After the user has given up and deleted the cluster, nothing is left. All at once, in a namespace each:
one operator for all, and one wait for the garbage collector.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import Devcluster
from tableforge_dataplane.contract import endpoints
from tableforge_operator.decide.resources import OPTIONAL_KINDS, OWNED_KINDS
from tableforge_operator.kube import (
    CLAIMS,
    CLUSTERS,
    PODS,
    REPLICA_SETS,
    SECRETS,
    Kube,
    Object,
    resource_of,
)
from tests.operator.engine.clusters import condition, events, external, find, manifest
from tests.operator.engine.operators import Operators, kubectl, until
from tests.operator.engine.pods import Instance, health, pods_of, set_pod

pytestmark = pytest.mark.cluster

Case = Callable[["Place"], Awaitable[None]]
CASES: list[Case] = []

CLAIM = "data-tables-redis-0"
LOOKED_AT = (
    *(resource_of(kind.api_version, kind.kind) for kind in OWNED_KINDS if kind.kind not in OPTIONAL_KINDS),
    *(CLAIMS, PODS, REPLICA_SETS, SECRETS),
)
"""Whatever there can be of a cluster; the kinds of others' CRDs are not installed here."""
OF_EVERY_NAMESPACE = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}


class Place:
    """A namespace with a trouble in it."""

    def __init__(self, kube: Kube, config: Path, namespace: str, address: str) -> None:
        self.kube = kube
        self.config = config
        self.namespace = namespace
        self.address = address
        self.stays: set[tuple[str, str]] = set()
        """What is not the cluster's, or not any more once it is deleted: kinds and names."""

    async def put(self, *objects: Object) -> None:
        """Have these, in the namespace where they have one."""
        text = yaml.safe_dump_all(objects)
        await asyncio.to_thread(kubectl, self.config, "apply", "-n", self.namespace, "-f", "-", stdin=text)

    async def quota(self, **hard: str) -> None:
        """A quota that is counted: until its controller has, everything is refused without a word of why."""
        named = {name.replace("__", "."): value for name, value in hard.items()}
        await self.put(
            {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"name": "small"},
                "spec": {"hard": named},
            }
        )

        async def counted() -> bool:
            words = ("get", "-n", self.namespace, "resourcequota/small", "-o", "json")
            live = json.loads(await asyncio.to_thread(kubectl, self.config, *words))
            return set(live.get("status", {}).get("used", {})) == set(named)

        await until(counted, what="the quota is counted")

    async def ask(self, cluster: Object) -> None:
        await self.kube.apply(cluster, field_manager="user", force=True)

    async def says(self, *said: str, reason: str, stalled: bool = False, event: bool = True) -> None:
        """Wait until the cluster is not Ready for this reason, in these words, and an Event has told."""

        async def look() -> bool:
            ready = await condition(self.kube, self.namespace, "Ready")
            under = await condition(self.kube, self.namespace, "Stalled" if stalled else "Reconciling")
            return (
                ready.get("status") == "False"
                and ready["reason"] == under.get("reason") == reason
                and all(words in ready["message"] and words in under["message"] for words in said)
            )

        async def told() -> bool:
            return any(
                why == reason and all(words in message for words in said)
                for why, message in await events(self.kube, self.namespace)
            )

        try:
            await until(look, what=f"{reason}: {said}")
        except AssertionError as error:
            raise AssertionError(f"{error}; but {await self.ready()}") from error
        if event:
            await until(told, what=f"an Event {reason}: {said}")

    async def ready(self) -> dict[str, Any]:
        return await condition(self.kube, self.namespace, "Ready")

    async def gone(self) -> None:
        """Delete the cluster and wait until nothing of it is left but what stays."""
        cluster = await self.kube.get(CLUSTERS, self.namespace, "tables")
        await self.kube.delete(CLUSTERS, self.namespace, "tables", uid=cluster["metadata"]["uid"])

        left: set[tuple[str, str]] = set()

        async def nothing_left() -> bool:
            nonlocal left
            left = set()
            for resource in LOOKED_AT:
                items, _ = await self.kube.list(resource, self.namespace)
                left |= {(resource.kind, item["metadata"]["name"]) for item in items}
            left -= OF_EVERY_NAMESPACE
            return left == self.stays

        try:
            # The garbage collector learns of a new CRD within 30 seconds.
            await until(nothing_left, what=f"nothing is left in {self.namespace}", seconds=300)
        except AssertionError as error:
            raise AssertionError(
                f"{error}; {sorted(left)} are there, {sorted(self.stays)} should be"
            ) from error

    async def keeps_its_claim(self) -> None:
        """Unless said otherwise the claim of a managed Redis stays, though it may never get a volume."""

        async def there() -> bool:
            return await find(self.kube, CLAIMS.api_version, CLAIMS.kind, self.namespace, CLAIM) is not None

        await until(there, what="Redis's claim")
        self.stays.add((CLAIMS.kind, CLAIM))


def case(function: Case) -> Case:
    CASES.append(function)
    return function


@case
async def pods_beyond_a_quota(place: Place) -> None:
    await place.quota(requests__memory="100Mi")
    await place.ask(external(place.namespace))
    await place.says(
        "pods are forbidden: exceeded quota: small",
        "Lower spec.pod.resources or spec.replicas, or have ResourceQuota small raised.",
        reason="QuotaExceeded",
    )


@case
async def a_redis_beyond_a_quota(place: Place) -> None:
    await place.quota(requests__memory="100Mi")
    small = {"resources": {"requests": {"memory": "16Mi"}}}
    await place.ask(manifest(place.namespace, pod=small))
    await place.says(
        "Waiting for the managed Redis (tables-redis): ",
        "exceeded quota: small",
        "Lower spec.redis.managed.maxMemory, or have ResourceQuota small raised.",
        reason="QuotaExceeded",
    )
    await place.keeps_its_claim()


@case
async def a_volume_of_redis_beyond_a_quota(place: Place) -> None:
    await place.quota(requests__storage="1Mi")
    await place.ask(manifest(place.namespace))
    await place.says(
        "Waiting for the managed Redis (tables-redis): failed to create PVC",
        "exceeded quota: small",
        "Lower spec.redis.managed.storage.size, or have ResourceQuota small raised.",
        reason="QuotaExceeded",
    )


@case
async def a_redis_beyond_a_limit_range(place: Place) -> None:
    limits = {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]}
    await place.put({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": limits})
    small = {"resources": {"requests": {"memory": "16Mi"}, "limits": {"memory": "32Mi"}}}
    await place.ask(manifest(place.namespace, pod=small))
    await place.says(
        "Waiting for the managed Redis (tables-redis): ",
        "maximum memory usage per Container is 64Mi",
        "Choose a spec.redis.managed.maxMemory that fits the namespace's LimitRange",
        reason="LimitRangeViolated",
    )
    await place.keeps_its_claim()


@case
async def a_quota_that_asks_for_more_than_is_said(place: Place) -> None:
    await place.quota(limits__cpu="4")
    await place.ask(external(place.namespace, pod={"resources": {"limits": {"memory": "1Gi"}}}))
    await place.says(
        "ResourceQuota small asks for limits.cpu: set it in spec.pod.resources.", reason="QuotaExceeded"
    )


@case
async def objects_beyond_a_quota(place: Place) -> None:
    await place.quota(services__loadbalancers="0")
    await place.ask(external(place.namespace, service={"type": "LoadBalancer"}))
    await place.says(
        "Service tables",
        "Choose another spec.service.type, or have ResourceQuota small raised.",
        reason="QuotaExceeded",
    )


@case
async def a_limit_range(place: Place) -> None:
    limits = {"limits": [{"type": "Container", "max": {"memory": "128Mi"}}]}
    await place.put({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": limits})
    await place.ask(external(place.namespace))
    await place.says(
        "maximum memory usage per Container is 128Mi",
        "Keep spec.pod.resources within the namespace's LimitRange",
        reason="LimitRangeViolated",
    )


@case
async def a_priority_class_that_does_not_exist(place: Place) -> None:
    await place.ask(external(place.namespace, pod={"priorityClassName": "no-such-class"}))
    await place.says(
        "Create PriorityClass no-such-class, or correct spec.pod.priorityClassName.",
        reason="PriorityClassMissing",
    )
    await place.ask(external(place.namespace))

    async def goes_on() -> bool:
        return bool(await pods_of(place.kube, place.namespace, "dataplane"))

    await until(goes_on, what="corrected, it goes on")


@case
async def a_node_port_that_is_taken(place: Place) -> None:
    # In the part of the range from which the API server chooses last: nobody else's has it.
    taken = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30042}]}
    await place.put({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "first"}, "spec": taken})
    place.stays.add(("Service", "first"))
    await place.ask(external(place.namespace, service={"type": "NodePort", "nodePort": 30042}))
    await place.says(
        "provided port is already allocated",
        "Choose another spec.service.nodePort, or leave it out.",
        reason="Rejected",
        stalled=True,
    )


@case
async def a_node_port_that_is_none(place: Place) -> None:
    await place.ask(external(place.namespace, service={"type": "NodePort", "nodePort": 80}))
    await place.says(
        "range of valid ports is 30000-32767",
        "Choose another spec.service.nodePort, or leave it out.",
        reason="Rejected",
        stalled=True,
    )


@case
async def a_policy_that_is_against_it(place: Place) -> None:
    rules = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"]}
    policy = {
        "matchConstraints": {"resourceRules": [{**rules, "operations": ["CREATE", "UPDATE"]}]},
        "validations": [
            {"expression": "object.spec.type != 'LoadBalancer'", "message": "balancers cost money"}
        ],
    }
    binding = {
        "policyName": place.namespace,
        "validationActions": ["Deny"],
        "matchResources": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place.namespace}}
        },
    }
    head = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": place.namespace}}
    await place.put(
        {**head, "kind": "ValidatingAdmissionPolicy", "spec": policy},
        {**head, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding},
    )
    tried = {"type": "LoadBalancer", "ports": [{"port": 80}]}
    balancer = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "tried"}, "spec": tried}

    async def in_force() -> bool:
        words = ("create", "-n", place.namespace, "--dry-run=server", "-f", "-")
        try:
            await asyncio.to_thread(kubectl, place.config, *words, stdin=yaml.safe_dump(balancer))
        except AssertionError as error:
            return "balancers cost money" in str(error)
        return False

    await until(in_force, what="the policy is in force")
    await place.ask(external(place.namespace, service={"type": "LoadBalancer"}))
    await place.says(
        "balancers cost money", "change spec.service, or have it changed.", reason="PolicyDenied"
    )


@case
async def an_ingress_class_that_does_not_exist(place: Place) -> None:
    name = f"class-of-{place.namespace}"
    await place.ask(external(place.namespace, ingress={"host": "tables.example.com", "className": name}))
    await place.says(
        f"IngressClass {name} does not exist", "in spec.ingress.className", reason="IngressClassMissing"
    )
    found = await find(place.kube, "networking.k8s.io/v1", "Ingress", place.namespace, "tables")
    assert found is not None, "it is made all the same: its class may still come"
    await place.put(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": name},
            "spec": {"controller": "example.com/none"},
        }
    )

    async def noticed() -> bool:
        return (await place.ready()).get("reason") == "RollingOut"

    await until(noticed, what="the class is there, and nothing more is said of it")


@case
async def no_default_ingress_class(place: Place) -> None:
    await place.ask(external(place.namespace, ingress={"host": "tables.example.com"}))
    await place.says(
        "There was no default IngressClass when the Ingress was made",
        "in spec.ingress.className",
        reason="IngressClassMissing",
    )


@case
async def secrets_that_do_not_exist_one_after_another(place: Place) -> None:
    """The instance is none; what it says is what one says that waits for the files of its Secrets."""
    auth = {"jwtSecretRef": {"name": "first"}, "apiKeySecretRef": {"name": "second"}}
    await place.ask(external(place.namespace, auth=auth))

    async def there() -> Object | None:
        return next(iter(await pods_of(place.kube, place.namespace, "dataplane")), None)

    pod = await until(there, what="a pod")
    async with Instance(place.address).serving() as instance:
        for variable, file, words in (
            ("JWT_SECRET_FILE", endpoints.JWT_SECRET_FILE, ("Secret first, ", "spec.auth.jwtSecretRef")),
            (
                "TABLEFORGE_HTTP_API_KEY_FILE",
                endpoints.API_KEY_FILE,
                ("Secret second, ", "spec.auth.apiKeySecretRef"),
            ),
        ):
            instance.health = health(f"{variable}={file} does not exist: it is needed.")
            await set_pod(place.kube, pod, address=place.address, ready=False)
            await place.says(*words, reason="SecretMissing")


@case
async def a_storage_class_that_does_not_exist(place: Place) -> None:
    name = f"storage-of-{place.namespace}"
    await place.ask(manifest(place.namespace, redis={"managed": {"storage": {"storageClassName": name}}}))
    await place.says(
        f"StorageClass {name} does not exist",
        "claim data-tables-redis-0",
        "spec.redis.managed.storage.storageClassName",
        reason="StorageClassMissing",
    )
    await place.put(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": "example.com/none",
        }
    )

    async def noticed() -> bool:
        return (await place.ready()).get("reason") == "RedisStarting"

    await until(noticed, what="the class is there, and nothing more is said of it")
    await place.keeps_its_claim()


@case
async def a_claim_that_is_somebody_elses(place: Place) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    await place.put(claim)
    before = await place.kube.get(CLAIMS, place.namespace, CLAIM)
    await place.ask(
        manifest(place.namespace, redis={"managed": {"persistence": {"onDelete": "Delete"}}}),
    )
    await place.says(
        "PersistentVolumeClaim data-tables-redis-0 exists already and was not made for this cluster",
        "label it tableforge.io/cluster=tables and app.kubernetes.io/component=redis.",
        reason="NameConflict",
        stalled=True,
    )
    assert await find(place.kube, "apps/v1", "StatefulSet", place.namespace, "tables-redis") is None
    after = await place.kube.get(CLAIMS, place.namespace, CLAIM)
    assert after["metadata"].get("ownerReferences") is None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    labels = {"tableforge.io/cluster": "tables", "app.kubernetes.io/component": "redis"}
    await place.put({**claim, "metadata": {**claim["metadata"], "labels": labels}})

    async def taken() -> bool:
        live = await place.kube.get(CLAIMS, place.namespace, CLAIM)
        owners = live["metadata"].get("ownerReferences") or ()
        return [(owner["kind"], owner["name"]) for owner in owners] == [("StatefulSet", "tables-redis")]

    await until(taken, what="what bears the cluster's labels is taken, and goes with it")


@case
async def what_a_kubelet_and_a_scheduler_say(place: Place) -> None:
    """The words are theirs; none runs here."""
    await place.ask(external(place.namespace, image="registry.example/none:1"))

    async def there() -> Object | None:
        return next(iter(await pods_of(place.kube, place.namespace, "dataplane")), None)

    pod = await until(there, what="a pod")

    async def waiting(reason: str, message: str) -> None:
        status = {
            "name": "dataplane",
            "ready": False,
            "restartCount": 0,
            "image": "registry.example/none:1",
            "imageID": "",
            "state": {"waiting": {"reason": reason, "message": message}},
        }
        await set_pod(place.kube, pod, address=place.address, ready=False, containerStatuses=[status])

    await waiting("ImagePullBackOff", 'Back-off pulling image "registry.example/none:1": not found')
    await place.says(
        "cannot pull image registry.example/none:1",
        "Correct spec.image, or name the Secret with the registry's login in spec.pod.imagePullSecrets.",
        reason="ImagePullFailed",
    )
    await waiting("CreateContainerConfigError", 'secret "licence" not found')
    fix = "Create secret licence, or correct spec.pod.extraEnv."
    await place.says(fix, reason="EnvironmentMissing")
    await waiting("CreateContainerConfigError", f"couldn't find key k in ConfigMap {place.namespace}/place")
    fix = "Add key k to ConfigMap place, or correct spec.pod.extraEnv."
    await place.says(fix, reason="EnvironmentMissing")
    for words, fix in (
        ("0/3 nodes are available: 3 Insufficient memory.", "lower spec.pod.resources.requests, or add"),
        ("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.", "pod.nodeSelector"),
        ("0/3 nodes are available: 3 node(s) had untolerated taint {spot: }.", "spec.pod.tolerations"),
    ):
        unscheduled = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": words,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        await set_pod(place.kube, pod, address=place.address, ready=False, conditions=[unscheduled])
        await place.says(words.rstrip("."), fix, reason="Unschedulable")


@pytest.fixture
async def places(kube: Kube, installed: Devcluster, namespace: str) -> AsyncIterator[list[Place]]:
    """A namespace and an address for each case; what one makes outside of namespaces is named after it."""
    config = installed.kubeconfig
    found = [
        Place(
            kube,
            config,
            f"{namespace}-{function.__name__.replace('_', '-')}"[:63],
            f"127.{installed.network.number}.65.{number}",
        )
        for number, function in enumerate(CASES, start=1)
    ]
    names = [place.namespace for place in found]
    spaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names]
    kubectl(config, "create", "-f", "-", stdin=yaml.safe_dump_all(spaces))
    yield found
    kubectl(config, "delete", "namespace", *names, "--wait=false")
    for kind in ("validatingadmissionpolicy", "validatingadmissionpolicybinding"):
        kubectl(config, "delete", kind, "--ignore-not-found", *names)
    kubectl(config, "delete", "ingressclass", "--ignore-not-found", *(f"class-of-{name}" for name in names))
    kubectl(config, "delete", "storageclass", "--ignore-not-found", *(f"storage-of-{name}" for name in names))


async def test_each_is_told_with_its_field_and_its_fix_and_leaves_nothing(
    places: list[Place], operators: Operators
) -> None:
    await operators(everywhere=True)
    ended = await asyncio.gather(
        *(function(place) for function, place in zip(CASES, places, strict=True)), return_exceptions=True
    )
    failed = {
        function.__name__: error
        for function, error in zip(CASES, ended, strict=True)
        if isinstance(error, BaseException)
    }
    assert failed == {}
    await asyncio.gather(*(place.gone() for place in places))
