"""Fit a Vecchia likelihood in JAX: the neighbors are an argument of the compiled function, and a swap changes the argument.

Nothing calls back from compiled code, and nothing is compiled again, for every version of a graph has the same shape. Neighbors
of a plain Vecchia model are nearest under the distance over the model's lengthscales.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pcct_client import Client, RefreshPolicy

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
X = rng.random((1000, 2))
waves = rng.standard_t(3, size=(2, 200)) * [[8.0], [2.0]]  # a rough field that varies faster along the first axis
y = np.cos(X @ waves + rng.uniform(0, 6.3, 200)).sum(axis=1) / 10 + 0.3 * rng.normal(size=1000)
theta = jnp.log(jnp.array([1.0, 1.0, 1.0, 0.5]))  # variance, two lengthscales, nugget
compiled = []


@jax.jit
@jax.value_and_grad
def minus_log_likelihood(theta, points, values, neighbors):
    """Return it and its gradient; points and values by rank, neighbors as ranks, -1 where there is none."""
    compiled.append(neighbors.shape)  # runs when it is compiled, and not when it is called
    variance, nugget, scaled = jnp.exp(theta[0]), jnp.exp(theta[-1]), points / jnp.exp(theta[1:-1])

    def of_one(row, neighbors):
        ranks, there = jnp.append(neighbors, row), jnp.append(neighbors >= 0, True)
        squared = jnp.square(scaled[ranks][:, None] - scaled[ranks]).sum(-1)
        a = jnp.sqrt(3 * squared + 1e-20)
        covariance = jnp.where(there[:, None] & there, variance * (1 + a) * jnp.exp(-a), 0.0)
        factor = jnp.linalg.cholesky(covariance + jnp.diag(jnp.where(there, nugget, 1.0)))
        z = jax.scipy.linalg.solve_triangular(factor, jnp.where(there, values[ranks], 0.0), lower=True)[-1]
        return jnp.log(factor[-1, -1]) + z**2 / 2 + jnp.log(2 * jnp.pi) / 2

    return jax.vmap(of_one)(jnp.arange(len(points)), neighbors).sum()


momentum, square, first = jnp.zeros(4), jnp.zeros(4), None
with (
    Client("http://127.0.0.1:8000") as client,
    client.track(X, k=12, metric="euclidean", lengthscale=[1.0, 1.0], policy=RefreshPolicy(tolerance=0.1)) as session,
):
    graph = session.graph
    for epoch in range(1, 61):
        value, slope = minus_log_likelihood(theta, X[graph.order], y[graph.order], graph.neighbors)
        first = first or float(value)
        momentum, square = 0.9 * momentum + 0.1 * slope, 0.99 * square + 0.01 * slope**2
        theta -= 0.1 * (momentum / (1 - 0.9**epoch)) / jnp.sqrt(square / (1 - 0.99**epoch))  # Adam
        graph = session.step(lengthscale=np.exp(theta[1:-1]))  # returns at once; a new graph as soon as there is one
    graph = session.sync()
value, _ = minus_log_likelihood(theta, X[graph.order], y[graph.order], graph.neighbors)
print(f"version {graph.version}: minus log-likelihood {first:.1f} -> {value:.1f}, compiled {len(compiled)} time(s)")
