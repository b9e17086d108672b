# ruff: noqa: RUF012  (msgspec copies a default that is an empty list)
"""The `status` of a WebSocketCluster: what the operator found."""

from typing import Annotated, Any, Final, Literal

import msgspec

from tableforge_operator.api.fields import Group, field

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Replicas = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]

INSTANCES_SHOWN: Final = 50
"""Of more, the emptiest are only counted: each costs 200 bytes in an object that everybody watches."""
INSTANCE_NAME_LENGTH: Final = 253
VERSION_LENGTH: Final = 64


class Condition(Group, frozen=True):
    """One aspect of the cluster's state, as kstatus and `kubectl wait` read it."""

    type: Annotated[
        str,
        field(
            "`Ready`, `Reconciling`, `Stalled`, `RedisReady`, `Balanced` or `Autoscaled`.",
            min_length=1,
            max_length=316,
        ),
    ]
    status: Annotated[
        Literal["True", "False", "Unknown"], field("Whether it is so. Reconciling and Stalled go when over.")
    ]
    reason: Annotated[
        str,
        field(
            "One word for why.",
            pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            min_length=1,
            max_length=1024,
        ),
    ]
    message: Annotated[str, field("What is so, and what to do where something is wrong.", max_length=32768)]
    last_transition_time: Annotated[
        str, field("When `status` last changed.", schema={"format": "date-time"}, max_length=64)
    ]
    observed_generation: Annotated[_Count | None, field("The generation of the spec that this is about.")] = (
        None
    )


class RedisStatus(Group, frozen=True, omit_defaults=True):
    """The Redis in use, as the instances see it."""

    durability: Annotated[
        Annotated[str, msgspec.Meta(max_length=32)] | None,
        field("What an acknowledgement means right now: `Memory`, `Disk`, `Replica` or `Disk+Replica`."),
    ] = None
    version: Annotated[
        Annotated[str, msgspec.Meta(max_length=64)] | None, field("Version that Redis reports.")
    ] = None
    storage: Annotated[
        Annotated[str, msgspec.Meta(max_length=64)] | None,
        field("How large the volume of a managed Redis is."),
    ] = None


class InstanceStatus(Group, frozen=True, omit_defaults=True, kw_only=True):
    """One instance that is alive, by its own word."""

    name: Annotated[str, field("The instance, which is its pod.", max_length=INSTANCE_NAME_LENGTH)]
    track: Annotated[Literal["a", "b"] | None, field("Which of the two fleets it is of.")] = None
    ready: Annotated[
        bool | None, field("Whether its pod is ready and stays. Left out while pods cannot be seen.")
    ] = None
    accepting: Annotated[
        bool, field("Whether it takes clients and rooms that could go elsewhere: no cordon, and no drain.")
    ]
    draining: Annotated[bool, field("Whether it is leaving, and sends its clients elsewhere.")]
    connections: Annotated[_Count, field("Connections to it.")]
    rooms: Annotated[_Count, field("Rooms with at least one member on it.")]
    version: Annotated[str, field("Version that it runs.", max_length=VERSION_LENGTH)]


class RebalanceStatus(Group, frozen=True, omit_defaults=True):
    """How load is kept even among the instances."""

    phase: Annotated[
        Literal["Idle", "Rebalancing", "Stopped", "Blocked"] | None,
        field(
            "`Idle`; `Rebalancing`, a plan is being carried out; `Stopped`, by "
            "`clustering.enableLoadRebalancing`; `Blocked`, by what the condition `Balanced` says."
        ),
    ] = None
    moves_planned: Annotated[
        _Count | None,
        field(
            "Rooms that the last plan was to move; in `routing.mode` `Service` instances that were to send "
            "clients elsewhere."
        ),
    ] = None
    moves_done: Annotated[_Count | None, field("Those of them that have been.")] = None
    moves_failed: Annotated[_Count | None, field("Those of them that were begun and could not be.")] = None
    spread_before: Annotated[
        Annotated[float, msgspec.Meta(ge=0)] | None,
        field("How uneven load was before that: (most - least) / mean."),
    ] = None
    spread: Annotated[Annotated[float, msgspec.Meta(ge=0)] | None, field("How uneven it is: likewise.")] = (
        None
    )
    last_plan_at: Annotated[
        Annotated[str, msgspec.Meta(max_length=64)] | None,
        field("When the last plan was made.", schema={"format": "date-time"}),
    ] = None
    last_request: Annotated[
        Annotated[str, msgspec.Meta(max_length=64)] | None,
        field("The value of the annotation tableforge.io/rebalance that was last acted on."),
    ] = None


class Status(Group, frozen=True, omit_defaults=True):
    """What the operator found. Written by the operator only."""

    observed_generation: Annotated[
        int,
        field(
            "The generation of the spec that this is about; -1 while nobody has looked yet.",
            ge=-1,
            le=2**53,
        ),
    ] = -1
    conditions: Annotated[
        list[Condition],
        field(
            "The cluster's state, a condition for each aspect.",
            schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
            max_length=16,
        ),
    ] = []
    replicas: Annotated[_Replicas | None, field("Pods that exist.")] = None
    ready_replicas: Annotated[_Replicas | None, field("Pods that are ready.")] = None
    selector: Annotated[
        Annotated[str, msgspec.Meta(max_length=1024)] | None,
        field("Label selector of the pods, for the scale subresource."),
    ] = None
    instances: Annotated[_Replicas | None, field("Instances that are alive, by their leases in Redis.")] = (
        None
    )
    connections: Annotated[_Count | None, field("Connections over all instances.")] = None
    rooms: Annotated[_Count | None, field("Rooms with at least one member, each counted once.")] = None
    instance_table: Annotated[
        list[InstanceStatus],
        field(
            f"The instances that are alive, the fullest {INSTANCES_SHOWN} of them, fullest first.",
            schema={"x-kubernetes-list-type": "atomic"},
            max_length=INSTANCES_SHOWN,
        ),
    ] = []
    instances_not_shown: Annotated[
        _Replicas | None, field("How many are alive besides those in `instanceTable`.")
    ] = None
    url: Annotated[
        Annotated[str, msgspec.Meta(max_length=512)] | None,
        field("Where clients inside the Kubernetes cluster connect."),
    ] = None
    active_track: Annotated[
        Literal["a", "b"] | None, field("Which of the two fleets the client Service points to.")
    ] = None
    redis: Annotated[RedisStatus | None, field("The Redis in use, as the instances see it.")] = None
    rebalance: Annotated[RebalanceStatus | None, field("How load is kept even among the instances.")] = None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the object: camelCase, unset fields left out."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        found["observedGeneration"] = self.observed_generation
        return found
