"""The ledger finds what it is there to find: each kind of broken promise, put in by hand."""

import dataclasses

from tableforge_client import Ack, Reset
from tests.support.ledger import Book, Got, Sent

A1, A2, B1 = (Sent("r", member, number) for member, number in [("a", 1), ("a", 2), ("b", 1)])


def book() -> Book:
    """Two members who both got three acknowledged messages, as promised."""
    entries = Book(["a", "b"], ["r"])
    for seq, sent in enumerate((A1, B1, A2), 1):
        entries.acks[sent] = Ack(pos=f"{seq}-t", seq=seq)
        for member in ("a", "b"):
            entries.got[member, "r"].append(got(sent, seq))
    return entries


def got(sent: Sent, seq: int, tag: str = "t") -> Got:
    return Got(sent, seq, f"{seq}-{tag}", "instance-1", 0.0)


def test_a_kept_promise() -> None:
    verdict = book().check()
    assert not verdict.broken, verdict.describe()
    assert (verdict.acknowledged, verdict.deliveries) == (3, 6)
    assert verdict.describe().startswith("3 acknowledged, 6 deliveries, 0 unknown, 0 lost")


def test_a_lost_message_is_named_with_whom_it_missed() -> None:
    entries = book()
    entries.got["b", "r"].pop()
    verdict = entries.check()
    assert verdict.broken
    assert verdict.lost == ["a's #2 in r, acknowledged as 3-t, never reached b"]


def test_delivered_twice() -> None:
    entries = book()
    entries.got["b", "r"].append(entries.got["b", "r"][-1])
    assert entries.check().doubled == ["a's #2 in r reached b as 3-t and again as 3-t"]


def test_stored_twice() -> None:
    entries = book()
    for member in ("a", "b"):
        entries.got[member, "r"].append(got(A2, 4))
    assert len(entries.check().doubled) == 2
    assert entries.check().broken


def test_order() -> None:
    entries = book()
    first, second, third = entries.got["b", "r"]
    entries.got["b", "r"] = [first, third, second]
    assert entries.check().out_of_order == ["b received 3-t in r after 1-t", "b received 2-t in r after 3-t"]


def test_a_members_own_order() -> None:
    entries = Book(["a"], ["r"])
    entries.got["a", "r"] = [got(A2, 1), got(A1, 2)]
    assert entries.check().out_of_order == ["a received a's #1 in r (2-t) after #2 (1-t)"]


def test_the_place_of_one_that_nobody_could_tell_about_was_not_promised() -> None:
    entries = Book(["a"], ["r"])
    entries.got["a", "r"] = [got(A2, 1), got(A1, 2)]
    entries.unknown[A1] = "closed: gone"
    assert entries.check().out_of_order
    entries.unknown[A1] = "unknown_key: who knows"
    assert not entries.check().out_of_order
    entries.got["a", "r"] = [got(A2, 1), got(A1, 3)]
    assert entries.check().out_of_order == ["a received 3-t in r after 1-t"]


def test_an_acknowledgement_that_says_otherwise() -> None:
    entries = book()
    entries.acks[A2] = Ack(pos="3-u", seq=3)
    assert len(entries.check().contradicted) == 2
    entries.acks[A2] = Ack(pos="2-t", seq=2)
    assert "a's #2 in r and b's #1 in r were both acknowledged as number 2" in entries.check().contradicted


def test_an_unacknowledged_message_reaches_all_or_nobody() -> None:
    entries = book()
    del entries.acks[A2]
    entries.unknown[A2] = "closed"
    assert not entries.check().broken
    entries.got["b", "r"].pop()
    assert entries.check().unequal == ["a's #2 in r reached a only, unacknowledged"]


def test_gaps_break_the_promise_and_resets_are_told() -> None:
    entries = book()
    entries.resets.append(("a", Reset(room="r", reason="forked", pos="2-t", told_by="reset")))
    assert entries.check().resets == ["a in r: forked at 2-t, told by reset"]
    assert not entries.check().broken
    entries.gaps = {("a", "r"): 1}
    assert entries.check().broken


def reset(pos: str, member: str = "b") -> tuple[str, Reset]:
    return member, Reset(room="r", reason="forked", pos=pos, told_by="reset")


def test_what_a_reset_took_back_may_come_again_at_another_place() -> None:
    entries = book()
    first, second, third = entries.got["b", "r"]
    stale = dataclasses.replace(third, pos="2-u", seq=2)
    again = [dataclasses.replace(one, resets=1) for one in (second, third)]
    entries.got["b", "r"] = [first, stale, *again]
    entries.resets.append(reset("1-t"))
    verdict = entries.check()
    assert not verdict.broken, verdict.describe()
    # but not twice after it, nor out of order there
    entries.got["b", "r"] = [first, stale, *again, again[-1]]
    assert entries.check().doubled == ["a's #2 in r reached b as 3-t and again as 3-t"]
    entries.got["b", "r"] = [first, stale, *reversed(again)]
    assert entries.check().out_of_order == ["b received 2-t in r after 3-t"]
    # and it has to come
    entries.got["b", "r"] = [first, stale, again[0]]
    assert entries.check().contradicted == ["a's #2 in r was acknowledged as 3-t, but reached b as 2-u"]


def test_what_a_reset_left_out_was_announced_and_nothing_else() -> None:
    entries = book()
    del entries.got["b", "r"][1:]
    entries.resets.append(reset("2-t"))
    verdict = entries.check()
    assert verdict.missed == ["b's #1 in r, acknowledged as 2-t, was announced to b as missing"]
    assert verdict.lost == ["a's #2 in r, acknowledged as 3-t, never reached b"]
    entries.resets.append(reset("3-t"))
    assert not entries.check().broken


def test_a_later_reset_that_goes_back_further_excuses_nothing_after_it() -> None:
    entries = book()
    del entries.got["b", "r"][1:]
    entries.resets += [reset("9-u"), reset("1-t")]
    verdict = entries.check()
    assert verdict.missed == []
    assert verdict.lost == [
        "b's #1 in r, acknowledged as 2-t, never reached b",
        "a's #2 in r, acknowledged as 3-t, never reached b",
    ]


def test_who_still_holds_what_a_failover_took_back_does_not_have_what_has_its_number_now() -> None:
    entries = book()
    newest = entries.newest()
    assert newest == {"r": Ack(pos="3-t", seq=3)}
    assert entries.everybody_has(newest)
    first, second, third = entries.got["b", "r"]
    entries.got["b", "r"] = [first, second, dataclasses.replace(third, pos="3-u")]
    assert not entries.everybody_has(newest)
    assert entries.check().contradicted == ["a's #2 in r was acknowledged as 3-t, but reached b as 3-u"]
    # it is told, and gets it
    entries.resets.append(reset("2-t"))
    assert not entries.everybody_has(newest)
    entries.got["b", "r"].append(dataclasses.replace(third, resets=1))
    assert entries.everybody_has(newest)
    assert not entries.check().broken
    # or is told that it is missing
    del entries.got["b", "r"][2:]
    entries.resets.append(reset("3-t"))
    assert entries.everybody_has(newest)


def test_a_reset_excuses_no_other_member() -> None:
    entries = book()
    del entries.got["b", "r"][1:]
    entries.resets.append(reset("3-t", "a"))
    assert len(entries.check().lost) == 2


def test_what_is_stored_is_judged_too() -> None:
    entries = book()
    entries.logs["r"] = list(entries.got["a", "r"])
    assert not entries.check().broken
    entries.logs["r"] = entries.logs["r"][:2]
    assert entries.check().lost == ["a's #2 in r, acknowledged as 3-t, is not in the log"]
    entries.logs["r"] = [*entries.got["a", "r"], got(A2, 4)]
    assert entries.check().doubled == ["a's #2 in r reached the log as 3-t and again as 4-t"]


def test_many_findings_are_counted_and_the_first_shown() -> None:
    verdict = dataclasses.replace(book().check(), lost=[f"number {n}" for n in range(100)])
    assert "100 lost" in verdict.describe()
    assert "and 80 more" in verdict.describe()
