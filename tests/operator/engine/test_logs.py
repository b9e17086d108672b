"""The log: an object a line, and what is about a cluster says about which."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tableforge_operator import api as crd
from tableforge_operator import logs
from tableforge_operator.act.children import Children
from tableforge_operator.act.memory import Memory
from tableforge_operator.decide.changes import Apply
from tableforge_operator.decide.resources.instance_service import instance_service
from tableforge_operator.decide.resources.metadata import labels
from tableforge_operator.decide.storage import Growth
from tableforge_operator.kube import ForbiddenError, Kube, ServerError
from tableforge_operator.observe.store import Store
from tests.operator.engine.snapshots import cluster
from tests.operator.engine.test_cordons import pod
from tests.operator.engine.test_storage import claim
from tests.operator.engine.test_turns import Api, Fleets, working

QUIETER = ("kopf", "kubernetes", "aiohttp.access", "asyncio")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What the tests set up ends with them."""
    root, running = logging.getLogger(), logging.getLogger("kopf._core.reactor.running")
    handlers, filters = list(root.handlers), list(running.filters)
    levels = {name: logging.getLogger(name).level for name in ("", *QUIETER)}
    yield
    root.handlers[:], running.filters[:] = handlers, filters
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class Refusing(Api):
    """Has no right to Services and claims; is down for one cluster, and another one ends in a fault."""

    async def get(self, resource: Any, namespace: str, name: str) -> Any:
        if name == "unlucky":
            raise ServerError("it is down", status=500)
        if name == "odd":
            raise RuntimeError("a fault of our own")
        return await super().get(resource, namespace, name)

    async def apply(self, obj: dict[str, Any], **more: Any) -> Any:
        if obj["kind"] in ("PersistentVolumeClaim", "Service"):
            raise ForbiddenError("no right", status=403)
        return await super().apply(obj, **more)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


async def test_what_is_about_a_cluster_has_its_namespace_and_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.set_up("debug", "json")
    api, fleets, told = Refusing(), Fleets(), asyncio.Event()
    fleets.answer.set()
    events: set[str] = set()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            events.add(record.getMessage())
            if events >= {"child", "child refused", "reconcile put off", "reconcile failed"}:
                told.set()

    logging.getLogger().addHandler(Listening())
    api.add("tables")
    async with asyncio.timeout(30), working(api, fleets) as reconciler:
        for name in ("unlucky", "odd"):
            reconciler.notice(("ns", name))
        await told.wait()
        await api.has_judged("tables")
    found = lines(capsys)
    about = {
        event: {line["cluster"] for line in found if line["event"] == event}
        for event in ("child", "child refused", "reconcile put off", "reconcile failed")
    }
    assert about == {
        "child": {"ns/tables"},
        "child refused": {"ns/tables"},
        "reconcile put off": {"ns/unlucky"},
        "reconcile failed": {"ns/odd"},
    }
    (refused, *_) = [line for line in found if line["event"] == "child refused"]
    assert (refused["level"], refused["object"], refused["reason"]) == (
        "warning",
        "Service tables",
        "Forbidden",
    )
    (failed, *_) = [line for line in found if line["event"] == "reconcile failed"]
    assert "RuntimeError: a fault of our own" in failed["exception"]


async def test_what_is_refused_has_its_clusters_name_though_a_pod_or_nobody_owns_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.set_up("info", "json")
    children, memory = Children(cast("Kube", Refusing()), Store(lambda *_: None)), Memory(uid="uid-1")
    typed, owned = crd.load(cluster()), claim("1Gi")
    owned["metadata"]["labels"] = labels(typed, "redis")
    service = Apply(obj=instance_service(typed, pod("tables-a-abc-1")), digest="any", reason="Missing")
    await children.apply(service, cluster=cluster(), memory=memory)
    await children.grow(Growth(claim=owned, size="6Gi"), memory=memory)
    assert [(line["object"], line["cluster"]) for line in lines(capsys)] == [
        ("Service tables-a-abc-1", "ns/tables"),
        ("PersistentVolumeClaim data-tables-redis-0", "ns/tables"),
    ]


def test_a_line_for_people_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "text")
    logging.getLogger("tableforge_operator.reconcile").info("cluster gone", extra={"cluster": "ns/tables"})
    assert capsys.readouterr().err.endswith(
        "info    tableforge_operator.reconcile: cluster gone cluster='ns/tables'\n"
    )
