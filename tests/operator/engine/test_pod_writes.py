"""What is written to pods: one that is gone holds nothing up, and a refusal is remembered, not raised."""

from typing import Any, cast

import pytest

from tableforge_operator.act import pods
from tableforge_operator.act.memory import Memory
from tableforge_operator.decide.cordons import Marking
from tableforge_operator.decide.deletion_costs import Cost
from tableforge_operator.kube import ApiError, ForbiddenError, Kube, NotFoundError
from tableforge_operator.observe.store import Store
from tests.operator.engine.test_cordons import pod


class Server:
    """Takes patches of pods, but for those that it has an answer to."""

    def __init__(self, **errors: ApiError) -> None:
        self._errors = errors
        self.patches: dict[str, Any] = {}

    async def merge(
        self, resource: Any, namespace: str, name: str, patch: Any, *, field_manager: str
    ) -> dict[str, Any]:
        if name in self._errors:
            raise self._errors[name]
        self.patches[name] = patch["metadata"]
        return seen(name, version="2")


def seen(name: str, *, version: str = "1") -> dict[str, Any]:
    found = pod(name)
    found["metadata"]["resourceVersion"] = version
    return found


def world() -> tuple[Store, Memory]:
    store = Store(lambda *_: None)
    for name in ("one", "two", "three"):
        store.put(seen(name))
    return store, Memory(uid="uid-1")


def known(store: Store) -> dict[str, str]:
    return {
        obj["metadata"]["name"]: obj["metadata"]["resourceVersion"]
        for obj in store.of_cluster(("ns", "tables"))
    }


async def write(kind: str, server: Server, store: Store, memory: Memory, *names: str) -> None:
    kube = cast("Kube", server)
    if kind == "costs":
        costs = [Cost(pod=seen(name), value=4) for name in names]
        await pods.write_costs(kube, store, costs, memory=memory)
    else:
        marks = [Marking(pod=seen(name), labels={"a": "b"}, annotations={"c": None}) for name in names]
        await pods.write_markings(kube, store, marks, memory=memory)


@pytest.mark.parametrize("kind", ["costs", "markings"])
async def test_a_pod_that_is_gone_is_forgotten_and_the_others_are_written_to(kind: str) -> None:
    store, memory = world()
    server = Server(one=NotFoundError("pods one not found"))
    await write(kind, server, store, memory, "one", "two", "three")
    assert list(server.patches) == ["two", "three"]
    assert known(store) == {"two": "2", "three": "2"}
    assert (memory.costs_failed_at, memory.markings_failed_at, memory.markings_refused) == (None, None, "")
    assert (memory.costs_written_at is not None) is (kind == "costs")


async def test_what_is_written() -> None:
    store, memory = world()
    server = Server()
    await write("costs", server, store, memory, "one")
    cost = {"controller.kubernetes.io/pod-deletion-cost": "4"}
    assert server.patches["one"] == {"uid": "uid of one", "annotations": cost}
    await write("markings", server, store, memory, "one")
    assert server.patches["one"] == {"uid": "uid of one", "labels": {"a": "b"}, "annotations": {"c": None}}


async def test_a_refusal_is_remembered_and_nothing_more_is_tried() -> None:
    for kind in ("costs", "markings"):
        store, memory = world()
        server = Server(two=ForbiddenError("pods are forbidden."))
        await write(kind, server, store, memory, "one", "two", "three")
        assert list(server.patches) == ["one"]
        assert (memory.costs_failed_at is not None) is (kind == "costs")
        assert (memory.markings_failed_at is not None) is (kind == "markings")
        assert memory.markings_refused == ("pods are forbidden" if kind == "markings" else "")
    await write("markings", Server(), store, memory, "two")
    assert memory.markings_refused == "", "it works again"
