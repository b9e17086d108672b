"""Where rooms' options come from: the settings, or a file that is read again when it changes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tableforge_dataplane.contract.room_options import RoomOptionsError, RoomRules, parse_room_options
from tableforge_dataplane.contract.settings import Secret, Settings
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.security.keys import WatchedSecret

LOOK_SECONDS: Final = 2.0

_log = EventLog("rooms")


class OptionsSource:
    """The rules as they are now. What can't be used never replaces what can."""

    def __init__(self, settings: Settings, *, apply: Callable[[RoomRules], None]) -> None:
        """`apply` is called at once, and again with each change."""
        self._settings = settings
        self._apply = apply
        self._file: WatchedSecret | None = None
        self.problem: str | None = None
        """Why what the file holds now is not what applies; None where it is."""
        self._task: asyncio.Task[None] | None = None
        text = settings.rooms.options
        if settings.rooms.options_file:
            self._file = WatchedSecret(
                Secret(file=Path(settings.rooms.options_file)),
                variable="TABLEFORGE_ROOMS_OPTIONS",
                purpose="put the list of rooms' options there, `[]` for none",
            )
            text = self._file.current() or ""
        self._text = ""
        apply(self._parse(""))
        if text:
            self._take(text)

    def renew(self, settings: Settings) -> None:
        """What rooms without options have, or the options that are no file's, may have changed."""
        if (settings.rooms, settings.websocket) == (self._settings.rooms, self._settings.websocket):
            return
        self._settings = settings
        self._take(self._text if self._file is not None else settings.rooms.options)

    def start(self) -> None:
        """Begin to look whether the file changes."""
        if self._file is not None:
            self._task = asyncio.create_task(keep_going(self._look_forever, log=_log), name="room-options")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look_forever(self) -> None:
        file = self._file
        while file is not None:
            await asyncio.sleep(LOOK_SECONDS)
            text = file.current()
            if text is None:
                self._complain(file.problem or "it is empty")
            elif text != self._text:
                self._take(text)

    def _take(self, text: str) -> None:
        self._text = text
        try:
            rules = self._parse(text)
        except RoomOptionsError as error:
            self._complain("; ".join(error.problems))
            return
        self.problem = None
        self._apply(rules)
        _log.info("room_options", rules=len(rules))

    def _parse(self, text: str) -> RoomRules:
        return parse_room_options(
            text,
            self._settings.rooms,
            max_payload_bytes=self._settings.websocket.max_payload_bytes,
            live=bool(self._settings.live.file),
        )

    def _complain(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            _log.error("room_options_refused", problem=problem)
