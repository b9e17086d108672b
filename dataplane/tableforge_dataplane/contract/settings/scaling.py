"""`Settings.scaling`."""

import dataclasses

from tableforge_dataplane.contract.settings.declaration import Unit, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingSettings:
    """The instance among the others."""

    instance_id: str = setting(
        "",
        "INSTANCE_ID",
        "This instance's name, unique in the cluster; in Kubernetes the pod's. Empty: made up at the start.",
        pattern=r"[A-Za-z0-9._-]{0,253}",
    )
    heartbeat_interval_seconds: float = setting(
        30.0,
        "HEARTBEAT_INTERVAL",
        "How often the instance writes its record at least.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=3_600_000,
    )
    cleanup_interval_seconds: float = setting(
        60.0,
        "CLEANUP_INTERVAL",
        "How often each instance looks for others that died.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=3_600_000,
    )
    inactive_threshold_seconds: float = setting(
        120.0,
        "INACTIVE_THRESHOLD",
        "How long after its lease ran out an instance's record is kept before it is cleaned up.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=86_400_000,
    )
    failover_timeout_seconds: float = setting(
        30.0,
        "TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT",
        "An instance whose lease was not renewed for this long is "
        "dead; leases are renewed six times as often.",
        unit=Unit.MILLISECONDS,
        minimum=600,
        maximum=3_600_000,
    )
    message_queue_size: int = setting(
        1000,
        "TABLEFORGE_SCALING_MESSAGE_QUEUE_SIZE",
        "How many publishes wait while Redis is away; further ones are refused with `unavailable`.",
        minimum=1,
        maximum=1_000_000,
    )
    retry_attempts: int = setting(
        3,
        "TABLEFORGE_SCALING_RETRY_ATTEMPTS",
        "How often a publish that Redis refuses for now (full, no disk, no replicas) is tried again before "
        "it is answered with `unavailable`; so many failures in a row open the circuit breaker, too.",
        minimum=0,
        maximum=20,
    )
    retry_delay_seconds: float = setting(
        1.0,
        "TABLEFORGE_SCALING_RETRY_DELAY",
        "The wait before the first of those attempts; it doubles with each (at most 30 s), with jitter. "
        "Also how long the circuit breaker stays open at first.",
        unit=Unit.MILLISECONDS,
        minimum=10,
        maximum=30_000,
    )
    drain_seconds: float = setting(
        20.0,
        "TABLEFORGE_SCALING_DRAIN_TIMEOUT",
        "Over how long a leaving instance spreads its clients' reconnects.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=3_600_000,
    )
