"""The 4,096-point run that must pass before any larger benchmark of the residual metric is worth its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_core.certificate import Certificate
from pcct_core.graph import Graph, build_graph
from pcct_core.nearest import find_predecessors
from pcct_core.parallel import Crew
from pcct_core.place import place_points
from pcct_core.spec import Accuracy, Euclidean, GraphSpec, Inducing, Matern52, Residual
from pcct_core.telemetry import Telemetry
from pcct_core.vif import count_kept_out, lookup_from_rows, scan_behind_gates

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
    points. The gate is taught by 512 rows of the exact graph, every row is scanned behind it, and all of it is audited.
    """
    X = np.random.default_rng(0).random((POINTS, 3))
    spec = GraphSpec("vecchia", NEIGHBORS, Residual(Matern52(0.3), Inducing(INDUCING)), "hilbert", accuracy="exact")
    exact = build_graph(X, spec, threads=threads)
    order = exact.order
    assert order is not None  # noqa: S101  (a Vecchia graph has one)
    placed = X[order] / 0.3
    scales = _local_scales(placed, threads)
    taught = np.random.default_rng(1).permutation(POINTS)[:TAUGHT]
    lookup = lookup_from_rows(placed, taught, exact.neighbors[taught], scales[taught], "matern52")
    gates = lookup.radii(scales)
    telemetry = Telemetry()
    with Crew(threads) as crew:
        neighbors, distances, kept = scan_behind_gates(X / 0.3, order, spec, gates, crew, telemetry)
    with Crew(1) as crew:
        again = scan_behind_gates(X / 0.3, order, spec, gates, crew, Telemetry())
    audited = np.setdiff1d(np.arange(POINTS), taught)
    kept_out = count_kept_out(placed, np.arange(POINTS), exact.neighbors, gates)
    losses, wanted = kept_out[audited] / NEIGHBORS, Accuracy()
    missing = max(_count_missing(exact, neighbors), int(kept_out.sum()))
    scan_s, pairs = telemetry.seconds["scan"], POINTS * (POINTS - 1) // 2
    same = neighbors.tobytes() == again[0].tobytes() and distances.tobytes() == again[1].tobytes()
    certificate = Certificate(
        "gated",
        "float64",
        exact=False,
        recall=float(1.0 - losses.mean()),
        recall_lower=float(1.0 - losses.mean()),
        confidence=wanted.confidence,
        audited_queries=len(audited),
        missed_neighbors=missing,
        degenerate_rows=exact.certificate.degenerate_rows,
        gate1_candidates=pairs,
        gate1_kept=kept,
        gate1_pruned=pairs - kept,
        gate1_false_negatives=int(kept_out.sum()),
        gate1_widenings=0,
    )
    lower = certificate.recall_lower or 0.0
    checks = [
        Check("certified recall", lower >= wanted.recall, f"at least {lower:.5f}, wanted {wanted.recall:g}"),
        Check("gate prunes", kept < pairs, f"{pairs - kept} of {pairs} pairs"),
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
        "telemetry": telemetry.to_json(),
        "lookup": lookup.to_json(),
    }
    return checks, report


def _local_scales(placed: NDArray[np.float64], threads: int | None) -> NDArray[np.float64]:
    """Return the k-th scaled distance of every row to its predecessors."""
    neighbors, distances = np.empty((POINTS, NEIGHBORS), np.int32), np.empty((POINTS, NEIGHBORS))
    with Crew(threads) as crew:
        find_predecessors(place_points(placed, Euclidean(), crew), NEIGHBORS, neighbors, distances, crew, Telemetry())
    return distances[:, -1].copy()


def _count_missing(exact: Graph, neighbors: NDArray[np.int32]) -> int:
    return sum(
        int(np.count_nonzero(~np.isin(true[true >= 0], found)))
        for true, found in zip(exact.neighbors, neighbors, strict=True)
    )
