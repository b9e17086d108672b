"""A pod's status, computed from what its containers do. No I/O here.

The rules are the kubelet's: phases, the conditions Initialized, ContainersReady and Ready, and the reasons
that `kubectl get pods` shows.
"""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Literal

from devcluster.agent import clock
from devcluster.agent.api import Object

Role = Literal["init", "sidecar", "main"]


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A container does not run yet, or not again."""

    reason: str
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Running:
    """A container runs."""

    started_at: dt.datetime


@dataclasses.dataclass(frozen=True)
class Terminated:
    """A container has run."""

    exit_code: int
    reason: str
    started_at: dt.datetime
    finished_at: dt.datetime
    message: str = ""
    container_id: str = ""


State = Waiting | Running | Terminated


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContainerView:
    """What is to be known of a container at a moment."""

    name: str
    role: Role
    image: str
    image_id: str = ""
    container_id: str = ""
    state: State = Waiting("ContainerCreating")
    last: Terminated | None = None
    restart_count: int = 0
    ready: bool = False
    started: bool = False

    @property
    def done(self) -> bool:
        """Whether it is an init container that has done its work, or a sidecar that has started."""
        if self.role == "sidecar":
            return self.started
        return isinstance(self.state, Terminated) and self.state.exit_code == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PodView:
    """What is to be known of a pod at a moment."""

    pod: Object
    """The object as the API server has it."""
    containers: Sequence[ContainerView]
    """All of them, init containers first."""
    pod_ip: str
    host_ip: str
    start_time: dt.datetime
    volumes_ready: bool = False
    finished: bool = False
    """Whether no container will ever run again."""
    reason: str = ""
    message: str = ""


def _state(state: State) -> Object:
    match state:
        case Waiting(reason, message):
            return {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        case Running(started_at):
            return {"running": {"startedAt": clock.stamp(started_at)}}
        case Terminated():
            return {
                "terminated": {
                    "exitCode": state.exit_code,
                    "reason": state.reason,
                    "startedAt": clock.stamp(state.started_at),
                    "finishedAt": clock.stamp(state.finished_at),
                    **({"message": state.message} if state.message else {}),
                    **({"containerID": state.container_id} if state.container_id else {}),
                }
            }


def container_status(view: ContainerView) -> Object:
    """One entry of `containerStatuses`."""
    result: Object = {
        "name": view.name,
        "image": view.image,
        "imageID": view.image_id,
        "ready": view.ready if view.role != "init" else view.done,
        "started": view.started,
        "restartCount": view.restart_count,
        "state": _state(view.state),
        "lastState": _state(view.last) if view.last else {},
    }
    if view.container_id:
        result["containerID"] = view.container_id
    return result


def phase(view: PodView) -> str:
    """The pod's phase."""
    inits = [one for one in view.containers if one.role == "init"]
    mains = [one for one in view.containers if one.role == "main"]
    if view.reason == "DeadlineExceeded":
        return "Failed"
    if view.finished:
        ended = [one.state for one in mains if isinstance(one.state, Terminated)]
        fine = all(one.done for one in inits) and len(ended) == len(mains)
        return "Succeeded" if fine and all(one.exit_code == 0 for one in ended) else "Failed"
    if not all(one.done for one in view.containers if one.role != "main"):
        started_before = any(one.last is not None or isinstance(one.state, Running) for one in mains)
        return "Running" if started_before else "Pending"
    if any(isinstance(one.state, Waiting) and one.last is None for one in mains):
        return "Pending"
    return "Running"


def _conditions(view: PodView, current_phase: str) -> list[Object]:
    spec = view.pod["spec"]
    over = current_phase in ("Succeeded", "Failed")
    before_main = [one for one in view.containers if one.role != "main"]
    open_inits = [one.name for one in before_main if not one.done]
    serving = [one for one in view.containers if one.role != "init"]
    unready = [one.name for one in serving if not one.ready]

    def condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Object:
        return {"type": kind, "status": "True" if holds else "False", "reason": reason, "message": message}

    if current_phase == "Succeeded":
        initialized = condition("Initialized", True, "PodCompleted")
        containers = condition("ContainersReady", False, "PodCompleted")
    else:
        initialized = (
            condition(
                "Initialized",
                False,
                "ContainersNotInitialized",
                f"containers with incomplete status: [{' '.join(open_inits)}]",
            )
            if open_inits
            else condition("Initialized", True)
        )
        if over:
            containers = condition("ContainersReady", False, "PodFailed")
        elif unready:
            names = f"containers with unready status: [{' '.join(unready)}]"
            containers = condition("ContainersReady", False, "ContainersNotReady", names)
        else:
            containers = condition("ContainersReady", True)
    ready = {**containers, "type": "Ready"}
    if ready["status"] == "True":
        known = {one["type"]: one["status"] for one in (view.pod.get("status") or {}).get("conditions") or []}
        gates = [one["conditionType"] for one in spec.get("readinessGates") or []]
        if closed := [gate for gate in gates if known.get(gate) != "True"]:
            text = "; ".join(f'the status of pod readiness gate "{gate}" is not "True"' for gate in closed)
            ready = condition("Ready", False, "ReadinessGatesNotReady", text)
    return [condition("PodReadyToStartContainers", view.volumes_ready), initialized, ready, containers]


def pod_status(view: PodView, now: dt.datetime) -> Object:
    """The status to be written; a condition's transition time moves only where its status does."""
    current_phase = phase(view)
    known = {one["type"]: one for one in (view.pod.get("status") or {}).get("conditions") or []}
    conditions = []
    for one in _conditions(view, current_phase):
        old = known.get(one["type"])
        same = old is not None and old["status"] == one["status"]
        moved = old.get("lastTransitionTime") if same and old is not None else None
        # None takes a field out of the object: a patch leaves alone what it does not name.
        texts = {key: one[key] or None for key in ("reason", "message")}
        conditions.append({**one, **texts, "lastTransitionTime": moved or clock.stamp(now)})
    status: Object = {
        "phase": current_phase,
        "conditions": conditions,
        "hostIP": view.host_ip,
        "hostIPs": [{"ip": view.host_ip}],
        "startTime": clock.stamp(view.start_time),
        "initContainerStatuses": [container_status(one) for one in view.containers if one.role != "main"],
        "containerStatuses": [container_status(one) for one in view.containers if one.role == "main"],
        "reason": view.reason or None,
        "message": view.message or None,
    }
    if view.pod_ip:
        status |= {"podIP": view.pod_ip, "podIPs": [{"ip": view.pod_ip}]}
    return status
