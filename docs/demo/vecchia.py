"""Vecchia approximations of a Gaussian process: minus the log-likelihood and its gradient, on one thread. Yours to copy.

The process: y ~ N(0, K), K[s, t] = variance * matern(|x_s - x_t|) + nugget * (s == t), distances over one lengthscale per
dimension. Vecchia: each y depends on its neighbors alone among the ranks before it. With m inducing points, which are the
first m ranks, each y depends on these as well, so that neighbors are best chosen by residual correlation.

What the inducing points u explain is split off once: K_uu = L L', V' = L⁻¹ K_uX, z_u = L⁻¹ y_u. What remains has covariance
K - V V' and values y - V z_u. For one row let C be that covariance among its neighbors and itself, last, r their values,
C = F F', and u = F⁻ᵀ e_last, z = F⁻¹ r, a = F⁻ᵀ z, ζ = z_last. The row adds log F_last + ½ ζ² + ½ log 2π, whose
derivative by any parameter is u' dC w + ζ u' dr with w = ½ (1 + ζ²) u - ζ a: one factor, three substitutions, no inverse.
Sources: Vecchia 1988; Katzfuss & Guinness 2021, section 3 (conditioning on common points); the gradient's form is ours.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

_HALF_LOG_2PI = 0.5 * np.log(2.0 * np.pi)
_KERNEL = {"cache": True, "nogil": True, "error_model": "numpy"}
# Sums may be reordered, which lets them use vector instructions; infinities and NaN keep their meaning.
_SUMS = {**_KERNEL, "fastmath": {"reassoc", "contract", "nsz"}}


def minus_log_likelihood(
    theta: NDArray[np.float64],
    points: NDArray[np.float64],
    values: NDArray[np.float64],
    neighbors: NDArray[np.int32],
    kernel: str = "matern52",
    inducing: int = 0,
) -> tuple[float, NDArray[np.float64]]:
    """Return minus the log-likelihood and its gradient by theta.

    theta: float64 (2 + d,), the logarithms of the variance, of the d lengthscales, of the nugget.
    points: (n, d) and values: (n,), both in rank order: points[graph.order], values[graph.order].
    neighbors: int32 (n, k), ranks below the row's own, then -1: `graph.neighbors` of a Vecchia graph.
    kernel: "matern32" or "matern52". inducing: m; the first m ranks are the inducing points when both are by maximin.
    Raises FloatingPointError where a covariance has no factor. Costs n (k³ / 6 + k² m / 2 + m²) multiplications.
    """
    n, m, rough = len(points), inducing, kernel == "matern32"
    variance, nugget = np.exp(theta[0]), np.exp(theta[-1])
    scaled = np.ascontiguousarray(points / np.exp(theta[1:-1]))
    gradient = np.zeros(len(theta))
    V, z = np.zeros((n, m)), np.zeros(m)
    try:
        if m:
            gram = _correlate(scaled[:m], scaled[:m], rough) * variance
            factor = cholesky(gram + nugget * np.eye(m), lower=True)
            V = np.ascontiguousarray(_whiten(factor, _correlate(scaled[:m], scaled, rough)).T) * variance
            z = _whiten(factor, values[:m])
        V_bar, r_bar = np.zeros((n, m)), np.zeros(n)
        total = _sum_rows(scaled, values - V @ z, V, neighbors, variance, nugget, rough, gradient, V_bar, r_bar)
    except LinAlgError:
        total = np.nan
    if not np.isfinite(total):
        raise FloatingPointError(
            f"a covariance has no Cholesky factor at nugget {nugget:g} and variance {variance:g}; keep the nugget above a "
            "millionth of the variance"
        )
    if m:
        total += np.log(np.diag(factor)).sum() + 0.5 * z @ z + m * _HALF_LOG_2PI
        # Backwards through V' = L⁻¹ K_uX and z_u = L⁻¹ y_u, with dL = L Φ(L⁻¹ dK_uu L⁻ᵀ).
        V_bar -= np.outer(r_bar, z)
        inner = V_bar.T @ V + np.outer(z - V.T @ r_bar, z)
        halved = 0.5 * np.eye(m) - np.tril(inner) + 0.5 * np.diag(np.diag(inner))
        gram_bar = _whiten(factor, _whiten(factor, halved.T, "T").T, "T")
        gradient[-1] += nugget * np.trace(gram_bar)
        _add_by_covariance(scaled[:m], scaled[:m], gram_bar, variance, rough, gradient)
        _add_by_covariance(scaled[:m], scaled, _whiten(factor, V_bar.T, "T"), variance, rough, gradient)
    return float(total), gradient


def _whiten(factor: NDArray[np.float64], right: NDArray[np.float64], side: str = "N") -> NDArray[np.float64]:
    """Return L⁻¹ right, or L⁻ᵀ right where side is "T"."""
    solved: NDArray[np.float64] = solve_triangular(factor, right, lower=True, trans=side, check_finite=False)
    return solved


@njit(**_KERNEL)
def _matern(squared, rough):
    """Return the correlation at a squared distance r², and -matern'(r) / r. rough: Matérn 3/2, else 5/2."""
    a = np.sqrt((3.0 if rough else 5.0) * squared)
    decay = np.exp(-a)
    if rough:
        return (1.0 + a) * decay, 3.0 * decay
    return (1.0 + a + a * a / 3.0) * decay, 5.0 / 3.0 * (1.0 + a) * decay


@njit(**_KERNEL)
def _squared(left, s, right, t):
    """Return the squared distance of left[s] and right[t]."""
    total = 0.0
    for c in range(left.shape[1]):
        total += (left[s, c] - right[t, c]) ** 2
    return total


@njit(**_SUMS)
def _dot(left, right, m):
    """Return the product of two vectors over their first m."""
    total = 0.0
    for s in range(m):
        total += left[s] * right[s]
    return total


@njit(**_KERNEL)
def _correlate(left, right, rough):
    """Return the correlations of all pairs, float64 (len(left), len(right))."""
    out = np.empty((len(left), len(right)))
    for s in range(len(left)):
        for t in range(len(right)):
            out[s, t] = _matern(_squared(left, s, right, t), rough)[0]
    return out


@njit(**_KERNEL)
def _add_by_covariance(left, right, bar, variance, rough, gradient):
    """Add <bar, d covariance(left, right)> for the logarithms of the variance and of each lengthscale."""
    for s in range(len(left)):
        for t in range(len(right)):
            correlation, slope = _matern(_squared(left, s, right, t), rough)
            gradient[0] += bar[s, t] * variance * correlation
            for c in range(left.shape[1]):
                gradient[1 + c] += bar[s, t] * variance * slope * (left[s, c] - right[t, c]) ** 2


@njit(**_KERNEL)
def _sum_rows(points, r, V, neighbors, variance, nugget, rough, gradient, V_bar, r_bar):
    """Return the sum over all rows but the inducing ones; adds its derivatives to gradient, V_bar (n, m) and r_bar (n)."""
    n, d = points.shape
    m = V.shape[1]
    size = neighbors.shape[1] + 1
    ranks, near, explained = np.empty(size, np.int64), np.empty((size, d)), np.empty((size, m))
    factor, slopes = np.empty((size, size)), np.empty((size, size))
    z, u, w = np.empty(size), np.empty(size), np.empty(size)
    by_u, by_w = np.empty(m), np.empty(m)
    total = 0.0
    for row in range(m, n):
        q = _gather(row, neighbors[row], m, ranks)
        for s in range(q):
            near[s], explained[s], z[s] = points[ranks[s]], V[ranks[s]], r[ranks[s]]
        _covary(near, explained, q, variance, nugget, rough, factor, slopes)
        _factorize(factor, q)
        zeta = _solve(factor, z, q, u, w)
        last = factor[q - 1, q - 1]
        total += np.log(last) + 0.5 * zeta * zeta + _HALF_LOG_2PI
        _explain(explained, u, w, q, by_u, by_w)
        by_nugget = nugget * _dot(u, w, q)
        gradient[0] += last * w[q - 1] - by_nugget + _dot(by_u, by_w, m)  # u' C w = F_last w_last
        gradient[1 + d] += by_nugget
        _add_by_lengthscale(near, slopes, u, w, q, variance, gradient)
        for s in range(q):
            r_bar[ranks[s]] += zeta * u[s]
            _subtract(V_bar[ranks[s]], u[s], by_w, w[s], by_u)
    return total


@njit(**_KERNEL)
def _gather(row, neighbors, m, ranks):
    """Write the neighbors of a row that are no inducing points, then the row itself, to ranks; return how many."""
    q = 0
    for rank in neighbors:
        if rank >= m:
            ranks[q] = rank
            q += 1
    ranks[q] = row
    return q + 1


@njit(**_KERNEL)
def _covary(near, explained, q, variance, nugget, rough, covariance, slopes):
    """Write the lower triangles of C and of the kernel's slopes, both float64 (q, q) at the front."""
    for s in range(q):
        for t in range(s):
            correlation, slopes[s, t] = _matern(_squared(near, s, near, t), rough)
            covariance[s, t] = variance * correlation - _dot(explained[s], explained[t], explained.shape[1])
        covariance[s, s] = variance + nugget - _dot(explained[s], explained[s], explained.shape[1])


@njit(**_KERNEL)
def _factorize(matrix, q):
    """Replace the lower triangle of a matrix by its Cholesky factor; NaN where there is none."""
    for s in range(q):
        for t in range(s):
            matrix[s, t] = (matrix[s, t] - _dot(matrix[s], matrix[t], t)) / matrix[t, t]
        matrix[s, s] = np.sqrt(matrix[s, s] - _dot(matrix[s], matrix[s], s))


@njit(**_SUMS)
def _solve(factor, z, q, u, w):
    """Replace r, in z, by z; write u and w of the module's docstring, float64 (q,); return ζ."""
    for s in range(q):
        z[s] = (z[s] - _dot(factor[s], z, s)) / factor[s, s]
    zeta = z[q - 1]
    u[: q - 1] = 0.0
    u[q - 1] = 1.0
    w[:q] = z[:q]
    for s in range(q - 1, -1, -1):  # by columns of F', which are rows of F and lie in one piece
        u[s] /= factor[s, s]
        w[s] /= factor[s, s]
        for c in range(s):
            u[c] -= factor[s, c] * u[s]
            w[c] -= factor[s, c] * w[s]
    for s in range(q):
        w[s] = 0.5 * (1.0 + zeta * zeta) * u[s] - zeta * w[s]
    return zeta


@njit(**_SUMS)
def _explain(explained, u, w, q, by_u, by_w):
    """Write V' u and V' w, float64 (m,) each, over the q rows of V at hand."""
    by_u[:] = 0.0
    by_w[:] = 0.0
    for s in range(q):
        for c in range(len(by_u)):
            by_u[c] += explained[s, c] * u[s]
            by_w[c] += explained[s, c] * w[s]


@njit(**_SUMS)
def _subtract(out, one, first, other, second):
    """Take one * first + other * second from out; float64 (m,)."""
    for c in range(len(out)):
        out[c] -= one * first[c] + other * second[c]


@njit(**_SUMS)
def _add_by_lengthscale(near, slopes, u, w, q, variance, gradient):
    """Add u' dK w for the logarithm of each lengthscale to gradient[1:-1], K the kernel alone."""
    for s in range(q):
        for t in range(s):
            weight = variance * slopes[s, t] * (u[s] * w[t] + u[t] * w[s])
            for c in range(near.shape[1]):
                gradient[1 + c] += weight * (near[s, c] - near[t, c]) ** 2
