"""Points of geopandas and shapely: their coordinates, and the system that these are in."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_client.errors import GeographicCoordinates, InvalidArray, UnknownCoordinates
from pcct_client.names import Naming

DEGREES = "EPSG:4326"  # longitude and latitude of WGS 84, as haversine takes them


class Places(NamedTuple):
    """Coordinates of points, float64 (n, 2): x and y. crs: what they are in, of pyproj; None where nobody said."""

    values: NDArray[np.float64]
    crs: Any


def is_geometry(X: Any) -> bool:
    """Whether X is a column of geometries, by geopandas or as a sequence of shapely's."""
    if hasattr(X, "geom_type"):
        return not hasattr(X, "columns")
    first = X[0] if isinstance(X, list | tuple) and X else None
    if isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1:
        first = next((value for value in X if value is not None), None)
    return isinstance(getattr(first, "geom_type", None), str)


def places(geometry: Any, in_degrees: bool, name: str = "X", subject: str = "the geometry") -> Places:
    """Return the coordinates of a column of points.

    in_degrees: return longitude and latitude, where the system of the coordinates is known. name: what the code in messages
    calls the column; subject: what their words call it. Raises InvalidArray, with the row, for a geometry that is not one
    point of two coordinates, and for a point that has no longitude and latitude.
    """
    if isinstance(getattr(geometry, "geom_type", None), str):
        raise InvalidArray(f"points are one {geometry.geom_type} of shapely; use shapely.get_coordinates(X)")
    if not hasattr(geometry, "geom_type"):
        return Places(_sequence(geometry, name, subject), None)
    kinds, empty, raised = (np.asarray(getattr(geometry, fact)) for fact in ("geom_type", "is_empty", "has_z"))
    _check_points(kinds, empty, raised, name, subject, _Fixes.of_series)
    crs = getattr(geometry, "crs", None)
    if in_degrees and crs is not None:
        geometry, crs = _moved(geometry, crs, subject)
    return Places(np.column_stack([np.asarray(geometry.x, np.float64), np.asarray(geometry.y, np.float64)]), crs)


def check_lengths(crs: Any, metric: str) -> None:
    """Warn by `GeographicCoordinates` of degrees under a metric that takes them for lengths; crs: of the points, or None."""
    if crs is None or not crs.is_geographic or metric == "haversine":
        return
    warnings.warn(
        f"the points are in {crs_name(crs)}, in degrees, which {metric} takes for lengths, as long at the poles as at the "
        "equator; use metric='haversine', or X.to_crs(X.estimate_utm_crs())",
        GeographicCoordinates,
        stacklevel=callers_level(),
    )


def check_same_system(points: Naming, queries: Naming) -> None:
    """Raise InvalidArray when points and queries are in two systems of coordinates.

    Warn by `UnknownCoordinates` where geopandas knows the system of one of them, and holds the other without any.
    """
    ours, theirs = points.crs, queries.crs
    if ours is not None and theirs is not None and not ours.equals(theirs, ignore_axis_order=True):
        raise InvalidArray(
            f"the points are in {crs_name(ours)} and the queries in {crs_name(theirs)}; use Q.to_crs(X.crs)",
        )
    if (ours is None or not queries.lacks_crs) and (theirs is None or not points.lacks_crs):
        return
    known, unknown, fix = ("queries", "points", "X.set_crs(Q.crs)")
    if theirs is None:
        known, unknown, fix = ("points", "queries", "Q.set_crs(X.crs)")
    warnings.warn(
        f"the {known} are in {crs_name(ours or theirs)} and the {unknown} do not say what they are in, so they are compared as "
        f"they stand; use {fix} if that is the same",
        UnknownCoordinates,
        stacklevel=callers_level(),
    )


def crs_name(crs: Any) -> str:
    """Return what a coordinate reference system is called."""
    code = crs.to_epsg()
    return str(crs.name) if code is None else f"EPSG:{code}"


class _Fixes(NamedTuple):
    """Code for what is no point, with the name of the column for `{0}`."""

    areas: str
    several: str
    missing: str
    empty: str
    raised: str

    @staticmethod
    def of_series(name: str) -> _Fixes:
        """Return what a GeoSeries or GeoDataFrame does."""
        own = f"{name}.geometry" if name == "X" else name
        return _Fixes(
            f"{name}.representative_point() gives a point inside each, {name}.centroid the center of each",
            f"{name}.explode() gives each of its points a row, {name}.centroid one point per row",
            f"leave such rows out: X[{own}.notna()]",
            f"leave such rows out: X[~{own}.is_empty]",
            f"{name}.force_2d() leaves it out, {name}.get_coordinates(include_z=True) gives three columns",
        )

    @staticmethod
    def of_sequence(name: str) -> _Fixes:
        """Return what a sequence of shapely's geometries needs."""
        return _Fixes(
            f"use [each.representative_point() for each in {name}], or .centroid",
            f"shapely.get_parts({name}) gives each of its points a row",
            f"leave such out: [each for each in {name} if each is not None]",
            f"leave such out: [each for each in {name} if each is None or not each.is_empty]",
            f"shapely.force_2d({name}) leaves it out, shapely.get_coordinates({name}, include_z=True) gives three columns",
        )


def _check_points(
    kinds: NDArray[Any], empty: NDArray[Any], raised: NDArray[Any], name: str, subject: str, fixes_of: Any
) -> None:
    """Raise InvalidArray for the first row that is not one point of two coordinates; each array: one entry per row."""
    no_point = kinds != "Point"
    bad = np.flatnonzero(no_point | empty.astype(bool) | raised.astype(bool))
    if not len(bad):
        return
    row, fixes = int(bad[0]), fixes_of(name)
    kind, place = kinds[row], f"row {bad[0]} of {subject}"
    if not isinstance(kind, str):
        raise InvalidArray(f"{place} is missing; {fixes.missing}")
    if empty[row]:
        raise InvalidArray(f"{place} is an empty {kind}; {fixes.empty}")
    if kind == "MultiPoint":
        raise InvalidArray(f"{place} is a MultiPoint; {fixes.several}")
    if no_point[row]:
        raise InvalidArray(f"{place} is a {kind}, not a point; {fixes.areas}")
    raise InvalidArray(f"{place} has a third coordinate, Z; {fixes.raised}")


def _sequence(geometries: Any, name: str, subject: str) -> NDArray[np.float64]:
    kinds = np.array([getattr(each, "geom_type", None) for each in geometries], object)
    empty, raised = (
        np.array([bool(getattr(each, fact, False)) for each in geometries]) for fact in ("is_empty", "has_z")
    )
    _check_points(kinds, empty, raised, name, subject, _Fixes.of_sequence)
    return np.array([(each.x, each.y) for each in geometries], np.float64)


def _moved(geometry: Any, crs: Any, subject: str) -> tuple[Any, Any]:
    """Return the points in degrees of longitude and latitude, by geopandas' own arithmetic, and the system of those."""
    try:
        moved = geometry.to_crs(DEGREES)
    except Exception as error:  # pyproj's errors have no base of their own
        raise InvalidArray(
            f"the points are in {crs_name(crs)}, which cannot be turned into longitude and latitude: {error}"
        ) from error
    lost = np.flatnonzero(~(np.isfinite(np.asarray(moved.x)) & np.isfinite(np.asarray(moved.y))))
    if len(lost):
        raise InvalidArray(
            f"row {lost[0]} of {subject} has no longitude and latitude: it is outside of where {crs_name(crs)} holds; "
            "check X.crs, and set the right one with X.set_crs(…, allow_override=True)"
        )
    return moved, moved.crs


def callers_level() -> int:
    """Return the stack level of whoever called this package, as `warnings.warn` counts it for the function that warns."""
    here, level, frame = str(Path(__file__).parent), 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        level, frame = level + 1, frame.f_back
    return level
