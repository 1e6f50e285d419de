"""Arrays that come compressed: their content coding is undone piece by piece, and no more at once than a few megabytes.

What comes out is judged as if it had been sent so: a small body that unpacks to more than its array's header announces, or
than the limits allow, is refused at that byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from zstandard import ZstdDecompressor, ZstdError

from pcct_core.points import Points
from service.wire import Layout, MalformedArray, PointsDecoder, WrongLength

_STEP_BYTES = 1 << 20
# A zstd block is four bytes or more and unpacks to 128 KiB at most (RFC 8878, 3.1.1.2), so this much to 8 MiB at most.
_ZSTD_FEED_BYTES = 1 << 8
# What every decoder should take (RFC 8878, 3.1.1.1.2); zstd needs more with --ultra or --long.
_ZSTD_WINDOW_BYTES = 8 << 20

_NAMES = {"zstd": "zstd", "gzip": "gzip", "x-gzip": "gzip"}


def coding_of(content_encoding: str | None) -> str | None:
    """Return the coding of `CODINGS` that a Content-Encoding names, None for any other or none."""
    return _NAMES.get((content_encoding or "").strip().lower())


class UnpackingDecoder:
    """A decoder of `service.wire` for bodies that are compressed. decoder: for what comes out."""

    def __init__(self, decoder: PointsDecoder, coding: str) -> None:
        self._decoder = decoder
        self._coding = coding
        self._stream = _opened(coding)

    @property
    def layout(self) -> Layout | None:
        """The array's layout, None until it is known."""
        return self._decoder.layout

    def feed(self, piece: bytes) -> Iterator[Points]:
        """Take the next piece; raises MalformedArray, and whatever the decoder of the content does."""
        for part in self._parts(piece):
            yield from self._decoder.feed(part)

    def finish(self) -> Iterator[Points]:
        """Say that the body has ended; raises WrongLength when its stream has not."""
        if not self._stream.eof:
            raise WrongLength(f"the body ends before its {self._coding} stream does: it was cut short; send all of it")
        yield from self._decoder.finish()

    def _parts(self, piece: bytes) -> Iterator[bytes]:
        """Unpack a piece; streams may follow each other, as compressors with several threads write them."""
        left = memoryview(piece)
        while left:
            if self._stream.eof:
                self._stream = _opened(self._coding)
            try:
                part, left = self._step(left)
            except (zlib.error, ZstdError) as error:
                raise MalformedArray(
                    f"the body cannot be unpacked as {self._coding} ({error}); compress the whole file with {self._coding}, "
                    "without --ultra or --long, or send it without Content-Encoding"
                ) from None
            for start in range(0, len(part), _STEP_BYTES):
                yield part[start : start + _STEP_BYTES]

    def _step(self, packed: memoryview) -> tuple[bytes, memoryview]:
        """Return what comes out of the first bytes, and those that are left."""
        if self._coding == "gzip":
            part: bytes = self._stream.decompress(packed, _STEP_BYTES)
            left = len(self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail)
            return part, packed[len(packed) - left :]
        head = packed[:_ZSTD_FEED_BYTES]
        part = self._stream.decompress(head)
        left = len(self._stream.unused_data) if self._stream.eof else 0
        return part, packed[len(head) - left :]


def _opened(coding: str) -> Any:
    if coding == "gzip":
        return zlib.decompressobj(wbits=31)
    return ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
