"""Behind a real gateway: one host name and one certificate for a whole fleet, and a way to each instance."""

import asyncio
import base64
import contextlib
import json
import os
import random
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest

from demo import stage
from demo.kubectl import Kubectl
from devcluster import Devcluster
from tableforge_client import connect
from tableforge_dataplane.contract.fleet import Fleet, FleetAnswer, Move, RoomMove
from tests.dataplane.door.certificates import write_pair
from tests.support import changes, gateway
from tests.support.crowd import Crowd
from tests.support.gateway.names import resolve, trust
from tests.support.ledger import Ledger

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600 if changes.FULL else 600)]

HOSTNAME = "tables.test"
API_KEY = "0123456789abcdef0123456789abcdef"
TABLES = 6
MEMBERS = 3


@pytest.fixture
async def traefik(devcluster: Devcluster, tmp_path: Path) -> AsyncIterator[gateway.Traefik]:
    """Traefik, serving the cluster's Gateways."""
    async with gateway.Traefik(devcluster.kubeconfig, tmp_path / "traefik") as traefik:
        yield traefik


@pytest.fixture
async def url(
    traefik: gateway.Traefik,
    kubectl: Kubectl,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[str]:
    """Where clients find what the Gateway called like the namespace leads to."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    write_pair(certificate, key, name=HOSTNAME, host=HOSTNAME)
    traefik.gateway(namespace, hostname=HOSTNAME, certificate=certificate, key=key)
    resolve(monkeypatch, {HOSTNAME: gateway.HOST})
    trust(monkeypatch, certificate)
    yield f"wss://{HOSTNAME}:{traefik.port}/ws"
    await kubectl("delete", "-n", gateway.NAMESPACE, f"gateway/{namespace}", f"secret/{namespace}")


async def served(url: str) -> None:
    """Wait until the gateway leads there: to whoever isn't known it says 404, and a client takes its word."""
    address = url.replace("wss://", "https://")
    context = ssl.create_default_context()

    async def amiss() -> object:
        async with aiohttp.ClientSession() as http, http.get(address, ssl=context) as answer:
            return None if answer.status == 426 else (answer.status, await answer.text())

    await changes.until(amiss, f"{url} is served")


def test_the_kinds_are_those_that_traefik_was_built_with() -> None:
    assert gateway.built_with() == gateway.gateway_api_version()


def route_by_hand(namespace: str) -> dict[str, Any]:
    """What somebody writes for the sample in Service mode, instead of an Ingress."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "tables-by-hand", "namespace": namespace},
        "spec": {
            "parentRefs": [{"name": namespace, "namespace": gateway.NAMESPACE}],
            "hostnames": [HOSTNAME],
            "rules": [
                {
                    "matches": [{"path": {"type": "Exact", "value": "/ws"}}],
                    "backendRefs": [{"name": "tables", "port": 3001}],
                }
            ],
        },
    }


async def test_a_route_by_hand_is_enough_without_homes(kubectl: Kubectl, namespace: str, url: str) -> None:
    await kubectl("apply", "-n", namespace, "-f", str(stage.SAMPLE))
    await kubectl("apply", "-f", "-", stdin=json.dumps(route_by_hand(namespace)))
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/tables", "--timeout=120s")
    await served(url)

    async def missing() -> object:
        found: set[str | None] = set()
        for _ in range(6):
            async with connect(url) as newcomer:
                found.add(newcomer.instance)
        return None if len(found) == 3 else found

    await changes.until(missing, "the gateway leads to all three")
    async with Ledger(url, members=3, rooms=5, seed=1) as ledger:
        await ledger.publish(300, over_seconds=3)
        await ledger.settle(timeout_seconds=60)
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()
    assert verdict.acknowledged == 300
    assert not ledger.reconnects
    assert len({name for names in ledger.instances.values() for name in names}) == 3, ledger.instances


def manifest(namespace: str, **routing: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "tableforge.io/v1alpha1",
            "kind": "WebSocketCluster",
            "metadata": {"name": "tables"},
            "spec": {
                "replicas": 3,
                "rollout": {"drainTimeout": "10s"},
                "auth": {"required": False, "apiKeySecretRef": {"name": "api-key"}},
                "redis": {"managed": {"persistence": {"onDelete": "Delete"}}},
                "loadBalancing": {"strategy": "RoundRobin"},
                # what moves here is what the test moves; and no lease runs out in a test's time
                "clustering": {"enableLoadRebalancing": False, "failoverTimeout": "10m"},
                "routing": {
                    "mode": "Gateway",
                    "gateway": {
                        "parentRefs": [{"name": namespace, "namespace": gateway.NAMESPACE}],
                        "hostnames": [HOSTNAME],
                        **routing,
                    },
                },
            },
        }
    )


class Instances:
    """The instances of a cluster called `tables`, asked at their internal ports."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._namespace = namespace

    async def ready(self) -> dict[str, str]:
        """Their addresses by name."""
        pods = await self._kubectl.json(
            *("get", "pods", "-n", self._namespace),
            *("-l", "tableforge.io/cluster=tables,app.kubernetes.io/component=dataplane"),
        )
        return {
            pod["metadata"]["name"]: pod["status"]["podIP"]
            for pod in pods["items"]
            if "deletionTimestamp" not in pod["metadata"]
            and any(
                c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])
            )
        }

    async def homes(self) -> dict[str, str | None]:
        """Each room's home."""
        rooms = json.loads(await self._call("GET", "/api/rooms", API_KEY))["rooms"]
        return {room["room"]: room["home"] for room in rooms}

    async def fleet(self) -> Fleet:
        return msgspec.json.decode(await self._call("GET", "/fleet", await self._fleet_key()), type=Fleet)

    async def move(self, room: str, *, source: str, target: str) -> FleetAnswer:
        """Tell it to an instance as the operator that leads would."""
        lease = await self._kubectl.json(
            "get", "lease", "-n", stage.OPERATOR_NAMESPACE, "tableforge-operator"
        )
        command = Move(
            fence=lease["spec"]["leaseTransitions"],
            id=f"test-{room}",
            moves=[RoomMove(room=room, source=source, target=target)],
        )
        answer = await self._call(
            "POST", "/fleet/commands", await self._fleet_key(), msgspec.json.encode(command)
        )
        return msgspec.json.decode(answer, type=FleetAnswer)

    async def _call(self, method: str, path: str, key: str, body: bytes | None = None) -> bytes:
        addresses = list((await self.ready()).values())
        assert addresses, "nobody to ask: no instance is ready"
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as http,
            http.request(method, f"http://{addresses[0]}:3002{path}", data=body) as answer,
        ):
            text = await answer.read()
            assert answer.status == 200, (path, answer.status, text)
            return text

    async def _fleet_key(self) -> str:
        secrets = await self._kubectl.json("get", "secrets", "-n", self._namespace)
        (found,) = [one for one in secrets["items"] if "-fleet-" in one["metadata"]["name"]]
        return base64.b64decode(found["data"]["key"]).decode()


class Tables:
    """Tables with members who never stop to publish, a ledger for each."""

    def __init__(self, url: str) -> None:
        self.ledgers = {
            f"table-{number}:1": Ledger(
                url,
                members=MEMBERS,
                rooms=1,
                seed=number,
                room_prefix=f"table-{number}",
                backoff_longest=2.0,
            )
            for number in range(1, TABLES + 1)
        }

    @property
    def lost_connections(self) -> int:
        """How often a member was without a connection."""
        return sum(ledger.reconnects for ledger in self.ledgers.values())

    @contextlib.asynccontextmanager
    async def playing(self) -> AsyncIterator[None]:
        """While the block runs; afterwards everybody has everything, and it is judged."""
        over = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            for ledger in self.ledgers.values():
                await stack.enter_async_context(ledger)
            async with asyncio.TaskGroup() as group:
                for ledger in self.ledgers.values():
                    group.create_task(self._play(ledger, over))
                yield
                over.set()
            for ledger in self.ledgers.values():
                await ledger.settle(timeout_seconds=30)
                await ledger.read_logs()
        for room, ledger in self.ledgers.items():
            verdict = ledger.check()
            assert not verdict.broken, f"{room}: {verdict.describe()}"
            assert not verdict.unknown, f"{room}: {verdict.describe()}"
            assert not verdict.resets, f"{room}: {verdict.describe()}"
            assert verdict.acknowledged, room

    async def _play(self, ledger: Ledger, over: asyncio.Event) -> None:
        while not over.is_set():
            await ledger.publish(2 * MEMBERS, over_seconds=0.5)

    async def at_home(self, instances: Instances) -> dict[str, str]:
        """Wait until every room has a home that is ready, and all its members are there; the homes."""
        homes: dict[str, str] = {}

        async def elsewhere() -> object:
            nonlocal homes
            known, ready = await instances.homes(), await instances.ready()
            homes = {room: home for room, home in known.items() if home in ready and room in self.ledgers}
            away = {
                room: (known.get(room), ledger.present)
                for room, ledger in self.ledgers.items()
                if set(ledger.present.values()) != {homes.get(room)}
            }
            return away or None

        await changes.until(elsewhere, "all members are at their tables' homes")
        return homes


async def routed(kubectl: Kubectl, namespace: str, instances: Instances) -> None:
    """Wait until each of three instances has an address of its own, and says so."""

    async def amiss() -> object:
        ready = await instances.ready()
        if len(ready) != 3:
            return f"{len(ready)} are ready"
        told = {one.instance: one.address for one in (await instances.fleet()).instances if one.alive}
        return None if told == {name: f"/i/{name}/ws" for name in ready} else told

    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/tables", "--timeout=120s")
    await changes.until(amiss, "three instances have addresses")


async def test_clients_follow_their_tables_through_the_gateway(
    kubectl: Kubectl, namespace: str, url: str
) -> None:
    await kubectl("create", "secret", "generic", "-n", namespace, "api-key", f"--from-literal=key={API_KEY}")
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest(namespace))
    instances = Instances(kubectl, namespace)
    await routed(kubectl, namespace, instances)
    await served(url)
    tables = Tables(url)
    async with tables.playing():
        homes = await tables.at_home(instances)
        assert set(homes.values()) == set(await instances.ready()), "they spread over all instances"
        led = [
            (ledger.addresses[member], homes[room])
            for room, ledger in tables.ledgers.items()
            for member, been in ledger.instances.items()
            if len(been) > 1
        ]
        assert led, "nobody had to be moved"
        assert all(urlsplit(address).path == f"/i/{home}/ws" for address, home in led), led

        # a pod is gone without a word of its own, but with one of Kubernetes
        victim = homes["table-1:1"]
        its_own = ("service,httproute", "-n", namespace, "-l", f"tableforge.io/instance={victim}")
        assert len((await kubectl("get", *its_own, "-o", "name")).split()) == 2
        await kubectl("delete", "pod", "-n", namespace, victim, "--grace-period=0", "--force")
        after = await tables.at_home(instances)
        assert victim not in after.values()
        stayed = {room: home for room, home in homes.items() if home != victim}
        assert {room: after[room] for room in stayed} == stayed, "only its tables have other homes"
        await stage.eventually_empty(kubectl, *its_own, timeout_seconds=120)
        await routed(kubectl, namespace, instances)

        # somebody moves one table: to the pod that came in its place, where that has none
        source, taken = after["table-2:1"], list(after.values())
        target = min(set(await instances.ready()) - {source}, key=taken.count)
        lost = tables.lost_connections
        assert lost, "the pod had no client to lose"
        answer = await instances.move("table-2:1", source=source, target=target)
        assert [one.outcome for one in answer.moves] == ["moved"], answer
        moved = await tables.at_home(instances)
        assert moved == {**after, "table-2:1": target}
        addresses = tables.ledgers["table-2:1"].addresses.values()
        assert {urlsplit(address).path for address in addresses} == {f"/i/{target}/ws"}

        # an instance leaves in order
        await kubectl("scale", "-n", namespace, "wsc/tables", "--replicas=2")

        async def too_many() -> object:
            ready = await instances.ready()
            return ready if len(ready) != 2 else None

        await changes.until(too_many, "two instances are left")
        left = await tables.at_home(instances)
        stayed = {room: home for room, home in moved.items() if home in await instances.ready()}
        assert len(stayed) < TABLES, "nobody had to go"
        assert {room: left[room] for room in stayed} == stayed
        assert tables.lost_connections == lost, "a gap at a move, or as an instance left"

        # a server crashes: its pod, and with it its address, stays
        stage.kill_server(left["table-1:1"])

        async def unnoticed() -> object:
            return None if tables.lost_connections > lost else "nobody noticed"

        await changes.until(unnoticed, "clients notice a crash")
        await tables.at_home(instances)


async def test_rooms_move_to_where_load_is_less(kubectl: Kubectl, namespace: str, url: str) -> None:
    seed = int(os.environ.get("TABLEFORGE_FAULTS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"TABLEFORGE_FAULTS_SEED={seed}")
    await kubectl("create", "secret", "generic", "-n", namespace, "api-key", f"--from-literal=key={API_KEY}")
    cluster = json.loads(manifest(namespace))
    cluster["spec"] |= changes.QUICK
    tables = changes.Tables(kubectl, namespace)
    await tables.apply(json.dumps(cluster))
    await routed(kubectl, namespace, Instances(kubectl, namespace))
    await served(url)
    clients = changes.CLIENTS if changes.FULL else 90
    # each in one room, so that all can be at their rooms' homes
    async with Crowd(url, clients=clients, rooms=clients // 2, joins=(1,), seed=seed, per_second=30) as crowd:
        await changes.Changes(tables, crowd, random.Random(seed)).grow_shrink_and_break()
    crowd.judge_moves(per_second=changes.RECONNECTS_PER_SECOND)
    moved = await tables.told("RebalanceFinished")
    assert any("rooms of" in message or "room of" in message for message in moved), moved


async def says(kubectl: Kubectl, namespace: str, *words: str) -> None:
    """Wait until the condition Ready is False, with these words."""

    async def otherwise() -> object:
        cluster = await kubectl.json("get", "-n", namespace, "wsc/tables")
        conditions = cluster.get("status", {}).get("conditions", [])
        found: dict[str, str] = next((one for one in conditions if one["type"] == "Ready"), {})
        text = f"{found.get('reason')}: {found.get('message')}"
        return None if found.get("status") == "False" and all(word in text for word in words) else text

    await changes.until(otherwise, f"Ready says {words}")


async def test_a_gateway_that_does_not_take_the_routes_is_named_with_its_words(
    kubectl: Kubectl, namespace: str, url: str
) -> None:
    await kubectl("create", "secret", "generic", "-n", namespace, "api-key", f"--from-literal=key={API_KEY}")
    instances = Instances(kubectl, namespace)
    nobody = {"parentRefs": [{"name": "nobody", "namespace": gateway.NAMESPACE}]}
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest(namespace, **nobody))
    await says(kubectl, namespace, "RouteWaiting", f"{gateway.NAMESPACE}/nobody", "exists")
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest(namespace))
    await routed(kubectl, namespace, instances)
    await served(url)

    # where nothing leads any more, nobody is sent; who is there stays, and goes on
    async with Ledger(url, members=3, rooms=3, seed=1) as ledger:
        over = asyncio.Event()
        talking = asyncio.create_task(ledger.talk(per_second=10, until=over))
        elsewhere = {"hostnames": ["elsewhere.test"]}
        await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest(namespace, **elsewhere))
        await says(
            kubectl,
            namespace,
            "RouteRefused",
            f"{gateway.NAMESPACE}/{namespace}",
            "NoMatchingListenerHostname",
        )

        async def still_told() -> object:
            told = {one.instance: one.address for one in (await instances.fleet()).instances}
            return {name: address for name, address in told.items() if address is not None} or None

        await changes.until(still_told, "no instance has an address")
        await ledger.more(20)
        await kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest(namespace))
        await routed(kubectl, namespace, instances)
        over.set()
        await talking
        await ledger.settle(timeout_seconds=30)
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()
    assert not verdict.unknown, verdict.describe()
    assert not verdict.resets, verdict.describe()
    assert not ledger.reconnects
