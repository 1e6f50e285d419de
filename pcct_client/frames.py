"""Columns of data frames, by their names: numbers of one type each, exactly, and points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_client.errors import InvalidArray
from pcct_client.geometry import is_geometry, places
from pcct_client.values import EXACT_WHOLE, numbers_of, rounded_away, rounded_row

_SHOWN_NAMES = 12


class Columns(NamedTuple):
    """Columns of numbers side by side.

    values: (n, d). names: one for each, None where they have none. crs: the system of coordinates that came as geometries,
    of pyproj; None where nobody said. lacks_crs: whether geopandas holds them without one.
    """

    values: NDArray[Any]
    names: tuple[Any, ...] | None
    crs: Any
    lacks_crs: bool = False


def is_frame(X: Any) -> bool:
    """Whether X is a data frame of pandas, polars or geopandas."""
    # In this order: a lazy frame warns when it is asked for its columns.
    return hasattr(X, "to_numpy") and hasattr(X, "columns") and not isinstance(X, np.ndarray)


def read_frame(frame: Any, columns: Sequence[str] | None, in_degrees: bool) -> Columns:
    """Return columns of a frame as numbers.

    columns: their names, in this order; left out, all of them, or the geometry alone of a frame that has one. A column of
    points counts as two. in_degrees: as `geometry.places` takes it. A column of float32 alone stays that; where types differ
    the wider one wins. Raises InvalidArray for names that are not there, and for columns that hold no numbers.
    """
    geometry = getattr(frame, "geometry", None)
    if columns is None and is_geometry(geometry):
        found = places(geometry, in_degrees)
        return Columns(found.values, ("x", "y"), found.crs, found.crs is None)
    there = list(frame.columns)
    wanted = there if columns is None else [columns] if isinstance(columns, str) else list(columns)
    missing = [name for name in wanted if name not in there]
    if missing:
        raise InvalidArray(f"there is no column {missing[0]!r}; the frame has {listed(there)}")
    if not wanted:
        raise InvalidArray("no column is chosen; name those of the coordinates: columns=['x', 'y']")
    crs: Any = None
    lacks_crs = False
    arrays: list[NDArray[Any]] = []
    names: list[Any] = []
    for name in wanted:
        values, system = _column(frame, name, in_degrees)
        crs = system if crs is None else crs
        lacks_crs = lacks_crs or (system is None and is_geometry(frame[name]) and hasattr(frame[name], "crs"))
        arrays.append(values)
        names += [name] if values.ndim == 1 else [(name, part) for part in range(values.shape[1])]
    return Columns(np.column_stack(arrays), tuple(names), crs, lacks_crs and crs is None)


def listed(names: Sequence[Any]) -> str:
    """Return names as messages show them: not too many."""
    text = ", ".join(map(repr, names[:_SHOWN_NAMES]))
    return text if len(names) <= _SHOWN_NAMES else f"{text} and {len(names) - _SHOWN_NAMES} more"


def _column(frame: Any, name: Any, in_degrees: bool) -> tuple[NDArray[Any], Any]:
    """Return a column as numbers, (n,), or (n, 2) for points, and the system of points."""
    series = frame[name]
    if hasattr(series, "columns"):
        raise InvalidArray(f"the frame has several columns {name!r}; rename them")
    if is_geometry(series):
        return places(series, in_degrees, f"X[{name!r}]", f"column {name!r}")
    array = _array_of(series)
    if is_geometry(array):
        return places(array, in_degrees, f"X[{name!r}]", f"column {name!r}")
    fixes = _Fixes.of(frame, name)
    if array.dtype == object and not any(isinstance(value, str) or hasattr(value, "isoformat") for value in array):
        return numbers_of(array, lambda row: f"row {row} of column {name!r}", fixes.offset, fixes.number), None
    if array.dtype.kind not in "iufb":
        said = f"column {name!r} has type {getattr(series, 'dtype', array.dtype)}"
        raise InvalidArray(f"{said}; {_other_fix(array, fixes)}")
    _check_exact(series, array, f"column {name!r}", fixes)
    return array, None


def _array_of(series: Any) -> NDArray[Any]:
    """Return a column as NumPy has it; floats, NaN for missing values, where pandas holds small floats with those."""
    if str(getattr(series, "dtype", "")).endswith("Int128"):  # polars has no array of those
        return np.array(series.to_list(), object)
    array = np.asarray(series)
    own = getattr(getattr(series, "dtype", None), "numpy_dtype", None)
    if array.dtype != own and getattr(own, "kind", "") == "f":
        return np.asarray(series.to_numpy(dtype=own, na_value=np.nan))
    return array


def _check_exact(series: Any, array: NDArray[Any], place: str, fixes: _Fixes) -> None:
    """Raise InvalidArray for a column of integers that float64 rounds, also where missing values made floats of them."""
    rows = np.arange(len(array))
    if array.dtype == np.float64:
        if not (np.abs(array) >= EXACT_WHOLE).any():
            return
        rows = np.flatnonzero(~np.isnan(array))
        array = np.asarray(series.dropna() if hasattr(series, "dropna") else series.drop_nulls())
    row = rounded_row(array) if array.dtype.kind in "iu" else None
    if row is not None:
        raise InvalidArray(rounded_away(f"row {rows[row]} of {place}", int(array[row]), fixes.offset, fixes.number))


class _Fixes(NamedTuple):
    """Code that gives the frame X with one column in another form.

    offset: without its lowest value. number: as float64. seconds, elapsed: for times that passed, and for moments.
    """

    offset: str
    number: str
    seconds: str
    elapsed: str

    @staticmethod
    def of(frame: Any, name: Any) -> _Fixes:
        """Return those for a column of a frame, in the words of its library."""
        column = f"X[{name!r}]"
        passed = f"{column} - {column}.min()"
        if hasattr(frame, "with_columns"):
            seconds = "X.with_columns({}.dt.total_microseconds() / 1e6)"
            number = f"X.cast({{{name!r}: float}})"
            return _Fixes(f"X.with_columns({passed})", number, seconds.format(column), seconds.format(f"({passed})"))
        assigned, seconds = f"X.assign(**{{{name!r}: {{}}}})", "{} / np.timedelta64(1, 's')"
        return _Fixes(
            assigned.replace("{}", passed),
            f"X.astype({{{name!r}: 'float64'}})",
            assigned.replace("{}", seconds.format(column)),
            assigned.replace("{}", seconds.format(f"({passed})")),
        )


def _other_fix(array: NDArray[Any], fixes: _Fixes) -> str:
    """Return what to do about a column that holds no numbers but times or text."""
    present = [value for value in array if value is not None and value == value]
    if array.dtype.kind == "m":
        return f"count seconds: {fixes.seconds}"
    if array.dtype.kind == "M" or any(hasattr(value, "isoformat") for value in present):
        return f"count seconds: {fixes.elapsed}"
    try:
        np.asarray(present, dtype=np.float64)
    except (TypeError, ValueError):
        return "choose columns of numbers: columns=[…]"
    return f"{fixes.number} makes numbers of it"
