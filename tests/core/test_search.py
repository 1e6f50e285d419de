import numpy as np
import pytest

from pcct_core.build import build_tree
from pcct_core.parallel import Crew
from pcct_core.search import Queries, find_neighbors, find_predecessors, search_tree
from pcct_core.telemetry import Telemetry
from pcct_core.topk import NO_ID
from tests import naive
from tests.core import clouds
from tests.core.judge import same_bytes

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def empty_answer(m, k, dtype):
    return np.full((m, k), -9, np.int32), np.full((m, k), -9, dtype)


def searched(X, Q, k, rows=None, threads=2):
    """Ask a tree of X for the k nearest of rows of Q; rows that are not asked stay -9."""
    rows = np.arange(len(Q)) if rows is None else rows
    limit, itself = np.full(len(Q), NO_ID, np.int32), np.full(len(Q), -1, np.int32)
    neighbors, distances = empty_answer(len(Q), k, X.dtype)
    with Crew(threads) as crew:
        queries = Queries(Q, rows.astype(np.int32), limit, itself)
        search_tree(build_tree(X, crew), queries, k, neighbors, distances, crew)
    return neighbors, distances


@DTYPES
@pytest.mark.parametrize("d", [1, 2, 3, 8])
def test_search_tree_answers_queries_that_are_not_points(d, dtype):
    X, Q = clouds.uniform(700, d).astype(dtype), (clouds.uniform(170, d) * 3 - 1).astype(dtype)
    neighbors, distances = searched(X, Q, 12)
    expected = naive.query(X, Q, 12)
    same_bytes(neighbors, expected[0])
    same_bytes(distances, expected[1])


@DTYPES
def test_search_tree_answers_in_any_order_of_queries(dtype):
    X = clouds.lattice(16, 2).astype(dtype)
    Q = np.random.default_rng(0).integers(-3, 20, (150, 2)).astype(dtype) / 2
    shuffled = np.random.default_rng(1).permutation(150)
    for one, other in zip(searched(X, Q, 9), searched(X, Q, 9, rows=shuffled), strict=True):
        same_bytes(one, other)


def test_search_tree_writes_only_the_rows_that_are_asked():
    X = clouds.uniform(100, 2)
    rows = np.array([5, 77, 3])
    neighbors, _ = searched(X, X, 4, rows=rows)
    assert set(np.flatnonzero((neighbors != -9).any(axis=1))) == set(rows)
    np.testing.assert_array_equal(neighbors[rows, 0], rows)


def test_search_tree_says_where_there_is_no_neighbor():
    neighbors, distances = searched(clouds.uniform(3, 2), clouds.uniform(40, 2), 5)
    assert (neighbors[:, 3:] == -1).all()
    assert np.isinf(distances[:, 3:]).all()
    assert (np.sort(neighbors[:, :3], axis=1) == [0, 1, 2]).all()


def test_search_tree_of_no_query_does_nothing():
    neighbors, _ = searched(clouds.uniform(50, 2), clouds.uniform(10, 2), 3, rows=np.empty(0))
    assert (neighbors == -9).all()


@DTYPES
def test_find_neighbors_leaves_out_the_point_and_keeps_its_duplicates(dtype):
    X = np.repeat(clouds.uniform(60, 2), 3, axis=0).astype(dtype)
    neighbors, distances = empty_answer(180, 2, dtype)
    with Crew(1) as crew:
        find_neighbors(X, 2, neighbors, distances, crew, Telemetry())
    for row in range(180):
        first = row // 3 * 3
        assert neighbors[row].tolist() == [i for i in range(first, first + 3) if i != row]
    assert not distances.any()


@DTYPES
@pytest.mark.parametrize("n", [1, 32, 2047, 2048, 2049, 4097])
def test_find_predecessors_across_the_sizes_where_trees_change(n, dtype):
    X = np.random.default_rng(n).integers(0, 50, (n, 2)).astype(dtype)
    neighbors, distances = empty_answer(n, 6, dtype)
    telemetry = Telemetry()
    with Crew(2) as crew:
        find_predecessors(X, 6, neighbors, distances, crew, telemetry)
    expected = naive.vecchia(X, 6)
    same_bytes(neighbors, expected[0])
    same_bytes(distances, expected[1])
    assert set(telemetry.seconds) == {"tree", "search"}
