# ruff: noqa: RUF012  (msgspec copies a default that is an empty dict or list)
"""The `spec` of a WebSocketCluster: what a user may ask for.

Only fields that act are here. The descriptions are what `kubectl explain` shows.
"""

from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta

from tableforge_dataplane.contract import settings
from tableforge_operator.api.fields import Group, Rule, default_of, duration, field, setting
from tableforge_operator.api.quantities import MEMORY_PATTERN, Duration

DEFAULT_DATAPLANE_IMAGE: Final = f"tableforge/dataplane:{version('tableforge')}"
DEFAULT_REDIS_IMAGE: Final = "valkey/valkey:9.1"
INTERNAL_PORT: Final[int] = default_of("http.port")
"""The instances' internal port (metrics, the fleet's view). No field stands for it."""

_Image = Annotated[str, Meta(pattern=r"^\S+$", min_length=1, max_length=512)]
_Text63 = Annotated[str, Meta(max_length=63)]
_Text253 = Annotated[str, Meta(max_length=253)]
_Text4096 = Annotated[str, Meta(max_length=4096)]
_DNS_NAME: Final = Rule(
    "!format.dns1123Subdomain().validate(self).hasValue()",
    "must be a name of lower-case letters, digits, dashes and dots",
)
_SECRET_KEY: Final = Rule(
    "self.matches('^[-._a-zA-Z0-9]+$') && !self.startsWith('..') && self != '.'",
    "must be a key of the Secret: letters, digits or any of - _ .",
)
_NAME: Final[dict[str, Any]] = {"min_length": 1, "max_length": 253}
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
_Quantities = dict[str, Annotated[int | str, Meta(extra_json_schema=_QUANTITY)]]


class JwtSecretRef(Group, frozen=True):
    """The Secret with the key that tokens are signed with."""

    name: Annotated[
        str, field("Name of the Secret, in the namespace of the WebSocketCluster.", _DNS_NAME, **_NAME)
    ]
    key: Annotated[
        str,
        field(
            "Key in the Secret whose value is the tokens' key (HS256), at least 32 bytes.",
            _SECRET_KEY,
            **_NAME,
        ),
    ] = "secret"


class PasswordSecretRef(Group, frozen=True):
    """The Secret with the password of the external Redis."""

    name: Annotated[
        str, field("Name of the Secret, in the namespace of the WebSocketCluster.", _DNS_NAME, **_NAME)
    ]
    key: Annotated[
        str,
        field(
            "Key in the Secret whose value is the password.",
            _SECRET_KEY,
            **_NAME,
        ),
    ] = "password"


class Websocket(Group, frozen=True):
    """The port that clients connect to, and what a connection may do."""

    port: Annotated[
        int, setting("websocket.port", "Port for clients, on the pods and on the Service.", ge=1024)
    ] = default_of("websocket.port")
    max_connections: Annotated[
        int,
        setting(
            "websocket.max_connections",
            "The most connections one instance takes; further ones are answered with 503 and go elsewhere.",
        ),
    ] = default_of("websocket.max_connections")
    ping_interval: Annotated[Duration, setting("websocket.ping_interval_seconds")] = default_of(
        "websocket.ping_interval_seconds"
    )
    pong_timeout: Annotated[Duration, setting("websocket.pong_timeout_seconds")] = default_of(
        "websocket.pong_timeout_seconds"
    )
    max_payload_bytes: Annotated[
        int, setting("websocket.max_payload_bytes", "The largest frame a client may send, in bytes.")
    ] = default_of("websocket.max_payload_bytes")

    rules: ClassVar = (
        Rule(
            f"self.port != {INTERNAL_PORT}",
            f"websocket.port {INTERNAL_PORT} is taken by the instances' internal port: choose another",
            field_path=".port",
        ),
    )


class Storage(Group, frozen=True):
    """The claim that a managed Redis keeps its append-only file on. It cannot change later."""

    size: Annotated[
        str,
        field(
            "Size of the claim, at least three times `maxMemory`: the append-only file grows to twice the "
            "data before it is rewritten, and the new one is written beside it.",
            Rule(
                "self.matches('^[1-9][0-9]{0,5}(Mi|Gi|Ti)$')",
                "must be a whole number of Mi, Gi or Ti, such as 1Gi",
            ),
            max_length=16,
        ),
    ] = "1Gi"
    storage_class_name: Annotated[
        _Text253 | None,
        field("StorageClass of the claim; the default class where unset.", _DNS_NAME),
    ] = None


class Persistence(Group, frozen=True):
    """What becomes of a managed Redis's data."""

    on_delete: Annotated[
        Literal["Retain", "Delete"],
        field(
            "What happens to the claim when the WebSocketCluster is deleted: `Retain` keeps it, and a new "
            "WebSocketCluster of the same name finds its rooms again; `Delete` removes it."
        ),
    ] = "Retain"


class ManagedRedis(Group, frozen=True):
    """A standalone Redis that the operator runs for this cluster, with a claim and a password of its own."""

    image: Annotated[
        _Image | None,
        field(
            f"Image of Redis or Valkey, 7.2 or newer. Default: {DEFAULT_REDIS_IMAGE}, "
            "renewed with the operator. "
            "Images whose entry point takes the path of a configuration file, as the official ones do, fit.",
        ),
    ] = None
    max_memory: Annotated[
        str,
        field(
            "Redis's `maxmemory`: how much data it holds before writes are refused, in `mb` or `gb`. "
            "The pod's memory request and limit follow from it.",
            Rule(
                f"self.matches('^{MEMORY_PATTERN}$') && "
                "(self.endsWith('gb') || self.size() > 4 || int(self.substring(0, self.size() - 2)) >= 16)",
                "must be a whole number of mb or gb, at least 16mb, such as 256mb",
            ),
            max_length=8,
        ),
    ] = "256mb"
    storage: Storage = Storage()
    persistence: Persistence = Persistence()

    rules: ClassVar = (
        Rule(
            "!isQuantity(self.storage.size) "
            "|| !isQuantity(self.maxMemory.replace('mb', 'Mi').replace('gb', 'Gi')) "
            "|| quantity(self.storage.size)"
            ".sub(quantity(self.maxMemory.replace('mb', 'Mi').replace('gb', 'Gi')))"
            ".sub(quantity(self.maxMemory.replace('mb', 'Mi').replace('gb', 'Gi')))"
            ".sub(quantity(self.maxMemory.replace('mb', 'Mi').replace('gb', 'Gi')))"
            ".compareTo(quantity('0')) >= 0",
            "storage.size must be at least three times maxMemory: raise storage.size or lower maxMemory",
            field_path=".storage.size",
        ),
    )


class ExternalRedis(Group, frozen=True):
    """A Redis or Valkey, 6.2 or newer, that exists already."""

    host: Annotated[
        str,
        field(
            "Host name or address.",
            Rule(
                "self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$|^[0-9A-Fa-f.]*(:[0-9A-Fa-f.]*){2,}$')",
                "must be a host name or an address, without a scheme and without a port",
            ),
            min_length=1,
            max_length=253,
        ),
    ]
    port: Annotated[int, setting("redis.port")] = default_of("redis.port")
    database: Annotated[
        int,
        setting(
            "redis.database",
            "Database number. Redis Pub/Sub ignores it: clusters on one Redis are kept apart by `keyPrefix`.",
        ),
    ] = default_of("redis.database")
    password_secret_ref: Annotated[
        PasswordSecretRef | None,
        field("The Secret with the password; none where this Redis asks for none."),
    ] = None


_SIZE: Final = "(has({0}.managed) ? {0}.managed.storage.size : '" + Storage().size + "')"
_CLASS: Final = (
    "(has({0}.managed) && has({0}.managed.storage.storageClassName) ? "
    "{0}.managed.storage.storageClassName : '')"
)


class Redis(Group, frozen=True):
    """Where the rooms' logs live: in a Redis that the operator runs (`managed`, also where neither is given),
    or in one that exists already (`external`).
    """

    managed: Annotated[
        ManagedRedis | None, field("A standalone Redis that the operator runs for this cluster.")
    ] = None
    external: Annotated[
        ExternalRedis | None, field("A Redis or Valkey, 6.2 or newer, that exists already.")
    ] = None
    key_prefix: Annotated[
        Annotated[str, Meta(max_length=200)] | None,
        field(
            "What every key and channel of this cluster starts with, after `tf:`. It keeps clusters on one "
            "Redis apart, and cannot change later. Default: `<namespace>/<name>`.",
            Rule(
                f"self.matches('^{settings.specs()['redis.key_prefix'][0].pattern}$')",
                "must be 1 to 200 letters, digits or any of . _ : / -",
            ),
        ),
    ] = None
    durability: Annotated[
        Literal["Memory", "Disk"] | None,
        field(
            "What an acknowledgement means: `Memory`, Redis has the message; `Disk`, Redis has synced it to "
            "disk. Default: `Disk` with a managed Redis; `Memory` with an external one, where `Disk` needs "
            "`appendonly yes` and `appendfsync always`."
        ),
    ] = None

    rules: ClassVar = (
        Rule(
            "!(has(self.managed) && has(self.external))",
            "redis.managed and redis.external exclude each other: remove one of them",
            reason="FieldValueForbidden",
        ),
        Rule(
            "has(self.external) == has(oldSelf.external)",
            "a cluster cannot move between a managed and an external Redis, its rooms would lose their logs: "
            "create a second WebSocketCluster and move the clients",
            reason="FieldValueForbidden",
        ),
        Rule(
            "has(self.keyPrefix) == has(oldSelf.keyPrefix) "
            "&& (!has(self.keyPrefix) || self.keyPrefix == oldSelf.keyPrefix)",
            "redis.keyPrefix cannot change, the rooms would lose their logs: set it back, "
            "or create a second WebSocketCluster",
            reason="FieldValueForbidden",
        ),
        Rule(
            f"{_SIZE.format('self')} == {_SIZE.format('oldSelf')} "
            f"&& {_CLASS.format('self')} == {_CLASS.format('oldSelf')}",
            "redis.managed.storage cannot change once the claim exists: set it back, and to grow the claim "
            "edit the PersistentVolumeClaim data-<name>-redis-0 itself",
            reason="FieldValueForbidden",
        ),
    )


class Scaling(Group, frozen=True):
    """How the instances know of each other, and what they hold while Redis is away."""

    heartbeat_interval: Annotated[Duration, setting("scaling.heartbeat_interval_seconds")] = default_of(
        "scaling.heartbeat_interval_seconds"
    )
    cleanup_interval: Annotated[Duration, setting("scaling.cleanup_interval_seconds")] = default_of(
        "scaling.cleanup_interval_seconds"
    )
    inactive_threshold: Annotated[Duration, setting("scaling.inactive_threshold_seconds")] = default_of(
        "scaling.inactive_threshold_seconds"
    )
    message_queue_size: Annotated[int, setting("scaling.message_queue_size")] = default_of(
        "scaling.message_queue_size"
    )


class Auth(Group, frozen=True):
    """Who may connect."""

    required: Annotated[
        bool,
        setting(
            "auth.required",
            "Whether a client must present a valid token. True unless said otherwise; "
            "`false` lets everybody in.",
        ),
    ] = True
    jwt_secret_ref: Annotated[
        JwtSecretRef | None,
        field(
            "The Secret with the key that tokens are signed with. "
            "It may come later: until then nobody is let in."
        ),
    ] = None


class Performance(Group, frozen=True):
    """How publishes are batched on their way to Redis."""

    batch_message_delay: Annotated[Duration, setting("performance.batch_message_delay_seconds")] = default_of(
        "performance.batch_message_delay_seconds"
    )
    max_batch_size: Annotated[int, setting("performance.max_batch_size")] = default_of(
        "performance.max_batch_size"
    )


class Monitoring(Group, frozen=True):
    """What the instances log."""

    log_level: Annotated[settings.LogLevel, setting("logging.level")] = default_of("logging.level")
    log_format: Annotated[settings.LogFormat, setting("logging.format")] = default_of("logging.format")


class Security(Group, frozen=True):
    """Limits per client."""

    max_messages_per_second: Annotated[int, setting("security.max_messages_per_second")] = default_of(
        "security.max_messages_per_second"
    )
    max_messages_per_minute: Annotated[int, setting("security.max_messages_per_minute")] = default_of(
        "security.max_messages_per_minute"
    )
    max_bytes_per_second: Annotated[int, setting("security.max_bytes_per_second")] = default_of(
        "security.max_bytes_per_second"
    )
    max_rooms_per_connection: Annotated[int, setting("security.max_rooms_per_connection")] = default_of(
        "security.max_rooms_per_connection"
    )

    rules: ClassVar = (
        Rule(
            "self.maxMessagesPerMinute >= self.maxMessagesPerSecond",
            "security.maxMessagesPerMinute must be at least security.maxMessagesPerSecond: "
            "raise the one or lower the other",
            field_path=".maxMessagesPerMinute",
        ),
    )


class Clustering(Group, frozen=True):
    """When an instance counts as dead."""

    failover_timeout: Annotated[Duration, setting("scaling.failover_timeout_seconds")] = default_of(
        "scaling.failover_timeout_seconds"
    )


class Rollout(Group, frozen=True):
    """How pods are replaced."""

    drain_timeout: Annotated[
        Duration,
        setting(
            "scaling.drain_seconds",
            "Over how long a leaving instance spreads its clients' reconnects. "
            "The pods' grace period covers it.",
        ),
    ] = default_of("scaling.drain_seconds")
    progress_deadline: Annotated[
        Duration,
        duration(
            "How long a change may take before the cluster counts as stalled.",
            low=Duration.parse("30s"),
            high=Duration.parse("24h"),
        ),
    ] = Duration.parse("10m")


class Resources(Group, frozen=True):
    """CPU and memory of each instance. Given as a whole: what is left out is not set."""

    requests: Annotated[
        _Quantities,
        field("What the scheduler sets aside for an instance.", max_length=8),
    ] = {}
    limits: Annotated[
        _Quantities,
        field("The most that an instance may use.", max_length=8),
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
    value: Annotated[_Text63 | None, field("Value of the taint, for `Equal`.")] = None
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


_RESERVED: Final = "self.all(key, !key.startsWith('tableforge.io/') && !key.startsWith('app.kubernetes.io/'))"
_RESERVED_MESSAGE: Final = (
    "keys that start with tableforge.io/ or app.kubernetes.io/ are the operator's: remove them"
)
_KEYS: Final = Rule(
    "self.all(key, !format.qualifiedName().validate(key).hasValue())",
    "keys must be letters, digits, dashes, dots and underscores, with a domain and a slash in front at most",
)
_LABELS: Final = (
    _KEYS,
    Rule(
        "self.all(key, !format.labelValue().validate(self[key]).hasValue())",
        "values must be at most 63 letters, digits, dashes, dots and underscores, and start and end with a "
        "letter or digit",
    ),
)


class Pod(Group, frozen=True):
    """The instances' pods. A closed list: whoever may create a WebSocketCluster gains no more than pods."""

    resources: Resources = Resources(
        requests={"cpu": "100m", "memory": "256Mi"}, limits={"cpu": "500m", "memory": "512Mi"}
    )
    node_selector: Annotated[
        dict[str, _Text63],
        field("Labels that a node must have.", *_LABELS, max_length=32),
    ] = {}
    tolerations: Annotated[
        list[Toleration],
        field(
            "Taints that the pods put up with.", schema={"x-kubernetes-list-type": "atomic"}, max_length=32
        ),
    ] = []
    labels: Annotated[
        dict[str, _Text63],
        field("Further labels of the pods.", Rule(_RESERVED, _RESERVED_MESSAGE), *_LABELS, max_length=32),
    ] = {}
    annotations: Annotated[
        dict[str, _Text4096],
        field("Further annotations of the pods.", Rule(_RESERVED, _RESERVED_MESSAGE), _KEYS, max_length=32),
    ] = {}


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
        dict[str, _Text4096],
        field(
            "Annotations of the Service, such as a cloud's settings for its load balancer.",
            Rule(_RESERVED, _RESERVED_MESSAGE),
            _KEYS,
            max_length=32,
        ),
    ] = {}


class Spec(Group, frozen=True):
    """What the cluster should be."""

    replicas: Annotated[int, field("How many instances run.", ge=0, le=1000)] = 3
    image: Annotated[
        _Image | None,
        field(
            f"Image of the data plane. Default: {DEFAULT_DATAPLANE_IMAGE}, renewed with the operator.",
        ),
    ] = None
    websocket: Websocket = Websocket()
    redis: Redis = Redis()
    scaling: Scaling = Scaling()
    auth: Auth = Auth()
    performance: Performance = Performance()
    monitoring: Monitoring = Monitoring()
    security: Security = Security()
    clustering: Clustering = Clustering()
    rollout: Rollout = Rollout()
    pod: Pod = Pod()
    service: Service = Service()

    rules: ClassVar = (
        # Here and not on `auth`: what a user leaves out altogether must not pass by its default.
        Rule(
            "!self.auth.required || has(self.auth.jwtSecretRef)",
            "auth.required is true (the default), so auth.jwtSecretRef must name the Secret with the tokens' "
            "key; to let everybody in, set auth.required to false",
            field_path=".auth.jwtSecretRef",
            reason="FieldValueRequired",
        ),
    )
