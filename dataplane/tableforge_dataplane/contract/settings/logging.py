"""`Settings.logging`."""

import dataclasses
from typing import Literal

from tableforge_dataplane.contract.settings.declaration import setting

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "text"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingSettings:
    """What is logged, and how."""

    level: LogLevel = setting("info", "LOG_LEVEL", "The least serious level that is logged.", live=True)
    format: LogFormat = setting("json", "LOG_FORMAT", "`json`, an object a line, or `text` for people.")
