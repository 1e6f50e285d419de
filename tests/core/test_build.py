import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.build import DEPTH, build_tree, select_ids, select_rows
from pcct_core.parallel import Crew
from pcct_core.simd import LANES
from pcct_core.topk import NO_ID
from tests.core import clouds
from tests.core.judge import same_bytes

CLOUDS = list(clouds.cases())
ARRAYS = ("coords", "ids", "low", "high", "skip", "bucket", "lowest")


def built(X, threads=1):
    with Crew(threads) as crew:
        return build_tree(X, crew)


def places_of(tree, node):
    """Return the places, bucket by bucket, of the points below a node."""
    first = tree.bucket[node]
    last = first + (tree.skip[node] - node + 1) // 2
    places = np.arange(first * LANES, last * LANES)
    return places[tree.ids[places] != NO_ID]


def children_of(tree, node):
    """Return the two children of a node, or nothing for a leaf."""
    return () if tree.skip[node] == node + 1 else (node + 1, tree.skip[node + 1])


def check_tree(tree, X):
    """Assert everything that the tree promises about the points X, (n, d)."""
    check_places(tree, X)
    check_nodes(tree)
    check_boxes(tree, X)


def check_places(tree, X):
    """Every point is stored once, with its coordinates; every bucket but the last is full."""
    n, d = X.shape
    assert (tree.n, tree.d) == (n, d)
    np.testing.assert_array_equal(np.sort(tree.ids[:n]), np.arange(n))
    assert (tree.ids[n:] == NO_ID).all()
    assert len(tree.ids) - n < LANES
    coords = tree.coords.reshape(-1, d, LANES).transpose(0, 2, 1).reshape(-1, d)
    same_bytes(np.ascontiguousarray(coords[:n]), X[tree.ids[:n]])
    assert np.isinf(coords[n:]).all()


def check_nodes(tree):
    """Nodes stand in preorder; the children of a node split its nodes, buckets and places; leaves are buckets."""
    nodes = len(tree.skip)
    assert (tree.skip[0], tree.bucket[0]) == (nodes, 0)
    depth = np.zeros(nodes, int)
    for node in range(nodes):
        assert node < tree.skip[node] <= nodes
        if not children_of(tree, node):
            assert len(places_of(tree, node)) <= LANES
            continue
        left, right = children_of(tree, node)
        assert tree.skip[right] == tree.skip[node]
        parts = np.concatenate([places_of(tree, left), places_of(tree, right)])
        np.testing.assert_array_equal(parts, places_of(tree, node))
        depth[[left, right]] = depth[node] + 1
    assert depth.max() < DEPTH


def check_boxes(tree, X):
    """Boxes are tight, so nested; siblings share no more than a face; each node knows the lowest index below it."""
    low, high = tree.low.reshape(-1, tree.d), tree.high.reshape(-1, tree.d)
    for node in range(len(tree.skip)):
        ids = tree.ids[places_of(tree, node)]
        np.testing.assert_array_equal(low[node], X[ids].min(axis=0))
        np.testing.assert_array_equal(high[node], X[ids].max(axis=0))
        assert tree.lowest[node] == ids.min()
        if not children_of(tree, node):
            continue
        left, right = children_of(tree, node)
        for child in (left, right):
            assert (low[node] <= low[child]).all()
            assert (high[child] <= high[node]).all()
            assert tree.lowest[node] <= tree.lowest[child]
        if (low[node] < high[node]).any():
            assert (high[left] <= low[right]).any()
        else:
            assert tree.ids[places_of(tree, left)].max() < tree.ids[places_of(tree, right)].min()


@pytest.mark.parametrize(("name", "X"), CLOUDS, ids=[name for name, _ in CLOUDS])
def test_build_tree_keeps_its_promises_on_every_cloud(name, X):
    check_tree(built(X), X)


@pytest.mark.jitless
@given(
    n=st.integers(1, 700),
    d=st.integers(1, 5),
    kind=st.sampled_from(["uniform", "clustered", "duplicates", "lattice", "equal"]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)
def test_build_tree_keeps_its_promises(n, d, kind, dtype, seed):
    rng = np.random.default_rng(seed)
    X = {
        "uniform": lambda: rng.random((n, d)),
        "clustered": lambda: rng.integers(0, 4, (n, 1)) * 10 + rng.normal(0, 1e-4, (n, d)),
        "duplicates": lambda: rng.random((n // 7 + 1, d))[rng.integers(0, n // 7 + 1, n)],
        "lattice": lambda: rng.integers(0, 5, (n, d)),
        "equal": lambda: np.full((n, d), -1.5),
    }[kind]().astype(dtype)
    tree = built(X)
    check_tree(tree, X)
    same_trees(built(X, threads=2), tree)


def same_trees(one, other):
    for name in ARRAYS:
        same_bytes(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [2, 3])
def test_build_tree_makes_the_same_bytes_with_any_number_of_threads(threads, dtype):
    for X in (clouds.uniform(20_000, 3), clouds.clustered(20_011, 2), np.zeros((5000, 2))):
        same_trees(built(X.astype(dtype), threads), built(X.astype(dtype)))


def test_build_tree_leaves_its_points_alone():
    X = clouds.uniform(1000, 3)
    before = X.copy()
    built(X)
    same_bytes(X, before)


@pytest.mark.jitless
@given(st.lists(st.integers(0, 9), min_size=2, max_size=200), st.data())
def test_select_rows_splits_at_the_middle(values, data):
    work = np.column_stack([np.arange(len(values)), values]).astype(np.float64)
    ids = np.arange(len(values), dtype=np.int32)
    start = data.draw(st.integers(0, len(values) - 2))
    stop = data.draw(st.integers(start + 2, len(values)))
    middle = data.draw(st.integers(start + 1, stop - 1))
    before = work.copy()
    select_rows(work, ids, start, stop, middle, 1)
    assert work[start:middle, 1].max() <= work[middle:stop, 1].min()
    np.testing.assert_array_equal(work, before[ids])
    np.testing.assert_array_equal(np.sort(ids[start:stop]), np.arange(start, stop))


@pytest.mark.jitless
@given(st.permutations(range(90)), st.integers(1, 89))
def test_select_ids_splits_at_the_middle(values, middle):
    ids = np.array(values, np.int32)
    select_ids(ids, 0, len(ids), middle)
    np.testing.assert_array_equal(np.sort(ids[:middle]), np.arange(middle))
    np.testing.assert_array_equal(np.sort(ids[middle:]), np.arange(middle, 90))


@pytest.mark.parametrize("levels", [1, 2, 3, 20])
@pytest.mark.parametrize("n", [1, 31, 33, 257, 2000])
def test_build_tree_by_index_cuts_its_first_levels_in_the_order_of_the_points(n, levels):
    X = np.random.default_rng(n).random((n, 2))
    with Crew(2) as crew:
        tree = build_tree(X, crew, by_index=levels)
    check_places(tree, X)
    check_nodes(tree)
    parts = [0]
    for _ in range(levels):
        parts = [child for node in parts for child in children_of(tree, node) or (node,)]
    ids = [np.sort(tree.ids[places_of(tree, node)]) for node in parts]
    np.testing.assert_array_equal(np.concatenate(ids), np.arange(n))
