"""The door: what a point array must be, checked once; kernels behind it assume it.

Importable without Numba, so the HTTP process can refuse an array before it costs anything.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pcct_core.arrays import check_exact, read_numbers
from pcct_core.errors import InvalidPoints, InvalidSpec
from pcct_core.spec import Cosine, Euclidean, GraphSpec, Haversine, Inducing, Metric, Residual

Points: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
FloatArray: TypeAlias = NDArray[Any]

EARTH_RADIUS_KM = 6371.0088  # IUGG mean radius R1

MAX_POINTS = 2**31 - 2  # neighbor indices are int32 and -1 is taken

_CHECK_ROWS = 1 << 16
_QUARTER = float(np.sqrt(2.0))  # chord of a quarter of the circumference, as in `measure`
_QUARTER_KM = float(np.arcsin(np.array([_QUARTER * 0.5]))[0] * (2.0 * EARTH_RADIUS_KM))


def as_points(X: Any, subject: str = "points", name: str = "X") -> Points:
    """Return X as a C-contiguous float32 or float64 array of shape (n, d), native byte order, all values finite.

    X: what `arrays.read_numbers` takes; integers, booleans and half floats become float64. Copied only when it must be.
    subject, name: what messages and the code in them call X.
    Raises InvalidPoints for the wrong rank, no rows, no columns, a type that is not a real number, a masked value, a whole
    number that float64 would round, or a value that is not finite; the error names the row.
    """
    array = read_numbers(X, subject, name)
    if array.size == 0:
        raise InvalidPoints(f"{subject} have shape {array.shape}; at least one row and one column are needed")
    if array.ndim != 2:
        fixes = {1: ".reshape(-1, 1) for one dimension", 0: ".reshape(1, 1) for one point in one dimension"}
        given = name if isinstance(X, np.ndarray) else f"np.asarray({name})"
        fix = fixes.get(array.ndim, f".reshape({len(array) if array.ndim else 1}, -1) where every {name}[i] is a point")
        raise InvalidPoints(f"{subject} have shape {array.shape}; expected (n, d); use {given}{fix}")
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


def choose_origin(points: Points) -> NDArray[np.float64]:
    """Return what is subtracted from coordinates before they are divided by lengthscales, float64 (d,).

    It is the least number of a column where every difference from that is exact in float64, as it is for points far from zero
    (metres of UTM, Unix times); else 0: the column then spans so many digits that dividing its numbers loses none that a
    subtraction would keep, but for two. So points moved by an offset that rounds none of them give the same differences.
    """
    origin: NDArray[np.float64] = points.min(axis=0).astype(np.float64)
    exact = np.ones(points.shape[1], bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, points.shape[0], _CHECK_ROWS):
            block = points[start : start + _CHECK_ROWS].astype(np.float64)
            less = block - origin
            # The rounding of a difference is 0 where both hold (Knuth 1997, 4.2.2, theorem B).
            exact &= ((less + origin == block) & (block - less == origin)).all(axis=0)
    return np.where(exact, origin, 0.0)


def embed(points: Points, metric: Metric, origin: FloatArray | None = None) -> Points:
    """Return coordinates in which Euclidean distance orders neighbors as the metric does, C-contiguous, maybe the input.

    points: (n, d), checked for the metric. Euclidean: the points themselves; `choose_scale` says what their differences are
    multiplied by. Haversine: unit vectors of R^3, float64, the same for one place however it is written. Cosine: rows over
    their norms, same type. Residual: coordinates less an origin, float64 (d,), over lengthscales, always float64.
    Raises InvalidPoints under the residual metric when squared distances would overflow.
    """
    if isinstance(metric, Haversine):
        return _unit_vectors(points)
    if isinstance(metric, Cosine):
        scaled = unit_sized(points)
        unit = scaled / np.sqrt(np.square(scaled).sum(axis=1, keepdims=True, dtype=np.float64))
        return np.ascontiguousarray(unit, dtype=points.dtype)  # type: ignore[return-value]
    if not isinstance(metric, Residual):
        return points
    embedded: Points = points.astype(np.float64)
    with np.errstate(over="ignore"):
        embedded -= 0.0 if origin is None else origin
        embedded /= np.asarray(metric.kernel.lengthscale, np.float64)
    _refuse_beyond(
        embedded, float(np.sqrt(np.finfo(np.float64).max / points.shape[1])) / 4, "squared distances", embedded
    )
    return embedded


def unit_sized(points: FloatArray) -> FloatArray:
    """Return rows, (n, d), none of them zeros, times powers of two that bring their largest numbers to between 1 and 2.

    This changes no digit but of numbers that are 2^126 (float32) or 2^1022 (float64) times smaller than the row's largest.
    """
    scaled: FloatArray = np.ldexp(points, 1 - np.frexp(np.abs(points).max(axis=1, keepdims=True))[1])
    return scaled


def _unit_vectors(points: Points) -> NDArray[np.float64]:
    """Return (longitude, latitude) in degrees, (n, 2), as points of the unit sphere, float64 (n, 3).

    Degrees are reduced before they become radians, by an exact multiple of 90 to at most 45, so places written in several ways
    are equal vectors, and multiples of 90 degrees have sines and cosines of exactly 0 and 1.
    """
    degrees = points.astype(np.float64)
    quarters = np.rint(degrees / 90.0)
    radians = np.radians(degrees - 90.0 * quarters)
    turned = quarters.astype(np.int8)
    sines, cosines = np.sin(radians), np.cos(radians)
    odd, sine_below, cosine_below = turned & 1 == 1, turned & 2 == 2, (turned + 1) & 2 == 2
    sine = np.where(odd, cosines, sines)
    cosine = np.where(odd, sines, cosines)
    np.negative(sine, out=sine, where=sine_below)
    np.negative(cosine, out=cosine, where=cosine_below)
    vectors = np.empty((len(points), 3))
    np.multiply(cosine[:, 1], cosine[:, 0], out=vectors[:, 0])
    np.multiply(cosine[:, 1], sine[:, 0], out=vectors[:, 1])
    vectors[:, 2] = sine[:, 1]
    vectors += 0.0  # -0.0 becomes 0.0
    return vectors


class Scale(NamedTuple):
    """How differences of coordinates become the distances that are compared, and these the metric's.

    weights: T (d,), what the differences of each coordinate are multiplied by before they are squared; None for ones.
    exponent: what is compared is 2**exponent times as large. divisor: what it is divided by at last.
    least: distances below it, as they are compared, may have lost digits; 0 where none can.
    """

    weights: FloatArray | None = None
    exponent: int = 0
    divisor: float = 1.0
    least: float = 0.0


class Extent(NamedTuple):
    """Sizes of numbers, float64 (1,), or (d,) by column: the largest, and the smallest but zero, inf where all are zero."""

    largest: NDArray[np.float64]
    least: NDArray[np.float64]

    def joined(self, other: Extent) -> Extent:
        """Return the extent of both."""
        return Extent(np.maximum(self.largest, other.largest), np.minimum(self.least, other.least))


def measure_extent(points: Points, metric: Metric) -> Extent:
    """Return the extent of points, (n, d), by column where the metric has a lengthscale for each; that of no points where it
    is not Euclidean.
    """
    if not isinstance(metric, Euclidean):
        return Extent(np.zeros(1), np.full(1, np.inf))
    columns = list(points.T) if _lengthscales(metric) is not None else [points.reshape(-1)]
    found = [_extent(column) for column in columns]
    return Extent(np.array([largest for largest, _ in found]), np.array([least for _, least in found]))


def _extent(values: FloatArray) -> tuple[float, float]:
    """Return the largest and the smallest size that is not zero, inf where there is none, of a flat array."""
    # Sizes are ordered as their bits are; less one, those of zero become the largest of all.
    word = np.dtype(f"u{values.dtype.itemsize}").type
    sizes = word(np.iinfo(word).max >> 1)
    largest, least = word(0), np.iinfo(word).max
    for start in range(0, len(values), _CHECK_ROWS):
        bits = np.ascontiguousarray(values[start : start + _CHECK_ROWS]).view(word) & sizes
        largest = max(largest, bits.max())
        bits -= word(1)
        least = min(least, bits.min())
    if largest == 0:
        return 0.0, np.inf
    return float(largest.view(values.dtype)), float(word(least + 1).view(values.dtype))


def _lengthscales(metric: Metric) -> FloatArray | None:
    """Return a Euclidean metric's lengthscales, (d,), None where all are one number or there are none."""
    scale = metric.lengthscale if isinstance(metric, Euclidean) else None
    return np.array(scale) if isinstance(scale, tuple) and len(set(scale)) > 1 else None


def choose_scale(extent: Extent, d: int, metric: Metric, dtype: Any) -> Scale:
    """Return how distances of points of that extent, in d dimensions and of type dtype, are computed.

    Euclidean: differences of coordinates come first, for they are right to a rounding however far from zero points are, then
    lengthscales, and where squares could vanish or overflow a power of two, which changes no digit.
    Raises InvalidSpec where lengthscales are too far apart for dtype.
    """
    if not isinstance(metric, Euclidean):
        return Scale()
    scales = _lengthscales(metric)
    inverse = np.zeros(1) if scales is None else -np.log2(scales)
    exponent, lossy = _choose_exponent(extent, d, inverse, dtype)
    kind = np.finfo(dtype)
    if kind.minexp - inverse.min() > exponent:
        raise InvalidSpec(
            f"lengthscales {metric.lengthscale} are too far apart for {np.dtype(dtype)} and these points; "
            + ("use float64 points" if kind.bits == 32 else "rescale the points"),
            "metric.lengthscale",
        )
    # Above it a square that is partly lost is no more than 2^-50 of the sum.
    least = float(2.0 ** ((kind.minexp + kind.nmant + np.log2(d)) / 2 + 2)) if lossy else 0.0
    if scales is not None:
        part, power = np.frexp(scales)
        return Scale(np.ldexp(1.0 / part, exponent - power).astype(dtype), exponent, 1.0, least)
    weights = np.full(d, np.ldexp(1.0, exponent), dtype) if exponent else None
    return Scale(weights, exponent, float(np.max(metric.lengthscale or 1.0)), least)


def _choose_exponent(extent: Extent, d: int, inverse: NDArray[np.float64], dtype: Any) -> tuple[int, bool]:
    """Return an exponent e, 0 where it will do, and whether some square may still vanish.

    Differences times 2**(e + inverse), inverse: float64 (1,) or by column, are squared and added. Their numbers are at most
    `largest`, so that sums stay below the largest number of dtype with e + largest ≤ top. None vanishes with e + least ≥ floor:
    numbers with p binary digits that differ, differ by at least 2^-p of the smaller one, or by one of them if the other is 0.
    All these are logarithms.
    """
    kind = np.finfo(dtype)
    with np.errstate(divide="ignore"):
        largest = float((np.log2(extent.largest) + inverse).max())
        least = float((np.log2(extent.least) + inverse).min())
    top = (kind.maxexp - np.log2(d)) / 2 - 3
    floor = kind.minexp / 2 + kind.nmant + 1
    most = kind.maxexp - 1 - inverse.max()  # the weights themselves must not overflow
    if largest <= top and least >= floor and kind.minexp - inverse.min() <= 0 <= most:
        return 0, False
    exponent = int(np.floor(min(top - largest, most)))
    return exponent, least + exponent < floor


def check_extent(points: Points, extent: Extent, metric: Metric) -> None:
    """Raise InvalidPoints naming the first row with a coordinate so large that Euclidean distances would overflow its type."""
    if not isinstance(metric, Euclidean):
        return
    scale = np.asarray(metric.lengthscale or 1.0, np.float64)
    largest = float(np.finfo(points.dtype).max) / (2.0 * np.sqrt(points.shape[1]))
    with np.errstate(over="ignore"):
        if ((extent.largest <= largest) & ((extent.largest / scale).max() <= largest)).all():
            return
        _refuse_beyond(points, largest, "distances", points / scale)


def _refuse_beyond(points: FloatArray, largest: float, what: str, scaled: FloatArray) -> None:
    beyond = ~((np.abs(points) <= largest) & (np.abs(scaled) <= largest))
    if beyond.any():
        row = int(np.argmax(beyond.any(axis=1)))
        raise InvalidPoints(
            f"row {row} has a coordinate beyond {largest:.2g} (over its lengthscale), where {what} overflow "
            f"{points.dtype}; rescale the points" + (" or use float64" if points.dtype == np.float32 else ""),
            row,
        )


def finish_distances(keys: FloatArray, metric: Metric, scale: Scale, dtype: Any) -> FloatArray:
    """Return what was compared in the metric's unit and in the type of the points, maybe in place; inf stays inf.

    Euclidean: over the lengthscale, if there is one for all dimensions. Haversine: km along the sphere; the keys of
    `measure.SPHERE` are chords c up to a quarter of the circumference, 2 R asin(c / 2), and beyond it 4 less the chord c from
    the antipode, R (π - 2 asin(c / 2)). Cosine: the keys themselves.
    """
    if isinstance(metric, Haversine):
        missing, far = np.isinf(keys), keys > _QUARTER
        np.subtract(4.0, keys, out=keys, where=far)
        np.clip(keys, 0.0, _QUARTER, out=keys)
        np.multiply(keys, 0.5, out=keys)
        np.arcsin(keys, out=keys)
        np.multiply(keys, 2.0 * EARTH_RADIUS_KM, out=keys)
        np.subtract(np.pi * EARTH_RADIUS_KM, keys, out=keys, where=far)
        np.maximum(keys, _QUARTER_KM, out=keys, where=far)  # rounding must not put a farther point nearer
        keys[missing] = np.inf
    elif scale.exponent or scale.divisor != 1.0:
        part, power = np.frexp(scale.divisor)
        keys[...] = np.ldexp(keys.astype(np.float64) / part, -(scale.exponent + int(power)))
    return keys.astype(dtype, copy=False)


def last_key(radius: float, metric: Metric, scale: Scale, key_type: Any, dtype: Any, *, squared: bool) -> Any:
    """Return the largest key, or the largest squared key, whose finished distance is at most `radius`; type key_type.

    radius: ≥ 0, rounded to dtype, the type of the finished distances. Comparing with what is returned is comparing finished
    distances with the radius, because root and `finish_distances` never fall; no distance is above the largest number of dtype.
    Found by bisection over the numbers of key_type, of which the non-negative ones are ordered as their bits are.
    """
    largest = np.finfo(key_type).max
    whole = f"i{largest.itemsize}"
    wanted = np.asarray(min(radius, float(np.finfo(dtype).max)), dtype)
    low, high = 0, int(largest.view(whole))
    while low < high:
        middle = (low + high + 1) // 2
        key = np.array([middle], whole).view(key_type)
        with np.errstate(over="ignore"):
            distance = finish_distances(np.sqrt(key) if squared else key, metric, scale, dtype)
        low, high = (middle, high) if distance[0] <= wanted else (low, middle - 1)
    return np.array(low, whole).view(key_type)[()]
