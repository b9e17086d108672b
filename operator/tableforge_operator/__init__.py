"""The operator: turns `WebSocketCluster` objects into running fleets and tells how they fare."""
