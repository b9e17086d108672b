"""What the monitoring settings do: each of them acts."""

import json
from typing import Any

import pytest

from tests.dataplane.path.instances import Peers, until
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer


def events(process: DataplaneProcess, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


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
    peers = Peers()
    try:
        for process in (quiet, telling):
            peer = await peers(process)  # type: ignore[arg-type]
            await peer.join("lobby")
        await until(lambda: any(line["connections"] == 1 for line in events(telling, "numbers")))
        await until(lambda: [line["status"] for line in events(telling, "health")] == ["healthy"])
    finally:
        await peers.close()
    await until(lambda: bool(events(telling, "connection_closed")))
    (opened,), (closed,) = events(telling, "connection_opened"), events(telling, "connection_closed")
    assert opened["session"] == closed["session"]
    assert closed["user"].startswith("guest-")
    await redis_server.kill9()
    await until(lambda: events(telling, "health")[-1]["status"] == "degraded")
    assert not events(quiet, "numbers")
    assert not events(quiet, "connection_opened")
