# ruff: noqa: RUF012  (msgspec copies a default that is an empty dict or list)
"""`spec.service`."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from tableforge_operator.api.fields import Group, Rule, field
from tableforge_operator.api.spec.common import CIDR, KEYS, RESERVED, RESERVED_MESSAGE, Text43, Text4096

_CIDR = Annotated[Text43, Meta(extra_json_schema={"x-kubernetes-validations": [CIDR.schema()]})]


class Service(Group, frozen=True):
    """The Service that clients connect to. It has the name of the WebSocketCluster."""

    type: Annotated[
        Literal["ClusterIP", "NodePort", "LoadBalancer"],
        field(
            "`ClusterIP`, reachable inside the Kubernetes cluster; `NodePort`, on a port of every node; "
            "`LoadBalancer`, through the cloud's load balancer."
        ),
    ] = "ClusterIP"
    annotations: Annotated[
        dict[str, Text4096],
        field(
            "Annotations of the Service, such as a cloud's settings for its load balancer.",
            Rule(RESERVED, RESERVED_MESSAGE),
            KEYS,
            max_length=32,
        ),
    ] = {}
    port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        field("Port of the Service. Default: `websocket.port`."),
    ] = None
    node_port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        field(
            "Port on every node, of the range that the Kubernetes cluster keeps for them (usually 30000 to "
            "32767). "
            "Kubernetes chooses one where unset."
        ),
    ] = None
    external_traffic_policy: Annotated[
        Literal["Cluster", "Local"] | None,
        field(
            "`Local` keeps clients' addresses and takes only nodes with an instance; `Cluster`, Kubernetes' "
            "default, "
            "takes every node, and clients look as if they came from one."
        ),
    ] = None
    load_balancer_class: Annotated[
        Annotated[str, Meta(max_length=316)] | None,
        field(
            "Which load balancer's controller is meant, where there are several. It cannot change while "
            "there is one.",
            Rule(
                "!format.qualifiedName().validate(self).hasValue()",
                "must be a name of letters, digits, dashes, dots and underscores, "
                "with a domain and a slash in front at most",
            ),
        ),
    ] = None
    load_balancer_source_ranges: Annotated[
        list[_CIDR],
        field(
            "Ranges of addresses that the load balancer lets in; everybody where empty. Not every cloud's "
            "does that; "
            "`security.networkPolicy.clients` limits what reaches the pods.",
            schema={"x-kubernetes-list-type": "atomic"},
            max_length=64,
        ),
    ] = []

    rules: ClassVar = (
        Rule(
            "!has(self.nodePort) || self.type != 'ClusterIP'",
            "service.nodePort is for the types NodePort and LoadBalancer: set service.type, or remove the "
            "port",
            field_path=".nodePort",
            reason="FieldValueForbidden",
        ),
        Rule(
            "!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'",
            "service.externalTrafficPolicy is for the types NodePort and LoadBalancer: set service.type, or "
            "remove it",
            field_path=".externalTrafficPolicy",
            reason="FieldValueForbidden",
        ),
        Rule(
            "!has(self.loadBalancerClass) || self.type == 'LoadBalancer'",
            "service.loadBalancerClass is for the type LoadBalancer: set service.type to it, or remove the "
            "class",
            field_path=".loadBalancerClass",
            reason="FieldValueForbidden",
        ),
        Rule(
            "!has(self.loadBalancerSourceRanges) || size(self.loadBalancerSourceRanges) == 0 "
            "|| self.type == 'LoadBalancer'",
            "service.loadBalancerSourceRanges is for the type LoadBalancer: set service.type to it, or use "
            "security.networkPolicy.clients",
            field_path=".loadBalancerSourceRanges",
            reason="FieldValueForbidden",
        ),
        Rule(
            "self.type != 'LoadBalancer' || oldSelf.type != 'LoadBalancer' "
            "|| (has(self.loadBalancerClass) == has(oldSelf.loadBalancerClass) "
            "&& (!has(self.loadBalancerClass) || self.loadBalancerClass == oldSelf.loadBalancerClass))",
            "service.loadBalancerClass cannot change while there is a load balancer: set service.type to "
            "ClusterIP "
            "first",
            reason="FieldValueForbidden",
        ),
    )
