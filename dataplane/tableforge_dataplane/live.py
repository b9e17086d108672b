"""Settings that change while the instance runs: their file is watched, and handed on as a whole."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tableforge_dataplane.contract.environment import SettingsError
from tableforge_dataplane.contract.live import FILE_VARIABLE, MAX_BYTES, differences, fingerprint
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog

LOOK_SECONDS: Final = 1.0

_log = EventLog("settings")

_Stamp = tuple[int, int, int]


class LiveSource:
    """Looks at the live settings file from `start()` to `stop()`."""

    def __init__(
        self,
        settings: Settings,
        *,
        reread: Callable[[], Settings],
        apply: Callable[[Settings], None],
        held: Callable[[str], None],
    ) -> None:
        """`reread` reads environment and file anew and raises SettingsError; `apply` gets what is to hold,
        and `held` then the fingerprint of the file that it is from.
        """
        self._settings = settings
        self._reread = reread
        self._apply = apply
        self._held = held
        self._fingerprint = ""
        self._file = Path(settings.live.file)
        self._seen: _Stamp | None = None
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = None
        """Why what the file says now does not hold; None where it does."""

    def start(self) -> None:
        """Begin to look. What the file says already is looked at too: it may have changed since the start."""
        self._task = asyncio.create_task(keep_going(self._look_forever, log=_log), name="live-settings")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look_forever(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def _read(self) -> str:
        with self._file.open("rb") as opened:
            return fingerprint(opened.read(MAX_BYTES + 1))

    def look(self) -> None:
        """Read the file where it is another one than last time, or could not be used then."""
        # Kubernetes replaces a mounted ConfigMap by swapping a symbolic link: another inode then
        try:
            status = self._file.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            seen = None
        if seen is not None and seen == self._seen:
            return
        self._seen = seen
        try:
            # Before: should the file change in between, the next look finds it changed, and tells then.
            found = self._read()
            settings = self._reread()
        except (OSError, SettingsError) as error:
            problem = (
                " ".join(error.problems)
                if isinstance(error, SettingsError)
                else f"{FILE_VARIABLE}={self._file}: cannot be read ({error.strerror})."
            )
            if FILE_VARIABLE not in problem:
                problem = f"{FILE_VARIABLE}={self._file} is not used: {problem}"
            if problem != self.problem:
                _log.error("live_settings_refused", problem=problem, old_ones_stay=True)
            self.problem = problem
            # A read that failed says nothing about what is there. Trying again each second costs 0.3 ms.
            self._seen = None
            return
        self.problem = None
        if changed := differences(self._settings, settings):
            self._settings = settings
            self._apply(settings)
            _log.info("live_settings", **{name.lower(): str(value) for name, value in changed.items()})
        if found != self._fingerprint:
            self._fingerprint = found
            self._held(found)
