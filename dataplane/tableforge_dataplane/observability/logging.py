"""Logs are events with fields: `log.info("redis_connected", version="9.0")`, an object a line on stdout.

The standard library's logging carries them, so that the libraries' own messages come out in the same form.
"""

import datetime as dt
import json
import logging
import math
import re
import sys
from typing import Any, Final, TextIO

from tableforge_dataplane.contract.settings import LoggingSettings, LogLevel

ROOT: Final = "tableforge"

REDACTED: Final = "[redacted]"

MAX_FIELD_CHARACTERS: Final = 2000
"""A longer text in a field is cut: some of it may come from a client."""

_TOKEN: Final = re.compile(r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# At debug level websockets writes whole handshakes and frames, tokens and passwords among them, and at info
# a line per connection; aiohttp and asyncio likewise talk of every request.
_QUIET_LIBRARIES: Final = ("websockets", "aiohttp", "asyncio", "redis")


class Redaction:
    """Secret values that must not show in any line, whatever library wrote it. Grows as files are re-read."""

    def __init__(self) -> None:
        self._values: set[str] = set()

    def add(self, value: str | None) -> None:
        """From now on `value` is replaced wherever it shows; texts under 8 characters would hit too much."""
        if value is None or len(value) < 8:
            return
        self._values.add(value)
        self._values.add(json.dumps(value, ensure_ascii=False)[1:-1])

    def apply(self, text: str) -> str:
        """`text` without known secrets and without anything that looks like a JSON Web Token."""
        for value in self._values:
            text = text.replace(value, REDACTED)
        return _TOKEN.sub(REDACTED, text)


REDACTION: Final = Redaction()
"""Of this process."""


class EventLog:
    """Writes events of one part of the program. Names are lower_snake_case and stable: people search them."""

    __slots__ = ("_logger",)

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{part}")

    def debug(self, event: str, **fields: Any) -> None:
        """For whoever looks for a bug."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something the operator of a fleet wants to be able to look up."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that needs looking at, but not now."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, error: BaseException | None = None, **fields: Any) -> None:
        """Something is broken; `error` adds its type, text and traceback."""
        self._write(logging.ERROR, event, fields, error)

    def _write(
        self, level: int, event: str, fields: dict[str, Any], error: BaseException | None = None
    ) -> None:
        if self._logger.isEnabledFor(level):
            exc_info = (type(error), error, error.__traceback__) if error is not None else None
            self._logger.log(level, event, exc_info=exc_info, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `ts` (UTC), `level`, `instance`, `part`, `event`, then the event's fields."""

    def __init__(self, instance: str, redaction: Redaction) -> None:
        super().__init__()
        self._instance = instance
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        """The line for `record`, without a line break."""
        line: dict[str, Any] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "instance": self._instance,
            "part": _part(record),
            "event": record.getMessage(),
        }
        for name, value in getattr(record, "fields", {}).items():
            # a field can never replace what the line itself says
            line[f"{name}_" if name in line else name] = _plain(value)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return self._redaction.apply(json.dumps(line, ensure_ascii=False, default=str))


class TextFormatter(logging.Formatter):
    """A line for people: time, level, part, event, fields as name=value."""

    def __init__(self, instance: str, redaction: Redaction) -> None:
        super().__init__()
        self._instance = instance
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        """The line for `record`; a traceback follows on lines of its own."""
        fields = "".join(
            f" {name}={_word(_plain(value))}" for name, value in getattr(record, "fields", {}).items()
        )
        clock = _timestamp(record.created)[11:-1]
        message = record.getMessage().replace("\n", "\\n")
        line = f"{clock} {record.levelname.lower():7} {self._instance} {_part(record)}: {message}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return self._redaction.apply(line)


class LineHandler(logging.Handler):
    """Writes whole lines to a stream and drops them where nobody reads: a log must not end a server."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging with the handler's lock held."""
        try:
            # lone surrogates can come from a client's JSON and cannot be written
            line = self.format(record).encode("utf-8", "backslashreplace").decode("utf-8")
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += 1


def configure(settings: LoggingSettings, *, instance: str, stream: TextIO | None = None) -> None:
    """Send everything that is logged to `stream` (standard output where None), in the format asked for."""
    formatter: logging.Formatter = (
        JsonFormatter(instance, REDACTION)
        if settings.format == "json"
        else TextFormatter(instance, REDACTION)
    )
    handler = LineHandler(sys.stdout if stream is None else stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(settings.level)
    logging.captureWarnings(True)


def set_level(name: LogLevel) -> None:
    """Log nothing that is less serious from now on."""
    level = _LEVELS[name]
    logging.getLogger().setLevel(level)
    for library in _QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(max(level, logging.WARNING))


def _timestamp(seconds: float) -> str:
    moment = dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT}.")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, BaseException):
        value = f"{type(value).__name__}: {value}"
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value[:100]]
    text = str(value)
    return text if len(text) <= MAX_FIELD_CHARACTERS else f"{text[:MAX_FIELD_CHARACTERS]}…"


def _word(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[^\s\"'=]+", value):
        return value
    return json.dumps(value, ensure_ascii=False)
