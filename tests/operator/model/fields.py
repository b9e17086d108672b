"""Which field of the CR stands for which setting of the data plane."""

# Setting of the data plane → field of the CR. That every field of the model with a setting is here is tested.
FIELDS = {
    "websocket.port": "websocket.port",
    "websocket.max_connections": "websocket.maxConnections",
    "websocket.ping_interval_seconds": "websocket.pingInterval",
    "websocket.pong_timeout_seconds": "websocket.pongTimeout",
    "websocket.max_payload_bytes": "websocket.maxPayloadBytes",
    "redis.port": "redis.external.port",
    "redis.database": "redis.external.database",
    "scaling.heartbeat_interval_seconds": "scaling.heartbeatInterval",
    "scaling.cleanup_interval_seconds": "scaling.cleanupInterval",
    "scaling.inactive_threshold_seconds": "scaling.inactiveThreshold",
    "scaling.message_queue_size": "scaling.messageQueueSize",
    "scaling.failover_timeout_seconds": "clustering.failoverTimeout",
    "scaling.drain_seconds": "rollout.drainTimeout",
    "performance.batch_message_delay_seconds": "performance.batchMessageDelay",
    "performance.max_batch_size": "performance.maxBatchSize",
    "logging.level": "monitoring.logLevel",
    "logging.format": "monitoring.logFormat",
    "security.max_messages_per_second": "security.maxMessagesPerSecond",
    "security.max_messages_per_minute": "security.maxMessagesPerMinute",
    "security.max_bytes_per_second": "security.maxBytesPerSecond",
    "security.max_rooms_per_connection": "security.maxRoomsPerConnection",
}
# The data plane alone lets everybody in unless told otherwise; on Kubernetes it is the other way round.
OTHERWISE = {"auth.required"}
# Where Kubernetes asks for more than the data plane does: ports below 1024 need a privilege.
RAISED_MINIMUM = {"websocket.port": 1024}
