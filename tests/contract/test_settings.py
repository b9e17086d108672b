"""Settings: what each parser takes and refuses, what contradicts, what is misspelt, and what never shows."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.settings import (
    Secret,
    Settings,
    Spec,
    Unit,
    specs,
)


def problems_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(environment.SettingsError) as caught:
        environment.read(environ)
    return caught.value.problems


def outcome_of(environ: dict[str, str]) -> tuple[Settings | None, list[str]]:
    try:
        return environment.read(environ), []
    except environment.SettingsError as error:
        return None, error.problems


def value_of(settings: Settings, path: str) -> Any:
    group, field = path.split(".")
    return getattr(getattr(settings, group), field)


def numbers() -> list[tuple[str, Spec]]:
    return [(path, spec) for path, (spec, _) in specs().items() if spec.minimum is not None]


def test_an_empty_environment_gives_the_guides_defaults() -> None:
    settings = environment.read({})
    assert settings == Settings()
    assert (settings.websocket.port, settings.websocket.max_connections) == (3001, 1000)
    assert (settings.redis.host, settings.redis.port) == ("localhost", 6379)
    assert settings.scaling.heartbeat_interval_seconds == 30
    assert settings.scaling.cleanup_interval_seconds == 60
    assert settings.scaling.inactive_threshold_seconds == 120
    assert settings.scaling.failover_timeout_seconds == 30
    assert settings.performance.batch_message_delay_seconds == 0.01
    assert settings.websocket.max_payload_bytes == 100 * 1024
    assert not settings.auth.required


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert environment.read({spec.env: "" for spec, _ in specs().values()}) == Settings()


def test_every_setting_has_a_variable_of_its_own_and_a_sentence() -> None:
    found = [spec for spec, _ in specs().values()]
    assert len({spec.env for spec in found}) == len(found) > 30
    for spec in found:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", spec.env)
        assert spec.doc.endswith(".")


@pytest.mark.parametrize(("path", "spec"), numbers())
def test_a_number_takes_its_bounds_and_nothing_beyond(path: str, spec: Spec) -> None:
    assert spec.minimum is not None
    assert spec.maximum is not None
    scale = 1000 if spec.unit is Unit.MILLISECONDS else 1
    for bound in (spec.minimum, spec.maximum):
        settings, problems = outcome_of({spec.env: f"{bound:.0f}"})
        # a bound may contradict another setting's default, but it is never out of bounds
        assert not any("a whole number" in problem for problem in problems)
        if settings is not None:
            assert value_of(settings, path) == bound / scale
    for beyond in (spec.minimum - 1, spec.maximum + 1):
        [problem] = problems_of({spec.env: f"{beyond:.0f}"})
        assert problem.startswith(f"{spec.env}='{beyond:.0f}': must be {spec.unit.value} from ")


@pytest.mark.parametrize("text", ["1.5", "1e3", "0x10", "1_000", " 7", "7 ", "+7", "٣", "seven", "9" * 400])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    [problem] = problems_of({"WS_MAX_CONNECTIONS": text})
    assert "must be a whole number from 1 to 1000000" in problem
    assert len(problem) < 250


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_any_text_is_a_number_within_bounds_or_a_problem(text: str) -> None:
    settings, problems = outcome_of({"WS_PORT": text, "TABLEFORGE_HTTP_PORT": "0"})
    if settings is None:
        assert [problem.startswith("WS_PORT=") for problem in problems] == [True]
    else:
        assert 0 <= settings.websocket.port <= 65535


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("TRUE", True), ("False", False)])
def test_a_flag_is_true_or_false(text: str, expected: bool) -> None:
    assert environment.read({"AUTH_REQUIRED": text, "JWT_SECRET": "k" * 32}).auth.required is expected


@pytest.mark.parametrize("text", ["yes", "1", "on", "truee"])
def test_other_words_are_no_flag(text: str) -> None:
    assert problems_of({"AUTH_REQUIRED": text}) == [f"AUTH_REQUIRED='{text}': must be true or false."]


def test_a_choice_takes_any_case_and_names_the_choices() -> None:
    assert environment.read({"LOG_LEVEL": "WARNING"}).logging.level == "warning"
    assert environment.read({"TABLEFORGE_REDIS_DURABILITY": "disk"}).redis.durability == "Disk"
    assert problems_of({"LOG_LEVEL": "loud"}) == [
        "LOG_LEVEL='loud': must be one of debug, info, warning, error."
    ]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("TABLEFORGE_REDIS_KEY_PREFIX", "with{brace}"),
        ("TABLEFORGE_REDIS_KEY_PREFIX", "x" * 201),
        ("INSTANCE_ID", "two words"),
        ("INSTANCE_ID", "line\nbreak"),
        ("REDIS_HOST", "redis://localhost"),
        ("REDIS_HOST", "redis\n"),
        ("WS_HOST", "every where"),
    ],
)
def test_a_text_must_match(name: str, bad: str) -> None:
    [problem] = problems_of({name: bad})
    assert problem.startswith(f"{name}=")
    assert "must match" in problem


@pytest.mark.parametrize("host", ["localhost", "10.0.0.1", "::1", "fe80::1%eth0", "redis.tables.svc"])
def test_hosts_are_names_and_addresses(host: str) -> None:
    assert environment.read({"REDIS_HOST": host}).redis.host == host


@pytest.mark.parametrize("networks", ["10.0.0.1/8", "300.0.0.1", "10.0.0.0/33", "proxy", "10.0.0.0/8;::1"])
def test_trusted_proxies_are_networks(networks: str) -> None:
    [problem] = problems_of({"TABLEFORGE_SECURITY_TRUSTED_PROXIES": networks})
    assert problem.startswith(f"TABLEFORGE_SECURITY_TRUSTED_PROXIES='{networks}': must ")


@pytest.mark.parametrize("origin", ["example.com", "https://", "https://*", "https://a/b", "https://a.*.com"])
def test_allowed_origins_are_origins(origin: str) -> None:
    [problem] = problems_of({"TABLEFORGE_SECURITY_ALLOWED_ORIGINS": origin})
    assert problem.startswith("TABLEFORGE_SECURITY_ALLOWED_ORIGINS: must be a list of origins")
    assert origin in problem


def test_every_problem_is_told_at_once() -> None:
    problems = problems_of({"WS_PORT": "x", "LOG_LEVEL": "loud", "TABLEFORGE_NONSENSE": "1"})
    assert [problem.split("=")[0].split(":")[0] for problem in problems] == [
        "WS_PORT",
        "LOG_LEVEL",
        "TABLEFORGE_NONSENSE",
    ]


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        (
            {"TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE": "50"},
            [
                "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE=50",
                "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND=100",
            ],
        ),
        (
            {"TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES": "1048576"},
            [
                "TABLEFORGE_WEBSOCKET_WRITE_LIMIT_BYTES=1048576",
                "TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES=1048576",
            ],
        ),
        (
            {"TABLEFORGE_ROOMS_LOG_MAX_BYTES": "16384"},
            ["TABLEFORGE_ROOMS_LOG_MAX_BYTES=16384", "TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES=102400"],
        ),
        ({"WS_PORT": "3002"}, ["WS_PORT=3002", "TABLEFORGE_HTTP_PORT=3002"]),
        ({"AUTH_REQUIRED": "true"}, ["AUTH_REQUIRED=true", "JWT_SECRET_FILE"]),
        (
            {"TABLEFORGE_WEBSOCKET_TLS_CERT_FILE": "/tls/tls.crt"},
            ["TABLEFORGE_WEBSOCKET_TLS_CERT_FILE", "TABLEFORGE_WEBSOCKET_TLS_KEY_FILE"],
        ),
        (
            {"TABLEFORGE_REDIS_MODE": "Cluster", "TABLEFORGE_REDIS_ADDRESSES": "a:1,b", "REDIS_DB": "2"},
            ["REDIS_DB=2", "TABLEFORGE_REDIS_MODE=Cluster"],
        ),
        (
            {"TABLEFORGE_REDIS_MODE": "Sentinel", "TABLEFORGE_REDIS_ADDRESSES": "a:1"},
            ["TABLEFORGE_REDIS_MODE=Sentinel", "TABLEFORGE_REDIS_SENTINEL_MASTER_NAME"],
        ),
        ({"TABLEFORGE_REDIS_MODE": "Cluster"}, ["TABLEFORGE_REDIS_MODE", "TABLEFORGE_REDIS_ADDRESSES"]),
        ({"TABLEFORGE_REDIS_ADDRESSES": "a:1"}, ["TABLEFORGE_REDIS_MODE", "TABLEFORGE_REDIS_ADDRESSES"]),
        ({"REDIS_USERNAME": "tables"}, ["REDIS_USERNAME=tables", "REDIS_PASSWORD_FILE"]),
        (
            {"TABLEFORGE_REDIS_TLS": "true", "TABLEFORGE_REDIS_TLS_CERT_FILE": "/tls.crt"},
            ["TABLEFORGE_REDIS_TLS_CERT_FILE", "TABLEFORGE_REDIS_TLS_KEY_FILE"],
        ),
        ({"TABLEFORGE_REDIS_TLS_CA_FILE": "/ca.crt"}, ["TABLEFORGE_REDIS_TLS:"]),
        (
            {"TABLEFORGE_SECURITY_PROXY_PROTOCOL": "true"},
            ["TABLEFORGE_SECURITY_PROXY_PROTOCOL=true", "TABLEFORGE_SECURITY_TRUSTED_PROXIES"],
        ),
        (
            {"TABLEFORGE_SECURITY_TRUSTED_PROXIES": "none, 10.0.0.0/8"},
            ["TABLEFORGE_SECURITY_TRUSTED_PROXIES", "not both"],
        ),
    ],
)
def test_a_contradiction_names_both_sides(environ: dict[str, str], named: list[str]) -> None:
    [problem] = problems_of(environ)
    for name in named:
        assert name in problem


def test_a_value_that_could_not_be_read_contradicts_nothing() -> None:
    problems = problems_of(
        {
            "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND": "few",
            "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE": "50",
        }
    )
    assert len(problems) == 1


def test_two_ports_that_the_system_chooses_do_not_collide() -> None:
    settings = environment.read({"WS_PORT": "0", "TABLEFORGE_HTTP_PORT": "0"})
    assert settings.websocket.port == settings.http.port == 0


def test_a_misspelt_setting_is_refused_with_the_nearest_name() -> None:
    assert problems_of({"TABLEFORGE_ROOM_LOG_MAX_BYTES": "1"}) == [
        "TABLEFORGE_ROOM_LOG_MAX_BYTES: no such setting. Did you mean TABLEFORGE_ROOMS_LOG_MAX_BYTES?"
    ]


def test_the_guides_names_misspelt_are_warned_about() -> None:
    # without the prefix they may belong to another program: no reason to end this one
    settings = environment.read({"REDIS_PASSWORT": "secret-value", "HEARTBEAT_INTERVALL": "1"})
    assert settings.warnings == (
        "HEARTBEAT_INTERVALL is not a setting and has no effect: did you mean HEARTBEAT_INTERVAL?",
        "REDIS_PASSWORT is not a setting and has no effect: did you mean REDIS_PASSWORD?",
    )
    assert environment.read({"PATH": "/bin", "HOME": "/", "REDIS_URL": "redis://x"}).warnings == ()


SERVICE_LINKS = {
    "TABLEFORGE_OPERATOR_SERVICE_HOST": "10.0.0.7",
    "TABLEFORGE_OPERATOR_SERVICE_PORT": "443",
    "TABLEFORGE_OPERATOR_SERVICE_PORT_HTTPS": "443",
    "TABLEFORGE_OPERATOR_PORT": "tcp://10.0.0.7:443",
    "TABLEFORGE_OPERATOR_PORT_443_TCP": "tcp://10.0.0.7:443",
    "TABLEFORGE_OPERATOR_PORT_443_TCP_PROTO": "tcp",
    "TABLEFORGE_OPERATOR_PORT_443_TCP_PORT": "443",
    "TABLEFORGE_OPERATOR_PORT_443_TCP_ADDR": "10.0.0.7",
}


def test_what_kubernetes_sets_for_a_service_is_no_misspelt_setting() -> None:
    assert environment.read(SERVICE_LINKS) == Settings()


@pytest.mark.parametrize(
    "name", ["TABLEFORGE_HTTPS_PORT", "TABLEFORGE_SERVICE_PORT", "TABLEFORGE_OPERATOR_PORT_443_TLS"]
)
def test_what_only_looks_like_it_is(name: str) -> None:
    [problem] = problems_of({**SERVICE_LINKS, name: "3002"})
    assert problem.startswith(f"{name}: no such setting.")


def test_a_service_called_redis_is_recognised_in_the_port() -> None:
    [problem] = problems_of({"REDIS_PORT": "tcp://10.0.0.7:6379"})
    assert "enableServiceLinks: false" in problem


def test_the_pubsub_database_is_accepted_and_warned_about() -> None:
    [warning] = environment.read({"REDIS_PUBSUB_DB": "1"}).warnings
    assert "TABLEFORGE_REDIS_KEY_PREFIX" in warning


def test_of_two_limits_of_an_instance_the_one_that_does_not_count_is_warned_about() -> None:
    [warning] = environment.read({"WS_MAX_CONNECTIONS": "5000"}).warnings
    assert "raise TABLEFORGE_LOAD_BALANCING_MAX_CONNECTIONS_PER_INSTANCE" in warning
    both = {"WS_MAX_CONNECTIONS": "5000", "TABLEFORGE_LOAD_BALANCING_MAX_CONNECTIONS_PER_INSTANCE": "5000"}
    assert (environment.read(both).warnings, environment.read(both).capacity) == ((), 5000)


SECRETS = [
    "REDIS_PASSWORD",
    "TABLEFORGE_REDIS_SENTINEL_PASSWORD",
    "JWT_SECRET",
    "TABLEFORGE_AUTH_PREVIOUS_JWT_SECRET",
    "TABLEFORGE_AUTH_PUBLIC_KEY",
    "TABLEFORGE_HTTP_FLEET_KEY",
    "TABLEFORGE_HTTP_API_KEY",
]


def test_these_are_all_the_secrets() -> None:
    assert [spec.env for spec, default in specs().values() if isinstance(default, Secret)] == SECRETS


def test_a_secret_never_shows() -> None:
    text = "correct-horse-battery-staple-and-more"
    settings = environment.read(dict.fromkeys(SECRETS, text))
    assert settings.auth.jwt_secret.read() == text
    shown = [repr(settings), str(settings), f"{settings.redis}", repr(settings.redis.password)]
    shown += [str(environment.show(settings))]
    assert not any(text in line for line in shown)


@pytest.mark.parametrize("bad", ["too-short", "-----BEGIN PUBLIC KEY-----\n" + "A" * 60])
def test_a_refused_secret_does_not_show_in_the_problem(bad: str) -> None:
    [problem] = problems_of({"JWT_SECRET": bad})
    assert problem.startswith("JWT_SECRET: must be")
    assert bad not in problem


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_comes_by_value_or_by_file_but_not_by_both(name: str) -> None:
    value = "s" * 40
    assert problems_of({name: value, f"{name}_FILE": "/etc/secret"}) == [
        f"{name} and {name}_FILE are both set: give one of them."
    ]


def test_a_secrets_file_is_read_when_asked_and_need_not_exist_before(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    secret = environment.read({"JWT_SECRET_FILE": str(file)}).auth.jwt_secret
    assert secret.configured
    assert secret.read() is None
    file.write_text("first\n")
    assert secret.read() == "first"
    file.write_text("second\r\n")
    assert secret.read() == "second"
    file.write_text("\n")
    assert secret.read() is None
    file.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        secret.read()


def _values(spec: Spec, kind: Any) -> st.SearchStrategy[str]:
    if kind is bool:
        return st.sampled_from(["true", "false"])
    if get_origin(kind) is not None:
        return st.sampled_from(get_args(kind))
    if spec.minimum is not None and spec.maximum is not None:
        return st.integers(int(spec.minimum), int(spec.maximum)).map(str)
    assert spec.pattern is not None
    if spec.examples:
        return st.sampled_from(spec.examples)
    return st.from_regex(spec.pattern, fullmatch=True).filter(lambda text: text != "")


def _kinds() -> dict[str, Any]:
    return {
        f"{group.name}.{field.name}": field.type
        for group in dataclasses.fields(Settings)
        if group.name != "warnings"
        for field in dataclasses.fields(group.default)
    }


@given(
    st.fixed_dictionaries(
        {},
        optional={
            spec.env: _values(spec, _kinds()[path])
            for path, (spec, default) in specs().items()
            if not isinstance(default, Secret) and path != "live.file"  # there would have to be one
        },
    )
)
def test_what_was_read_can_be_written_and_read_again(environ: dict[str, str]) -> None:
    settings, problems = outcome_of(environ)
    # each value is within its bounds: only two of them can disagree
    assert all(
        re.search(
            "must (not both|be at least|be 0|be set|be true|be different ports|both|come with)|needs JWT",
            problem,
        )
        for problem in problems
    )
    if settings is None:
        return
    written = environment.show(settings)
    assert environment.read(written) == settings
    for name, text in environ.items():
        assert written[name].lower() == text.lower() or float(written[name]) == float(text)
