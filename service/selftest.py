"""Small graphs against brute force in NumPy, as a process of its own: `pcct doctor` starts it and survives what it does.

It prints one line of JSON, {"seconds", "faults"}; whatever keeps the core from loading ends it with a traceback.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pcct_core.graph import Graph

_K = 8
_POINTS, _RESIDUAL_POINTS, _INDUCING = 1500, 400, 24  # a tree of several buckets; a residual scan of all pairs
_TOLERANCE = 1e-9  # the core sums in another order than NumPy does
_LENGTHSCALE, _JITTER = 0.4, 1e-6


def run_selftest() -> list[str]:
    """Return what is wrong with a k-NN, a Vecchia and a residual graph, one line each; nothing when all is well."""
    from pcct_core.graph import build_graph
    from pcct_core.spec import GraphSpec, Matern52, Residual, stored_array

    X = np.random.default_rng(0).random((_POINTS, 3))
    inducing = X[:_INDUCING].copy()
    metric = Residual(Matern52(_LENGTHSCALE), stored_array(inducing, "metric.inducing"), jitter=_JITTER)
    graphs = {
        "k-NN": (build_graph(X, GraphSpec("knn", _K)), distances_between(X, X)),
        "Vecchia": (build_graph(X, GraphSpec("vecchia", _K, order="maximin")), distances_between(X, X)),
        "residual": (
            build_graph(X[:_RESIDUAL_POINTS], GraphSpec("vecchia", _K, metric, "given", accuracy="exact")),
            residual_distances(X[:_RESIDUAL_POINTS], inducing),
        ),
    }
    return [
        f"the {name} graph {fault}" for name, (graph, truth) in graphs.items() for fault in find_faults(graph, truth)
    ]


def find_faults(graph: Graph, truth: NDArray[np.float64]) -> Iterator[str]:
    """Yield how a graph differs from truth (n, n), all distances between the points in the order of the dataset."""
    n, k = graph.neighbors.shape
    if graph.order is not None:
        if not np.array_equal(np.sort(graph.order), np.arange(n)):
            yield "has an order that is no permutation"
            return
        truth = truth[np.ix_(graph.order, graph.order)]
    allowed = np.tri(n, k=-1, dtype=bool) if graph.order is not None else ~np.eye(n, dtype=bool)
    truth = np.where(allowed, truth, np.inf)
    expected = np.sort(np.partition(truth, k - 1, axis=1)[:, :k], axis=1)
    named = np.take_along_axis(truth, np.maximum(graph.neighbors, 0), axis=1)
    named[graph.neighbors < 0] = np.inf
    tolerance = graph.certificate.tolerance  # of squares, under the residual metric
    power, most = (1, _TOLERANCE) if tolerance is None else (2, tolerance)
    for what, found in (("distances", graph.distances), ("neighbors", named)):
        near = np.isclose(found**power, expected**power, rtol=0.0, atol=most)
        wrong = int(np.count_nonzero(~near.all(axis=1)))
        if wrong:
            yield f"has wrong {what} in {wrong} of {n} rows"


def distances_between(X: NDArray[np.float64], Z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Euclidean distances of all rows of X (n, d) to all of Z (m, d), (n, m)."""
    total = np.zeros((len(X), len(Z)))
    for c in range(X.shape[1]):
        total += (X[:, None, c] - Z[None, :, c]) ** 2
    root: NDArray[np.float64] = np.sqrt(total)
    return root


def residual_distances(X: NDArray[np.float64], inducing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sqrt(1 - |rho|) between all rows of X (n, d), (n, n): see `pcct_core.residual`."""
    lower = np.linalg.cholesky(_matern52(inducing, inducing) + _JITTER * np.eye(len(inducing)))
    explained = np.linalg.solve(lower, _matern52(inducing, X))
    left = _matern52(X, X) - explained.T @ explained
    deviation = np.sqrt(np.diag(left))
    rho = left / np.outer(deviation, deviation)
    root: NDArray[np.float64] = np.sqrt(np.maximum(0.0, 1.0 - np.abs(rho)))
    return root


def _matern52(X: NDArray[np.float64], Z: NDArray[np.float64]) -> NDArray[np.float64]:
    a = np.sqrt(5.0) * distances_between(X, Z) / _LENGTHSCALE
    covariance: NDArray[np.float64] = (1.0 + a + a * a / 3.0) * np.exp(-a)
    return covariance


if __name__ == "__main__":
    started = time.perf_counter()
    faults = run_selftest()
    print(json.dumps({"seconds": round(time.perf_counter() - started, 2), "faults": faults}))
