"""What the monitoring settings do: each of them acts."""

import itertools
from typing import Any

import pytest

from tests.dataplane.path.instances import Peers, until
from tests.support.children import logged
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer


def events(process: DataplaneProcess, name: str) -> list[dict[str, Any]]:
    return [line for line in logged(process.log) if line["event"] == name]


@pytest.mark.parametrize("enabled", [True, False])
async def test_metrics_can_be_switched_off(
    redis_server: RedisServer, dataplane: DataplaneFleet, enabled: bool
) -> None:
    (process,) = await dataplane(
        redis_server, 1, TABLEFORGE_MONITORING_ENABLE_METRICS="true" if enabled else "false"
    )
    status, body = await process.get("/metrics", port=process.http_port)
    assert status == (200 if enabled else 404)
    assert (b"tableforge_pressure_stage" in body) == enabled


async def test_numbers_connections_and_health_are_logged_as_set(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    quiet, telling = [
        *await dataplane(redis_server, 1),
        *await dataplane(
            redis_server,
            1,
            TABLEFORGE_MONITORING_METRICS_INTERVAL="200",
            TABLEFORGE_MONITORING_HEALTH_CHECK_INTERVAL="100",
            TABLEFORGE_MONITORING_ENABLE_DETAILED_LOGGING="true",
        ),
    ]

    def states() -> list[tuple[str, list[str]]]:
        return [(line["status"], line.get("problems", [])) for line in events(telling, "health")]

    peers = Peers()
    try:
        for process in (quiet, telling):
            peer = await peers(process)  # type: ignore[arg-type]
            await peer.join("lobby")
        await until(lambda: any(line["connections"] == 1 for line in events(telling, "numbers")))
        await until(lambda: states()[-1:] == [("healthy", [])])
    finally:
        await peers.close()
    await until(lambda: bool(events(telling, "connection_closed")))
    (opened,), (closed,) = events(telling, "connection_opened"), events(telling, "connection_closed")
    assert opened["session"] == closed["session"]
    assert closed["user"].startswith("guest-")
    await redis_server.kill9()
    await until(lambda: states()[-1][0] == "degraded")
    assert all(one != another for one, another in itertools.pairwise(states())), "told when nothing changed"
    assert not events(quiet, "numbers")
    assert not events(quiet, "connection_opened")
