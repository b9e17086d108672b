"""From Kubernetes' words to the field of the spec and what to do about it.

Only the cluster knows its quotas, classes, registries and policies. What it says of them names neither a
WebSocketCluster nor a field of one.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Final

from tableforge_operator.decide.findings import Finding
from tableforge_operator.decide.reasons import FindingReason
from tableforge_operator.decide.status import WORTH_A_WARNING

_ABOUT_PODS: Final = frozenset({"RollingOut", "RedisStarting"})
"""Reasons of findings that carry what Kubernetes says of pods. All others have been advised on already."""
_QUOTA: Final = "QuotaExceeded"
_POLICY: Final = "PolicyDenied"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known:
    """Words of Kubernetes, and what they mean here. `{1}` in a fix is the pattern's first group."""

    pattern: re.Pattern[str]
    reason: FindingReason
    fix: str
    redis: str | None = None
    """The fix where it is about the pod of a managed Redis; None where it is the same."""


def _known(pattern: str, reason: FindingReason, fix: str, redis: str | None = None) -> _Known:
    return _Known(pattern=re.compile(pattern), reason=reason, fix=fix, redis=redis)


_OF_PODS: Final = (
    _known(
        r"failed to create PVC .*exceeded quota: ([^,\s]+)",
        _QUOTA,
        "Lower spec.redis.managed.storage.size, or have ResourceQuota {1} raised",
    ),
    _known(
        r"failed to create PVC .*(?:maximum|minimum) \S+ usage per",
        "LimitRangeViolated",
        "Choose a spec.redis.managed.storage.size that fits the namespace's LimitRange, or have that changed",
    ),
    _known(
        r"exceeded quota: ([^,\s]+)",
        _QUOTA,
        "Lower spec.pod.resources or spec.replicas, or have ResourceQuota {1} raised",
        "Lower spec.redis.managed.maxMemory, or have ResourceQuota {1} raised",
    ),
    _known(
        r"failed quota: ([^,\s]+): must specify ([a-z.]+)",
        _QUOTA,
        "ResourceQuota {1} asks for {2}: set it in spec.pod.resources",
        "ResourceQuota {1} asks for {2}, which a managed Redis does not set: give the namespace a "
        "LimitRange with a "
        "default for it",
    ),
    _known(
        r"no PriorityClass with name (\S+) was found",
        "PriorityClassMissing",
        "Create PriorityClass {1}, or correct spec.pod.priorityClassName",
    ),
    _known(
        r"(?:maximum|minimum) \S+ usage per|limit to request ratio per",
        "LimitRangeViolated",
        "Keep spec.pod.resources within the namespace's LimitRange, or have that changed",
        "Choose a spec.redis.managed.maxMemory that fits the namespace's LimitRange, or have that changed",
    ),
    _known(
        r"violates PodSecurity|admission webhook|ValidatingAdmissionPolicy|denied the request|denied request",
        _POLICY,
        "A policy of this Kubernetes cluster refuses the pods: change what it names in spec.pod or "
        "spec.image, or "
        "have it changed",
        "A policy of this Kubernetes cluster refuses the pods: change what it names in spec.redis.managed, "
        "or have "
        "it changed",
    ),
    _known(
        r"cannot pull image (\S+)|: ErrImageNeverPull\b|: InvalidImageName\b",
        "ImagePullFailed",
        "Correct spec.image, or name the Secret with the registry's login in spec.pod.imagePullSecrets",
        "Correct spec.redis.managed.image, or name the Secret with the registry's login in "
        "spec.pod.imagePullSecrets",
    ),
    _known(
        r"CreateContainerConfigError: .*?(secret|configmap) \"([^\"]+)\" not found",
        "EnvironmentMissing",
        "Create {1} {2}, or correct spec.pod.extraEnv",
    ),
    _known(
        r"CreateContainerConfigError: .*?couldn't find key (\S+) in (Secret|ConfigMap) (?:[^/\s]*/)?(\S+)",
        "EnvironmentMissing",
        "Add key {1} to {2} {3}, or correct spec.pod.extraEnv",
    ),
    _known(
        r"has no node: .*(?:affinity/selector|node selector)",
        "Unschedulable",
        "No node has the labels of spec.pod.nodeSelector: correct it, or label a node",
    ),
    _known(
        r"has no node: .*Insufficient ([a-z-]+)",
        "Unschedulable",
        "No node has that much {1} left: lower spec.pod.resources.requests, or add a node",
        "No node has that much {1} left: lower spec.redis.managed.maxMemory, or add a node",
    ),
    _known(
        r"has no node: .*topology spread",
        "Unschedulable",
        "Relax spec.pod.topologySpreadConstraints, or add a node",
    ),
    _known(
        r"has no node: .*untolerated taint",
        "Unschedulable",
        "Put up with the taint in spec.pod.tolerations, or add a node without it",
        "Add a node without the taint",
    ),
)

_OF_SERVICES: Final = (
    _known(
        r"provided port is (?:already allocated|not in the valid range)",
        "Rejected",
        "Choose another spec.service.nodePort, or leave it out",
    ),
    _known(
        r"exceeded quota: ([^,\s]+), requested: [^,]*services\.(?:loadbalancers|nodeports)",
        _QUOTA,
        "Choose another spec.service.type, or have ResourceQuota {1} raised",
    ),
)
_OF_ALL: Final = (
    _known(r"exceeded quota: ([^,\s]+)", _QUOTA, "Have ResourceQuota {1} raised, or delete what takes it up"),
)
_FIELDS: Final = {
    "Deployment": "spec.pod",
    "HorizontalPodAutoscaler": "spec.autoscaling",
    "Ingress": "spec.ingress",
    "NetworkPolicy": "spec.security.networkPolicy",
    "PodMonitor": "spec.monitoring.podMonitor",
    "PrometheusRule": "spec.monitoring.prometheusRule",
    "Service": "spec.service",
    "StatefulSet": "spec.redis.managed",
}
"""Where in the spec that comes from which the API server may refuse for a reason that no schema knows."""


def about_pods(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings with what to do about them, those that somebody can do something about first."""
    advised = [_advised(finding) for finding in findings]
    return tuple(sorted(advised, key=lambda finding: finding.reason not in WORTH_A_WARNING))


def about_refusal(kind: str, message: str, *, denied: bool) -> tuple[str, str]:
    """The reason, and what to do, where the API server does not take an object of a kind.

    `denied` tells a quota or a policy (and missing rights) from what is wrong in itself. The reason is empty
    where the words say nothing.
    """
    for known in (*(_OF_SERVICES if kind == "Service" else ()), *_OF_ALL):
        if (match := known.pattern.search(message)) is not None:
            return known.reason, _filled(known.fix, match)
    field = _FIELDS.get(kind, "spec")
    if "denied request" in message or "denied the request" in message:
        return (
            _POLICY,
            f"A policy of this Kubernetes cluster is against it: change {field}, or have it changed",
        )
    return ("", "") if denied else ("Rejected", f"Change {field}, which it is from")


def _advised(finding: Finding) -> Finding:
    for known in _OF_PODS if finding.reason in _ABOUT_PODS else ():
        if (match := known.pattern.search(finding.message)) is not None:
            about_redis = finding.reason == "RedisStarting"
            fix = known.redis if about_redis and known.redis is not None else known.fix
            message = f"{finding.message.rstrip('.')}. {_filled(fix, match)}."
            return dataclasses.replace(finding, reason=known.reason, message=message)
    return finding


def _filled(fix: str, match: re.Match[str]) -> str:
    for number, group in enumerate(match.groups(), start=1):
        fix = fix.replace(f"{{{number}}}", (group or "").rstrip(".,:;"))
    return fix
