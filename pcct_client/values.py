"""Real numbers from arrays of any library and from nested lists, exactly; or what to do about what holds none.

The words are those of `pcct_core.arrays`, and the code in a message works as it stands, with the caller's points as `X`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from functools import partial
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_client.errors import InvalidArray

EXACT_WHOLE = 2**53  # float64 holds every whole number up to it

_MISSING = ("NoneType", "NAType", "NaTType")
_SHOWN = 40  # characters that are shown of a value


def read_numbers(X: Any) -> NDArray[Any]:
    """Return X as an array of real numbers of at most 8 bytes, of any shape; shares memory where it can.

    X: anything with `__array__` or DLPack whose memory the CPU reads, or nested lists. Raises InvalidArray for anything else,
    for masked values, and for whole numbers that float64 rounds.
    """
    if not isinstance(X, np.ndarray):
        _check_kind(X)
        X = X.detach() if hasattr(X, "detach") else X  # torch gives no array of what it differentiates
    check_unmasked(X)
    try:
        array = _shared(X)
    except (ValueError, TypeError, RuntimeError, BufferError) as error:
        raise _unreadable(X, error) from error
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise _without_numbers(X, array)
    _check_exact(X, array)
    return array


def _shared(X: Any) -> NDArray[Any]:
    """Return what NumPy makes of X, in the same memory where it can."""
    if not hasattr(X, "__dlpack__"):
        return np.asarray(X)
    try:
        return np.asarray(X) if hasattr(X, "__array__") else np.from_dlpack(X)
    except RuntimeError as error:
        if "Numpy is not available" not in str(error):
            raise
        return np.from_dlpack(X)  # a torch that was built for NumPy 1, beside NumPy 2


def numbers_of(
    objects: NDArray[Any], place: Callable[[int], str], offset_fix: str, number_fix: str
) -> NDArray[np.float64]:
    """Return a column of Python objects as float64, NaN where one is missing; the service names the row of those.

    objects: (n,) of numbers, of any type that Python counts among them. place: what messages call a row of it. offset_fix,
    number_fix: the code that subtracts an offset from it, and that makes numbers of it. Raises InvalidArray for what is no
    number, and for numbers that float64 rounds or no longer tells apart.
    """
    out = np.empty(len(objects))
    exact: dict[float, Any] = {}
    for row, value in enumerate(objects):
        if type(value).__name__ in _MISSING:
            out[row] = np.nan
            continue
        if not isinstance(value, Real | Decimal):
            raise InvalidArray(f"{place(row)} is {shown(value)}, which is no number; {number_fix}")
        try:
            out[row] = float(value)
        except (OverflowError, ValueError) as error:
            raise InvalidArray(
                f"{place(row)} is {shown(value)}, which float64 cannot hold; use a larger unit"
            ) from error
        if isinstance(value, Integral) and int(out[row]) != int(value):
            fix = offset_fix if _fits_with_offset(objects) else None
            raise InvalidArray(rounded_away(place(row), int(value), fix, number_fix))
        if isinstance(value, Decimal | Fraction) and exact.setdefault(out[row], value) != value and value == value:
            raise InvalidArray(
                f"{place(row)} is {value}, which float64 does not tell from {exact[out[row]]}; "
                f"subtract an offset, which changes no Euclidean distance: {offset_fix}"
            )
        if isinstance(value, Decimal | Fraction) and (lost := _lost(value, out[row], offset_fix)):
            raise InvalidArray(f"{place(row)} is {value}, which float64 {lost}")
    return out


def _lost(value: Decimal | Fraction, near: float, offset_fix: str) -> str:
    """Return what float64 makes of a number that it does not hold, and what to do; "" where it holds it well enough."""
    if np.isinf(near) and value != near:
        return "cannot hold; use a larger unit"
    if near == 0 and value != 0:
        return "takes for 0; use a smaller unit"
    if not EXACT_WHOLE <= abs(near) < np.inf or value == near:
        return ""
    # What prints a float64 with fewer digits than it has, rounds it to them: nothing is lost there.
    if isinstance(value, Decimal) and Context(prec=len(value.as_tuple().digits)).create_decimal(Decimal(near)) == value:
        return ""
    return f"rounds to {int(near)}; subtract an offset, which changes no Euclidean distance: {offset_fix}"


def _fits_with_offset(objects: NDArray[Any]) -> bool:
    """Whether whole numbers are at most 2^53 above the lowest of them, missing ones aside."""
    whole = [int(value) for value in objects if isinstance(value, Integral)]
    return max(whole) - min(whole) <= EXACT_WHOLE


def rounded_row(whole: NDArray[Any]) -> int | None:
    """Return the first row of integers (n,) that float64 rounds, or None."""
    if whole.dtype.itemsize < 8:
        return None
    rounded = np.flatnonzero(_rounded(whole))
    return int(rounded[0]) if len(rounded) else None


def rounded_away(place: str, value: int, offset_fix: str | None, round_fix: str) -> str:
    """Return what is said of a whole number that float64 rounds.

    place: where it is, in words. offset_fix: how to subtract an offset, None where no offset helps. round_fix: how to round.
    """
    said = f"{place} is {value}, which float64 rounds to {int(float(value))}; "
    if offset_fix is None:
        return f"{said}take it rounded: {round_fix}"
    return (
        f"{said}subtract an offset, which changes no Euclidean distance: {offset_fix}; or take it rounded: {round_fix}"
    )


def plain(value: Any) -> Any:
    """Return the Python value of an array of no dimensions, as NumPy's scalars are; anything else as it is."""
    return value.tolist() if getattr(value, "shape", None) == () and hasattr(value, "tolist") else value


def shown(value: Any) -> str:
    """Return a value as messages show it: not too long."""
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def file_fix(path: str) -> str | None:
    """Return the code that reads the points in a file of this name; None for a name that does not say its format."""
    ending = path.rpartition(".")[2].lower() if "." in path else ""
    readers = {
        "npy": f"np.load({path!r})",
        "npz": f"np.load({path!r})['X'], or whatever the array is called",
        "csv": f"np.loadtxt({path!r}, delimiter=','), with skiprows=1 where names stand above the numbers",
        "tsv": f"np.loadtxt({path!r}, delimiter='\\t'), with skiprows=1 where names stand above the numbers",
        "txt": f"np.loadtxt({path!r}), with skiprows=1 where names stand above the numbers",
        "parquet": f"pandas.read_parquet({path!r})",
        "geojson": f"geopandas.read_file({path!r})",
        "gpkg": f"geopandas.read_file({path!r})",
        "shp": f"geopandas.read_file({path!r})",
    }
    return readers.get(ending)


def _check_kind(X: Any) -> None:
    """Raise InvalidArray for what NumPy would take as one object, or as its text."""
    if isinstance(X, str | PathLike):
        path = str(fspath(X))
        raise InvalidArray(f"points are the text {shown(path)}, not an array; {_reading(path)}")
    if isinstance(X, bytes | bytearray):
        raise InvalidArray("points are bytes, not an array; those of an .npy file are read by np.load(io.BytesIO(X))")
    if X is None:
        raise InvalidArray("points are None; give an array of shape (n, d)")
    if isinstance(X, Mapping) and not X:
        raise InvalidArray("points are an empty dictionary; give an array of shape (n, d)")
    if isinstance(X, Mapping):
        raise InvalidArray(
            "points are a dictionary; use np.column_stack(list(X.values())) if its values are columns, "
            "np.array(list(X.values())) if they are points"
        )
    if hasattr(X, "toarray"):
        raise InvalidArray(f"points are a sparse matrix ({type(X).__name__}); use X.toarray()")
    if hasattr(X, "collect"):
        raise InvalidArray(f"points are a {type(X).__name__}, which holds no values yet; use X.collect()")
    if str(getattr(X, "dtype", "")) in ("Int128", "UInt128"):
        raise InvalidArray(
            f"points have type {X.dtype}, of which polars makes no array; use X.cast(int).to_frame(), or "
            "X.cast(float).to_frame() for numbers of 2^63 and more"
        )
    if hasattr(X, "to_pandas") and hasattr(X, "column_names"):
        raise InvalidArray(f"points are a {type(X).__name__} of Arrow; use X.to_pandas()")
    if isinstance(X, Iterable) and not isinstance(X, Sequence) and not _reads_as_array(X):
        raise InvalidArray(f"points are a {type(X).__name__}, which is no array; use np.array(list(X))")


def _reading(path: str) -> str:
    fix = file_fix(path)
    return f"use {fix}" if fix else "read the file, and give its numbers as an array of shape (n, d)"


def _reads_as_array(X: Any) -> bool:
    ways = ("__array__", "__array_interface__", "__array_struct__", "__dlpack__", "__buffer__")
    return any(hasattr(X, way) for way in ways) or isinstance(X, memoryview | bytearray)


def check_unmasked(X: Any) -> None:
    """Raise InvalidArray naming the first masked row of a masked array, or of a list of them."""
    if isinstance(X, np.ma.MaskedArray):
        places = np.argwhere(np.ma.getmaskarray(X))
        if len(places):
            rows = "X[~np.ma.getmaskarray(X).any(axis=1)]" if X.ndim == 2 else "X.compressed()"
            raise InvalidArray(
                f"{_place(places[0].tolist())} is masked; leave out what is masked: {rows}, or give it values: X.filled(0)"
            )
    elif isinstance(X, list | tuple):
        for row, values in enumerate(X):
            cells = values if isinstance(values, list | tuple) else ()
            if (np.ma.isMaskedArray(values) and np.ma.is_masked(values)) or any(cell is np.ma.masked for cell in cells):
                raise InvalidArray(f"row {row} has masked values; leave out such rows, or fill them")


def _unreadable(X: Any, error: Exception) -> InvalidArray:
    """Return the error for what NumPy makes no array of: rows of different lengths, or memory that the CPU cannot read."""
    rows: Any = X if isinstance(X, list | tuple) else ()
    for row, values in enumerate(rows):
        if hasattr(values, "__len__") != hasattr(rows[0], "__len__"):
            return InvalidArray(f"row {row} is one value and others are rows of them; give every row as many")
        if hasattr(values, "__len__") and len(values) != len(rows[0]):
            said = f"row {row} has {len(values)} values, row 0 has {len(rows[0])}"
            return InvalidArray(f"points are rows of different lengths: {said}; give every row as many")
    fix = ""
    if getattr(X, "is_sparse", False):
        fix = "; use X.to_dense()"
    elif "bfloat16" in str(getattr(X, "dtype", "")):
        fix = "; use X.float()"
    return InvalidArray(f"points are not an array that the CPU can read: {error}{fix}")


def _without_numbers(X: Any, array: NDArray[Any]) -> InvalidArray:
    """Return the error for an array whose type is not one of real numbers."""
    if array.dtype.kind in "OUST":
        return _text_or_objects(X, array)
    name = "X" if isinstance(X, np.ndarray) else "np.asarray(X)"
    return InvalidArray(f"points have type {array.dtype}; {_numbers_fix(array, name)}")


def _numbers_fix(array: NDArray[Any], name: str) -> str:
    """Return what makes numbers of an array of a type that holds none, or none that are read here; name: of the array."""
    dtype = array.dtype
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
        return f"count seconds: {f'({seconds}).reshape(-1, 1)' if array.ndim == 1 else seconds}"
    return f"convert them with {name}.astype('float64')"


def _text_or_objects(X: Any, array: NDArray[Any]) -> InvalidArray:
    """Return the error for objects and text, by the first of them that is no real number."""
    said = f"points have type {array.dtype}"
    if array.ndim == 0:
        return InvalidArray(f"{said}; give an array of shape (n, d), not one {type(X).__name__}")
    strange = next((at for at, value in np.ndenumerate(array) if not isinstance(value, Real | Decimal)), None)
    if strange is None:
        for column, values in enumerate(array.reshape(len(array), -1).T):
            try:
                numbers_of(values, partial(_place_in, column), _OBJECT_OFFSET, _ROUNDED)
            except InvalidArray as rounded:
                return rounded
        return InvalidArray(f"{said}; {_ROUNDED} makes numbers of them")
    return InvalidArray(f"{said}{_strange_fix(array, strange)}")


def _strange_fix(array: NDArray[Any], at: tuple[int, ...]) -> str:
    """Return what to do about objects and text, by the first of them that is no real number; at: where that is."""
    value = array[at]
    if type(value).__name__ in _MISSING:
        return f": {_place(at)} is {value}; remove or fill such rows"
    if isinstance(value, Mapping) and len(at) == 1:
        return f": {_place(at)} is a dictionary; use np.array([list(row.values()) for row in X])"
    if hasattr(value, "isoformat"):
        return f": {_place(at)} is a time; convert them with np.asarray(X, dtype='datetime64[us]')"
    try:
        numbers = np.asarray(array, dtype=np.float64)
    except (ValueError, TypeError):
        return f": {_place(at)} is {shown(value)}, which is no number; give columns of numbers alone"
    kind = "int64" if (np.abs(numbers) >= EXACT_WHOLE).any() else "float64"
    return f"; np.asarray(X, dtype='{kind}') makes numbers of them"


_ROUNDED = "np.asarray(X, dtype='float64')"
_OBJECT_OFFSET = "A = np.array(X, dtype=object); (A - A.min(axis=0)).astype('float64')"


def _check_exact(X: Any, array: NDArray[Any]) -> None:
    """Raise InvalidArray naming the first whole number in X that float64 rounds.

    array: what NumPy made of X; of lists that mix whole numbers with others it has rounded them already.
    """
    if array.size == 0 or array.dtype.itemsize < 8 or array.dtype.kind == "b":
        return
    whole = array.dtype.kind in "iu"
    if not whole and not isinstance(X, list | tuple):
        return
    with np.errstate(invalid="ignore"):
        places = np.argwhere(_rounded(array) if whole else np.abs(array) >= EXACT_WHOLE)
    values = array if whole or not len(places) else np.array(X, dtype=object)
    for at in map(tuple, places.tolist()):
        value = values[at]
        if isinstance(value, Integral) and int(float(value)) != int(value):
            raise InvalidArray(rounded_away(_place(at), int(value), _offset_fix(X, values), _ROUNDED))


def _rounded(whole: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where integers of 64 bits have more than 53 bits from their first to their last that is set."""
    size = np.abs(whole).astype(np.uint64)  # -2^63 stays what it is, and its bits are those of 2^63
    lowest = size & (~size + np.uint64(1))
    odd: NDArray[np.bool_] = size // np.maximum(lowest, np.uint64(1)) >= np.uint64(EXACT_WHOLE)
    return odd


def _offset_fix(X: Any, values: NDArray[Any]) -> str | None:
    """Return the code that subtracts the lowest value of each column; None where that leaves more than 2^53."""
    columns = values.reshape(len(values), -1).T if values.ndim else values.reshape(1, 1)
    if any(_span(column) > EXACT_WHOLE for column in columns):
        return None
    return "X - X.min(axis=0)" if isinstance(X, np.ndarray) else _OBJECT_OFFSET


def _span(column: NDArray[Any]) -> float:
    low, high = column.min(), column.max()
    return (
        int(high) - int(low) if isinstance(low, Integral) and isinstance(high, Integral) else float(high) - float(low)
    )


def _place_in(column: int, row: int) -> str:
    return _place((row, column))


def _place(at: Sequence[int]) -> str:
    """Return a place in an array in words."""
    if len(at) == 2:
        return f"row {at[0]}, column {at[1]}"
    return f"row {at[0]}" if len(at) == 1 else f"X[{', '.join(map(str, at))}]"
