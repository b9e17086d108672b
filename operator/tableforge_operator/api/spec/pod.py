# ruff: noqa: RUF012  (msgspec copies a default that is an empty dict or list)
"""`spec.pod`."""

from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta

from tableforge_operator.api.fields import Group, Rule, field
from tableforge_operator.api.spec.common import (
    DNS_NAME,
    KEYS,
    LABELS,
    NAME,
    RESERVED,
    RESERVED_MESSAGE,
    SECRET_KEY,
    Text63,
    Text253,
    Text4096,
)

_QUANTITY: Final[dict[str, Any]] = {
    "x-kubernetes-int-or-string": True,
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "maxLength": 32,
    "x-kubernetes-validations": [
        Rule(
            "isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('0')) >= 0",
            "must be a quantity that is not negative, such as 100m, 2 or 256Mi",
        ).schema()
    ],
}
_RESOURCES: Final = Rule(
    "self.all(name, name in ['cpu', 'memory', 'ephemeral-storage'] || name.startsWith('hugepages-') "
    "|| name.contains('/'))",
    "must be of cpu, memory, ephemeral-storage, hugepages-<size>, or something with a domain in front, "
    "such as example.com/gpu",
)
_Quantities = dict[str, Annotated[int | str, Meta(extra_json_schema=_QUANTITY)]]


class Resources(Group, frozen=True):
    """CPU and memory of each instance. Given as a whole: what is left out is not set."""

    requests: Annotated[
        _Quantities,
        field("What the scheduler sets aside for an instance.", _RESOURCES, max_length=8),
    ] = {}
    limits: Annotated[
        _Quantities,
        field("The most that an instance may use.", _RESOURCES, max_length=8),
    ] = {}

    rules: ClassVar = (
        Rule(
            "!has(self.requests) || !has(self.limits) "
            "|| self.requests.all(name, !(name in self.limits) || !isQuantity(string(self.requests[name])) "
            "|| !isQuantity(string(self.limits[name])) || quantity(string(self.requests[name]))"
            ".compareTo(quantity(string(self.limits[name]))) <= 0)",
            "pod.resources.requests must not be more than pod.resources.limits: "
            "lower the request or raise the limit",
            field_path=".requests",
        ),
    )


class Toleration(Group, frozen=True):
    """A taint that the pods put up with."""

    key: Annotated[
        Annotated[str, Meta(max_length=316)] | None, field("Key of the taint; every taint where unset.")
    ] = None
    operator: Annotated[
        Literal["Exists", "Equal"] | None,
        field("`Equal` (the default) compares `value` too, `Exists` only the key."),
    ] = None
    value: Annotated[Text63 | None, field("Value of the taint, for `Equal`.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        field("Effect of the taint; every effect where unset."),
    ] = None
    toleration_seconds: Annotated[
        Annotated[int, Meta(ge=0, le=2**53)] | None,
        field("How long a `NoExecute` taint is put up with; for ever where unset."),
    ] = None

    rules: ClassVar = (
        Rule(
            "!has(self.value) || !has(self.operator) || self.operator != 'Exists'",
            "value is compared by the operator Equal only: remove it, or set operator to Equal",
            field_path=".value",
        ),
        Rule(
            "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            "without a key every taint is put up with, which the operator must say: set it to Exists",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds is for the effect NoExecute only: set effect to it, or remove the seconds",
            field_path=".tolerationSeconds",
        ),
    )


class SpreadConstraint(Group, frozen=True):
    """How evenly the pods are spread over nodes, zones or whatever else a label of nodes tells apart."""

    topology_key: Annotated[
        str,
        field(
            "Label of nodes that tells the places apart, such as kubernetes.io/hostname.",
            Rule(
                "!format.qualifiedName().validate(self).hasValue()",
                "must be the key of a label, such as topology.kubernetes.io/zone",
            ),
            min_length=1,
            max_length=316,
        ),
    ]
    max_skew: Annotated[int, field("By how many pods two places may differ.", ge=1, le=1000)] = 1
    when_unsatisfiable: Annotated[
        Literal["ScheduleAnyway", "DoNotSchedule"],
        field(
            "What happens to a pod that cannot keep to it: it goes to the best place there is, or it waits."
        ),
    ] = "ScheduleAnyway"


class SecretKeySource(Group, frozen=True):
    """A key of a Secret in the namespace of the WebSocketCluster."""

    name: Annotated[str, field("Name of the Secret.", DNS_NAME, **NAME)]
    key: Annotated[str, field("Key in the Secret.", SECRET_KEY, **NAME)]


class ConfigMapKeySource(Group, frozen=True):
    """A key of a ConfigMap in the namespace of the WebSocketCluster."""

    name: Annotated[str, field("Name of the ConfigMap.", DNS_NAME, **NAME)]
    key: Annotated[str, field("Key in the ConfigMap.", SECRET_KEY, **NAME)]


class EnvSource(Group, frozen=True):
    """Where the value of a variable comes from. Pods read it when they start."""

    secret_key_ref: Annotated[SecretKeySource | None, field("A key of a Secret.")] = None
    config_map_key_ref: Annotated[ConfigMapKeySource | None, field("A key of a ConfigMap.")] = None

    rules: ClassVar = (
        Rule(
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            "must name one of secretKeyRef and configMapKeyRef",
        ),
    )


OWN_VARIABLES: Final = (
    "^((TABLEFORGE|REDIS|WS|JWT|AUTH|LOG|KUBERNETES)_.*"
    "|CLEANUP_INTERVAL|HEARTBEAT_INTERVAL|INACTIVE_THRESHOLD|INSTANCE_ID|POD_IP)$"
)
"""Variables that the data plane reads or the operator sets: fields of the spec stand for them."""


class EnvVar(Group, frozen=True):
    """A variable of the instances' environment, for what is not the data plane's own, such as a proxy."""

    name: Annotated[
        str,
        field(
            "Name of the variable.",
            Rule(
                "self.matches('^[A-Za-z_][A-Za-z0-9_]*$')",
                "must be letters, digits and underscores, and not start with a digit",
            ),
            Rule(
                f"!self.matches('{OWN_VARIABLES}')",
                "is a variable of the data plane itself: use the field of spec that stands for it",
                reason="FieldValueForbidden",
            ),
            min_length=1,
            max_length=128,
        ),
    ]
    value: Annotated[Text4096 | None, field("Its value. For secrets use `valueFrom`.")] = None
    value_from: Annotated[EnvSource | None, field("Where its value comes from instead.")] = None

    rules: ClassVar = (
        Rule("has(self.value) != has(self.valueFrom)", "must have one of value and valueFrom"),
    )


class PullSecret(Group, frozen=True):
    """A Secret with the login of an image registry."""

    name: Annotated[
        str,
        field(
            "Name of the Secret, of type kubernetes.io/dockerconfigjson, in the namespace of the "
            "WebSocketCluster.",
            DNS_NAME,
            **NAME,
        ),
    ]


class Pod(Group, frozen=True):
    """The instances' pods. A closed list: it gives them no privileges, no ServiceAccount but their own and
    nothing of the node.
    """

    resources: Resources = Resources(
        requests={"cpu": "100m", "memory": "256Mi"}, limits={"cpu": "500m", "memory": "512Mi"}
    )
    node_selector: Annotated[
        dict[str, Text63],
        field("Labels that a node must have.", *LABELS, max_length=32),
    ] = {}
    tolerations: Annotated[
        list[Toleration],
        field(
            "Taints that the pods put up with.", schema={"x-kubernetes-list-type": "atomic"}, max_length=32
        ),
    ] = []
    labels: Annotated[
        dict[str, Text63],
        field("Further labels of the pods.", Rule(RESERVED, RESERVED_MESSAGE), *LABELS, max_length=32),
    ] = {}
    annotations: Annotated[
        dict[str, Text4096],
        field("Further annotations of the pods.", Rule(RESERVED, RESERVED_MESSAGE), KEYS, max_length=32),
    ] = {}
    topology_spread_constraints: Annotated[
        Annotated[list[SpreadConstraint], Meta(max_length=8)] | None,
        field(
            "How the pods are spread. Default: over nodes and over zones, as evenly as can be; with an empty "
            "list they are not.",
            Rule(
                "self.all(one, self.exists_one(other, other.topologyKey == one.topologyKey "
                "&& other.whenUnsatisfiable == one.whenUnsatisfiable))",
                "must have one entry for each topologyKey and whenUnsatisfiable: remove the others",
            ),
            schema={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None
    priority_class_name: Annotated[
        Text253 | None,
        field("PriorityClass of the pods; the Kubernetes cluster's default where unset.", DNS_NAME),
    ] = None
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"] | None,
        field("When nodes pull the image; by Kubernetes' rules where unset: `Always` for the tag `latest`."),
    ] = None
    image_pull_secrets: Annotated[
        list[PullSecret],
        field(
            "Secrets that the images are pulled with, a managed Redis's too.",
            schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            max_length=8,
        ),
    ] = []
    extra_env: Annotated[
        list[EnvVar],
        field(
            "Further variables of the instances' environment.",
            schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            max_length=32,
        ),
    ] = []
