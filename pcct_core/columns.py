"""One value for every point beside its coordinates: an order of the caller's own, or the group that it is in.

Such a column travels as a dataset of one column: float64 (n, 1), which holds whole numbers up to 2^53. Its hash is the id that
an upload of the same array has, so a specification says the same in the library and over HTTP.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pcct_core.arrays import EXACT_WHOLE
from pcct_core.errors import InvalidSpec
from pcct_core.geometries import MISSING

_FIRST = 40  # characters that are shown of a label


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


def as_groups(labels: Any) -> NDArray[np.float64]:
    """Return labels of the points, (n,) or (n, 1), as a column (n, 1) that numbers the groups by their first rows, from 0.

    So labels that part the points in the same way are the same column.
    labels: numbers, strings, times, or a list of any objects that can be keys of a dictionary; equal ones are one group.
    Raises InvalidSpec naming the first row without a label: masked, None, NaN or NaT.
    """
    values = _label_array(labels)
    codes = _number_objects(values) if values.dtype.kind in "OT" else _number_values(values)
    return codes.astype(np.float64).reshape(-1, 1)


def read_groups(stored: _Column, n: int) -> NDArray[np.int64]:
    """Return the stored groups of n points, int64 (n,), equal for points of one group.

    Raises InvalidSpec for a column that does not fit them.
    """
    if stored.array is None:
        raise InvalidSpec(
            f"groups names dataset {stored.id}, whose array is not at hand; pass the labels themselves", "groups"
        )
    values = np.asarray(stored.array, np.float64)
    check_column_shape(values.shape, n, "groups")
    row = first_fraction(values.reshape(-1))
    if row is not None:
        raise InvalidSpec(fraction_fault(row, float(values.reshape(-1)[row])), "groups")
    return values.reshape(-1).astype(np.int64)


def first_fraction(values: NDArray[Any]) -> int | None:
    """Return the first row whose value, of (n,), cannot be the number of a group; None where all can."""
    with np.errstate(invalid="ignore"):
        bad = ~((np.abs(values) <= EXACT_WHOLE) & (values == np.floor(values)))
    return int(np.argmax(bad)) if bad.any() else None


def fraction_fault(row: int, value: float) -> str:
    """Return what is said of a row whose value cannot be the number of a group."""
    return f"row {row} of groups is {value}; give every point the whole number of its group, up to 2^53"


def _label_array(labels: Any) -> NDArray[Any]:
    fix = "give one label for every point, as (n,)"
    if isinstance(labels, np.ma.MaskedArray) and np.ma.getmaskarray(labels).any():
        _refuse_unlabelled(int(np.argwhere(np.ma.getmaskarray(labels))[0, 0]), "masked")
    # NumPy would make text of numbers that stand beside it in a list.
    values = np.fromiter(labels, object, len(labels)) if isinstance(labels, list | tuple) else np.asarray(labels)
    if values.ndim not in (1, 2) or values.size == 0 or (values.ndim == 2 and values.shape[1] != 1):
        said = f"are {labels!r:.{_FIRST}}" if values.ndim == 0 else f"have shape {values.shape}"
        raise InvalidSpec(f"groups {said}; {fix}", "groups")
    return values.reshape(-1)


def _number_objects(labels: NDArray[Any]) -> NDArray[np.int64]:
    numbers: dict[Any, int] = {}
    codes = np.empty(len(labels), np.int64)
    for row, label in enumerate(labels):
        if type(label).__name__ in (*MISSING, "MaskedConstant"):
            _refuse_unlabelled(row, str(label))
        try:
            codes[row] = numbers.setdefault(label, len(numbers))
        except TypeError:
            raise InvalidSpec(
                f"row {row} of groups is {label!r:.{_FIRST}}, which is no label; use numbers, strings or times",
                "groups",
            ) from None
        if label != label:
            _refuse_unlabelled(row, str(label))
    return codes


def _number_values(labels: NDArray[Any]) -> NDArray[np.int64]:
    missing = np.isnat(labels) if labels.dtype.kind in "mM" else labels != labels
    if missing.any():
        row = int(np.argmax(missing))
        _refuse_unlabelled(row, str(labels[row]))
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    return numbers[codes.reshape(-1)]


def _refuse_unlabelled(row: int, value: str) -> None:
    raise InvalidSpec(
        f"row {row} of groups is {value}; give every point a label, such as one that such points share", "groups"
    )


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
