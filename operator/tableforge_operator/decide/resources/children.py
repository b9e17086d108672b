"""Everything that a cluster should own, in the order in which it is applied."""

import dataclasses
from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.client_service import client_service
from tableforge_operator.decide.resources.config_map import config_map
from tableforge_operator.decide.resources.deployment import deployment
from tableforge_operator.decide.resources.disruption_budget import disruption_budget
from tableforge_operator.decide.resources.instances_service import instances_service
from tableforge_operator.decide.resources.metadata import fingerprint
from tableforge_operator.decide.resources.redis_config_map import redis_config_map
from tableforge_operator.decide.resources.redis_service import redis_service
from tableforge_operator.decide.resources.redis_stateful_set import redis_stateful_set
from tableforge_operator.decide.resources.secrets import (
    DerivedSecrets,
    fleet_secret,
    fleet_secret_name,
    redis_secret,
)
from tableforge_operator.decide.resources.service_account import service_account


@dataclasses.dataclass(frozen=True, kw_only=True)
class Children:
    """The desired children, ready for the API server."""

    applied: tuple[dict[str, Any], ...]
    """By server-side apply, in this order: what pods refer to comes before them."""
    secrets: tuple[dict[str, Any], ...] = dataclasses.field(repr=False)
    """By create, before all others; one that exists already is as it should be, since its name says so."""


def children(cluster: WebSocketCluster, *, secrets: DerivedSecrets) -> Children:
    """The same cluster and secrets give the same objects, to the byte."""
    config = config_map(cluster)
    before: list[dict[str, Any]] = [
        service_account(cluster),
        config,
        client_service(cluster),
        instances_service(cluster),
        disruption_budget(cluster),
    ]
    created = [fleet_secret(cluster, secrets)]
    redis = cluster.managed_redis
    if redis is not None:
        redis_config = redis_config_map(cluster, redis)
        created.append(redis_secret(cluster, secrets))
        before += [
            redis_config,
            redis_service(cluster),
            redis_stateful_set(cluster, redis, config_hash=fingerprint(redis_config["data"])),
        ]
    instances = deployment(
        cluster,
        config_hash=fingerprint(config["data"]),
        fleet_secret=fleet_secret_name(cluster, secrets),
    )
    return Children(applied=(*before, instances), secrets=tuple(created))
