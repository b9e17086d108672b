"""What those who watch a room know of who is in it: bookkeeping alone, without Redis and without a clock."""

from typing import Any, cast

from tableforge_dataplane.broker.presence import MOST_MEMBERS, PresenceChange, Present, RoomPresence
from tableforge_dataplane.rooms.watching import MOST_EARLY, Watchers


class Ear:
    """A watcher, and the encoder of what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[list[str], list[str]]] = []
        self.encoder = self

    def event(self, event: Any) -> Any:
        return event.joined, event.left

    def send(self, frame: Any) -> None:
        self.heard.append(frame)


def watched() -> tuple[Watchers, Ear]:
    watchers, ear = Watchers("lobby"), Ear()
    watchers.add(cast("Any", ear))
    return watchers, ear


def there(rev: int, *users: str, count: int | None = None) -> RoomPresence:
    members = [Present(user=user, since=1.0, sockets=1, holders=("one|b",)) for user in users]
    return RoomPresence(rev=rev, count=len(users) if count is None else count, members=members)


def came(rev: int, user: str) -> PresenceChange:
    return PresenceChange(rev=rev, count=1, holder="one|b", joined=[user], left=[])


def test_what_came_during_a_reading_is_told_after_it() -> None:
    watchers, ear = watched()
    watchers.begin_reading()
    assert not watchers.take(came(4, "ada"))
    assert not watchers.take(came(5, "bob"))
    watchers.compare(there(4, "ada"))
    watchers.tell()
    assert ear.heard == []
    assert watchers.catch_up()
    watchers.tell()
    assert ear.heard == [(["bob"], [])]
    assert not watchers.needs_reading


def test_a_gap_in_what_came_during_a_reading_wants_another_one() -> None:
    watchers, _ = watched()
    watchers.begin_reading()
    watchers.take(came(7, "bob"))
    watchers.compare(there(4, "ada"))
    assert not watchers.catch_up()
    assert watchers.needs_reading


def test_more_changes_than_are_kept_during_a_reading_want_another_one() -> None:
    watchers, _ = watched()
    watchers.begin_reading()
    for number in range(MOST_EARLY + 50):
        watchers.take(came(11 + number, f"user-{number}"))
    watchers.compare(there(10, "ada"))
    assert watchers.catch_up()
    assert watchers.needs_reading


def test_few_enough_again_wants_another_reading() -> None:
    watchers, _ = watched()
    watchers.begin_reading()
    watchers.take(came(5, "bob"))
    watchers.compare(there(4, count=MOST_MEMBERS + 1))
    assert not watchers.catch_up()
    assert watchers.needs_reading
