"""What neighbors by residual correlation are worth to a VIF model, in nats of KL divergence from the exact process.

`python -m tests.core.test_usefulness` prints the table of docs/CORE_IMPLEMENTATIONS.md.
"""

from typing import NamedTuple

import numpy as np
import pytest
from scipy.linalg import cholesky, solve_triangular

import pcct_core as pc
from pcct_core.spec import KERNELS
from tests import naive

NEIGHBORS, NUGGET = 10, 0.02


class Case(NamedTuple):
    """A kernel of variance 1 over uniform points, and how many inducing points its model has."""

    kernel: str
    lengthscale: tuple[float, ...]
    inducing: int = 32


class Worth(NamedTuple):
    """Divergences by the metric that chose the neighbors; unexplained: median of what inducing points leave of the variance."""

    unexplained: float
    plain: float
    scaled: float
    residual: float


LONG = (Case("matern32", (0.5, 1.0, 2.5, 5.0)), Case("matern52", (0.5, 1.0, 2.0, 3.5, 5.0)))
SHORT = (Case("matern32", (0.2, 0.4, 0.9, 2.0)), Case("matern52", (0.2, 0.4, 0.8, 1.4, 2.0)))
ISOTROPIC = (Case("matern52", (0.3, 0.3)), Case("rbf", (0.3, 0.3)))


def worth(case, n, seed):
    """Return how far the VIF model is from the exact process with the same nugget.

    The model: the low-rank part of the inducing points plus a Vecchia approximation, in random order, of the residual process
    with the nugget.
    """
    X = np.random.default_rng(seed).random((n, len(case.lengthscale)))
    scale, inducing = np.array(case.lengthscale), X[: case.inducing]
    metrics = {
        "plain": pc.Euclidean(),
        "scaled": pc.Euclidean(case.lengthscale),
        "residual": pc.Residual(KERNELS[case.kernel](case.lengthscale), inducing=inducing),
    }
    graphs = {
        name: pc.vecchia_graph(X, NEIGHBORS, "random", metric, accuracy="exact") for name, metric in metrics.items()
    }
    X = X[graphs["plain"].order]
    V, p = naive.residual_factors(X, inducing, case.kernel, scale)
    exact, explained = naive.covariance(X, X, case.kernel, scale) + NUGGET * np.eye(n), V @ V.T
    found = {
        name: divergence(exact, explained + vecchia(exact - explained, graph.neighbors))
        for name, graph in graphs.items()
    }
    return Worth(float(np.median(p)), **found)


def vecchia(covariance, neighbors):
    """The covariance matrix of the Vecchia approximation in which each row depends on its neighbors alone."""
    n = len(covariance)
    rows = np.eye(n)  # D^(-1/2) (I - A), whose crossproduct is the precision
    for i in range(n):
        near = neighbors[i][neighbors[i] >= 0]
        weights = np.linalg.solve(covariance[np.ix_(near, near)], covariance[near, i])
        rows[i, near] = -weights
        rows[i] /= np.sqrt(covariance[i, i] - covariance[i, near] @ weights)
    inverse = solve_triangular(rows, np.eye(n), lower=True)
    return inverse @ inverse.T


def divergence(exact, model):
    """KL divergence of N(0, exact) from N(0, model): ½ (tr(model⁻¹ exact) - n + log det model - log det exact)."""
    outer, inner = cholesky(model, lower=True), cholesky(exact, lower=True)
    ratio = solve_triangular(outer, inner, lower=True)
    logs = np.log(np.diag(outer)).sum() - np.log(np.diag(inner)).sum()
    return float((np.square(ratio).sum() - len(exact)) / 2 + logs)


def test_divergence_and_vecchia_agree_with_what_is_known():
    X = np.random.default_rng(0).random((40, 2))
    exact = naive.covariance(X, X, "matern32", 0.5) + NUGGET * np.eye(40)
    everything = np.array([[j if j < i else -1 for j in range(39)] for i in range(40)])
    np.testing.assert_allclose(vecchia(exact, everything), exact, atol=1e-10)
    np.testing.assert_allclose(vecchia(exact, np.full((40, 1), -1)), np.diag(np.diag(exact)))
    assert divergence(exact, exact) == pytest.approx(0.0, abs=1e-9)
    assert divergence(np.eye(3), 2 * np.eye(3)) == pytest.approx(3 * (0.5 - 1 + np.log(2)) / 2)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.kernel)
def test_residual_neighbors_are_the_better_ones_where_inducing_points_explain_much(case, seed):
    found = worth(case, 600, seed)
    assert found.unexplained < 0.05
    assert found.residual < 0.9 * found.scaled
    assert found.scaled < 0.9 * found.plain


@pytest.mark.parametrize("case", ISOTROPIC, ids=lambda case: case.kernel)
def test_little_is_gained_or_lost_with_one_lengthscale_in_two_dimensions(case):
    found = worth(case, 600, 0)
    assert found.scaled == found.plain
    assert found.residual == pytest.approx(found.plain, rel=0.1)


def print_table(n=1200, seeds=(0, 1, 2)):
    """Print the table, means over the seeds."""
    print("| kernel, lengthscales | inducing points | left unexplained | plain | scaled | residual |")
    print("|---|---|---|---|---|---|")
    few = (*LONG, *SHORT, *ISOTROPIC)
    for case in (*few, *(case._replace(inducing=100) for case in few)):
        mean = Worth(*np.mean([worth(case, n, seed) for seed in seeds], axis=0))
        scales = ", ".join(f"{scale:g}" for scale in case.lengthscale)
        print(
            f"| {case.kernel}, {scales} | {case.inducing} | {100 * mean.unexplained:.1f} % "
            f"| {mean.plain:.1f} | {mean.scaled:.1f} | {mean.residual:.1f} |"
        )


if __name__ == "__main__":
    print_table()
