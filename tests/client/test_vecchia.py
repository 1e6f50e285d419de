"""The demo's likelihood is that of the dense Gaussian process where every row has all before it, and its gradient the slope."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve

from tests import naive

THETA = np.log([1.3, 0.3, 0.5, 0.2, 0.1])  # variance, lengthscales, nugget
N = 60


@pytest.fixture
def vecchia(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs/demo"))
    return importlib.import_module("vecchia")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    points, values = rng.random((N, 3)), rng.normal(size=N)
    points[40] = points[7]  # twice the same place
    return points, values


def everything(k=N - 1):
    """Each row's nearest k in rank, as a graph states them."""
    return np.array([[row - 1 - j if j < row else -1 for j in range(k)] for row in range(N)], np.int32)


def dense(points, values, kernel):
    scale, variance, nugget = np.exp(THETA[1:-1]), np.exp(THETA[0]), np.exp(THETA[-1])
    covariance = variance * naive.covariance(points, points, kernel, scale) + nugget * np.eye(len(points))
    factor = cho_factor(covariance)
    halves = values @ cho_solve(factor, values) + 2 * np.log(np.diag(factor[0])).sum() + len(points) * np.log(2 * np.pi)
    return halves / 2


@pytest.mark.parametrize("inducing", [0, 1, 7])
@pytest.mark.parametrize("kernel", ["matern32", "matern52"])
def test_minus_log_likelihood_is_the_dense_one_under_full_conditioning(vecchia, data, kernel, inducing):
    value, _ = vecchia.minus_log_likelihood(THETA, *data, everything(), kernel, inducing)
    assert value == pytest.approx(dense(*data, kernel), rel=1e-12)


def test_minus_log_likelihood_is_that_of_independent_blocks_without_neighbors(vecchia, data):
    value, _ = vecchia.minus_log_likelihood(THETA, *data, np.full((N, 2), -1, np.int32))
    alone = [dense(data[0][i : i + 1], data[1][i : i + 1], "matern52") for i in range(N)]
    assert value == pytest.approx(sum(alone), rel=1e-12)


def test_inducing_points_stand_in_for_neighbors(vecchia, data):
    """A row conditioned on the inducing points, and on them once more as neighbors, is the same row."""
    none = np.full((N, 5), -1, np.int32)
    same = np.where(np.arange(N)[:, None] > np.arange(5), np.arange(5), -1).astype(np.int32)
    alone, gradient = vecchia.minus_log_likelihood(THETA, *data, none, inducing=5)
    twice, slopes = vecchia.minus_log_likelihood(THETA, *data, same, inducing=5)
    plain, _ = vecchia.minus_log_likelihood(THETA, *data, same)
    assert alone == twice == pytest.approx(plain, rel=1e-12)
    np.testing.assert_array_equal(gradient, slopes)


@pytest.mark.parametrize("inducing", [0, 1, 7])
@pytest.mark.parametrize("kernel", ["matern32", "matern52"])
@pytest.mark.parametrize("k", [1, 6, N - 1])
def test_gradient_is_the_slope(vecchia, data, kernel, inducing, k):
    def value(theta):
        return vecchia.minus_log_likelihood(theta, *data, everything(k), kernel, inducing)[0]

    _, gradient = vecchia.minus_log_likelihood(THETA, *data, everything(k), kernel, inducing)
    slopes = [(value(THETA + step) - value(THETA - step)) / 2e-5 for step in 1e-5 * np.eye(len(THETA))]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-6)


def test_one_dimension_and_one_neighbor(vecchia):
    points, values = np.linspace(0, 1, 9)[:, None], np.sin(np.arange(9.0))
    neighbors = np.arange(-1, 8, dtype=np.int32)[:, None]
    value, gradient = vecchia.minus_log_likelihood(np.log([1.0, 0.3, 0.1]), points, values, neighbors)
    assert np.isfinite(value)
    assert gradient.shape == (3,)


@pytest.mark.parametrize("inducing", [0, 45])
def test_a_covariance_without_factor_is_said(vecchia, data, inducing):
    theta = THETA.copy()
    theta[-1] = -800.0
    with pytest.raises(FloatingPointError, match=r"no Cholesky factor at nugget 0 .* keep the nugget above"):
        vecchia.minus_log_likelihood(theta, *data, everything(), "matern52", inducing)
