"""What a graph under the residual metric should have found: its recall in some rows, by brute force in NumPy float64.

Independent of the certificate: other rows, formulas of tests/naive.py from the inducing points on, nothing of ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.spec import GraphSpec, Inducing, Residual
from tests import naive

ROWS = 200
SEED = 20252
BLOCK = 16_384  # points whose factors are held at once
TIE = 1e-7  # what rounding in float64 leaves open of a distance


class Recall(NamedTuple):
    """Share of true neighbors found in the compared rows (mean over rows), how many are missing, and the number of rows."""

    recall: float
    missed: int
    rows: int


class _Process(NamedTuple):
    """The residual process: inducing points, kernel by name, and its numbers."""

    inducing: NDArray[np.float64]
    kernel: str
    lengthscale: Any
    variance: float
    jitter: float
    floor: float


def measure_recall(
    points: NDArray[Any], spec: GraphSpec, order: NDArray[np.int64] | None, neighbors: NDArray[np.int32]
) -> Recall:
    """Compare some rows of a graph with the truth.

    order, neighbors: of the graph of `points`. A neighbor that is no more than TIE nearer than the farthest one found is a
    tie and not missed.
    """
    n, k = neighbors.shape
    X = points.astype(np.float64) if order is None else points[order].astype(np.float64)
    rows = np.random.default_rng(SEED).choice(n, min(n, ROWS), replace=False)
    distances = true_distances(X, find_process(points, spec), rows)
    missed = np.zeros(len(rows))
    losses = np.zeros(len(rows))
    for i, row in enumerate(rows):
        allowed = np.arange(n) != row if order is None else np.arange(n) < row
        wanted = min(k, int(np.count_nonzero(allowed)))
        if wanted == 0:
            continue
        masked = np.where(allowed, distances[i], np.inf)
        true = np.argsort(masked, kind="stable")[:wanted]
        found = neighbors[row][neighbors[row] >= 0]
        farthest = masked[found].max() if len(found) == wanted else np.inf
        missed[i] = np.count_nonzero(~np.isin(true[masked[true] < farthest - TIE], found))
        losses[i] = missed[i] / wanted
    return Recall(float(1.0 - losses.mean()), int(missed.sum()), len(rows))


def find_process(points: NDArray[Any], spec: GraphSpec) -> _Process:
    """Return the residual process that spec describes on the points; its inducing points by the naive maximin order."""
    metric = spec.metric
    if not isinstance(metric, Residual) or not isinstance(metric.inducing, Inducing):
        raise TypeError("only residual metrics that count their inducing points are benchmarked")
    if metric.inducing.method != "maximin":
        raise TypeError("inducing points of the benchmark are the first of the maximin order")
    kernel = metric.kernel
    scaled = naive.scaled(points.astype(np.float64), kernel.lengthscale)
    chosen = naive.maximin(scaled, metric.inducing.count)[0]
    return _Process(
        points[chosen].astype(np.float64), kernel.name, kernel.lengthscale, kernel.variance, metric.jitter, metric.floor
    )


def true_distances(X: NDArray[np.float64], process: _Process, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sqrt(1 - |rho|) from the given rows of X to every row, float64 (rows, n)."""
    V, p = _factors(X[rows], process)
    distances = np.empty((len(rows), len(X)))
    for start in range(0, len(X), BLOCK):
        block = X[start : start + BLOCK]
        V_block, p_block = _factors(block, process)
        covariance = naive.covariance(X[rows], block, process.kernel, process.lengthscale, process.variance)
        rho = (covariance - V @ V_block.T) / np.sqrt(np.outer(p, p_block))
        distances[:, start : start + BLOCK] = np.sqrt(np.maximum(0.0, 1.0 - np.abs(rho)))
    return distances


def _factors(X: NDArray[np.float64], process: _Process) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    inducing, kernel, *numbers = process
    V, p = naive.residual_factors(X, inducing, kernel, *numbers)
    return V, p
