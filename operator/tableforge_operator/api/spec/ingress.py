# ruff: noqa: RUF012  (msgspec copies a default that is an empty dict or list)
"""`spec.ingress`."""

from typing import Annotated

from tableforge_dataplane.contract import endpoints
from tableforge_operator.api.fields import Group, Rule, field
from tableforge_operator.api.spec.common import (
    DNS_NAME,
    HOST_NAME,
    KEYS,
    NAME,
    RESERVED,
    RESERVED_MESSAGE,
    Text253,
    Text4096,
)


class Ingress(Group, frozen=True):
    """An Ingress to the Service: a host name of the cluster's HTTP proxy that leads to the instances. Any
    instance serves any client, so it needs no session affinity.
    """

    host: Annotated[
        str,
        field(
            "Host name that clients connect to, such as tables.example.com or *.example.com.",
            HOST_NAME,
            **NAME,
        ),
    ]
    class_name: Annotated[
        Text253 | None,
        field("IngressClass whose controller serves it; the default class where unset.", DNS_NAME),
    ] = None
    path: Annotated[
        str,
        field(
            f"Path that leads to the instances, with all below it. They answer at `{endpoints.WS_PATH}`: "
            f"another one "
            "needs a rewrite, by an annotation of the controller.",
            Rule(
                "self.matches('^/[-A-Za-z0-9._~!$&()*+,;=:@/%]*$') && !self.contains('//')",
                "must start with a slash and be a path of a URL, such as /ws",
            ),
            min_length=1,
            max_length=256,
        ),
    ] = endpoints.WS_PATH
    tls_secret_name: Annotated[
        Text253 | None,
        field(
            "Secret of type kubernetes.io/tls with the host's certificate, in the namespace of the "
            "WebSocketCluster, for the controller. Plain HTTP where unset.",
            DNS_NAME,
        ),
    ] = None
    annotations: Annotated[
        dict[str, Text4096],
        field(
            "Annotations of the Ingress, such as the controller's time limit for connections that are quiet: "
            "it must be longer than `websocket.pingInterval`.",
            Rule(RESERVED, RESERVED_MESSAGE),
            KEYS,
            max_length=32,
        ),
    ] = {}
