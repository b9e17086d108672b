"""What to do about a cluster: pure functions from a snapshot to a plan."""
