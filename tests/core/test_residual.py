import itertools
from dataclasses import replace

import numpy as np
import pytest

import pcct_core as pc
from pcct_core.build import build_tree
from pcct_core.parallel import Crew
from pcct_core.points import choose_origin
from pcct_core.residual import choose_inducing, make_factors, make_screen, steps_of
from pcct_core.simd import LANES
from pcct_core.spec import KERNELS
from tests import naive


@pytest.fixture(scope="module")
def crew():
    with Crew(2) as crew:
        yield crew


def points(n, d=3, seed=0):
    return np.random.default_rng(seed).random((n, d))


def factors_of(X, metric, crew, rows=None):
    """The factors that a graph of X would use, its rows in the given order."""
    rows = np.arange(len(X)) if rows is None else rows
    scaled = X / np.asarray(metric.kernel.lengthscale)
    tree = build_tree(scaled[rows], crew)
    return make_factors(scaled[rows], tree, rows, metric, choose_inducing(scaled, metric, crew), crew)


def explained(factors):
    """V, (n, m), in the order of the rows."""
    return factors.explained.reshape(-1, factors.width)[factors.place, : factors.m]


def check(factors, X, inducing, metric):
    """The factors are those of NumPy, in units of the variance."""
    kernel = metric.kernel
    V, p = naive.residual_factors(
        X, inducing, kernel.name, np.asarray(kernel.lengthscale), kernel.variance, metric.jitter, metric.floor
    )
    np.testing.assert_allclose(explained(factors), V / np.sqrt(kernel.variance), atol=1e-9)
    np.testing.assert_allclose(factors.p, p / kernel.variance, atol=1e-9)
    assert factors.degenerate == np.count_nonzero(p <= metric.floor * kernel.variance)


class TestFromInducingPoints:
    @pytest.mark.parametrize("kernel", list(KERNELS))
    @pytest.mark.parametrize("m", [1, 63, 64, 65, 100, 200])
    def test_equal_those_of_numpy(self, kernel, m, crew):
        X = points(700)
        metric = pc.Residual(KERNELS[kernel]((0.3, 0.5, 0.2), variance=2.5), inducing=X[:m], jitter=1e-3)
        check(factors_of(X, metric, crew), X, X[:m], metric)

    @pytest.mark.jitless
    @pytest.mark.parametrize(("n", "d", "m"), [(40, 3, 7), (33, 1, 1), (70, 2, 70)])
    def test_small_ones_equal_those_of_numpy(self, n, d, m, crew):
        X = points(n, d)
        metric = pc.Residual(pc.Matern32(0.4), inducing=X[:m], jitter=1e-3)
        check(factors_of(X, metric, crew), X, X[:m], metric)

    @pytest.mark.parametrize("d", [1, 2, 12])
    def test_every_dimension(self, d, crew):
        X = points(300, d)
        metric = pc.Residual(pc.Matern12(0.5), inducing=points(40, d, seed=1), jitter=1e-4)
        check(factors_of(X, metric, crew), X, points(40, d, seed=1), metric)

    def test_every_point_an_inducing_point(self, crew):
        X = points(300)
        metric = pc.Residual(pc.Matern12(0.3), inducing=X, jitter=1e-2)
        factors = factors_of(X, metric, crew)
        check(factors, X, X, metric)
        assert factors.p.max() < 0.011

    def test_rows_stand_in_the_order_asked_for(self, crew):
        X, rows = points(300), np.random.default_rng(1).permutation(300)
        metric = pc.Residual(pc.Matern52(0.3), inducing=X[:50], jitter=1e-3)
        factors = factors_of(X, metric, crew, rows)
        check(factors, X[rows], X[:50], metric)
        np.testing.assert_array_equal(factors.points, (X / 0.3)[rows])

    @pytest.mark.parametrize("variance", [100.0, 1e-165, 1e150, 1e-320])
    def test_the_variance_changes_nothing(self, variance, crew):
        X = points(200)
        one, other = (
            factors_of(X, pc.Residual(pc.Matern52(0.3, value), inducing=X[:50], jitter=0.1), crew)
            for value in (1.0, variance)
        )
        assert one.p.tobytes() == other.p.tobytes()
        assert one.explained.tobytes() == other.explained.tobytes()
        assert one.p[:50].min() > 0.01

    def test_rows_at_the_floor_are_counted_and_raised_to_it(self, crew):
        X = points(400)
        metric = pc.Residual(pc.Matern32(0.5, variance=3.0), inducing=X[:60], jitter=0.0, floor=1e-6)
        factors = factors_of(X, metric, crew)
        assert factors.degenerate == 60
        np.testing.assert_array_equal(np.flatnonzero(factors.p == 1e-6), np.arange(60))
        assert factors.p.min() == 1e-6

    def test_maximin_ones_are_the_first_of_the_order_over_scaled_points(self, crew):
        X, scale = points(300), np.array([0.2, 0.5, 1.0])
        metric = pc.Residual(pc.Matern52(tuple(scale)), inducing=40)
        check(factors_of(X, metric, crew), X, X[naive.maximin(X / scale)[0][:40]], metric)

    def test_threads_do_not_change_a_byte(self, crew):
        X = points(3000)
        metric = pc.Residual(pc.RBF(0.3), inducing=100)
        many = factors_of(X, metric, crew)
        with Crew(1) as alone:
            one = factors_of(X, metric, alone)
        assert one.explained.tobytes() == many.explained.tobytes()
        assert one.p.tobytes() == many.p.tobytes()


@pytest.mark.jitless
@pytest.mark.parametrize("m", [1, 5, 70])
def test_given_factors_are_taken_as_they_are(m, crew):
    rng = np.random.default_rng(m)
    V, p, rows = rng.normal(size=(90, m)), rng.random(90) + 0.1, rng.permutation(90)
    metric = pc.Residual.from_factors(V, p, pc.RBF(0.3))
    factors = factors_of(points(90), metric, crew, rows)
    np.testing.assert_array_equal(explained(factors), V[rows])
    np.testing.assert_array_equal(factors.p, p[rows])
    assert (factors.m, factors.degenerate) == (m, 0)


@pytest.mark.parametrize("variance", [4.0, 1e-165, 1e150])
def test_given_factors_are_taken_in_units_of_the_variance(variance, crew):
    rng = np.random.default_rng(1)
    V, p = rng.normal(size=(90, 5)), rng.random(90) + 0.1
    metric = pc.Residual.from_factors(V * np.sqrt(variance), p * variance, pc.RBF(0.3, variance))
    factors = factors_of(points(90), metric, crew)
    np.testing.assert_allclose(explained(factors), V, rtol=1e-15)
    np.testing.assert_allclose(factors.p, p, rtol=1e-15)


def test_given_factors_of_another_magnitude_than_the_variance_are_refused(crew):
    V, p = np.ones((90, 2)), np.full(90, 1e150)
    with pytest.raises(pc.InvalidSpec, match="another magnitude than the variance, 1e-300; give the one"):
        factors_of(points(90), pc.Residual.from_factors(V, p, pc.RBF(0.3, 1e-300)), crew)


@pytest.mark.jitless
def test_steps_are_powers_of_two_over_the_residual_variance():
    p = np.concatenate([np.random.default_rng(0).random(500) ** 8, 2.0 ** -np.arange(50.0), [1e-9, 1e-14, 1e-150, 3.0]])
    steps = steps_of(p)
    np.testing.assert_array_equal(np.frexp(steps)[0], 0.5)
    np.testing.assert_array_equal(steps, np.diagonal(naive.residual_steps(p)))
    fine = 64 * np.finfo(float).eps / p <= 1
    assert (steps >= 64 * np.finfo(float).eps / np.maximum(p, 1e-14))[fine].all()
    assert (steps < 128 * np.finfo(float).eps / np.minimum(p, 1)).all()
    assert steps.max() == 1.0


@pytest.mark.parametrize("m", [1, 8, 60, 70])
def test_columns_behind_the_last_are_zero(m, crew):
    X = points(300)
    factors = factors_of(X, pc.Residual(pc.Matern52(0.3), inducing=X[:m], jitter=1e-3), crew)
    assert factors.width % 8 == 0
    assert not factors.explained.reshape(-1, factors.width)[:, m:].any()


@pytest.mark.jitless
@pytest.mark.parametrize("first", [1, 31, 33, 90])
def test_make_screen_lays_out_the_first_rows(first, crew):
    X = points(90)
    factors = factors_of(X, pc.Residual(pc.Matern52(0.3), inducing=X[:21], jitter=1e-3), crew)
    tree = build_tree((X / 0.3)[:first], crew)
    screen = make_screen(factors, tree, crew)
    blocks = screen.blocks.reshape(-1, factors.m, LANES)
    for place, index in enumerate(tree.ids):
        column, root = blocks[place // LANES, :, place % LANES], screen.roots[place]
        if index >= first:
            assert not column.any()
            continue
        np.testing.assert_allclose(column, explained(factors)[index], rtol=2e-7, atol=1e-38)
        exact = np.sqrt(factors.p[index])
        assert exact * (1 - 1e-6) < root <= exact


@pytest.mark.parametrize("m", [3, 100, 300])
@pytest.mark.parametrize("kernel", list(KERNELS))
def test_slack_covers_the_difference_of_float32_and_float64(kernel, m, crew):
    rng = np.random.default_rng(m)
    X = points(800)
    factors = factors_of(X, pc.Residual(KERNELS[kernel](0.3), inducing=X[:m], jitter=1e-3), crew)
    tree = build_tree(X / 0.3, crew)
    screen = make_screen(factors, tree, crew)
    V, single = explained(factors), explained(factors).astype(np.float32)
    rows, others = rng.integers(0, len(X), (2, 4000))
    exact = np.einsum("ij,ij->i", V[rows], V[others])
    rounded = np.zeros(len(rows), np.float32)
    for column in range(m):
        rounded += single[rows, column] * single[others, column]
    assert 0 < np.abs(rounded - exact).max() < screen.slack
    assert screen.slack < 2e-5


@pytest.mark.parametrize(
    ("offset", "dtype"), [((500000.0, 4500000.0), np.float32), ((1e9, -1e9), np.float64), ((2.0**50, 0.25), np.float64)]
)
@pytest.mark.parametrize("given", [True, False])
class TestOffsets:
    """Points far from zero have the residual graphs of the same points near it, to the bit, where the offset rounds none."""

    lengthscale = (7.0, 3.0)

    def shifted(self, offset, dtype, given):
        """Return points, inducing points or their number, and both less the offset."""
        rng = np.random.default_rng(5)
        near = rng.permutation(np.array(list(itertools.product(range(24), range(20))), np.float64))
        inducing = near[:25] + 0.5
        far = (near + offset).astype(dtype)
        np.testing.assert_array_equal(far.astype(float) - offset, near)
        return (far, inducing + offset, near, inducing) if given else (far, 25, near, 25)

    @pytest.mark.parametrize(
        "spec",
        [
            pc.GraphSpec("vecchia", 6, pc.Residual("rbf"), order="hilbert", accuracy="exact"),
            pc.GraphSpec("vecchia", 6, pc.Residual("rbf"), accuracy="exact"),
            pc.GraphSpec("knn", 6, pc.Residual("rbf")),
        ],
        ids=["hilbert", "maximin", "knn"],
    )
    def test_graphs(self, spec, offset, dtype, given):
        far, far_inducing, near, inducing = self.shifted(offset, dtype, given)
        one, other = (
            pc.build_graph(X, replace(spec, metric=pc.Residual(pc.Matern52(self.lengthscale), inducing=Z)))
            for X, Z in ((far, far_inducing), (near, inducing))
        )
        for name, array in one.arrays().items():
            np.testing.assert_array_equal(array, other.arrays()[name])

    def test_queries(self, offset, dtype, given):
        far, far_inducing, near, inducing = self.shifted(offset, dtype, given)
        Q = near[::7] + 0.25
        one, other = (
            pc.CoverTree.fit(X, pc.Residual(pc.Matern52(self.lengthscale), inducing=Z)).query(queries, 5)
            for X, Z, queries in ((far, far_inducing, Q + offset), (near, inducing, Q))
        )
        assert one == other


def test_a_column_that_spans_more_digits_than_float64_is_not_moved():
    X = np.array([[1.0, 5.0], [1e-30, 6.0], [-3.0, 7.5]])
    np.testing.assert_array_equal(choose_origin(X), [0.0, 5.0])
    np.testing.assert_array_equal(choose_origin(np.array([[1.7e308], [-1.7e308]])), [0.0])
