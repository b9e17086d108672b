"""The short receive path against the library's parser, on generated streams split at every kind of border.

30,000 streams, or as many as `FRAME_STREAMS` says (a million take six minutes); a failure names its seed.
"""

import asyncio
import itertools
import os
import random
import zlib
from collections import Counter

import pytest

from tests.dataplane.path.parsers import MAX_BYTES, Outcome, client_frame, deflate, library, ours

STREAMS = int(os.environ.get("FRAME_STREAMS", "30000"))

PER_LOOP = 1000

TEXTS = (
    b"",
    b"{}",
    b'{"type":"ping"}',
    b"x" * 125,
    b"x" * 126,
    b"x" * 127,
    b"x" * (MAX_BYTES - 1),
    b"x" * MAX_BYTES,
    "höher, weiter".encode(),
    "\U0001f600 \U0001f680".encode(),
    ("ü" * (MAX_BYTES // 2)).encode(),
)

NOT_UTF8 = (
    b"\xff",
    b"\xc0\x80",  # overlong
    b"\xed\xa0\x80",  # half a surrogate pair
    b"\xf4\x90\x80\x80",  # beyond the last code point
    b"abc\xe2\x82",  # cut off
    b"\x80abc",
    b"x" * 200 + b"\xfe",
)

CLOSE_CODES = (1000, 1001, 1003, 1007, 1008, 1011, 3000, 4999, 0, 999, 1004, 1005, 1006, 1015, 2999, 5000)


def squeezed(text: bytes) -> bytes:
    """`text` as permessage-deflate has it."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
    return (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


class Streams:
    """Makes streams from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.compressed = self.random.random() < 0.3

    def mask(self) -> bytes:
        return self.random.choice((b"\0\0\0\0", b"\x01\x02\x03\x04", self.random.randbytes(4)))

    def text(self) -> bytes:
        if self.random.random() < 0.5:
            return self.random.choice(TEXTS)
        points = [self.random.choice((0x41, 0xE9, 0x20AC, 0x1F600)) for _ in range(self.random.randrange(60))]
        return "".join(map(chr, points)).encode()

    def pieces(self, data: bytes, count: int) -> list[bytes]:
        cuts = sorted(self.random.randint(0, len(data)) for _ in range(count - 1))
        return [data[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(data)])]

    def control(self) -> bytes:
        data = self.random.randbytes(self.random.choice((0, 1, 4, 124, 125)))
        return client_frame(data, opcode=self.random.choice((9, 10)), mask=self.mask())

    def fragmented(self, data: bytes, *, rsv: int = 0) -> bytes:
        """A message in fragments, with control frames between them."""
        out = b""
        parts = self.pieces(data, self.random.randint(2, 5))
        for number, part in enumerate(parts):
            out += client_frame(
                part,
                opcode=0 if number else 1,
                fin=number == len(parts) - 1,
                rsv=0 if number else rsv,
                mask=self.mask(),
            )
            if self.random.random() < 0.4 and number < len(parts) - 1:
                out += self.control()
        return out

    def good(self) -> bytes:
        """What a client may send."""
        kind = self.random.random()
        text = self.text()
        if kind < 0.45:
            return client_frame(text, mask=self.mask())
        if kind < 0.55:
            # RFC 6455 wants the shortest form; the library takes the longer ones, and so does the short path
            return client_frame(text, mask=self.mask(), length_bytes=self.random.choice((2, 8)))
        if kind < 0.7:
            return self.control()
        if kind < 0.85 or not self.compressed:
            return self.fragmented(text)
        if kind < 0.95:
            return client_frame(squeezed(text), rsv=4, mask=self.mask())
        return self.fragmented(squeezed(text), rsv=4)

    def odd(self) -> bytes:
        """What a client should not send, or what ends the connection."""
        choose = self.random.choice
        mask, text = self.mask(), self.text()
        oversize = self.random.randint(MAX_BYTES + 1, MAX_BYTES + 300)
        return choose(
            (
                lambda: client_frame(text, opcode=2, mask=mask),
                lambda: client_frame(choose(NOT_UTF8), mask=mask),
                lambda: self.fragmented(choose(NOT_UTF8)),
                lambda: self.fragmented(self.text() + choose(NOT_UTF8)),
                lambda: client_frame(text, mask=None),
                lambda: client_frame(text, mask=None, length_bytes=choose((2, 8))),
                lambda: client_frame(text, rsv=self.random.randint(1, 7), mask=mask),
                lambda: client_frame(text, opcode=choose((3, 7, 11, 15)), mask=mask),
                lambda: client_frame(text, opcode=0, mask=mask),
                lambda: client_frame(text, fin=False, mask=mask) + client_frame(b"{}", mask=mask),
                lambda: client_frame(b"x" * oversize, mask=mask),
                lambda: client_frame(b"x" * oversize, mask=mask, length_bytes=8),
                lambda: self.fragmented(b"x" * oversize),
                lambda: client_frame(b"x" * 66_000, mask=mask),
                lambda: client_frame(b"", claimed=1 << self.random.randint(16, 62), mask=mask),
                lambda: client_frame(b"", claimed=(1 << 63) + 5, length_bytes=8, mask=mask),
                lambda: client_frame(b"x" * 126, opcode=9, length_bytes=2, mask=mask),
                lambda: client_frame(b"", opcode=choose((8, 9, 10)), fin=False, mask=mask),
                lambda: client_frame(b"", opcode=8, mask=mask),
                lambda: client_frame(b"\x03", opcode=8, mask=mask),
                lambda: client_frame(choose(CLOSE_CODES).to_bytes(2) + b"bye", opcode=8, mask=mask),
                lambda: client_frame((1000).to_bytes(2) + choose(NOT_UTF8[:6]), opcode=8, mask=mask),
                lambda: client_frame(squeezed(b" " * 5000), rsv=4, mask=mask),
                lambda: client_frame(b"\xff\xff\xff", rsv=4, mask=mask),
                lambda: client_frame(text, mask=mask)[: self.random.randint(1, 12)],
                lambda: self.random.randbytes(self.random.randint(1, 30)),
            )
        )()

    def stream(self) -> list[bytes]:
        """Frames one after another, in pieces."""
        frames = [self.good() for _ in range(self.random.randrange(7))]
        if self.random.random() < 0.5:
            frames.append(self.odd())
            frames.extend(self.good() for _ in range(self.random.randrange(3)))
        return self.split(frames)

    def split(self, frames: list[bytes]) -> list[bytes]:
        stream = b"".join(frames)
        size = len(stream)
        borders = [0, *itertools.accumulate(map(len, frames))]
        kind = self.random.random()
        if kind < 0.15:
            cuts: set[int] = set()
        elif kind < 0.25:
            cuts = set(borders)
        elif kind < 0.35 and size < 600:
            cuts = set(range(size))
        elif kind < 0.7:
            # in and around headers: after each of their bytes, and before the last of what goes before
            near = [border + step for border in borders for step in (-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)]
            cuts = set(self.random.sample(near, self.random.randint(1, len(near))))
        else:
            cuts = {self.random.randint(0, size) for _ in range(self.random.randint(1, 8))}
        cuts = {cut for cut in cuts if 0 < cut < size}
        return [stream[begin:end] for begin, end in itertools.pairwise(sorted(cuts | {0, size}))]


def compare(seed: int, seen: Counter[int | None]) -> None:
    made = Streams(seed)
    parts = made.stream()
    got = ours(parts, extensions=deflate() if made.compressed else ())
    expected = library(parts, extensions=deflate() if made.compressed else ())
    if expected.or_code is not None:
        # the library looks at what is in a frame after what came behind it, whose pings are answered by then
        got.pongs = expected.pongs = []
        if got.close_code == expected.or_code:
            expected.close_code = expected.or_code
    assert got == expected, f"seed {seed}: {parts}"
    seen[expected.close_code] += 1
    seen[0] += len(expected.payloads)


async def _compare_all(seeds: range, seen: Counter[int | None]) -> None:
    for seed in seeds:
        compare(seed, seen)


@pytest.mark.timeout(max(180, STREAMS // 500))
def test_streams_split_anywhere_have_the_librarys_messages_and_close_codes() -> None:
    seen: Counter[int | None] = Counter()
    for first in range(0, STREAMS, PER_LOOP):
        # connections leave timers behind, which go with their loop
        asyncio.run(_compare_all(range(first, min(first + PER_LOOP, STREAMS)), seen))
    assert seen[0] > STREAMS, "hardly any messages"
    for code in (None, 1000, 1002, 1003, 1005, 1007, 1009):
        assert seen[code] > STREAMS / 5000, f"{code} came hardly ever: {seen}"


def test_a_difference_would_be_seen() -> None:
    assert Outcome([b"a"], None, []) != Outcome([b"b"], None, [])
    text = client_frame(b"{}")

    async def cut_short() -> tuple[Outcome, Outcome]:
        return ours([text, text]), library([text, text[:-1]])

    got, other = asyncio.run(cut_short())
    assert got != other
