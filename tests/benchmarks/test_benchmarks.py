"""The benchmark measures what it says of whoever is measured: tried on our own server and made-up results."""

import asyncio
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import contestants, curves, installation, operators, plots, report, stores, workloads
from benchmarks.contestants import OURS, running
from benchmarks.installation import MissingError
from benchmarks.load import Load, LoadError, Shape
from benchmarks.report import Results

MACHINE = dict.fromkeys(("cores", "processor", "memory", "kernel", "python", "libraries", "commit"), "x")


def ours() -> contestants.Contestant:
    return next(one for one in contestants.ALL if one.name == OURS)


async def test_every_member_gets_every_message_and_each_costs_something() -> None:
    async with running(ours(), None) as servers:
        load = Load(ours().dialect)
        await load.open(servers.addresses, Shape(rooms=4, members=3, rooms_each=2))
        load.keep_outstanding(2)
        # CPU is counted in hundredths of a second: on a busy machine even that takes a while
        async with asyncio.timeout(120):
            while True:
                values = await workloads.measure(load, servers, 4.0)
                if values["cpu_per_message"] > 0 and values["redis_cpu_per_message"] > 0:
                    break
        for publisher in load._publishers:
            publisher.closed_loop = False
        # what was under way at the beginning or the end of a measurement may be counted on one side only
        async with asyncio.timeout(60):
            while load.under_way or load.deliveries < 3 * load.messages:  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0.02)
        assert load.deliveries == 3 * load.messages
        await load.close()
    assert values["messages_per_second"] > 0
    assert values["deliveries_per_message"] > 1
    assert 0 < values["p50_ms"] <= values["p99_ms"]


async def test_a_given_rate_is_kept() -> None:
    async with running(ours(), None) as servers:
        load = Load(ours().dialect)
        await load.open(servers.addresses, Shape(rooms=10, members=2))
        load.keep_rate(500)
        # where the machine stands still, more or fewer come back for a while, and never for good
        async with asyncio.timeout(120):
            while True:
                values = await workloads.measure(load, servers, 4.0)
                if values["messages_per_second"] == pytest.approx(500, rel=0.1):
                    break
        await load.close()


async def test_a_server_that_refuses_is_an_error_and_not_a_figure() -> None:
    async with running(ours(), None, TABLEFORGE_LOAD_BALANCING_MAX_CONNECTIONS_PER_INSTANCE="3") as servers:
        load = Load(ours().dialect)
        with pytest.raises(LoadError, match="503"):
            await load.connect(servers.addresses[0], 10)
        await load.close()


async def test_a_server_that_closes_connections_under_load_gives_no_figure() -> None:
    async with running(ours(), None) as servers:
        load = Load(ours().dialect)
        await load.open(servers.addresses, Shape(rooms=2, members=2))
        load.keep_rate(100)
        measuring = asyncio.create_task(workloads.measure(load, servers, 1.0))
        await asyncio.sleep(0)
        load._publishers[0].transport.abort()
        with pytest.raises(LoadError, match="closed 1 connection"):
            await measuring
        await load.close()


async def test_the_packages_that_a_peer_runs_on_are_named(tmp_path: Path) -> None:
    wanted = {"ws": "8.23.0", "@socket.io/redis-adapter": "8.3.0"}
    (tmp_path / "package.json").write_text(json.dumps({"dependencies": wanted}))
    for name, version in wanted.items():
        package = tmp_path / "node_modules" / name / "package.json"
        package.parent.mkdir(parents=True)
        package.write_text(json.dumps({"name": name, "version": version}))
    assert installation.node_packages(tmp_path) == wanted


async def test_a_peer_that_cannot_be_had_is_told_with_its_reason() -> None:
    async def install(_say: object) -> contestants.Installed:
        raise MissingError("there is no `go`")

    said: list[str] = []
    peer = contestants.Contestant("peer", "Peer", ours().dialect, "no log", install=install)
    found, missing = await contestants.install([peer], said.append)
    assert not found
    assert missing == {"peer": "there is no `go`"}
    assert "there is no `go`" in said[0]
    assert "**Missing:** peer: there is no `go`" in report.provenance(
        Results(date="today", machine=MACHINE, missing=missing)
    )


def test_ratios_are_taken_pair_by_pair() -> None:
    results = Results(date="today", machine=MACHINE)
    for ours_figure, base_figure in ((1.0, 2.0), (30.0, 60.0), (4.0, 5.0)):
        results.add("rooms", OURS, {"cpu_per_message": ours_figure})
        results.add("rooms", report.BASE, {"cpu_per_message": base_figure})
    row = report.table(results).splitlines()[-1]
    assert "**0.50** (4.00 µs)" in row
    assert "5.00 µs = 1" in row
    assert row.endswith("| ≤ 0.70 |")
    for _ in range(3):
        results.add("rooms", OURS, {"cpu_per_message": 4.0})
        results.add("rooms", report.BASE, {"cpu_per_message": 5.0})
    assert report.table(results).endswith("| ≤ 0.70: **missed** |")
    # a target with a unit is about the figure itself
    for size, target in ((15.9, "≤ 16 KB"), (16.1, "≤ 16 KB: **missed**")):
        results.runs = {
            "memory": {OURS: [{"memory_per_connection": size}], report.BASE: [{"memory_per_connection": 4.0}]}
        }
        assert report.table(results).endswith(f"| {target} |")


def test_results_survive_being_saved(tmp_path: Path) -> None:
    results = Results(date="today", machine=MACHINE, missing={"nchan": "no Debian"})
    results.add("rooms", OURS, {"cpu_per_message": 1.5})
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_what_was_measured_later_takes_the_place_of_the_same_and_is_told() -> None:
    first = Results(date="monday", machine=MACHINE | {"commit": "aaa"})
    first.add("rooms", OURS, {"cpu_per_message": 1.5})
    first.stores["memory"] = [{"p99_ms": 1.0}]
    later = Results(date="tuesday", machine=MACHINE | {"commit": "bbb"})
    later.stores["memory"] = [{"p99_ms": 2.0}]
    later.curves[stores.CURVE] = {"memory": [(100.0, {"p99_ms": 2.0}), (200.0, {"p99_ms": 4.0})]}
    first.take(later)
    assert first.runs["rooms"][OURS] == [{"cpu_per_message": 1.5}]
    assert first.stores["memory"] == [{"p99_ms": 2.0}]
    assert "Parts of it on tuesday (commit bbb)." in report.provenance(first)


def test_each_kind_of_redis_has_a_line_in_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PICTURES", tmp_path)
    results = Results(date="today", machine=MACHINE)
    results.curves[stores.CURVE] = {
        one.name: [(100.0, {"p99_ms": 2.0}), (200.0, {"p99_ms": 4.0})] for one in stores.ALL
    }
    durability, shards = (picture.read_text() for picture in report.draw(results))
    for name in ("Memory", "Disk", "Replica", "Disk+Replica"):
        assert name in durability
    for name in ("one Redis, 2 instances", "one Redis, 4 instances", "3 shards", "3 shards, 4 instances"):
        assert name in shards
    assert {name for plot in stores.PLOTS for name in plot.stores} == {one.name for one in stores.ALL}
    assert "(missing)" not in durability + shards
    assert "](benchmarks/durability.svg)" in report.DOCUMENTATION.read_text()


@pytest.mark.parametrize("logarithmic", [True, False])
def test_a_chart_draws_every_point_and_names_who_is_missing(logarithmic: bool) -> None:
    picture = plots.chart(
        "a < b",
        [plots.Line("one", [(1, 5), (10, 70), (100, 900)]), plots.Line("gone", [])],
        x="rooms",
        y="µs",
        x_is_logarithmic=logarithmic,
        y_is_logarithmic=logarithmic,
    )
    root = ET.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{space}circle")
    assert len(circles) == 3
    assert all(0 <= float(one.attrib["cx"]) <= plots.WIDTH for one in circles)
    assert [float(one.attrib["cy"]) for one in circles] == sorted(
        (float(one.attrib["cy"]) for one in circles), reverse=True
    )
    assert any(text.text == "gone (missing)" for text in root.iter(f"{space}text"))


def test_the_documentation_has_a_picture_for_every_curve_and_marks_for_the_tables() -> None:
    page = report.DOCUMENTATION.read_text()
    assert page.count("<!-- measured -->\n") == page.count("<!-- /measured -->") == 1
    for curve in curves.ALL:
        assert f"](benchmarks/{curve.name}.svg)" in page


def test_a_run_of_many_clusters_fails_beyond_what_is_promised() -> None:
    good: dict[str, float] = {"quiet_writes": 0, "memory_highest_mb": 300, "change_median_seconds": 1}
    assert set(good) <= {name for name, _, _ in operators.ROWS}
    assert operators.beyond({"runs": {"50": good, "500": good}}) == []
    for name, value in good.items():
        (line,) = operators.beyond({"runs": {"50": good, "500": {**good, name: value + 1}}})
        assert line.startswith("500 clusters: ")
