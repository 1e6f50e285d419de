"""Feed the variational nearest-neighbor GP (Wu et al. 2022) of GPyTorch 1.13 or newer with our index instead of its search.

The strategy wants int64 (n - k, k): of each point from the k-th on, its k nearest predecessors. So a Vecchia graph has them.
"""

import gpytorch
import numpy as np
import torch
from gpytorch import distributions, kernels, likelihoods, means, variational

from pcct_client import Client

rng, k, client = np.random.default_rng(0), 16, Client("http://127.0.0.1:8000")
X, places = rng.random((800, 2)), rng.random((200, 2))
waves, phases = rng.standard_t(3, size=(2, 200)) * [[8.0], [2.0]], rng.uniform(0, 6.3, 200)
y, truth = (np.cos(at @ waves + phases).sum(axis=1) / 10 for at in (X, places))
if tuple(map(int, gpytorch.__version__.split(".")[:2])) < (1, 13):
    raise SystemExit(f"this needs GPyTorch 1.13 or newer, not {gpytorch.__version__}: pip install -U gpytorch")
graph = client.vecchia(X, k=k)
X, y = X[graph.order], torch.from_numpy(y[graph.order] + 0.3 * rng.normal(size=800))  # from here on a row is a rank


class ServiceIndex(torch.nn.Module):
    """What finds neighbors among X."""

    def find_nn_idx(self, x, k=k):
        """Return the k nearest rows of X for every row of x."""
        return client.query(X, x.double().numpy(), k).to_torch().neighbors


class Strategy(variational.NNVariationalStrategy):
    """The strategy of Wu et al. with neighbors from the service."""

    def _compute_nn(self):
        self.nn_util, self.nn_xinduce_idx = ServiceIndex(), graph.to_torch().neighbors[k:]


class Model(gpytorch.models.ApproximateGP):
    """A Matérn 3/2 process with all points as inducing points."""

    def __init__(self):
        super().__init__(Strategy(self, torch.from_numpy(X), variational.MeanFieldVariationalDistribution(len(X)), k))
        self.covar_module = kernels.ScaleKernel(kernels.MaternKernel(nu=1.5, ard_num_dims=2))

    def forward(self, x):
        """Return the prior at x."""
        return distributions.MultivariateNormal(means.ZeroMean()(x), self.covar_module(x))


model, losses = Model().double(), []
elbo = gpytorch.mlls.VariationalELBO(likelihoods.GaussianLikelihood().double(), model, len(X))
optimizer = torch.optim.Adam(elbo.parameters(), lr=0.05)
for _ in range(150):
    optimizer.zero_grad()
    losses.append(-elbo(model(None), y))
    losses[-1].backward()
    optimizer.step()
predicted = model.eval()(torch.from_numpy(places)).mean.detach().numpy()
error, by_mean = (np.sqrt(np.mean((guess - truth) ** 2)) for guess in (predicted, y.numpy().mean()))
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; error {error:.3f}, by the mean alone {by_mean:.3f}")
