"""Points from whatever holds them: arrays of any library, and data frames by the names of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_client.errors import InvalidArray

_SHOWN_NAMES = 12


def as_array(X: Any, columns: Sequence[str] | None = None) -> NDArray[Any]:
    """Return X as a NumPy array, without a copy where its memory can be shared; values are not looked at.

    X: anything with `__array__` or DLPack whose memory the CPU reads (NumPy, torch, JAX …), nested lists, or a data frame
    (pandas, polars, geopandas). columns: names of a frame's columns, in the order that the metric expects; left out, all of
    them. A column of point geometries counts as two, x and y, and a frame that has a geometry gives just that: longitude
    and latitude, as haversine takes them. A column of float32 alone stays that; where types differ the wider one wins.
    Raises InvalidArray for what is neither.
    """
    if _is_frame(X):
        return _frame_array(X, columns)
    if columns is not None:
        raise InvalidArray(
            f"columns choose from a data frame, and this is {_kind(X)}; leave them out, or slice the array"
        )
    if _is_geometry(X):
        return np.column_stack(_point_columns(X, "the geometry"))
    if hasattr(X, "collect"):
        raise InvalidArray(f"points are a {_kind(X)}, which holds no values yet; use X.collect()")
    if hasattr(X, "toarray"):
        raise InvalidArray(f"points are a sparse matrix ({_kind(X)}); use X.toarray()")
    if np.ma.is_masked(X):
        raise InvalidArray("points have masked values; remove those rows, or fill them")
    try:
        X = X.detach() if hasattr(X, "detach") else X  # torch gives no array of what it differentiates
        if hasattr(X, "__dlpack__") and not hasattr(X, "__array__"):
            return np.from_dlpack(X)
        return np.asarray(X)
    except (ValueError, TypeError, RuntimeError, BufferError) as error:
        raise InvalidArray(f"points are not an array that the CPU can read: {error}") from error


def _is_frame(X: Any) -> bool:
    # In this order: a lazy frame warns when it is asked for its columns.
    return hasattr(X, "to_numpy") and hasattr(X, "columns") and not isinstance(X, np.ndarray)


def _is_geometry(X: Any) -> bool:
    return hasattr(X, "geom_type") and hasattr(X, "x")


def _kind(X: Any) -> str:
    return type(X).__name__


def _frame_array(frame: Any, columns: Sequence[str] | None) -> NDArray[Any]:
    geometry = getattr(frame, "geometry", None)
    if columns is None and _is_geometry(geometry):
        return np.column_stack(_point_columns(geometry, "the geometry"))
    there = list(frame.columns)
    wanted = there if columns is None else [columns] if isinstance(columns, str) else list(columns)
    missing = [name for name in wanted if name not in there]
    if missing:
        raise InvalidArray(f"there is no column {missing[0]!r}; the frame has {_listed(there)}")
    if not wanted:
        raise InvalidArray("no column is chosen; name those of the coordinates: columns=['x', 'y']")
    return np.column_stack([array for name in wanted for array in _column(frame, name)])


def _column(frame: Any, name: str) -> list[NDArray[Any]]:
    """Return a column as one array, or two for a column of points."""
    series = frame[name]
    if hasattr(series, "columns"):
        raise InvalidArray(f"the frame has several columns {name!r}; rename them")
    if hasattr(series, "geom_type"):
        return _point_columns(series, f"column {name!r}")
    array = np.asarray(series)
    if array.dtype == object:
        array = _without_missing(series, array)
    if array.dtype.kind not in "iuf":
        raise InvalidArray(
            f"column {name!r} has type {getattr(series, 'dtype', array.dtype)}; choose columns of numbers: columns=[…]"
        )
    return [array]


def _without_missing(series: Any, array: NDArray[Any]) -> NDArray[Any]:
    """Return a column that pandas holds with missing values as floats, NaN for those; the service names their row."""
    own = getattr(getattr(series, "dtype", None), "numpy_dtype", np.dtype(np.float64))
    try:
        return np.asarray(series.to_numpy(dtype=own if own.kind == "f" else np.float64, na_value=np.nan))
    except (TypeError, ValueError):
        return array


def _point_columns(geometry: Any, subject: str) -> list[NDArray[Any]]:
    try:
        return [np.asarray(geometry.x, np.float64), np.asarray(geometry.y, np.float64)]
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArray(f"{subject} holds more than points ({error}); use .centroid, or other columns") from error


def _listed(names: list[Any]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN_NAMES]))
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"
