"""What a crowd finds: who had to reconnect, and why, and whether more at once than may be."""

from tests.support.crowd import Crowd, Killed, most_within, skewed
from tests.support.ledger import Again, Book, Got, Sent


def crowd(*again: Again) -> Crowd:
    """One that never connected, with what it counted put in by hand."""
    found = Crowd("ws://nowhere.test/ws", clients=2, rooms=2, seed=1, per_second=1)
    found.ledger.again.extend(again)
    return found


def test_the_count_of_a_window() -> None:
    assert most_within([0.0, 1.0, 2.0, 9.5, 10.0], 8.0) == 3
    assert most_within([0.0, 1.0, 1.5, 9.0, 9.2], 8.0) == 3
    assert most_within([], 8.0) == 0


def test_a_few_rooms_are_full_and_none_is_empty() -> None:
    members, rooms = [f"m{n}" for n in range(50)], [f"r{n}" for n in range(100)]
    found = skewed(members, rooms, joins=[4], seed=1)
    sizes = [sum(room in joined for joined in found.values()) for room in rooms]
    assert all(len(set(joined)) == len(joined) == 4 for joined in found.values())
    assert min(sizes) == 1
    assert sizes[0] == max(sizes) > 4 * sizes[20]
    assert found == skewed(members, rooms, joins=[4], seed=1)
    assert skewed(["m"], ["r"], joins=[4], seed=1) == {"m": ["r"]}


def test_too_many_at_once_are_found_and_named() -> None:
    slow = [Again("m", at / 10, "a", 0.0) for at in range(300)]
    assert crowd(*slow).hurried(per_second=10) == []
    at_once = [Again("m", 5.0, "a", 0.0) for _ in range(40)]
    assert crowd(*at_once).hurried(per_second=10) == ["40 within 1 s, 30 are allowed"]


def test_who_was_on_a_killed_server_may_come_back_at_once() -> None:
    found = crowd(
        Again("m", 4.0, "a", 0.0),  # before that
        Again("m", 5.5, "a", 0.0),
        Again("m", 5.5, "b", 0.0),  # on another one
        Again("m", 9.0, "a", 8.0),  # on the one that came in its place
    )
    found.killed = [Killed("a", 5.0, for_good=False)]
    assert found.sent_elsewhere() == [4.0, 5.5, 9.0]
    found.killed = [Killed("a", 5.0, for_good=True)]
    assert found.sent_elsewhere() == [4.0, 5.5]


def test_who_is_not_in_a_room_misses_nothing_there() -> None:
    entries = Book(["a", "b"], ["r", "s"], membership={"a": ["r", "s"], "b": ["r"]})
    only_a, both = Sent("s", "a", 1), Sent("r", "a", 1)
    for sent, member in ((only_a, "a"), (both, "a"), (both, "b")):
        entries.got[member, sent.room].append(Got(sent, 1, "1-t", "i", 0.0))
    assert not entries.check().broken
    entries.got["b", "r"].clear()
    assert entries.check().unequal == ["a's #1 in r reached a only, unacknowledged"]
