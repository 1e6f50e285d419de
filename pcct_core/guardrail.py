"""The 4,096-point run that must pass before any larger benchmark of the residual metric is worth its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pcct_core.graph import Graph, build_graph
from pcct_core.lookup import GateLookup
from pcct_core.nearest import find_predecessors
from pcct_core.parallel import Crew
from pcct_core.spec import GraphSpec, Inducing, Matern52, Residual
from pcct_core.telemetry import Telemetry
from pcct_core.vif import lookup_from_rows

POINTS, NEIGHBORS, INDUCING, TAUGHT = 4096, 50, 512, 512
SCAN_LIMIT_S = 1.0


@dataclass(frozen=True)
class Check:
    """One thing that must hold: its name, whether it does, and the numbers that say so."""

    name: str
    passed: bool
    found: str


def run_guardrail(threads: int | None = None) -> tuple[list[Check], dict[str, Any]]:
    """Run the preset and return its checks and a JSON object of all that was measured.

    Preset: 4,096 uniform points in three dimensions, Hilbert order, k = 50, Matérn 5/2 with lengthscale 0.3, 512 inducing
    points. The gate is taught by 512 rows of the exact graph and audited against all of it.
    """
    X = np.random.default_rng(0).random((POINTS, 3))
    metric = Residual(Matern52(lengthscale=0.3), Inducing(INDUCING))
    exact = build_graph(X, GraphSpec("vecchia", NEIGHBORS, metric, "hilbert", accuracy="exact"), threads=threads)
    lookup = _taught_lookup(X / 0.3, exact, threads)
    spec = GraphSpec("vecchia", NEIGHBORS, metric, "hilbert", gate="lookup")
    gated = build_graph(X, spec, threads=threads, lookup=lookup)
    again = build_graph(X, spec, threads=1, lookup=lookup)
    missing = _count_missing(exact, gated)
    certificate = gated.certificate
    scan_s = gated.telemetry.seconds["scan"]
    accuracy = spec.accuracy
    wanted = getattr(accuracy, "recall", 1.0)
    same = (
        gated.neighbors.tobytes() == again.neighbors.tobytes()
        and gated.distances.tobytes() == again.distances.tobytes()
    )
    lower, pruned = certificate.recall_lower or 0.0, certificate.gate1_pruned or 0
    checks = [
        Check("certified recall", lower >= wanted, f"at least {lower:.5f}, wanted {wanted:g}"),
        Check("gate prunes", pruned > 0, f"{pruned} of {certificate.gate1_candidates} pairs"),
        Check(
            "no false negative",
            missing == 0,
            f"{missing} of {POINTS * NEIGHBORS} true neighbors missing in a full audit",
        ),
        Check("scan time", scan_s < SCAN_LIMIT_S, f"{scan_s:.3f} s, limit {SCAN_LIMIT_S:g} s"),
        Check("same bytes for any threads", same, "1 thread against the others" if same else "the graphs differ"),
    ]
    report = {
        "passed": all(check.passed for check in checks),
        "checks": [{"name": check.name, "passed": check.passed, "found": check.found} for check in checks],
        "spec": spec.to_json(),
        "n": POINTS,
        "certificate": certificate.to_json(),
        "telemetry": gated.telemetry.to_json(),
        "lookup": lookup.to_json(),
    }
    return checks, report


def _taught_lookup(scaled: np.ndarray[Any, np.dtype[np.float64]], exact: Graph, threads: int | None) -> GateLookup:
    assert exact.order is not None  # noqa: S101  (a Vecchia graph has one)
    points = np.ascontiguousarray(scaled[exact.order])
    neighbors, distances = np.empty((POINTS, NEIGHBORS), np.int32), np.empty((POINTS, NEIGHBORS))
    with Crew(threads) as crew:
        find_predecessors(points, NEIGHBORS, neighbors, distances, crew, Telemetry())
    rows = np.random.default_rng(1).permutation(POINTS)[:TAUGHT]
    return lookup_from_rows(points, rows, exact.neighbors[rows], distances[rows, -1], "matern52")


def _count_missing(exact: Graph, gated: Graph) -> int:
    return sum(
        int(np.count_nonzero(~np.isin(true[true >= 0], found)))
        for true, found in zip(exact.neighbors, gated.neighbors, strict=True)
    )
