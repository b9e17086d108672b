"""The NetworkPolicies: who may connect to the instances, and that only they may connect to their Redis."""

from collections.abc import Iterator
from typing import Any, Final

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.api.spec.network_policy import Peer
from tableforge_operator.decide.resources.kinds import NETWORK_POLICY
from tableforge_operator.decide.resources.metadata import child, component_labels, redis_name

NAMESPACE_NAME_LABEL: Final = "kubernetes.io/metadata.name"
"""Every namespace carries its name under it; nobody can change that."""
MONITORING_NAMESPACE: Final = "monitoring"


def network_policies(cluster: WebSocketCluster, *, operator_namespace: str) -> list[dict[str, Any]]:
    """None where the spec switches them off. Probes need no rule: a pod's own node is always let in."""
    if not cluster.spec.security.network_policy.enabled:
        return []
    found = [_instances(cluster, operator_namespace)]
    if cluster.managed_redis is not None:
        found.append(_redis(cluster))
    return found


def _instances(cluster: WebSocketCluster, operator_namespace: str) -> dict[str, Any]:
    asked = cluster.spec.security.network_policy
    internal = asked.internal
    if internal is None:
        internal = [Peer(namespace=cluster.namespace), Peer(namespace=MONITORING_NAMESPACE)]
    clients = {"from": [_peer(peer, cluster) for peer in asked.clients]} if asked.clients else {}
    inside = [Peer(namespace=operator_namespace), *internal]
    return {
        **child(cluster, NETWORK_POLICY, cluster.name, "dataplane"),
        "spec": {
            # Both tracks.
            "podSelector": {"matchLabels": component_labels(cluster, "dataplane")},
            "policyTypes": ["Ingress"],
            "ingress": [
                # By the ports' names: a changed number then needs no second rule while old pods run.
                {"ports": [{"protocol": "TCP", "port": "ws"}], **clients},
                {
                    "ports": [{"protocol": "TCP", "port": "internal"}],
                    "from": list(_unique(_peer(peer, cluster) for peer in inside)),
                },
            ],
        },
    }


def _redis(cluster: WebSocketCluster) -> dict[str, Any]:
    instances = {"podSelector": {"matchLabels": component_labels(cluster, "dataplane")}}
    return {
        **child(cluster, NETWORK_POLICY, redis_name(cluster), "redis"),
        "spec": {
            "podSelector": {"matchLabels": component_labels(cluster, "redis")},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "TCP", "port": "redis"}], "from": [instances]}],
        },
    }


def _peer(peer: Peer, cluster: WebSocketCluster) -> dict[str, Any]:
    if peer.cidr is not None:
        return {"ipBlock": {"cidr": peer.cidr}}
    namespace = peer.namespace or cluster.namespace
    found: dict[str, Any] = {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME_LABEL: namespace}}}
    if peer.pod_labels:
        found["podSelector"] = {"matchLabels": dict(sorted(peer.pod_labels.items()))}
    return found


def _unique(peers: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    for peer in peers:
        if peer not in seen:
            seen.append(peer)
            yield peer
