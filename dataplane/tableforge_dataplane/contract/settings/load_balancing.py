"""`Settings.load_balancing`."""

import dataclasses
from typing import Literal

from tableforge_dataplane.contract.settings.declaration import setting

PlacementStrategy = Literal["RoundRobin", "LeastConnections", "Weighted"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadBalancingSettings:
    """How much each instance is given."""

    strategy: PlacementStrategy = setting(
        "RoundRobin",
        "TABLEFORGE_LOAD_BALANCING_STRATEGY",
        "Which instance becomes a new room's home where TABLEFORGE_ROUTING_MODE is Gateway: `RoundRobin`, "
        "each in turn; `LeastConnections`, the one with the fewest connections for its capacity; `Weighted`, "
        "the same by TABLEFORGE_ROUTING_WEIGHT.",
    )
    max_connections_per_instance: int = setting(
        2000,
        "TABLEFORGE_LOAD_BALANCING_MAX_CONNECTIONS_PER_INSTANCE",
        "The most connections an instance is given; the smaller of this and WS_MAX_CONNECTIONS counts.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
