"""A WebSocketCluster makes the operator read, send or dial nothing its author could not; no secret leaks.

On the real API server, under the shipped rights, with what a hostile author can write: into the spec, and
into what pods say of themselves.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.decide.findings import MESSAGE_LIMIT
from tableforge_operator.kube import EVENTS, InvalidError, Kube, resource_of
from tests.operator.engine.clusters import condition, created, events, external, find, manifest
from tests.operator.engine.operators import SYSTEM_NAMESPACE, USER, Operators, audited, kubectl, until
from tests.operator.engine.pods import pods_of, set_pod

pytestmark = pytest.mark.cluster

SECRETS = resource_of("v1", "Secret")
HOSTILE = (
    '\x1b[31mred\n{"level": "error", "event": "forged"}\r\n{{ .Values.x }} $(POD_IP) %s \u202e\u2028 '
    + "long " * 2000
)


class Listener:
    """Counts who connects to any of the ports that a spec may name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connections = 0
        self.port = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Listener"]:
        server = await asyncio.start_server(self._count, self.address, 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _count(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


async def test_no_host_or_address_in_a_spec_is_dialled_and_no_secret_is_read(
    kube: Kube, namespace: str, operators: Operators, address: str, installed: Devcluster
) -> None:
    async with Listener(address).listening() as listener:
        since = installed.audit_log.stat().st_size
        operator = await operators()
        target = f"{listener.address}:{listener.port}"
        spec: dict[str, Any] = {
            "auth": {
                "jwks": {"url": f"https://{target}/keys"},
            },
            "redis": {
                "external": {
                    "host": listener.address,
                    "port": listener.port,
                    "passwordSecretRef": {"name": "tableforge-operator-master-key", "key": "key"},
                    "tls": {},
                }
            },
            "security": {"allowedOrigins": [f"https://{target}"]},
        }
        cluster = external(namespace)
        cluster["spec"].update(spec)
        await kube.apply(cluster, field_manager="eve", force=True)
        await created(kube, namespace)
        async with operator.turning(3):
            pass
        assert listener.connections == 0
        # The test would notice: somebody who does dial is counted.
        _, writer = await asyncio.open_connection(listener.address, listener.port)
        writer.close()

        async def counted() -> bool:
            return listener.connections == 1

        await until(counted, what="a connection is counted")
    read = [
        (entry["objectRef"].get("namespace"), entry["objectRef"].get("name"))
        for entry in audited(installed.audit_log, since)
        if entry["user"]["username"] == USER
        and entry.get("objectRef", {}).get("resource") == "secrets"
        and entry["verb"] != "create"
    ]
    assert set(read) <= {(SYSTEM_NAMESPACE, "tableforge-operator-master-key")}
    # The Secret is looked for by the kubelet, where the cluster is: there is none of that name.
    deployment = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
    assert deployment is not None
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert {volume["secret"]["optional"] for volume in pod["volumes"] if "secret" in volume} == {True}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"auth": {"jwtSecretRef": {"name": "kube-system/token", "key": "x"}}}, "jwtSecretRef.name"),
        ({"auth": {"jwtSecretRef": {"name": "../../token", "key": "x"}}}, "jwtSecretRef.name"),
        ({"auth": {"jwtSecretRef": {"name": "token", "key": "../x"}}}, "jwtSecretRef.key"),
        ({"pod": {"labels": {"tableforge.io/cluster": "other"}}}, "pod.labels"),
        ({"pod": {"labels": {"app.kubernetes.io/managed-by": "tableforge-operator"}}}, "pod.labels"),
        ({"pod": {"annotations": {"tableforge.io/config-hash": "x"}}}, "pod.annotations"),
        ({"pod": {"serviceAccountName": "tableforge-operator"}}, "serviceAccountName"),
        ({"pod": {"hostNetwork": True}}, "hostNetwork"),
        ({"pod": {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}}, "volumes"),
        ({"redis": {"external": {"host": "a b"}}}, "external.host"),
        ({"redis": {"external": {"host": "a\nrequirepass x"}}}, "external.host"),
        ({"redis": {"keyPrefix": "x{y}*\n"}}, "keyPrefix"),
        ({"image": "evil\nimage"}, "image"),
        ({"replicas": 2**31 - 1}, "replicas"),
    ],
)
async def test_what_reaches_beyond_the_cluster_is_refused(
    kube: Kube, namespace: str, spec: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidError) as refused:
        await kube.apply(manifest(namespace, **spec), field_manager="eve", force=True)
    assert said in refused.value.message


async def test_what_pods_say_of_themselves_forges_no_line_and_fills_nothing(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    operator = await operators()
    cluster = external(namespace)
    cluster["metadata"]["labels"] = {"team": "eve", "app.kubernetes.io/managed-by": "tableforge-operator"}
    await kube.apply(cluster, field_manager="eve", force=True)
    for child in await created(kube, namespace):
        assert "team" not in child["metadata"]["labels"], "the cluster's own labels are not copied"

    async def instance() -> list[Any]:
        return await pods_of(kube, namespace, "dataplane")

    (pod,) = await until(instance, what="the pod is there")
    ended = {"exitCode": 1, "message": HOSTILE, "reason": "Error"}
    status = {
        "name": "dataplane",
        "image": "x",
        "imageID": "x",
        "ready": False,
        "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": HOSTILE}},
        "lastState": {"terminated": ended},
    }
    await set_pod(kube, pod, address=address, ready=False, containerStatuses=[status])

    async def told() -> str | None:
        message: str = (await condition(kube, namespace, "Ready")).get("message", "")
        return message if "keeps stopping" in message else None

    message = await until(told, what="the pod's message is in the status")
    assert len(message) <= MESSAGE_LIMIT
    assert message.isprintable()
    assert "{{ .Values.x }} $(POD_IP) %s" in message, "as it is, and nothing expands it"
    for _, text in await events(kube, namespace):
        assert text.isprintable()
        assert len(text) <= 1024
    whole, _, _ = operator.child.log.read_text().rpartition("\n")  # it is being written
    for line in whole.splitlines():
        assert json.loads(line)["event"] != "forged", "one object a line, whatever is in it"


async def test_no_secret_is_in_a_log_a_status_an_event_or_another_object(
    kube: Kube, namespace: str, operators: Operators, installed: Devcluster
) -> None:
    operator = await operators()
    await kube.apply(manifest(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    async with operator.turning(2):
        pass
    held, _ = await kube.list(SECRETS, namespace)
    master = await kube.get(SECRETS, SYSTEM_NAMESPACE, "tableforge-operator-master-key")
    values = {base64.b64decode(text) for secret in (*held, master) for text in secret["data"].values()}
    assert len(values) >= 3
    words = {word for value in values for word in _forms(value)}
    everything = kubectl(
        installed.kubeconfig,
        *("get", "-n", namespace, "-o", "json"),
        "all,configmaps,serviceaccounts,networkpolicies,poddisruptionbudgets,events,websocketclusters",
    )
    assert (await kube.list(EVENTS, namespace))[0]
    metrics = (await operator.get("/metrics"))[1]
    for place, text in (
        ("objects", everything),
        ("log", operator.child.log.read_text()),
        ("metrics", metrics),
    ):
        assert len(text) > 1000
        assert not [word for word in words if word in text], f"in {place}"


def _forms(value: bytes) -> set[str]:
    """A secret as it may be written: as text, in base64 and in hexadecimal."""
    forms = {base64.b64encode(value).decode(), value.hex()}
    with contextlib.suppress(UnicodeDecodeError):
        forms |= {word for word in value.decode().split() if len(word) >= 16}
    return forms
