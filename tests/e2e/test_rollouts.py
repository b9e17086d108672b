"""A changed spec reaches the instances under sixty clients: nothing is lost, nobody refused or hurried."""

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import jwt
import pytest

from demo.kubectl import Kubectl
from tableforge_client import UnauthorizedError, connect
from tests.support.crowd import most_within, too_many
from tests.support.ledger import Ledger

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CLIENTS = 60
PER_SECOND = 5
WINDOW_SECONDS = 8.0

CLUSTER = f"""
apiVersion: tableforge.io/v1alpha1
kind: WebSocketCluster
metadata: {{name: tables}}
spec:
  image: tableforge/dataplane:1
  replicas: 3
  auth: {{required: false}}
  redis: {{managed: {{persistence: {{onDelete: Delete}}}}}}
  scaling: {{heartbeatInterval: 5s}}
  rollout: {{maxReconnectsPerSecond: {PER_SECOND}, drainTimeout: 8s}}
"""


@pytest.fixture
async def namespaces(kubectl: Kubectl) -> AsyncIterator[tuple[str, str]]:
    """Two empty namespaces, whose end nobody waits for: instances take their time to leave."""
    names = (f"rollouts-{uuid.uuid4().hex[:8]}", f"rollouts-{uuid.uuid4().hex[:8]}")
    for name in names:
        await kubectl("create", "namespace", name)
    yield names
    await kubectl("delete", "namespace", *names, "--wait=false")


class Cluster:
    """The cluster `tables` as a user sees it."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._in = ("-n", namespace)

    async def apply(self, manifest: str) -> None:
        await self._kubectl("apply", *self._in, "-f", "-", stdin=manifest)

    async def ask(self, **spec: Any) -> None:
        """Change the spec; wait until it has been looked at and is on its way, or has arrived."""
        patch = json.dumps({"spec": spec})
        await self._kubectl("patch", *self._in, "wsc/tables", "--type=merge", "-p", patch)
        generation = (await self.cluster())["metadata"]["generation"]
        await self._kubectl(
            "wait",
            *self._in,
            f"--for=jsonpath={{.status.observedGeneration}}={generation}",
            "wsc/tables",
            "--timeout=110s",
        )

    async def ready(self) -> None:
        """Wait until everything is as the spec says."""
        await self._kubectl(
            "wait", *self._in, "--for=condition=Ready", "wsc/tables", "--timeout=180s", timeout_seconds=200
        )

    async def rolled_out(self, track: str) -> str:
        """Wait as `docs/operations.md` says, and give what was printed."""
        return await self._kubectl(
            "rollout",
            "status",
            *self._in,
            f"deployment/tables-{track}",
            "--timeout=180s",
            timeout_seconds=200,
        )

    async def cluster(self) -> Any:
        return await self._kubectl.json("get", *self._in, "wsc/tables")

    async def condition(self, kind: str) -> dict[str, Any]:
        found = (await self.cluster()).get("status", {}).get("conditions", [])
        return next((one for one in found if one["type"] == kind), {})

    async def says(self, kind: str, *words: str, seconds: float = 90) -> str:
        """Wait until the condition's message has all the words."""
        message = ""
        try:
            async with asyncio.timeout(seconds):
                while not message or not all(word in message for word in words):
                    message = (await self.condition(kind)).get("message", "")
                    await asyncio.sleep(0.3)
        except TimeoutError:
            pytest.fail(f"{kind} never said {words}, but: {message}")
        return message

    async def gone(self) -> None:
        """Wait until no instance is on its way out any more."""
        async with asyncio.timeout(120):
            while len(await self._pods()) > len(await self.pods()):  # noqa: ASYNC110
                await asyncio.sleep(0.3)

    async def pods(self) -> dict[str, Any]:
        """The instances that aren't leaving, by uid."""
        return {
            pod["metadata"]["uid"]: pod
            for pod in await self._pods()
            if "deletionTimestamp" not in pod["metadata"]
        }

    async def _pods(self) -> list[Any]:
        selector = "tableforge.io/cluster=tables,app.kubernetes.io/component=dataplane"
        found = await self._kubectl.json("get", "pods", *self._in, "-l", selector)
        return list(found["items"])

    async def images(self) -> list[str]:
        return sorted(pod["spec"]["containers"][0]["image"] for pod in (await self.pods()).values())

    async def deployments(self) -> list[str]:
        found = await self._kubectl.json(
            "get", "deployments", *self._in, "-l", "tableforge.io/cluster=tables"
        )
        return sorted(one["metadata"]["name"] for one in found["items"])

    async def selected(self) -> str:
        service = await self._kubectl.json("get", *self._in, "service/tables")
        return str(service["spec"]["selector"]["tableforge.io/track"])

    async def url(self) -> str:
        service = await self._kubectl.json("get", *self._in, "service/tables")
        return f"ws://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}/ws"

    async def events(self) -> list[str]:
        """Reasons of the cluster's Events, in their order."""
        found = await self._kubectl.json(
            "get", "events", *self._in, "--field-selector=involvedObject.kind=WebSocketCluster"
        )
        items = sorted(found["items"], key=lambda item: int(item["metadata"]["resourceVersion"]))
        return [item["reason"] for item in items]


@contextlib.asynccontextmanager
async def knocking(url: str) -> AsyncIterator[list[str]]:
    """Connects anew all the time; gives what went wrong."""
    refused: list[str] = []
    made = 0

    async def knock() -> None:
        nonlocal made
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.ws_connect(url, protocols=["tableforge.v1"]):
                        made += 1
                except (aiohttp.ClientError, OSError) as error:
                    refused.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.2)  # a pace

    knocker = asyncio.create_task(knock())
    try:
        yield refused
    finally:
        knocker.cancel()
        await asyncio.gather(knocker, return_exceptions=True)
        assert made >= 20, "hardly anybody knocked"


LOCKED = """
apiVersion: tableforge.io/v1alpha1
kind: WebSocketCluster
metadata: {name: tables}
spec:
  replicas: 1
  auth: {jwtSecretRef: {name: keys}}
  redis: {managed: {persistence: {onDelete: Delete}}}
  rollout: {progressDeadline: 30s, drainTimeout: 1s}
"""


def token(key: str) -> str:
    now = int(time.time())
    return jwt.encode({"sub": "ada", "iat": now, "exp": now + 600}, key, algorithm="HS256")


async def a_secrets_content_needs_no_rollout_and_a_bad_image_ends_as_stalled(tables: Cluster) -> None:
    old, new = (f"{random.Random(n).getrandbits(256):064x}" for n in (1, 2))

    def secret(key: str) -> str:
        return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {{secret: '{key}'}}\n"

    await tables.apply(secret(old))
    await tables.apply(LOCKED)
    await tables.ready()
    (before,) = await tables.pods()
    url = await tables.url()
    async with connect(url, token=token(old)):
        pass
    await tables.apply(secret(new))
    async with asyncio.timeout(60):
        while True:
            try:
                async with connect(url, token=token(new)):
                    break
            except UnauthorizedError:
                await asyncio.sleep(0.5)
    (pod,) = (await tables.pods()).values()
    assert pod["metadata"]["uid"] == before
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0

    await tables.ask(image="tableforge/nothing:2")
    await tables.says("Stalled", "spec.rollout.progressDeadline", "tableforge/nothing:2", "(spec.image)")
    assert before in await tables.pods()
    async with connect(url, token=token(new)):
        pass

    await tables.ask(image=None)
    await tables.ready()
    assert list(await tables.pods()) == [before], "undone, it costs no instance"


async def test_what_a_change_means_for_clients(kubectl: Kubectl, namespaces: tuple[str, str]) -> None:
    tables, locked = (Cluster(kubectl, namespace) for namespace in namespaces)
    # Side by side: the second one mostly waits.
    async with asyncio.TaskGroup() as both:
        both.create_task(new_images_by_both_strategies(tables))
        both.create_task(a_secrets_content_needs_no_rollout_and_a_bad_image_ends_as_stalled(locked))


async def new_images_by_both_strategies(tables: Cluster) -> None:
    await tables.apply(CLUSTER)
    await tables.ready()
    url = await tables.url()
    publishing = asyncio.Event()
    figures: dict[str, int] = {}
    hurried: dict[str, str | None] = {}

    async with Ledger(url, members=CLIENTS, rooms=3, seed=7, backoff_longest=2.0) as ledger:

        @contextlib.contextmanager
        def counted(what: str) -> Iterator[None]:
            before = len(ledger.connected_again)
            began = time.monotonic()
            yield
            mine = ledger.connected_again[before:]
            figures[f"{what}: connections made again"] = len(mine)
            figures[f"{what}: at most in {WINDOW_SECONDS:g} s"] = most_within(mine, WINDOW_SECONDS)
            hurried[what] = too_many(mine, WINDOW_SECONDS, per_second=PER_SECOND, lost=ledger.lost)
            figures[f"{what}: seconds"] = round(time.monotonic() - began)

        async def publish() -> None:
            while not publishing.is_set():
                await ledger.publish(30, over_seconds=1.0)
                await asyncio.sleep(1.0)  # a pace

        async with knocking(url) as refused, asyncio.TaskGroup() as both:
            both.create_task(publish())
            try:
                with counted("RollingUpdate"):
                    await tables.ask(image="tableforge/dataplane:2")
                    await tables.says("Reconciling", "of 3 instances run the new spec")
                    said = await tables.rolled_out("a")
                    assert await tables.images() == ["tableforge/dataplane:2"] * 3, said
                    assert "Waiting for deployment" in said
                    await tables.ready()
                    await tables.gone()
                before = await tables.pods()

                # an image that nobody has, and back again
                with counted("undone"):
                    await tables.ask(image="tableforge/nothing:3", rollout={"strategy": "BlueGreen"})
                    await tables.says(
                        "Reconciling", "0 of 3 instances run the new spec", "tableforge/nothing:3"
                    )
                    assert await tables.selected() == "a"
                    assert before.keys() < (await tables.pods()).keys()
                    await tables.ask(image="tableforge/dataplane:2")
                    await tables.ready()
                assert (await tables.pods()).keys() == before.keys()
                assert await tables.deployments() == ["tables-a"]

                with counted("BlueGreen"):
                    await tables.ask(image="tableforge/dataplane:4")
                    await tables.says("Reconciling", "of track a", "yet to leave")
                    assert await tables.selected() == "b"
                    await tables.ready()
                assert await tables.images() == ["tableforge/dataplane:4"] * 3
                assert await tables.deployments() == ["tables-b"]
            finally:
                publishing.set()
        await ledger.settle(timeout_seconds=60)
    verdict = ledger.check()
    print(f"{figures}\n{verdict.describe()}")
    assert not verdict.broken, verdict.describe()
    assert not verdict.unknown
    assert not verdict.resets
    assert verdict.acknowledged > 300
    assert not refused
    assert figures["undone: connections made again"] == 0
    for strategy in ("RollingUpdate", "BlueGreen"):
        assert figures[f"{strategy}: connections made again"] >= CLIENTS
        assert hurried[strategy] is None, figures
    told = [reason for reason in await tables.events() if reason.startswith(("Rollout", "Track"))]
    assert told == [
        *("RolloutStarted", "RolloutCompleted"),
        *("RolloutStarted", "RolloutUndone"),
        *("RolloutStarted", "TrackSwitched", "RolloutCompleted"),
    ]
