"""Arrow IPC streams: tables of arrays out, points in. pyarrow is an extra, loaded when the first stream is asked for.

Bodies are read by a process of their own, `service.arrow_reader`: on a damaged stream pyarrow has read beyond its buffers,
which ends the process that does it for everybody.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from pcct_core.errors import InvalidPoints
from pcct_core.points import Points
from service.wire import (
    ARROW,
    NPY,
    ArrayStream,
    BodyTooLarge,
    Drain,
    Layout,
    Limits,
    MalformedArray,
    NothingAcceptable,
    Piece,
    UnsupportedBody,
    WrongLength,
    npy_header,
    points_decoder,
)

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_BYTES = 1 << 20
_READER = Path(__file__).with_name("arrow_reader.py")
_READER_S = 120  # it bounds its processor time itself; this is for a machine that does nothing
# One thread, and memory that is given back: the reader lives for one body.
_READER_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_HINT = f"{ARROW} needs pyarrow, which is not installed at this service: pip install 'pcct[arrow]'"

_log = structlog.get_logger(__name__)


def is_installed() -> bool:
    """Return whether Arrow streams can be read and written here."""
    return find_spec("pyarrow") is not None


def check_writable(arrays: Sequence[ArrayStream]) -> None:
    """Raise NothingAcceptable when these arrays cannot be the columns of one table."""
    if not is_installed():
        raise NothingAcceptable(f"{_HINT}; or ask for another format")
    if len({array.shape[0] for array in arrays}) > 1:
        raise NothingAcceptable(
            "the arrays of this graph have different lengths, so they are no Arrow table; ask for them one by one"
        )


async def write_arrow(arrays: Sequence[ArrayStream]) -> AsyncIterator[Piece]:
    """Yield the arrays, checked by `check_writable`, as columns of an Arrow stream: fixed-size lists where rows have k."""
    import pyarrow as pa

    schema = pa.schema([(array.name, _column_type(array)) for array in arrays])
    row_bytes = sum(array.data_bytes // max(1, array.shape[0]) for array in arrays)
    step = max(1, _BATCH_BYTES // max(1, row_bytes))
    sources = [_Rows(array) for array in arrays]
    out = Drain()
    with pa.ipc.new_stream(out, schema) as writer:
        yield out.take()
        for start in range(0, arrays[0].shape[0], step):
            count = min(step, arrays[0].shape[0] - start)
            columns = [
                _column(await source.take(count), field.type) for source, field in zip(sources, schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            yield out.take()
    yield out.take()


class _Rows:
    """Gives the rows of a stream in numbers that its reader chooses."""

    def __init__(self, array: ArrayStream) -> None:
        self._array = array
        self._row_bytes = array.data_bytes // max(1, array.shape[0])
        self._pending = bytearray()

    async def take(self, count: int) -> np.ndarray[Any, Any]:
        """Return the next rows."""
        size = count * self._row_bytes
        while len(self._pending) < size:
            self._pending += await anext(self._array.rows)
        taken, self._pending = self._pending[:size], self._pending[size:]
        return np.frombuffer(taken, np.dtype(self._array.dtype)).reshape(count, *self._array.shape[1:])


def _column_type(array: ArrayStream) -> pa.DataType:
    import pyarrow as pa

    value = pa.from_numpy_dtype(np.dtype(array.dtype))
    return value if len(array.shape) == 1 else pa.list_(value, array.shape[1])


def _column(rows: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    values = pa.array(rows.reshape(-1))
    return values if rows.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, type=kind)


class ArrowDecoder:
    """Takes an Arrow stream, which is held whole, and gives its rows; a decoder like those of `service.wire`."""

    def __init__(self, limits: Limits) -> None:
        if not is_installed():
            raise UnsupportedBody(f"{_HINT}; or send a .npy file")
        self.layout: Layout | None = None
        self._limits = limits
        self._body = bytearray()

    def feed(self, piece: bytes) -> Iterator[Points]:
        """Keep the next piece; raises BodyTooLarge."""
        self._body += piece
        if len(self._body) > self._limits.max_fortran_bytes:
            raise BodyTooLarge(
                f"an Arrow stream may have {self._limits.max_fortran_bytes} bytes here; send a .npy file, which is not held "
                "in memory"
            )
        yield from ()

    def finish(self) -> Iterator[Points]:
        """Yield all rows; raises MalformedArray, WrongLength, BodyTooLarge or InvalidPoints."""
        body, self._body = self._body, bytearray()
        if not body.endswith(_END):
            raise WrongLength(
                "the body does not end with the end mark of an Arrow stream: it was cut short, its writer was not closed, or "
                "it is no Arrow stream; an Arrow file has another format"
            )
        dtype, shape, rows = _read_apart(body, self._limits.max_fortran_bytes)
        # From here on it is what any .npy file would be, held to the same limits.
        decoder = points_decoder(NPY, None, None, {}, self._limits)
        yield from decoder.feed(npy_header(dtype, shape))
        self.layout = decoder.layout
        for start in range(0, len(rows), _BATCH_BYTES):
            yield from decoder.feed(rows[start : start + _BATCH_BYTES])
        yield from decoder.finish()


def _read_apart(body: bytearray, limit: int) -> tuple[str, tuple[int, int], bytes]:
    """Return dtype, shape and rows of an Arrow stream, read by a process that may come to an end."""
    command = [sys.executable, "-I", str(_READER), str(limit)]
    try:
        done = subprocess.run(
            command, input=body, capture_output=True, timeout=_READER_S, check=False, env=_READER_ENVIRONMENT
        )
    except subprocess.TimeoutExpired:
        raise MalformedArray(f"the Arrow stream was not read within {_READER_S} s; send a .npy file") from None
    if done.returncode != 0:
        said = done.stderr[-2000:].decode(errors="replace")
        _log.warning("arrow_reader_ended", status=done.returncode, bytes=len(body), said=said)
        raise MalformedArray(
            "the body is not an Arrow stream that can be read; send what pyarrow.ipc.new_stream writes"
        )
    verdict = json.loads(done.stderr.splitlines()[-1])
    detail = verdict.get("detail", "")
    if "fault" not in verdict:
        return verdict["dtype"], tuple(verdict["shape"]), done.stdout
    if verdict["fault"] == "points":
        raise InvalidPoints(detail, verdict["row"])
    raise (BodyTooLarge if verdict["fault"] == "large" else MalformedArray)(detail)
