"""One value for every point beside its coordinates: an order of the caller's own.

Such a column travels as a dataset of one column: float64 (n, 1), which holds whole numbers up to 2^53. Its hash is the id that
an upload of the same array has, so a specification says the same in the library and over HTTP.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pcct_core.errors import InvalidSpec


class _Column(Protocol):
    """A stored column: the id of its dataset, and float64 (n, 1) or None where that is not at hand."""

    @property
    def id(self) -> str:
        """The SHA-256 that the dataset is called by."""
        ...

    @property
    def array(self) -> Any:
        """The values."""
        ...


def as_order(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an order of the caller's own, (n,) or (n, 1), as a column (n, 1).

    Raises InvalidSpec naming the first entry that is no row number, or is there already.
    """
    if values.ndim not in (1, 2) or values.size == 0 or (values.ndim == 2 and values.shape[1] != 1):
        raise InvalidSpec(f"order has shape {values.shape}; give one row number for every rank, as (n,)", "order")
    _permutation(values.reshape(-1))
    return values.reshape(-1, 1)


def read_order(stored: _Column, n: int) -> NDArray[np.int64]:
    """Return a stored order of n points, int64 (n,); raises InvalidSpec for one that does not fit them."""
    if stored.array is None:
        raise InvalidSpec(
            f"order names dataset {stored.id}, whose array is not at hand; pass the array itself", "order"
        )
    values = np.asarray(stored.array, np.float64)
    check_column_shape(values.shape, n, "order")
    return _permutation(values.reshape(-1))


def check_column_shape(shape: tuple[int, ...], n: int, field: str) -> None:
    """Raise InvalidSpec for a column of another length than there are points."""
    if len(shape) == 2 and shape[1] != 1:
        raise InvalidSpec(f"{field} has {shape[1]} columns; give one, with a value for every point", field)
    if shape[0] != n:
        raise InvalidSpec(f"{field} has {shape[0]} entries for {n} points; give one for each", field)


def _permutation(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return float64 (n,) as int64 when it holds every row number once; raises InvalidSpec naming the first other entry."""
    n = len(values)
    outside = ~((values >= 0) & (values < n) & (values == np.floor(values)))
    if outside.any():
        entry = int(np.argmax(outside))
        whole = float(values[entry]).is_integer()
        said = f"entry {entry} of the order is {int(values[entry]) if whole else values[entry]}"
        from_one = "; subtract 1 from orders that count from 1" if values[entry] == n and values.min() == 1 else ""
        raise InvalidSpec(f"{said}, and rows are whole numbers from 0 to {n - 1}{from_one}", "order")
    order = values.astype(np.int64)
    first = np.full(n, -1)
    # The last assignment to a place stays: backwards, it is the first entry that names the row.
    first[order[::-1]] = np.arange(n)[::-1]
    again = first[order] != np.arange(n)
    if again.any():
        entry = int(np.argmax(again))
        raise InvalidSpec(
            f"entry {entry} of the order is {order[entry]}, which entry {first[order[entry]]} is already; "
            f"name every row from 0 to {n - 1} once",
            "order",
        )
    return order
