"""Container logs: written line by line with time and stream, rotated by size, read back and followed.

A line of a file is `<time> <stdout|stderr> <F|P> <text>`, as container runtimes write it; `P` marks a part of
a line that is longer than 16 KiB.
"""

import asyncio
import contextlib
import datetime as dt
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LINE_LIMIT = 16 * 1024
CHUNK = 64 * 1024
TAIL_LIMIT = 1_000_000


def _time(moment_ns: int) -> str:
    seconds, rest = divmod(moment_ns, 1_000_000_000)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


class ContainerLog:
    """The log of one run of a container: a file and the one rotated before it."""

    def __init__(self, file: Path, *, limit_bytes: int) -> None:
        self._file = file
        self._old = file.with_suffix(".log.1")
        self._limit = limit_bytes
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("ab", buffering=0)
        self._size = 0
        self._total = 0
        self._closed = False
        self._changed = asyncio.Event()

    def write(self, moment_ns: int, stream: str, text: bytes, *, whole: bool) -> None:
        """Append a line (without its newline) or a part of one; on a full disk it is lost."""
        line = b"%s %s %s %s\n" % (_time(moment_ns).encode(), stream.encode(), b"F" if whole else b"P", text)
        # Whoever writes must go on even then: nobody would read what the process says, and it would block.
        with contextlib.suppress(OSError):
            if self._size and self._size + len(line) > self._limit:
                self._rotate()
            if self._stream.write(line) == len(line):
                self._size += len(line)
                self._total += len(line)
                self._wake()
                return
        with contextlib.suppress(OSError):
            os.truncate(self._file, self._size)

    def _rotate(self) -> None:
        if self._file.exists():
            self._file.replace(self._old)
        fresh = self._file.open("ab", buffering=0)
        self._stream.close()
        self._stream = fresh
        self._size = 0

    def close(self) -> None:
        """No more lines will come; followers end once they have read everything."""
        if not self._closed:
            self._closed = True
            self._stream.close()
            self._wake()

    def remove(self) -> None:
        """Delete the files."""
        self.close()
        self._file.unlink(missing_ok=True)
        self._old.unlink(missing_ok=True)

    def text_tail(self, lines: int, limit_bytes: int) -> str:
        """The last lines as text, for a termination message."""
        texts = [line.text for line in self.lines(last=lines)]
        return b"".join(texts)[-limit_bytes:].decode(errors="replace")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def lines(self, *, last: int | None = None) -> Iterator["LogLine"]:
        """What is there now, oldest first; only the last lines where asked."""
        raw: list[bytes] = []
        for file in (self._old, self._file):
            if file.exists():
                raw += file.read_bytes().splitlines(keepends=True)
        if last is not None:
            # A line may come in parts: count whole ones.
            kept: deque[bytes] = deque()
            count = 0
            for line in reversed(raw):
                if line.split(b" ", 3)[2] == b"F":
                    count += 1
                    if count > min(last, TAIL_LIMIT):
                        break
                kept.appendleft(line)
            raw = list(kept)
        return (LogLine.parse(line) for line in raw)

    @property
    def end(self) -> int:
        """The position behind the last line: what `follow` goes on from after `lines`."""
        return self._total

    async def follow(self, position: int) -> AsyncIterator["LogLine"]:
        """What came after a position and still comes, until the container has ended."""
        rest = b""
        while True:
            changed, closed = self._changed, self._closed
            while position < self._total:
                data, position = self._read(position)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield LogLine.parse(line + b"\n")
            if closed:
                return
            await changed.wait()

    def _read(self, position: int) -> tuple[bytes, int]:
        """Some bytes from a position counted from the log's very first byte, and the position behind them."""
        start = self._total - self._size
        if position >= start:
            file, offset, most = self._file, position - start, CHUNK
        else:
            # A follower that fell behind by more than a whole file goes on with the oldest that is left.
            oldest = start - self._old.stat().st_size
            position = max(position, oldest)
            file, offset, most = self._old, position - oldest, min(CHUNK, start - position)
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(most)
        return data, position + len(data)


@dataclass(frozen=True)
class LogLine:
    """A line of a log, or a part of one. `text` ends with a newline where the line does."""

    moment: str
    stream: str
    text: bytes

    @classmethod
    def parse(cls, raw: bytes) -> "LogLine":
        """Read a line of a log file."""
        moment, stream, tag, text = raw.split(b" ", 3)
        return cls(moment.decode(), stream.decode(), text if tag == b"F" else text.removesuffix(b"\n"))


async def pump(
    reader: asyncio.StreamReader, stream: str, log: ContainerLog, now_ns: Callable[[], int]
) -> None:
    """Write what a process says to its log until it says no more."""
    rest = b""
    while data := await reader.read(CHUNK):
        *lines, rest = (rest + data).split(b"\n")
        moment = now_ns()
        for line in lines:
            for start in range(0, max(len(line), 1), LINE_LIMIT):
                piece = line[start : start + LINE_LIMIT]
                log.write(moment, stream, piece, whole=start + LINE_LIMIT >= len(line))
        while len(rest) >= LINE_LIMIT:
            log.write(moment, stream, rest[:LINE_LIMIT], whole=False)
            rest = rest[LINE_LIMIT:]
    if rest:
        log.write(now_ns(), stream, rest, whole=False)
