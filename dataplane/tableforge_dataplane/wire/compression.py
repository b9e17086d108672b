"""permessage-deflate: compressed once per message, for all clients who can share it.

Context takeover is declined in both directions. What comes in costs a connection no memory between messages,
and what goes out does not depend on what one client was sent before: all clients with the same window share
one encoder, and with it each message's bytes.
"""

import zlib
from collections.abc import Sequence
from typing import Final

from websockets.extensions.base import Extension, ServerExtensionFactory
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory

from tableforge_dataplane.contract.settings import PerformanceSettings
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.wire.frames import Dialect, FrameEncoder, compressed_text_frame, text_frame

LEVEL: Final = 1
"""1 KB takes 9 µs, 16 KB 60 µs, 100 KB 0.7 ms; level 6 takes up to three times as long and saves a tenth more
at most (`benchmarks/compression.py`). Short enough to stay on the event loop, where order needs no care."""

MEMORY_LEVEL: Final = 8

_TAIL_BYTES: Final = 4
"""An empty block that ends a flush, and that the extension leaves out."""


class Deflater:
    """Makes frames for clients that take messages compressed with one window size.

    One compressor for all messages: a full flush forgets what came before, so that nothing of one message
    shows in the next one's size, and a new compressor each time would take three times as long.
    """

    def __init__(self, *, window_bits: int, threshold_bytes: int, metrics: Metrics) -> None:
        self._threshold = threshold_bytes
        self._metrics = metrics
        compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -window_bits, MEMORY_LEVEL)
        self._compress = compressor.compress
        self._flush = compressor.flush

    def frame(self, payload: bytes) -> bytes:
        """Compressed from the threshold on, where that makes it shorter."""
        size = len(payload)
        if size < self._threshold:
            return text_frame(payload)
        squeezed = self._compress(payload) + self._flush(zlib.Z_FULL_FLUSH)
        metrics = self._metrics
        metrics.compression_in_bytes += size
        if len(squeezed) - _TAIL_BYTES >= size:
            metrics.compression_out_bytes += size
            return text_frame(payload)
        metrics.compression_out_bytes += len(squeezed) - _TAIL_BYTES
        return compressed_text_frame(squeezed[:-_TAIL_BYTES])


class Encoders:
    """One encoder for each kind of client: plain, and one for each window size that was asked for."""

    def __init__(self, dialect: Dialect, performance: PerformanceSettings, metrics: Metrics) -> None:
        self._dialect = dialect
        self._threshold = performance.compression_threshold_bytes
        self._metrics = metrics
        self._plain = FrameEncoder(dialect)
        self._by_window: dict[int, FrameEncoder] = {}
        """At most seven, 9 to 15 bits; each takes 256 KB."""

    def of(self, extensions: Sequence[Extension]) -> FrameEncoder:
        """The one for a client with whom these extensions were agreed on."""
        for extension in extensions:
            if isinstance(extension, PerMessageDeflate):
                bits = extension.local_max_window_bits
                encoder = self._by_window.get(bits)
                if encoder is None:
                    deflater = Deflater(
                        window_bits=bits, threshold_bytes=self._threshold, metrics=self._metrics
                    )
                    encoder = self._by_window[bits] = FrameEncoder(self._dialect, deflater.frame)
                return encoder
        return self._plain


def offered(performance: PerformanceSettings) -> list[ServerExtensionFactory] | None:
    """What the library may agree on in a handshake. It bounds what a message may become when inflated."""
    if not performance.enable_compression:
        return None
    return [ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)]
