"""Port-forwarding, by the Python client through the API server."""

import hashlib
import socket
from collections.abc import Iterator

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward

from devcluster import Devcluster
from tests.devcluster.agent.workloads import POD_IP, READY, pod, wait_ready, web
from tests.support.kubectl import Kubectl

pytestmark = pytest.mark.cluster

ECHO = """
import os, socketserver, threading
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
def serve(port):
    socketserver.ThreadingTCPServer((os.environ["POD_IP"], port), Echo).serve_forever()
threading.Thread(target=serve, args=(8081,)).start()
serve(8080)
"""
PATIENCE_SECONDS = 60
LARGE_BYTES = 3_000_000


@pytest.fixture
def pods(cluster: Devcluster) -> Iterator[client.CoreV1Api]:
    """The Python client."""
    with config.new_client_from_config(str(cluster.kubeconfig)) as connection:
        yield client.CoreV1Api(connection)


def received(connection: socket.socket, number: int) -> bytes:
    connection.settimeout(PATIENCE_SECONDS)
    data = b""
    while len(data) < number and (part := connection.recv(65536)):
        data += part
    return data


def test_ports_of_a_pod_are_reached_through_the_api_server(kubectl: Kubectl, pods: client.CoreV1Api) -> None:
    container = {"name": "main", "image": "python:3", "args": ["-c", ECHO], "env": [POD_IP]}
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    kubectl.apply(pod("echo", {**container, "readinessProbe": probe}))
    wait_ready(kubectl, "pod/echo")
    forwarded = portforward(
        pods.connect_get_namespaced_pod_portforward, "echo", kubectl.namespace, ports="8080,8081"
    )
    first, second = forwarded.socket(8080), forwarded.socket(8081)
    first.sendall(b"one")
    second.sendall(b"two")
    assert received(first, 3) == b"one"
    assert received(second, 3) == b"two"
    # More than any buffer on the way, so that each side has to wait for the other.
    large = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(LARGE_BYTES // 32))
    for start in range(0, len(large), 50_000):
        part = large[start : start + 50_000]
        first.sendall(part)
        assert received(first, len(part)) == part
    assert forwarded.error(8080) is None
    first.close()
    second.sendall(b"still there")
    assert received(second, 11) == b"still there"
    forwarded.close()


def test_what_the_pod_says_last_arrives_before_the_end(kubectl: Kubectl, pods: client.CoreV1Api) -> None:
    kubectl.apply(pod("web", web(readinessProbe=READY)))
    wait_ready(kubectl, "pod/web")
    forwarded = portforward(
        pods.connect_get_namespaced_pod_portforward, "web", kubectl.namespace, ports="8080"
    )
    connection = forwarded.socket(8080)
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = received(connection, LARGE_BYTES)
    assert answer.endswith(b"\r\n\r\nweb"), "all of it, and then the end"
    forwarded.close()


def test_a_port_that_nobody_listens_on_is_an_error_of_that_port(
    kubectl: Kubectl, pods: client.CoreV1Api
) -> None:
    kubectl.apply(pod("web", web(readinessProbe=READY)))
    wait_ready(kubectl, "pod/web")
    forwarded = portforward(
        pods.connect_get_namespaced_pod_portforward, "web", kubectl.namespace, ports="8080,9"
    )
    assert received(forwarded.socket(9), 1) == b""
    assert "error forwarding port 9" in forwarded.error(9)
    connection = forwarded.socket(8080)
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert received(connection, LARGE_BYTES).endswith(b"web")
    forwarded.close()


def test_a_pod_that_is_not_there_has_no_ports(kubectl: Kubectl, pods: client.CoreV1Api) -> None:
    with pytest.raises(ApiException, match="not found"):
        portforward(pods.connect_get_namespaced_pod_portforward, "ghost", kubectl.namespace, ports="80")
