"""`spec.autoscaling`."""

from typing import Annotated, ClassVar

import msgspec

from tableforge_operator.api.fields import Group, Rule, field


class Autoscaling(Group, frozen=True):
    """Whether and how the number of instances follows the load. `replicas` is then the least that run."""

    enabled: Annotated[
        bool,
        field(
            "Whether a HorizontalPodAutoscaler decides how many instances run: by CPU and memory, and never "
            "fewer than the connections need (loadBalancing.connectionThreshold). CPU and memory need a "
            "metrics server in the Kubernetes cluster, connections don't."
        ),
    ] = False
    max_replicas: Annotated[int, field("The most instances that run.", ge=1, le=1000)] = 10
    target_cpu_utilization: Annotated[
        int,
        field(
            "CPU that the instances should use on average, in percent of pod.resources.requests. "
            "0: CPU is not looked at.",
            ge=0,
            le=1000,
        ),
    ] = msgspec.field(default=70, name="targetCPUUtilization")
    target_memory_utilization: Annotated[
        int,
        field(
            "Memory that the instances should use on average, in percent of pod.resources.requests. "
            "0: memory is not looked at.",
            ge=0,
            le=1000,
        ),
    ] = 80

    rules: ClassVar = (
        Rule(
            "!self.enabled || self.targetCPUUtilization > 0 || self.targetMemoryUtilization > 0",
            "an autoscaler needs one thing at least to go by besides connections: set "
            "autoscaling.targetCPUUtilization or autoscaling.targetMemoryUtilization to more than 0 "
            "(1000 hardly ever acts), or autoscaling.enabled to false",
            field_path=".targetCPUUtilization",
        ),
    )


RULES = (
    Rule(
        "!self.autoscaling.enabled || self.replicas <= self.autoscaling.maxReplicas",
        "replicas is the least number of instances while autoscaling.enabled is true, so it must be at most "
        "autoscaling.maxReplicas: lower the one or raise the other",
        field_path=".replicas",
    ),
    *(
        Rule(
            f"!self.autoscaling.enabled || self.autoscaling.{target} == 0 "
            f"|| (has(self.pod.resources.requests) && '{name}' in self.pod.resources.requests) "
            # A limit without a request is the request, too.
            f"|| (has(self.pod.resources.limits) && '{name}' in self.pod.resources.limits)",
            f"autoscaling.{target} is in percent of what an instance requests, so pod.resources.requests "
            f"must have {name}: add it, or set autoscaling.{target} to 0",
            field_path=".pod.resources",
        )
        for name, target in (("cpu", "targetCPUUtilization"), ("memory", "targetMemoryUtilization"))
    ),
)
"""Rules of the spec as a whole that are about autoscaling."""
