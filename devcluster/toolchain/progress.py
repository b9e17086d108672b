"""Shows how far the build is: one line that changes at a terminal, a line now and then in a CI log."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

TERMINAL_INTERVAL_SECONDS = 0.2
LOG_INTERVAL_SECONDS = 15.0


class Progress:
    """Lines that stay (`say`) and one that changes (`update`); both carry the time since the start."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = TERMINAL_INTERVAL_SECONDS if self._terminal else LOG_INTERVAL_SECONDS
        self._started = time.monotonic()
        self._last_update = float("-inf")
        self._open_line = False

    def say(self, text: str) -> None:
        """A line that stays."""
        self._end_line()
        print(f"{self._clock()} {text}", file=self._stream, flush=True)

    def update(self, text: str) -> None:
        """Where things are now; shown unless the last one was shown a moment ago."""
        now = time.monotonic()
        if now - self._last_update < self._interval:
            return
        self._last_update = now
        line = f"{self._clock()} {text}"
        if not self._terminal:
            print(line, file=self._stream, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{line[:width]}", end="", file=self._stream, flush=True)
        self._open_line = True

    def close(self) -> None:
        """Leave the cursor on a line of its own."""
        self._end_line()

    def _end_line(self) -> None:
        if self._open_line:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._open_line = False

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"[{minutes}:{seconds:02d}]"
