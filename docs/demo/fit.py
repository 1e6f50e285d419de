"""Fits a Vecchia Gaussian process with SciPy's L-BFGS-B while its neighbors follow the hyperparameters.

SciPy cannot be told that its objective has changed. So each graph gets a run of its own: the callback that sees a new graph
ends the run, and the next one begins at the same hyperparameters by computing objective and gradient under the new graph. As
long as the graph stays, L-BFGS keeps its memory; what it has learned of the curvature goes on as a change of variables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.optimize import LbfgsInvHessProduct, OptimizeResult, minimize
from threadpoolctl import threadpool_limits
from vecchia import minus_log_likelihood

from pcct_client import Client, Graph, Session

# Decreases of the objective per point, which is near 1.
PRECISION = 1e-7  # by one iteration: L-BFGS has converged
ENOUGH = 5e-4  # since hyperparameters were told: new ones are worth a graph
CLOSE = 3e-4  # by one iteration: the end is near, and its graph should be under way
ROUNDS = 5  # most times that a fit which has converged goes on under a newer graph
MEMORY = 10  # pairs of steps and gradients that a new run goes by
REACH = 1e3  # bounds of the changed variables; finite ones make L-BFGS-B try the whole quasi-Newton step first


class Model(NamedTuple):
    """What is fitted. points: float64 (n, d). values: float64 (n,). kernel: a Matérn's name. inducing: how many points."""

    points: NDArray[np.float64]
    values: NDArray[np.float64]
    kernel: str
    inducing: int


class Neighbors(Protocol):
    """Where graphs come from; graph: the one to begin with. Both calls return the one to go on with."""

    graph: Graph

    def step(self, lengthscale: NDArray[np.float64], close: bool) -> Graph:
        """Called after every iteration. close: the end is near."""

    def settle(self, lengthscale: NDArray[np.float64]) -> Graph:
        """Called before convergence is accepted: the graph must be for these lengthscales."""


class Fixed:
    """The first graph, for good."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def step(self, lengthscale: NDArray[np.float64], close: bool) -> Graph:
        """Return the one graph."""
        return self.graph

    def settle(self, lengthscale: NDArray[np.float64]) -> Graph:
        """Return the one graph."""
        return self.graph


class Inline:
    """The graph of every iteration's lengthscales, waited for."""

    def __init__(self, client: Client, graph: Graph) -> None:
        self.client, self.graph = client, graph

    def step(self, lengthscale: NDArray[np.float64], close: bool) -> Graph:
        """Return the graph for these lengthscales."""
        return self.settle(lengthscale)

    def settle(self, lengthscale: NDArray[np.float64]) -> Graph:
        """Return the graph for these lengthscales."""
        spec = self.graph.spec
        if spec["metric"]["lengthscale"] != lengthscale.tolist():
            metric = {**spec["metric"], "lengthscale": lengthscale}
            self.graph = self.client.graph(self.graph.dataset, {**spec, "metric": metric})
        return self.graph


class Tracked:
    """The newest graph that a session has; nothing is waited for until the fit has converged.

    The variance is not handed over: it scales all covariances alike and moves no neighbor.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.graph = session, session.graph

    def step(self, lengthscale: NDArray[np.float64], close: bool) -> Graph:
        """Leave the lengthscales, and return the newest graph at once."""
        return self.session.step(lengthscale=lengthscale, force=close)

    def settle(self, lengthscale: NDArray[np.float64]) -> Graph:
        """Wait for the graph of these lengthscales unless it is here."""
        self.session.step(lengthscale=lengthscale)
        return self.session.sync()


class Block(NamedTuple):
    """A stretch of time, in seconds since the fit began. kind: "objective" or "waiting"."""

    kind: str
    start_s: float
    stop_s: float


class Swap(NamedTuple):
    """A graph was taken up, at_s since the fit began. version: of its track, if it has one. built_s: its build took so long."""

    at_s: float
    version: int | None
    built_s: float


@dataclass
class Fit:
    """What a fit gives, and how its time is spent.

    theta: float64 (2 + d,), as in `vecchia`. log_likelihood: of theta, under the last graph. epochs: iterations of L-BFGS.
    began: time.time() at the start. seconds: wall time.
    """

    theta: NDArray[np.float64]
    log_likelihood: float = -np.inf
    epochs: int = 0
    seconds: float = 0.0
    blocks: list[Block] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    began: float = field(default_factory=time.time)
    _zero: float = field(default_factory=time.perf_counter)

    def now_s(self) -> float:
        """Return the seconds since the fit began."""
        return time.perf_counter() - self._zero

    def spent_s(self, kind: str) -> float:
        """Return the seconds spent in all blocks of a kind."""
        return sum(block.stop_s - block.start_s for block in self.blocks if block.kind == kind)

    def count(self, kind: str) -> int:
        """Return the number of blocks of a kind."""
        return sum(block.kind == kind for block in self.blocks)

    @contextmanager
    def block(self, kind: str) -> Iterator[None]:
        """Keep how long the body takes."""
        start_s = self.now_s()
        yield
        self.blocks.append(Block(kind, start_s, self.now_s()))


def fit(
    model: Model, theta: NDArray[np.float64], neighbors: Neighbors, tell: Callable[[str], None] = lambda news: None
) -> Fit:
    """Maximise the likelihood from theta: the logarithms of variance, lengthscales and nugget.

    tell: called after every iteration with a few words.
    """
    with threadpool_limits(1):  # the objective is one thread, so that a graph can be built beside it
        return _Search(model, theta, neighbors, tell).run()


class _Search:
    """One fit under way.

    basis: (p, p); L-BFGS moves theta along its columns. steps, changes: (pairs, p), what is remembered of the curvature:
    steps of theta and how the gradient changed by them, oldest first. told: the lengthscales that neighbors are wanted for.
    gained: decrease of the objective since they were, summed over graphs.
    """

    def __init__(
        self, model: Model, theta: NDArray[np.float64], neighbors: Neighbors, tell: Callable[[str], None]
    ) -> None:
        self.model, self.neighbors, self.graph, self.tell = model, neighbors, neighbors.graph, tell
        self.theta, self.basis = theta, np.eye(len(theta))
        self.steps = self.changes = np.empty((0, len(theta)))
        self.told, self.gained = np.exp(theta[1:-1]), 0.0
        self.found = Fit(theta)

    def run(self) -> Fit:
        """Go from graph to graph until the fit has converged on the one for where it is."""
        rounds = 0
        while True:
            newest = self._minimize()
            if newest is None:
                rounds += 1
                with self.found.block("waiting"):
                    newest = self.neighbors.settle(self.told)
                if newest.id == self.graph.id or rounds > ROUNDS:
                    break
            self.graph, self.basis = newest, _curvature(self.steps, self.changes)
            built_s = sum(newest.telemetry.get("seconds", {}).values())
            self.found.swaps.append(Swap(self.found.now_s(), newest.version, built_s))
        self.found.theta, self.found.seconds = self.theta, self.found.now_s()
        return self.found

    def _minimize(self) -> Graph | None:
        """Go on under the present graph; returns the graph that ended this, or None on convergence."""
        start, basis, newest = self.theta, self.basis, self.graph
        surface = _Surface(self.model, self.graph, self.found)
        met: list[_Point] = []  # since and with the last iterate, in the order of evaluation

        def objective(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            met.append(surface.at(start + basis @ z))
            return met[-1].value, basis.T @ met[-1].gradient

        def after_iteration(intermediate_result: OptimizeResult) -> None:
            nonlocal newest
            newest = self._step(met[0], met[-1])  # a line search ends with the point that it takes
            del met[:-1]
            if newest.id != self.graph.id:
                raise StopIteration

        result = minimize(
            objective,
            np.zeros(len(start)),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-REACH, REACH)] * len(start),
            callback=after_iteration,
            options={"ftol": PRECISION, "gtol": 1e-5},
        )
        self.found.log_likelihood = -len(self.model.values) * float(result.fun)
        return None if newest.id == self.graph.id else newest

    def _step(self, before: _Point, here: _Point) -> Graph:
        """Take in an iteration of L-BFGS; returns the graph to go on with."""
        self.found.epochs += 1
        self.theta = here.theta
        step, change = here.theta - before.theta, here.gradient - before.gradient
        if step @ change > 0.0:
            self.steps = np.vstack((self.steps, step))[-MEMORY:]
            self.changes = np.vstack((self.changes, change))[-MEMORY:]
        gain = before.value - here.value
        self.gained += gain
        if self.gained > ENOUGH:
            self.told, self.gained = np.exp(self.theta[1:-1]), 0.0
        log_likelihood = -len(self.model.values) * here.value
        self.tell(f"epoch {self.found.epochs}, log-likelihood {log_likelihood:,.1f}, {len(self.found.swaps)} swaps")
        with self.found.block("waiting"):
            return self.neighbors.step(self.told, close=gain < CLOSE)


class _Point(NamedTuple):
    """The objective per point at theta, and its gradient."""

    theta: NDArray[np.float64]
    value: float
    gradient: NDArray[np.float64]


class _Surface:
    """The objective under one graph."""

    def __init__(self, model: Model, graph: Graph, found: Fit) -> None:
        assert graph.order is not None  # noqa: S101  (every Vecchia graph has one)
        self.points, self.values = model.points[graph.order], model.values[graph.order]
        self.model, self.graph, self.found = model, graph, found

    def at(self, theta: NDArray[np.float64]) -> _Point:
        """Evaluate it."""
        with self.found.block("objective"):
            value, gradient = minus_log_likelihood(
                theta, self.points, self.values, self.graph.neighbors, self.model.kernel, self.model.inducing
            )
        return _Point(theta, value / len(self.values), gradient / len(self.values))


def _curvature(steps: NDArray[np.float64], changes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Cholesky factor of the inverse Hessian that pairs of steps and changes of the gradient tell of, (p, p).

    steps, changes: float64 (pairs, p), oldest first. Like L-BFGS, and unlike `todense`, it begins at a multiple of the
    identity, by the last pair.
    """
    if len(steps) == 0:
        return np.eye(steps.shape[1])
    scale = (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    inverse = LbfgsInvHessProduct(steps / np.sqrt(scale), changes * np.sqrt(scale))
    factor: NDArray[np.float64] = cholesky(scale * inverse.todense(), lower=True)
    return factor
