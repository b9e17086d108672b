"""Metrics: the guide's names exactly, bounded labels, and what a Prometheus parser reads."""

import re
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tableforge_dataplane.observability.metrics import Exposition, Metrics


def scraped(metrics: Metrics) -> dict[str, Metric]:
    text = Exposition(metrics, instance="one").render().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(metrics: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in scraped(metrics).values():
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_the_guides_names_and_types_come_out_exactly() -> None:
    metrics = Metrics()
    metrics.connections, metrics.rooms = 7, 3
    metrics.messages_sent.add("chat", 10)
    metrics.messages_received.add("chat", 2)
    text = Exposition(metrics, instance="one").render().decode().splitlines()
    for line in (
        "# TYPE tableforge_websocket_connections_total gauge",
        'tableforge_websocket_connections_total{instance_id="one"} 7.0',
        "# TYPE tableforge_websocket_rooms_total gauge",
        'tableforge_websocket_rooms_total{instance_id="one"} 3.0',
        "# TYPE tableforge_websocket_messages_sent_total counter",
        'tableforge_websocket_messages_sent_total{instance_id="one",message_type="chat"} 10.0',
        "# TYPE tableforge_websocket_messages_received_total counter",
        'tableforge_websocket_messages_received_total{instance_id="one",message_type="chat"} 2.0',
    ):
        assert line in text


def test_everything_else_is_there_too() -> None:
    metrics = Metrics()
    metrics.publishes_refused.add("rate_limited", 4)
    metrics.slow_consumers = 2
    metrics.recoveries.add("trimmed")
    metrics.resets.add("forked")
    metrics.publish_queue_depth = 5
    metrics.redis_connected = True
    metrics.left_over_budget = 6
    metrics.directory_mended = 8
    found = samples(metrics)
    one = {"instance_id": "one"}
    assert found["tableforge_websocket_publishes_refused_total"] == [({**one, "reason": "rate_limited"}, 4)]
    assert found["tableforge_websocket_slow_consumers_total"] == [(one, 2)]
    assert found["tableforge_websocket_recoveries_total"] == [({**one, "outcome": "trimmed"}, 1)]
    assert found["tableforge_websocket_resets_total"] == [({**one, "reason": "forked"}, 1)]
    assert found["tableforge_publish_queue_depth"] == [(one, 5)]
    assert found["tableforge_redis_connected"] == [(one, 1)]
    assert found["tableforge_left_over_budget_total"] == [(one, 6)]
    assert found["tableforge_directory_mended_total"] == [(one, 8)]
    assert found["process_resident_memory_bytes"][0][1] > 1_000_000


def test_event_names_are_counted_one_by_one_up_to_fifty_and_none_is_lost() -> None:
    metrics = Metrics()
    for number in range(200):
        metrics.messages_sent.add(f"event-{number}", 2)
    metrics.messages_sent.add("event-3")
    counts = {
        labels["message_type"]: value
        for labels, value in samples(metrics)["tableforge_websocket_messages_sent_total"]
    }
    assert len(counts) == 51
    assert counts["event-3"] == 3
    assert counts["other"] == 300
    assert sum(counts.values()) == metrics.messages_sent.total == 401


def test_a_close_code_of_the_protocol_has_a_label_and_all_others_share_one() -> None:
    protocol = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
    table = protocol.partition("## Close codes")[2].partition("\n## ")[0]
    own = {code for row in re.findall(r"^\| ([0-9, ]+) \|", table, re.MULTILINE) for code in row.split(", ")}
    assert own >= {"1000", "1012", "4401"}
    metrics = Metrics()
    for code in range(1000, 5000):
        metrics.connections_closed.add(str(code))
    counts = {
        labels["code"]: value
        for labels, value in samples(metrics)["tableforge_websocket_connections_closed_total"]
    }
    assert own <= set(counts)
    assert len(counts) <= 22
    assert sum(counts.values()) == 4000
    assert counts["4401"] == 1


@pytest.mark.parametrize("event", ['with "quotes"', "back\\slash", "line\nbreak", "half \ud800 pair", "Zoë"])
def test_no_event_name_breaks_the_page(event: str) -> None:
    metrics = Metrics()
    metrics.messages_received.add(event)
    [(labels, value)] = samples(metrics)["tableforge_websocket_messages_received_total"]
    assert value == 1
    assert labels["message_type"].encode("utf-8")


def test_durations_are_counted_by_their_bounds_and_none_is_negative() -> None:
    metrics = Metrics()
    for seconds in (-0.5, 0.0004, 0.001, 0.003, 7.0, 60.0):
        metrics.publish_ack_seconds.observe(seconds)
    found = {
        labels["le"]: value for labels, value in samples(metrics)["tableforge_publish_ack_seconds_bucket"]
    }
    assert (found["0.0005"], found["0.001"], found["0.005"]) == (2, 3, 4)
    assert (found["5"], found["10"], found["+Inf"]) == (4, 5, 6)
    [(_, total)] = samples(metrics)["tableforge_publish_ack_seconds_sum"]
    assert total == pytest.approx(67.0044)


def test_two_instances_in_one_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.connections = 1
    assert samples(second)["tableforge_websocket_connections_total"] == [({"instance_id": "one"}, 0)]


def test_the_documentation_has_every_name() -> None:
    documented = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    metrics = Metrics()
    for counts in [getattr(metrics, name) for name in Metrics.__slots__]:
        if hasattr(counts, "add"):
            counts.add("x")
    metrics.api_calls.record("publish", 200)
    names = {name for name in samples(metrics) if name.startswith("tableforge_")}
    assert len(names) > 10
    # a histogram is documented by the name that its three kinds of samples share
    names = {re.sub(r"_seconds_(bucket|count|sum)$", "_seconds", name) for name in names}
    missing = {name for name in names if f"`{name}`" not in documented}
    assert not missing
