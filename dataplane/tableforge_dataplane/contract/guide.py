"""The settings of the original configuration guide, and what each of them is here.

Every name in the guide is in one of the two tables: it stands for a setting, or has no use, with the reason.
A variable of the latter kind is accepted with a warning, so that an environment that was written for the
original still starts an instance.
"""

from collections.abc import Mapping
from typing import Final

HERE: Final[Mapping[str, str]] = {
    "redis.host": "redis.host",
    "redis.port": "redis.port",
    "redis.password": "redis.password",
    "redis.db": "redis.database",
    "redis.retryDelayOnFailover": "redis.retry_delay_on_failover_seconds",
    "redis.maxRetriesPerRequest": "redis.max_retries_per_request",
    "redis.lazyConnect": "redis.lazy_connect",
    "websocket.port": "websocket.port",
    "websocket.host": "websocket.host",
    "websocket.maxConnections": "websocket.max_connections",
    "websocket.pingInterval": "websocket.ping_interval_seconds",
    "websocket.pongTimeout": "websocket.pong_timeout_seconds",
    "wsConfig.maxPayload": "websocket.max_payload_bytes",
    "wsConfig.perMessageDeflate.zlibDeflateOptions.threshold": "performance.compression_threshold_bytes",
    "scaling.instanceId": "scaling.instance_id",
    "scaling.heartbeatInterval": "scaling.heartbeat_interval_seconds",
    "scaling.cleanupInterval": "scaling.cleanup_interval_seconds",
    "scaling.inactiveThreshold": "scaling.inactive_threshold_seconds",
    "scaling.messageQueueSize": "scaling.message_queue_size",
    "scaling.retryAttempts": "scaling.retry_attempts",
    "scaling.retryDelay": "scaling.retry_delay_seconds",
    "auth.required": "auth.required",
    "auth.jwtSecret": "auth.jwt_secret",
    "auth.tokenExpiry": "auth.token_expiry_seconds",
    "loadBalancing.strategy": "load_balancing.strategy",
    "loadBalancing.maxConnectionsPerInstance": "load_balancing.max_connections_per_instance",
    "performance.enableCompression": "performance.enable_compression",
    "performance.compressionThreshold": "performance.compression_threshold_bytes",
    "performance.batchMessageDelay": "performance.batch_message_delay_seconds",
    "performance.maxBatchSize": "performance.max_batch_size",
    "performance.enableMessageQueuing": "performance.enable_message_queuing",
    "performance.queueFlushInterval": "performance.queue_flush_interval_seconds",
    "monitoring.enableMetrics": "monitoring.enable_metrics",
    "monitoring.metricsInterval": "monitoring.metrics_interval_seconds",
    "monitoring.healthCheckInterval": "monitoring.health_check_interval_seconds",
    "monitoring.enableDetailedLogging": "monitoring.enable_detailed_logging",
    "monitoring.logLevel": "logging.level",
    "LOG_FORMAT": "logging.format",
    "security.enableRateLimiting": "security.enable_rate_limiting",
    "security.maxMessagesPerSecond": "security.max_messages_per_second",
    "security.maxMessagesPerMinute": "security.max_messages_per_minute",
    "security.enableConnectionLimiting": "security.enable_connection_limiting",
    "security.maxConnectionsPerIP": "security.max_connections_per_ip",
    "security.enableDDoSProtection": "security.enable_ddos_protection",
    "clustering.failoverTimeout": "scaling.failover_timeout_seconds",
}
"""The guide's name → the setting, `group.field`."""

_NOT_AN_INSTANCES: Final = "an instance decides nothing about it:"

WITHOUT_USE: Final[Mapping[str, tuple[str, str]]] = {
    "redis.pubSubDb": (
        "REDIS_PUBSUB_DB",
        (
            "Redis Pub/Sub ignores database numbers. Use TABLEFORGE_REDIS_KEY_PREFIX to keep clusters on one "
            "Redis apart."
        ),
    ),
    "wsConfig.perMessageDeflate.zlibDeflateOptions.concurrencyLimit": (
        "TABLEFORGE_PERFORMANCE_COMPRESSION_CONCURRENCY_LIMIT",
        "a message is compressed once for all its recipients, where it is sent, and waits for no thread.",
    ),
    "wsConfig.perMessageDeflate.zlibDeflateOptions.chunkSize": (
        "TABLEFORGE_PERFORMANCE_COMPRESSION_CHUNK_SIZE",
        "a message is compressed in one piece: its size is bounded.",
    ),
    "wsConfig.skipUTF8Validation": (
        "TABLEFORGE_WEBSOCKET_SKIP_UTF8_VALIDATION",
        "text is always validated: one broken message in a room's log would break all its recipients.",
    ),
    "loadBalancing.connectionThreshold": (
        "TABLEFORGE_LOAD_BALANCING_CONNECTION_THRESHOLD",
        f"{_NOT_AN_INSTANCES} the operator does, with `spec.autoscaling`.",
    ),
    "loadBalancing.scaleUpCooldown": (
        "TABLEFORGE_LOAD_BALANCING_SCALE_UP_COOLDOWN",
        f"{_NOT_AN_INSTANCES} the operator does, with `spec.autoscaling`.",
    ),
    "loadBalancing.scaleDownCooldown": (
        "TABLEFORGE_LOAD_BALANCING_SCALE_DOWN_COOLDOWN",
        f"{_NOT_AN_INSTANCES} the operator does, with `spec.autoscaling`.",
    ),
    "clustering.enableAutoDiscovery": (
        "TABLEFORGE_CLUSTERING_ENABLE_AUTO_DISCOVERY",
        (
            "instances find one another through Redis, always: those on one TABLEFORGE_REDIS_KEY_PREFIX are "
            "one cluster."
        ),
    ),
    "clustering.discoveryInterval": (
        "TABLEFORGE_CLUSTERING_DISCOVERY_INTERVAL",
        "an instance is known from its first HEARTBEAT_INTERVAL on; nobody has to look for it.",
    ),
    "clustering.enableFailover": (
        "TABLEFORGE_CLUSTERING_ENABLE_FAILOVER",
        (
            "it is always on: clients of an instance that died recover on any other. How soon it counts as "
            "dead is TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT."
        ),
    ),
    "clustering.enableLoadRebalancing": (
        "TABLEFORGE_CLUSTERING_ENABLE_LOAD_REBALANCING",
        f"{_NOT_AN_INSTANCES} the operator does.",
    ),
    "clustering.rebalanceThreshold": (
        "TABLEFORGE_CLUSTERING_REBALANCE_THRESHOLD",
        f"{_NOT_AN_INSTANCES} the operator does.",
    ),
    "DEBUG": ("", "`LOG_LEVEL=debug` does it; DEBUG is left to other programs."),
}
"""The guide's name → (the variable it would have, "" where it isn't ours; why it has no use)."""
