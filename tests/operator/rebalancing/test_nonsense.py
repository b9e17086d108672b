"""Numbers in records that cannot be meant: a turn is had all the same, or the cluster would get none."""

import datetime as dt
import json

import msgspec
import pytest

from tableforge_dataplane.contract.fleet import Fleet
from tableforge_operator.decide.rebalancing import cycle
from tableforge_operator.decide.rebalancing.load import load_of
from tableforge_operator.decide.rebalancing.state import Settings, Sight

NUMBERS = ("0", "-1", "1e-320", "1e300", "-1e300", "9" * 30, "-" + "9" * 30, "9" * 400)
RECORD = {
    "boot": "b",
    "version": "1",
    "startedAt": 0,
    "updatedAt": 1000,
    "connections": 100,
    "rooms": 2,
    "capacity": 1000,
    "draining": False,
    "alive": True,
    "address": "/i/x/ws",
    "weight": 100,
    "following": 0,
    "heaviestRooms": [["a", 60], ["b", 40]],
}
WALL = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def fleet(field: str, number: str, *, everywhere: bool) -> Fleet | None:
    """Two instances, of which one or both say `number` in `field`; None where no answer can be so."""
    hot = {**RECORD, "instance": "hot"}
    cold = {**RECORD, "instance": "cold", "connections": 1, "heaviestRooms": []}
    whole = {
        "instance": "hot",
        "redis": {"connected": True, "reason": "Connected", "message": ""},
        "asOf": 1000,
        "totals": {"instances": 2, "connections": 101, "rooms": 2},
        "instances": [hot, cold],
    }
    for part in [whole] if field == "asOf" else [hot, cold] if everywhere else [hot]:
        part[field] = [["a", "@"], ["b", 1]] if field == "heaviestRooms" else "@"
    try:
        return msgspec.json.decode(json.dumps(whole).replace('"@"', number), type=Fleet)
    except msgspec.DecodeError:
        return None


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("measure", ["capacity", "weight"])
@pytest.mark.parametrize("mode", ["Service", "Gateway"])
@pytest.mark.parametrize(
    "field", ["asOf", "updatedAt", "connections", "capacity", "weight", "following", "heaviestRooms"]
)
def test_no_number_ends_a_turn(field: str, mode: str, measure: str, everywhere: bool) -> None:
    told = [one for number in NUMBERS if (one := fleet(field, number, everywhere=everywhere)) is not None]
    assert len(told) > 2
    for one in told:
        state, now = cycle.begin(now=0), 1000.0
        for _ in range(3):
            turn = cycle.step(
                state,
                sight=Sight(load=load_of(one), seen_at=now),
                settings=Settings(mode=mode, measure=measure),  # type: ignore[arg-type]
                now=now,
                wall=WALL,
                request="now",
                reign="12345678901234567890",
            )
            state, now = turn.state, now + 30
            json.dumps(msgspec.to_builtins(turn.report), allow_nan=False)
            assert all(len(command.id) <= 64 for command in turn.commands)
