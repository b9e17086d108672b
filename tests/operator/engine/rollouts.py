"""A model of what Kubernetes does with the operator's Deployments, for rollouts that exist only in a test.

As the Deployment controller does it with `maxSurge: 1, maxUnavailable: 0`; a step is as much as happens
between two looks at a cluster. Only pods of an image that works become ready. It leaves out
`minReadySeconds`, which passes at once, and nodes that are short of room.
"""

import dataclasses
from typing import Any

from tableforge_operator.decide.deletion_costs import ANNOTATION
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.rollout import template_of
from tableforge_operator.decide.snapshot import Now, Object, Snapshot
from tests.operator.engine.snapshots import SECRETS, at, cluster, done, of_track

BAD = "tableforge/dataplane:bad"


@dataclasses.dataclass
class Pod:
    """A pod of one track."""

    track: str
    number: int
    template: str
    works: bool
    environment: str = ""
    """Its ConfigMap."""
    ready: bool = False
    leaving: bool = False
    cost: int | None = None
    """What its deletion costs, once the operator has written that."""

    @property
    def name(self) -> str:
        return f"tables-{self.track}-{self.number}"

    def obj(self) -> Object:
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": "ns",
            **of_track(self.track),
        }
        if self.cost is not None:
            metadata["annotations"] = {ANNOTATION: str(self.cost)}
        if self.leaving:
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        ready = {"type": "Ready", "status": str(self.ready)}
        spec = {"containers": [{"envFrom": [{"configMapRef": {"name": self.environment}}]}]}
        return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": {"conditions": [ready]}}


class World:
    """One cluster, its operator and its pods."""

    def __init__(self, **spec: Any) -> None:
        self.snapshot = Snapshot(cluster=cluster(**spec))
        self.pods: list[Pod] = []
        self.others: tuple[Object, ...] = ()
        """Pods that no ReplicaSet counts any more."""
        self.seconds = 0.0
        self.events: list[str] = []
        """Reasons of what the operator told, in order."""
        self._count = 0

    @property
    def selected(self) -> str | None:
        """The track that the client Service points to."""
        service = self.snapshot.children.get(("Service", "tables"))
        return None if service is None else str(service["spec"]["selector"]["tableforge.io/track"])

    @property
    def accepting(self) -> list[Pod]:
        """Pods that new clients are sent to."""
        return [pod for pod in self.pods if pod.track == self.selected and pod.ready and not pod.leaving]

    def deployment(self, track: str) -> Object | None:
        return self.snapshot.children.get(("Deployment", f"tables-{track}"))

    def ask(self, **spec: Any) -> None:
        """The user changes the spec."""
        before = self.snapshot.cluster
        metadata = {**before["metadata"], "generation": before["metadata"]["generation"] + 1}
        changed = {**before, "metadata": metadata, "spec": {**before["spec"], **spec}}
        self.snapshot = dataclasses.replace(self.snapshot, cluster=changed)

    def scale(self, track: str, size: int) -> None:
        """An autoscaler changes how many instances a track has."""
        children, key = dict(self.snapshot.children), ("Deployment", f"tables-{track}")
        scaled = {**children[key], "spec": {**children[key]["spec"], "replicas": size}}
        children[key] = _of_generation(scaled, scaled["metadata"]["generation"] + 1)
        self.snapshot = dataclasses.replace(self.snapshot, children=children)

    def forget(self) -> None:
        """The operator dies, and another one starts with nothing in its memory."""
        self.snapshot = dataclasses.replace(
            self.snapshot, applied={}, refusals={}, secrets_created=frozenset(), counters_at=None
        )

    def look(self, *, writes: int | None = None) -> Plan:
        """The operator decides once, and does as much of it as `writes` says before it dies."""
        self._show_pods()
        plan = decide(self.snapshot, self.now, secrets=SECRETS)
        if plan.costs:
            costs = {cost.pod["metadata"]["name"]: cost.value for cost in plan.costs}
            for pod in self.pods:
                pod.cost = costs.get(pod.name, pod.cost)
            self._show_pods()
            plan = decide(self.snapshot, self.now, secrets=SECRETS)
        deleted = {one["metadata"]["name"] for one in plan.withdrawals if one["kind"] == "ConfigMap"}
        assert not deleted & {pod.environment for pod in self.pods}, "a pod may be started with it again"
        if writes is not None:
            whole = [*plan.secrets, *plan.applies, *plan.scales, *plan.withdrawals]
            kept = {id(one) for one in whole[:writes]}
            plan = dataclasses.replace(
                plan,
                secrets=tuple(one for one in plan.secrets if id(one) in kept),
                applies=tuple(one for one in plan.applies if id(one) in kept),
                scales=tuple(one for one in plan.scales if id(one) in kept),
                withdrawals=tuple(one for one in plan.withdrawals if id(one) in kept),
                status=None,
            )
        done_to = {one.key for one in plan.applies}
        done_to |= {(one.deployment["kind"], one.deployment["metadata"]["name"]) for one in plan.scales}
        done_to |= {(one["kind"], one["metadata"]["name"]) for one in plan.withdrawals}
        self.events += [news.event.reason for news in plan.news if news.child in done_to]
        generations = {
            key: obj["metadata"].get("generation", 0) for key, obj in self.snapshot.children.items()
        }
        sizes = {
            key: obj["spec"]["replicas"]
            for key, obj in self.snapshot.children.items()
            if key[0] == "Deployment"
        }
        self.snapshot = done(self.snapshot, plan, now=self.now)
        children, applied = dict(self.snapshot.children), dict(self.snapshot.applied)
        for wanted in plan.applies:
            after = _of_generation(children[wanted.key], generations.get(wanted.key, 0) + 1)
            if wanted.key[0] == "Deployment" and "replicas" not in after["spec"]:
                size = sizes.get(wanted.key, wanted.instances_at_least)
                after = {**after, "spec": {**after["spec"], "replicas": size}}
            children[wanted.key] = after
        for scale in plan.scales:
            key = (scale.deployment["kind"], scale.deployment["metadata"]["name"])
            scaled = {**children[key], "spec": {**children[key]["spec"], "replicas": scale.replicas}}
            children[key] = _of_generation(scaled, generations[key] + 1)
            applied.pop(key, None)
        self.snapshot = dataclasses.replace(self.snapshot, children=children, applied=applied)
        return plan

    def settle(self, *, steps: int = 200) -> None:
        """Operator and Kubernetes go on until neither has anything to do."""
        for _ in range(steps):
            idle = not self.look().changes_objects
            if not self.step() and idle and not self.look().changes_objects:
                return
        raise AssertionError("never settles")

    def step(self) -> bool:
        """Kubernetes goes on for a while; gives whether anything changed."""
        self.seconds += 4
        before = [dataclasses.replace(pod) for pod in self.pods], self._statuses()
        self.pods = [pod for pod in self.pods if not pod.leaving]
        for pod in self.pods:
            pod.ready = pod.ready or pod.works
        for track in ("a", "b"):
            deployment = self.deployment(track)
            if deployment is None:
                self.pods = [pod for pod in self.pods if pod.track != track]
            else:
                self._roll(track, deployment)
        self._show_statuses()
        self._show_pods()
        return before != (self.pods, self._statuses())

    def _roll(self, track: str, deployment: Object) -> None:
        template, size = template_of(deployment), deployment["spec"]["replicas"]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        image, environment = container["image"], container["envFrom"][0]["configMapRef"]["name"]
        there = [pod for pod in self.pods if pod.track == track and not pod.leaving]
        new = [pod for pod in there if pod.template == template]
        old = [pod for pod in there if pod.template != template]
        # Those that are not ready go first, as with a ReplicaSet.
        for pod in sorted(new, key=lambda pod: pod.ready)[: max(0, len(new) - size)]:
            pod.leaving = True
        new = [pod for pod in new if not pod.leaving]
        room = size + (1 if old else 0) - len(new) - len(old)
        for _ in range(max(0, min(room, size - len(new)))):
            self._count += 1
            self.pods.append(Pod(track, self._count, template, works=image != BAD, environment=environment))
        spare = sum(pod.ready for pod in new) + sum(pod.ready for pod in old) - size
        for pod in sorted(old, key=lambda pod: pod.ready):
            if not pod.ready:
                pod.leaving = True
            elif spare > 0:
                pod.leaving, spare = True, spare - 1

    @property
    def now(self) -> Now:
        return at(self.seconds)

    def _statuses(self) -> list[Any]:
        return [(track, (self.deployment(track) or {}).get("status")) for track in ("a", "b")]

    def _show_statuses(self) -> None:
        children = dict(self.snapshot.children)
        for key, obj in children.items():
            if key[0] == "StatefulSet":
                children[key] = {**obj, "status": {"observedGeneration": 10**6, "readyReplicas": 1}}
            if key[0] != "Deployment":
                continue
            mine = [pod for pod in self.pods if key[1] == f"tables-{pod.track}" and not pod.leaving]
            children[key] = {
                **obj,
                "status": {
                    "observedGeneration": obj["metadata"]["generation"],
                    "replicas": len(mine),
                    "updatedReplicas": sum(pod.template == template_of(obj) for pod in mine),
                    "readyReplicas": sum(pod.ready for pod in mine),
                },
            }
        self.snapshot = dataclasses.replace(self.snapshot, children=children)

    def _show_pods(self) -> None:
        pods = (*(pod.obj() for pod in self.pods), *self.others)
        self.snapshot = dataclasses.replace(self.snapshot, pods=pods)


def _of_generation(obj: Object, generation: int) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "generation": generation}}
