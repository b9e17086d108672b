"""What a PromQL expression asks for, by a real parser, and what there is to ask."""

import dataclasses
import re
from collections.abc import Iterator

import promql_parser
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tableforge_dataplane.observability.metrics import Exposition, Metrics
from tableforge_operator import metrics as operator_metrics

OF_TARGETS = frozenset(
    {"namespace", "pod", "container", "endpoint", "job", "instance"}
    | {"tableforge_io_cluster", "tableforge_io_track"}
)
"""Labels that Prometheus gives every series of a PodMonitor, our `podTargetLabels` among them."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A series that an expression selects, and the labels it matches or groups by."""

    name: str
    labels: frozenset[str]


def asked(expression: str) -> Iterator[Asked]:
    """Every selector of an expression. Raises ValueError for what is no PromQL, types included."""
    found: list[Asked] = []

    def visit(node: promql_parser.Expr, grouped: frozenset[str]) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            grouped = grouped | frozenset(node.modifier.labels)
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, f"a selector without a name: {expression}"
            matched = frozenset(matcher.name for matcher in node.matchers.matchers)
            found.append(Asked(node.name, matched | grouped))
        for below in _below(node):
            visit(below, grouped)

    visit(promql_parser.parse(expression), frozenset())
    yield from found


def _below(node: promql_parser.Expr) -> Iterator[promql_parser.Expr]:
    match node:
        case promql_parser.BinaryExpr():
            yield from (node.lhs, node.rhs)
        case promql_parser.Call():
            yield from node.args
        case promql_parser.MatrixSelector():
            yield node.vector_selector
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.SubqueryExpr():
            yield node.expr


def series() -> dict[str, frozenset[str]]:
    """Every series of `/metrics`, of instances and of the operator, with its labels."""
    counted = Metrics()
    for name in ("publishes_refused", "connections_refused", "connections_closed", "connections_shed"):
        getattr(counted, name).add("x")
    for name in (
        "messages_sent",
        "messages_received",
        "messages_dropped",
        "recoveries",
        "resets",
        "migrate_hints",
        "home_moves",
    ):
        getattr(counted, name).add("x")
    counted.api_calls.record("x", 200)
    operator_metrics.RECONCILES.labels("ok")
    operator_metrics.WATCH_UP.labels("services", "")
    operator_metrics.API_WRITES.labels("apply", "services", "200")
    operator_metrics.REBALANCE_SPREADS.known = lambda: {("x", "x"): 0.0}
    pages = (Exposition(counted, instance="x").render(), generate_latest(operator_metrics.REGISTRY))
    found: dict[str, set[str]] = {"up": set()}
    for page in pages:
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return {name: _as_scraped(labels) for name, labels in found.items()}


def _as_scraped(labels: set[str]) -> frozenset[str]:
    # A label that the target has too is kept under another name.
    return OF_TARGETS | {f"exported_{name}" if name in OF_TARGETS else name for name in labels}


def without_variables(expression: str) -> str:
    """A dashboard's expression as Grafana sends it."""
    return re.sub(r"\$__rate_interval", "5m", re.sub(r"\$(namespace|cluster)\b", "x", expression))
