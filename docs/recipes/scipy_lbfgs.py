"""Fit a Vecchia likelihood by SciPy's L-BFGS-B, under a graph that follows the hyperparameters.

SciPy cannot be told that its objective has changed. So a swap ends its run, and the next begins where it ended, with objective
and gradient under the new graph. `vecchia` is docs/demo/vecchia.py: put it beside this file. docs/demo/fit.py does more: it
carries over what L-BFGS has learned, and asks for the last graph early, so that `sync` finds it there.
"""

import numpy as np
from scipy.optimize import minimize
from vecchia import minus_log_likelihood

from pcct_client import Client, RefreshPolicy

rng = np.random.default_rng(0)
X = rng.random((1000, 2))
waves = rng.standard_t(3, size=(2, 200)) * [[8.0], [2.0]]  # a rough field that varies faster along the first axis
y = np.cos(X @ waves + rng.uniform(0, 6.3, 200)).sum(axis=1) / 10 + 0.3 * rng.normal(size=1000)
theta = np.log([1.0, 1.0, 1.0, 0.5])  # variance, two lengthscales, nugget
policy = RefreshPolicy(tolerance=0.1, max_epochs=20, cooldown_epochs=5)


def drift(theta, graph):
    """Return how far the lengthscales have moved from those of the graph."""
    return np.abs(theta[1:-1] - np.log(graph.spec["metric"]["lengthscale"])).max()


def after_iteration(intermediate_result):
    """Ask for a graph of the newest lengthscales; end the run when a new one is there."""
    if session.step(lengthscale=np.exp(intermediate_result.x[1:-1])) is not graph:
        raise StopIteration


with (
    Client("http://127.0.0.1:8000") as client,
    client.track(X, k=20, kernel="matern32", lengthscale=np.exp(theta[1:-1]), inducing=32, policy=policy) as session,
):
    graph, first = None, None
    while graph is not session.graph:
        graph = session.graph
        args = (X[graph.order], y[graph.order], graph.neighbors, "matern32", 32)
        first = first or minus_log_likelihood(theta, *args)[0]
        found = minimize(minus_log_likelihood, theta, args, "L-BFGS-B", jac=True, callback=after_iteration)
        theta = found.x
        if session.graph is graph and drift(theta, graph) > policy.tolerance:
            session.sync()  # it converged, but on neighbors of other lengthscales
print(
    f"version {graph.version}: minus log-likelihood {first:.1f} -> {found.fun:.1f}, parameters {np.exp(theta).round(3)}"
)
