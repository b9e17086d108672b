"""Settings that change while an instance runs: they act on who is connected, and nobody is dropped."""

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.fleet import Health
from tableforge_dataplane.contract.live import LIVE, MAX_BYTES, fingerprint
from tableforge_dataplane.contract.room_options import RoomRules
from tableforge_dataplane.contract.settings import SecuritySettings, Settings
from tableforge_dataplane.live import LiveSource
from tableforge_dataplane.rooms.options import OptionsSource
from tableforge_dataplane.security.addresses import parse_address
from tableforge_dataplane.session.limits import ByteBudgets, CommandRate
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer


class LiveFile:
    """A live settings file, replaced as a kubelet replaces a mounted ConfigMap: by swapping a link."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "settings.json"
        self._folder = folder
        self._number = 0

    def say(self, text: str) -> None:
        self._number += 1
        target = self._folder / f"data-{self._number}"
        target.write_text(text)
        link = self._folder / "link"
        link.symlink_to(target)
        link.rename(self.path)

    def hold(self, **variables: str) -> None:
        self.say(json.dumps(variables))


@pytest.fixture
def live(tmp_path: Path) -> LiveFile:
    (tmp_path / "live").mkdir()
    return LiveFile(tmp_path / "live")


def logged(process: DataplaneProcess, event: str) -> list[dict[str, Any]]:
    whole, _, _ = process.log.read_text().rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


async def health(process: DataplaneProcess) -> Health:
    return msgspec.json.decode((await process.get("/health"))[1], type=Health)


async def until_true(look: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `look` says so."""
    async with asyncio.timeout(60):
        while True:
            if await look():
                return
            await asyncio.sleep(0.1)


async def test_limits_log_level_and_switches_change_under_a_connected_client(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers, live: LiveFile
) -> None:
    live.hold(LOG_LEVEL="info")
    (process,) = await dataplane(redis_server, 1, TABLEFORGE_LIVE_SETTINGS_FILE=str(live.path))
    ada = await peers(process)
    await ada.join("lobby")
    assert (await process.get("/metrics", port=process.http_port))[0] == 200
    live.hold(
        LOG_LEVEL="warning",
        TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND="2",
        TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE="2",
        TABLEFORGE_MONITORING_ENABLE_METRICS="false",
    )

    async def metrics_are_off() -> bool:
        return (await process.get("/metrics", port=process.http_port))[0] == 404

    await until_true(metrics_are_off)
    for number in range(2):
        await ada.published("lobby", number)
    await ada.publish("lobby", 3)
    refused = await ada.until("error")
    assert (refused["code"], refused["command"]) == ("rate_limited", "publish")
    assert "At most 2 commands a second" in refused["message"]
    # what is written at level info from now on is not in the log any more: this very change is the last
    assert not logged(process, "live_settings")

    live.hold(LOG_LEVEL="info", TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND="50")
    await until(lambda: bool(logged(process, "live_settings")), within=60)
    (line,) = logged(process, "live_settings")
    assert (line["log_level"], line["tableforge_security_max_messages_per_second"]) == ("info", "50")
    await ada.published("lobby", "as before", echo=False)
    assert process.running


async def test_a_file_that_cannot_be_used_changes_nothing_and_shows(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers, live: LiveFile
) -> None:
    live.hold(TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION="1")
    (process,) = await dataplane(redis_server, 1, TABLEFORGE_LIVE_SETTINGS_FILE=str(live.path))
    ada = await peers(process)
    await ada.join("lobby")
    assert (await health(process)).problems == []
    bad = {
        "settings.json is not used: TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION='0': must be": json.dumps(
            {"TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION": "0", "LOG_LEVEL": "debug"}
        ),
        "must be a JSON object": "TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION=5",
        "WS_PORT cannot change while an instance runs": json.dumps({"WS_PORT": "3"}),
    }
    for said, text in bad.items():
        live.say(text)

        async def shows(said: str = said) -> bool:
            return any(said in problem for problem in (await health(process)).problems)

        await until_true(shows)
    assert (await health(process)).status == "healthy", "it goes on as before"
    assert len(logged(process, "live_settings_refused")) == len(bad), "told once each"
    await ada.say({"type": "join", "id": 1, "room": "another"})
    assert "1 rooms" in (await ada.until("error"))["message"], "the good one holds"

    live.hold(TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION="2")
    await until(lambda: bool(logged(process, "live_settings")), within=60)
    assert (await health(process)).problems == []
    await ada.join("another")


BAD_AT_START = [
    ("", "must be a JSON object"),
    ("[1]", "must be a JSON object"),
    ('{"LOG_LEVEL": 1}', "must be a JSON object of texts"),
    ('{"LOG_LEVEL": "loud"}', "LOG_LEVEL='loud': must be one of"),
    ('{"REDIS_PASSWORD": "hunter22"}', "REDIS_PASSWORD cannot change while an instance runs"),
    ('{"JWT_SECRET_FILE": "/x"}', "JWT_SECRET_FILE cannot change while an instance runs"),
    ('{"TABLEFORGE_LIVE_SETTINGS_FILE": "/x"}', "cannot change while an instance runs"),
    ('{"LOG_LEVELL": "info"}', "LOG_LEVELL is no setting"),
    (" " * (MAX_BYTES + 1), "is longer than"),
]


@pytest.mark.parametrize(("text", "says"), BAD_AT_START, ids=[said for _, said in BAD_AT_START])
def test_at_the_start_what_is_wrong_is_named(live: LiveFile, text: str, says: str) -> None:
    live.say(text)
    with pytest.raises(environment.SettingsError) as caught:
        environment.read({"TABLEFORGE_LIVE_SETTINGS_FILE": str(live.path)})
    assert any(says in problem for problem in caught.value.problems), caught.value.problems
    assert "hunter22" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(environment.SettingsError, match="cannot be read"):
        environment.read({"TABLEFORGE_LIVE_SETTINGS_FILE": str(tmp_path / "none")})


def test_the_file_wins_over_the_environment_and_what_it_leaves_out_does_not_change(live: LiveFile) -> None:
    live.hold(LOG_LEVEL="debug")
    environ = {"TABLEFORGE_LIVE_SETTINGS_FILE": str(live.path), "LOG_LEVEL": "error", "WS_PORT": "4000"}
    found = environment.read(environ)
    assert (found.logging.level, found.websocket.port) == ("debug", 4000)
    live.hold()
    assert environment.read(environ).logging.level == "error"


def test_what_decides_between_clusters_and_connections_is_never_live() -> None:
    never = ("REDIS_", "JWT_", "WS_PORT", "WS_HOST", "INSTANCE_ID", "TABLEFORGE_REDIS_", "TABLEFORGE_HTTP_")
    assert not [name for name in LIVE if name.startswith(never)]
    assert "AUTH_REQUIRED" not in LIVE


def changed(settings: Settings, **groups: dict[str, Any]) -> Settings:
    new = {name: dataclasses.replace(getattr(settings, name), **more) for name, more in groups.items()}
    return dataclasses.replace(settings, **new)


async def test_who_comes_and_what_clients_ask_for_is_judged_by_the_new_settings(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    settings = one._settings
    ada = await peers(one)
    for room in ("a", "b"):
        await ada.join(room)
    one.renew(
        changed(
            settings,
            websocket={"max_connections": 1},
            security={
                "max_rooms_per_connection": 1,
                "allowed_origins": "https://app.example.com",
            },
        )
    )
    # who is in more rooms than that stays there, and gets into no other
    await ada.published("b", 1)
    await ada.say({"type": "join", "id": 1, "room": "c"})
    assert (await ada.until("error"))["code"] == "too_many_rooms"
    with pytest.raises(InvalidStatus) as refused:
        await peers(one)
    assert refused.value.response.status_code == 503

    one.renew(changed(settings, load_balancing={"max_connections_per_instance": 2}))
    await ada.join("c")
    await peers(one)
    with pytest.raises(InvalidStatus) as refused:
        await peers(one)
    assert refused.value.response.status_code == 503
    await until(lambda: one._registry._written is not None)

    async def told() -> bool:
        return (await one._registry.fleet()).instances[0].capacity == 2

    await until_true(told)

    one.renew(changed(settings, security={"allowed_origins": "https://app.example.com"}))
    await peers(one, origin="https://app.example.com")
    stranger = await peers(one, welcome=False, origin="https://elsewhere.example.com")
    assert (await stranger.hear_type("error"))["code"] == "forbidden"

    rights = '{"join":["open"],"publish":[],"presence":[],"direct":[]}'
    one.renew(changed(settings, auth={"default_rights": rights}))
    bob = await peers(one)
    await bob.join("open")
    await bob.say({"type": "join", "id": 1, "room": "closed"})
    assert (await bob.until("error"))["code"] == "forbidden"
    await ada.join("d")


async def test_rooms_their_logs_and_their_presence_go_by_the_new_settings(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={"enable_rate_limiting": False})
    settings = one._settings
    ada = await peers(one)
    await ada.join("news")
    await ada.join("cursor:1")
    options = '[{"pattern":"news","publish":"server"},{"pattern":"cursor:*","volatile":true}]'
    one.renew(
        changed(settings, rooms={"options": options, "log_max_messages": 32, "presence_grace_seconds": 9.0})
    )
    await ada.publish("news", 1)
    assert (await ada.until("error"))["code"] == "forbidden"
    assert "pos" not in await ada.published("cursor:1", 1)
    assert one.broker.rules.of("anything").log.max_messages == 32
    assert one.presence.grace_seconds == 9.0
    one.renew(settings)
    await ada.published("news", 2)


async def test_the_rest_is_where_it_acts(redis_server: RedisServer, instances: Instances) -> None:
    (one,) = await instances(redis_server)
    one.renew(
        changed(
            one._settings,
            rollout={"max_reconnects_per_second": 7},
            monitoring={
                "memory_threshold_bytes": 123_000_000_000,
                "metrics_interval_seconds": 0.05,
                "health_check_interval_seconds": 0.1,
                "enable_detailed_logging": True,
            },
            security={"handshake_timeout_seconds": 3.0, "trusted_proxies": "10.0.0.0/8"},
        )
    )
    assert one._registry.budget.per_second == 7
    assert one.metrics.memory_threshold_bytes == 123_000_000_000
    assert one.handshake_timeout_seconds == 3.0
    assert one._door.addresses.trusts(parse_address("10.1.2.3"))
    assert [task.get_name() for task in one._reporter._tasks] == ["report-health", "report-numbers"]


def test_limits_change_over_a_clock_that_the_test_holds() -> None:
    settings = dataclasses.replace(SecuritySettings(), max_messages_per_second=10)
    rate = CommandRate(settings)
    assert [rate.take(100.0) for _ in range(8)] == [None] * 8
    rate.renew(dataclasses.replace(settings, max_messages_per_second=2))
    assert [rate.take(100.1) for _ in range(2)] == [None] * 2, "nobody is refused for what was allowed"
    assert rate.take(100.2) == pytest.approx(0.8)
    assert not rate.hopeless
    rate.renew(dataclasses.replace(settings, enable_rate_limiting=False))
    assert [rate.take(100.3) for _ in range(5000)] == [None] * 5000


def test_budgets_change_for_who_has_one_and_who_comes() -> None:
    settings = dataclasses.replace(SecuritySettings(), max_bytes_per_second=1000)
    budgets = ByteBudgets(settings)
    ada = budgets.of("ada")
    assert ada.take(1000, 50.0) is None
    budgets.renew(dataclasses.replace(settings, max_bytes_per_second=100, max_messages_per_second=1))
    for budget in (ada, budgets.of("bob")):
        assert budget.take(100, 50.0) is None
        assert budget.take(100, 50.0) == 1.0
        assert budget.commands is not None
        assert budget.commands.take(50.0) is None
        assert budget.commands.take(50.0) == 1.0
    budgets.renew(dataclasses.replace(settings, enable_rate_limiting=False))
    assert ada.commands is None
    assert ada.take(10**9, 51.0) is None


def test_a_source_applies_only_what_differs(live: LiveFile) -> None:
    live.hold(LOG_LEVEL="info")
    environ = {"TABLEFORGE_LIVE_SETTINGS_FILE": str(live.path)}
    applied: list[Settings] = []
    held: list[str] = []
    source = LiveSource(
        environment.read(environ),
        reread=lambda: environment.read(environ),
        apply=applied.append,
        held=held.append,
    )
    source.look()
    assert applied == []
    live.hold(LOG_LEVEL="debug")
    source.look()
    source.look()
    assert [settings.logging.level for settings in applied] == ["debug"]
    info, debug = fingerprint(b'{"LOG_LEVEL": "info"}'), fingerprint(b'{"LOG_LEVEL": "debug"}')
    assert held == [info, debug], "each is told once it holds"
    live.hold(LOG_LEVEL="deafening")
    source.look()
    assert held == [info, debug], "what is refused is not gone by"
    live.path.unlink()
    source.look()
    assert "cannot be read" in (source.problem or "")
    live.hold(LOG_LEVEL="debug")
    source.look()
    assert source.problem is None
    assert len(applied) == 1


def test_a_read_that_fails_once_is_made_up_for_though_the_file_stays_the_same(live: LiveFile) -> None:
    live.hold(LOG_LEVEL="info")
    environ = {"TABLEFORGE_LIVE_SETTINGS_FILE": str(live.path)}
    applied: list[Settings] = []
    fails = [True]

    def reread() -> Settings:
        if fails.pop() if fails else False:
            raise environment.SettingsError(["TABLEFORGE_LIVE_SETTINGS_FILE: cannot be read (I/O error)."])
        return environment.read(environ)

    source = LiveSource(
        environment.read(environ), reread=reread, apply=applied.append, held=list[str]().append
    )
    live.hold(LOG_LEVEL="debug")
    source.look()
    assert source.problem is not None
    assert applied == []
    source.look()
    assert source.problem is None
    assert [settings.logging.level for settings in applied] == ["debug"]


def test_a_logs_limit_that_comes_before_the_frames_takes_no_other_setting_with_it(live: LiveFile) -> None:
    live.hold(LOG_LEVEL="info")
    environ = {"TABLEFORGE_LIVE_SETTINGS_FILE": str(live.path)}
    before, applied = environment.read(environ), list[Settings]()
    source = LiveSource(
        before, reread=lambda: environment.read(environ), apply=applied.append, held=list[str]().append
    )
    live.hold(
        LOG_LEVEL="debug",
        TABLEFORGE_ROOMS_LOG_MAX_BYTES="20000",
        TABLEFORGE_ROOMS_PERSONAL_MAX_BYTES="20000",
        TABLEFORGE_ROOMS_OPTIONS='[{"pattern":"news","logMaxBytes":20000}]',
    )
    source.look()
    assert source.problem is None

    def limits(settings: Settings) -> set[int]:
        rules: list[RoomRules] = []
        OptionsSource(settings, apply=rules.append)
        return {rules[-1].of(room).log.max_bytes for room in ("news", "other", "@ada")}

    (here,) = applied
    assert here.logging.level == "debug"
    assert limits(here) == {102_400}, "a log holds a message that this instance lets in"
    smaller = {"TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES": "20000"}
    assert limits(environment.read({**environ, **smaller})) == {20_000}
