"""A WebSocketCluster as the API server hands it out, typed."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tableforge_dataplane.contract import endpoints, settings
from tableforge_operator.api import names
from tableforge_operator.api.fields import Group, default_of
from tableforge_operator.api.quantities import Duration, quantity_thousandths
from tableforge_operator.api.references import Reference, references
from tableforge_operator.api.spec import Spec
from tableforge_operator.api.spec.common import DEFAULT_DATAPLANE_IMAGE, DEFAULT_REDIS_IMAGE
from tableforge_operator.api.spec.redis_managed import ManagedRedis
from tableforge_operator.api.status import Status

_WEIGHT: Final = settings.specs()["routing.weight"]


class InvalidClusterError(ValueError):
    """An object that is no WebSocketCluster of this version. The message names the field."""


class WebSocketCluster(msgspec.Struct, frozen=True, kw_only=True):
    """One WebSocketCluster. What the spec leaves open is resolved by its properties."""

    name: str
    namespace: str
    uid: str
    generation: int
    annotations: Mapping[str, str]
    deletion_timestamp: str | None
    """RFC 3339, or None while the object is not being deleted."""
    spec: Spec
    status: Status

    @property
    def paused(self) -> bool:
        """Whether the user has stopped all writes for this cluster."""
        return self.annotations.get(names.PAUSED_ANNOTATION) == "true"

    @property
    def image(self) -> str:
        return self.spec.image or DEFAULT_DATAPLANE_IMAGE

    @property
    def managed_redis(self) -> ManagedRedis | None:
        """The Redis the operator runs for this cluster; None where an external one is named."""
        if self.spec.redis.external is not None:
            return None
        return self.spec.redis.managed or ManagedRedis()

    @property
    def redis_image(self) -> str | None:
        """None where Redis is external."""
        managed = self.managed_redis
        return None if managed is None else managed.image or DEFAULT_REDIS_IMAGE

    @property
    def durability(self) -> settings.Durability:
        if self.spec.redis.durability is not None:
            return self.spec.redis.durability
        return "Memory" if self.managed_redis is None else "Disk"

    @property
    def key_prefix(self) -> str:
        return self.spec.redis.key_prefix or f"{self.namespace}/{self.name}"

    @property
    def references(self) -> tuple[Reference, ...]:
        """The Secrets and ConfigMaps that the user names, with the files they are mounted as."""
        return references(self.spec)

    @property
    def autoscaled(self) -> bool:
        """Whether an autoscaler decides how many instances run. A fleet of none is nobody's to scale."""
        return self.spec.autoscaling.enabled and self.spec.replicas > 0

    @property
    def capacity(self) -> int:
        """The most connections that one instance takes."""
        given = self.spec.load_balancing.max_connections_per_instance
        return min(
            self.spec.websocket.max_connections,
            default_of("load_balancing.max_connections_per_instance") if given is None else given,
        )

    @property
    def weight(self) -> int:
        """How much one instance carries beside others: the CPU it is set aside, in thousandths."""
        resources = self.spec.pod.resources
        # A limit without a request is the request, too.
        cpu = resources.requests.get("cpu", resources.limits.get("cpu"))
        spec, default = _WEIGHT
        if cpu is None:
            return int(default)
        assert spec.minimum is not None  # noqa: S101 - for the type checker
        assert spec.maximum is not None  # noqa: S101 - likewise
        return int(min(max(quantity_thousandths(str(cpu)), spec.minimum), spec.maximum))

    @property
    def routed(self) -> bool:
        """Whether each instance has an address of its own, and rooms have homes."""
        return self.spec.routing.mode == "Gateway"

    @property
    def service_port(self) -> int:
        """Port of the Service that clients connect to."""
        return self.spec.service.port or self.spec.websocket.port

    @property
    def url(self) -> str:
        """Where clients inside the Kubernetes cluster connect."""
        scheme = "ws" if self.spec.websocket.tls is None else "wss"
        return f"{scheme}://{self.name}.{self.namespace}.svc:{self.service_port}{endpoints.WS_PATH}"


class _Metadata(Group, frozen=True):
    name: str
    namespace: str
    uid: str
    generation: int = 0
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    deletion_timestamp: str | None = None


class _Object(Group, frozen=True):
    metadata: _Metadata
    spec: Spec = Spec()
    status: Status = Status()


def load(obj: Mapping[str, Any]) -> WebSocketCluster:
    """The typed form of an object from the API server. Fields that this version doesn't know are passed over.

    Raises InvalidClusterError.
    """
    try:
        found = msgspec.convert(obj, _Object, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InvalidClusterError(str(error)) from error
    metadata = found.metadata
    return WebSocketCluster(
        name=metadata.name,
        namespace=metadata.namespace,
        uid=metadata.uid,
        generation=metadata.generation,
        annotations=metadata.annotations,
        deletion_timestamp=metadata.deletion_timestamp,
        spec=found.spec,
        status=found.status,
    )


def _decode(kind: type, value: Any) -> Any:
    if kind is Duration and isinstance(value, str):
        return Duration.parse(value)
    raise ValueError(f"expected a {kind.__name__.lower()}, got {value!r}")
