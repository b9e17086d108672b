"""The least number of instances of a cluster that is autoscaled."""

import dataclasses
import datetime as dt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Floor:
    """The least number of instances that an autoscaled cluster has, and what the next one is made from."""

    replicas: int
    changed_at: dt.datetime | None = None
    """When connections last moved it; None where they never have."""
    watched_since: float | None = None
    """Since when (monotonic) the connections are known."""
    peaks: tuple[tuple[float, int], ...] = ()
    """When (monotonic) how many instances were needed: the maxima of what is left of the cooldown."""
