"""What one client asks of rooms' logs: one answer at a time, as its socket drains and its budget allows."""

from collections import deque
from typing import Final

import msgspec

from tableforge_dataplane.broker.entries import Position
from tableforge_dataplane.protocol import names
from tableforge_dataplane.protocol.commands import History
from tableforge_dataplane.protocol.events import History as HistoryEvent
from tableforge_dataplane.rooms.catching_up import SOCKET_FULL_BYTES
from tableforge_dataplane.rooms.history import HistoryPage
from tableforge_dataplane.session.client import BAD_POS, Client

MOST_WAITING: Final = 16
"""Questions that may wait for the answer to an earlier one."""


class Histories:
    """Answers in order."""

    __slots__ = ("_asking", "_client", "_waiting")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._asking = False
        self._waiting: deque[History] = deque()

    def ask(self, command: History, now: float) -> None:
        """Answer, or say why not."""
        client = self._client
        if client.reach(command.room, command.id, "history") is None:
            return
        if (command.after is None) == (command.last is None):
            message = "Give either `after`, a position, or `last`, a count."
            client.error("bad_frame", message, command.id, "history", command.room)
            return
        if command.after is not None and names.parse_position(command.after) is None:
            client.error("bad_pos", BAD_POS.format("after"), command.id, "history", command.room)
            return
        wait = client.budget.debt_seconds(now)
        if wait > 0:
            most = client.around.settings.security.max_bytes_per_second
            client.limited(command, f"A user may publish and read {most} bytes a second.", wait)
        elif not self._asking:
            self._begin(command)
        elif len(self._waiting) >= MOST_WAITING:
            client.limited(command, "Wait for the answers to earlier `history` commands first.", 1.0)
        else:
            self._waiting.append(command)

    def end(self) -> None:
        """The connection is gone."""
        self._waiting.clear()

    def _begin(self, command: History) -> None:
        client = self._client
        outlet = client.outlet
        self._asking = True
        if outlet.waiting_bytes() > SOCKET_FULL_BYTES:
            outlet.socket.when_drained(lambda: self._read(command))
        else:
            self._read(command)

    def _read(self, command: History) -> None:
        client = self._client
        if client.closed:
            return
        # again, with the rights of now
        name = client.reach(command.room, command.id, "history")
        if name is None:
            self._next()
            return
        after = None
        if command.after is not None:
            parsed = names.parse_position(command.after)
            after = Position(*parsed) if parsed is not None else None
        client.around.hub.history.read(
            name,
            after=after,
            last=command.last or 0,
            callback=lambda page: self._on_page(command, name, page),
        )

    def _on_page(self, command: History, name: str, page: HistoryPage | None) -> None:
        client = self._client
        if client.closed:
            return
        if page is None:
            client.error(
                "unavailable",
                "Redis does not answer, so the log could not be read: ask again later.",
                command.id,
                "history",
                command.room,
                2.0,
            )
        else:
            parts = client.outlet.encoder.parts(name, page.entries)
            client.budget.owe(sum(map(len, parts)), client.around.clock())
            client.send(
                HistoryEvent(
                    id=command.id,
                    room=command.room,
                    messages=[msgspec.Raw(part) for part in parts],
                    pos=str(page.position) if page.position is not None else None,
                    complete=page.complete,
                    reason=page.reason,
                )
            )
        self._next()

    def _next(self) -> None:
        self._asking = False
        if self._waiting:
            self._begin(self._waiting.popleft())
