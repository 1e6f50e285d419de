"""Compare a graph with the oracle: indices, and the bits of the distances."""

import numpy as np

from pcct_core.spec import Cosine, Euclidean, Haversine
from tests import naive


def check_graph(graph, X):
    """Assert that the graph of X, a float32 or float64 array, is what brute force finds for the graph's specification."""
    spec = graph.spec
    embedded = expected_embedding(X, spec.metric)
    if spec.kind == "radius":
        check_radius_graph(graph, embedded)
        return
    assert graph.offsets is None
    if spec.kind == "knn":
        assert graph.order is None
        neighbors, distances = naive.knn(embedded, spec.k)
    else:
        check_order(graph.order, X, embedded, spec)
        neighbors, distances = naive.vecchia(embedded[graph.order], spec.k)
    same_bytes(graph.neighbors, neighbors)
    same_bytes(graph.distances, expected_unit(distances, spec.metric))


def check_radius_graph(graph, embedded):
    """Assert that every row lists all points but itself whose finished distance is at most the radius."""
    assert graph.order is None
    every = naive.radius(embedded, embedded, np.inf)
    rows = np.repeat(np.arange(len(embedded)), np.diff(every[0]))
    distances = expected_unit(every[2], graph.spec.metric)
    kept = (distances <= graph.spec.radius) & (every[1] != rows)
    counts = np.bincount(rows[kept], minlength=len(embedded))
    same_bytes(graph.offsets, np.cumsum([0, *counts], dtype=np.int64))
    same_bytes(graph.neighbors, every[1][kept])
    same_bytes(graph.distances, distances[kept])


def check_order(order, X, embedded, spec):
    """Assert that the order is what the specification asks for; a Hilbert order only has to be a permutation."""
    n = len(X)
    assert order.dtype == np.int64
    if spec.order == "hilbert":
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
        return
    expected = {
        "maximin": lambda: naive.maximin(embedded)[0],
        "random": lambda: np.random.default_rng(spec.seed).permutation(n),
        "coordinate": lambda: np.array(sorted(range(n), key=lambda i: (*X[i].tolist(), i))),
        "given": lambda: np.arange(n),
    }
    np.testing.assert_array_equal(order, expected[spec.order]())


def expected_embedding(X, metric):
    if isinstance(metric, Haversine):
        return naive.unit_vectors(X)
    if isinstance(metric, Cosine):
        return naive.unit_rows(X)
    assert isinstance(metric, Euclidean)
    return X if metric.lengthscale is None else naive.scaled(X, metric.lengthscale)


def expected_unit(distances, metric):
    if isinstance(metric, Haversine):
        return naive.chord_km(distances)
    return naive.chord_cosine(distances) if isinstance(metric, Cosine) else distances


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
