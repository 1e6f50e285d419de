"""Fuzzing of the array decoders: whatever comes is decoded or refused by name, within bounded memory, never unpickled.

    .venv/bin/pip install -e '.[fuzz]'
    .venv/bin/python tests/fuzz/decode.py -max_total_time=30 tests/fuzz/corpus

Runs atheris, a fuzzer that follows coverage. An input is a choice of format and piece size (two bytes), then the body; the
corpus holds valid and damaged ones, which `tests/fuzz/test_decode.py` replays without a fuzzer.
"""

from __future__ import annotations

import sys

import numpy as np

from pcct_core.errors import PcctError
from service import wire

LIMITS = wire.Limits(
    max_body_bytes=1 << 20, max_points=10_000, max_dimensions=64, max_fortran_bytes=1 << 16, max_json_bytes=1 << 14
)
# Content type and query of a body, by the first byte of the input.
KINDS: tuple[tuple[str | None, dict[str, str]], ...] = (
    (wire.NPY, {}),
    (wire.SAFETENSORS, {}),
    (wire.SAFETENSORS, {"tensor": "points"}),
    (wire.JSON, {}),
    (None, {}),
    (wire.RAW, {}),
    (wire.RAW, {"dtype": "float32", "shape": "3,2"}),
)
PIECES = (1, 7, 64, 1 << 16)


def decode(data: bytes) -> np.ndarray | None:
    """Decode an input as an upload would be; returns the points, None when it was refused by name."""
    if len(data) < 2:
        return None
    media, query = KINDS[data[0] % len(KINDS)]
    piece, announced, body = PIECES[data[1] % 4], data[1] & 4, data[2:]
    try:
        decoder = wire.points_decoder(media, None, len(body) if announced else None, query, LIMITS)
        blocks = [rows for at in range(0, len(body), piece) for rows in decoder.feed(body[at : at + piece])]
        blocks += list(decoder.finish())
    except PcctError:
        return None
    points = np.concatenate(blocks)
    assert decoder.layout is not None
    assert points.shape == (decoder.layout.n, decoder.layout.d)
    assert points.dtype in (np.dtype("<f4"), np.dtype("<f8"))
    return points


def main() -> None:
    """Fuzz until the options of libFuzzer, which are the arguments, say that it is enough."""
    import atheris

    atheris.instrument_func(wire.points_decoder)
    for value in list(vars(wire).values()):
        if callable(value) and getattr(value, "__module__", "") == wire.__name__ and hasattr(value, "__code__"):
            setattr(wire, value.__name__, atheris.instrument_func(value))
    atheris.Setup(sys.argv, decode)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
