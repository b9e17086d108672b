"""The reasons of conditions and Events: docs/operations.md explains each, and each is one that is given.

That no other is given, mypy sees: where one comes about, it is of the types of `decide.reasons`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from tableforge_dataplane.contract.fleet import RedisState
from tableforge_operator.decide import reasons

ROOT = Path(__file__).parents[3]
OPERATOR = ROOT / "operator" / "tableforge_operator"
PAGE = ROOT / "docs" / "operations.md"
TABLES = {
    "Ready, Reconciling and Stalled": reasons.ReadyReason,
    "RedisReady": reasons.RedisReason,
    "Balanced": reasons.BalancedReason,
    "Autoscaled": reasons.AutoscaledReason,
    "Events": reasons.NewsReason,
}
"""What the table below each heading explains."""


def words(kind: Any) -> set[str]:
    """The words of a Literal, or of several."""
    return {word for part in get_args(kind) for word in ([part] if isinstance(part, str) else words(part))}


def explained(heading: str) -> Iterator[str]:
    """The reasons that the table below a heading of the page has, each row's with a meaning and a remedy."""
    _, _, below = PAGE.read_text(encoding="utf-8").partition(f"\n### {heading}\n")
    head, _, *rows = re.findall(r"^\|.*\|$", re.split(r"^#", below, flags=re.MULTILINE)[0], re.MULTILINE)
    assert head == "| reason | what it means | what to do |"
    for row in rows:
        _, found, means, remedy, _ = re.split(r"\s*\|\s*", row)
        assert means, row
        assert remedy, row
        yield from re.findall(r"`(\w+)`", found)


def given(node: ast.AST) -> Iterator[str]:
    """Every text of a source, but where it only says which there may be, or asks whether it is that one."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Subscript(value=ast.Name(id="Literal")) | ast.Set() | ast.Compare():
            pass
        case ast.Dict(values=values):
            for value in values:
                yield from given(value)
        case _:
            for below in ast.iter_child_nodes(node):
                yield from given(below)


@pytest.mark.parametrize("heading", TABLES)
def test_every_reason_is_explained_and_no_other(heading):
    found = list(explained(heading))
    assert sorted(found) == sorted(words(TABLES[heading]))


def test_every_reason_is_given():
    # An instance's words about Redis are told with its name, and never come from here.
    ours = words(reasons.ConditionReason) | words(reasons.EventReason) | words(reasons.RefusalReason)
    sources = (ast.parse(file.read_text(encoding="utf-8")) for file in OPERATOR.rglob("*.py"))
    texts = {text for source in sources for text in given(source)}
    assert ours - words(reasons.RedisTrouble) - texts == set()


def test_whatever_an_instance_says_of_redis_is_a_reason():
    said = set(get_args(RedisState.__annotations__["reason"]))
    assert {f"Redis{word}" for word in said - {"Connected"}} == words(reasons.RedisTrouble)


def test_a_refusal_is_a_reason_unless_it_is_told_to_nobody():
    assert words(reasons.RefusalReason) - words(reasons.FindingReason) == {"NotServed"}
