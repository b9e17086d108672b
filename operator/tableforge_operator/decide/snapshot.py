"""What is known of one cluster at one moment: everything that a decision is made from."""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any, TypeAlias

from tableforge_dataplane.contract.fleet import Fleet, Health, InstanceOrder
from tableforge_operator.decide.reasons import RefusalReason
from tableforge_operator.decide.rebalancing.state import Turn
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.resources.surroundings import Surroundings

Object: TypeAlias = Mapping[str, Any]
ChildKey: TypeAlias = tuple[str, str]
"""Kind and name of a child; its namespace is the cluster's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Now:
    """The time of a decision."""

    wall: dt.datetime
    """UTC, for what is compared with times that others wrote."""
    monotonic: float
    """Seconds of a clock that never jumps, for everything else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Applied:
    """What the last apply of a child sent and got back."""

    digest: str
    fields: str
    """Our entry of `managedFields` (`ownership.applied_fields`)."""
    uid: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why the last attempt to create or apply a child came to nothing."""

    reason: RefusalReason
    message: str
    digest: str
    """What was to be applied; a refusal of something else says nothing about the present."""
    attempts: int
    retry_at: float
    """`Now.monotonic` of the next attempt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repairs:
    """How often a child has been set back, one time soon after another."""

    count: int
    at: float
    """`Now.monotonic` of the last time."""
    retry_at: float
    """`Now.monotonic` before which it is not set back again."""
    manager: str
    """The field manager that had changed it."""
    field: str
    """Which field, as a path."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FleetView:
    """What the instances said when they were last asked."""

    fleet: Fleet | None = None
    """The fleet by the word of one instance; None where none could tell."""
    fleet_at: float = 0.0
    """`Now.monotonic` of the answer that `fleet` is from; it may be older than the last question."""
    healths: tuple[Health, ...] = ()
    """Where no instance is ready: what single ones say of themselves."""
    failures: tuple[str, ...] = ()
    """Why instances that should have answered didn't, a sentence each."""
    secrets_doubted: bool = False
    """Whether what an instance says may come of a Secret which the operator made and which is gone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sent:
    """The last order that an instance's fleet has taken."""

    order: InstanceOrder
    boot: str
    at: float
    """`Now.monotonic`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One cluster, its children, its fleet, and what the operator remembers of its own doing."""

    cluster: Object
    """The WebSocketCluster as the API server has it."""
    children: Mapping[ChildKey, Object] = dataclasses.field(default_factory=dict)
    """The objects this cluster controls."""
    pods: tuple[Object, ...] = ()
    """Its pods, those of a managed Redis included."""
    replica_sets: tuple[Object, ...] = ()
    """Those of its Deployments, former ones included; of each only what its pods start with."""
    claims: tuple[Object, ...] = ()
    """The claims of a managed Redis's volumes."""
    blind: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Kinds that cannot be watched, and why: what of them exists is not known."""
    surroundings: Surroundings = Surroundings()
    ingress_class_missing: bool = False
    """Whether the IngressClass that the spec names is known not to exist."""
    storage_class_missing: bool = False
    """Whether the StorageClass that the claim of a managed Redis waits for is known not to exist."""
    redis_pod_refused: str = ""
    """Why the pod of a managed Redis cannot be made, in the API server's words; empty where none is known."""
    fleet: FleetView = FleetView()
    applied: Mapping[ChildKey, Applied] = dataclasses.field(default_factory=dict)
    refusals: Mapping[ChildKey, Refusal] = dataclasses.field(default_factory=dict)
    repairs: Mapping[ChildKey, Repairs] = dataclasses.field(default_factory=dict)
    secrets_created: frozenset[str] = frozenset()
    """Names of the Secrets that are known to exist."""
    floor: Floor | None = None
    """Of an autoscaled cluster, as last decided; None where not since the start."""
    costs_failed_at: float | None = None
    """`Now.monotonic` when a pod's deletion cost could last not be written."""
    costs_written_at: float | None = None
    """`Now.monotonic` when one was last written; None where none was since the start."""
    counters_at: float | None = None
    """`Now.monotonic` when connections and rooms were last written; None where not since the start."""
    markings_failed_at: float | None = None
    """`Now.monotonic` when a pod's labels and annotations could last not be written."""
    markings_refused: str = ""
    """Why; empty where the last write worked."""
    orders_sent: Mapping[str, Sent] = dataclasses.field(default_factory=dict)
    """By instance."""
    forgotten: frozenset[str] = frozenset()
    """Instances that the fleet was told to forget."""
    forget_at: float = 0.0
    """`Now.monotonic` before which nobody else is forgotten."""
    command_refused: str = ""
    """Why the fleet did not take the last command; empty where it did."""
    command_retry_at: float = 0.0
    """`Now.monotonic` before which none is sent."""
    rebalance: Turn | None = None
    """What the planner says of the load now; None where it has not been asked."""
    rebalance_at: float | None = None
    """`Now.monotonic` when that was last written to the status; None where not since the start."""
