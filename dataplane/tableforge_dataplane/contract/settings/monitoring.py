"""`Settings.monitoring`."""

import dataclasses

from tableforge_dataplane.contract.settings.declaration import Unit, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitoringSettings:
    """What an instance says about itself, and from when on it counts as being under pressure."""

    enable_metrics: bool = setting(
        True,
        "TABLEFORGE_MONITORING_ENABLE_METRICS",
        "Whether `/metrics` answers on the internal port.",
        live=True,
    )
    metrics_interval_seconds: float = setting(
        60.0,
        "TABLEFORGE_MONITORING_METRICS_INTERVAL",
        "How often the instance writes its most important numbers into its log. 0: never.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=3_600_000,
        live=True,
    )
    health_check_interval_seconds: float = setting(
        30.0,
        "TABLEFORGE_MONITORING_HEALTH_CHECK_INTERVAL",
        "How often the instance looks at its own health; what changed is logged.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=3_600_000,
        live=True,
    )
    enable_detailed_logging: bool = setting(
        False,
        "TABLEFORGE_MONITORING_ENABLE_DETAILED_LOGGING",
        "Whether each connection's beginning and end is logged, with its user and close code.",
        live=True,
    )
    memory_threshold_bytes: int = setting(
        0,
        "TABLEFORGE_MONITORING_MEMORY_THRESHOLD_BYTES",
        "Resident memory above which the instance warns; an eighth above it new connections are refused, "
        "three sixteenths above it the slowest consumers are closed. 0: 80 % of the container's limit, "
        "or 512 MB where there is none.",
        unit=Unit.BYTES,
        minimum=0,
        maximum=1_099_511_627_776,
        live=True,
    )
    loop_lag_threshold_seconds: float = setting(
        0.25,
        "TABLEFORGE_MONITORING_LOOP_LAG_THRESHOLD",
        "Delay of the event loop, averaged over five seconds, above which the instance warns; at four times "
        "as much new connections are refused, at eight times the slowest consumers are closed.",
        unit=Unit.MILLISECONDS,
        minimum=10,
        maximum=60_000,
        live=True,
    )
