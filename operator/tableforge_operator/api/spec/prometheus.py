# ruff: noqa: RUF012  (msgspec copies a default that is an empty dict or list)
"""`spec.monitoring.podMonitor` and `spec.monitoring.prometheusRule`."""

from typing import Annotated

from tableforge_operator.api.fields import Group, Rule, duration, field
from tableforge_operator.api.quantities import Duration
from tableforge_operator.api.spec.common import LABELS, RESERVED, RESERVED_MESSAGE, Text63

_LABELS = (Rule(RESERVED, RESERVED_MESSAGE), *LABELS)


class PodMonitor(Group, frozen=True):
    """A PodMonitor, by which Prometheus finds the instances, where the Kubernetes cluster has that kind."""

    enabled: Annotated[bool, field("Whether there is one.")] = True
    interval: Annotated[
        Duration,
        duration(
            "How often Prometheus asks an instance.",
            low=Duration.parse("1s"),
            high=Duration.parse("10m"),
        ),
    ] = Duration.parse("30s")
    labels: Annotated[
        dict[str, Text63],
        field("Further labels, such as those that your Prometheus looks for.", *_LABELS, max_length=32),
    ] = {}


class PrometheusRule(Group, frozen=True):
    """A PrometheusRule with alerts about this cluster, where the Kubernetes cluster has that kind."""

    enabled: Annotated[bool, field("Whether there is one.")] = True
    labels: Annotated[
        dict[str, Text63],
        field("Further labels, such as those that your Prometheus looks for.", *_LABELS, max_length=32),
    ] = {}
