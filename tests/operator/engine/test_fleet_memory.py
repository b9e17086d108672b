"""What the operator keeps of instances: as much as docs/operator.md says."""

import re
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from tableforge_dataplane.contract.fleet import (
    HEAVIEST_ROOMS,
    Fleet,
    InstanceRecord,
    RedisState,
    RoomLoad,
    Totals,
)

PAGE = Path(__file__).parents[3] / "docs" / "operator.md"
FLEETS = 20


def answer(fleet: int, letters: int) -> bytes:
    """What an instance says of three, each with as many rooms as it names, behind a gateway."""
    records = []
    for number in range(3):
        rooms = [f"{fleet}-{number}-{room}".ljust(letters, "x") for room in range(HEAVIEST_ROOMS)]
        records.append(
            InstanceRecord(
                instance=f"tables-{fleet}-a-88484577-{number}",
                boot="b" * 16,
                version="0.1.0",
                started_at=1.8e9 + number,
                updated_at=1.9e9 + number,
                connections=1000,
                rooms=1000,
                capacity=1000,
                draining=False,
                alive=True,
                heaviest_rooms=[RoomLoad(room=room, members=300 + at) for at, room in enumerate(rooms)],
                address=f"/i/tables-{fleet}-a-88484577-{number}/ws",
                homes=1000,
            )
        )
    redis = RedisState(connected=True, reason="Connected", message="Redis is connected.")
    totals = Totals(instances=3, connections=3000, rooms=3000)
    return msgspec.json.encode(
        Fleet(instance=records[0].instance, redis=redis, as_of=1.9e9, totals=totals, instances=records)
    )


@pytest.mark.parametrize(("letters", "which"), [(20, 0), (128, 1)])
def test_an_instance_takes_as_much_memory_as_the_page_says(letters: int, which: int) -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    told = re.search(r"(\d+) KB for each instance [^.]*?, (\d+) KB where", text)
    assert told is not None
    bodies = [answer(fleet, letters) for fleet in range(FLEETS)]
    tracemalloc.start()
    try:
        kept = [msgspec.json.decode(body, type=Fleet) for body in bodies]
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size / (3 * len(kept)) / 1000 == pytest.approx(int(told[which + 1]), rel=0.25)
