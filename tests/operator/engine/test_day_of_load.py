"""A day of load on an autoscaled cluster: our lower limit and Kubernetes' autoscaler at work together.

The operator's part is the real one; the autoscaler and the clients are models. Each client stays for half an
hour or so, the day has a morning and an evening with three times as many as the night, a spike at noon, and
noise at every moment. CPU goes with connections, with a noise of its own.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping
from typing import Any, Final

import pytest

from tableforge_operator.api import load
from tableforge_operator.decide import deletion_costs
from tableforge_operator.decide.autoscaling import limits, next_floor
from tableforge_operator.decide.plan import decide
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.resources.horizontal_pod_autoscaler import horizontal_pod_autoscaler
from tableforge_operator.decide.snapshot import Snapshot
from tests.operator.engine.autoscaler_model import SYNC_SECONDS, Autoscaler
from tests.operator.engine.snapshots import SECRETS, at, cluster, settled, with_fleet, with_workloads
from tests.operator.engine.test_any_world import carried_out

LOOK_SECONDS: Final = 12
STEP_SECONDS: Final = 3
DAY_SECONDS: Final = 24 * 3600
STAY_SECONDS: Final = 1800.0
START_SECONDS: Final = 20
"""From a pod's creation until it takes clients."""
CAPACITY: Final = 500


@dataclasses.dataclass
class Pod:
    ready_at: float
    connections: int = 0
    cost: int = 0


@dataclasses.dataclass
class Day:
    """What a day came to."""

    sizes: list[int] = dataclasses.field(default_factory=list)
    floors: list[int] = dataclasses.field(default_factory=list)
    refused: int = 0
    moved: int = 0
    """Clients that had to go elsewhere because their instance left."""
    cost_writes: int = 0
    peak: int = 0


def reversals(numbers: list[int]) -> int:
    """How often they turn, from going up to going down or the other way round."""
    signs = [later > earlier for earlier, later in itertools.pairwise(numbers) if later != earlier]
    return sum(one != other for one, other in itertools.pairwise(signs))


def wanted_connections(second: float) -> float:
    """So many clients would be there, without noise."""
    hour = second / 3600
    morning, evening = math.exp(-(((hour - 9.5) / 2) ** 2)), math.exp(-(((hour - 20) / 2.5) ** 2))
    spike = math.exp(-(((hour - 12.5) / 0.15) ** 2))
    return 900 + 1600 * morning + 2300 * evening + 1200 * spike


def live(seed: int, *, noise: float, cpu_per_connection: float) -> Day:
    """Live through a day. `noise`: by how much arrivals and CPU vary from one moment to the next."""
    rng = random.Random(seed)
    spec = load(
        cluster(
            replicas=3,
            autoscaling={"enabled": True, "maxReplicas": 20},
            websocket={"maxConnections": CAPACITY},
        )
    )
    bounds, day = limits(spec), Day()
    floor: Floor | None = None
    autoscaler = Autoscaler({})
    pods = [Pod(ready_at=0) for _ in range(3)]
    cpu_noise = 1.0
    for second in range(0, DAY_SECONDS, STEP_SECONDS):
        ready = [pod for pod in pods if pod.ready_at <= second]
        _come_and_go(rng, ready, second, noise, day)
        connections = sum(pod.connections for pod in pods)
        day.peak = max(day.peak, connections)
        if second % LOOK_SECONDS == 0:
            before, floor = floor, next_floor(floor, connections=connections, limits=bounds, now=at(second))
            if before is None or before.replicas != floor.replicas:
                day.floors.append(floor.replicas)
        assert floor is not None
        if second % SYNC_SECONDS == 0:
            rendered = horizontal_pod_autoscaler(spec, track="a", floor=floor)["spec"]
            autoscaler.spec = rendered
            # Noise of a minute or so, as CPU has it.
            cpu_noise += 0.3 * (rng.gauss(1.0, noise) - cpu_noise)
            mean = connections / max(1, len(ready))
            usage = {"cpu": max(0.0, 5 + cpu_per_connection * mean * cpu_noise), "memory": 30 + mean / 50}
            size = autoscaler.sync(second, len(pods), usage)
            if size < len(pods):
                _mark(pods, day)
                _leave(rng, pods, size, second, day)
            pods += [Pod(ready_at=second + START_SECONDS) for _ in range(size - len(pods))]
            day.sizes.append(len(pods))
    return day


def _come_and_go(rng: random.Random, ready: list[Pod], second: int, noise: float, day: Day) -> None:
    arrivals = wanted_connections(second) * STEP_SECONDS / STAY_SECONDS * max(0.0, rng.gauss(1, 5 * noise))
    for pod in ready:
        pod.connections -= _rounded(rng, pod.connections * STEP_SECONDS / STAY_SECONDS)
    for _ in range(_rounded(rng, arrivals)):
        _place(rng, ready, day)


def _place(rng: random.Random, ready: list[Pod], day: Day) -> None:
    # As a balancer does it, which knows nothing of loads; who is refused is sent on.
    for pod in rng.sample(ready, len(ready)):
        if pod.connections < CAPACITY:
            pod.connections += 1
            return
    day.refused += 1


def _mark(pods: list[Pod], day: Day) -> None:
    for pod in pods:
        cost = deletion_costs.step(pod.connections, before=pod.cost)
        if cost != pod.cost:
            pod.cost = cost
            day.cost_writes += 1


def _leave(rng: random.Random, pods: list[Pod], size: int, second: int, day: Day) -> None:
    pods.sort(key=lambda pod: (pod.cost, pod.ready_at))
    gone, pods[:] = pods[: len(pods) - size], pods[len(pods) - size :]
    moved = sum(pod.connections for pod in gone)
    day.moved += moved
    for _ in range(moved):
        _place(rng, [pod for pod in pods if pod.ready_at <= second], day)


def _rounded(rng: random.Random, number: float) -> int:
    return int(number) + (rng.random() < number % 1)


@pytest.mark.parametrize(
    ("seed", "noise", "cpu_per_connection"),
    [(1, 0.02, 0.02), (2, 0.15, 0.02), (3, 0.02, 0.25), (4, 0.15, 0.25)],
    ids=["calm", "noisy", "calm, by CPU too", "noisy, by CPU too"],
)
def test_a_fleet_follows_a_day_without_going_back_and_forth(
    seed: int, noise: float, cpu_per_connection: float
) -> None:
    day = live(seed, noise=noise, cpu_per_connection=cpu_per_connection)
    assert day.refused == 0, "there is room for everybody at every moment"
    assert min(day.sizes) == 3
    assert day.sizes[-1] < max(day.sizes) <= 20
    # The day itself turns five times: morning, forenoon, noon, afternoon, evening.
    assert reversals(day.floors) <= 5
    assert len(day.floors) <= 30, "each is a write"
    # CPU has its own mind, within the autoscaler's window.
    assert reversals(day.sizes) <= (5 if cpu_per_connection < 0.1 else 15)
    # The emptiest instances go, and only after the load did: no more than there were at the peak, and a half.
    assert day.moved <= 1.5 * day.peak
    assert day.cost_writes <= 100


CHANGED_LOOK_SECONDS: Final = 60
"""A whole decision costs more than a floor alone."""
DEPLOYMENT: Final = ("Deployment", "tables-a")
AUTOSCALER: Final = ("HorizontalPodAutoscaler", "tables")
ON: Final[Mapping[str, Any]] = {"enabled": True, "maxReplicas": 20}
CHANGES: Final[Mapping[int, Mapping[str, Any]]] = {
    6: {"replicas": 5},
    11: {"replicas": 12, "autoscaling": {"enabled": False}},
    14: {"replicas": 12, "autoscaling": ON},
    15: {"replicas": 3},
    21: {"replicas": 14, "autoscaling": {"enabled": False}},
    22: {"replicas": 3, "autoscaling": ON},
}
"""By the hour: `kubectl scale`, and a size that is a person's for a while and then the autoscaler's again."""


def live_with_changes(
    seed: int, changes: Mapping[int, Mapping[str, Any]]
) -> tuple[Day, dict[int, list[int]]]:
    """A day through `decide` itself; with it the sizes before each change and nine minutes after it."""
    rng, day, around = random.Random(seed), Day(), {hour: list[int]() for hour in changes}
    spec: dict[str, Any] = {"replicas": 3, "autoscaling": ON, "websocket": {"maxConnections": CAPACITY}}
    snapshot = settled(Snapshot(cluster=cluster(**spec)), now=at(0))
    snapshot = _sized(snapshot, 3)
    autoscaler: Autoscaler | None = None
    pods = [Pod(ready_at=0) for _ in range(3)]
    for second in range(0, DAY_SECONDS, STEP_SECONDS):
        ready = [pod for pod in pods if pod.ready_at <= second]
        _come_and_go(rng, ready, second, 0.02, day)
        connections = sum(pod.connections for pod in pods)
        day.peak = max(day.peak, connections)
        if second % 3600 == 0 and second // 3600 in changes:
            spec |= changes[second // 3600]
            generation = snapshot.cluster["metadata"]["generation"] + 1
            asked = cluster(generation=generation, status=snapshot.cluster.get("status"), **spec)
            snapshot = dataclasses.replace(snapshot, cluster=asked)
        if second % CHANGED_LOOK_SECONDS == 0:
            now = at(second)
            snapshot = with_fleet(
                with_workloads(snapshot, ready=len(ready), total=len(pods)), now=now, connections=connections
            )
            for _ in range(4):
                plan = decide(snapshot, now, secrets=SECRETS)
                snapshot = carried_out(snapshot, plan, now=now)
                if not plan.changes_objects and plan.status is None:
                    break
            if plan.floor is not None and (not day.floors or day.floors[-1] != plan.floor.replicas):
                day.floors.append(plan.floor.replicas)
        if second % SYNC_SECONDS == 0:
            hpa = snapshot.children.get(AUTOSCALER)
            if hpa is None:
                autoscaler = None
            else:
                autoscaler = autoscaler or Autoscaler({})
                autoscaler.spec = hpa["spec"]
                usage = {"cpu": 5 + 0.02 * connections / max(1, len(ready)), "memory": 30.0}
                snapshot = _sized(snapshot, autoscaler.sync(second, len(pods), usage))
            size = snapshot.children[DEPLOYMENT]["spec"]["replicas"]
            if size < len(pods):
                _mark(pods, day)
                _leave(rng, pods, size, second, day)
            pods += [Pod(ready_at=second + START_SECONDS) for _ in range(size - len(pods))]
            day.sizes.append(len(pods))
            for hour, sizes in around.items():
                if -SYNC_SECONDS <= second - 3600 * hour <= 540:
                    sizes.append(len(pods))
    return day, around


def _sized(snapshot: Snapshot, size: int) -> Snapshot:
    children = dict(snapshot.children)
    live = children[DEPLOYMENT]
    children[DEPLOYMENT] = {**live, "spec": {**live["spec"], "replicas": size}}
    return dataclasses.replace(snapshot, children=children)


def test_a_day_on_which_people_scale_and_take_over_the_size_has_no_dip() -> None:
    day, around = live_with_changes(5, CHANGES)
    assert day.refused == 0, "there is room for everybody at every moment"
    assert day.moved <= 1.5 * day.peak
    for hour, (before, *after) in around.items():
        assert min(after) >= min(before, CHANGES[hour]["replicas"]), hour
        if "autoscaling" in CHANGES[hour]:
            assert min(after) >= before, f"{hour}: nobody is sent away by whose size it is"
    # The day itself turns five times, and each change may turn it once more.
    assert reversals(day.sizes) <= 5 + len(CHANGES)
    assert reversals(day.floors) <= 5 + len(CHANGES)
    assert len(day.floors) <= 30 + len(CHANGES)
    assert min(day.sizes) == 3
    assert max(day.sizes) == 14, "as a person asked"
