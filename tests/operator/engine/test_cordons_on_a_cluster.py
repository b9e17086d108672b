"""A person's word on a pod reaches the client Service and the instances; who is gone is forgotten."""

from pathlib import Path

import pytest
import yaml

from devcluster.cluster import Devcluster
from tableforge_dataplane.contract.fleet import Forget, InstanceOrder, Orders
from tableforge_operator.kube import PODS, Kube, Object, resource_of
from tests.operator.engine.clusters import created, events, external, until_condition
from tests.operator.engine.operators import AuditLog, Operators, until
from tests.operator.engine.pods import Instance, fleet, pods_of, set_pod
from tests.operator.engine.test_upgrade import FOLDER, brought_back

pytestmark = pytest.mark.cluster

SERVICE = resource_of("v1", "Service")


async def some_pods(kube: Kube, namespace: str, count: int) -> list[Object]:
    async def look() -> list[Object] | None:
        pods = await pods_of(kube, namespace, "dataplane")
        return pods if len(pods) == count else None

    return await until(look, what=f"{count} pods")


def names_of(pods: list[Object]) -> list[str]:
    return [pod["metadata"]["name"] for pod in pods]


async def annotate(kube: Kube, pod: Object, **given: str | None) -> None:
    metadata = pod["metadata"]
    patch = {"metadata": {"annotations": {f"tableforge.io/{key}": value for key, value in given.items()}}}
    await kube.merge(PODS, metadata["namespace"], metadata["name"], patch, field_manager="person")


async def label(kube: Kube, pod: Object, name: str) -> str | None:
    live = await kube.get(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
    found: str | None = live["metadata"]["labels"].get(name)
    return found


async def record(instance: Instance, name: str) -> tuple[bool, float]:
    assert instance.fleet is not None
    (found,) = [one for one in instance.fleet.instances if one.instance == name]
    return found.cordoned, found.weight


async def test_a_cordon_and_a_weight_from_the_annotation_to_the_instance_and_back(
    kube: Kube, namespace: str, operators: Operators, address: str, audit: AuditLog
) -> None:
    operator = await operators()
    await kube.apply(external(namespace, replicas=2), field_manager="user", force=True)
    await created(kube, namespace)
    service = await kube.get(SERVICE, namespace, "tables")
    assert service["spec"]["selector"]["tableforge.io/accepting"] == "true"
    one, two = await some_pods(kube, namespace, 2)
    assert one["metadata"]["labels"]["tableforge.io/accepting"] == "true", "from birth"
    name = one["metadata"]["name"]
    async with Instance(address).serving() as instance:
        instance.fleet = fleet(names=names_of([one, two]))
        await set_pod(kube, one, address=address, ready=True)
        await set_pod(kube, two, address=address, ready=True)
        await until_condition(kube, namespace, "Ready", "True")
        assert instance.commands == []

        await annotate(kube, one, cordon="true", weight="250")

        async def closed() -> bool:
            return await record(instance, name) == (True, 250)

        await until(closed, what="the instance is told")
        assert await label(kube, one, "tableforge.io/accepting") == "false"
        assert await label(kube, two, "tableforge.io/accepting") == "true"
        (command,) = [found for found in instance.commands if isinstance(found, Orders)]
        assert command.instances == [InstanceOrder(instance=name, cordoned=True, weight=250)]
        assert command.fence >= 1

        start = audit.position()
        async with operator.turning(2):
            await annotate(kube, two, cordon="perhaps")
        assert audit.writes(start).count(f"patch pods/{name}") == 0, "nothing is written twice"

        async def told() -> bool:
            return any(
                reason == "AnnotationIgnored" and "tableforge.io/cordon of pod" in message
                for reason, message in await events(kube, namespace)
            )

        await until(told, what="an Event tells of the annotation")
        ready = await until_condition(kube, namespace, "Ready", "True")
        assert 'is "perhaps", which is passed over: write "true" or "false"' in ready["message"]

        await annotate(kube, one, cordon=None, weight=None)

        async def open_again() -> bool:
            return await record(instance, name) == (False, 100)

        await until(open_again, what="the instance is told again")
        assert await label(kube, one, "tableforge.io/accepting") == "true"


async def test_a_label_changed_by_hand_is_set_back(kube: Kube, namespace: str, operators: Operators) -> None:
    await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    (pod,) = await some_pods(kube, namespace, 1)
    patch = {"metadata": {"labels": {"tableforge.io/accepting": "no"}}}
    await kube.merge(PODS, namespace, pod["metadata"]["name"], patch, field_manager="person")

    async def mended() -> bool:
        return await label(kube, pod, "tableforge.io/accepting") == "true"

    await until(mended, what="it is set back")


async def test_an_instance_whose_pod_is_gone_is_forgotten_and_no_other(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    (pod,) = await some_pods(kube, namespace, 1)
    name = pod["metadata"]["name"]
    hidden: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        # It runs, and has lost the labels by which it would be seen.
        "metadata": {"name": "hidden", "namespace": namespace},
        "spec": {"containers": [{"name": "dataplane", "image": "example/none"}]},
    }
    await kube.create(hidden)
    async with Instance(address).serving() as instance:
        instance.fleet = fleet(names=[name, "hidden", "gone"])
        await set_pod(kube, pod, address=address, ready=True)

        async def forgotten() -> bool:
            return any(isinstance(command, Forget) for command in instance.commands)

        await until(forgotten, what="it is to be forgotten")
        commands = [command for command in instance.commands if isinstance(command, Forget)]
        assert [command.instances for command in commands] == [["gone"]]


async def test_an_order_that_a_later_operator_has_overtaken_is_given_anew_by_who_holds_the_lease(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    (pod,) = await some_pods(kube, namespace, 1)
    async with Instance(address).serving() as instance:
        instance.fence = 1000  # as when the Lease was made anew
        instance.fleet = fleet(names=names_of([pod]))
        await set_pod(kube, pod, address=address, ready=True)
        await annotate(kube, pod, cordon="true")

        async def taken() -> bool:
            return bool(instance.commands)

        await until(taken, what="the order is taken")
        assert instance.fence > 1000


async def test_after_an_upgrade_pods_are_labelled_before_the_service_asks_for_it(
    kube: Kube, namespace: str, installed: Devcluster, operators: Operators, audit: AuditLog, tmp_path: Path
) -> None:
    text = (FOLDER / "external.yaml").read_text()
    objects = list(yaml.safe_load_all(text))
    for obj in objects:
        obj["metadata"]["namespace"] = namespace
    file = tmp_path / "older.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    cluster, *children = await brought_back(kube, file)
    name = cluster["metadata"]["name"]
    (deployment,) = [child for child in children if child["kind"] == "Deployment"]
    pods = await some_pods(kube, namespace, deployment["spec"]["replicas"])
    assert all("tableforge.io/accepting" not in pod["metadata"]["labels"] for pod in pods)
    start = audit.position()
    await operators()

    async def asks() -> bool:
        service = await kube.get(SERVICE, namespace, name)
        return service["spec"]["selector"].get("tableforge.io/accepting") == "true"

    await until(asks, what="the Service asks for the label")

    async def recorded() -> list[str] | None:
        writes = audit.writes(start)
        return writes if f"patch services/{name}" in writes else None

    writes = await until(recorded, what="the API server's record says so too")
    asked = writes.index(f"patch services/{name}")
    for pod in pods:
        assert writes.index(f"patch pods/{pod['metadata']['name']}") < asked
