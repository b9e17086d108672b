"""A blue-green rollout of an autoscaled fleet on a real API server; the test is the kubelet."""

import pytest

from tableforge_operator.kube import CLUSTERS, Kube, Object, resource_of
from tests.operator.engine.clusters import events, external, find, settled, until_condition
from tests.operator.engine.operators import AuditLog, Operators, until
from tests.operator.engine.pods import Instance, fleet, pods_of, set_pod

pytestmark = pytest.mark.cluster

PATIENCE_SECONDS = 120.0


async def deployment(kube: Kube, namespace: str, track: str) -> Object | None:
    return await find(kube, "apps/v1", "Deployment", namespace, f"tables-{track}")


async def selected(kube: Kube, namespace: str) -> str:
    service = await kube.get(resource_of("v1", "Service"), namespace, "tables")
    return str(service["spec"]["selector"]["tableforge.io/track"])


async def pods(kube: Kube, namespace: str, image: str, *, number: int) -> list[Object]:
    """Wait for so many pods of an image."""

    async def look() -> list[Object] | None:
        found = [
            pod
            for pod in await pods_of(kube, namespace, "dataplane")
            if pod["spec"]["containers"][0]["image"] == image
        ]
        return found if len(found) == number else None

    return await until(look, what=f"{number} pods of {image}", seconds=PATIENCE_SECONDS)


async def test_it_goes_on_under_the_next_operator_and_costs_no_write_once_it_is_over(
    kube: Kube, namespace: str, operators: Operators, address: str, audit: AuditLog
) -> None:
    operator = await operators()
    autoscaling = {"enabled": True, "maxReplicas": 4}
    spec = {"replicas": 2, "rollout": {"strategy": "BlueGreen"}, "autoscaling": autoscaling}
    await kube.apply(external(namespace, image="some/image:1", **spec), field_manager="user", force=True)
    async with Instance(address).serving() as instance:
        instance.fleet = fleet(instances=2)
        for pod in await pods(kube, namespace, "some/image:1", number=2):
            await set_pod(kube, pod, address=address, ready=True)
        await until_condition(kube, namespace, "Ready", "True", seconds=PATIENCE_SECONDS)

        await kube.apply(external(namespace, image="some/image:2", **spec), field_manager="user", force=True)
        new = await pods(kube, namespace, "some/image:2", number=2)
        await set_pod(kube, new[0], address=address, ready=True)

        async def half() -> bool:
            cluster = await kube.get(CLUSTERS, namespace, "tables")
            return "1 of 2 instances run the new spec" in str(cluster["status"]["conditions"])

        await until(half, what="half of the other track is ready", seconds=PATIENCE_SECONDS)
        assert await selected(kube, namespace) == "a"
        # One that is not killed gives up its lease, so that nobody waits for it.
        await operator.child.stop()
        await set_pod(kube, new[1], address=address, ready=True)
        operator = await operators()

        async def over() -> bool:
            return await deployment(kube, namespace, "a") is None

        await until(over, what="the old track is gone", seconds=PATIENCE_SECONDS)
        assert await selected(kube, namespace) == "b"
        await until_condition(kube, namespace, "Ready", "True", seconds=PATIENCE_SECONDS)
        assert {pod["metadata"]["uid"] for pod in await pods_of(kube, namespace, "dataplane")} == {
            pod["metadata"]["uid"] for pod in new
        }

        async def told() -> list[str] | None:
            found = [reason for reason, _ in await events(kube, namespace)]
            found = [reason for reason in found if reason.startswith(("Rollout", "Track"))]
            return found if "RolloutCompleted" in found else None

        assert await until(told, what="its end is told") == [
            "RolloutStarted",
            "TrackSwitched",
            "RolloutCompleted",
        ]
        await settled(kube, namespace, operator, audit)
    now = await deployment(kube, namespace, "b")
    assert now is not None
    assert now["spec"]["replicas"] == 2
    autoscaler = await kube.get(resource_of("autoscaling/v2", "HorizontalPodAutoscaler"), namespace, "tables")
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == "tables-b"
    assert "tableforge.io/replaces" not in now["metadata"]["annotations"]


async def test_fewer_replicas_leave_one_after_another_where_nobody_knows_their_connections(
    kube: Kube, namespace: str, operators: Operators, address: str, audit: AuditLog
) -> None:
    await operators()
    await kube.apply(external(namespace, image="some/image:1", replicas=4), field_manager="user", force=True)
    async with Instance(address).serving() as instance:
        # Its records are of other names than the pods'.
        instance.fleet = fleet(instances=4)
        for pod in await pods(kube, namespace, "some/image:1", number=4):
            await set_pod(kube, pod, address=address, ready=True)
        await until_condition(kube, namespace, "Ready", "True", seconds=PATIENCE_SECONDS)
        position = audit.position()
        asked = external(namespace, image="some/image:1", replicas=1)
        await kube.apply(asked, field_manager="user", force=True)
        (left,) = await pods(kube, namespace, "some/image:1", number=1)
        await until_condition(kube, namespace, "Ready", "True", seconds=PATIENCE_SECONDS)
    steps = [write for write in audit.writes(position) if write.startswith("patch deployments/tables-a")]
    assert len(steps) == 3, "one for each that leaves"
    assert left["metadata"]["labels"]["tableforge.io/track"] == "a"
