"""Small workloads, and waiting for what becomes of them."""

import http.client
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tests.support.kubectl import Kubectl, KubectlError

Manifest = dict[str, Any]
T = TypeVar("T")

WEB = """
import http.server, os, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            text = open(os.environ["PAGE"]).read() if "PAGE" in os.environ else os.environ["HOSTNAME"]
        except OSError:
            text = ""
        self.send_response(200 if text else 503)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *_):
        pass
print("serving")
http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""
"""Answers with its host name, or with the content of the file $PAGE, 503 while that is missing or empty."""

POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
READY = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 30}


def shell(script: str, *, name: str = "main", **more: Any) -> Manifest:
    """A container that runs a shell script."""
    return {"name": name, "image": "busybox:1.36", "command": ["sh", "-c", script], **more}


def web(*env: Manifest, **more: Any) -> Manifest:
    """A container that runs the web server."""
    ports = [{"name": "http", "containerPort": 8080}]
    env_list = [POD_IP, *env]
    return {"name": "main", "image": "python:3", "args": ["-c", WEB], "env": env_list, "ports": ports, **more}


def pod_spec(*containers: Manifest, **more: Any) -> Manifest:
    """A pod's spec with a short grace period."""
    return {"containers": list(containers), "terminationGracePeriodSeconds": 3, **more}


def pod(name: str, *containers: Manifest, **more: Any) -> Manifest:
    """A pod."""
    labels = {"app": name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": pod_spec(*containers, **more),
    }


def deployment(name: str, *containers: Manifest, replicas: int = 2, **more: Any) -> Manifest:
    """A Deployment that never has fewer pods than asked for."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec(*containers, **more)},
        },
    }


def service(name: str, *, app: str | None = None, **spec: Any) -> Manifest:
    """A Service for the web server's port, on port 8000."""
    ports = [{"name": "http", "port": 8000, "targetPort": "http"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": app or name}, "ports": ports, **spec},
    }


def config_map(name: str, **data: str) -> Manifest:
    """A ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def eventually(what: Callable[[], T], *, within_seconds: float = 120.0) -> T:
    """What a call gives once that is neither empty nor an error of the other side."""
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            if answer := what():
                return answer
            trouble: object = f"it is still {answer!r}"
        except (KubectlError, OSError, http.client.HTTPException, LookupError) as error:
            trouble = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_seconds:g} s: {trouble}")
        time.sleep(0.1)


def wait_ready(kubectl: Kubectl, what: str, seconds: int = 120) -> None:
    """Wait for a pod's Ready condition."""
    kubectl("wait", "--for=condition=Ready", what, f"--timeout={seconds}s")


def fetch(address: str, port: int = 8080) -> str:
    """GET / over a connection of its own. Raises OSError."""
    connection = http.client.HTTPConnection(address, port, timeout=30)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def status_of(kubectl: Kubectl, name: str) -> Manifest:
    """The status of a pod's first container."""
    found: Manifest = kubectl.get("pod", name)["status"]["containerStatuses"][0]
    return found


def event_messages(kubectl: Kubectl, name: str, reason: str) -> list[str]:
    """The messages of a pod's events with a reason."""
    selector = f"involvedObject.name={name},reason={reason}"
    return [one["message"] for one in kubectl.get("events", f"--field-selector={selector}")["items"]]


def merge(kubectl: Kubectl, what: str, patch: Manifest, *arguments: str) -> None:
    """Change an object by a merge patch."""
    kubectl("patch", what, "--type=merge", f"--patch={json.dumps(patch)}", *arguments)
