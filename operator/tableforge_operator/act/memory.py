"""What the operator remembers of its own doing for one cluster. It is lost at a restart, and may be."""

import asyncio
import dataclasses

from tableforge_operator.decide.snapshot import Applied, ChildKey, FleetView, Refusal
from tableforge_operator.observe.fleet import Addressees


@dataclasses.dataclass(kw_only=True)
class Memory:
    """Belongs to one CR, by uid: another one of the same name starts anew."""

    uid: str
    applied: dict[ChildKey, Applied] = dataclasses.field(default_factory=dict)
    refusals: dict[ChildKey, Refusal] = dataclasses.field(default_factory=dict)
    secrets_created: set[str] = dataclasses.field(default_factory=set)
    secrets_doubted_at: float | None = None
    """When an instance last missed one of them, so that they were created anew (monotonic)."""
    counters_at: float | None = None
    """When connections and rooms were last written (monotonic)."""
    fleet: FleetView = FleetView()
    fleet_asked_at: float | None = None
    """When the fleet was last asked (monotonic)."""
    fleet_asked: Addressees | None = None
    """Who could be asked then."""
    asking: "asyncio.Task[FleetView] | None" = None
    """The question to the fleet that is under way, or whose answer nobody has taken yet."""
    told: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    """When each Event, by reason and message, was last told (monotonic)."""
