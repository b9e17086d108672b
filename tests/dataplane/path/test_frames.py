"""The short path for incoming frames takes what the library would have taken, with the same result."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tableforge_dataplane.wire.connection import Connection
from tableforge_dataplane.wire.frames import compressed_text_frame, count, text_frame
from tests.dataplane.path.parsers import MAX_BYTES, Outcome, client_frame, library, ours

texts = st.one_of(
    st.sampled_from(
        [b"", b"{}", "höher".encode(), "\U0001f600".encode(), b"x" * 125, b"x" * 126, b"x" * 999]
    ),
    st.text(max_size=200).map(str.encode),
)
good = st.one_of(
    texts.map(client_frame),
    texts.map(lambda text: client_frame(text, length_bytes=2)),
    st.binary(max_size=4, min_size=4).flatmap(
        lambda mask: texts.map(lambda text: client_frame(text, mask=mask))
    ),
    st.binary(max_size=60).map(lambda data: client_frame(data, opcode=9)),
    st.binary(max_size=60).map(lambda data: client_frame(data, opcode=10)),
    # a message in three fragments, with a ping between them
    texts.map(
        lambda text: (
            client_frame(text[:5], fin=False)
            + client_frame(b"still there?", opcode=9)
            + client_frame(text[5:7], opcode=0, fin=False)
            + client_frame(text[7:], opcode=0)
        )
    ),
)
odd = st.one_of(
    st.just(client_frame(b"{}", opcode=2)),
    st.just(client_frame(b"\xff")),
    st.just(client_frame(b"\xed\xa0\x80")),
    st.just(client_frame(b"x" * (MAX_BYTES + 1))),
    st.just(client_frame(b"x" * 66_000)),
    st.just(client_frame(b"x" * 600, fin=False) + client_frame(b"x" * 600, opcode=0)),
    st.just(client_frame(b"{}", mask=None)),
    st.just(client_frame(b"{}", rsv=4)),
    st.just(client_frame(b"{}", opcode=3)),
    st.just(client_frame(b"{}", opcode=0)),
    st.just(client_frame(b"{", fin=False) + client_frame(b"}")),
    st.just(client_frame(b"", opcode=9, fin=False)),
    st.just(client_frame((1000).to_bytes(2) + b"bye", opcode=8)),
    st.just(client_frame((4000).to_bytes(2), opcode=8)),
    st.just(client_frame((999).to_bytes(2), opcode=8)),
    st.just(client_frame(b"", opcode=8)),
    st.binary(max_size=30),
)


@st.composite
def streams(draw: Callable[[Any], Any]) -> list[bytes]:
    """Frames one after another, cut into pieces anywhere."""
    stream = b"".join(draw(st.lists(good, max_size=6)))
    if draw(st.booleans()):
        stream += draw(odd) + b"".join(draw(st.lists(good, max_size=2)))
    cuts = sorted(draw(st.sets(st.integers(0, max(0, len(stream))), max_size=8)) | {0, len(stream)})
    return [stream[begin:end] for begin, end in itertools.pairwise(cuts) if end > begin]


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parts=streams())
def test_any_bytes_in_any_pieces_have_the_librarys_result(parts: list[bytes]) -> None:
    async def both() -> tuple[Outcome, Outcome]:
        return ours(parts), library(parts)

    got, expected = asyncio.run(both())
    if expected.close_code in (1003, 1007):
        # the library looks at what is in a frame after it has answered the pings that came behind it
        got.pongs = expected.pongs = []
    assert got == expected


async def test_the_short_path_is_taken_again_after_the_library_had_to_help() -> None:
    recorder_parts = [
        client_frame(b"one"),
        client_frame(b"two")[:3],
        client_frame(b"two")[3:],
        client_frame(b"thr", fin=False),
        client_frame(b"ee", opcode=0),
        client_frame(b"four") + client_frame(b"", opcode=9) + client_frame(b"five"),
        client_frame(b"six"),
    ]
    taken: list[bytes] = []
    original = Connection._through_library

    def spy(connection: Connection, data: bytes) -> None:
        taken.append(data)
        original(connection, data)

    Connection._through_library = spy  # type: ignore[method-assign]
    try:
        outcome = ours(recorder_parts)
    finally:
        Connection._through_library = original  # type: ignore[method-assign]
    assert outcome.payloads == [b"one", b"two", b"three", b"four", b"five", b"six"]
    assert not any(client_frame(b"one") in data or client_frame(b"six") in data for data in taken)


def test_outgoing_frames_have_the_shortest_length_there_is() -> None:
    for size in (0, 125, 126, 65_535, 65_536):
        frame = text_frame(b"x" * size)
        assert frame == Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)


def test_frames_of_every_length_are_counted() -> None:
    lengths = (0, 1, 125, 126, 3000, 65_535, 65_536)
    made = [make(b"x" * length) for length in lengths for make in (text_frame, compressed_text_frame)]
    assert [count(frame) for frame in made] == [1] * len(made)
    assert count(b"".join(made)) == len(made)
    assert count(b"") == 0
