"""Points as a call is given them: arrays of any library, data frames, geometries, ids; two of them matched by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from pcct_client.errors import InvalidArray
from pcct_client.frames import Columns, is_frame, listed, read_frame
from pcct_client.geometry import check_lengths, check_same_system, is_geometry, places
from pcct_client.values import file_fix, plain, read_numbers, shown

_ID = re.compile(r"[0-9a-f]{64}")


def as_array(X: Any, columns: Sequence[str] | None = None) -> NDArray[Any]:
    """Return X as a NumPy array of real numbers, without a copy where its memory can be shared.

    X: anything with `__array__` or DLPack whose memory the CPU reads (NumPy, torch, JAX …), nested lists, a data frame
    (pandas, polars, geopandas), or points of geopandas or shapely. columns: as `frames.read_frame` takes them.
    Raises InvalidArray for what is none of these, and for whole numbers that float64 rounds.
    """
    return _read(X, columns, in_degrees=False).values


def points_for(metric: Any, X: Any, columns: Sequence[str] | None = None) -> Any:
    """Return points as an array, or the id of a dataset as it is.

    metric: a metric's name, or its JSON form. Geometries become longitude and latitude under haversine, where their system
    is known; other metrics warn of degrees. X, columns: as in `as_array`. Raises InvalidArray as that does.
    """
    if isinstance(X, str):
        _check_id(X)
        if columns is not None:
            raise InvalidArray("columns choose from a data frame, and this is the id of a dataset; leave them out")
        return X
    found = _read(X, columns, _name(metric) == "haversine")
    check_lengths(found.crs, _name(metric))
    return found.values


def points_and_queries(metric: Any, X: Any, Q: Any, columns: Sequence[str] | None = None) -> tuple[Any, Any]:
    """Return points and queries as arrays of the same columns in the same order, each an id where it was one.

    columns: of either that is a frame. Columns of the same names are matched by these; without names on both sides, by
    position. Raises InvalidArray for names that differ, for two systems of coordinates, and as `as_array` does.
    """
    if columns is not None and not (is_frame(X) or is_frame(Q)):
        raise InvalidArray(
            f"columns choose from a data frame, and these are {_kind(X)} and {_kind(Q)}; leave them out, or slice the arrays"
        )
    if isinstance(X, str) or isinstance(Q, str):
        points, queries = (points_for(metric, side, columns if is_frame(side) else None) for side in (X, Q))
        return points, queries
    ours, theirs = (_read(side, columns if is_frame(side) else None, _name(metric) == "haversine") for side in (X, Q))
    check_same_system(ours.crs, theirs.crs)
    check_lengths(ours.crs or theirs.crs, _name(metric))
    return ours.values, _matched(ours, theirs, _array_of(Q))


def _matched(points: Columns, queries: Columns, fix: str) -> NDArray[Any]:
    """Return the values of queries with their columns in the order of those of points; fix: what makes an array of them."""
    ours, theirs = points.names, queries.names
    if ours is None or theirs is None or ours == theirs:
        return queries.values
    if set(ours) == set(theirs):
        return queries.values[:, [theirs.index(name) for name in ours]]
    if _counted(ours) or _counted(theirs):
        return queries.values
    raise InvalidArray(
        f"the points have the columns {listed(ours)} and the queries {listed(theirs)}; give both the same names, or name "
        f"those of the coordinates where both have them: columns=[…], or give the queries as an array: {fix}"
    )


def _array_of(Q: Any) -> str:
    return "Q.get_coordinates().to_numpy()" if hasattr(Q, "get_coordinates") else "np.asarray(Q)"


def _counted(names: tuple[Any, ...]) -> bool:
    """Whether names are only numbers that pandas gave columns without any."""
    return names == tuple(range(len(names)))


def _read(X: Any, columns: Sequence[str] | None, in_degrees: bool) -> Columns:
    if is_frame(X):
        return read_frame(X, columns, in_degrees)
    if columns is not None:
        raise InvalidArray(
            f"columns choose from a data frame, and this is {_kind(X)}; leave them out, or slice the array"
        )
    if is_geometry(X):
        found = places(X, in_degrees)
        return Columns(found.values, ("x", "y"), found.crs)
    return Columns(read_numbers(X), None, None)


def _check_id(text: str) -> None:
    if _ID.fullmatch(text):
        return
    fix = file_fix(text)
    advice = (
        f"to send points from a file use {fix}" if fix else "give an array of points, or the id that upload returned"
    )
    raise InvalidArray(f"{shown(text)} is not the id of a dataset, which has 64 digits 0 to f; {advice}")


def _name(metric: Any) -> str:
    """Return the name of a metric, which is given as that or as JSON values."""
    metric = plain(metric)
    if isinstance(metric, str):
        return metric
    fields = metric.to_json() if hasattr(metric, "to_json") and not isinstance(metric, type) else metric
    return str(fields.get("type")) if isinstance(fields, Mapping) else "euclidean"


def _kind(X: Any) -> str:
    return type(X).__name__
