"""Points as a call is given them: arrays of any library, data frames, geometries, ids; two of them matched by their names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from pcct_client.errors import InvalidArray, UnknownColumns
from pcct_client.frames import Columns, is_frame, listed, read_frame
from pcct_client.geometry import callers_level, check_lengths, check_same_system, is_geometry, places
from pcct_client.names import Naming, names_of
from pcct_client.values import file_fix, plain, read_numbers, shown

_ID = re.compile(r"[0-9a-f]{64}")


def as_array(X: Any, columns: Sequence[str] | None = None) -> NDArray[Any]:
    """Return X as a NumPy array of real numbers, without a copy where its memory can be shared.

    X: anything with `__array__` or DLPack whose memory the CPU reads (NumPy, torch, JAX …), nested lists, a data frame
    (pandas, polars, geopandas), or points of geopandas or shapely. columns: as `frames.read_frame` takes them.
    Raises InvalidArray for what is none of these, and for whole numbers that float64 rounds.
    """
    return read_columns(X, columns).values


def read_columns(X: Any, columns: Sequence[str] | None = None) -> Columns:
    """Return X as `as_array` does, with what its columns are called."""
    return _read(X, columns, in_degrees=False)


def read_points(metric: Any, X: Any, columns: Sequence[str] | None = None) -> Columns | str:
    """Return points as columns of numbers, or the id of a dataset as it is.

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
    return found


def read_points_and_queries(
    metric: Any, X: Any, Q: Any, columns: Sequence[str] | None = None
) -> tuple[Columns | str, Columns | str]:
    """Return points and queries as the same columns in the same order, each an id where it was one.

    columns: of either that is a frame. Columns of the same names are matched by these; without names on both sides, by
    position. A dataset has the names that it came with from this process; where it came from elsewhere, the columns of a frame
    are taken in their order, and `UnknownColumns` warns of it unless columns say this order.
    Raises InvalidArray for names that differ, for two systems of coordinates, and as `as_array` does.
    """
    if columns is not None and not (is_frame(X) or is_frame(Q)):
        raise InvalidArray(
            f"columns choose from a data frame, and these are {_kind(X)} and {_kind(Q)}; leave them out, or slice the arrays"
        )
    points, queries = (_read_side(metric, side, columns if is_frame(side) else None) for side in (X, Q))
    ours, theirs = (_namings(side) for side in (points, queries))
    if not ours or not theirs:
        if columns is None:
            _warn_unknown(*((X, theirs) if not ours else (Q, ours)))
    else:
        places = _find_places(ours, theirs, columns, _words(X, Q))
        if places is not None:
            if isinstance(queries, str):
                raise InvalidArray(
                    f"the dataset of the queries has the columns {listed(theirs[0].names or ())}, and the points "
                    f"{listed(ours[0].names or ())}; upload the queries in this order, or give the queries themselves"
                )
            names = tuple((queries.names or ())[place] for place in places)
            queries = queries._replace(values=queries.values[:, places], names=names)
        check_same_system(ours[0], theirs[0])
    crs = next((side.crs for side in (points, queries) if not isinstance(side, str) and side.crs is not None), None)
    check_lengths(crs, _name(metric))
    return points, queries


def take_inducing(points: Columns | str, spec: Mapping[str, Any], columns: Sequence[str] | None) -> dict[str, Any]:
    """Return a spec with inducing points as an array whose columns are in the order of those of the points.

    points: as `read_points` returns them. columns: of the points, and of a frame of inducing points.
    Raises InvalidArray for inducing points whose columns have other names, also for a dataset of them in another order.
    """
    metric = spec.get("metric")
    given = plain(metric.get("inducing")) if isinstance(metric, Mapping) else None
    if given is None or isinstance(given, int | float | str) or not isinstance(metric, Mapping):
        return dict(spec)
    if isinstance(given, Mapping):
        stored = given.get("dataset")
        ours, theirs = _namings(points), names_of(stored) if isinstance(stored, str) else ()
        if ours and theirs and _find_places(ours, theirs, None, ("inducing points", "np.asarray(Z)")) is not None:
            raise InvalidArray(
                f"the dataset of the inducing points has the columns {listed(theirs[0].names or ())}, and the points "
                f"{listed(ours[0].names or ())}; upload the inducing points in this order, or give the points themselves"
            )
        return dict(spec)
    if not hasattr(given, "shape") and not isinstance(given, list | tuple) and not is_frame(given):
        return dict(spec)
    inducing = _read(given, columns if is_frame(given) else None, in_degrees=False)
    ours = _namings(points)
    places = _find_places(ours, _namings(inducing), None, ("inducing points", "np.asarray(Z)")) if ours else None
    values = inducing.values if places is None else inducing.values[:, places]
    return {**spec, "metric": {**metric, "inducing": values}}


def _read_side(metric: Any, X: Any, columns: Sequence[str] | None) -> Columns | str:
    if isinstance(X, str):
        _check_id(X)
        return X
    return _read(X, columns, _name(metric) == "haversine")


def _namings(side: Columns | str) -> tuple[Naming, ...]:
    """Return what the columns of one side are called, the likeliest first; nothing for a dataset from elsewhere."""
    return names_of(side) if isinstance(side, str) else (Naming(side.names, side.crs, side.lacks_crs),)


def _find_places(
    ours: Sequence[Naming], theirs: Sequence[Naming], columns: Sequence[str] | None, words: tuple[str, str]
) -> list[int] | None:
    """Return where the columns of queries stand that are called as those of the points; None where they are in their order.

    ours, theirs: what the columns may be called. columns: as the caller chose them, which says their order too.
    words: what messages call the queries, and what makes an array of them. Raises InvalidArray for other names.
    """
    pairs = [(mine.names, other.names) for mine in ours for other in theirs]
    if any(mine is None or other is None or mine == other for mine, other in pairs):
        return None
    for mine, other in pairs:
        if set(mine or ()) == set(other or ()) and len(mine or ()) == len(other or ()):
            return [(other or ()).index(name) for name in mine or ()]
    mine, other = pairs[0]
    if columns is not None or _counted(mine or ()) or _counted(other or ()):
        return None
    raise InvalidArray(
        f"the points have the columns {listed(mine or ())} and the {words[0]} {listed(other or ())}; give both the same names, "
        f"or name those of the coordinates where both have them: columns=[…], or give the {words[0]} as an array: {words[1]}"
    )


def _warn_unknown(dataset: Any, others: Sequence[Naming]) -> None:
    """Warn of columns of a frame that are matched by position with those of a dataset from elsewhere."""
    names = others[0].names if others else None
    if names is None or len(names) < 2 or _counted(names) or names == ("x", "y"):
        return
    warnings.warn(
        f"the columns {listed(names)} are taken as those of dataset {str(dataset)[:12]}…, in this order: it was not uploaded "
        f"from here, so nobody knows what its columns are called; say the order with columns={list(names)!r}",
        UnknownColumns,
        stacklevel=callers_level(),
    )


def _words(X: Any, Q: Any) -> tuple[str, str]:
    """Return what messages call the queries, and the code that makes an array of them, or of the points where they are none."""
    return "queries", _array_of(Q) if not isinstance(Q, str) else _array_of(X).replace("Q", "X")


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
        return Columns(found.values, ("x", "y"), found.crs, found.crs is None and hasattr(X, "crs"))
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
