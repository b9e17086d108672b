"""Logs: one object a line, whatever is logged by whomever, and no secrets."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tableforge_dataplane.contract.settings import LoggingSettings
from tableforge_dataplane.observability.logging import REDACTED, REDACTION, EventLog, configure

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)


def logged(*, level: Any = "info", format: Any = "json") -> tuple[EventLog, io.StringIO]:  # noqa: A002
    stream = io.StringIO()
    configure(LoggingSettings(level=level, format=format), instance="one", stream=stream)
    return EventLog("part"), stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_object_with_its_fields() -> None:
    log, stream = logged()
    log.info("redis_connected", version="9.0", shards=3, ok=True, missing=None, names=["a", "b"])
    [line] = lines(stream)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info",
        "instance": "one",
        "part": "part",
        "event": "redis_connected",
        "version": "9.0",
        "shards": 3,
        "ok": True,
        "missing": None,
        "names": ["a", "b"],
    }


def test_what_is_below_the_level_is_not_logged() -> None:
    log, stream = logged(level="warning")
    log.info("quiet")
    log.warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_an_error_brings_its_traceback_on_the_same_line() -> None:
    log, stream = logged()
    try:
        raise ValueError("broken\nin two lines")
    except ValueError as error:
        log.error("failed", error=error, room="a")
    [line] = lines(stream)
    assert "ValueError: broken" in line["traceback"]
    assert line["room"] == "a"


def test_no_field_takes_the_place_of_the_line_itself_or_breaks_it() -> None:
    log, stream = logged()
    log.info("said", level="forged", instance="forged", user='"\n{}', number=float("nan"), long="x" * 5000)
    log.info("half", user="\ud800")
    [said, half] = lines(stream)
    assert (said["level"], said["instance"], said["level_"]) == ("info", "one", "forged")
    assert said["user"] == '"\n{}'
    assert said["number"] == "nan"
    assert len(said["long"]) < 2100
    assert half["event"] == "half"


def test_libraries_speak_the_same_form_and_only_from_warnings_on() -> None:
    _, stream = logged(level="debug")
    # at debug level it writes handshakes with their headers, tokens among them
    logging.getLogger("websockets.server").debug("< Authorization: Bearer secret")
    logging.getLogger("websockets.server").info("connection open")
    logging.getLogger("aiohttp.server").error("odd request %s", 7)
    [line] = lines(stream)
    assert (line["part"], line["event"], line["level"]) == ("aiohttp.server", "odd request 7", "error")


@pytest.mark.parametrize("format", ["json", "text"])
def test_known_secrets_and_tokens_do_not_show(format: str) -> None:  # noqa: A002
    log, stream = logged(format=format)
    for secret in ("correct-horse-battery", 'with"quote-and-\\slash'):
        REDACTION.add(secret)
        log.info("connected", url=f"redis://:{secret}@host")
        log.error("failed", error=ValueError(f"bad password {secret}"))
        assert secret not in stream.getvalue()
        assert json.dumps(secret)[1:-1] not in stream.getvalue()
    log.info("refused", header=f"Bearer {TOKEN}")
    assert TOKEN not in stream.getvalue()
    assert stream.getvalue().count(REDACTED) >= 5


def test_text_is_for_people() -> None:
    log, stream = logged(format="text")
    log.warning("redis_lost", reason="Unreachable", message="it does not answer")
    assert stream.getvalue().split(" ", 1)[1] == (
        'warning one part: redis_lost reason=Unreachable message="it does not answer"\n'
    )


def test_a_stream_nobody_reads_ends_nothing() -> None:
    log, stream = logged()
    stream.close()
    log.info("into_the_void")
