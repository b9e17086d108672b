"""What Kubernetes' autoscaler does, as far as a test of a whole day needs it.

By its documentation (autoscaling/v2): at every sync each metric's recommendation is
`ceil(size × utilization / target)`, or the size as it is where the ratio is within a tenth of 1; the largest
counts. Downwards the largest recommendation of the stabilization window counts, and its policies bound how
many instances go within a period; upwards it is at most four, or as many again, within 15 s. The result is
kept within `minReplicas` and `maxReplicas`; a size outside of them is set to the limit at once, whatever the
metrics say. What it leaves out: instances whose metrics are missing or that are not ready yet.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

SYNC_SECONDS: Final = 15
TOLERANCE: Final = 0.1
UP_PERIOD_SECONDS: Final = 15
UP_PODS: Final = 4


@dataclasses.dataclass
class Autoscaler:
    """One autoscaler, with what it remembers."""

    spec: Mapping[str, Any]
    """As it is rendered; `minReplicas` may be another one at every sync."""
    recommendations: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    changes: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    """When the size was changed and by how much."""

    def sync(self, now: float, size: int, utilization: Mapping[str, float]) -> int:
        """The new size. `utilization` is in percent of the requests, by resource."""
        low, high = self.spec["minReplicas"], self.spec["maxReplicas"]
        if not self.recommendations:
            # It begins with the size that it finds, which so counts for a whole window.
            self.recommendations.append((now, size))
        if size > high or size < low:
            wanted = min(max(size, low), high)
        else:
            wanted = self._bounded(now, size, self._stabilized(now, self._recommended(size, utilization)))
            wanted = min(max(wanted, low), high)
        if wanted != size:
            self.changes.append((now, wanted - size))
        return wanted

    def _recommended(self, size: int, utilization: Mapping[str, float]) -> int:
        numbers = []
        for metric in self.spec["metrics"]:
            resource = metric["resource"]
            ratio = utilization[resource["name"]] / resource["target"]["averageUtilization"]
            numbers.append(size if abs(ratio - 1) <= TOLERANCE else math.ceil(size * ratio))
        return max(numbers)

    def _stabilized(self, now: float, recommended: int) -> int:
        window = self.spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
        self.recommendations = [one for one in self.recommendations if now - one[0] <= window]
        self.recommendations.append((now, recommended))
        return max(number for _, number in self.recommendations)

    def _bounded(self, now: float, size: int, wanted: int) -> int:
        if wanted > size:
            before = size - self._changed(now, UP_PERIOD_SECONDS, up=True)
            return min(wanted, max(before + UP_PODS, 2 * before))
        (policy,) = self.spec["behavior"]["scaleDown"]["policies"]
        gone = -self._changed(now, policy["periodSeconds"], up=False)
        return max(wanted, min(size, size + gone - policy["value"]))

    def _changed(self, now: float, seconds: float, *, up: bool) -> int:
        return sum(by for when, by in self.changes if now - when < seconds and (by > 0) == up)
