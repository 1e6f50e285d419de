"""Arrow IPC streams, in answers only: tables of arrays. pyarrow is an extra, loaded when the first stream is asked for.

Bodies are not read: on a damaged stream pyarrow has read beyond its buffers, which ends the process for everybody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from service.wire import ARROW, ArrayStream, Drain, NothingAcceptable

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_BYTES = 1 << 20
_HINT = f"{ARROW} needs pyarrow, which is not installed at this service: pip install 'pcct[arrow]'"


def is_installed() -> bool:
    """Return whether Arrow streams can be written here."""
    return find_spec("pyarrow") is not None


def check_writable(arrays: Sequence[ArrayStream]) -> None:
    """Raise NothingAcceptable when these arrays cannot be the columns of one table."""
    if not is_installed():
        raise NothingAcceptable(f"{_HINT}; or ask for another format")
    if len({array.shape[0] for array in arrays}) > 1:
        raise NothingAcceptable(
            "the arrays of this graph have different lengths, so they are no Arrow table; ask for them one by one"
        )


async def write_arrow(arrays: Sequence[ArrayStream]) -> AsyncIterator[bytes]:
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
