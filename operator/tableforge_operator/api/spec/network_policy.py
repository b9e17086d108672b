# ruff: noqa: RUF012  (msgspec copies a default that is an empty dict or list)
"""`spec.security.networkPolicy`."""

from typing import Annotated, ClassVar

from msgspec import Meta

from tableforge_operator.api.fields import Group, Rule, field
from tableforge_operator.api.spec.common import CIDR, DNS_LABEL, LABELS, Text43, Text63


class Peer(Group, frozen=True):
    """Who may connect: a range of addresses, or pods."""

    cidr: Annotated[
        Text43 | None,
        field(
            "A range of addresses, such as 10.0.0.0/8. What comes through a load balancer or an Ingress may "
            "come from its address.",
            CIDR,
        ),
    ] = None
    namespace: Annotated[
        Text63 | None,
        field("Pods of this namespace; of the WebSocketCluster's own where unset.", DNS_LABEL),
    ] = None
    pod_labels: Annotated[
        dict[str, Text63],
        field("Labels that a pod must have; every pod of the namespace where empty.", *LABELS, max_length=32),
    ] = {}

    rules: ClassVar = (
        Rule(
            "has(self.cidr) ? !has(self.namespace) && (!has(self.podLabels) || size(self.podLabels) == 0) "
            ": has(self.namespace) || (has(self.podLabels) && size(self.podLabels) > 0)",
            "must name either cidr, or namespace, podLabels or both: addresses or pods, in an entry each",
        ),
    )


class NetworkPolicy(Group, frozen=True):
    """Who may connect to the pods, where the cluster's network enforces NetworkPolicies. The operator always
    may ask the instances, and only instances may connect to a managed Redis. What pods connect to is not
    restricted.
    """

    enabled: Annotated[
        bool, field("Whether there are NetworkPolicies; without them everybody may connect to every port.")
    ] = True
    clients: Annotated[
        list[Peer],
        field(
            "Who may connect to the port for clients; everybody where empty. Proxies count as clients.",
            schema={"x-kubernetes-list-type": "atomic"},
            max_length=32,
        ),
    ] = []
    internal: Annotated[
        Annotated[list[Peer], Meta(max_length=32)] | None,
        field(
            "Who besides the operator may connect to the internal port, which has the metrics and the server "
            "API: Prometheus and your own servers. Default: the pods of the WebSocketCluster's namespace and "
            "those of a namespace called `monitoring`; with an empty list nobody.",
            schema={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None
