"""The door: what a point array must be, checked once; kernels behind it assume it.

Importable without Numba, so the HTTP process can refuse an array before it costs anything.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pcct_core.arrays import check_exact, read_numbers
from pcct_core.errors import InvalidPoints, InvalidSpec
from pcct_core.spec import Cosine, GraphSpec, Haversine, Inducing, Metric, Residual

Points: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
FloatArray: TypeAlias = NDArray[Any]

EARTH_RADIUS_KM = 6371.0088  # IUGG mean radius R1

MAX_POINTS = 2**31 - 2  # neighbor indices are int32 and -1 is taken

_CHECK_ROWS = 1 << 16


def as_points(X: Any, subject: str = "points", name: str = "X") -> Points:
    """Return X as a C-contiguous float32 or float64 array of shape (n, d), native byte order, all values finite.

    X: what `arrays.read_numbers` takes; integers, booleans and half floats become float64. Copied only when it must be.
    subject, name: what messages and the code in them call X.
    Raises InvalidPoints for the wrong rank, no rows, no columns, a type that is not a real number, a masked value, a whole
    number that float64 would round, or a value that is not finite; the error names the row.
    """
    array = read_numbers(X, subject, name)
    if array.ndim != 2:
        fixes = {1: ".reshape(-1, 1) for one dimension", 0: ".reshape(1, 1) for one point in one dimension"}
        given = name if isinstance(X, np.ndarray) else f"np.asarray({name})"
        fix = fixes.get(array.ndim, f".reshape({len(array) if array.ndim else 1}, -1) where every {name}[i] is a point")
        raise InvalidPoints(f"{subject} have shape {array.shape}; expected (n, d); use {given}{fix}")
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise InvalidPoints(f"{subject} have shape {array.shape}; at least one row and one column are needed")
    if array.shape[0] > MAX_POINTS:
        raise InvalidPoints(f"{array.shape[0]} {subject} are more than the {MAX_POINTS} that int32 indices can name")
    check_exact(X, array, subject, name)
    dtype = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize == 4 else np.float64
    # Kernels are compiled for writable, aligned arrays; a read-only map would have them compiled once more.
    points: Points = np.require(array, dtype=dtype, requirements=["C", "A", "W"])
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
    if n < 2 and spec.kind != "radius":
        raise InvalidPoints(f"a neighbor graph needs at least 2 points, this array has {n}")
    if spec.k >= n:
        raise InvalidSpec(f"k is {spec.k} but there are only {n} points; use k ≤ {n - 1}", "k")
    metric = spec.metric
    if isinstance(metric, Haversine) and d != 2:
        raise InvalidSpec(f"haversine needs 2 columns (longitude, latitude), these points have {d}", "metric.type")
    scale = lengthscale_of(metric)
    if isinstance(scale, tuple) and len(scale) != d:
        raise InvalidSpec(
            f"lengthscale has {len(scale)} values for {d} dimensions; give one or {d}", "metric.lengthscale"
        )
    if isinstance(metric, Residual) and isinstance(metric.inducing, Inducing) and metric.inducing.count > n:
        raise InvalidSpec(
            f"{metric.inducing.count} inducing points are more than the {n} points; use at most {n}",
            "metric.inducing.count",
        )


def lengthscale_of(metric: Metric) -> float | tuple[float, ...] | None:
    """Return what the metric divides coordinates by; None where it does not."""
    if isinstance(metric, Residual):
        return metric.kernel.lengthscale
    return None if isinstance(metric, Haversine | Cosine) else metric.lengthscale


def check_metric(points: Points, metric: Metric, first_row: int = 0) -> None:
    """Raise InvalidPoints naming the first row that the metric is not defined on.

    points: (n, d). first_row: index of points[0] in the whole array, when the caller checks it in pieces.
    Raises InvalidSpec for a lengthscale that is zero or infinite in the type of the points.
    """
    if isinstance(metric, Haversine):
        outside = np.abs(points) > (360.0, 90.0)
        if outside.any():
            bad = int(np.argmax(outside.any(axis=1)))
            column, name, bound = (1, "latitude", 90) if outside[bad, 1] else (0, "longitude", 360)
            row = first_row + bad
            raise InvalidPoints(
                f"row {row}: {name} {points[bad, column]!s} is outside [-{bound}, {bound}] degrees; "
                "columns are (longitude, latitude)",
                row,
            )
    elif isinstance(metric, Cosine):
        candidates = np.flatnonzero(points[:, 0] == 0)  # few, and far less to read than all columns
        zero = candidates[~points[candidates].any(axis=1)]
        if zero.size:
            row = first_row + int(zero[0])
            raise InvalidPoints(f"row {row} is all zeros; the cosine distance is not defined there", row)
    elif (scale := lengthscale_of(metric)) is not None and not isinstance(metric, Residual):
        with np.errstate(over="ignore"):
            held: FloatArray = np.asarray(scale, points.dtype)
        if not ((held > 0) & np.isfinite(held)).all():
            raise InvalidSpec(
                f"lengthscale {scale} is beyond what {points.dtype} holds; use float64 points",
                "metric.lengthscale",
            )


def embed(points: Points, metric: Metric) -> Points:
    """Return the points where plain Euclidean distance orders neighbors as the metric does; C-contiguous, maybe the input.

    points: (n, d), checked for the metric. Euclidean: coordinates over lengthscales, same type. Haversine: unit vectors of
    R^3, always float64 (a float32 chord resolves half a metre). Cosine: rows over their norms, same type. Residual:
    coordinates over lengthscales, always float64; neighbors are only sought there, not ordered.
    Raises InvalidPoints when squared distances would overflow.
    """
    embedded: Points
    if isinstance(metric, Haversine):
        radians = np.radians(points.astype(np.float64))
        lon, lat = radians[:, 0], radians[:, 1]
        return np.ascontiguousarray(
            np.column_stack((np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)))
        )
    if isinstance(metric, Cosine):
        scaled = points / np.abs(points).max(axis=1, keepdims=True)  # the squares of tiny rows would be lost
        embedded = scaled / np.sqrt(np.square(scaled).sum(axis=1, keepdims=True, dtype=np.float64))
        return np.ascontiguousarray(embedded, dtype=points.dtype)  # type: ignore[return-value]
    embedded = points.astype(np.float64) if isinstance(metric, Residual) else points
    if (scale := lengthscale_of(metric)) is not None:
        with np.errstate(over="ignore"):
            embedded = embedded / np.asarray(scale, embedded.dtype)
    largest = float(np.sqrt(np.finfo(embedded.dtype).max / points.shape[1])) / 4
    beyond = ~(np.abs(embedded) <= largest)
    if beyond.any():
        row = int(np.argmax(beyond.any(axis=1)))
        raise InvalidPoints(
            f"row {row} has a coordinate beyond {largest:.2g} (over its lengthscale), where squared distances overflow "
            f"{embedded.dtype}; rescale the points" + (" or use float64" if embedded.dtype == np.float32 else ""),
            row,
        )
    return embedded


def distances_out(distances: FloatArray, metric: Metric) -> None:
    """Turn embedded distances into the metric's unit, in place; inf stays inf.

    Haversine: km along the sphere, 2 R asin(chord / 2). Cosine: 1 - cos(angle) = chord² / 2.
    """
    if isinstance(metric, Haversine):
        missing = np.isinf(distances)
        np.multiply(distances, 0.5, out=distances)
        np.minimum(distances, 1.0, out=distances)
        np.arcsin(distances, out=distances)
        np.multiply(distances, 2.0 * EARTH_RADIUS_KM, out=distances)
        distances[missing] = np.inf
    elif isinstance(metric, Cosine):
        np.square(distances, out=distances)
        np.divide(distances, 2.0, out=distances)


def squared_reach(radius: float, metric: Metric, dtype: Any) -> Any:
    """Return the largest squared embedded distance, T, whose distance in the metric's unit is at most `radius`.

    radius: ≥ 0, rounded to dtype (T, float32 or float64), the type of the distances. Comparing squared distances with it
    is comparing finished distances with the radius, because root and `distances_out` never fall; no distance is above the
    largest number of T. Found by bisection over the numbers of T, of which the non-negative ones are ordered as their bits are.
    """
    largest = np.finfo(dtype).max
    wanted = np.asarray(min(radius, float(largest)), dtype)
    low, high = 0, int(largest.view(f"i{largest.itemsize}"))
    while low < high:
        middle = (low + high + 1) // 2
        distance = np.sqrt(np.array([middle], f"i{largest.itemsize}").view(dtype))
        with np.errstate(over="ignore"):
            distances_out(distance, metric)
        low, high = (middle, high) if distance[0] <= wanted else (low, middle - 1)
    return np.array(low, f"i{largest.itemsize}").view(dtype)[()]
