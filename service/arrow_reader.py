"""Points out of an Arrow stream, as a process of its own: what a damaged stream does to pyarrow ends here.

`service.arrow` starts it for one body and reads what it leaves: rows on standard output, C-ordered and little-endian, and
as the last line of standard error one JSON object, {"shape", "dtype"} or {"fault", "detail", "row"}.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Beside the interpreter and its libraries: a batch as it came, decompressed, and the rows that are made of it.
_MEMORY_FACTOR = 3
_MEMORY_BYTES = 64 << 20
_CPU_S = 60
_STEP_BYTES = 1 << 20
_FIX = "send one column of fixed-size lists, or one column per dimension, of numbers of one type"


class Refused(Exception):
    """A stream that holds no points. fault: "points", "malformed" or "large". row: the offending one, if one is."""

    def __init__(self, fault: str, detail: str, row: int | None = None) -> None:
        super().__init__(detail)
        self.verdict = {"fault": fault, "detail": detail, "row": row}


def read_points(source: BinaryIO, sink: BinaryIO, limit: int) -> dict[str, Any]:
    """Copy the rows of an Arrow stream to sink; return their shape and dtype.

    limit: most bytes of numbers. Raises Refused, or what pyarrow raises for a stream that it cannot read.
    """
    n = 0
    with pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(use_threads=False)) as reader:
        number, d = _checked_columns(reader.schema)
        width = np.dtype(number.to_pandas_dtype()).itemsize
        for batch in reader:
            batch.validate(full=True)
            if (n + batch.num_rows) * d * width > limit:
                raise Refused("large", f"the Arrow stream has more than {limit} bytes of numbers, which is the limit")
            _check_nulls(batch, n, d)
            for rows in _rows(batch, d, max(1, _STEP_BYTES // (d * width))):
                sink.write(rows.tobytes())
            n += batch.num_rows
    if source.read(1):
        raise Refused(
            "malformed", "the body goes on behind the end of its Arrow stream; send one stream and nothing else"
        )
    return {"shape": [n, d], "dtype": np.dtype(number.to_pandas_dtype()).name}


def _checked_columns(schema: pa.Schema) -> tuple[pa.DataType, int]:
    """Return the type of the numbers and how many a row has; raises Refused for what is not a table of points."""
    kinds = schema.types
    if len(kinds) == 1 and pa.types.is_fixed_size_list(kinds[0]):
        number, d = kinds[0].value_type, kinds[0].list_size
    else:
        number, d = (kinds[0] if kinds else pa.null()), len(kinds)
    for kind, name in zip(kinds, schema.names, strict=True):
        if kind != kinds[0]:
            raise Refused("points", f"column {name!r:.80} is {kind!s:.80}, the first one is {kinds[0]!s:.80}; {_FIX}")
    if not (pa.types.is_floating(number) or pa.types.is_integer(number) or pa.types.is_boolean(number)):
        raise Refused("points", f"points have type {number!s:.80}; {_FIX}")
    if d < 1:
        raise Refused("points", f"the rows of the Arrow stream have no numbers; {_FIX}")
    return number, d


def _check_nulls(batch: pa.RecordBatch, before: int, d: int) -> None:
    """Raise Refused with the first row that lacks something. before: rows of the batches before this one."""
    missing = [_first_null(column) for column in batch.columns]
    if missing == [None] and pa.types.is_fixed_size_list(batch.schema.types[0]):
        number = _first_null(batch.column(0).flatten())
        missing = [None if number is None else number // d]
    rows = [row for row in missing if row is not None]
    if rows:
        row = before + min(rows)
        raise Refused("points", f"row {row} has a null; remove or fill such rows", row)


def _first_null(values: pa.Array) -> int | None:
    if not values.null_count:
        return None
    return int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])


def _rows(batch: pa.RecordBatch, d: int, step: int) -> Iterator[NDArray[Any]]:
    """Yield the rows of a batch without nulls, so many at a time."""
    for start in range(0, batch.num_rows, step):
        part = batch.slice(start, step)
        if pa.types.is_fixed_size_list(part.schema.types[0]):
            yield part.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, d)
        else:
            yield np.stack([column.to_numpy(zero_copy_only=False) for column in part.columns], axis=1)


def _bound(limit: int) -> None:
    """Bound what the process may take from now on, its libraries loaded."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = taken + _MEMORY_FACTOR * limit + _MEMORY_BYTES
    for kind, value in ((resource.RLIMIT_AS, most), (resource.RLIMIT_CPU, _CPU_S), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def main() -> None:
    """Read the stream at standard input. The only argument: most bytes of numbers."""
    limit = int(sys.argv[1])
    _bound(limit)
    try:
        verdict = read_points(sys.stdin.buffer, sys.stdout.buffer, limit)
    except Refused as refused:
        verdict = refused.verdict
    except MemoryError:
        detail = "a batch of the Arrow stream takes too much memory; write smaller ones (max_chunksize), or a .npy file"
        verdict = {"fault": "large", "detail": detail}
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        verdict = {"fault": "malformed", "detail": f"the body is not an Arrow stream that can be read: {reason:.200}"}
    sys.stdout.buffer.flush()
    print("\n" + json.dumps(verdict), file=sys.stderr)


if __name__ == "__main__":
    main()
