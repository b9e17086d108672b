"""How the instances work: `spec.scaling`, `spec.performance`, `spec.monitoring`, `spec.clustering`,
`spec.loadBalancing`."""

from typing import Annotated

from tableforge_dataplane.contract import settings
from tableforge_dataplane.contract.fleet import MOST_MOVES
from tableforge_operator.api.fields import Group, Rule, default_of, duration, field, optional_setting, setting
from tableforge_operator.api.quantities import BINARY_PATTERN, Duration
from tableforge_operator.api.spec.prometheus import PodMonitor, PrometheusRule


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
    retry_attempts: Annotated[int, optional_setting("scaling.retry_attempts")] | None = None
    retry_delay: Annotated[Duration, optional_setting("scaling.retry_delay_seconds")] | None = None


class Performance(Group, frozen=True):
    """How publishes are batched on their way to Redis, and messages compressed on theirs to the clients."""

    batch_message_delay: Annotated[Duration, setting("performance.batch_message_delay_seconds")] = default_of(
        "performance.batch_message_delay_seconds"
    )
    max_batch_size: Annotated[int, setting("performance.max_batch_size")] = default_of(
        "performance.max_batch_size"
    )
    enable_message_queuing: (
        Annotated[
            bool,
            optional_setting(
                "performance.enable_message_queuing",
                "Whether publishes wait while Redis is away or refuses for now, and are acknowledged late. "
                "`false`: they are refused at once, and the client tries again.",
            ),
        ]
        | None
    ) = None
    queue_flush_interval: (
        Annotated[Duration, optional_setting("performance.queue_flush_interval_seconds")] | None
    ) = None
    enable_compression: Annotated[bool, optional_setting("performance.enable_compression")] | None = None
    compression_threshold: (
        Annotated[
            int,
            optional_setting(
                "performance.compression_threshold_bytes",
                "Messages shorter than this are sent uncompressed, in bytes.",
            ),
        ]
        | None
    ) = None


class Monitoring(Group, frozen=True):
    """What the instances say of themselves, and from when on they count as being under pressure."""

    log_level: Annotated[settings.LogLevel, setting("logging.level")] = default_of("logging.level")
    log_format: Annotated[settings.LogFormat, setting("logging.format")] = default_of("logging.format")
    enable_detailed_logging: (
        Annotated[bool, optional_setting("monitoring.enable_detailed_logging")] | None
    ) = None
    enable_metrics: Annotated[bool, optional_setting("monitoring.enable_metrics")] | None = None
    metrics_interval: Annotated[Duration, optional_setting("monitoring.metrics_interval_seconds")] | None = (
        None
    )
    health_check_interval: (
        Annotated[Duration, optional_setting("monitoring.health_check_interval_seconds")] | None
    ) = None
    memory_threshold: (
        Annotated[
            str,
            field(
                "Memory above which an instance warns; an eighth above it new connections are refused, three "
                "sixteenths above it the slowest consumers are closed. Default: 80 % of the pod's memory "
                "limit, or 512Mi where it has none.",
                Rule(
                    f"self.matches('^{BINARY_PATTERN}$') && quantity(self).compareTo(quantity('1Ti')) <= 0",
                    "must be a whole number of Mi or Gi up to 1024Gi, such as 400Mi",
                ),
                max_length=8,
            ),
        ]
        | None
    ) = None
    loop_lag_threshold: (
        Annotated[Duration, optional_setting("monitoring.loop_lag_threshold_seconds")] | None
    ) = None
    pod_monitor: PodMonitor = PodMonitor()
    prometheus_rule: PrometheusRule = PrometheusRule()


class LoadBalancing(Group, frozen=True):
    """Which instance is given what, and how connections move the least number of instances."""

    strategy: Annotated[
        settings.PlacementStrategy,
        setting(
            "load_balancing.strategy",
            "Which instance becomes a new room's home where routing.mode is `Gateway`: `RoundRobin`, each "
            "in turn; `LeastConnections`, the one with the fewest connections for its capacity; `Weighted`, "
            "the same by the instances' weights: the CPU that pod.resources requests, or the annotation "
            "tableforge.io/weight of a pod. Rebalancing goes by weights too where it is `Weighted`.",
        ),
    ] = default_of("load_balancing.strategy")
    max_connections_per_instance: (
        Annotated[
            int,
            optional_setting(
                "load_balancing.max_connections_per_instance",
                "The most connections an instance is given; the smaller of this and websocket.maxConnections "
                "counts.",
            ),
        ]
        | None
    ) = None
    connection_threshold: Annotated[
        float,
        field(
            "Share of an instance's connections from which on it counts as full: with autoscaling, at least "
            "so many instances run that none is fuller on average.",
            # The API server cuts the bound for a whole number, such as 0.
            Rule("self >= 0.05", "must be from 0.05 to 1"),
            ge=0.05,
            le=1,
        ),
    ] = 0.8
    scale_up_cooldown: Annotated[
        Duration,
        duration(
            "How long after connections have changed the least number of instances they don't raise it. An "
            "autoscaled fleet that has no room left does not wait.",
            low=Duration.parse("1s"),
            high=Duration.parse("24h"),
        ),
    ] = Duration.parse("5m")
    scale_down_cooldown: Annotated[
        Duration,
        duration(
            "For how long fewer instances must have been enough before their number is lowered, and how long "
            "it stays after connections have changed it. For CPU and memory at most 1h of it counts.",
            low=Duration.parse("1s"),
            high=Duration.parse("24h"),
        ),
    ] = Duration.parse("10m")


class Clustering(Group, frozen=True):
    """When an instance counts as dead, and how load is kept even among those that live."""

    failover_timeout: Annotated[Duration, setting("scaling.failover_timeout_seconds")] = default_of(
        "scaling.failover_timeout_seconds"
    )
    enable_load_rebalancing: Annotated[
        bool,
        field(
            "Whether load that has become uneven is made even: rooms get other homes where routing.mode is "
            "`Gateway`, clients are sent to other instances where it is `Service`. Switched off, "
            "nothing more begins: rooms that are on the way arrive, and who sends clients elsewhere stops.",
        ),
    ] = True
    rebalance_threshold: Annotated[
        float,
        field(
            "How uneven load may be: the difference between the most and the least loaded instance, as a "
            "share of the mean. From 0.05 to 10.",
            # The API server cuts the bound for a whole number, such as 0.
            Rule("self >= 0.05", "must be from 0.05 to 10"),
            ge=0.05,
            le=10,
        ),
    ] = 0.3
    rebalance_interval: Annotated[
        Duration,
        duration(
            "How long at least lies between two times that clients are made to move for it.",
            low=Duration.parse("10s"),
            high=Duration.parse("24h"),
        ),
    ] = Duration.parse("1m")
    max_moves_per_cycle: Annotated[
        int,
        field("The most rooms that get another home at a time.", ge=1, le=MOST_MOVES),
    ] = 50
    move_cooldown: Annotated[
        Duration,
        duration(
            "How long a room stays where it was moved to.",
            low=Duration.parse("1s"),
            high=Duration.parse("24h"),
        ),
    ] = Duration.parse("10m")
