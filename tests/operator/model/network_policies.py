"""What NetworkPolicies let through, by the words of the API's documentation.

No devcluster enforces them: this evaluates the objects, against the pods that the cluster's workloads make.
"""

import dataclasses
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Pod:
    """One end of a connection."""

    namespace: str
    labels: Mapping[str, str]
    address: str = "10.244.0.9"
    ports: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Numbers of its ports by name."""


def pod_of(workload: dict[str, Any]) -> Pod:
    """A pod as a Deployment or StatefulSet makes it."""
    template = workload["spec"]["template"]
    return Pod(
        namespace=workload["metadata"]["namespace"],
        labels=template["metadata"]["labels"],
        ports={
            port["name"]: port["containerPort"]
            for container in template["spec"]["containers"]
            for port in container["ports"]
        },
    )


def lets_in(policies: Iterable[dict[str, Any]], source: Pod, target: Pod, port: int) -> bool:
    """Whether `source` may connect to TCP `port` of `target`: everybody may where no policy selects it."""
    selecting = [
        policy["spec"]
        for policy in policies
        if policy["kind"] == "NetworkPolicy"
        and policy["metadata"]["namespace"] == target.namespace
        and "Ingress" in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], target.labels)
    ]
    return not selecting or any(
        _port_matches(rule, target, port) and _source_matches(rule, source, target.namespace)
        for spec in selecting
        for rule in spec.get("ingress", ())
    )


def _port_matches(rule: dict[str, Any], target: Pod, port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(
        each["protocol"] == "TCP" and port == target.ports.get(each["port"], each["port"]) for each in ports
    )


def _source_matches(rule: dict[str, Any], source: Pod, namespace: str) -> bool:
    peers = rule.get("from")
    return not peers or any(_peer_matches(peer, source, namespace) for peer in peers)


def _peer_matches(peer: dict[str, Any], source: Pod, namespace: str) -> bool:
    if "ipBlock" in peer:
        assert set(peer) == {"ipBlock"}
        return ipaddress.ip_address(source.address) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
    if "namespaceSelector" in peer:
        there = {"kubernetes.io/metadata.name": source.namespace}
        if not _selects(peer["namespaceSelector"], there):
            return False
    elif source.namespace != namespace:
        return False
    return _selects(peer.get("podSelector", {}), source.labels)


def _selects(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "the evaluator knows no expressions"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
