"""`spec.redis`."""

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from tableforge_dataplane.contract import settings
from tableforge_operator.api.fields import Group, Rule, field, optional_setting
from tableforge_operator.api.quantities import Duration
from tableforge_operator.api.spec.redis_external import ExternalRedis
from tableforge_operator.api.spec.redis_managed import ManagedRedis, Storage

_SIZE: Final = "(has({0}.managed) ? {0}.managed.storage.size : '" + Storage().size + "')"
_CLASS: Final = (
    "(has({0}.managed) && has({0}.managed.storage.storageClassName) ? "
    "{0}.managed.storage.storageClassName : '')"
)


_SIZES: Final = [_SIZE.format(f"{which}.spec.redis") for which in ("self", "oldSelf")]
_VOLUME: Final = "oldSelf.status.redis.storage"
STORAGE_RULE: Final = Rule(
    f"!isQuantity({_SIZES[0]}) || !isQuantity({_SIZES[1]}) "
    f"|| quantity({_SIZES[0]}).compareTo(quantity({_SIZES[1]})) >= 0 "
    "|| (has(oldSelf.status) && has(oldSelf.status.redis) && has(oldSelf.status.redis.storage) "
    f"&& isQuantity({_VOLUME}) && quantity({_SIZES[0]}).compareTo(quantity({_VOLUME})) >= 0)",
    "redis.managed.storage.size cannot shrink, except back to what the volume has (status.redis.storage): "
    "set it back, or create a second WebSocketCluster",
    field_path=".spec.redis.managed.storage.size",
    reason="FieldValueForbidden",
)
"""Of the whole object: a growth that the StorageClass refuses can be taken back, which only the status "
"shows."""


_GENERATION: Final = "(has({0}.managed) ? {0}.managed.passwordGeneration : 1)"


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
        settings.Durability | None,
        field(
            "What an acknowledgement means: `Memory`, Redis has the message; `Disk`, Redis has synced it to "
            "disk; `Replica`, a replica has it too; `Disk+Replica`, both. Default: `Disk` with a managed "
            "Redis; `Memory` with an external one, where `Disk` needs `appendonly yes`, and `appendfsync "
            "always` or Redis 8 or newer. `Replica` needs an external one."
        ),
    ] = None
    connect_timeout: Annotated[Duration, optional_setting("redis.connect_timeout_seconds")] | None = None
    max_retries_per_request: (
        Annotated[
            int,
            optional_setting(
                "redis.max_retries_per_request",
                "How often a request is sent again at once, after a redirection or a lost connection. Then "
                "reads fail, to be asked for again later, and publishes pause for `retryDelayOnFailover`.",
            ),
        ]
        | None
    ) = None
    retry_delay_on_failover: (
        Annotated[Duration, optional_setting("redis.retry_delay_on_failover_seconds")] | None
    ) = None
    memory_guard_percent: Annotated[int, optional_setting("redis.memory_guard_percent")] | None = None

    rules: ClassVar = (
        Rule(
            "!(has(self.managed) && has(self.external))",
            "redis.managed and redis.external exclude each other: remove one of them",
            reason="FieldValueForbidden",
        ),
        Rule(
            "has(self.external) || !has(self.durability) || !self.durability.contains('Replica')",
            "a managed Redis is a single one, without replicas: set durability to Disk or Memory, or name a "
            "replicated Redis in redis.external",
            field_path=".durability",
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
            f"{_GENERATION.format('self')} >= {_GENERATION.format('oldSelf')}",
            "redis.managed.passwordGeneration cannot go back to a password that was given up: raise it",
            reason="FieldValueForbidden",
        ),
        Rule(
            f"{_CLASS.format('self')} == {_CLASS.format('oldSelf')}",
            "redis.managed.storage.storageClassName cannot change once the claim exists: set it back, or "
            "create a second WebSocketCluster",
            reason="FieldValueForbidden",
        ),
    )
