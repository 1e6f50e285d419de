"""Real numbers from whatever a caller gives, exactly; or what to do about what holds none.

Everything that the library takes as an array comes through here: nothing is lost on the way without a word, neither a mask
nor the last digits of a whole number. The code in a message works as it stands, with the caller's array as `X`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_core.errors import InvalidPoints
from pcct_core.geometries import MISSING, find_geometries, geometry_fault

EXACT_WHOLE = 2**53  # float64 holds every whole number up to it

_FIRST = 40  # characters that are shown of a value


def read_numbers(X: Any, subject: str = "points", name: str = "X") -> NDArray[Any]:
    """Return X as an array of real numbers of at most 8 bytes, of any shape; shares memory where it can.

    X: an array of any library that NumPy reads, a data frame, or nested lists. subject: what messages call X, a plural.
    name: what their code calls it. Raises InvalidPoints for anything else, and for masked values.
    """
    if not isinstance(X, np.ndarray):
        _check_kind(X, subject, name)
        X = X.detach() if hasattr(X, "detach") else X  # torch gives no array of what it differentiates
    _check_unmasked(X, subject, name)
    try:
        array = np.from_dlpack(X) if hasattr(X, "__dlpack__") and not hasattr(X, "__array__") else np.asarray(X)
    except (ValueError, TypeError, RuntimeError, BufferError) as error:
        raise _unreadable(X, subject, error) from error
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise _without_numbers(X, array, subject, name)
    return array


def check_exact(X: Any, array: NDArray[Any], subject: str = "points", name: str = "X", *, first_row: int = 0) -> None:
    """Raise InvalidPoints naming the first whole number in X that float64 rounds.

    array: what `read_numbers` made of X; where X mixes whole numbers with others it may have rounded them already.
    first_row: the row that row 0 of X is called, for X that is a part of more.
    """
    if array.size == 0 or array.dtype.itemsize < 8:
        return
    whole = array.dtype.kind in "iu"
    with np.errstate(invalid="ignore"):
        large = (array > EXACT_WHOLE) | (array < -EXACT_WHOLE) if whole else np.abs(array) >= EXACT_WHOLE
    if not large.any() or not (whole or not isinstance(X, np.ndarray)):
        return
    values = array if whole else _as_objects(X)
    for place in map(tuple, np.argwhere(large & _rounded(array) if whole else large)):
        value = values[place]
        if isinstance(value, Integral) and int(float(value)) != int(value):
            raise _too_long(X, values, place, subject, name, first_row)


def column_names(X: Any) -> tuple[str, ...] | None:
    """Return what the columns of a data frame are called; None for what is no frame, and for columns that are only counted."""
    if not _is_frame(X) or isinstance(X, np.ndarray):
        return None
    names = list(X.columns)
    return None if names == list(range(len(names))) else tuple(map(str, names))


def align_columns(
    ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None, subject: str = "queries", name: str = "Q"
) -> list[int] | None:
    """Return where the columns of queries stand that are called as those of the points; None where they are in their order.

    ours: names of the points' columns. theirs: of the queries'. Either is None where nothing is called by a name.
    subject, name: what messages and the code in them call the queries.
    Raises InvalidPoints for other names, and for names that are there twice in another order.
    """
    if ours is None or theirs is None or ours == theirs:
        return None
    if len(set(ours)) < len(ours) or sorted(ours) != sorted(theirs):
        raise InvalidPoints(
            f"the points have the columns {', '.join(map(repr, ours))} and the {subject} {', '.join(map(repr, theirs))}; "
            f"give both the same names, or the {subject} as an array: np.asarray({name})"
        )
    return [theirs.index(name) for name in ours]


def rounded_away(place: str, value: int | str, near: float, offset_fix: str | None, round_fix: str) -> str:
    """Return what is said of a number above 2^53 that float64 rounds.

    place: where it is, in words. value: the number, or how it is written. near: what float64 makes of it.
    offset_fix: how to subtract an offset, None where no offset helps. round_fix: how to round.
    """
    rounded = "infinity" if math.isinf(near) else str(int(near))
    said = f"{place} is {value}, which float64 rounds to {rounded}; "
    if offset_fix is None:
        return f"{said}take it rounded: {round_fix}"
    return (
        f"{said}subtract an offset, which changes no Euclidean distance: {offset_fix}; or take it rounded: {round_fix}"
    )


def _rounded(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where integers of 64 bits have more than 53 bits between their first and their last one."""
    size = np.abs(array).astype(np.uint64)  # -2^63 stays what it is, whose bits are those of 2^63
    lowest = size & (~size + np.uint64(1))
    odd: NDArray[np.bool_] = size // np.maximum(lowest, np.uint64(1)) >= np.uint64(EXACT_WHOLE)
    return odd


def _too_long(
    X: Any, values: NDArray[Any], place: tuple[int, ...], subject: str, name: str, first_row: int = 0
) -> InvalidPoints:
    offset_fix = _offset_fix(X, name) if _fits_with_offset(values) else None
    value, round_fix = int(values[place]), f"np.asarray({name}, dtype='float64')"
    try:
        near = float(value)
    except OverflowError:
        near = math.inf
    called = (place[0] + first_row, *place[1:]) if place else ()
    said = rounded_away(_place(called, subject), value, near, offset_fix, round_fix)
    return InvalidPoints(said, _row(called))


def _fits_with_offset(values: NDArray[Any]) -> bool:
    """Return True when the whole numbers of every column are at most 2^53 above the lowest of them."""
    columns = values.reshape(len(values), -1).T if values.ndim else values.reshape(1, 1)
    return all(_span(column) <= EXACT_WHOLE for column in columns)


def _span(column: NDArray[Any]) -> float | int:
    low, high = column.min(), column.max()
    return int(high) - int(low) if isinstance(low, Integral) and isinstance(high, Integral) else float(high - low)


def _offset_fix(X: Any, name: str) -> str:
    if isinstance(X, np.ndarray) and X.dtype.kind in "iu":
        return f"{name} - {name}.min(axis=0)"
    if _is_frame(X):
        return f"np.column_stack([{name}[c] - {name}[c].min() for c in {name}.columns])"
    return f"A = np.array({name}, dtype=object); (A - A.min(axis=0)).astype('float64')"


def _is_frame(X: Any) -> bool:
    return hasattr(X, "columns") and hasattr(X, "to_numpy")


def _as_objects(X: Any) -> NDArray[Any]:
    """Return the values of X as objects, each as it stands there; a whole frame would come as floats."""
    if not _is_frame(X):
        return np.array(X, dtype=object)
    columns = (X.iloc[:, i] if hasattr(X, "iloc") else X[column] for i, column in enumerate(X.columns))
    return np.stack([np.asarray(column).astype(object) for column in columns], axis=1)


def _check_kind(X: Any, subject: str, name: str) -> None:
    """Raise InvalidPoints for what NumPy would take as one object, or as its text."""
    if isinstance(X, bytes | bytearray):
        raise InvalidPoints(_bytes_fix(X, subject, name))
    if isinstance(X, str | PathLike):
        raise InvalidPoints(_path_fix(fspath(X), subject))
    if X is None:
        raise InvalidPoints(f"{subject} are None; give an array of shape (n, d)")
    if isinstance(X, Mapping) and not X:
        raise InvalidPoints(f"{subject} are an empty dictionary; give an array of shape (n, d)")
    if isinstance(X, Mapping):
        raise InvalidPoints(
            f"{subject} are a dictionary; use np.column_stack(list({name}.values())) if its values are columns, "
            f"np.array(list({name}.values())) if they are points"
        )
    if hasattr(X, "toarray"):
        raise InvalidPoints(f"{subject} are a sparse matrix ({type(X).__name__}); use {name}.toarray()")
    if hasattr(X, "collect"):
        raise InvalidPoints(f"{subject} are a {type(X).__name__}, which holds no values yet; use {name}.collect()")
    _refuse_wide(X, subject, name)
    if isinstance(X, Iterable) and not isinstance(X, Sequence) and not _reads_as_array(X):
        raise InvalidPoints(f"{subject} are a {type(X).__name__}, which is no array; use np.array(list({name}))")


def _refuse_wide(X: Any, subject: str, name: str) -> None:
    """Raise InvalidPoints for integers of 128 bits, of which polars makes no array: asking it for one ends in a panic."""
    names = list(X.columns) if _is_frame(X) and hasattr(X, "schema") else [None]
    for column in names:
        dtype = str(X.schema[column] if column is not None else getattr(X, "dtype", ""))
        if dtype in ("Int128", "UInt128"):
            to_int, to_float = (f"{{{column!r}: {kind}}}" if column is not None else kind for kind in ("int", "float"))
            said = f"{subject} have type {dtype}" if column is None else f"column {column!r} has type {dtype}"
            raise InvalidPoints(
                f"{said}, of which polars makes no array; use {name}.cast({to_int}), or {name}.cast({to_float}) for numbers "
                "of 2^63 and more"
            )


def _bytes_fix(X: bytes | bytearray, subject: str, name: str) -> str:
    if X.endswith((b".npy", b".csv", b".txt", b".tsv")):
        path = bytes(X).decode(errors="replace")
        return _path_fix(path, subject)
    if X.startswith(b"\x93NUMPY"):
        return f"{subject} are the bytes of an .npy file, not an array; use np.load(io.BytesIO({name})), with import io"
    code = f"np.frombuffer({name}, dtype='float64').reshape(-1, d)"
    return f"{subject} are bytes, not an array; use {code}, with the type and the number of columns that they have"


def _reads_as_array(X: Any) -> bool:
    ways = ("__array__", "__array_interface__", "__array_struct__", "__dlpack__", "__buffer__")
    return any(hasattr(X, way) for way in ways) or isinstance(X, memoryview | bytearray)


def _path_fix(path: str, subject: str) -> str:
    shown = repr(path if len(path) <= 2 * _FIRST else f"{path[: 2 * _FIRST]}…")
    ending = path.rpartition(".")[2].lower()
    fix = "read the file, and give its numbers as an array of shape (n, d)"
    if ending == "npy":
        fix = f"use np.load({shown})"
    elif ending in ("csv", "txt", "tsv"):
        between = "" if ending == "txt" else ", delimiter=','" if ending == "csv" else ", delimiter='\\t'"
        fix = f"use np.loadtxt({shown}{between}), with skiprows=1 where names stand above the numbers"
    return f"{subject} are the text {shown}, not an array; {fix}"


def _check_unmasked(X: Any, subject: str, name: str) -> None:
    """Raise InvalidPoints naming the first masked value of a masked array, or of a list of them."""
    if isinstance(X, np.ma.MaskedArray):
        places = np.argwhere(np.ma.getmaskarray(X))  # of structured arrays too, whose masks have no any()
        if not len(places):
            return
        place = tuple(places[0].tolist())
        rows = f"{name}[~np.ma.getmaskarray({name}).any(axis=1)]" if X.ndim == 2 else f"{name}.compressed()"
        raise InvalidPoints(
            f"{_place(place, subject)} is masked; leave out what is masked: {rows}, or give it values: {name}.filled(0)",
            place[0] if place else None,
        )
    if isinstance(X, list | tuple):
        for row, values in enumerate(X):
            masked = np.ma.is_masked(values) if isinstance(values, np.ndarray) else _holds_masked(values)
            if masked:
                raise InvalidPoints(f"row {row} has masked values; leave out such rows, or fill them", row)


def _holds_masked(values: Any) -> bool:
    return isinstance(values, list | tuple) and any(value is np.ma.masked for value in values)


def _unreadable(X: Any, subject: str, error: Exception) -> InvalidPoints:
    """Return the error for what NumPy makes no array of: rows of different lengths, or memory that the CPU cannot read."""
    if not isinstance(X, list | tuple):
        return InvalidPoints(f"{subject} cannot be read as an array: {error}")
    for row, values in enumerate(X):
        if not hasattr(values, "__len__") or not hasattr(X[0], "__len__"):
            return InvalidPoints(f"row {row} is one value and others are rows of them; give every row as many", row)
        if len(values) != len(X[0]):
            said = f"row {row} has {len(values)} values, row 0 has {len(X[0])}"
            return InvalidPoints(f"{subject} are rows of different lengths: {said}; give every row as many", row)
    return InvalidPoints(f"{subject} cannot be read as an array: {error}")


def _without_numbers(X: Any, array: NDArray[Any], subject: str, name: str) -> InvalidPoints:
    """Return the error for an array whose type is not one of real numbers."""
    if array.dtype.kind in "OUST":
        return _text_or_objects(X, array, subject, name)
    given = name if isinstance(X, np.ndarray) else f"np.asarray({name})"
    return InvalidPoints(f"{subject} have type {array.dtype}; {numbers_fix(array.dtype, array.ndim, given)}")


def numbers_fix(dtype: np.dtype[Any], rank: int = 2, name: str = "X") -> str:
    """Return what makes numbers of an array of a type that holds none, or none that are read here, as code.

    rank: number of the array's dimensions. name: what the code calls the array.
    """
    if dtype.names is not None:
        fields: Mapping[str, Any] = dtype.fields or {}
        numbers = [field for field in dtype.names if fields[field][0].base.kind in "fiub"]
        if not numbers:
            return "none of its fields is a number; give an array of numbers of shape (n, d)"
        return f"use np.column_stack([{', '.join(f'{name}[{field!r}]' for field in numbers)}])"
    if dtype.kind == "c":
        return f"take real and imaginary parts as columns: np.column_stack(({name}.real, {name}.imag))"
    if dtype.kind in "Mm":
        seconds = f"{name if dtype.kind == 'm' else f'({name} - {name}.min())'} / np.timedelta64(1, 's')"
        return f"count seconds: {f'({seconds}).reshape(-1, 1)' if rank == 1 else seconds}"
    fix = f"convert them with {name}.astype('float64')"
    if dtype.kind in "iu" and dtype.itemsize == 8:
        offset_fix = f"({name} - {name}.min(axis=0)).astype('float64')"
        return f"{fix}, or with {offset_fix} where numbers are above 2^53, which the first would round"
    return fix


def _text_or_objects(X: Any, array: NDArray[Any], subject: str, name: str) -> InvalidPoints:
    """Return the error for objects and text, by the first of them that is no real number."""
    said = f"{subject} have type {array.dtype}"
    geometries = find_geometries(X, array)
    if geometries is not None:
        row, fault = geometry_fault(X, geometries, name)
        return InvalidPoints(f"{said}: row {row} {fault}", row)
    places = (place for place, value in np.ndenumerate(array) if not _is_number(value))
    place = next(places, None)
    value = None if place is None else array[place]
    if place is not None and type(value).__name__ in MISSING:
        return InvalidPoints(f"{said}: {_place(place, subject)} is {value}; remove or fill such rows", _row(place))
    try:
        np.asarray(array, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        pass
    else:
        refused = _number_fault(X, array, subject, name) if place is None else None
        if refused is not None:
            return refused
        return InvalidPoints(f"{said}; np.asarray({name}, dtype='float64') makes numbers of them")
    if place is None:
        return InvalidPoints(f"{said} with numbers that float64 cannot hold; divide them by a larger unit")
    return InvalidPoints(f"{said}: {_object_fix(X, value, place, subject, name)}", _row(place))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | Decimal) and not (isinstance(value, Decimal) and value.is_snan())


def _number_fault(X: Any, array: NDArray[Any], subject: str, name: str) -> InvalidPoints | None:
    """Return the error for the first object that float64 does not hold, or does not tell from another of its column."""
    seen: dict[tuple[int, float], Any] = {}
    for place, number in np.ndenumerate(array):
        near, where = float(number), _place(place, subject)
        if near != near:
            return InvalidPoints(f"{where} is {number}; remove or fill such rows", _row(place))
        if isinstance(number, Integral):
            if int(near) != int(number):
                return _too_long(X, array, place, subject, name)
            continue
        if math.isinf(near) or (near == 0 and number != 0):
            unit = "larger" if near else "smaller"
            fix = f"which float64 {'cannot hold' if near else 'takes for 0'}; use a {unit} unit"
            return InvalidPoints(f"{where} is {number}, {fix}", _row(place))
        if not isinstance(number, Decimal | Fraction):
            continue
        other = seen.setdefault((place[-1] if place else 0, near), number)
        lost = abs(near) >= EXACT_WHOLE and not _is_written_of(number, near)
        if lost or other != number:
            what = f"rounds to {int(near)}" if lost else f"does not tell from {other}"
            said = f"{where} is {number}, which float64 {what}"
            if _spans(array) <= EXACT_WHOLE:
                said += f"; subtract an offset, which changes no Euclidean distance: {_offset_fix(X, name)}; or"
            else:
                said += ";"
            return InvalidPoints(f"{said} take it rounded: np.asarray({name}, dtype='float64')", _row(place))
    return None


def _spans(values: NDArray[Any]) -> Fraction:
    """Return the largest difference of two finite numbers, of any type, within a column."""
    columns = values.reshape(len(values), -1).T if values.ndim else values.reshape(1, 1)
    exact = ([_exact(value) for value in column if math.isfinite(value)] for column in columns)
    return max(max(column, default=Fraction()) - min(column, default=Fraction()) for column in exact)


def _is_written_of(number: Decimal | Fraction, near: float) -> bool:
    """Return whether a number is a float64, or what it is rounded to the digits that the number has."""
    if isinstance(number, Fraction):
        return number == Fraction(near)
    return Context(prec=len(number.as_tuple().digits)).create_decimal(Decimal(near)) == number


def _exact(value: Any) -> Fraction:
    if isinstance(value, Decimal | Fraction):
        return Fraction(value)
    return Fraction(int(value) if isinstance(value, Integral) else float(value))


def _object_fix(X: Any, value: Any, place: tuple[int, ...], subject: str, name: str) -> str:
    if hasattr(value, "geom_type"):
        return f"{_place(place, subject)} is a {value.geom_type}; use shapely.get_coordinates({name})"
    if isinstance(value, Mapping) and len(place) == 1:
        return f"{_place(place, subject)} is a dictionary; use np.array([list(row.values()) for row in {name}])"
    if hasattr(value, "isoformat") and len(place) == 1:
        times = f"np.asarray({name}, dtype='datetime64[us]')"
        return f"{_place(place, subject)} is a time; convert them with {times}"
    fix = f"use {name}.select_dtypes('number')" if hasattr(X, "select_dtypes") else "give columns of numbers alone"
    if not place:
        return f"give an array of shape (n, d), not {type(value).__name__}"
    shown = repr(str(value) if isinstance(value, str) else value)
    shown = shown if len(shown) <= _FIRST else f"{shown[:_FIRST]}…"
    return f"{_place(place, subject)} is {shown}, which is no number; {fix}"


def _place(place: Sequence[int], subject: str) -> str:
    """Return a place in an array in words."""
    if len(place) == 2:
        return f"row {place[0]}, column {place[1]}"
    if len(place) == 1:
        return f"row {place[0]}"
    return f"{subject}[{', '.join(map(str, place))}]" if place else f"the value of the {subject}"


def _row(place: Sequence[int]) -> int | None:
    return int(place[0]) if place else None
