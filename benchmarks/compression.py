"""What compressing a message costs, by size and level, and by whether a compressor is made for each:
`python -m benchmarks.compression`. The choice in `wire/compression.py` comes from here.
"""

import json
import random
import string
import time
import zlib
from collections.abc import Callable

SIZES = (1_100, 4_096, 16_384, 102_400)
LEVELS = (1, 2, 3, 4, 6)
MEMORY_LEVELS = (5, 8)
RUNS = 3


def payload(size: int) -> bytes:
    """JSON as applications send it: keys that repeat, words, numbers."""
    rng = random.Random(size)  # noqa: S311
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9))) for _ in range(400)]
    parts: list[str] = []
    while sum(map(len, parts)) < size:
        text = " ".join(rng.choices(words, k=8))
        parts.append(json.dumps({"id": rng.randrange(10**6), "user": rng.choice(words), "text": text}))
    return ("[" + ",".join(parts) + "]").encode()[:size]


def microseconds(step: Callable[[bytes], bytes], data: bytes) -> float:
    """CPU time of one step, the best of some runs."""
    times = max(20, 500_000 // len(data))
    best = float("inf")
    for _ in range(RUNS):
        began = time.process_time()
        for _ in range(times):
            step(data)
        best = min(best, (time.process_time() - began) / times)
    return best * 1e6


def main() -> None:
    """A line for each size, level and memory level."""
    print("zlib", zlib.ZLIB_RUNTIME_VERSION)
    for size in SIZES:
        data = payload(size)
        for level in LEVELS:
            for memory in MEMORY_LEVELS:
                shared = zlib.compressobj(level, zlib.DEFLATED, -15, memory)

                def made_each_time(data: bytes, level: int = level, memory: int = memory) -> bytes:
                    one = zlib.compressobj(level, zlib.DEFLATED, -15, memory)
                    return one.compress(data) + one.flush(zlib.Z_SYNC_FLUSH)

                def flushed(data: bytes, one: "zlib._Compress" = shared) -> bytes:
                    return one.compress(data) + one.flush(zlib.Z_FULL_FLUSH)

                print(
                    f"{size:>7} bytes, level {level}, memory level {memory}: "
                    f"a compressor each {microseconds(made_each_time, data):6.0f} µs, "
                    f"one for all {microseconds(flushed, data):6.0f} µs, "
                    f"to {len(flushed(data)) / size:.0%}"
                )


if __name__ == "__main__":
    main()
