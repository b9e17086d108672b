"""The data plane: the WebSocket server that runs in each pod of a `WebSocketCluster`."""
