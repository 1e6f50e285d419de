"""Fit a Vecchia likelihood by PyTorch's LBFGS and autograd (1.13 or newer), under a graph that follows the lengthscales.

Neighbors of a plain Vecchia model are nearest under the distance over its lengthscales. A swap makes a new optimizer, for the
old one remembers gradients of another objective.
"""

import numpy as np
import torch

from pcct_client import Client, RefreshPolicy

rng = np.random.default_rng(0)
X = rng.random((1000, 2))
waves = rng.standard_t(3, size=(2, 200)) * [[8.0], [2.0]]  # a rough field that varies faster along the first axis
y = np.cos(X @ waves + rng.uniform(0, 6.3, 200)).sum(axis=1) / 10 + 0.3 * rng.normal(size=1000)
theta = torch.log(torch.tensor([1.0, 1.0, 1.0, 0.5], dtype=torch.float64)).requires_grad_()
policy = RefreshPolicy(tolerance=0.1, max_epochs=20, cooldown_epochs=3)


def lengthscale():
    """Return the lengthscales as they are now."""
    return np.from_dlpack(theta[1:-1].detach().exp())


def minus_log_likelihood(graph):
    """Return it for theta as it is now, all rows in one batch."""
    neighbors = graph.to_torch().neighbors  # ranks, -1 where a row has fewer
    sets = torch.cat([neighbors, torch.arange(len(X))[:, None]], dim=1)  # the row itself comes last
    there, points, values = sets >= 0, torch.from_dlpack(X[graph.order]), torch.from_dlpack(y[graph.order])
    near = (points / theta[1:-1].exp())[sets]
    a = ((near[:, :, None] - near[:, None]).square().sum(-1) * 3 + 1e-20).sqrt()
    covariance = (theta[0].exp() * (1 + a) * (-a).exp()).masked_fill(~(there[:, :, None] & there[:, None]), 0.0)
    nugget = theta[3].exp().expand(sets.shape).masked_fill(~there, 1.0)
    factor = torch.linalg.cholesky(covariance + torch.diag_embed(nugget))
    z = torch.linalg.solve_triangular(factor, values[sets].masked_fill(~there, 0.0)[:, :, None], upper=False)[:, -1, 0]
    return (factor[:, -1, -1].log() + z.square() / 2).sum() + len(X) * np.log(2 * np.pi) / 2


def closure():
    """Return the objective and leave its gradient in theta."""
    optimizer.zero_grad()
    loss = minus_log_likelihood(graph)
    loss.backward()
    return loss


with (
    Client("http://127.0.0.1:8000") as client,
    client.track(X, k=12, metric="euclidean", lengthscale=lengthscale(), policy=policy) as session,
):
    graph, losses = None, []
    for _ in range(40):
        if graph is not session.graph:
            graph = session.graph
            optimizer = torch.optim.LBFGS([theta], max_iter=4, line_search_fn="strong_wolfe")
        losses.append(optimizer.step(closure).item())  # before the step
        session.step(lengthscale=lengthscale())  # returns at once; session.graph is new as soon as there is one
    graph = session.sync()  # the graph for exactly these lengthscales
    losses.append(minus_log_likelihood(graph).item())
print(f"version {graph.version}: minus log-likelihood {losses[0]:.1f} -> {losses[-1]:.1f}, {lengthscale().round(3)}")
