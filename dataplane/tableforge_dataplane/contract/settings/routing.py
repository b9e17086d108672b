"""`Settings.routing`."""

import dataclasses
from typing import Literal

from tableforge_dataplane.contract.settings.declaration import setting

RoutingMode = Literal["Service", "Gateway"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingSettings:
    """Whether clients can reach a particular instance, so that rooms can have homes."""

    mode: RoutingMode = setting(
        "Service",
        "TABLEFORGE_ROUTING_MODE",
        "`Service`: one address for all instances, clients stay where a balancer put them. `Gateway`: each "
        "instance has an address of its own as well, each room a home, and clients move to where theirs is.",
    )
    address: str = setting(
        "",
        "TABLEFORGE_ROUTING_ADDRESS",
        "Where clients reach this instance and no other, where TABLEFORGE_ROUTING_MODE is Gateway: a path on "
        "the host they use already, such as /i/tables-1/ws, or a whole URL such as ws://localhost:4001/ws. "
        "Empty: the operator tells it.",
        pattern=r"(?:(?:wss?://[A-Za-z0-9._:\[\]-]{1,253})?/[A-Za-z0-9._~/-]{0,250})?",
        examples=("/i/tables-1/ws", "wss://tables.example/i/1/ws"),
    )
    weight: int = setting(
        100,
        "TABLEFORGE_ROUTING_WEIGHT",
        "How much this instance carries beside the others where TABLEFORGE_LOAD_BALANCING_STRATEGY is "
        "Weighted; the operator gives the pod's CPU request in thousandths of a core.",
        minimum=1,
        maximum=1_000_000,
    )
