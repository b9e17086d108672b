"""One word for why: all reasons of conditions and Events. `docs/operations.md` explains each."""

from typing import Literal

from tableforge_operator.decide.rebalancing import state as rebalancing

RefusalReason = Literal[
    "ApiUnavailable",
    "Forbidden",
    "NameConflict",
    "NotServed",
    "PolicyDenied",
    "QuotaExceeded",
    "Rejected",
    "StorageNotGrown",
    "WaitingForDeletion",
]
"""Why a child could not be created, changed or deleted. `NotServed` is about kinds that a cluster can do
without, and is told to nobody.
"""

RedisTrouble = Literal[
    "RedisAuthenticationFailed",
    "RedisConnecting",
    "RedisDurabilityNotMet",
    "RedisOutOfMemory",
    "RedisPasswordMissing",
    "RedisPrefixClaimed",
    "RedisReadOnly",
    "RedisUnreachable",
    "RedisVersionTooOld",
]
"""The instances' own words for a Redis that cannot be used (`contract.fleet.RedisState`), with its name."""

FindingReason = (
    RedisTrouble
    | Literal[
        "ApiUnavailable",
        "Blind",
        "ConfigMapMissing",
        "Creating",
        "EnvironmentMissing",
        "FleetUnreachable",
        "Forbidden",
        "GatewayApiMissing",
        "ImagePullFailed",
        "IngressClassMissing",
        "InstancesWaiting",
        "Invalid",
        "LimitRangeViolated",
        "NameConflict",
        "PasswordChanging",
        "PolicyDenied",
        "PriorityClassMissing",
        "ProgressDeadlineExceeded",
        "QuotaExceeded",
        "RedisStarting",
        "Rejected",
        "RollingOut",
        "RouteRefused",
        "RouteWaiting",
        "ScalingDown",
        "SecretMissing",
        "StorageClassMissing",
        "StorageGrowing",
        "StorageNotGrown",
        "Unschedulable",
        "WaitingForDeletion",
    ]
)
"""Why a cluster is not Ready: of `Ready`, `Reconciling` and `Stalled`."""

ReadyReason = FindingReason | Literal["InstancesReady"]

RedisReason = RedisTrouble | Literal["Connected", "NoAnswer", "NoInstances", "RedisStarting"]
"""Of `RedisReady`."""

BalancedReason = rebalancing.Reason

AutoscaledReason = Literal[
    "AtMaximum",
    "CannotScale",
    "Connections",
    "Creating",
    "Measuring",
    "MetricsMissing",
    "WithinLimits",
]

ConditionReason = ReadyReason | RedisReason | BalancedReason | AutoscaledReason

NewsReason = (
    rebalancing.NewsReason
    | Literal[
        "AllCordoned",
        "AllFull",
        "AnnotationIgnored",
        "Created",
        "Deleted",
        "DrainTooShort",
        "DriftRepaired",
        "FieldContested",
        "FloorLowered",
        "FloorRaised",
        "NotReady",
        "OrdersNotTaken",
        "PodsNotWritten",
        "Ready",
        "RedisConnected",
        "RedisNotReady",
        "RolloutCompleted",
        "RolloutStarted",
        "RolloutUndone",
        "TrackSwitched",
    ]
)
"""Of Events that tell what no condition has as its reason."""

EventReason = FindingReason | NewsReason
