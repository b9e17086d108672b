"""A Deployment that rolls, probes that fail, and a Service whose pods change."""

import json
import socket

import pytest

from devcluster import Devcluster
from tests.devcluster.agent.workloads import (
    READY,
    config_map,
    deployment,
    event_messages,
    eventually,
    fetch,
    merge,
    pod,
    service,
    shell,
    status_of,
    wait_ready,
    web,
)
from tests.support.kubectl import Kubectl, KubectlError

pytestmark = pytest.mark.cluster


def running_pods(kubectl: Kubectl) -> dict[str, str]:
    """Names and addresses of the pods that are not about to go."""
    items = kubectl.get("pods")["items"]
    return {
        one["metadata"]["name"]: one["status"].get("podIP", "")
        for one in items
        if "deletionTimestamp" not in one["metadata"]
    }


def test_a_deployment_rolls_and_its_service_follows(kubectl: Kubectl) -> None:
    kubectl.apply(deployment("web", web(readinessProbe=READY)))
    kubectl.apply(service("web"))
    kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    address = kubectl.get("service", "web")["spec"]["clusterIP"]
    first = running_pods(kubectl)
    eventually(lambda: {fetch(address, 8000) for _ in range(4)} == set(first))

    container = web({"name": "VERSION", "value": "2"}, readinessProbe=READY)
    kubectl.apply(deployment("web", container))
    kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    second = running_pods(kubectl)
    assert len(second) == 2
    assert not set(first) & set(second)
    eventually(lambda: {fetch(address, 8000) for _ in range(6)} == set(second))

    kubectl("scale", "deployment/web", "--replicas=1")
    eventually(lambda: len(kubectl.get("pods")["items"]) == 1)
    left = set(running_pods(kubectl))
    eventually(lambda: {fetch(address, 8000) for _ in range(4)} == left)


def test_a_pod_that_is_not_ready_gets_no_connections_and_comes_back(kubectl: Kubectl) -> None:
    kubectl.apply(config_map("page", page="here"))
    volume = {"name": "page", "configMap": {"name": "page"}}
    container = web(
        {"name": "PAGE", "value": "/etc/pages/page"},
        readinessProbe=READY | {"failureThreshold": 1},
        volumeMounts=[{"name": "page", "mountPath": "/etc/pages"}],
    )
    kubectl.apply(pod("web", container, volumes=[volume]))
    kubectl.apply(service("web"))
    wait_ready(kubectl, "pod/web")
    address = kubectl.get("service", "web")["spec"]["clusterIP"]
    assert eventually(lambda: fetch(address, 8000)) == "here"

    kubectl.apply(config_map("page", page=""))
    kubectl("wait", "--for=condition=Ready=false", "pod/web", "--timeout=120s")
    # Among others: while it started, its port may have been closed.
    eventually(lambda: any("statuscode: 503" in one for one in event_messages(kubectl, "web", "Unhealthy")))
    condition = next(
        one for one in kubectl.get("pod", "web")["status"]["conditions"] if one["type"] == "Ready"
    )
    assert condition["reason"] == "ContainersNotReady"

    def refused() -> bool:
        try:
            fetch(address, 8000)
        except ConnectionRefusedError:
            return True
        return False

    eventually(refused)
    assert status_of(kubectl, "web")["restartCount"] == 0

    kubectl.apply(config_map("page", page="back"))
    wait_ready(kubectl, "pod/web")
    assert eventually(lambda: fetch(address, 8000)) == "back"


def test_a_failing_liveness_probe_restarts_the_container(kubectl: Kubectl) -> None:
    probe = {
        "exec": {"command": ["test", "!", "-e", "/state/sick"]},
        "periodSeconds": 1,
        "timeoutSeconds": 60,  # slow is not sick
        "failureThreshold": 2,
    }
    script = (
        'echo run >> /state/runs; [ "$(wc -l < /state/runs)" -gt 1 ] && rm -f /state/sick; exec sleep 1000'
    )
    container = shell(script, livenessProbe=probe, volumeMounts=[{"name": "state", "mountPath": "/state"}])
    sick = shell(
        "sleep 1; touch /state/sick; exec sleep 1000",
        name="other",
        volumeMounts=[{"name": "state", "mountPath": "/state"}],
    )
    kubectl.apply(pod("patient", container, sick, volumes=[{"name": "state", "emptyDir": {}}]))
    eventually(lambda: status_of(kubectl, "patient")["restartCount"] == 1, within_seconds=120)
    status = status_of(kubectl, "patient")
    assert status["lastState"]["terminated"]["exitCode"] == 137, "sleep as process 1 ignores SIGTERM"
    failed = "Liveness probe failed"
    eventually(lambda: any(failed in one for one in event_messages(kubectl, "patient", "Unhealthy")))
    killed = eventually(lambda: event_messages(kubectl, "patient", "Killing"))
    assert killed == ["Container main failed liveness probe, will be restarted"]
    wait_ready(kubectl, "pod/patient")


def test_a_startup_probe_holds_the_others_back(kubectl: Kubectl) -> None:
    look = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "timeoutSeconds": 60}
    probe, dead = look | {"failureThreshold": 120}, look | {"failureThreshold": 1}
    container = shell("sleep 3; touch /tmp/up; exec sleep 1000", startupProbe=probe, livenessProbe=dead)
    kubectl.apply(pod("slow", container))
    wait_ready(kubectl, "pod/slow")
    assert status_of(kubectl, "slow")["restartCount"] == 0
    assert status_of(kubectl, "slow")["started"] is True


def test_a_service_has_names_and_a_headless_one_its_pods_addresses(kubectl: Kubectl) -> None:
    kubectl.apply(deployment("web", web(readinessProbe=READY)))
    kubectl.apply(service("web"))
    kubectl.apply(service("peers", app="web", clusterIP="None"))
    kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    kubectl.apply(pod("asking", shell("while true; do cat /etc/hosts; echo; sleep 0.2; done")))
    wait_ready(kubectl, "pod/asking")
    address = kubectl.get("service", "web")["spec"]["clusterIP"]
    addresses = set(running_pods(kubectl).values()) - {kubectl.get("pod", "asking")["status"]["podIP"]}

    def names() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for line in kubectl("logs", "asking", "--tail=40").split("\n\n")[-2].splitlines():
            one, *words = line.split()
            for word in words:
                found.setdefault(word, set()).add(one)
        return found

    webs = ("web", f"web.{kubectl.namespace}", f"web.{kubectl.namespace}.svc.cluster.local")

    def complete() -> dict[str, set[str]] | None:
        found = names()  # perhaps of a file that was being written
        return (
            found
            if found.get("peers") == addresses and {*webs, "kubernetes.default.svc"} <= found.keys()
            else None
        )

    known = eventually(complete)
    for name in webs:
        assert known[name] == {address}
    assert "kubernetes" not in known, "the short name is for the own namespace only"
    assert known["kubernetes.default.svc"]

    kubectl("scale", "deployment/web", "--replicas=3")
    eventually(lambda: len(names().get("peers", ())) == 3)


def test_node_ports_and_load_balancers_have_addresses(kubectl: Kubectl, cluster: Devcluster) -> None:
    kubectl.apply(pod("web", web(readinessProbe=READY)))
    kubectl.apply(service("web", type="LoadBalancer"))
    wait_ready(kubectl, "pod/web")
    found = eventually(lambda: kubectl.get("service", "web")["status"]["loadBalancer"]["ingress"])
    assert eventually(lambda: fetch(found[0]["ip"], 8000)) == "web"
    port = kubectl.get("service", "web")["spec"]["ports"][0]["nodePort"]
    assert eventually(lambda: fetch(cluster.network.node_address, port)) == "web"


ECHO = """
import os, socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        data = self.rfile.read()
        self.wfile.write(b"%d bytes, then the end\\n" % len(data))
socketserver.ThreadingTCPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""


def test_a_service_carries_half_closed_connections(kubectl: Kubectl) -> None:
    container = web(args=["-c", ECHO], readinessProbe={"tcpSocket": {"port": "http"}, "periodSeconds": 1})
    kubectl.apply(pod("echo", container))
    kubectl.apply(service("echo"))
    wait_ready(kubectl, "pod/echo")
    address = kubectl.get("service", "echo")["spec"]["clusterIP"]
    with eventually(lambda: socket.create_connection((address, 8000), timeout=60)) as client:
        client.sendall(b"x" * 3_000_000)
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"3000000 bytes, then the end\n"


def test_readiness_gates_count(kubectl: Kubectl) -> None:
    kubectl.apply(
        pod("gated", shell("exec sleep 1000"), readinessGates=[{"conditionType": "example.org/ok"}])
    )
    kubectl("wait", "--for=condition=ContainersReady", "pod/gated", "--timeout=120s")
    ready = next(one for one in kubectl.get("pod", "gated")["status"]["conditions"] if one["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ReadinessGatesNotReady")
    conditions = kubectl.get("pod", "gated")["status"]["conditions"]
    gate = {"type": "example.org/ok", "status": "True"}
    merge(kubectl, "pod/gated", {"status": {"conditions": [*conditions, gate]}}, "--subresource=status")
    wait_ready(kubectl, "pod/gated")
    assert {one["type"] for one in kubectl.get("pod", "gated")["status"]["conditions"]} >= {"example.org/ok"}


def test_a_cordoned_node_gets_no_pods(kubectl: Kubectl, cluster: Devcluster) -> None:
    node = kubectl.get("nodes")["items"][0]["metadata"]["name"]
    kubectl("cordon", node)
    try:
        kubectl.apply(pod("late", shell("exec sleep 1000")))
        eventually(lambda: "unschedulable" in "".join(event_messages(kubectl, "late", "FailedScheduling")))
        assert kubectl.get("pod", "late")["status"]["phase"] == "Pending"
    finally:
        kubectl("uncordon", node)
    wait_ready(kubectl, "pod/late")


def test_an_eviction_respects_the_disruption_budget(kubectl: Kubectl) -> None:
    kubectl.apply(deployment("web", shell("exec sleep 1000"), replicas=2))
    kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=2")
    eventually(lambda: kubectl.get("pdb", "web")["status"].get("currentHealthy") == 2)
    name = next(iter(running_pods(kubectl)))
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{name}/eviction"

    def evict() -> None:
        kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))

    with pytest.raises(KubectlError, match="disruption budget"):
        evict()
    merge(kubectl, "pdb/web", {"spec": {"minAvailable": 1}})
    eventually(lambda: kubectl.get("pdb", "web")["status"].get("disruptionsAllowed") == 1)
    evict()
    eventually(lambda: name not in running_pods(kubectl))
    kubectl("rollout", "status", "deployment/web", "--timeout=120s")
