"""What is worth an alert: PromQL over the metrics of one cluster's instances, as PodMonitors label them."""

import dataclasses
from collections.abc import Iterator
from typing import Final, Literal

from tableforge_operator.api import WebSocketCluster

NEAR_CAPACITY: Final = 0.9
"""Share of the fleet's connections from which on there is soon no room: above where autoscaling reacts."""
SLOW_ACK_SECONDS: Final = 1.0
SLOW_SHARE: Final = 0.02
"""Share of the clients that may be closed for taking too little, in ten minutes, before somebody looks."""
OURS: Final = "unavailable|internal"
"""Codes of refused publishes that are not the client's doing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alert:
    """One alerting rule."""

    name: str
    expression: str
    lasting: str
    """For how long it must be so, as Prometheus writes durations."""
    severity: Literal["critical", "warning"]
    summary: str
    description: str
    """What it means and what to do."""


def alerts(cluster: WebSocketCluster) -> Iterator[Alert]:
    """None that a cluster without instances would have firing for ever."""
    us = f'namespace="{cluster.namespace}",tableforge_io_cluster="{cluster.name}"'
    what = f"WebSocketCluster {cluster.namespace}/{cluster.name}"
    if cluster.spec.replicas > 0:
        yield Alert(
            name="TableforgeNoInstance",
            expression=f"absent(up{{{us}}} == 1)",
            lasting="2m",
            severity="critical",
            summary=f"{what} has no instance that answers Prometheus",
            description="No client can connect, or Prometheus cannot: see `kubectl describe wsc`, and "
            "spec.security.networkPolicy.internal for who may connect to the internal port.",
        )
    yield Alert(
        name="TableforgeInstanceDown",
        expression=f"up{{{us}}} == 0",
        lasting="3m",
        severity="warning",
        summary=f"Instance {{{{ $labels.pod }}}} of {what} does not answer Prometheus",
        description="Its clients have gone to others. See the pod's log and Events.",
    )
    yield Alert(
        name="TableforgeRedisAway",
        expression=f"tableforge_redis_connected{{{us}}} == 0",
        lasting="1m",
        severity="critical",
        summary=f"Instance {{{{ $labels.pod }}}} of {what} has no Redis",
        description="Publishes wait in its queue, then are refused; sockets stay open. The condition "
        "RedisReady says why.",
    )
    yield Alert(
        name="TableforgePublishesRefused",
        expression=f"sum by (reason) (rate(tableforge_websocket_publishes_refused_total"
        f'{{{us},reason=~"{OURS}"}}[5m])) > 0',
        lasting="2m",
        severity="critical",
        summary=f"{what} refuses publishes: {{{{ $labels.reason }}}}",
        description="Redis is away, full or refuses writes. Clients try again; nothing acknowledged is lost.",
    )
    yield Alert(
        name="TableforgeResets",
        expression=f"sum by (reason) (increase(tableforge_websocket_resets_total{{{us}}}[10m])) > 0",
        lasting="0m",
        severity="critical",
        summary=f"{what} told rooms that messages may be missing: {{{{ $labels.reason }}}}",
        description="Redis lost or rewrote what it had: a failover to a stale replica, an eviction, lost "
        "data.",
    )
    yield Alert(
        name="TableforgeSlowConsumers",
        expression=f"sum(increase(tableforge_websocket_slow_consumers_total{{{us}}}[10m])) "
        f"> {SLOW_SHARE} * clamp_min(sum(tableforge_websocket_connections_total{{{us}}}), 100)",
        lasting="5m",
        severity="warning",
        summary=f"{what} closes clients that take too little, too slowly",
        description="Clients, or the way to them, are slower than their rooms. Smaller messages, fewer rooms "
        "per client or a larger spec.websocket.writeLimitBytes help.",
    )
    yield Alert(
        name="TableforgePressure",
        expression=f"max by (pod) (tableforge_pressure_stage{{{us}}}) >= 2",
        lasting="1m",
        severity="critical",
        summary=f"Instance {{{{ $labels.pod }}}} of {what} is under pressure and takes no new clients",
        description="It is short of memory or CPU: raise spec.pod.resources or spec.replicas.",
    )
    yield Alert(
        name="TableforgeMemoryHigh",
        expression=f"max by (pod) (process_resident_memory_bytes{{{us}}}) "
        f"> max by (pod) (tableforge_memory_threshold_bytes{{{us}}})",
        lasting="10m",
        severity="warning",
        summary=f"Instance {{{{ $labels.pod }}}} of {what} is near its memory's limit",
        description="A little more and it refuses new clients: raise spec.pod.resources.limits.memory, or "
        "spec.replicas.",
    )
    yield Alert(
        name="TableforgeEventLoopLag",
        expression=f"max by (pod) (tableforge_event_loop_lag_average_seconds{{{us}}}) > 0.1",
        lasting="5m",
        severity="warning",
        summary=f"Instance {{{{ $labels.pod }}}} of {what} is late by {{{{ $value | humanizeDuration }}}}",
        description="It has more to do than its CPU allows: raise spec.pod.resources or spec.replicas.",
    )
    yield Alert(
        name="TableforgeSlowAcknowledgements",
        expression="histogram_quantile(0.99, sum by (le) "
        f"(rate(tableforge_publish_ack_seconds_bucket{{{us}}}[5m]))) > {SLOW_ACK_SECONDS:g}",
        lasting="5m",
        severity="warning",
        summary=f"One publish in a hundred to {what} waits for {{{{ $value | humanizeDuration }}}}",
        description="Redis, its disk or the instances are slow. spec.redis.durability says what is waited "
        "for.",
    )
    yield Alert(
        name="TableforgeNearCapacity",
        expression=f"sum(tableforge_websocket_connections_total{{{us}}}) "
        f"> {NEAR_CAPACITY} * {cluster.capacity} * count(up{{{us}}} == 1)",
        lasting="10m",
        severity="warning",
        summary=f"{what} has little room for further clients",
        description="Raise spec.replicas, with autoscaling spec.autoscaling.maxReplicas, or "
        "spec.websocket.maxConnections where instances have CPU and memory to spare.",
    )
    yield Alert(
        name="TableforgeDirectoryMended",
        expression=f"sum(increase(tableforge_directory_mended_total{{{us}}}[10m])) > 0",
        lasting="0m",
        severity="warning",
        summary=f"Something else writes into the Redis of {what}, below its key prefix",
        description="What made no sense was removed. `directory_mended` in the instances' logs says what it "
        "was: find out who writes there, or give the cluster a Redis or a spec.redis.keyPrefix of its own.",
    )
    yield Alert(
        name="TableforgeHeartbeatsFail",
        expression=f"sum by (pod) (increase(tableforge_registry_heartbeats_failed_total{{{us}}}[10m])) > 5",
        lasting="5m",
        severity="warning",
        summary=f"Instance {{{{ $labels.pod }}}} of {what} has trouble to say that it lives",
        description="The others may take it for dead: look at Redis, and at the network to it.",
    )
