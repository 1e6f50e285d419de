import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.order import hilbert_order, maximin_order, order_points
from pcct_core.parallel import Crew
from tests import naive
from tests.core import clouds
from tests.core.judge import same_bytes

CLOUDS = list(clouds.cases())


@pytest.mark.parametrize(("name", "X"), CLOUDS, ids=[name for name, _ in CLOUDS])
class TestEveryCloud:
    def test_maximin_order_equals_brute_force(self, name, X):
        check_maximin(X)

    def test_hilbert_order_is_a_permutation(self, name, X):
        check_permutation(hilbert(X), len(X))


def check_maximin(X):
    with Crew(1) as crew:
        order, distances = maximin_order(X, crew)
    expected_order, expected_distances = naive.maximin(X)
    same_bytes(order, expected_order)
    same_bytes(distances, expected_distances)


def check_permutation(order, n):
    same_bytes(np.sort(order), np.arange(n, dtype=np.int64))


def hilbert(X, threads=1):
    with Crew(threads) as crew:
        return hilbert_order(X, crew)


@pytest.mark.jitless
@given(st.integers(1, 150), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_maximin_order_of_integers_equals_brute_force(n, d, side, seed):
    check_maximin(np.random.default_rng(seed).integers(-side, side, (n, d)).astype(np.float32))


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 3000])
def test_maximin_order_of_any_number_of_points_equals_brute_force(n):
    check_maximin(clouds.uniform(n, 2))


def test_maximin_order_distances_never_rise():
    with Crew(1) as crew:
        order, distances = maximin_order(clouds.clustered(2000, 3), crew)
    check_permutation(order, 2000)
    assert (np.diff(distances) <= 0).all()


@pytest.mark.jitless
@pytest.mark.parametrize(("bits", "d"), [(1, 2), (2, 2), (5, 2), (1, 3), (3, 3), (2, 4), (1, 6), (8, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hilbert_order_walks_a_full_grid_in_unit_steps(bits, d, dtype):
    X = clouds.lattice(2**bits, d).astype(dtype)
    for moved in (X, X * 3 + 17, X / 64 - 5):
        order = hilbert(moved)
        check_permutation(order, len(X))
        steps = np.abs(np.diff(X[order], axis=0))
        np.testing.assert_array_equal(steps.sum(axis=1), 1)


@pytest.mark.jitless
@pytest.mark.parametrize("d", [1, 2, 7, 15, 16, 31, 63, 64, 70, 200])
def test_hilbert_order_takes_any_number_of_dimensions(d):
    X = clouds.uniform(300, d)
    order = hilbert(X)
    check_permutation(order, 300)
    same_bytes(hilbert(X, threads=3), order)
    shuffled = np.random.default_rng(d).permutation(300)
    np.testing.assert_array_equal(shuffled[hilbert(X[shuffled])], order)


def test_hilbert_order_keeps_cells_together():
    # On the curve of a 2-d grid, each quarter of the square is one stretch, and so is each of its quarters.
    X = clouds.uniform(4096, 2)
    X[:2] = [[0.0, 0.0], [1.0, 1.0]]
    ordered = X[hilbert(X)]
    for parts in (2, 4, 8):
        cells = np.minimum((ordered * parts).astype(int), parts - 1) @ [parts, 1]
        assert np.count_nonzero(np.diff(cells)) == parts * parts - 1


def test_hilbert_order_of_one_dimension_is_sorting():
    X = clouds.uniform(500, 1)
    np.testing.assert_array_equal(hilbert(X), np.argsort(X[:, 0], kind="stable"))


def test_hilbert_order_of_equal_points_is_that_of_their_indices():
    for d in (1, 2, 70):
        np.testing.assert_array_equal(hilbert(np.full((100, d), 7.0)), np.arange(100))
    halves = np.repeat([[0.0, 0.0], [1.0, 1.0]], 40, axis=0)
    np.testing.assert_array_equal(hilbert(halves), np.arange(80))


@pytest.mark.parametrize("side", [5e-324, 1e-310, 1e-300, 1e-160, 1e300])
def test_hilbert_order_follows_the_line_at_any_scale(side):
    X = np.arange(50.0)[::-1, None] * side
    np.testing.assert_array_equal(hilbert(X), np.arange(50)[::-1])


def ordered(X, order, seed=0):
    with Crew(1) as crew:
        return order_points(X, X, order, seed, crew)


def test_order_points_coordinate_is_lexicographic_with_ties_by_index():
    X = clouds.half_duplicates(100, 3).round(1)
    expected = sorted(range(100), key=lambda i: (*X[i].tolist(), i))
    same_bytes(ordered(X, "coordinate"), np.array(expected, np.int64))


@given(st.integers(0, 2**63 - 1), st.integers(1, 100))
def test_order_points_random_is_the_permutation_of_numpy(seed, n):
    expected = np.random.default_rng(seed).permutation(n).astype(np.int64)
    same_bytes(ordered(np.zeros((n, 1)), "random", seed), expected)


def test_order_points_given_is_the_rows_as_they_come():
    same_bytes(ordered(clouds.uniform(20, 2), "given"), np.arange(20))


def test_order_points_sorts_by_the_points_as_given_and_measures_the_embedded_ones():
    X = clouds.uniform(64, 2)
    embedded = X * [1.0, 1e-3]
    with Crew(1) as crew:
        by_coordinate = order_points(X, embedded, "coordinate", 0, crew)
        by_distance = order_points(X, embedded, "maximin", 0, crew)
    same_bytes(by_coordinate, np.argsort(X[:, 0]))
    same_bytes(by_distance, naive.maximin(embedded)[0])


def test_lattice_is_full():
    assert {tuple(point) for point in clouds.lattice(3, 2)} == set(itertools.product(range(3), repeat=2))
