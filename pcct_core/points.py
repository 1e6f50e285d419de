"""The door: what a point array must be, checked once; kernels behind it assume it.

Importable without Numba, so the HTTP process can refuse an array before it costs anything.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pcct_core.errors import InvalidPoints, InvalidSpec
from pcct_core.spec import Cosine, Euclidean, GraphSpec, Haversine, Metric

Points: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
FloatArray: TypeAlias = NDArray[Any]

EARTH_RADIUS_KM = 6371.0088  # IUGG mean radius R1

MAX_POINTS = 2**31 - 2  # neighbor indices are int32 and -1 is taken

_CHECK_ROWS = 1 << 16


def as_points(X: Any) -> Points:
    """Return X as a C-contiguous float32 or float64 array of shape (n, d), native byte order, all values finite.

    X: anything `np.asarray` takes; integers, booleans and half floats become float64. Copied only when it must be.
    Raises InvalidPoints for the wrong rank, no rows, no columns, a type that is not a real number, or a value
    that is not finite; the error names the row.
    """
    array = np.asarray(X)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise InvalidPoints(f"points have type {array.dtype}; convert them with X.astype('float64')")
    if array.ndim != 2:
        fix = "; use X.reshape(-1, 1) for one dimension" if array.ndim == 1 else ""
        raise InvalidPoints(f"points have shape {array.shape}; expected (n, d){fix}")
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise InvalidPoints(f"points have shape {array.shape}; at least one row and one column are needed")
    if array.shape[0] > MAX_POINTS:
        raise InvalidPoints(f"{array.shape[0]} points are more than the {MAX_POINTS} that int32 indices can name")
    dtype = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize == 4 else np.float64
    points: Points = np.ascontiguousarray(array, dtype=dtype)
    check_finite(points)
    return points


def check_finite(points: Points, first_row: int = 0) -> None:
    """Raise InvalidPoints naming the first row that holds a NaN or an infinity.

    points: (n, d). first_row: index of points[0] in the whole array, when the caller checks it in pieces.
    """
    for start in range(0, points.shape[0], _CHECK_ROWS):
        block = points[start : start + _CHECK_ROWS]
        finite = np.isfinite(block)
        if not finite.all():
            bad = int(np.argmin(finite.all(axis=1)))
            column = int(np.argmin(finite[bad]))
            row = first_row + start + bad
            raise InvalidPoints(f"row {row}, column {column} is {block[bad, column]}; remove or fill such rows", row)


def check_request(points: Points, spec: GraphSpec) -> None:
    """Raise InvalidPoints or InvalidSpec when spec cannot be met on these points (shape (n, d), already finite)."""
    check_shape(points.shape[0], points.shape[1], spec)
    check_metric(points, spec.metric)


def check_shape(n: int, d: int, spec: GraphSpec) -> None:
    """Raise InvalidSpec when k, the metric's dimension or the lengthscales do not fit n points in d dimensions."""
    if n < 2:
        raise InvalidPoints(f"a neighbor graph needs at least 2 points, this array has {n}")
    if spec.k >= n:
        raise InvalidSpec(f"k is {spec.k} but there are only {n} points; use k ≤ {n - 1}", "k")
    metric = spec.metric
    if isinstance(metric, Haversine) and d != 2:
        raise InvalidSpec(f"haversine needs 2 columns (longitude, latitude), these points have {d}", "metric.type")
    if isinstance(metric, Euclidean) and isinstance(metric.lengthscale, tuple) and len(metric.lengthscale) != d:
        raise InvalidSpec(
            f"lengthscale has {len(metric.lengthscale)} values for {d} dimensions; give one or {d}",
            "metric.lengthscale",
        )


def check_metric(points: Points, metric: Metric, first_row: int = 0) -> None:
    """Raise InvalidPoints naming the first row that the metric is not defined on.

    points: (n, d). first_row: index of points[0] in the whole array, when the caller checks it in pieces.
    """
    if isinstance(metric, Haversine):
        for column, name, bound in ((1, "latitude", 90.0), (0, "longitude", 360.0)):
            outside = np.abs(points[:, column]) > bound
            if outside.any():
                bad = int(np.argmax(outside))
                row = first_row + bad
                raise InvalidPoints(
                    f"row {row}: {name} {points[bad, column]:g} is outside [-{bound:g}, {bound:g}] degrees; "
                    "columns are (longitude, latitude)",
                    row,
                )
    elif isinstance(metric, Cosine):
        zero = ~points.any(axis=1)
        if zero.any():
            row = first_row + int(np.argmax(zero))
            raise InvalidPoints(f"row {row} is all zeros; the cosine distance is not defined there", row)
