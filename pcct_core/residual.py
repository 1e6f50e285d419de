"""The residual process of a VIF model: what its inducing points leave unexplained, as factors.

In units of the kernel's variance, which changes no residual correlation: with K the kernel, Z the m inducing points and
L Lᵀ = K_ZZ + jitter · I, the rows of V = (L⁻¹ K_ZX)ᵀ are the explained part, p_i = max(1 - |V_i|², floor) is the residual
variance, and

    rho_ij = (K_ij - V_i · V_j) / sqrt(p_i p_j),     distance_ij = sqrt(1 - |rho_ij|)

is the residual correlation and its distance, all in float64: the numerator is a difference of nearly equal numbers.

**Equality.** 1 - |rho_ij| is rounded to the nearest multiple of a step, the power of two from 64 to 128 eps over the smaller
of p_i, p_j and 1, and at most 1. What float64 cannot tell apart ties so, and ties go by index. Two values at the two sides of
the middle between multiples do not tie, however near they are: whatever is transitive has such edges. Points at scaled distance
0 have distance 0.
**Error.** Before that rounding 1 - |rho_ij| is off by at most 8 eps sqrt(B_i B_j) with B = (1 + w)² / p and w the sum of the
sizes of a point's weights on the inducing points, V_i · V_j = k_i · W_j, to first order. Each covariance is off by some eps,
Cholesky's factor and the substitution by it are those of a matrix that is off by as much, and the weights carry that into
K_ij - V_i · V_j, p_i and p_j (Higham 2002, theorems 8.5 and 10.3). It is four times what was measured.
Source: Gyger, Furrer, Sigrist 2024 (VIF approximations, correlation-based neighbors).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.blas import single_threaded_blas
from pcct_core.build import Tree
from pcct_core.errors import InvalidSpec, NotPositiveDefinite
from pcct_core.jit import entry, inner
from pcct_core.kernels import correlate, kernel_shape, make_scratch
from pcct_core.order import maximin_order
from pcct_core.parallel import Crew
from pcct_core.simd import COLUMNS, LANES, SINGLE_ERROR, scan_bucket
from pcct_core.spec import KERNELS, Inducing, Residual, Stored

_ROWS = 512  # rows of V solved together, a multiple of LANES
TILE = 64  # columns of V solved together
_STRIP = 64  # rows of V whose TILE columns fit into the first-level cache
STRETCH = 32  # columns of V that are summed in float32 before the sum is added to those of the others
_EPS = 2.0**-52
_STEP_BITS = 45  # steps are 2^-45 / 2^e for a residual variance in [2^(e - 1), 2^e), e ≤ 1: 64 eps over it or more
_LEAST = 1e-150  # residual variances are at least this: the product of two is then a normal number
_ROUNDINGS = 8  # units of eps that covariances, factors and products are off by: see above
_WEIGHED = 64  # rows whose weights are looked at, twice: the ones of least residual variance, and as many others


class Factors(NamedTuple):
    """The residual process at n points.

    points: float64 (n, d), coordinates over lengthscales. explained: float64 flat (n * width), V by place in the tree that
    they were made for, so that neighbors stand together; zero in the columns from m on. place: int32 (n,), of each point.
    p: float64 (n,), residual variances. steps: float64 (n,), of `steps_of`. code: the kernel, see `kernels`. m: number of
    columns of V. width: m rounded up to a multiple of `simd.COLUMNS`. degenerate: rows whose residual variance is at the
    floor. rounding: error of 1 - |rho| before it is rounded to a step. V and p are in units of the variance.
    """

    points: Any
    explained: Any
    place: Any
    p: Any
    steps: Any
    code: int
    m: int
    width: int
    degenerate: int
    rounding: float


class Panels(NamedTuple):
    """L in panels of TILE rows: see `_in_panels`."""

    below: Any
    diagonal: Any


class Screen(NamedTuple):
    """The factors in float32, laid out for one tree: what rules pairs out.

    blocks: float32 flat (buckets * m * LANES), V by bucket of the tree, then column. roots: float32 (buckets * LANES), square
    roots of the residual variances, rounded down. shape: see `kernels.kernel_shape`. slack: float32, see `make_screen`.
    """

    blocks: Any
    roots: Any
    shape: Any
    slack: Any


def make_factors(
    points: NDArray[np.float64],
    tree: Tree,
    rows: NDArray[np.int64],
    metric: Residual,
    inducing: NDArray[np.float64] | None,
    crew: Crew,
) -> Factors:
    """Return the factors of points as the metric says: computed from inducing points, or its given ones.

    points: (n, d), over the lengthscales. tree: of points. rows: int64 (n,), row of given factors that belongs to each.
    inducing: of `choose_inducing`. Raises InvalidSpec for factors that do not fit, NotPositiveDefinite.
    """
    code = list(KERNELS).index(metric.kernel.name)
    ids = tree.ids[: tree.n]
    lower = None
    if inducing is None:
        assert metric.factors is not None  # noqa: S101  (choose_inducing returns None for no other)
        V, given, root = _given_factors(metric.factors, len(rows), metric.kernel.variance)
        m, width = V.shape[1], _padded(V.shape[1], COLUMNS)
        p = given[rows]
        explained = np.zeros((tree.n, width))

        def lay_out(start: int, stop: int) -> None:
            np.divide(V[rows[ids[start:stop]]], root, out=explained[start:stop, :m])

        crew.run("factors", tree.n, lay_out, grain=_ROWS)
    else:
        m, width = len(inducing), _padded(len(inducing), COLUMNS)
        lower = _factor_of(inducing, code, metric.jitter)
        explained, p = factorize(tree, inducing, code, lower, crew)
    place = np.empty(tree.n, np.int32)
    place[ids] = np.arange(tree.n, dtype=np.int32)
    least = max(metric.floor, _LEAST)
    degenerate = int(np.count_nonzero(p <= least))
    p = np.maximum(p, least)
    rounding = _rounding(explained[:, :m], p[ids], lower)
    return Factors(points, explained.reshape(-1), place, p, steps_of(p), code, m, width, degenerate, rounding)


def steps_of(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what 1 - |rho| is rounded to for pairs whose smaller residual variance is p: powers of two, at most 1."""
    steps: NDArray[np.float64] = np.ldexp(1.0, np.clip(-_STEP_BITS - np.frexp(p)[1], -_STEP_BITS - 1, 0))
    return steps


def tolerance_of(*factors: Factors) -> float:
    """Return the difference beyond which two squared distances are ordered rightly, whatever the pair; at most 1."""
    step, rounding = max(float(f.steps.max()) for f in factors), max(f.rounding for f in factors)
    return min(1.0, step + 2.0 * rounding)


def _rounding(explained: NDArray[np.float64], p: NDArray[np.float64], lower: NDArray[np.float64] | None) -> float:
    """Return how far 1 - |rho| may be off, by the rows of least residual variance and some others.

    explained: V, (n, m), and p, (n,), by place. lower: L, None for given factors, whose weights are not known: there the error
    is that of the products alone.
    """
    n = len(p)
    some = min(_WEIGHED, n)
    looked_at = np.concatenate([np.argpartition(p, some - 1)[:some], np.arange(some) * n // some])
    rows = explained[looked_at]
    if lower is None:
        carried = 1.0 + np.square(rows).sum(axis=1)
    else:
        from scipy.linalg import solve_triangular

        with single_threaded_blas():
            weights = solve_triangular(lower, rows.T, lower=True, trans="T", check_finite=False)
        carried = np.square(1.0 + np.abs(weights).sum(axis=0))
    with np.errstate(over="ignore"):
        return _ROUNDINGS * _EPS * float((carried / p[looked_at]).max())


def make_screen(factors: Factors, tree: Tree, crew: Crew) -> Screen:
    """Return the screen of the first tree.n points, laid out for their own tree.

    Let u = 2^-24 and M = max |V_i|². Rounding V to float32 changes a product by at most
    2 u M (1 + u). Summed in stretches of STRETCH columns whose m / STRETCH sums are then added, it gains at most
    (STRETCH + m / STRETCH) u M more, in any order within a stretch (Higham 2002, section 3.1). The correlation is within
    SINGLE_ERROR, and the difference of the two within u (1 + M). All this is below slack, for m up to 2^20. What is compared
    with it, limit * root_j - |K_j - product_j|, takes factors that are rounded down by more than the comparison's own
    roundings; an overflow makes it no number or -inf, which rules nothing out.
    Rounding 1 - |rho| to a step h lowers it by h / 2 at most, which is h / 2 sqrt(p_i p_j) of |K_j - product_j|. Where h is the
    query's own the limit has it; where it is the point's, 2^-_STEP_BITS / min(p_j, 1) or less, slack has it: p_i ≤ 1 unless
    factors are given, and queries come from outside only where they are not.
    """
    norms = np.einsum("ij,ij->i", *[factors.explained.reshape(-1, factors.width)] * 2)
    unit = 2.0**-24
    slack = (STRETCH + factors.m / STRETCH + 8) * unit * float(norms.max()) + SINGLE_ERROR + 2 * unit
    least, most = float(factors.p.min()), float(factors.p.max())
    slack += 2.0**-_STEP_BITS * max(math.sqrt(max(most, 1.0)) / math.sqrt(least), most)
    blocks = np.empty(len(tree.ids) * factors.m, np.float32)
    roots = np.empty(len(tree.ids), np.float32)
    buckets = len(tree.ids) // LANES
    crew.run("", buckets, lambda a, b: fill_screen(factors, tree.ids, a, b, blocks, roots), grain=8)
    return Screen(blocks, roots, kernel_shape(factors.code), np.float32(slack * (1.0 + 4 * unit)))


def choose_inducing(points: NDArray[np.float64], metric: Residual, crew: Crew) -> NDArray[np.float64] | None:
    """Return the inducing points over the lengthscales, float64 (m, d), or None for a metric with given factors.

    points: (n, d), over the lengthscales. Raises InvalidSpec for given ones that do not fit.
    """
    if metric.factors is not None:
        return None
    return _inducing_points(points, metric, crew)


def _padded(columns: int, step: int) -> int:
    return (columns + step - 1) // step * step


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


def _given_factors(
    factors: tuple[Stored, Stored], n: int, variance: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return given V, p in units of the variance, and the root of the variance, which V is still to be divided by."""
    V, p = _array_of(factors[0], "metric.v"), _array_of(factors[1], "metric.p").reshape(-1)
    if V.ndim != 2 or V.shape[0] != n or V.shape[1] == 0:
        raise InvalidSpec(f"V has shape {V.shape}; expected ({n}, m), a row for every point", "metric.v")
    if len(p) != n:
        raise InvalidSpec(f"p has {len(p)} values for {n} points; give one for each", "metric.p")
    if not (p > 0.0).all():
        row = int(np.argmin(p > 0.0))
        raise InvalidSpec(f"p is {p[row]} at row {row}; residual variances must be positive", "metric.p")
    root = math.sqrt(variance)
    with np.errstate(over="ignore"):
        p, largest = p / variance, max(V.max(), -V.min()) / root
    if not (np.isfinite(largest) and np.isfinite(p).all()):
        raise InvalidSpec(
            f"V and p are of another magnitude than the variance, {variance:g}; give the one that they were computed with",
            "metric.variance",
        )
    return V, p, root


def _array_of(stored: Stored, name: str) -> NDArray[np.float64]:
    if stored.array is None:
        raise InvalidSpec(f"{name} names dataset {stored.id}, whose array is not at hand; pass the array itself", name)
    array: NDArray[np.float64] = np.ascontiguousarray(stored.array, dtype=np.float64)
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise InvalidSpec(f"{name} has a value that is not finite in row {row}", name)
    return array


def _factor_of(inducing: NDArray[np.float64], code: int, jitter: float) -> NDArray[np.float64]:
    """Return L, float64 (m, m), of inducing points, (m, d), over the lengthscales. Raises NotPositiveDefinite."""
    from scipy.linalg import LinAlgError, cholesky  # half a second to load, which other metrics need not wait for

    m = inducing.shape[0]
    gram = np.empty((m, m))
    correlate_rows(inducing, _in_blocks(inducing, _padded(m, TILE)), 0, m, code, gram)
    gram[np.diag_indices(m)] = 1.0 + jitter
    try:
        lower: NDArray[np.float64] = cholesky(gram, lower=True, check_finite=False)
    except LinAlgError as error:
        raise NotPositiveDefinite(
            f"the kernel matrix of the {m} inducing points is not positive definite with jitter {jitter}; use a larger "
            "jitter, fewer inducing points, or remove repeated ones"
        ) from error
    return lower


def factorize(
    tree: Tree, inducing: NDArray[np.float64], code: int, lower: NDArray[np.float64], crew: Crew
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute V, float64 (n, width) by place in the tree, and p, by point and not yet floored.

    tree: of the points, inducing: (m, d), both over the lengthscales. lower: L of `_factor_of`.
    Cost: n m² floating-point operations and n m kernel values; no (n, m) array beside V.
    """
    m = inducing.shape[0]
    below, diagonal = _in_panels(lower, _padded(m, TILE))
    explained = np.empty((tree.n, _padded(m, COLUMNS)))
    p = np.empty(tree.n)
    parts = (tree.n + _ROWS - 1) // _ROWS
    with single_threaded_blas():
        crew.run(
            "factors",
            parts,
            lambda a, b: solve_rows(tree, inducing, code, Panels(below, diagonal), a, b, explained, p),
        )
    return explained, p


def _in_blocks(points: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return points in blocks of 32, dimension by dimension, as buckets are; inf beyond the last, up to `width`."""
    m, d = points.shape
    padded = np.full((width, d), np.inf)
    padded[:m] = points
    return np.ascontiguousarray(padded.reshape(-1, LANES, d).transpose(0, 2, 1)).reshape(-1)


def _in_panels(lower: NDArray[np.float64], width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return L in panels of TILE rows: what is left of their diagonal tiles, flat, and these tiles with 1 / L_ii for L_ii.

    L is continued with ones on the diagonal up to `width`, a multiple of TILE. Tiles: float64 (steps, TILE, TILE).
    """
    padded = np.eye(width)
    padded[: len(lower), : len(lower)] = lower
    starts = range(0, width, TILE)
    left = np.concatenate([padded[start : start + TILE, :start].reshape(-1) for start in starts])
    diagonal = np.stack([padded[start : start + TILE, start : start + TILE] for start in starts])
    inside = np.arange(TILE)
    diagonal[:, inside, inside] = 1.0 / diagonal[:, inside, inside]
    return left, diagonal


@entry
def correlate_rows(rows, coords, first, count, code, out):
    """Write the correlations of rows, float64 (m, d), with `count` points of buckets to out[:m, :count].

    coords: float64 flat, as `Tree.coords`; the points start at place `first`, a multiple of LANES.
    """
    d = rows.shape[1]
    query = np.empty(d * LANES)
    squared = np.empty(LANES)
    values = np.empty(LANES)
    scratch = make_scratch()
    unused = np.zeros(LANES, np.int32)
    for i in range(rows.shape[0]):
        for c in range(d):
            query[c * LANES] = rows[i, c]
        for start in range(0, count, LANES):
            scan_bucket(coords, (first + start) * d, d, query, 0, unused, 0, 0, 0.0, squared)
            correlate(code, squared, scratch, values)
            for j in range(min(LANES, count - start)):
                out[i, start + j] = values[j]


@entry
def solve_rows(tree, inducing, code, panels, first, last, explained, p):
    """Compute V and p (not yet floored) for the places [first, last) * _ROWS of the tree.

    inducing: float64 (m, d). panels: L. explained: float64 (n, width), by place. p: float64 (n,), by point.
    Blocked forward substitution (Golub & Van Loan 2013, section 3.1), also within the diagonal tiles: multiplying by
    their inverses is as fast, but its error grows with their condition, and p, a small difference, lost a digit by it.
    """
    below, diagonal = panels
    m, steps = inducing.shape[0], diagonal.shape[0]
    right = np.zeros((steps * TILE, _ROWS))
    solved = np.empty((steps * TILE, _ROWS))
    product = np.empty((TILE, _ROWS))
    for part in range(first, last):
        start = part * _ROWS
        count = min(tree.n - start, _ROWS)
        correlate_rows(inducing, tree.coords, start, count, code, right)
        at = 0
        for i in range(steps):
            top, bottom = i * TILE, (i + 1) * TILE
            if i > 0:
                panel = below[at : at + TILE * top].reshape(TILE, top)
                at += TILE * top
                np.dot(panel, solved[:top], product)
                for r in range(TILE):
                    for j in range(_ROWS):
                        right[top + r, j] -= product[r, j]
            substitute(diagonal[i], right[top:bottom], solved[top:bottom])
        write_rows_of(solved, tree.ids, start, count, m, explained, p)


@inner
def substitute(tile, right, solved):
    """Solve tile @ solved = right, float64 (TILE, _ROWS), for a lower triangular tile with reciprocals on its diagonal."""
    for left in range(0, _ROWS, _STRIP):
        strip = range(left, left + _STRIP)
        for r in range(TILE):
            for c in strip:
                solved[r, c] = right[r, c]
            whole = r // 4 * 4
            for s in range(0, whole, 4):
                w, x, y, z = tile[r, s], tile[r, s + 1], tile[r, s + 2], tile[r, s + 3]
                for c in strip:
                    solved[r, c] -= (w * solved[s, c] + x * solved[s + 1, c]) + (
                        y * solved[s + 2, c] + z * solved[s + 3, c]
                    )
            for s in range(whole, r):
                for c in strip:
                    solved[r, c] -= tile[r, s] * solved[s, c]
            for c in strip:
                solved[r, c] *= tile[r, r]


@inner
def write_rows_of(solved, ids, start, count, m, explained, p):
    """Write the columns of solved, float64 (m, count), to rows of explained from `start` on, and their p."""
    for place in range(start, start + count):
        p[ids[place]] = 0.0
        for c in range(m, explained.shape[1]):
            explained[place, c] = 0.0
    for column in range(0, m, COLUMNS):
        stop = min(m, column + COLUMNS)
        for place in range(start, start + count):
            total = 0.0
            for c in range(column, stop):
                value = solved[c, place - start]
                explained[place, c] = value
                total += value * value
            p[ids[place]] += total
    for place in range(start, start + count):
        p[ids[place]] = 1.0 - p[ids[place]]


@entry
def fill_screen(factors, ids, first, last, blocks, roots):
    """Write V and the roots of p in float32 for the buckets [first, last) of a tree. ids: int32, point in each place."""
    m = factors.m
    down = 1.0 - 2.0**-22
    for bucket in range(first, last):
        for j in range(LANES):
            index = ids[bucket * LANES + j]
            to = bucket * m * LANES + j
            if index < factors.place.shape[0]:
                source = factors.place[index] * factors.width
                for c in range(m):
                    blocks[to + c * LANES] = factors.explained[source + c]
                roots[bucket * LANES + j] = min(np.sqrt(factors.p[index]) * down, 1e38)
            else:
                for c in range(m):
                    blocks[to + c * LANES] = 0.0
                roots[bucket * LANES + j] = 0.0
