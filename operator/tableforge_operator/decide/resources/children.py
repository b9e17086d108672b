"""Everything that a cluster should own, in the order in which it is applied."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.client_service import client_service
from tableforge_operator.decide.resources.config_map import config_map, live_config_map
from tableforge_operator.decide.resources.deployment import deployment, template_hash
from tableforge_operator.decide.resources.disruption_budget import disruption_budget
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.resources.horizontal_pod_autoscaler import horizontal_pod_autoscaler
from tableforge_operator.decide.resources.http_route import http_route
from tableforge_operator.decide.resources.ingress import ingress
from tableforge_operator.decide.resources.instances_service import instances_service
from tableforge_operator.decide.resources.kinds import HTTP_ROUTE
from tableforge_operator.decide.resources.metadata import fingerprint
from tableforge_operator.decide.resources.monitoring import monitoring
from tableforge_operator.decide.resources.network_policy import network_policies
from tableforge_operator.decide.resources.passwords import FIRST, Passwords
from tableforge_operator.decide.resources.redis_config_map import redis_config_map
from tableforge_operator.decide.resources.redis_service import redis_service
from tableforge_operator.decide.resources.redis_stateful_set import redis_stateful_set
from tableforge_operator.decide.resources.secrets import (
    DerivedSecrets,
    MadeSecrets,
    fleet_secret,
    fleet_secret_name,
    redis_secrets,
)
from tableforge_operator.decide.resources.service_account import service_account
from tableforge_operator.decide.resources.surroundings import Surroundings
from tableforge_operator.decide.resources.tracks import ONE_TRACK, Tracks

_USUAL: Final = Surroundings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Children:
    """The desired children, ready for the API server."""

    applied: tuple[dict[str, Any], ...]
    """By server-side apply, in this order: what pods refer to comes before them."""
    secrets: tuple[dict[str, Any], ...] = dataclasses.field(repr=False)
    """By create, before all others; one that exists already is as it should be, since its name says so."""


def children(
    cluster: WebSocketCluster,
    *,
    secrets: DerivedSecrets,
    surroundings: Surroundings = _USUAL,
    tracks: Tracks = ONE_TRACK,
    floor: Floor | None = None,
    passwords: Passwords = FIRST,
    live_redis: Mapping[str, Any] | None = None,
) -> Children:
    """The same arguments give the same objects, to the byte. `floor` is for a cluster that is autoscaled,
    `live_redis` is the managed Redis's StatefulSet as it is.
    """
    config = config_map(cluster)
    before: list[dict[str, Any]] = [
        service_account(cluster),
        config,
        live_config_map(cluster),
        client_service(cluster, tracks.selected, accepting=tracks.accepting),
        instances_service(cluster),
        disruption_budget(cluster),
        *network_policies(cluster, operator_namespace=surroundings.operator_namespace),
    ]
    if cluster.spec.ingress is not None:
        before.append(ingress(cluster, cluster.spec.ingress))
    gateway = cluster.spec.routing.gateway
    if cluster.routed and gateway is not None and HTTP_ROUTE.kind not in surroundings.absent_kinds:
        before.append(http_route(cluster, gateway))
    created = [fleet_secret(cluster, secrets)]
    redis = cluster.managed_redis
    if redis is not None:
        redis_config = redis_config_map(cluster, redis)
        created += redis_secrets(cluster, secrets, passwords)
        before += [
            redis_config,
            redis_service(cluster),
            redis_stateful_set(
                cluster,
                redis,
                config_hash=fingerprint(redis_config["data"]),
                passwords=passwords,
                live=live_redis,
            ),
        ]
    config_hash, made = fingerprint(config["data"]), _made(cluster, secrets, passwords)
    fleets = [
        deployment(cluster, config_hash=config_hash, secrets=made, instances=instances)
        for instances in tracks.applied
    ]
    after = monitoring(cluster, absent_kinds=surroundings.absent_kinds)
    if cluster.autoscaled:
        least = floor or Floor(replicas=cluster.spec.replicas)
        after.append(horizontal_pod_autoscaler(cluster, track=tracks.selected, floor=least))
    return Children(applied=(*before, *fleets, *after), secrets=tuple(created))


def template_of(cluster: WebSocketCluster, *, secrets: DerivedSecrets, passwords: Passwords = FIRST) -> str:
    """The hash of the template that the instances should have."""
    config_hash = fingerprint(config_map(cluster)["data"])
    return template_hash(cluster, config_hash=config_hash, secrets=_made(cluster, secrets, passwords))


def _made(cluster: WebSocketCluster, secrets: DerivedSecrets, passwords: Passwords) -> MadeSecrets:
    return MadeSecrets(fleet=fleet_secret_name(cluster, secrets), redis_password=passwords.given)
