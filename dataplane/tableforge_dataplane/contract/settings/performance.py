"""`Settings.performance`."""

import dataclasses

from tableforge_dataplane.contract.settings.declaration import Unit, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerformanceSettings:
    """Batching of publishes."""

    batch_message_delay_seconds: float = setting(
        0.010,
        "TABLEFORGE_PERFORMANCE_BATCH_MESSAGE_DELAY",
        "The longest a publish waits for others while a batch is "
        "in flight; an idle publisher waits for nothing.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=1000,
    )
    max_batch_size: int = setting(
        100,
        "TABLEFORGE_PERFORMANCE_MAX_BATCH_SIZE",
        "The most publishes in one batch.",
        minimum=1,
        maximum=1000,
    )
    enable_message_queuing: bool = setting(
        True,
        "TABLEFORGE_PERFORMANCE_ENABLE_MESSAGE_QUEUING",
        "Whether publishes wait while Redis is away or refuses for now, and are acknowledged late; `false`: "
        "they are refused with `unavailable` at once.",
    )
    queue_flush_interval_seconds: float = setting(
        0.1,
        "TABLEFORGE_PERFORMANCE_QUEUE_FLUSH_INTERVAL",
        "How often publishes that wait for a Redis that refuses for now are looked at: whether their next "
        "attempt is due, one publish alone, the rest after it.",
        unit=Unit.MILLISECONDS,
        minimum=10,
        maximum=60_000,
    )
    enable_compression: bool = setting(
        True,
        "TABLEFORGE_PERFORMANCE_ENABLE_COMPRESSION",
        "Whether clients that offer permessage-deflate get it; always without context takeover, so that a "
        "message is compressed once for all of them.",
    )
    compression_threshold_bytes: int = setting(
        1024,
        "TABLEFORGE_PERFORMANCE_COMPRESSION_THRESHOLD",
        "Messages shorter than this are sent uncompressed.",
        unit=Unit.BYTES,
        minimum=64,
        maximum=1_048_576,
    )
