"""Numbers of JSON as they are written, beside what float64 makes of them: what would be lost without a word is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

from pcct_core.arrays import EXACT_WHOLE, rounded_away
from pcct_core.errors import InvalidPoints

_ALWAYS_TOLD_APART = 16  # characters of two decimals, a point among them, that are never one float64
_SHOWN = 60  # characters of a number in a message


class Written(float):
    """A number with a point or an exponent. text: how it is written."""

    __slots__ = ("text",)  # there are many of them
    text: str

    def __new__(cls, text: str) -> Written:
        """Return the float64 next to what is written."""
        number = float.__new__(cls, text)
        number.text = text
        return number


def check_written(rows: Sequence[Sequence[int | float]], points: NDArray[np.float64]) -> None:
    """Raise InvalidPoints naming the first number that float64 does not hold as it is written.

    rows: of int, Written, and float for what JSON has no number for. points: (n, d), the same as float64.
    That is a number above 2^53 whose last digits are lost, one that becomes 0 or infinity, and one that becomes the same
    float64 as another of its column. Other decimals are rounded to the next float64, as everywhere.
    """
    suspect = (np.abs(points) >= EXACT_WHOLE) | (points == 0)
    for row, column in np.argwhere(suspect).tolist():
        _check_size(rows, row, column)
    for column, values in enumerate(points.T):
        if len(np.unique(values)) < len(values):
            _check_told_apart(rows, column)


def _check_size(rows: Sequence[Sequence[int | float]], row: int, column: int) -> None:
    value = rows[row][column]
    place, text = f"row {row}, column {column}", _shown(value)
    if isinstance(value, Written) and not value and value.text.lower().partition("e")[0].strip("-0."):
        raise InvalidPoints(f"{place} is {text}, which float64 takes for 0; use a smaller unit", row)
    if isinstance(value, Written) and math.isinf(value):
        raise InvalidPoints(f"{place} is {text}, which float64 cannot hold; use a larger unit", row)
    if not isinstance(value, int | Written) or float(value) == (exact := _exact(value)):
        return
    # What prints a float64 with fewer digits than it has, rounds it to them: nothing is lost there.
    digits = len(exact.as_tuple().digits)
    if isinstance(value, Written) and Context(prec=digits).create_decimal(Decimal(value)) == exact:
        return
    near, fix = float(value), _offset_fix(rows, column)
    raise InvalidPoints(rounded_away(place, text, near, fix, repr(near)), row)


def _check_told_apart(rows: Sequence[Sequence[int | float]], column: int) -> None:
    """Raise InvalidPoints for two numbers of a column that are written differently and are one float64."""
    seen: dict[float, Written] = {}
    for row, line in enumerate(rows):
        value = line[column]
        if not isinstance(value, Written) or len(value.text) <= _ALWAYS_TOLD_APART:
            continue
        other = seen.setdefault(value, value)
        if other.text != value.text and _exact(other) != _exact(value):
            fix = _offset_fix(rows, column)
            said = f"row {row}, column {column} is {_shown(value)}, which float64 does not tell from {_shown(other)}"
            advice = "take fewer digits" if fix is None else f"subtract {fix}, which changes no Euclidean distance"
            raise InvalidPoints(f"{said}; {advice}", row)


def _offset_fix(rows: Sequence[Sequence[int | float]], column: int) -> str | None:
    """Return the offset to subtract, in words, None where numbers of the column are too far apart for any."""
    values = [line[column] for line in rows]
    if not all(map(math.isfinite, values)):
        return None
    exact = [_exact(value) for value in values]
    least = int(min(exact))
    return f"{least} from all of the column" if max(exact) - least <= EXACT_WHOLE else None


def _exact(value: int | float) -> Decimal:
    """Return a finite number as it is written; zeros may have exponents that Decimal refuses."""
    return Decimal(value.text if isinstance(value, Written) and value else value)


def _shown(value: int | float) -> str:
    text = value.text if isinstance(value, Written) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
