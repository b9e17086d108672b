# ruff: noqa: RUF012  (msgspec copies a default that is an empty dict or list)
"""`spec.routing`."""

from typing import Annotated, ClassVar

from msgspec import Meta

from tableforge_dataplane.contract import settings
from tableforge_operator.api.fields import Group, Rule, default_of, field, setting
from tableforge_operator.api.spec.common import DNS_LABEL, DNS_NAME, HOST_NAME, NAME, Text63, Text253

_Host = Annotated[
    str,
    Meta(min_length=1, max_length=253, extra_json_schema={"x-kubernetes-validations": [HOST_NAME.schema()]}),
]


class ParentRef(Group, frozen=True):
    """A Gateway that clients come through, or one of its listeners."""

    name: Annotated[str, field("Name of the Gateway.", DNS_NAME, **NAME)]
    namespace: Annotated[
        Text63 | None,
        field(
            "Namespace of the Gateway; that of the WebSocketCluster where unset. The Gateway's "
            "`allowedRoutes` must let routes of the WebSocketCluster's namespace in.",
            DNS_LABEL,
        ),
    ] = None
    section_name: Annotated[
        Text253 | None, field("Name of one listener of the Gateway; all of them where unset.", DNS_NAME)
    ] = None


class Gateway(Group, frozen=True):
    """The gateway that clients come through: HTTPRoutes lead to all instances at `/ws`, and to each at a path
    of its own.
    """

    parent_refs: Annotated[
        list[ParentRef],
        field(
            "The Gateways, all of which must accept the routes before an instance is told its address.",
            Rule(
                "self.all(one, self.exists_one(other, other.name == one.name "
                "&& (has(other.__namespace__) ? other.__namespace__ : '') "
                "== (has(one.__namespace__) ? one.__namespace__ : '') "
                "&& (has(other.sectionName) ? other.sectionName : '') "
                "== (has(one.sectionName) ? one.sectionName : '')))",
                "must name each Gateway, or each of its listeners, once: remove the others",
            ),
            schema={"x-kubernetes-list-type": "atomic"},
            min_length=1,
            max_length=4,
        ),
    ]
    hostnames: Annotated[
        list[_Host],
        field(
            "Host names that clients connect to, such as tables.example.com or *.example.com; those of the "
            "Gateway's listeners where empty.",
            schema={"x-kubernetes-list-type": "atomic"},
            max_length=8,
        ),
    ] = []


class Routing(Group, frozen=True):
    """Whether clients can reach a particular instance, so that rooms can have homes."""

    mode: Annotated[
        settings.RoutingMode,
        setting(
            "routing.mode",
            "`Service`: one address for all instances, clients stay where the Service put them. `Gateway`: "
            "each instance has a path of its own on a gateway as well, each room a home, and clients move "
            "to where theirs is. It needs the Gateway API in the Kubernetes cluster.",
        ),
    ] = default_of("routing.mode")
    gateway: Annotated[Gateway | None, field("The gateway. Needed in mode `Gateway`.")] = None

    rules: ClassVar = (
        Rule(
            "self.mode != 'Gateway' || has(self.gateway)",
            "routing.mode is Gateway, so routing.gateway.parentRefs must name the Gateway that clients come "
            "through: name it, or set routing.mode to Service",
            field_path=".gateway",
            reason="FieldValueRequired",
        ),
        Rule(
            "self.mode == 'Gateway' || !has(self.gateway)",
            "routing.gateway is for routing.mode Gateway: set the mode, or remove the gateway",
            field_path=".gateway",
            reason="FieldValueForbidden",
        ),
    )
