"""Patterns over room names, and the claim that carries them."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.contract.auth import RightsError
from tableforge_dataplane.security.access import DEFAULT_RIGHTS, Patterns, rights_of


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("table:1", ["table:1"], ["table:12", "table", "table:1:x", "TABLE:1"]),
        ("table:*", ["table:1", "table:"], ["table", "table:1:x", "tables:1"]),
        ("*", ["table", "x"], ["table:1"]),
        ("*:chat", ["a:chat"], ["chat", "a:b:chat", "a:chats"]),
        ("table:**", ["table:1", "table:1:chat:de"], ["table", "tables:1"]),
        ("table:*:**", ["table:1:x", "table:1:x:y"], ["table:1"]),
        ("**", ["table", "table:1:x"], []),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_a_pattern_matches_by_segments(pattern: str, matching: list[str], others: list[str]) -> None:
    patterns = Patterns.of([pattern])
    assert [name for name in matching if not patterns.match(name)] == []
    assert [name for name in others if patterns.match(name)] == []


@pytest.mark.parametrize("pattern", ["table-*", "*x", "***", "**:x", "a:**:b", "a:x*"])
def test_a_pattern_that_would_not_do_what_it_seems_to_is_refused(pattern: str) -> None:
    with pytest.raises(RightsError, match=re.escape(pattern)):
        Patterns.of([pattern])


segment = st.sampled_from(["a", "b", "c"])


@given(
    st.lists(st.lists(segment | st.just("*"), min_size=1, max_size=3), max_size=4),
    st.booleans(),
    st.lists(segment, min_size=1, max_size=4),
)
def test_matching_agrees_with_a_regular_expression(
    patterns: list[list[str]], rest: bool, room: list[str]
) -> None:
    texts = [":".join([*segments, "**"] if rest else segments) for segments in patterns]
    expression = "|".join(
        ":".join("[^:]+" if part == "*" else ".+" if part == "**" else part for part in text.split(":"))
        for text in texts
    )
    expected = bool(texts) and re.fullmatch(expression, ":".join(room)) is not None
    assert Patterns.of(texts).match(":".join(room)) == expected


def test_without_a_claim_one_may_join_and_publish_everywhere_and_direct_nobody() -> None:
    assert DEFAULT_RIGHTS.may_join("any:room")
    assert DEFAULT_RIGHTS.may_publish("any:room")
    assert not DEFAULT_RIGHTS.direct.match("bob")


def test_a_claim_gives_what_it_names_and_nothing_else() -> None:
    rights = rights_of({"join": ["table:*"], "publish": ["table:1"]})
    assert rights.may_join("table:2")
    assert not rights.may_publish("table:2")
    assert rights.may_publish("table:1")
    assert not rights.presence.match("table:1")
    assert not rights_of({}).may_join("table:1")


@pytest.mark.parametrize(
    ("claim", "named"),
    [
        ("everything", "`tableforge` must be an object"),
        (["join"], "`tableforge` must be an object"),
        (None, "`tableforge` must be an object"),
        ({"join": "table:*"}, "`tableforge.join` must be a list of strings"),
        ({"publish": [1]}, "`tableforge.publish` must be a list of strings"),
        ({"join": ["x"] * 257}, "`tableforge.join` has 257 patterns"),
        ({"join": [""]}, "`tableforge.join` has a pattern"),
        ({"join": ["x" * 257]}, "`tableforge.join` has a pattern"),
        ({"join": ["room-*"]}, "`tableforge.join`: 'room-*'"),
        ({"joins": ["*"]}, "`tableforge.joins` is not a right"),
    ],
)
def test_a_malformed_claim_is_named(claim: Any, named: str) -> None:
    with pytest.raises(RightsError, match=re.escape(named)):
        rights_of(claim)
