"""Arrays on the wire: the canonical `.npy` bytes of a point set, their SHA-256, and `.npy` bytes back into an array."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_client.errors import BadAnswer, InvalidArray, TruncatedAnswer
from pcct_client.inputs import as_array

PIECE_BYTES = 1 << 20  # large enough that a piece costs more to send than to cut, small enough to stop between two

_PREFIX_BYTES = 10  # magic (6), version (2), header length (2): the longest header that v1.0 can have is 65,535 bytes


@dataclass(frozen=True)
class NpyBody:
    """A point array as the bytes that `np.save` writes, without a second copy of the points.

    points: float32 or float64 (n, d), C order, little-endian. header: the .npy header (format 1.0).
    """

    points: NDArray[Any]
    header: bytes

    @property
    def nbytes(self) -> int:
        """Length of the whole body in bytes."""
        return len(self.header) + self.points.nbytes

    def data(self) -> memoryview:
        """Return the bytes of the points, where they lie."""
        return self.points.reshape(-1).view(np.uint8).data

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in pieces of about a mebibyte."""
        yield self.header
        data = self.data()
        for start in range(0, len(data), PIECE_BYTES):
            yield bytes(data[start : start + PIECE_BYTES])


def npy_body(X: Any, columns: Sequence[str] | None = None) -> NpyBody:
    """Return X in canonical form: C-contiguous little-endian float32 or float64 of shape (n, d).

    X, columns: as `as_array` takes them. Integers, booleans and half floats become float64; float32 and float64 stay, and are
    copied only when their memory layout demands it. Whether the values are usable is for the service to say.
    Raises InvalidArray as `as_array` does, for a rank that is not 2, and for an empty array.
    """
    array = as_array(X, columns)
    if array.dtype.kind != "f" or array.dtype.itemsize < 4:
        array = array.astype(np.float64)
    if array.size == 0:
        raise InvalidArray(f"points have shape {array.shape}; at least one row and one column are needed")
    if array.ndim != 2:
        given = "X" if isinstance(X, np.ndarray) else "np.asarray(X)"
        fixes = {0: "reshape(1, 1) for one point in one dimension", 1: "reshape(-1, 1) for one dimension"}
        fix = fixes.get(array.ndim, f"reshape({(*array.shape, 1)[0]}, -1) where every X[i] is a point")
        raise InvalidArray(f"points have shape {array.shape}; expected (n, d); use {given}.{fix}")
    points = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(points))
    return NpyBody(points, header.getvalue())


def as_column(values: Any, name: str) -> NDArray[np.float64]:
    """Return one number for every point as the service takes it: float64 (n, 1), a dataset of one column.

    values: (n,) or (n, 1), anything that `as_array` takes. name: what messages call them. Raises InvalidArray for other shapes.
    """
    array = as_array(values)
    if array.ndim != 1 and array.shape[1:] != (1,):
        raise InvalidArray(f"{name} has shape {array.shape}; give one value for every point, as (n,)")
    return array.reshape(-1, 1).astype(np.float64)


def dataset_id(X: Any, columns: Sequence[str] | None = None) -> str:
    """Return the id that the service gives the points X: the SHA-256, in hex, of their canonical `.npy` bytes.

    It is what `sha256sum points.npy` prints after `np.save("points.npy", X)` for C-ordered little-endian float32 or
    float64. Raises InvalidArray as `npy_body` does.
    """
    return body_id(npy_body(X, columns))


def body_id(body: NpyBody) -> str:
    """Return the SHA-256, in hex, of a canonical body."""
    digest = hashlib.sha256(body.header)
    digest.update(body.data())
    return digest.hexdigest()


class NpyReader:
    """Turns the pieces of a `.npy` answer into an array, writing each where it belongs as it comes.

    expected_bytes: length of the whole answer if it was announced, so that a false header takes no memory.
    """

    def __init__(self, expected_bytes: int | None = None) -> None:
        self._expected_bytes = expected_bytes
        self._head = bytearray()
        self._array: NDArray[Any] | None = None
        self._data = memoryview(b"")
        self._filled = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece, of any size. Raises BadAnswer when it cannot belong to a numeric `.npy` file."""
        if self._array is None:
            self._head += piece
            start = _header_end(self._head)
            if start is None or len(self._head) < start:
                return
            self._open(bytes(self._head[:start]))
            piece = bytes(self._head[start:])
        end = self._filled + len(piece)
        if end > len(self._data):
            raise BadAnswer("the array that came back is longer than its header says")
        self._data[self._filled : end] = piece
        self._filled = end

    def finish(self) -> NDArray[Any]:
        """Return the array. Raises TruncatedAnswer when bytes are missing."""
        if self._array is None or self._filled != len(self._data):
            raise TruncatedAnswer("the array that came back is cut short, and none of it is kept; call again")
        return self._array

    def _open(self, head: bytes) -> None:
        try:
            file = io.BytesIO(head)
            np.lib.format.read_magic(file)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise BadAnswer(f"the answer is not a .npy array: {error}") from error
        if dtype.kind not in "iuf" or fortran_order:
            raise BadAnswer(f"the answer is a .npy array of type {dtype}; expected C-ordered numbers")
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if self._expected_bytes is not None and self._expected_bytes != len(head) + size:
            raise BadAnswer(f"the array's header promises {size} bytes, the answer has {self._expected_bytes}")
        self._array = np.empty(shape, dtype)
        self._data = self._array.reshape(-1).view(np.uint8).data


def _header_end(head: bytearray) -> int | None:
    """Return where the array's data starts, or None while the first bytes are not all there."""
    if len(head) < _PREFIX_BYTES:
        return None
    if head[:8] != b"\x93NUMPY\x01\x00":
        raise BadAnswer("the answer is not a .npy array (format 1.0)")
    return _PREFIX_BYTES + int.from_bytes(head[8:10], "little")
