"""Where Redis is: one server, the primary that sentinels name, or the nodes of a Redis Cluster."""
