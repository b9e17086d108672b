"""What `spec.pod` says about the instances' pods, as Kubernetes wants it. What it leaves open is left out."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tableforge_operator.api.spec.pod import Pod, SpreadConstraint

_NODES_AND_ZONES: Final = tuple(
    SpreadConstraint(topology_key=key) for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
)


def placement(pod: Pod, *, spread: Mapping[str, str]) -> dict[str, Any]:
    """Where the pods go. `spread` are the labels of the pods that are spread evenly."""
    given = pod.topology_spread_constraints
    constraints = [
        {**_plain(constraint), "labelSelector": {"matchLabels": dict(spread)}}
        for constraint in (_NODES_AND_ZONES if given is None else given)
    ]
    found = {
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [_plain(toleration) for toleration in pod.tolerations],
        "topologySpreadConstraints": constraints,
        "priorityClassName": pod.priority_class_name,
    }
    return {name: value for name, value in found.items() if value}


def resources(pod: Pod) -> dict[str, Any]:
    """CPU and memory, as text: the API server answers with text, so that 2 and "2" are one object."""
    found = {
        "requests": {name: str(value) for name, value in pod.resources.requests.items()},
        "limits": {name: str(value) for name, value in pod.resources.limits.items()},
    }
    return {name: values for name, values in found.items() if values}


def extra_env(pod: Pod) -> list[dict[str, Any]]:
    """Variables of the container."""
    return [_plain(variable) for variable in pod.extra_env]


def pull_policy(pod: Pod) -> dict[str, Any]:
    """Of the container."""
    return {} if pod.image_pull_policy is None else {"imagePullPolicy": pod.image_pull_policy}


def pull_secrets(pod: Pod) -> dict[str, Any]:
    """Of the pod, and of the managed Redis's."""
    names = [_plain(secret) for secret in pod.image_pull_secrets]
    return {"imagePullSecrets": names} if names else {}


def _plain(group: msgspec.Struct) -> dict[str, Any]:
    """Without what is unset, at any depth."""
    found: dict[str, Any] = _without_none(msgspec.to_builtins(group))
    return found


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(each) for name, each in value.items() if each is not None}
    return value
