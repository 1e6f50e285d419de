"""What decides between candidates where coordinates alone do not: the defined arithmetic of a metric, and bounds beside it.

The search runs on coordinates in which Euclidean distance orders neighbors as the metric does, up to rounding. A candidate
within its bound is then measured by the metric's own arithmetic, in float64; that distance, the key, orders it, with ties to
the lower index. The bounds on squared distances of coordinates are widened by what the coordinates may be off, so that no
neighbor is lost. Three kinds:

COORDINATES: the key is the distance of the coordinates, in their type. Nothing is widened.

SPHERE: unit vectors x, y in float64. The key is |x - y| up to a quarter of the circumference, and 4 - |x + y| beyond it:
|x - y| hardly changes near the antipode, |x + y| does. Squares add up to |x - y|² + |x + y|² = 2 |x|² + 2 |y|², which is 4
within 8 u for vectors rounded to within u, and the computed squares are within 5 u of the exact ones: 64 eps covers both.

ANGLE: the key is the cosine distance D = 1 - cos; rows are scaled by powers of two. With p = x·y, a = x·x, b = y·y,
D = 1 - p / √(a b), at most 2; below NEAR it is found as sin² / (1 + cos), where r = a y - p x is computed with exact
products, q = r - x (x·r) / a, and sin² is the mean of |q|² / (a² b) and of the same with x and y exchanged, so that
D(x, y) = D(y, x) to the bit. D is exactly 0 for equal rows (√(a a) = a in IEEE arithmetic, and then r = 0) and for
multiples of rows of whole numbers below 2^26 / √d (all products are exact, so r = 0); it is 1 for orthogonal ones, 2 for
opposite ones.
  Error of D. Let u = 2^-53. Sums of d products are within d u |x||y|, so a computed cosine is within (2d + 4) u, and the first
form within (2d + 8) u. In the second the errors of a and p shift r along x or y by less than 2 d u a |y|; along y is along
x but for a factor sin, so q keeps an error of 4 d u a |y| sin, relative to |q| a few d u; rounding adds u² a |y|, which is
below what the unit rows are off. So the order of two pairs is right when their D differ by (4d + 16) u, below NEAR already
when they differ by that relatively.
  Bounds. Unit rows of type T are off by at most u_T + (d + 8) u, so a squared distance of the coordinates, s, computed within
(d + 2) u_T, meets |√s - √(2 D)| ≤ `chord` = 2 u_T + 2 (d + 8) u, up to the factor 1 ± `relative` and the error of D.

Sources: Kahan 2006, "How futile are mindless assessments of roundoff", section 12 (angles); Dekker 1971 (exact products).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.jit import entry, inlined, inner
from pcct_core.parallel import Crew
from pcct_core.points import unit_sized
from pcct_core.simd import COLUMNS, LANES, dot_rows
from pcct_core.topk import Front

COORDINATES, SPHERE, ANGLE = 0, 1, 2
NEAR = 2.0**-20  # about 0.08 degrees; the first form is right to (2d + 8) 1e-10 of it
QUARTER = float(np.sqrt(2.0))  # chord of a quarter of the circumference
_SPHERE_SLACK = 64 * 2.0**-52
_SPLIT = 134217729.0  # 2^27 + 1: halves of a float64 whose products are exact
_UNIT = 2.0**-53
_LEAST, _MOST = 2.0**-40, 2.0**40  # rows whose largest number is between them are not scaled


class Measure(NamedTuple):
    """How candidates are measured. kind: COORDINATES, SPHERE or ANGLE; the other fields are ANGLE's.

    chord, relative: what distances of coordinates may be off; error: what 2 D may be off from NEAR on; see above.
    rows: T (n, width), the points by index, zeros behind the last column. squares: float64 (n,), their inner products with
    themselves. asked, asked_squares: the same of the queries, by row.
    """

    kind: int
    chord: float
    relative: float
    error: float
    rows: Any
    squares: Any
    asked: Any
    asked_squares: Any


class Rows(NamedTuple):
    """Rows to be measured by their angles: rows: T (n, width), squares: float64 (n,), as in `Measure`; d: their columns."""

    rows: NDArray[Any]
    squares: NDArray[np.float64]
    d: int


def _plain(kind: int) -> Measure:
    return Measure(kind, 0.0, 0.0, 0.0, np.empty((0, COLUMNS)), np.empty(0), np.empty((0, COLUMNS)), np.empty(0))


BY_COORDINATES = _plain(COORDINATES)
ON_SPHERE = _plain(SPHERE)


def lay_out_rows(points: NDArray[Any], crew: Crew) -> Rows:
    """Return points, T (n, d) without a row of zeros, as rows for `measure_angles`; the points themselves where they serve.

    Rows of very large or very small numbers are scaled by a power of two.
    """
    n, d = points.shape
    rows = points
    largest = np.abs(points).max(axis=1)
    if d % COLUMNS:
        rows = np.zeros((n, padded_width(d)), points.dtype)
        rows[:, :d] = points
    scaled = np.flatnonzero((largest < _LEAST) | (largest > _MOST))
    if len(scaled):
        rows = rows.copy() if rows is points else rows
        rows[scaled] = unit_sized(rows[scaled])
    return square_rows(rows, d, crew)


def padded_width(d: int) -> int:
    """Return the columns of rows that hold d numbers."""
    return (d + COLUMNS - 1) // COLUMNS * COLUMNS


def square_rows(rows: NDArray[Any], d: int, crew: Crew) -> Rows:
    """Return rows, T (n, padded_width(d)), with their inner products with themselves."""
    squares = np.empty(len(rows))
    crew.run("", len(rows), lambda start, stop: square_some(rows, start, stop, squares), grain=4096)
    return Rows(rows, squares, d)


def measure_angles(points: Rows, queries: Rows) -> Measure:
    """Return the measure of queries among points, both in one type."""
    unit = float(np.finfo(points.rows.dtype).eps) / 2
    chord = 2.1 * unit + 2 * (points.d + 8) * _UNIT
    relative = 2 * (points.d + 3) * unit + (8 * points.d + 64) * _UNIT
    error = (4 * points.d + 16) * _UNIT
    return Measure(ANGLE, chord, relative, error, points.rows, points.squares, queries.rows, queries.squares)


@entry
def square_some(rows, start, stop, squares):
    """Write the inner products of rows [start, stop) with themselves."""
    for i in range(start, stop):
        squares[i] = dot_rows(rows, i, rows, i)


@inlined
def measure_candidate(measure, tree, group, place, lane, squared):
    """Return the key of the point in a place of the tree and of query `lane`; their coordinates are √squared apart."""
    if measure.kind == SPHERE:
        if squared <= 2.0:
            return np.float64(np.sqrt(squared))
        total = 0.0
        first = place // LANES * LANES * tree.d + place % LANES
        for c in range(tree.d):
            both = tree.coords[first + c * LANES] + group.coords[c * LANES + lane]
            total += both * both
        return 4.0 - np.sqrt(total)
    return cosine_distance(measure, tree.ids[place], group.rows[lane])


@inlined
def cosine_distance(measure, i, j):
    """Return the cosine distance of point i and query j, as defined at the top."""
    a, b = measure.squares[i], measure.asked_squares[j]
    p = dot_rows(measure.rows, i, measure.asked, j)
    distance = 1.0 - p / np.sqrt(a * b)
    if distance >= NEAR:
        return min(distance, 2.0)
    x, y = measure.rows[i], measure.asked[j]
    square = (square_sine(x, y, a, b, p) + square_sine(y, x, b, a, p)) / 2.0
    return square / (1.0 + p / np.sqrt(a * b))


@inner
def square_sine(x, y, a, b, p):
    """Return sin² of rows x and y, T (width,), from y across x; a = x·x, b = y·y, p = x·y.

    Sums run over the columns in order.
    """
    along = 0.0
    for c in range(x.shape[0]):
        along += x[c] * cross_column(a, y[c], p, x[c])
    along /= a
    total = 0.0
    for c in range(x.shape[0]):
        across = cross_column(a, y[c], p, x[c]) - x[c] * along
        total += across * across
    return total / (a * a * b)


@inner
def cross_column(a, y, p, x):
    """Return a y - p x, of which both products are exact."""
    ay, px = a * y, p * x
    return (ay - px) + (product_error(a, np.float64(y), ay) - product_error(p, np.float64(x), px))


@inner
def product_error(x, y, product):
    """Return x y - product for the rounded product, exactly. Source: Dekker 1971."""
    high = x * _SPLIT
    high = high - (high - x)
    low = x - high
    other = y * _SPLIT
    other = other - (other - y)
    rest = y - other
    return ((high * other - product) + high * rest + low * other) + low * rest


@inner
def reach_outside(measure, key):
    """Return a squared distance of coordinates, float64, that no point is beyond whose key is at most `key` ≥ 0."""
    if measure.kind == ANGLE:
        error = 0.0 if key < NEAR else measure.error
        spread = np.sqrt(2.0 * key + error) + measure.chord
        return spread * spread * (1.0 + measure.relative)
    if key <= QUARTER:
        return key * key * (1.0 + _SPHERE_SLACK)
    if key <= 4.0:
        return 4.0 - (4.0 - key) * (4.0 - key) + _SPHERE_SLACK
    return np.inf


@inner
def reach_inside(measure, key):
    """Return a squared distance of coordinates, float64, within which every key is at most `key` ≥ 0; -1 for none."""
    if measure.kind == ANGLE:
        spread = np.sqrt(max(0.0, 2.0 * key - measure.error)) - measure.chord
        return spread * spread * (1.0 - measure.relative) if spread > 0 else -1.0
    if key <= QUARTER:
        return key * key * (1.0 - _SPHERE_SLACK) if key > 0 else -1.0
    return 4.0 - (4.0 - key) * (4.0 - key) - _SPHERE_SLACK


@inner
def widen_front(measure, best, lanes, front):
    """Set the bounds of queries that are settled to what may hold a better key than their k-th; return the front.

    Subtrees are only passed over as ties with higher indices where no key in them can be lower: beyond a chord on the
    sphere, or where the k-th key is 0.
    """
    zero = best.bounds.dtype.type(0)
    bound = zero
    last = (best.k - 1) * LANES
    for lane in range(lanes):
        best.bounds[lane] = reach_outside(measure, best.distances[last + lane])
        bound = max(bound, best.bounds[lane])
    distance = front.distance
    if distance > (QUARTER if measure.kind == SPHERE else 0.0):
        distance = best.distances.dtype.type(np.inf)
    return Front(bound, distance, front.index)


class Reach(NamedTuple):
    """What lies within a radius: inside and outside: T, squared distances of coordinates; key: what decides between them."""

    inside: Any
    outside: Any
    key: Any


def find_reach(measure: Measure, key: Any, dtype: Any) -> Reach:
    """Return the reach of all points whose key is at most `key`, for coordinates of type dtype; not COORDINATES."""
    # One more step of the type covers its rounding.
    outside = np.nextafter(dtype.type(reach_outside(measure, key)), dtype.type(np.inf))
    inside = np.nextafter(dtype.type(reach_inside(measure, key)), dtype.type(-np.inf))
    return Reach(inside, outside, key)
