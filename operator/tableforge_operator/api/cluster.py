"""A WebSocketCluster as the API server hands it out, typed."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tableforge_dataplane.contract import endpoints, settings
from tableforge_operator.api import names
from tableforge_operator.api.fields import Group
from tableforge_operator.api.quantities import Duration
from tableforge_operator.api.spec import (
    DEFAULT_DATAPLANE_IMAGE,
    DEFAULT_REDIS_IMAGE,
    JwtSecretRef,
    ManagedRedis,
    PasswordSecretRef,
    Spec,
)
from tableforge_operator.api.status import Status


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
    def secret_refs(self) -> Mapping[str, JwtSecretRef | PasswordSecretRef]:
        """The Secrets that the user names, by the setting whose file they are mounted as."""
        external = self.spec.redis.external
        refs = {
            "auth.jwt_secret": self.spec.auth.jwt_secret_ref,
            "redis.password": None if external is None else external.password_secret_ref,
        }
        return {setting: ref for setting, ref in refs.items() if ref is not None}

    @property
    def url(self) -> str:
        """Where clients inside the Kubernetes cluster connect."""
        return f"ws://{self.name}.{self.namespace}.svc:{self.spec.websocket.port}{endpoints.WS_PATH}"


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
