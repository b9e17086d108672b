"""PodMonitor, PrometheusRule, the operator's alerts, the dashboard: parsed, and of metrics that exist."""

import json
import re

import pytest
import yaml

from tableforge_operator.decide.resources import Surroundings, children
from tableforge_operator.decide.resources.alerts import alerts
from tableforge_operator.decide.resources.pod_monitor import pod_monitor
from tableforge_operator.decide.resources.prometheus_rule import prometheus_rule
from tests.operator.model import expected
from tests.operator.model.conftest import ROOT
from tests.operator.model.expected import metadata
from tests.operator.model.promql import asked, series, without_variables
from tests.operator.model.refusals import refusals

MANIFESTS = ROOT / "manifests" / "monitoring"
DASHBOARD = json.loads((MANIFESTS / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OPERATORS = [
    rule
    for group in yaml.safe_load((MANIFESTS / "prometheus-rule.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]
]
SERIES = series()


@pytest.fixture
def made(cluster, secrets):
    """What of the kinds of the Prometheus operator a cluster owns."""

    def make(spec=None, absent=()):
        around = Surroundings(absent_kinds=frozenset(absent))
        objects = children(cluster(spec), secrets=secrets, surroundings=around).applied
        kinds = [obj["kind"] for obj in objects]
        return [kind for kind in kinds if kind in ("PodMonitor", "PrometheusRule")]

    return make


def test_the_pod_monitor(cluster):
    asked_for = {"interval": "15s", "labels": {"release": "prometheus"}}
    built = pod_monitor(cluster({"monitoring": {"podMonitor": asked_for}}))
    assert built["metadata"]["labels"].pop("release") == "prometheus"
    assert built == {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata("tables", expected.DATAPLANE),
        "spec": {
            "selector": {"matchLabels": expected.DATAPLANE},
            "podTargetLabels": ["tableforge.io/cluster", "tableforge.io/track"],
            "podMetricsEndpoints": [{"port": "internal", "path": "/metrics", "interval": "15s"}],
        },
    }


def test_the_rule_is_about_this_cluster_alone(cluster):
    built = prometheus_rule(cluster({"monitoring": {"prometheusRule": {"labels": {"team": "tables"}}}}))
    assert built["metadata"]["labels"]["team"] == "tables"
    (group,) = built["spec"]["groups"]
    assert group["name"] == "tableforge.games.tables"
    for rule in group["rules"]:
        selectors = re.findall(r"\{([^{}]*)\}", rule["expr"])
        assert selectors
        for selector in selectors:
            assert selector.startswith('namespace="games",tableforge_io_cluster="tables"')
        assert rule["labels"]["namespace"] == "games"
        assert rule["labels"]["tableforge_io_cluster"] == "tables"
        assert "WebSocketCluster games/tables" in rule["annotations"]["summary"]


def test_what_was_promised_raises_an_alert(cluster):
    assert [alert.name.removeprefix("Tableforge") for alert in alerts(cluster())] == [
        "NoInstance", "InstanceDown", "RedisAway", "PublishesRefused", "Resets", "SlowConsumers", "Pressure",
        "MemoryHigh", "EventLoopLag", "SlowAcknowledgements", "NearCapacity", "DirectoryMended",
        "HeartbeatsFail",
    ]  # fmt: skip


def test_a_cluster_without_instances_alarms_nobody(cluster):
    assert "TableforgeNoInstance" not in [alert.name for alert in alerts(cluster({"replicas": 0}))]


def test_capacity_is_what_the_spec_says(cluster):
    found = {alert.name: alert for alert in alerts(cluster({"websocket": {"maxConnections": 250}}))}
    assert "0.9 * 250 * count(up" in found["TableforgeNearCapacity"].expression


def test_they_come_and_go_with_the_spec_and_with_their_kinds(made):
    assert made() == ["PodMonitor", "PrometheusRule"]
    assert made({"monitoring": {"podMonitor": {"enabled": False}}}) == ["PrometheusRule"]
    assert made({"monitoring": {"prometheusRule": {"enabled": False}}}) == ["PodMonitor"]
    assert made({"monitoring": {"enableMetrics": False}}) == []
    assert made(absent=["PodMonitor"]) == ["PrometheusRule"]
    assert made(absent=["PodMonitor", "PrometheusRule"]) == []


def expressions(cluster):
    yield from ((alert.name, alert.expression) for alert in alerts(cluster))
    yield from ((rule["alert"], rule["expr"]) for rule in OPERATORS)
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], without_variables(target["expr"])


def test_every_expression_is_promql_over_metrics_and_labels_that_exist(cluster):
    for where, expression in expressions(cluster()):
        selectors = list(asked(expression))
        assert selectors, where
        for selector in selectors:
            assert selector.name in SERIES, f"{where}: nobody has {selector.name}"
            unknown = selector.labels - SERIES[selector.name] - {"le"}
            assert not unknown, f"{where}: {selector.name} has no {', '.join(unknown)}"


@pytest.mark.parametrize(
    "wrong", ["rate(up)", "sum by (pod) up", "up == = 0", 'up{pod="x"', "histogram_quantile(up)"]
)
def test_the_parser_would_notice(wrong):
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's own words
        list(asked(wrong))


def test_every_alert_says_what_to_do_about_what():
    for rule in OPERATORS:
        assert {"summary", "description"} <= set(rule["annotations"])
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_dashboard_is_whole():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(DASHBOARD))) <= variables
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["expr"] and target["refId"] for target in panel["targets"])


def test_what_the_operations_page_calls_worth_an_alert_has_one():
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.split("## Worth an alert")[1].split("\n## ")[0]
    promised = {
        name
        for line in section.splitlines()
        if line.startswith("- ")
        for name in re.findall(r"`(tableforge_\w+)", line)
    }
    told = " ".join(rule["expr"] for rule in OPERATORS)
    told += (ROOT / "operator/tableforge_operator/decide/resources/alerts.py").read_text()
    assert promised
    assert not [name for name in promised if name not in told]


REFUSED = {
    "interval": ({"podMonitor": {"interval": "1h"}}, "must be a duration from 1s to 10m"),
    "reserved": ({"podMonitor": {"labels": {"tableforge.io/x": "y"}}}, "are the operator's"),
    "label": ({"prometheusRule": {"labels": {"a b": "y"}}}, "keys must be letters"),
}


@pytest.mark.cluster
def test_wrong_values_are_refused_with_what_to_change(shared_kubectl):
    said = refusals(shared_kubectl, {name: {"monitoring": asked} for name, (asked, _) in REFUSED.items()})
    wrong = {name: said[name] for name, (_, message) in REFUSED.items() if message not in said[name]}
    assert wrong == {}
