"""Whether somebody serves the Ingress."""

from collections.abc import Iterator
from typing import Final

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.findings import Finding
from tableforge_operator.decide.snapshot import Snapshot

CLASS_ANNOTATION: Final = "kubernetes.io/ingress.class"
"""How a class was named before `ingressClassName`; some controllers still go by it."""


def findings(cluster: WebSocketCluster, snapshot: Snapshot) -> Iterator[Finding]:
    """An Ingress without a class that exists is nobody's: no host name leads to the instances."""
    asked = cluster.spec.ingress
    if asked is None or CLASS_ANNOTATION in asked.annotations:
        return
    if asked.class_name is not None:
        if snapshot.ingress_class_missing:
            yield Finding(
                reason="IngressClassMissing",
                message=f"IngressClass {asked.class_name} does not exist, so nobody serves the Ingress: "
                "name one of `kubectl get ingressclass` in spec.ingress.className, or install it.",
            )
        return
    live = snapshot.children.get(("Ingress", cluster.name))
    # The API server has filled in the default class, if there was one.
    if live is not None and "ingressClassName" not in live["spec"]:
        yield Finding(
            reason="IngressClassMissing",
            message="There was no default IngressClass when the Ingress was made, so nobody serves it: "
            "name one of `kubectl get ingressclass` in spec.ingress.className.",
        )
