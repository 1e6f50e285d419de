"""Compare a graph with the oracle: indices, and the bits of the distances."""

import numpy as np

from pcct_core.spec import Cosine, Euclidean, Haversine
from tests import naive


def check_graph(graph, X, groups=None):
    """Assert that the graph of X, a float32 or float64 array, is what brute force finds for the graph's specification.

    groups: (n,), the group of each point, None for one of all.
    """
    groups = np.zeros(len(X)) if groups is None else groups
    spec = graph.spec
    points, block, finish = naive_metric(X, spec.metric)
    if spec.kind == "radius":
        check_radius_graph(graph, points, block, finish, groups)
        return
    assert graph.offsets is None
    if spec.kind == "knn":
        assert graph.order is None
        neighbors, keys = naive.knn(points, spec.k, block, groups)
    else:
        check_order(graph.order, X, spec)
        neighbors, keys = naive.vecchia(points[graph.order], spec.k, block, groups[graph.order])
    same_bytes(graph.neighbors, neighbors)
    same_bytes(graph.distances, finish(keys))


def check_radius_graph(graph, points, block, finish, groups):
    """Assert that every row lists all points of its group but itself whose finished distance is at most the radius."""
    assert graph.order is None
    every = naive.radius(points, points, np.inf, block)
    rows = np.repeat(np.arange(len(points)), np.diff(every[0]))
    distances = finish(every[2])
    kept = (
        (distances <= distances.dtype.type(graph.spec.radius)) & (every[1] != rows) & (groups[every[1]] == groups[rows])
    )
    counts = np.bincount(rows[kept], minlength=len(points))
    same_bytes(graph.offsets, np.cumsum([0, *counts], dtype=np.int64))
    same_bytes(graph.neighbors, every[1][kept])
    same_bytes(graph.distances, distances[kept])


def check_order(order, X, spec):
    """Assert that the order is what the specification asks for; a Hilbert order only has to be a permutation."""
    n = len(X)
    assert order.dtype == np.int64
    if spec.order == "hilbert":
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
        return
    expected = {
        "maximin": lambda: expected_maximin(X, spec.metric),
        "random": lambda: np.random.default_rng(spec.seed).permutation(n),
        "coordinate": lambda: np.array(sorted(range(n), key=lambda i: (*X[i].tolist(), i))),
        "given": lambda: np.arange(n),
    }
    np.testing.assert_array_equal(order, expected[spec.order]())


def expected_maximin(X, metric):
    """Return the maximin order of the coordinates that the metric is searched in."""
    if isinstance(metric, Haversine):
        return naive.maximin(naive.unit_vectors(X))[0]
    if isinstance(metric, Cosine):
        return naive.maximin(naive.unit_rows(X))[0]
    return naive.maximin(X, weights=naive.euclidean_weights(X, metric.lengthscale or 1.0)[0])[0]


def naive_metric(X, metric):
    """Return the points, the block of `naive` and the function of its distances that stand for the metric."""
    if isinstance(metric, Haversine):
        return naive.unit_vectors(X), naive.sphere_block, naive.sphere_km
    if isinstance(metric, Cosine):
        return X, naive.cosine_block, lambda distances: distances.astype(X.dtype)
    assert isinstance(metric, Euclidean)
    weights, finish = naive.euclidean_weights(X, metric.lengthscale or 1.0)
    return X, naive.weighted_block(weights), finish


def same_bytes(found, expected):
    """Assert equal type, shape and values, bit for bit."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert found.tobytes() == expected.tobytes()


def same_graphs(one, other):
    """Assert that two graphs have the same arrays, bit for bit."""
    assert one.arrays().keys() == other.arrays().keys()
    for name, array in one.arrays().items():
        same_bytes(other.arrays()[name], array)
