from dataclasses import replace

import numpy as np
import pytest

from pcct_core.graph import knn_graph, vecchia_graph
from service.selftest import distances_between, find_faults, residual_distances, run_selftest
from tests import naive


def test_selftest_finds_nothing_wrong_here():
    assert run_selftest() == []


@pytest.mark.parametrize("kind", ["knn", "vecchia"])
def test_find_faults_sees_one_wrong_entry(kind):
    X = np.random.default_rng(1).random((50, 2))
    graph = knn_graph(X, 4) if kind == "knn" else vecchia_graph(X, 4)
    truth = distances_between(X, X)
    assert list(find_faults(graph, truth)) == []
    wrong = graph.neighbors.copy()
    wrong[20, 3] = next(entry for entry in range(20) if entry not in wrong[20])
    assert list(find_faults(replace(graph, neighbors=wrong), truth)) == ["has wrong neighbors in 1 of 50 rows"]
    longer = graph.distances.copy()
    longer[30, 0] *= 1.001
    assert list(find_faults(replace(graph, distances=longer), truth)) == ["has wrong distances in 1 of 50 rows"]


def test_find_faults_sees_an_order_that_is_none():
    X = np.random.default_rng(1).random((50, 2))
    graph = vecchia_graph(X, 4)
    twice = replace(graph, order=np.zeros_like(graph.order))
    assert list(find_faults(twice, distances_between(X, X))) == ["has an order that is no permutation"]


def test_residual_distances_are_those_of_the_oracle():
    X = np.random.default_rng(2).random((60, 3))
    V, p = naive.residual_factors(X, X[:10], "matern52", 0.4)
    expected = naive.residual_distances(X, V, p, "matern52", 0.4)
    found = residual_distances(X[10:], X[:10])
    np.fill_diagonal(found, 0)
    expected = expected[10:, 10:]
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found, expected, atol=1e-9)
