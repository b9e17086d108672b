"""Rebalancing from the annotation to the instances and back into the status, on a real API server."""

from typing import Any

import msgspec
import pytest

from tableforge_dataplane.contract.fleet import Move, RoomLoad, Shed
from tableforge_operator.kube import CLUSTERS, PODS, Kube, Object
from tests.operator.engine.clusters import created, events, external, until_condition
from tests.operator.engine.gateways import ROUTED, install_kinds, remove_kinds, say
from tests.operator.engine.operators import Operator, Operators, until
from tests.operator.engine.pods import Instance, fleet, set_pod
from tests.operator.engine.test_cordons_on_a_cluster import names_of, some_pods
from tests.operator.engine.test_gateway_on_a_cluster import kubeconfig, route, until_address

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

__all__ = ["kubeconfig"]

FAST: dict[str, Any] = {
    "replicas": 2,
    # Nobody calls for these instances' deaths: their records are always of now.
    "scaling": {"heartbeatInterval": "3s"},
    "clustering": {"rebalanceInterval": "10s", "rebalanceThreshold": 0.3},
}


def load(instance: Instance, loads: dict[str, int], rooms: dict[str, dict[str, int]] | None = None) -> None:
    """So many connections, and these rooms, has each."""
    told = fleet(names=list(loads))
    records = [
        msgspec.structs.replace(
            record,
            connections=loads[record.instance],
            heaviest_rooms=[
                RoomLoad(room=room, members=members)
                for room, members in (rooms or {}).get(record.instance, {}).items()
            ],
        )
        for record in told.instances
    ]
    instance.fleet, instance.ticks = msgspec.structs.replace(told, instances=records), True


def loads(instance: Instance) -> list[int]:
    assert instance.fleet is not None
    return [record.connections for record in instance.fleet.instances]


async def ask(kube: Kube, namespace: str, request: str) -> None:
    patch = {"metadata": {"annotations": {"tableforge.io/rebalance": request}}}
    await kube.merge(CLUSTERS, namespace, "tables", patch, field_manager="person")


async def until_status(kube: Kube, namespace: str, **wanted: Any) -> Object:
    async def look() -> Object | None:
        status = (await kube.get(CLUSTERS, namespace, "tables"))["status"].get("rebalance") or {}
        return status if all(status.get(name) == value for name, value in wanted.items()) else None

    return await until(look, what=f"the status says {wanted}")


async def told(kube: Kube, namespace: str) -> list[str]:
    return [reason for reason, _ in await events(kube, namespace)]


async def label(kube: Kube, namespace: str, name: str) -> tuple[str | None, str | None]:
    metadata = (await kube.get(PODS, namespace, name))["metadata"]
    annotations = metadata.get("annotations") or {}
    return metadata["labels"].get("tableforge.io/accepting"), annotations.get("tableforge.io/shedding")


async def started(
    kube: Kube, namespace: str, operators: Operators, **spec: Any
) -> tuple[Operator, list[Object]]:
    operator = await operators()
    await kube.apply(external(namespace, **{**FAST, **spec}), field_manager="user", force=True)
    await created(kube, namespace)
    return operator, await some_pods(kube, namespace, 2)


async def test_on_request_a_hot_instance_sends_clients_elsewhere_and_takes_new_ones_again(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    operator, pods = await started(kube, namespace, operators)
    hot, cold = names_of(pods)
    async with Instance(address).serving() as instance:
        load(instance, {hot: 450, cold: 450})
        for pod in pods:
            await set_pod(kube, pod, address=address, ready=True)
        await until_condition(kube, namespace, "Balanced", "True", "WithinThreshold")
        load(instance, {hot: 800, cold: 100})
        await ask(kube, namespace, "now")

        async def evened() -> bool:
            return max(loads(instance)) - min(loads(instance)) < 0.3 * 450

        await until(evened, what="load is even")
        status = await until_status(kube, namespace, phase="Idle", lastRequest="now", movesDone=1)
        assert (status["movesPlanned"], status["movesFailed"]) == (1, 0)
        assert status["spreadBefore"] > 1
        (shed,) = [command for command in instance.commands if isinstance(command, Shed)]
        assert shed.instance == hot
        assert 200 <= shed.connections <= 400

        async def open_again() -> bool:
            return await label(kube, namespace, hot) == ("true", None)

        await until(open_again, what="it takes clients again")
        found = await told(kube, namespace)
        assert found.count("RebalanceStarted") == found.count("RebalanceFinished") == 1

        # The same word again is no new request; another one is, and finds nothing to do.
        async with operator.turning(3):
            pass
        assert len([command for command in instance.commands if isinstance(command, Shed)]) == 1
        await ask(kube, namespace, "now-2")
        await until_status(kube, namespace, lastRequest="now-2")
        text = (await operator.get("/metrics"))[1]
        assert 'tableforge_operator_rebalance_moves_total{outcome="done"} 1.0' in text
        assert 'tableforge_operator_rebalances_total{event="RebalanceStarted"} 1.0' in text


async def test_switched_off_in_the_middle_of_a_plan_it_stops_and_lets_everybody_in(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    _, pods = await started(kube, namespace, operators)
    hot, cold = names_of(pods)
    async with Instance(address).serving() as instance:
        load(instance, {hot: 800, cold: 100})
        instance.follows = False
        for pod in pods:
            await set_pod(kube, pod, address=address, ready=True)
        await until_condition(kube, namespace, "Ready", "True")
        await ask(kube, namespace, "now")

        async def asked() -> bool:
            return any(isinstance(command, Shed) for command in instance.commands)

        await until(asked, what="it is asked to shed")
        assert await label(kube, namespace, hot) == ("false", "true")
        await until_status(kube, namespace, phase="Rebalancing")
        off = {"spec": {"clustering": {"enableLoadRebalancing": False}}}
        await kube.merge(CLUSTERS, namespace, "tables", off, field_manager="user")

        async def stopped() -> bool:
            return any(isinstance(command, Shed) and not command.connections for command in instance.commands)

        await until(stopped, what="it is told to stop")
        await until_status(kube, namespace, phase="Stopped", movesFailed=1)
        await until_condition(kube, namespace, "Balanced", "Unknown", "Disabled")

        async def open_again() -> bool:
            record = (
                next(one for one in instance.fleet.instances if one.instance == hot)
                if instance.fleet
                else None
            )
            return (
                await label(kube, namespace, hot) == ("true", None)
                and record is not None
                and not record.cordoned
            )

        await until(open_again, what="it takes clients again")
        assert "RebalanceStopped" in await told(kube, namespace)


async def test_an_operator_that_starts_in_the_middle_takes_back_the_cordons_of_a_plan_it_does_not_know(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    operator, pods = await started(kube, namespace, operators)
    hot, cold = names_of(pods)
    async with Instance(address).serving() as instance:
        load(instance, {hot: 800, cold: 100})
        instance.follows = False
        for pod in pods:
            await set_pod(kube, pod, address=address, ready=True)
        await until_condition(kube, namespace, "Ready", "True")
        await ask(kube, namespace, "now")
        await until_status(kube, namespace, phase="Rebalancing", lastRequest="now")

        async def closed() -> bool:
            return await label(kube, namespace, hot) == ("false", "true")

        await until(closed, what="it takes no new clients")

        async def ordered() -> bool:
            return bool(instance.commands)

        await until(ordered, what="the instances are told")
        await operator.child.stop()
        fence = max(command.fence for command in instance.commands)
        await operators()

        async def open_again() -> bool:
            return await label(kube, namespace, hot) == ("true", None)

        await until(open_again, what="it takes clients again")

        async def told_so() -> bool:
            return instance.commands[-1].fence > fence

        await until(told_so, what="the instance is told, by the new reign")
        await until_status(kube, namespace, lastRequest="now")


async def test_behind_a_gateway_rooms_get_other_homes(
    kube: Kube, namespace: str, operators: Operators, address: str, kubeconfig: Any
) -> None:
    remove_kinds(kubeconfig)
    install_kinds(kubeconfig)
    _, pods = await started(kube, namespace, operators, **ROUTED)
    hot, cold = names_of(pods)
    async with Instance(address).serving() as instance:
        rooms = {hot: {f"room-{number}": 20 for number in range(40)}, cold: {"quiet": 100}}
        load(instance, {hot: 800, cold: 100}, rooms)
        for pod in pods:
            await set_pod(kube, pod, address=address, ready=True)
        for name in ("tables", hot, cold):
            await say(kube, await route(kube, namespace, name))
        await until_address(instance, hot, f"/i/{hot}/ws")
        await until_address(instance, cold, f"/i/{cold}/ws")
        await ask(kube, namespace, "now")
        await until_status(kube, namespace, phase="Idle", lastRequest="now", movesFailed=0)
        (move,) = [command for command in instance.commands if isinstance(command, Move)]
        assert {(one.source, one.target) for one in move.moves} == {(hot, cold)}
        status = await until_status(kube, namespace, movesDone=len(move.moves))
        assert status["spreadBefore"] > status["spread"]
        assert max(loads(instance)) - min(loads(instance)) < 0.3 * 450
        assert await label(kube, namespace, hot) == ("true", None), "rooms move, and nobody is kept out"
