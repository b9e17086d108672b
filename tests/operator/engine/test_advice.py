"""What Kubernetes says, and which field of the spec that means."""

import pytest

from tableforge_operator.decide import advice
from tableforge_operator.decide.findings import Finding

PODS = [
    (
        "pods are forbidden: exceeded quota: small, requested: limits.memory=1Gi, used: 0, limited: 1",
        "QuotaExceeded",
        "have ResourceQuota small raised.",
    ),
    (
        "pods are forbidden: failed quota: q: must specify limits.cpu for: dataplane",
        "QuotaExceeded",
        "set it in spec.pod.resources.",
    ),
    (
        "pods are forbidden: no PriorityClass with name high was found",
        "PriorityClassMissing",
        "Create PriorityClass high, or correct spec.pod.priorityClassName.",
    ),
    (
        "pods are forbidden: minimum cpu usage per Container is 1, but request is 100m",
        "LimitRangeViolated",
        "Keep spec.pod.resources within",
    ),
    (
        'admission webhook "images.example" denied the request: unsigned image',
        "PolicyDenied",
        "in spec.pod or spec.image",
    ),
    ("pod a cannot pull image a/b:1: not found", "ImagePullFailed", "Correct spec.image"),
    ("pod a: InvalidImageName", "ImagePullFailed", "Correct spec.image"),
    ("pod a: ErrImageNeverPull", "ImagePullFailed", "Correct spec.image"),
    (
        'pod a: CreateContainerConfigError: configmap "place" not found',
        "EnvironmentMissing",
        "Create configmap place, or correct spec.pod.extraEnv.",
    ),
    (
        "pod a: CreateContainerConfigError: couldn't find key k in Secret ns/s",
        "EnvironmentMissing",
        "Add key k to Secret s, or correct spec.pod.extraEnv.",
    ),
    (
        "pod a has no node: 0/3 nodes are available: 3 Insufficient cpu.",
        "Unschedulable",
        "that much cpu left: lower spec.pod.resources.requests",
    ),
    (
        "pod a has no node: 0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints.",
        "Unschedulable",
        "Relax spec.pod.topologySpreadConstraints",
    ),
]


@pytest.mark.parametrize(("words", "reason", "fix"), PODS)
def test_what_is_said_of_pods(words: str, reason: str, fix: str) -> None:
    (found,) = advice.about_pods([Finding(reason="RollingOut", message=f"0 of 3 are ready: {words}.")])
    assert found.reason == reason
    assert found.message.startswith(f"0 of 3 are ready: {words.rstrip('.')}. ")
    assert fix in found.message
    assert "{" not in found.message


@pytest.mark.parametrize(
    "words",
    [
        "exceeded quota: small, requested: x",
        "cannot pull image a/b:1",
        "maximum memory usage per Pod is 1",
        "has no node: 0/1: 1 Insufficient memory",
    ],
)
def test_of_a_redis_it_is_the_redis_fields(words: str) -> None:
    (found,) = advice.about_pods([Finding(reason="RedisStarting", message=f"Waiting: {words}.")])
    assert "spec.redis.managed." in found.message
    assert "spec.pod.resources" not in found.message


def test_what_is_understood_comes_first_and_the_rest_stays_as_it_was() -> None:
    plain = Finding(reason="RedisStarting", message="Waiting: its pod is starting.")
    told = Finding(reason="RedisUnreachable", message="exceeded quota: of something else.")
    grave = Finding(reason="RollingOut", message="0 of 3: no PriorityClass with name x was found.")
    found = advice.about_pods([plain, told, grave])
    assert [finding.reason for finding in found] == [
        "PriorityClassMissing",
        "RedisStarting",
        "RedisUnreachable",
    ]
    assert found[1:] == (plain, told)


REFUSALS = [
    ("Service", "nodePort: provided port is already allocated", False, "Rejected", "spec.service.nodePort"),
    ("Service", "exceeded quota: q, requested: services.nodeports=1", True, "QuotaExceeded", "service.type"),
    ("Secret", "exceeded quota: q, requested: count/secrets=1", True, "QuotaExceeded", "ResourceQuota q"),
    ("Ingress", 'admission webhook "x" denied the request: taken', True, "PolicyDenied", "spec.ingress"),
    ("Ingress", 'admission webhook "x" denied the request: taken', False, "PolicyDenied", "spec.ingress"),
    ("PodMonitor", "spec.x: Invalid value", False, "Rejected", "spec.monitoring.podMonitor"),
    ("ConfigMap", "data: Too long", False, "Rejected", "Change spec, which"),
    ("Service", 'User "x" cannot patch resource', True, "", ""),
]


@pytest.mark.parametrize(("kind", "words", "denied", "reason", "fix"), REFUSALS)
def test_what_the_api_server_refuses(kind: str, words: str, denied: bool, reason: str, fix: str) -> None:
    found, told = advice.about_refusal(kind, words, denied=denied)
    assert found == reason
    assert fix in told
