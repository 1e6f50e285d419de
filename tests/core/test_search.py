import numpy as np
import pytest

from pcct_core.build import build_tree
from pcct_core.dense import scan_points
from pcct_core.parallel import Crew
from pcct_core.search import Queries, search_tree
from pcct_core.topk import NO_ID
from tests import naive
from tests.core import clouds
from tests.core.judge import same_bytes

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(params=[search_tree, scan_points], ids=["tree", "dense"])
def searched(request):
    """A function that asks a tree of X for the k nearest of rows of Q; rows that are not asked stay -9."""

    def search(X, Q, k, rows=None, limit=None, itself=None):
        rows = np.arange(len(Q)) if rows is None else rows
        limit = np.full(len(Q), NO_ID) if limit is None else limit
        itself = np.full(len(Q), -1) if itself is None else itself
        neighbors, distances = np.full((len(Q), k), -9, np.int32), np.full((len(Q), k), -9, X.dtype)
        with Crew(2) as crew:
            queries = Queries(Q, *(each.astype(np.int32) for each in (rows, limit, itself)))
            request.param(build_tree(X, crew), queries, k, neighbors, distances, crew)
        return neighbors, distances

    return search


CLOUDS = list(clouds.cases())


@pytest.mark.parametrize(("name", "X"), CLOUDS, ids=[name for name, _ in CLOUDS])
class TestEveryCloud:
    def test_search_leaves_out_the_point_itself(self, name, X, searched):
        same_answer(searched(X, X, 10, itself=np.arange(len(X))), naive.knn(X, 10))

    def test_search_takes_only_indices_below_the_limit(self, name, X, searched):
        same_answer(searched(X, X, 10, limit=np.arange(len(X))), naive.vecchia(X, 10))


def same_answer(found, expected):
    for one, other in zip(found, expected, strict=True):
        same_bytes(one, other)


@pytest.mark.jitless
@DTYPES
@pytest.mark.parametrize("d", [1, 2, 3, 8, 40])
def test_search_answers_queries_that_are_not_points(d, dtype, searched):
    X, Q = clouds.uniform(700, d).astype(dtype), (clouds.uniform(170, d) * 3 - 1).astype(dtype)
    same_answer(searched(X, Q, 12), naive.query(X, Q, 12))


@pytest.mark.jitless
@DTYPES
def test_search_answers_in_any_order_of_queries(dtype, searched):
    X = clouds.lattice(16, 2).astype(dtype)
    Q = np.random.default_rng(0).integers(-3, 20, (150, 2)).astype(dtype) / 2
    shuffled = np.random.default_rng(1).permutation(150)
    same_answer(searched(X, Q, 9), searched(X, Q, 9, rows=shuffled))


def test_search_writes_only_the_rows_that_are_asked(searched):
    X = clouds.uniform(100, 2)
    rows = np.array([5, 77, 3])
    neighbors, _ = searched(X, X, 4, rows=rows)
    assert set(np.flatnonzero((neighbors != -9).any(axis=1))) == set(rows)
    np.testing.assert_array_equal(neighbors[rows, 0], rows)


@pytest.mark.jitless
def test_search_says_where_there_is_no_neighbor(searched):
    neighbors, distances = searched(clouds.uniform(3, 2), clouds.uniform(40, 2), 5)
    assert (neighbors[:, 3:] == -1).all()
    assert np.isinf(distances[:, 3:]).all()
    assert (np.sort(neighbors[:, :3], axis=1) == [0, 1, 2]).all()


def test_search_of_no_query_does_nothing(searched):
    neighbors, _ = searched(clouds.uniform(50, 2), clouds.uniform(10, 2), 3, rows=np.empty(0))
    assert (neighbors == -9).all()
