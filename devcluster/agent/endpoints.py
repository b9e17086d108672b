"""Which pods stand behind a Service.

Read from the pods themselves: EndpointSlices refuse loopback addresses, so their controller does not run.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from devcluster.agent.api import Object


@dataclasses.dataclass(frozen=True)
class Backend:
    """An address that takes connections for a Service's port."""

    address: str
    port: int


def is_ready(pod: Object) -> bool:
    """Whether the pod's Ready condition holds."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def selects(selector: Mapping[str, str], pod: Object) -> bool:
    """Whether a non-empty equality selector matches the pod's labels."""
    labels = pod["metadata"].get("labels") or {}
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def pods_behind(service: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods that get a Service's traffic: the ready ones, unless it publishes those that aren't.

    Terminating pods come in only where nobody else is left, as with kube-proxy.
    """
    spec = service["spec"]
    namespace = service["metadata"]["namespace"]
    anyone = spec.get("publishNotReadyAddresses", False)
    serving: list[Object] = []
    leaving: list[Object] = []
    for pod in pods:
        status = pod.get("status") or {}
        if pod["metadata"]["namespace"] != namespace or not selects(spec.get("selector") or {}, pod):
            continue
        if not status.get("podIP") or status.get("phase") in ("Succeeded", "Failed"):
            continue
        if not (anyone or is_ready(pod)):
            continue
        (leaving if pod["metadata"].get("deletionTimestamp") else serving).append(pod)
    return serving or leaving


def target_port(port: Object, pod: Object) -> int | None:
    """The pod's port for a Service's port; None where the pod has no port by that name."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for container in [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or [])]:
        for one in container.get("ports") or []:
            if one.get("name") == target and one.get("protocol", "TCP") == port.get("protocol", "TCP"):
                number: int = one["containerPort"]
                return number
    return None


def backends(service: Object, port: Object, pods: Iterable[Object]) -> list[Backend]:
    """The addresses behind one port of a Service, in a stable order."""
    found = (
        Backend(pod["status"]["podIP"], number)
        for pod in pods_behind(service, pods)
        if (number := target_port(port, pod)) is not None
    )
    return sorted(found, key=lambda one: (one.address, one.port))
