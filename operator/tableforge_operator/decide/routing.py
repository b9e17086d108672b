"""Where `routing.mode` is `Gateway`: what leads to single instances, and whether the gateway has taken it.

Each instance has a Service and an HTTPRoute of its own, which belong to its pod and go with it. It is told
its address once all Gateways that the spec names have accepted the route, and told that it has none when one
of them no longer does.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from tableforge_dataplane.contract import settings
from tableforge_operator.api import WebSocketCluster
from tableforge_operator.api.spec.routing import Gateway, ParentRef, Routing
from tableforge_operator.decide import changes, findings, instances, rollout
from tableforge_operator.decide.changes import Apply
from tableforge_operator.decide.findings import Finding
from tableforge_operator.decide.leftovers import named_by
from tableforge_operator.decide.resources.http_route import instance_address, instance_route
from tableforge_operator.decide.resources.instance_service import instance_service
from tableforge_operator.decide.resources.kinds import CONFIG_MAP, HTTP_ROUTE, SERVICE
from tableforge_operator.decide.resources.metadata import fingerprint
from tableforge_operator.decide.snapshot import ChildKey, Now, Object, Snapshot

AT_ONCE: Final = 50
"""Objects of instances that are applied in one pass. More follow in the next one."""

_MODE: Final = settings.specs()["routing.mode"][0].env
_STANDARD: Final = "https://gateway-api.sigs.k8s.io/guides/#installing-gateway-api"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a Gateway says of a route."""

    state: Literal["Routed", "Refused", "Unjudged", "Stale"]
    """`Stale`: it took what the route was before, and has not looked at it since."""
    message: str = ""
    """What it says, or doesn't, as a sentence."""


def attainable(cluster: WebSocketCluster, snapshot: Snapshot) -> WebSocketCluster:
    """The cluster as it can be had: in mode `Service`, where what `Gateway` needs is not installed and the
    instances run in mode `Service`. New pods would bring nobody anything.

    Those that run in mode `Gateway` already stay in it: the kinds may be gone for a moment only.
    """
    if not cluster.routed or HTTP_ROUTE.kind not in snapshot.surroundings.absent_kinds:
        return cluster
    fleet = rollout.deployment(cluster, snapshot, rollout.active_track(cluster, snapshot))
    for name in () if fleet is None else named_by((fleet,)):
        environment = (snapshot.children.get((CONFIG_MAP.kind, name)) or {}).get("data") or {}
        if environment.get(_MODE) == "Service":
            return msgspec.structs.replace(
                cluster, spec=msgspec.structs.replace(cluster.spec, routing=Routing())
            )
    return cluster


def served(cluster: WebSocketCluster, snapshot: Snapshot) -> Gateway | None:
    """The gateway that instances are to be reached through, where this Kubernetes cluster can have one."""
    if not cluster.routed or HTTP_ROUTE.kind in snapshot.surroundings.absent_kinds:
        return None
    return cluster.spec.routing.gateway


def applies(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> tuple[Apply, ...]:
    """What leads to single instances and is not as it should be."""
    gateway = served(cluster, snapshot)
    if gateway is None or "Pod" in snapshot.blind:
        return ()
    found: list[Apply] = []
    of_spec = _of_spec(cluster, gateway)
    for pod in instances.staying(cluster, snapshot):
        for kind in (SERVICE.kind, HTTP_ROUTE.kind):
            key, digest = (kind, pod["metadata"]["name"]), _digest(of_spec, pod)
            refusal = snapshot.refusals.get(key)
            if refusal is not None and refusal.digest == digest and now.monotonic < refusal.retry_at:
                continue
            if (reason := changes.due_reason(key, digest, snapshot, now)) is not None:
                obj = (
                    instance_service(cluster, pod)
                    if kind == SERVICE.kind
                    else instance_route(cluster, gateway, pod)
                )
                found.append(Apply(obj=obj, digest=digest, reason=reason))
        if len(found) >= AT_ONCE:
            break
    return tuple(found)


def digests(cluster: WebSocketCluster, snapshot: Snapshot) -> dict[ChildKey, str]:
    """Those of what is wanted and was refused."""
    gateway = served(cluster, snapshot)
    if gateway is None or not snapshot.refusals:
        return {}
    of_spec = _of_spec(cluster, gateway)
    return {
        key: _digest(of_spec, pod)
        for pod in instances.staying(cluster, snapshot)
        for key in ((kind, pod["metadata"]["name"]) for kind in (SERVICE.kind, HTTP_ROUTE.kind))
        if key in snapshot.refusals
    }


def addresses(cluster: WebSocketCluster, snapshot: Snapshot) -> dict[str, str | None] | None:
    """The address of each instance of which it can be told; None where no instance has one.

    An instance that isn't in it keeps what it was last told.
    """
    gateway = cluster.spec.routing.gateway
    if not cluster.routed or gateway is None:
        return None
    if HTTP_ROUTE.kind in snapshot.blind:
        return {}
    found: dict[str, str | None] = {}
    for pod in instances.staying(cluster, snapshot):
        name = pod["metadata"]["name"]
        verdict = judged(cluster, gateway, snapshot.children.get((HTTP_ROUTE.kind, name)))
        if not instances.ready(pod):
            found[name] = None
        elif verdict.state != "Stale":
            found[name] = instance_address(name) if verdict.state == "Routed" else None
    return found


def judged(cluster: WebSocketCluster, gateway: Gateway, route: Object | None) -> Verdict:
    """What the Gateways say of a route: the word of the first that has not taken it."""
    if route is None or route["metadata"].get("deletionTimestamp"):
        return Verdict(state="Unjudged", message="It is not there yet.")
    worst = Verdict(state="Routed")
    for ref in gateway.parent_refs:
        verdict = _judged_by(cluster, ref, route)
        if verdict.state in ("Refused", "Unjudged"):
            return verdict
        if verdict.state == "Stale":
            worst = verdict
    return worst


def troubles(cluster: WebSocketCluster, snapshot: Snapshot) -> Iterator[Finding]:
    """What keeps clients from coming through the gateway, and does not come right by waiting. `cluster` is as
    it was asked for.
    """
    gateway = cluster.spec.routing.gateway
    if not cluster.routed or gateway is None or HTTP_ROUTE.kind in snapshot.blind:
        return
    if HTTP_ROUTE.kind in snapshot.surroundings.absent_kinds:
        stays = "" if attainable(cluster, snapshot).routed else " Until then the instances stay as they are."
        yield Finding(
            reason="GatewayApiMissing",
            message="spec.routing.mode is Gateway, and this Kubernetes cluster does not know the kind "
            f"HTTPRoute ({HTTP_ROUTE.api_version}): install the Gateway API ({_STANDARD}) and a gateway that "
            f"serves it, or set spec.routing.mode to Service.{stays}",
        )
        return
    names = [cluster.name]
    if "Pod" not in snapshot.blind:
        names += sorted(pod["metadata"]["name"] for pod in instances.staying(cluster, snapshot))
    verdicts = {
        name: judged(cluster, gateway, snapshot.children.get((HTTP_ROUTE.kind, name))) for name in names
    }
    refused = [name for name, verdict in verdicts.items() if verdict.state == "Refused"]
    if refused:
        more = f" The same goes for {len(refused) - 1} more." if len(refused) > 1 else ""
        message = f"HTTPRoute {refused[0]}: {verdicts[refused[0]].message}{more}"
        yield Finding(reason="RouteRefused", message=message)


def waiting(cluster: WebSocketCluster, snapshot: Snapshot) -> Iterator[Finding]:
    """A gateway that has yet to say whether it takes the route to all instances."""
    gateway = served(cluster, snapshot)
    key = (HTTP_ROUTE.kind, cluster.name)
    if gateway is None or HTTP_ROUTE.kind in snapshot.blind or key in snapshot.refusals:
        return
    verdict = judged(cluster, gateway, snapshot.children.get(key))
    if verdict.state == "Unjudged":
        yield Finding(reason="RouteWaiting", message=f"HTTPRoute {cluster.name}: {verdict.message}")


def _judged_by(cluster: WebSocketCluster, ref: ParentRef, route: Object) -> Verdict:
    where = f"Gateway {ref.namespace or cluster.namespace}/{ref.name}"
    if ref.section_name is not None:
        where += f", listener {ref.section_name},"
    said = [
        parent
        for parent in (route.get("status") or {}).get("parents") or ()
        if _means(parent.get("parentRef") or {}, ref, cluster)
    ]
    if not said:
        return Verdict(
            state="Unjudged",
            message=f"{where} has not said yet whether it takes it: see that it exists, and that its "
            "controller runs.",
        )
    generation = route["metadata"].get("generation", 0)
    verdicts = [_by_conditions(where, parent, generation) for parent in said]
    # Several controllers may have an opinion, as while one takes over from another.
    return min(verdicts, key=lambda verdict: _ORDER.index(verdict.state))


_ORDER: Final = ("Routed", "Stale", "Refused", "Unjudged")


def _by_conditions(where: str, parent: Mapping[str, Any], generation: int) -> Verdict:
    by_type = {found.get("type"): found for found in parent.get("conditions") or ()}
    stale = False
    for kind, trouble in (
        ("Accepted", "does not accept it"),
        ("ResolvedRefs", "cannot find what it leads to"),
    ):
        condition = by_type.get(kind)
        if condition is None:
            return Verdict(state="Unjudged", message=f"{where} has not said yet whether it takes it.")
        if condition.get("status") != "True":
            said = ": ".join(
                part for part in (str(condition.get("reason", "")), str(condition.get("message", ""))) if part
            )
            return Verdict(
                state="Refused", message=findings.sentence(findings.legible(f"{where} {trouble}: {said}"))
            )
        stale = stale or condition.get("observedGeneration", generation) < generation
    return Verdict(state="Stale" if stale else "Routed")


def _means(said: Mapping[str, Any], ref: ParentRef, cluster: WebSocketCluster) -> bool:
    return (
        said.get("name") == ref.name
        and said.get("kind", "Gateway") == "Gateway"
        and said.get("group", HTTP_ROUTE.group) == HTTP_ROUTE.group
        and said.get("namespace", cluster.namespace) == (ref.namespace or cluster.namespace)
        and said.get("sectionName") == ref.section_name
    )


def _of_spec(cluster: WebSocketCluster, gateway: Gateway) -> str:
    return fingerprint([gateway, cluster.name, cluster.service_port, cluster.spec.websocket.tls is not None])


def _digest(of_spec: str, pod: Object) -> str:
    return f"{of_spec} of {pod['metadata']['uid']}"
