"""Certificates against somebody who knows the code and orders the rows, and against chance. `python -m tests.core.test_forgery`
tries longer."""

import math

import numpy as np

import pcct_core as pc
from pcct_core import vif
from pcct_core.certificate import audit_rate, most_missed
from pcct_core.draws import seed_draws
from pcct_core.parallel import Crew
from pcct_core.telemetry import Telemetry

N, K, M = 6000, 10, 8
TRIES, AUDITS = 3, 40
METRIC = pc.Residual(pc.Matern52(0.3), inducing=M)
SECRET = b"known to the deployment alone"


def arranged(X, spec, easy, rng):
    """An order of the rows by which the adversary's own copy would learn from easy rows, by a secret that he guesses.

    Another order draws other rows, so he arranges again and again.
    """
    order = rng.permutation(len(X))
    for _ in range(3):
        lessons = seed_draws(np.ascontiguousarray(X[order]), spec, b"a guess").choose("lessons", 1024, len(X))
        others = np.setdiff1d(np.arange(len(X)), lessons)
        order = np.empty(len(X), np.int64)
        order[lessons] = rng.permutation(easy[:1024])
        order[others] = rng.permutation(easy[1024:])
    return order


def forge(tries, n=N):
    """Return how many of so many orders of the rows got a certificate that promises more than is true."""
    rng = np.random.default_rng(11)
    X = rng.random((n, 3))
    spec = pc.GraphSpec("knn", K, METRIC)
    exact = pc.knn_graph(X, K, METRIC, accuracy="exact")
    apart = np.square(X[exact.neighbors] - X[:, None]).sum(axis=2)
    nearest = pc.knn_graph(X, K).distances[:, -1]
    easy = np.argsort(apart.max(axis=1) / nearest)  # rows whose neighbors are nearest, in units of their local scale
    forged = 0
    for _ in range(tries):
        order = arranged(X, spec, easy, rng)
        graph = pc.build_graph(X[order], spec, secret=SECRET)
        assert graph.certificate.method == "gated"
        found = np.sort(order[graph.neighbors], axis=1)
        true = np.sort(exact.neighbors[order], axis=1)
        missing = sum(np.setdiff1d(some, others).size for some, others in zip(true, found, strict=True))
        forged += 1 - missing / true.size < graph.certificate.recall_lower
    return forged


def count_lies(audits, share, n=1500):
    """Return how many of so many audits of a graph that misses about `share` of its neighbors bound them too low."""
    X = np.random.default_rng(12).random((n, 3))
    spec = pc.GraphSpec("knn", K, METRIC)
    exact = pc.knn_graph(X, K, METRIC, accuracy="exact")
    reach = np.sqrt(np.square((X[exact.neighbors] - X[:, None]) / 0.3).sum(axis=2))
    draws = seed_draws(X, spec, SECRET)
    with Crew(1) as crew:
        task = vif._make_task(X / 0.3, np.arange(n), METRIC, spec, crew, Telemetry())
        task.scan(np.ones(n, bool), np.full(n, np.quantile(reach, 1 - share)))
        gates = np.full(n, np.quantile(reach, 1 - share))
        missing = sum(
            np.setdiff1d(some, others).size for some, others in zip(exact.neighbors, task.found.neighbors, strict=True)
        )
        assert missing > 0
        rate = audit_rate(2.0 * missing, 0.05)
        found = [int(task.audit(gates, rate, draws.stream(f"audit {i}")).missed.sum()) for i in range(audits)]
    return sum(most_missed(count, rate, 0.05) < missing for count in found)


def test_an_adversary_who_does_not_know_the_secret_forges_no_certificate():
    assert forge(TRIES) == 0


def test_audits_of_graphs_that_miss_little_lie_no_more_often_than_they_say():
    lies = sum(count_lies(AUDITS, share) for share in (0.0005, 0.002))
    assert lies <= 0.05 * 2 * AUDITS + 3 * math.sqrt(0.05 * 0.95 * 2 * AUDITS)


if __name__ == "__main__":
    print("forged:", forge(20, 8000), "of 20")
    for share in (0.0005, 0.001, 0.002):
        print(f"audits of a graph that misses {share:.2%}: {count_lies(400, share)} of 400 lie")
