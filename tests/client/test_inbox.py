"""Whatever a connection does, an application gets a room's messages once, in order, and bounded in number."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tableforge_client.frames import Event
from tableforge_client.inbox import Inbox
from tableforge_client.items import Message

SIZE = 4


def message(seq: int) -> Event:
    return Event(type="message", room="r", seq=seq, pos=f"{seq}-t", event="e", ts=0.0)


def joined(seq: int, *, recovered: bool | None, reason: str = "") -> Event:
    return Event(type="joined", room="r", pos=f"{seq}-t", recovered=recovered, reason=reason)


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.lists(st.sampled_from("mmmmdxttcr"), max_size=200))
def test_everything_once_and_in_order(seed: int, actions: str) -> None:
    """m: the next message comes; d: an old one again; x: one is left out; t: the application takes one;
    c: the connection is made anew; r: a refill is asked for where it is wanted."""
    rng = random.Random(seed)
    inbox = Inbox("r", size=SIZE)
    inbox.joined(joined(0, recovered=None), asked=None)
    sent, had_at_gap, taken = 0, 0, []

    def rejoin() -> None:
        nonlocal sent
        asked = inbox.pos
        assert asked is not None
        inbox.joined(joined(sent, recovered=True), asked=asked)
        sent = int(asked.split("-")[0])

    def take() -> None:
        item = inbox.take()
        if item is not None:
            assert isinstance(item, Message), item
            taken.append(item.seq)

    for action in actions:
        match action:
            case "m":
                sent += 1
                inbox.message(message(sent))
            case "d" if sent:
                inbox.message(message(rng.randint(1, sent)))
            case "x" if len(taken) + len(inbox) > had_at_gap:
                # twice at one place is another story: then the application is told
                had_at_gap = len(taken) + len(inbox)
                sent += 1
            case "t":
                take()
            case "c":
                rejoin()
            case "r" if inbox.wants_refill:
                rejoin()
        assert len(inbox) <= SIZE
    for _ in range(1000):
        # the end of every story: the connection is there, the application takes all
        take()
        if inbox.wants_refill:
            rejoin()
        if sent < 300:
            sent += 1
            inbox.message(message(sent))
    assert taken == list(range(1, len(taken) + 1))
    assert len(taken) >= 290


def test_resets_alone_never_fill_it() -> None:
    inbox = Inbox("r", size=SIZE)
    for _ in range(100):
        inbox.reset(Event(type="reset", room="r", pos="0-u", reason="forked"))
    assert len(inbox) == 1


def test_pos_is_where_it_was_taken_up_to() -> None:
    inbox = Inbox("r", size=SIZE, pos="7-t")
    assert inbox.taken_pos == "7-t"
    inbox.joined(joined(9, recovered=True), asked="7-t")
    inbox.message(message(8))
    assert (inbox.pos, inbox.taken_pos) == ("8-t", "7-t")
    inbox.take()
    assert inbox.taken_pos == "8-t"
