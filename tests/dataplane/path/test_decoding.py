"""Whatever a frame holds, decoding gives commands or says what is wrong; what passes, everybody can read."""

import json
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from tableforge_dataplane.protocol.commands import Direct, Publish, Refused
from tableforge_dataplane.protocol.native import MAX_COMMANDS, TYPES, Native

CODES = {"bad_frame", "bad_type", "bad_event", "bad_room", "bad_data", "bad_pos"}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.integers(2**53, 2**90),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    [
        "id",
        "room",
        "event",
        "data",
        "key",
        "since",
        "echo",
        "volatile",
        "pos",
        "to",
        "after",
        "last",
        "token",
        "x",
    ]
)
likely = st.sampled_from(["lobby", "1-2", "k", "ada", True, False, 1, 5, 101, "", "a b", "@", [], {}, None])
commands = st.builds(
    lambda kind, rest: {"type": kind, **rest},
    st.sampled_from([*TYPES, "dance"]) | json_values,
    st.dictionaries(fields, likely | json_values, max_size=8),
)


def decoded(frame: bytes) -> list[Any]:
    found = Native().decode(frame)
    return [found] if isinstance(found, msgspec.Struct) else list(found)


def judge(results: list[Any]) -> None:
    for each in results:
        if isinstance(each, Refused):
            assert each.code in CODES
            assert each.message[-1] in ".:"
            json.dumps([each.id, each.room, each.message], allow_nan=False).encode()
        elif isinstance(each, Publish | Direct):
            value = json.loads(bytes(each.data))
            # a browser, and every other recipient, sees the same
            assert json.loads(json.dumps(value), parse_int=float) == json.loads(
                bytes(each.data), parse_int=float
            )
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
            assert 1 <= len(each.event) <= 50


@given(commands)
def test_any_object_is_a_command_or_is_refused_with_a_code_of_the_protocols(command: dict[str, Any]) -> None:
    results = decoded(json.dumps(command).encode("utf-8", "replace"))
    assert len(results) == 1
    judge(results)
    if command["type"] not in TYPES:
        assert results[0].code == "bad_type"


@given(st.lists(commands | json_values, max_size=6))
def test_an_arrays_commands_are_judged_one_by_one(items: list[Any]) -> None:
    results = decoded(json.dumps(items).encode("utf-8", "replace"))
    assert len(results) == max(1, len(items))
    judge(results)
    for item, alone in zip(items, results, strict=False):
        if not isinstance(item, list):
            assert type(decoded(json.dumps(item).encode("utf-8", "replace"))[0]) is type(alone)


@given(st.text(max_size=200) | st.text(alphabet='{}[]":,\\u0d8e1-+.', max_size=60))
@example("[" * 100_000)
@example('{"a":' * 50_000)
@example('{"type":"publish","room":"r","event":"e","data":"\\ud800"}')
@example('{"type":"ping","id":' + "9" * 5000 + "}")
def test_any_text_is_answered_and_raises_nothing(text: str) -> None:
    results = decoded(text.encode("utf-8", "replace"))
    assert 1 <= len(results) <= MAX_COMMANDS
    judge(results)
