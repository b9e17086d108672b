"""Running the data plane without Kubernetes: a Redis of its own, several instances, what to check beforehand.

`embedded` keeps a Valkey in a folder, `supervisor` several instances on consecutive ports; `probe` looks at
Redis and `advice` says what is wrong with what it saw.
"""
