"""Memory that fills and a loop that comes late: the instance warns, refuses, sheds, recovers, and lives."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tableforge_dataplane.contract.settings import MonitoringSettings
from tableforge_dataplane.observability.pressure import HELD_SECONDS, Figure, Lag, Pressure, Stage
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer

MEGABYTE = 1_048_576


def test_a_stage_is_entered_at_once_and_left_late_one_by_one() -> None:
    figure = Figure((10.0, 20.0, 30.0), leave_share=0.9)
    assert figure.update(9.9, 0.0) is Stage.CALM
    assert figure.update(31.0, 1.0) is Stage.SHED
    assert figure.update(28.0, 100.0) is Stage.SHED, "not far enough below"
    assert figure.update(5.0, 101.0) is Stage.SHED, "not for long enough"
    assert figure.update(5.0, 100.0 + HELD_SECONDS) is Stage.REFUSE
    assert figure.update(5.0, 100.1 + HELD_SECONDS) is Stage.REFUSE
    assert figure.update(5.0, 100.0 + 2 * HELD_SECONDS) is Stage.WARN
    assert figure.update(5.0, 100.0 + 3 * HELD_SECONDS) is Stage.CALM


def test_one_long_pause_counts_and_is_forgotten() -> None:
    lag = Lag()
    for quarter in range(20):
        assert lag.add(0.0, quarter / 4) == 0.0
    assert lag.add(2.0, 7.0) == pytest.approx(2.0 / 13, rel=0.2)
    for quarter in range(29, 60):
        late = lag.add(0.0, quarter / 4)
    assert late == 0.0


def test_the_worse_of_both_figures_decides() -> None:
    settings = MonitoringSettings(memory_threshold_bytes=100 * MEGABYTE, loop_lag_threshold_seconds=0.1)
    pressure = Pressure(settings)
    verdict = pressure.judge(memory_bytes=101 * MEGABYTE, lag_seconds=0.9, now=0.0)
    assert (verdict.stage, verdict.reason, verdict.too_much_now) == (Stage.SHED, "lag", True)
    verdict = pressure.judge(memory_bytes=0, lag_seconds=0.0, now=1.0)
    assert (verdict.stage, verdict.too_much_now) == (Stage.SHED, False), "kept, but nobody is to be closed"
    verdict = Pressure(settings).judge(memory_bytes=115 * MEGABYTE, lag_seconds=0.1, now=0.0)
    assert (verdict.stage, verdict.reason) == (Stage.REFUSE, "memory")


def resident_bytes(process: DataplaneProcess) -> int:
    assert process.pid is not None
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def events(process: DataplaneProcess) -> list[dict[str, Any]]:
    """What the instance logged, as far as the lines are whole."""
    whole, _, _ = process.log.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def stages(process: DataplaneProcess) -> list[str]:
    """Those that the instance entered, in order, from its log."""
    return [event["stage"] for event in events(process) if event["event"] == "pressure"]


@pytest.fixture
async def usual_bytes(redis_server: RedisServer, dataplane: DataplaneFleet) -> int:
    """What an instance with nothing to do has in memory here."""
    (process,) = await dataplane(redis_server, 1)
    return resident_bytes(process)


FREE = {
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND": "100000",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE": "1000000",
    "TABLEFORGE_SECURITY_MAX_BYTES_PER_SECOND": "1000000000",
    "TABLEFORGE_WEBSOCKET_WRITE_LIMIT_BYTES": "268435456",
}


async def test_memory_that_fills_with_slow_consumers_is_taken_back_from_them(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers, usual_bytes: int
) -> None:
    (process,) = await dataplane(
        redis_server,
        1,
        TABLEFORGE_MONITORING_MEMORY_THRESHOLD_BYTES=str(usual_bytes + 24 * MEGABYTE),
        **FREE,
    )
    server: Peer = process  # type: ignore[assignment]
    ada = await peers(server)  # type: ignore[arg-type]
    await ada.join("lobby")
    slow = await peers(server)  # type: ignore[arg-type]
    await slow.join("lobby")
    slow.socket.transport.pause_reading()
    refused = False
    for _ in range(3000):
        await ada.publish("lobby", os.urandom(15_000).hex())
        await ada.messages(1)
        found = events(process)
        if not refused and any(event.get("stage") in ("refuse", "shed") for event in found):
            with pytest.raises(InvalidStatus) as turned_away:
                await peers(server)  # type: ignore[arg-type]
            assert turned_away.value.response.status_code == 503
            assert turned_away.value.response.headers["Retry-After"]
            assert (await process.get("/ready"))[0] == 200, "pressure is no matter of readiness"
            refused = True
        if any(event["event"] == "shed" for event in found):
            break
    assert refused
    slow.socket.transport.resume_reading()
    assert await slow.closed() == 4408
    # what the slow one held is free again: new ones are let in
    async with asyncio.timeout(30):
        while True:
            try:
                late = await peers(server)  # type: ignore[arg-type]
                break
            except InvalidStatus:
                await asyncio.sleep(0.5)
    await late.join("lobby")
    await ada.published("lobby", "still here")
    assert (await late.messages(1))[0]["data"] == "still here"


async def test_a_process_that_gets_no_time_refuses_and_comes_back(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers
) -> None:
    (process,) = await dataplane(redis_server, 1, TABLEFORGE_MONITORING_LOOP_LAG_THRESHOLD="250")
    ada = await peers(process)  # type: ignore[arg-type]
    await ada.join("lobby")
    # stopped for most of the time, as a process is that has to share its core with too many
    async with asyncio.timeout(60):
        while not {"refuse", "shed"} & set(stages(process)):
            process.pause()
            await asyncio.sleep(1.5)  # how long it gets no time is what it notices
            process.resume()
            await asyncio.sleep(0.05)
    with pytest.raises(InvalidStatus) as turned_away:
        await peers(process)  # type: ignore[arg-type]
    assert turned_away.value.response.status_code == 503
    await until(lambda: stages(process)[-1] in ("warn", "calm"), within=60)
    await peers(process)  # type: ignore[arg-type]
    assert "Traceback" not in process.output()


async def test_where_nobody_is_slow_some_are_sent_elsewhere(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    everybody = [await peers(one) for _ in range(5)]
    closed = [asyncio.create_task(peer.closed(within=30)) for peer in everybody]
    one._relief._memory = lambda: 1 << 50
    await until(lambda: sum(task.done() for task in closed) >= 2, within=30)
    assert {task.result() for task in closed if task.done()} == {1013}
    assert one.metrics.connections_shed["memory"] >= 2
    one._relief._memory = lambda: 0
    for task in closed:
        task.cancel()
    await asyncio.gather(*closed, return_exceptions=True)


class Spent:
    """A budget of which nothing is left."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def take(self, wanted: int) -> int:
        self.asked.append(wanted)
        return 0


async def test_nobody_is_sent_elsewhere_beyond_the_budget(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    everybody = [await peers(one) for _ in range(5)]
    one._relief._budget = spent = Spent()
    one._relief._memory = lambda: 1 << 50
    await until(lambda: len(spent.asked) >= 2)
    one._relief._memory = lambda: 0
    for peer in everybody:
        await peer.silent()
    assert (set(spent.asked), one.metrics.connections_shed) == ({1}, {})


async def test_who_is_blackholed_is_found_by_ping_and_closed(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(
        redis_server, websocket={"ping_interval_seconds": 1.0, "pong_timeout_seconds": 0.5}
    )
    silent, alive = await peers(one), await peers(one)
    # nothing of what comes is looked at, and nothing is answered: as when packets vanish on their way
    silent.socket.transport.pause_reading()
    await until(lambda: one.metrics.connections == 1, within=30)
    await alive.silent()
    assert one.metrics.connections_closed["1011"] == 1
