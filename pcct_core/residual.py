"""The residual process of a VIF model: what its inducing points leave unexplained, as factors.

With K the kernel, Z the m inducing points and L Lᵀ = K_ZZ + jitter · variance · I, the rows of V = (L⁻¹ K_ZX)ᵀ are the
explained part, p_i = max(K_ii - |V_i|², floor · variance) is the residual variance, and

    rho_ij = (K_ij - V_i · V_j) / sqrt(p_i p_j),     distance_ij = sqrt(1 - |rho_ij|)

is the residual correlation and its distance, all in float64: the numerator is a difference of nearly equal numbers.
Source: Gyger, Furrer, Sigrist 2024 (VIF approximations, correlation-based neighbors).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from pcct_core.blas import single_threaded_blas
from pcct_core.build import Tree
from pcct_core.errors import InvalidSpec, NotPositiveDefinite
from pcct_core.kernels import correlate, make_scratch
from pcct_core.order import maximin_order
from pcct_core.parallel import Crew
from pcct_core.simd import LANES, scan_bucket
from pcct_core.spec import KERNELS, Inducing, Residual, Stored

_ROWS = 512  # rows of V solved together, a multiple of LANES
_FILTER_BYTES = 256 << 20  # most memory for V in float32
_FILTER_SHARE = 0.02  # most slack, over the median residual variance: beyond it float32 rules out too little
SINGLE_COLUMNS = 128  # the same in float32
COLUMNS = 64  # columns of V per step: 64 of a bucket are 16 KB, half of a first-level cache


class Factors(NamedTuple):
    """The residual process at n points, laid out for a tree of them.

    points: float64 (n, d), coordinates over lengthscales. blocks: float64 flat (buckets * m * LANES), V by bucket of the
    tree, then column; zero where a place is empty. place: int32 (n,), place of each point in the tree.
    p: float64 (n,), residual variances. code: the kernel, see `kernels`. variance: its variance.
    m: number of columns of V. degenerate: rows whose residual variance is at the floor.
    single: float32, blocks for `gate.filter_active`, empty for none. slack: see `add_filter`.
    """

    points: Any
    blocks: Any
    place: Any
    p: Any
    code: int
    variance: float
    m: int
    degenerate: int
    single: Any
    slack: float


def make_factors(
    points: NDArray[np.float64], rows: NDArray[np.int64], tree: Tree, metric: Residual, crew: Crew
) -> Factors:
    """Return the factors of points[rows] as the metric says: computed from inducing points, or the given ones.

    points: (n, d), over the lengthscales. tree: of points[rows]. Raises InvalidSpec for inducing points or factors that do
    not fit, NotPositiveDefinite.
    """
    code, variance = list(KERNELS).index(metric.kernel.name), metric.kernel.variance
    if metric.factors is None:
        inducing = _inducing_points(points, metric, crew)
        blocks, p = factorize(points[rows], tree, inducing, code, variance, metric.jitter, crew)
    else:
        V, given = _given_factors(metric.factors, len(points))
        p = given[rows]
        blocks = np.zeros(len(tree.ids) * V.shape[1])
        buckets = len(tree.ids) // LANES
        crew.run("factors", buckets, lambda a, b: fill_blocks(V, rows, tree.ids, a, b, blocks), grain=8)
    place = np.empty(tree.n, np.int32)
    place[tree.ids[: tree.n]] = np.arange(tree.n, dtype=np.int32)
    least = metric.floor * variance
    degenerate = int(np.count_nonzero(p <= least))
    m = len(blocks) // len(tree.ids)
    p = np.maximum(p, least)
    return Factors(points[rows], blocks, place, p, code, variance, m, degenerate, np.empty(0, np.float32), 0.0)


def factors_below(factors: Factors, tree: Tree, crew: Crew) -> Factors:
    """Return the factors of the first tree.n points, laid out for their own tree."""
    blocks = np.zeros(len(tree.ids) * factors.m)
    buckets = len(tree.ids) // LANES
    crew.run("", buckets, lambda a, b: move_blocks(factors, tree.ids, a, b, blocks), grain=8)
    place = np.empty(tree.n, np.int32)
    place[tree.ids[: tree.n]] = np.arange(tree.n, dtype=np.int32)
    single = blocks.astype(np.float32) if len(factors.single) else factors.single
    points, p = factors.points[: tree.n], factors.p[: tree.n]
    return factors._replace(points=points, blocks=blocks, place=place, p=p, single=single)


def without_filter(factors: Factors) -> Factors:
    """Return the factors without V in float32: behind a gate most buckets hold neighbors, and it rules out too few."""
    return factors._replace(single=factors.single[:0])


def add_filter(factors: Factors) -> Factors:
    """Return the factors with V in float32 beside it, where that filters well and costs little memory.

    A product computed from V in float32, stretches of SINGLE_COLUMNS summed in float32 and the stretches in float64, is
    within slack = (SINGLE_COLUMNS + 8) u max |V_i|² of the one computed in float64, u = 2^-24: rounding V costs
    2 u |V_i| |V_j|, the sums SINGLE_COLUMNS u |V_i| |V_j| in any order (Higham 2002, section 3.1); products of such errors
    and the roundings in float64 are covered by the rest, for m up to 2^20. The last term covers the kernel's roundings.
    """
    if 4 * len(factors.blocks) > _FILTER_BYTES:
        return factors
    squares = np.einsum("bcj,bcj->bj", *[factors.blocks.reshape(-1, factors.m, LANES)] * 2)
    slack = float((SINGLE_COLUMNS + 8) * 2.0**-24 * squares.max() + 2.0**-48 * factors.variance)
    if slack > _FILTER_SHARE * float(np.median(factors.p)):
        return factors
    return factors._replace(single=factors.blocks.astype(np.float32), slack=slack)


def _inducing_points(points: NDArray[np.float64], metric: Residual, crew: Crew) -> NDArray[np.float64]:
    """Return the inducing points over the lengthscales, float64 (m, d)."""
    wanted = metric.inducing
    if isinstance(wanted, Stored):
        given = _array_of(wanted, "metric.inducing")
        if given.ndim != 2 or given.shape[1] != points.shape[1] or len(given) == 0:
            raise InvalidSpec(
                f"inducing points have shape {given.shape}; expected (m, {points.shape[1]}) with m ≥ 1",
                "metric.inducing",
            )
        if len(given) > len(points):
            raise InvalidSpec(f"{len(given)} inducing points are more than the {len(points)} points", "metric.inducing")
        return np.ascontiguousarray(given / np.asarray(metric.kernel.lengthscale))
    assert isinstance(wanted, Inducing)  # noqa: S101  (Residual holds one of the two when it has no factors)
    if wanted.method == "maximin":
        chosen = maximin_order(points, crew, wanted.count)[0]
    else:
        chosen = np.random.default_rng(wanted.seed).choice(len(points), wanted.count, replace=False)
    return np.ascontiguousarray(points[chosen])


def _given_factors(factors: tuple[Stored, Stored], n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    V, p = _array_of(factors[0], "metric.v"), _array_of(factors[1], "metric.p").reshape(-1)
    if V.ndim != 2 or V.shape[0] != n or V.shape[1] == 0:
        raise InvalidSpec(f"V has shape {V.shape}; expected ({n}, m), a row for every point", "metric.v")
    if len(p) != n:
        raise InvalidSpec(f"p has {len(p)} values for {n} points; give one for each", "metric.p")
    if not (p > 0.0).all():
        row = int(np.argmin(p > 0.0))
        raise InvalidSpec(f"p is {p[row]} at row {row}; residual variances must be positive", "metric.p")
    return V, p


def _array_of(stored: Stored, name: str) -> NDArray[np.float64]:
    if stored.array is None:
        raise InvalidSpec(f"{name} names dataset {stored.id}, whose array is not at hand; pass the array itself", name)
    array: NDArray[np.float64] = np.ascontiguousarray(stored.array, dtype=np.float64)
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise InvalidSpec(f"{name} has a value that is not finite in row {row}", name)
    return array


def factorize(
    points: NDArray[np.float64],
    tree: Tree,
    inducing: NDArray[np.float64],
    code: int,
    variance: float,
    jitter: float,
    crew: Crew,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute V, in blocks of the tree, and p, by point and not yet floored.

    points: (n, d), of the tree, and inducing: (m, d), both over the lengthscales. Raises NotPositiveDefinite.
    Cost: n m² floating-point operations and n m kernel values; no (n, m) array beside V.
    """
    m = inducing.shape[0]
    width = (m + COLUMNS - 1) // COLUMNS * COLUMNS
    centers = _in_blocks(inducing, width)
    gram = np.empty((m, m))
    correlate_rows(inducing, np.arange(m, dtype=np.int32), centers, m, code, variance, gram)
    gram[np.diag_indices(m)] = variance * (1.0 + jitter)
    try:
        lower = cholesky(gram, lower=True, check_finite=False)
    except LinAlgError as error:
        raise NotPositiveDefinite(
            f"the kernel matrix of the {m} inducing points is not positive definite with jitter {jitter:g}; use a larger "
            "jitter, fewer inducing points, or remove repeated ones"
        ) from error
    tiles = _in_tiles(lower, width)
    blocks = np.zeros(len(tree.ids) * m)
    p = np.empty(len(points))
    parts = (len(tree.ids) + _ROWS - 1) // _ROWS
    with single_threaded_blas():
        crew.run(
            "factors",
            parts,
            lambda a, b: solve_blocks(points, tree.ids, centers, m, code, variance, tiles, a, b, blocks, p),
        )
    return blocks, p


def _in_blocks(points: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return points in blocks of 32, dimension by dimension, as buckets are; inf beyond the last, up to `width`."""
    m, d = points.shape
    padded = np.full((width, d), np.inf)
    padded[:m] = points
    return np.ascontiguousarray(padded.reshape(-1, LANES, d).transpose(0, 2, 1)).reshape(-1)


def _in_tiles(lower: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the transposed tiles of L, float64 (steps, steps, COLUMNS, COLUMNS); those on the diagonal are inverted.

    L is continued with ones on the diagonal up to `width`, a multiple of COLUMNS.
    """
    padded = np.eye(width)
    padded[: len(lower), : len(lower)] = lower
    steps = width // COLUMNS
    tiles = padded.reshape(steps, COLUMNS, steps, COLUMNS).transpose(0, 2, 3, 1).copy()
    for i in range(steps):
        tiles[i, i] = solve_triangular(tiles[i, i].T, np.eye(COLUMNS), lower=True, check_finite=False).T
    return tiles


@njit(nogil=True, cache=True)
def correlate_rows(points, rows, centers, m, code, variance, out):
    """Write the covariances of points[rows] with the m centers to out[:, :m]; rows that are no points are left out."""
    d = points.shape[1]
    query = np.empty(d * LANES)
    squared = np.empty(LANES)
    values = np.empty(LANES)
    scratch = make_scratch()
    unused = np.zeros(LANES, np.int32)
    for i in range(rows.shape[0]):
        if rows[i] >= points.shape[0]:
            continue
        for c in range(d):
            query[c * LANES] = points[rows[i], c]
        for first in range(0, m, LANES):
            scan_bucket(centers, first * d, d, query, 0, unused, 0, 0, 0.0, squared)
            correlate(code, squared, scratch, values)
            for j in range(min(LANES, m - first)):
                out[i, first + j] = variance * values[j]


@njit(nogil=True, cache=True)
def solve_blocks(points, ids, centers, m, code, variance, tiles, first, last, blocks, p):
    """Compute V and p (not yet floored) for the places [first, last) * _ROWS of the tree.

    ids: int32, point in each place. centers: as of `_in_blocks`. tiles: as of `_in_tiles`. blocks, p: as in Factors.
    Blocked forward substitution: Golub & Van Loan 2013, section 3.1.
    """
    steps = tiles.shape[0]
    covariances = np.zeros((_ROWS, steps * COLUMNS))
    parts = np.empty((steps, _ROWS, COLUMNS))
    right = np.empty((_ROWS, COLUMNS))
    product = np.empty((_ROWS, COLUMNS))
    for part in range(first, last):
        start = part * _ROWS
        stop = min(ids.shape[0], start + _ROWS)
        correlate_rows(points, ids[start:stop], centers, m, code, variance, covariances)
        for i in range(steps):
            right[:] = covariances[:, i * COLUMNS : (i + 1) * COLUMNS]
            for j in range(i):
                np.dot(parts[j], tiles[i, j], product)
                right -= product
            np.dot(right, tiles[i, i], parts[i])
        for place in range(start, stop):
            if ids[place] >= points.shape[0]:
                continue
            total = 0.0
            to = (place // LANES) * m * LANES + place % LANES
            for c in range(m):
                value = parts[c // COLUMNS, place - start, c % COLUMNS]
                blocks[to + c * LANES] = value
                total += value * value
            p[ids[place]] = variance - total


@njit(nogil=True, cache=True)
def fill_blocks(V, rows, ids, first, last, blocks):
    """Write V[rows], (n, m), to the blocks of buckets [first, last). ids: int32, point in each place."""
    m = V.shape[1]
    for place in range(first * LANES, last * LANES):
        if ids[place] < rows.shape[0]:
            to = (place // LANES) * m * LANES + place % LANES
            for c in range(m):
                blocks[to + c * LANES] = V[rows[ids[place]], c]


@njit(nogil=True, cache=True)
def move_blocks(factors, ids, first, last, blocks):
    """Write the rows of V that belong in buckets [first, last) of another tree. ids: int32, point in each place."""
    m = factors.m
    for place in range(first * LANES, last * LANES):
        if ids[place] < factors.place.shape[0]:
            home = factors.place[ids[place]]
            source = (home // LANES) * m * LANES + home % LANES
            to = (place // LANES) * m * LANES + place % LANES
            for c in range(m):
                blocks[to + c * LANES] = factors.blocks[source + c * LANES]
