"""The ring against a plain list that keeps everything."""

from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.rooms.ring import MOST_BYTES, MOST_ENTRIES, Ring


def history(sizes: list[int], *, first: int = 1, branch: str = "a", prev: bytes = b"0") -> list[Entry]:
    entries = []
    for number, size in enumerate(sizes, first):
        tag = f"{branch}{number}".encode()
        entries.append(Entry(number, tag, prev, b"1.000", b"origin", b"x" * size))
        prev = tag
    return entries


def ring_of(entries: list[Entry]) -> Ring:
    ring = Ring()
    for entry in entries:
        ring.append(entry)
    return ring


sizes = st.lists(st.sampled_from([0, 100, 3000, 40_000]), max_size=150)


@given(sizes=sizes, first=st.integers(1, 5000))
def test_it_knows_the_newest_messages_and_nothing_else(sizes: list[int], first: int) -> None:
    entries = history(sizes, first=first)
    ring = ring_of(entries)
    kept = entries[len(entries) - len(ring) :]
    assert len(ring) <= MOST_ENTRIES
    assert len(kept) <= 1 or sum(len(entry.body) for entry in kept) <= MOST_BYTES
    assert bool(kept) == bool(entries)
    for entry in kept:
        assert ring.tag_at(entry.seq) == entry.tag
        assert ring.after(entry.seq - 1) == [other for other in kept if other.seq >= entry.seq]
    if kept:
        assert ring.tag_at(kept[0].seq - 1) == kept[0].prev
        assert ring.tag_at(kept[0].seq - 2) is None
        assert ring.after(kept[0].seq - 2) is None
        assert ring.tag_at(kept[-1].seq + 1) is None
        assert ring.after(kept[-1].seq) == []


@given(shared=st.integers(0, 40), own=st.integers(0, 40), others=st.integers(0, 40))
def test_two_histories_part_at_the_newest_message_that_both_have(shared: int, own: int, others: int) -> None:
    trunk = history([10] * shared)
    tag = trunk[-1].tag if trunk else b"0"
    ring = ring_of(trunk + history([10] * own, first=shared + 1, branch="b", prev=tag))
    log = trunk + history([10] * others, first=shared + 1, branch="c", prev=tag)
    found = ring.newest_shared(log)
    first = ring.first_seq
    if first is None or not log or first > shared + 1:
        assert found is None
    else:
        assert found == Position(shared, tag)
    if found is not None:
        ring.cut(found)
        assert ring.after(shared) == ([] if len(ring) else None)
        assert ring.tag_at(shared) in (tag, None)


def test_what_is_cut_at_a_foreign_position_is_empty() -> None:
    ring = ring_of(history([10] * 5))
    ring.cut(Position(3, b"foreign"))
    assert len(ring) == 0
