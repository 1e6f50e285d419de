"""What to do about geometries of shapely and geopandas: points are arrays of numbers here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = ("NoneType", "NAType", "NaTType")  # names of types that stand for no value


def find_geometries(X: Any, array: NDArray[Any]) -> NDArray[Any] | None:
    """Return the geometries in X, (n,) objects, missing ones among them; None where X holds none.

    X: also a frame of geopandas, for its active geometry. array: what NumPy makes of X, of objects.
    """
    column = getattr(X, "geometry", None)
    if hasattr(column, "geom_type") and hasattr(column, "crs"):
        return np.asarray(column, dtype=object)
    if array.ndim == 1 and any(hasattr(value, "geom_type") for value in array):
        return array
    return None


def geometry_fault(X: Any, geometries: NDArray[Any], name: str) -> tuple[int, str]:
    """Return the row that decides what makes points of geometries, (n,), and the words and the code for that.

    That is the first which is missing, or else empty, no point, or a point with a height; row 0 where there is none.
    name: what the code calls X.
    """
    series = f"{name}.geometry" if hasattr(X, "geometry") else ""
    each = series or name
    present = f"{name}[{series}.notna()]" if series else f"[p for p in {name} if p is not None]"
    solid = f"np.array([(p.x, p.y, p.z) for p in {each}]) takes it, " if all(map(_has_height, geometries)) else ""
    # In this order: the code for what comes later is for geometries that are there.
    for is_odd, said in (
        (_is_missing, f"is missing; leave such rows out: {present}"),
        (lambda p: not hasattr(p, "geom_type"), "is no geometry; give geometries alone, or numbers alone"),
        (_is_empty, f"is empty; leave such rows out: [p for p in {each} if not p.is_empty]"),
        (_is_no_point, f"is a {{0}}; use np.array([(p.centroid.x, p.centroid.y) for p in {each}])"),
        (_has_height, f"has a third coordinate, Z; {solid}np.array([(p.x, p.y) for p in {each}]) leaves it out"),
    ):
        row = next((row for row, value in enumerate(geometries) if is_odd(value)), None)
        if row is not None:
            return row, said.format(getattr(geometries[row], "geom_type", ""))
    return 0, f"is a {geometries[0].geom_type}; use np.array([(p.x, p.y) for p in {each}])"


def _is_missing(value: Any) -> bool:
    return type(value).__name__ in MISSING or bool(value != value)


def _is_empty(value: Any) -> bool:
    return bool(getattr(value, "is_empty", False))


def _is_no_point(value: Any) -> bool:
    return bool(value.geom_type != "Point")


def _has_height(value: Any) -> bool:
    return bool(getattr(value, "has_z", False))
