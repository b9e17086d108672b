"""Who decides how many instances run, on a real API server with its real autoscaler.

No pod runs here and no metrics server: the autoscaler keeps the number within its limits all the same.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, Kube, Object, resource_of
from tests.operator.engine.clusters import events, external, find, settled, until_condition
from tests.operator.engine.mortal import life
from tests.operator.engine.operators import AuditLog, Operators, kubectl, until
from tests.operator.engine.pods import Instance, fleet, pods_of, set_pod

pytestmark = pytest.mark.cluster

DEPLOYMENTS = resource_of("apps/v1", "Deployment")
PATIENCE_SECONDS = 120.0
AUTOSCALED: dict[str, Any] = {
    "autoscaling": {"enabled": True, "maxReplicas": 6},
    "loadBalancing": {"scaleUpCooldown": "1s", "scaleDownCooldown": "1s"},
}


class Sizes:
    """Every size that the Deployment has ever had, by a watch that misses none."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self.seen: list[int] = []

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator["Sizes"]:
        found, version = await self._kube.list(DEPLOYMENTS, self._namespace)
        for obj in found:
            self._take(obj)
        task = asyncio.create_task(self._watch(version))
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self, version: str) -> None:
        while True:  # one that is silent for long ends
            async for event in self._kube.watch(DEPLOYMENTS, self._namespace, resource_version=version):
                version = event.object["metadata"]["resourceVersion"]
                if event.type != "BOOKMARK":
                    self._take(event.object)

    def _take(self, obj: Object) -> None:
        size = obj["spec"]["replicas"]
        if not self.seen or self.seen[-1] != size:
            self.seen.append(size)

    async def become(self, *sizes: int) -> None:
        """Wait until exactly these were seen."""

        async def look() -> bool:
            assert self.seen == list(sizes[: len(self.seen)]), f"{self.seen}, not {sizes}"
            return len(self.seen) == len(sizes)

        await until(look, what=f"sizes {sizes}, seen are {self.seen}", seconds=PATIENCE_SECONDS)


async def autoscaler(kube: Kube, namespace: str) -> Object | None:
    return await find(kube, "autoscaling/v2", "HorizontalPodAutoscaler", namespace, "tables")


async def until_autoscaler(kube: Kube, namespace: str, **spec: Any) -> Object:
    """Wait for an autoscaler with these fields."""

    async def look() -> Object | None:
        found = await autoscaler(kube, namespace)
        return found if found and all(found["spec"][name] == value for name, value in spec.items()) else None

    return await until(look, what=f"an autoscaler with {spec}", seconds=PATIENCE_SECONDS)


async def patch(kube: Kube, namespace: str, **spec: Any) -> None:
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": spec}, field_manager="somebody")


def owners_of_size(deployment: Object) -> set[str]:
    """The field managers whose field `spec.replicas` is."""
    return {
        entry["manager"]
        for entry in deployment["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }


def of_children(audit: AuditLog, since: int) -> list[str]:
    """The operator's writes to what belongs to a cluster: not to its status, no Events."""
    return [
        write
        for write in audit.writes(since)
        if not write.startswith(("patch websocketclusters/", "create events/"))
    ]


async def until_handed_over(kube: Kube, namespace: str) -> None:
    """Wait until the size is no field of the operator's any more."""

    async def look() -> bool:
        deployment = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
        return deployment is not None and "tableforge-operator" not in owners_of_size(deployment)

    await until(look, what="the size is no longer the operator's", seconds=PATIENCE_SECONDS)


async def test_the_number_of_instances_changes_hands_without_ever_being_another_one(
    kube: Kube, namespace: str, operators: Operators, installed: Devcluster
) -> None:
    await operators()
    sizes = Sizes(kube, namespace)
    async with sizes.watching():
        await kube.create(external(namespace, replicas=3))
        await sizes.become(3)
        await patch(kube, namespace, **AUTOSCALED)
        found = await until_autoscaler(kube, namespace, minReplicas=3, maxReplicas=6)
        assert found["spec"]["scaleTargetRef"]["name"] == "tables-a"
        await until_handed_over(kube, namespace)
        # The scale subresource is the autoscaler's lower limit, and the autoscaler follows.
        kubectl(installed.kubeconfig, "scale", "wsc/tables", "--replicas=5", "-n", namespace)
        await sizes.become(3, 5)
        # The operator still applies everything else of the Deployment.
        await patch(kube, namespace, pod={"labels": {"team": "games"}})

        async def labelled() -> bool:
            deployment = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
            return deployment is not None and "team" in deployment["spec"]["template"]["metadata"]["labels"]

        await until(labelled, what="the template is changed", seconds=PATIENCE_SECONDS)
        # None at all is nobody's to scale; and back.
        kubectl(installed.kubeconfig, "scale", "wsc/tables", "--replicas=0", "-n", namespace)
        await sizes.become(3, 5, 0)
        assert await autoscaler(kube, namespace) is None
        kubectl(installed.kubeconfig, "scale", "wsc/tables", "--replicas=4", "-n", namespace)
        await sizes.become(3, 5, 0, 4)
        await until_autoscaler(kube, namespace, minReplicas=4)
        # And to the operator again.
        await patch(kube, namespace, replicas=6, autoscaling={"enabled": False})
        await sizes.become(3, 5, 0, 4, 6)
        assert await autoscaler(kube, namespace) is None
        kubectl(installed.kubeconfig, "scale", "wsc/tables", "--replicas=2", "-n", namespace)
        await sizes.become(3, 5, 0, 4, 6, 2)
    deleted = [message for reason, message in await events(kube, namespace) if reason == "Deleted"]
    assert any("HorizontalPodAutoscaler tables" in message for message in deleted)


async def test_a_cluster_that_is_autoscaled_from_the_start_starts_at_its_lower_limit(
    kube: Kube, namespace: str, operators: Operators, audit: AuditLog, installed: Devcluster
) -> None:
    operator = await operators()
    sizes = Sizes(kube, namespace)
    async with sizes.watching():
        await kube.create(external(namespace, replicas=4, **AUTOSCALED))
        await until_autoscaler(kube, namespace, minReplicas=4)
        await sizes.become(4)
        await until_condition(kube, namespace, "Autoscaled", "Unknown", "Measuring", seconds=PATIENCE_SECONDS)
        # Somebody's change of it is set back; and without an instance no autoscaler does anything.
        hpas = resource_of("autoscaling/v2", "HorizontalPodAutoscaler")
        await kube.merge(hpas, namespace, "tables", {"spec": {"maxReplicas": 9}}, field_manager="somebody")
        await until_autoscaler(kube, namespace, maxReplicas=6)
        found = await autoscaler(kube, namespace)
        assert found is not None
        await kube.delete(hpas, namespace, "tables", uid=found["metadata"]["uid"])
        await until_autoscaler(kube, namespace, minReplicas=4)
        await kube.merge(
            DEPLOYMENTS, namespace, "tables-a", {"spec": {"replicas": 0}}, field_manager="somebody"
        )
        await sizes.become(4, 0, 4)
    await until_handed_over(kube, namespace)
    await settled(kube, namespace, operator, audit)
    # What is as it should be costs no write, though the autoscaler's status comes again and again.
    async with operator.turning(3):
        position = audit.position()
        for number in range(3):
            status = {"status": {"observedGeneration": number + 100}}
            kubectl(
                installed.kubeconfig,
                *("patch", "hpa", "tables", "-n", namespace, "--subresource=status", "--type=merge"),
                f"--patch={json.dumps(status)}",
            )
    assert of_children(audit, position) == []


async def test_connections_move_the_lower_limit_and_the_emptiest_instance_goes(
    kube: Kube, namespace: str, operators: Operators, address: str, audit: AuditLog
) -> None:
    spec = {**AUTOSCALED, "websocket": {"maxConnections": 100}}
    await operators()
    await kube.create(external(namespace, replicas=1, **spec))

    async def one_pod() -> Object | None:
        return next(iter(await pods_of(kube, namespace, "dataplane")), None)

    pod = await until(one_pod, what="a pod", seconds=PATIENCE_SECONDS)
    instance = Instance(address)
    instance.fleet = fleet(connections=170)
    async with instance.serving():
        await set_pod(kube, pod, address=address, ready=True)
        # 170 connections of 100 each, full at 80 %.
        found = await until_autoscaler(kube, namespace, minReplicas=3)
        assert "tableforge.io/floor-changed-at" in found["metadata"]["annotations"]

        async def told_of_it() -> list[str]:
            return [message for reason, message in await events(kube, namespace) if reason == "FloorRaised"]

        # It follows the write that it is about.
        told = await until(told_of_it, what="an Event", seconds=PATIENCE_SECONDS)
        message = (
            "At least 3 instances run (1 before): there are 170 connections, and an instance takes 100 and "
            "counts as full at 80%."
        )
        assert told == [message]
        await until_condition(kube, namespace, "Autoscaled", "Unknown", "Measuring", seconds=PATIENCE_SECONDS)

        async def three_pods() -> list[Object] | None:
            pods = await pods_of(kube, namespace, "dataplane")
            return pods if len(pods) == 3 else None

        pods = await until(three_pods, what="three pods", seconds=PATIENCE_SECONDS)
        position = audit.position()
        loads = dict(zip([found["metadata"]["name"] for found in pods], (60, 0, 7), strict=True))
        told_of = fleet(instances=3, connections=67)
        instance.fleet = told_of_pods(told_of, loads)
        await until_autoscaler(kube, namespace, minReplicas=1)
        marked = {
            found["metadata"]["name"]: found["metadata"]["annotations"][
                "controller.kubernetes.io/pod-deletion-cost"
            ]
            for found in await pods_of(kube, namespace, "dataplane")
        }
        assert marked == {name: {60: "11", 0: "0", 7: "6"}[load] for name, load in loads.items()}

        async def recorded() -> list[str] | None:
            writes = of_children(audit, position)
            return writes if "patch horizontalpodautoscalers/tables" in writes else None

        writes = await until(recorded, what="the API server's record says so too")
        assert sorted(writes[:3]) == sorted(f"patch pods/{name}" for name in loads), (
            "before the limit is lowered"
        )
        assert "patch horizontalpodautoscalers/tables" in writes[3:]


def told_of_pods(answer: Any, loads: dict[str, int]) -> Any:
    """The fleet's answer with these instances."""
    import msgspec

    records = [
        msgspec.structs.replace(record, instance=name, connections=load)
        for record, (name, load) in zip(answer.instances, loads.items(), strict=True)
    ]
    return msgspec.structs.replace(answer, instances=records)


async def test_an_operator_that_dies_at_any_write_of_a_handover_leaves_the_size_as_it_is(
    kube: Kube, namespace: str, installed: Devcluster
) -> None:
    async def handed_over(enabled: bool) -> bool:
        deployment = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
        assert deployment is not None
        there = await autoscaler(kube, namespace) is not None
        return there == enabled and ("tableforge-operator" in owners_of_size(deployment)) != enabled

    async def hand_over(enabled: bool, *, dies_at: int) -> bool:
        """An operator ends what the last one began, changes hands and dies at a write of it; if it did."""
        async with life(installed.kubeconfig, namespace) as operator:
            await operator.idle()
            assert await handed_over(not enabled)
            before = len(operator.kube.writes)

            async def after(number: int) -> None:
                if number == before + dies_at:
                    operator.kube.kill()

            operator.kube.after_write = after
            await patch(kube, namespace, autoscaling={"enabled": enabled})
            operator.reconciler.notice((namespace, "tables"))

            async def over() -> bool:
                return operator.kube.dead or await handed_over(enabled)

            await until(over, what="it is dead or done", seconds=PATIENCE_SECONDS)
            # a write is seen before its answer is heard, which is what it dies of
            return not await operator.idle()

    await kube.create(external(namespace, replicas=3))
    async with life(installed.kubeconfig, namespace) as operator:
        await operator.idle()
    sizes = Sizes(kube, namespace)
    async with sizes.watching():
        # There: the size made somebody else's too, given up, the autoscaler. Back: that deleted, the size.
        # The last one may be done before it can die.
        for point in (1, 2, 3):
            assert await hand_over(True, dies_at=point) or point > 2
            assert await hand_over(False, dies_at=point) or point > 1
        await sizes.become(3)
