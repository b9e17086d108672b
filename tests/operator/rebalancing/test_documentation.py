"""What docs/rebalancing.md shows of the simulator is what the planner does now."""

from benchmarks.rebalancing.__main__ import ALL, CYCLES, DOCUMENTATION, MARKERS, example, table
from benchmarks.rebalancing.scenarios import noise


def documented(part: str) -> str:
    begin, end = MARKERS[part]
    _, _, rest = DOCUMENTATION.read_text().partition(begin)
    return rest.partition(end)[0].strip()


def test_every_scenario_ends_as_documented() -> None:
    found = table({one.name: one.run() for one in ALL}, noise(CYCLES))
    assert found.splitlines() == documented("scenarios").splitlines()


def test_the_worked_example_is_what_happens() -> None:
    assert example().splitlines() == documented("example").splitlines()
