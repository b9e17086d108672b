"""Routes to single instances on a real API server; what a gateway would say of them is played by the test.

The kinds of the Gateway API are there for these tests alone: every other one runs without them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, PODS, Kube, Object
from tests.operator.engine.clusters import (
    created,
    events,
    external,
    find,
    look_again,
    settled,
    until_condition,
)
from tests.operator.engine.gateways import ROUTED, ROUTES, install_kinds, remove_kinds, say, word
from tests.operator.engine.operators import AuditLog, Operators, until
from tests.operator.engine.pods import Instance, fleet, set_pod
from tests.operator.engine.test_cordons_on_a_cluster import names_of, some_pods

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture
def kubeconfig(installed: Devcluster) -> Iterator[Path]:
    yield installed.kubeconfig
    remove_kinds(installed.kubeconfig)


async def route(kube: Kube, namespace: str, name: str) -> Object:
    async def look() -> Object | None:
        return await find(kube, ROUTES.api_version, ROUTES.kind, namespace, name)

    return await until(look, what=f"HTTPRoute {name}")


def address_of(instance: Instance, name: str) -> str | None:
    assert instance.fleet is not None
    (found,) = [one for one in instance.fleet.instances if one.instance == name]
    return found.address


async def until_address(instance: Instance, name: str, address: str | None) -> None:
    async def look() -> bool:
        return address_of(instance, name) == address

    await until(look, what=f"{name} has been told {address}")


async def test_from_a_cluster_without_the_gateway_api_to_routed_instances_and_back(
    kube: Kube, namespace: str, operators: Operators, address: str, audit: AuditLog, kubeconfig: Path
) -> None:
    remove_kinds(kubeconfig)
    operator = await operators()
    await kube.apply(external(namespace, replicas=2, **ROUTED), field_manager="user", force=True)
    await created(kube, namespace)
    missing = await until_condition(kube, namespace, "Ready", "False", "GatewayApiMissing")
    assert "set spec.routing.mode to Service" in missing["message"]

    install_kinds(kubeconfig)
    main = await route(kube, namespace, "tables")
    one, two = await some_pods(kube, namespace, 2)
    name, other = names_of([one, two])
    async with Instance(address).serving() as instance:
        instance.fleet = fleet(names=[name, other])
        await set_pod(kube, one, address=address, ready=True)
        await set_pod(kube, two, address=address, ready=True)
        await until_condition(kube, namespace, "Ready", "False", "RouteWaiting")
        await say(kube, main)
        await until_condition(kube, namespace, "Ready", "True")
        assert instance.commands == [], "no gateway leads to an instance yet"

        leads = await route(kube, namespace, name)
        assert leads["metadata"]["ownerReferences"][0]["kind"] == "Pod"
        labels = (await kube.get(PODS, namespace, name))["metadata"]["labels"]
        assert labels["tableforge.io/instance"] == name
        await say(kube, leads)
        await until_address(instance, name, f"/i/{name}/ws")
        assert address_of(instance, other) is None
        await say(kube, await route(kube, namespace, other))
        await until_address(instance, other, f"/i/{other}/ws")

        await settled(kube, namespace, operator, audit)
        count = len(instance.commands)
        for _ in range(2):
            async with operator.turning():
                await look_again(kube, namespace)
        assert len(instance.commands) == count, "nothing is said twice"

        refusal = word(
            generation=leads["metadata"]["generation"], accepted=(False, "No listener lets it in.")
        )
        await say(kube, leads, [refusal])
        await until_address(instance, name, None)
        told = await until_condition(kube, namespace, "Ready", "False", "RouteRefused")
        assert told["message"] == (
            f"HTTPRoute {name}: Gateway edge/public does not accept it: NotAllowedByListeners: "
            "No listener lets it in."
        )
        await say(kube, leads)
        await until_address(instance, name, f"/i/{name}/ws")
        await until_condition(kube, namespace, "Ready", "True")

        # Not ready any more, it is nowhere to send anybody.
        await set_pod(kube, one, address=address, ready=False)
        await until_address(instance, name, None)
        await set_pod(kube, one, address=address, ready=True)
        await until_address(instance, name, f"/i/{name}/ws")

        back = {"routing": {"mode": "Service", "gateway": None}}
        await kube.merge(CLUSTERS, namespace, "tables", {"spec": back}, field_manager="user")

        async def gone() -> bool:
            return await find(kube, ROUTES.api_version, ROUTES.kind, namespace, "tables") is None

        await until(gone, what="the route of all is gone")
        await until_address(instance, name, None)
        assert await find(kube, ROUTES.api_version, ROUTES.kind, namespace, name) is not None
    said = [message for reason, message in await events(kube, namespace) if reason == "Created"]
    assert not [message for message in said if name in message], "instances come and go: that is no news"


async def test_what_somebody_changes_or_deletes_is_mended_and_goes_with_the_pod(
    kube: Kube, namespace: str, operators: Operators, kubeconfig: Path
) -> None:
    install_kinds(kubeconfig)
    await operators()
    await kube.apply(external(namespace, **ROUTED), field_manager="user", force=True)
    (pod,) = await some_pods(kube, namespace, 1)
    (name,) = names_of([pod])
    leads = await route(kube, namespace, name)
    await kube.merge(
        ROUTES, namespace, name, {"spec": {"hostnames": ["evil.example"]}}, field_manager="person"
    )

    async def mended() -> bool:
        found = await find(kube, ROUTES.api_version, ROUTES.kind, namespace, name)
        return found is not None and found["spec"]["hostnames"] == ["tables.example"]

    await until(mended, what="the host names are set back")
    await kube.delete(ROUTES, namespace, name, uid=leads["metadata"]["uid"])

    async def made_again() -> bool:
        found = await find(kube, ROUTES.api_version, ROUTES.kind, namespace, name)
        return found is not None and found["metadata"]["uid"] != leads["metadata"]["uid"]

    await until(made_again, what="it is made again")
    patch = {"spec": {"routing": {"gateway": {"hostnames": ["other.example"]}}}}
    await kube.merge(CLUSTERS, namespace, "tables", patch, field_manager="user")

    async def follows() -> bool:
        found = [
            await find(kube, ROUTES.api_version, ROUTES.kind, namespace, one) for one in ("tables", name)
        ]
        return all(one is not None and one["spec"]["hostnames"] == ["other.example"] for one in found)

    await until(follows, what="the routes follow the spec")
    await kube.delete(PODS, namespace, name, uid=pod["metadata"]["uid"])

    async def collected() -> bool:
        kinds = ((ROUTES.api_version, ROUTES.kind), ("v1", "Service"), ("v1", "Pod"))
        return [await find(kube, *kind, namespace, name) for kind in kinds] == [None] * 3

    await until(collected, what="they have gone with the pod")


async def test_what_belongs_to_others_is_never_taken(
    kube: Kube, namespace: str, operators: Operators, kubeconfig: Path
) -> None:
    install_kinds(kubeconfig)
    await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    (pod,) = await some_pods(kube, namespace, 1)
    (name,) = names_of([pod])
    theirs: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "theirs"}},
    }
    await kube.create(theirs)
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": ROUTED}, field_manager="user")
    found = await until_condition(kube, namespace, "Stalled", "True", "NameConflict")
    assert found["message"].startswith(
        f"Service {name} exists already and belongs to nobody; it is left alone."
    )
    service = await find(kube, "v1", "Service", namespace, name)
    assert service is not None
    assert service["spec"]["selector"] == {"app": "theirs"}
    await route(kube, namespace, name)
