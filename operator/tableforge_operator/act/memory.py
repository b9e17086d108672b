"""What the operator remembers of its own doing for one cluster. It is lost at a restart, and may be."""

import asyncio
import dataclasses

from tableforge_operator.decide.rebalancing.state import State
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.snapshot import Applied, ChildKey, FleetView, Refusal, Repairs, Sent
from tableforge_operator.observe.fleet import Addressees


@dataclasses.dataclass(kw_only=True)
class Memory:
    """Belongs to one CR, by uid: another one of the same name starts anew."""

    uid: str
    applied: dict[ChildKey, Applied] = dataclasses.field(default_factory=dict)
    refusals: dict[ChildKey, Refusal] = dataclasses.field(default_factory=dict)
    repairs: dict[ChildKey, Repairs] = dataclasses.field(default_factory=dict)
    secrets_created: set[str] = dataclasses.field(default_factory=set)
    secrets_doubted: frozenset[str] = frozenset()
    """Those of them that had been created when they last seemed to be gone."""
    secrets_doubted_at: float | None = None
    """When one of them last seemed to be gone, so that they were created anew (monotonic)."""
    floor: Floor | None = None
    """The least number of instances, where the cluster is autoscaled."""
    costs_failed_at: float | None = None
    """When a pod's deletion cost could last not be written (monotonic)."""
    costs_written_at: float | None = None
    """When one was last written (monotonic)."""
    counters_at: float | None = None
    """When connections and rooms were last written (monotonic)."""
    ingress_class_missing: bool = False
    """Whether the IngressClass that the spec names is known not to exist."""
    storage_class_missing: bool = False
    """Whether the StorageClass that the claim of a managed Redis waits for is known not to exist."""
    redis_pod_refused: str = ""
    """Why the pod of a managed Redis cannot be made, in the API server's words; empty where none is known."""
    fleet: FleetView = FleetView()
    fleet_asked_at: float | None = None
    """When the fleet was last asked (monotonic)."""
    fleet_asked: Addressees | None = None
    """Who could be asked then."""
    asking: "asyncio.Task[FleetView] | None" = None
    """The question to the fleet that is under way, or whose answer nobody has taken yet."""
    told: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    """When each Event, by reason and message, was last told (monotonic)."""
    markings_failed_at: float | None = None
    """When a pod's labels and annotations could last not be written (monotonic)."""
    markings_refused: str = ""
    """Why; empty where the last write worked."""
    commanding: "asyncio.Task[None] | None" = None
    """The command to the fleet that is under way."""
    command_failures: int = 0
    """How many in a row the fleet did not take."""
    command_refused: str = ""
    """Why not the last one, where it has been so for a while."""
    command_retry_at: float = 0.0
    """Before when none is sent (monotonic)."""
    orders_sent: dict[str, Sent] = dataclasses.field(default_factory=dict)
    """The last order that was taken, by instance."""
    forgotten: set[str] = dataclasses.field(default_factory=set)
    """Instances that the fleet was told to forget, while there are records of them."""
    forget_at: float = 0.0
    """Before when nobody else is looked up to be forgotten (monotonic)."""
    led_to: set[str] = dataclasses.field(default_factory=set)
    """Instances that have had a Service or a route of their own."""
    rebalancing: State | None = None
    spread: float | None = None
    """How uneven load is; None: nobody knows."""
    """What the planner remembers; None before its first turn."""
    answers: list[tuple[str, dict[str, str]]] = dataclasses.field(default_factory=list)
    """Its commands that the fleet has taken since its last turn, with what became of each room."""
    rebalance_at: float | None = None
    """When news of the load was last written to the status (monotonic)."""
    requested: tuple[str, float] | None = None
    """The request to rebalance that is to be served, and when it was first seen (monotonic)."""
