"""Neighbors under the residual correlation, with a certificate: learn a gate, scan behind it, audit, widen where it failed.

1. The k-th scaled distance of every query is its local scale (plain Euclidean search).
2. The true neighbors of a few hundred random queries teach the lookup how far to look.
3. All queries scan what their gates let through.
4. Other random queries are scanned in full; what they miss bounds the recall of the whole graph.
5. Below the asked recall the gate widens for the local scales that missed, only those queries are scanned again, and a fresh
   sample judges. After two widenings, or where it is cheaper from the start, everything is scanned in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.build import Tree, build_tree
from pcct_core.certificate import Certificate, audit_size, recall_lower_bound
from pcct_core.errors import InvalidSpec
from pcct_core.gate import scan_gated
from pcct_core.lookup import GateLookup, learn_lookup
from pcct_core.nearest import predecessor_levels, search_points
from pcct_core.parallel import Crew
from pcct_core.residual import Factors, add_filter, factors_below, make_factors, without_filter
from pcct_core.search import Queries, count_groups
from pcct_core.spec import Accuracy, GraphSpec, Residual
from pcct_core.telemetry import Telemetry
from pcct_core.topk import NO_ID

_TAUGHT = 512  # queries that teach the lookup
_ROUNDS = (0.9, 0.05, 0.05)  # share of the error probability spent on each audit: their sum bounds that of the last one
_WIDEN = 1.3
_BEHIND_GATE = 2000  # candidates per query that a gate lets a team meet, for the choice of the cheaper way


class _Level(NamedTuple):
    tree: Tree
    rows: NDArray[np.int32]


class _Found(NamedTuple):
    neighbors: NDArray[np.int32]
    distances: NDArray[np.float64]


@dataclass
class _Pass:
    """One scan: the marked rows, behind gates by row, into `found`; full when no gate keeps anything out.

    kept: pairs that passed the gates.
    """

    rows: NDArray[np.bool_]
    gates: NDArray[np.float64]
    found: _Found
    phase: str
    full: bool = False
    kept: int = 0


@dataclass
class _Task:
    """One graph in the making: what is searched and what is allowed. n rows, k neighbors wanted."""

    factors: Factors
    levels: list[_Level]
    limit: NDArray[np.int32]
    itself: NDArray[np.int32]
    k: int
    crew: Crew
    telemetry: Telemetry

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.limit)

    def empty(self) -> _Found:
        """Return arrays for neighbors and distances."""
        return _Found(np.empty((self.n, self.k), np.int32), np.empty((self.n, self.k)))

    def sweep(self, *passes: _Pass) -> None:
        """Do the scans, level by level: the factors of a level are laid out once for all of them."""
        for each in passes:
            rows = [np.count_nonzero(each.rows[own]) for _, own in self.levels]
            self.crew.expect(each.phase, sum(count_groups(int(count)) for count in rows))
        for tree, own in self.levels:
            with self.telemetry.phase("factors"):
                stored = self.factors if tree.n == self.n else factors_below(self.factors, tree, self.crew)
            for each in passes:
                with self.telemetry.phase(each.phase):
                    queries = Queries(self.factors.points, own[each.rows[own]], self.limit, self.itself)
                    each.kept += scan_gated(
                        tree,
                        stored if each.full else without_filter(stored),
                        queries,
                        self.factors,
                        each.gates,
                        self.k,
                        *each.found,
                        self.crew,
                        each.phase,
                    )

    def in_full(self, rows: NDArray[np.int64], phase: str) -> _Pass:
        """Return a pass that scans the given rows in full, into arrays of its own."""
        return _Pass(self.marked(rows), np.full(self.n, np.inf), self.empty(), phase, full=True)

    def marked(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask of the given rows."""
        mask = np.zeros(self.n, bool)
        mask[rows] = True
        return mask

    def local_scales(self, found: _Found) -> NDArray[np.float64]:
        """Return the k-th scaled distance of every row, inf where fewer than k are allowed. found: scratch."""
        with self.telemetry.phase("scales"):
            self.crew.expect("search", sum(count_groups(len(rows)) for _, rows in self.levels))
            for tree, rows in self.levels:
                queries = Queries(self.factors.points, rows, self.limit, self.itself)
                search_points(tree, queries, self.k, *found, self.crew)
        return found.distances[:, -1].copy()

    def pairs(self) -> int:
        """Return how many pairs could be neighbors."""
        return int(np.minimum(self.limit, self.n).sum(dtype=np.int64)) - int((self.itself >= 0).sum())


class Outcome(NamedTuple):
    """A graph under the residual metric: neighbors int32 (n, k), distances float64 (n, k), and what is known of it.

    lookup: the gate's lookup, None where everything was scanned in full.
    """

    neighbors: NDArray[np.int32]
    distances: NDArray[np.float64]
    certificate: Certificate
    lookup: GateLookup | None


def find_residual(
    points: NDArray[np.float64],
    rows: NDArray[np.int64],
    spec: GraphSpec,
    lookup: GateLookup | None,
    crew: Crew,
    telemetry: Telemetry,
) -> Outcome:
    """Find the k nearest of every row under the residual metric, to the accuracy that spec asks for.

    points: float64 (n, d), over the lengthscales. rows: int64 (n,), the point of each row: the order of a Vecchia graph.
    lookup: from an earlier graph of the same points, or None.
    Raises InvalidSpec when spec asks for a given lookup and there is none that fits, NotPositiveDefinite, Cancelled.
    """
    metric, accuracy = spec.metric, spec.accuracy
    assert isinstance(metric, Residual)  # noqa: S101  (build_graph comes here for no other)
    kernel = metric.kernel.name
    if lookup is not None and not lookup.fits(kernel, spec.k):
        lookup = None
    gated = isinstance(accuracy, Accuracy) and spec.gate != "off"
    if gated and spec.gate == "lookup" and lookup is None:
        raise InvalidSpec(
            "gate is 'lookup', but there is none for this kernel and k; use 'auto' once to learn it", "gate"
        )
    task = _make_task(points, rows, metric, spec, crew, telemetry)
    if not isinstance(accuracy, Accuracy) or not gated:
        return _scan_in_full(task, 0)
    if spec.gate == "auto" and not _gate_pays(task, accuracy, lookup):
        return _scan_in_full(task, 0)
    return _scan_behind_gate(task, accuracy, lookup, kernel)


def _make_task(
    points: NDArray[np.float64],
    rows: NDArray[np.int64],
    metric: Residual,
    spec: GraphSpec,
    crew: Crew,
    telemetry: Telemetry,
) -> _Task:
    n = len(rows)
    if spec.kind == "vecchia":
        levels = [_Level(*level) for level in predecessor_levels(points[rows], crew, telemetry)]
        limit, itself = np.arange(n, dtype=np.int32), np.full(n, -1, np.int32)
    else:
        with telemetry.phase("tree"):
            tree = build_tree(points[rows], crew)
        levels = [_Level(tree, tree.ids[:n])]
        limit, itself = np.full(n, NO_ID, np.int32), np.arange(n, dtype=np.int32)
    with telemetry.phase("factors"):
        factors = add_filter(make_factors(points, rows, levels[0].tree, metric, crew))
    return _Task(factors, levels, limit, itself, spec.k, crew, telemetry)


def _audit_rows(accuracy: Accuracy, share: float) -> int:
    return audit_size(accuracy.recall, (1.0 - accuracy.confidence) * share)


def _gate_pays(task: _Task, accuracy: Accuracy, lookup: GateLookup | None) -> bool:
    """Return True when learning, scanning behind a gate and auditing meet fewer pairs than scanning in full."""
    pairs = task.pairs()
    sampled = _audit_rows(accuracy, _ROUNDS[0]) + (_TAUGHT if lookup is None else 0)
    if 2 * sampled > task.n:
        return False
    return sampled * (pairs / task.n) + task.n * _BEHIND_GATE < pairs


def _scan_in_full(task: _Task, widenings: int) -> Outcome:
    everything = task.in_full(np.arange(task.n), "scan")
    task.sweep(everything)
    pairs = task.pairs()
    certificate = Certificate(
        "dense",
        "float64",
        degenerate_rows=task.factors.degenerate,
        gate1_candidates=pairs,
        gate1_kept=pairs,
        gate1_pruned=0,
        gate1_widenings=widenings,
    )
    return Outcome(*everything.found, certificate, None)


def _scan_behind_gate(task: _Task, accuracy: Accuracy, lookup: GateLookup | None, kernel: str) -> Outcome:
    found = task.empty()
    scales = task.local_scales(found)
    # One fixed generator: the same input draws the same samples, and gives the same bytes.
    shuffled = np.random.default_rng(0).permutation(task.n)
    if lookup is None:
        taught, shuffled = shuffled[:_TAUGHT], shuffled[_TAUGHT:]
        lookup = _teach(task, taught, scales, kernel)
    stale = np.ones(task.n, bool)
    kept = 0
    for widenings, share in enumerate(_ROUNDS):
        size = _audit_rows(accuracy, share)
        if size > len(shuffled):
            break
        audited, shuffled = shuffled[:size], shuffled[size:]
        scan, audit = _Pass(stale, lookup.radii(scales), found, "scan"), task.in_full(audited, "audit")
        task.sweep(scan, audit)
        kept += scan.kept
        missed = _count_missed(audited, found, audit.found)
        losses = missed / np.minimum(task.k, np.maximum(1, np.minimum(task.limit[audited], task.n - 1)))
        lower = recall_lower_bound(losses, (1.0 - accuracy.confidence) * share)
        if lower >= accuracy.recall:
            pairs = task.pairs()
            certificate = Certificate(
                "gated",
                "float64",
                exact=False,
                recall=float(1.0 - losses.mean()),
                recall_lower=lower,
                confidence=accuracy.confidence,
                audited_queries=size,
                missed_neighbors=int(missed.sum()),
                degenerate_rows=task.factors.degenerate,
                gate1_candidates=pairs,
                gate1_kept=kept,
                gate1_pruned=max(0, pairs - kept),
                gate1_false_negatives=int(missed.sum()),
                gate1_widenings=widenings,
            )
            return Outcome(*found, certificate, lookup)
        failing = np.zeros(len(lookup.multiples), bool)
        failing[lookup.bins(scales[audited[missed > 0]])] = True
        lookup = lookup.widened(failing, _WIDEN)
        stale = failing[lookup.bins(scales)]
    return _scan_in_full(task, len(_ROUNDS) - 1)


def _teach(task: _Task, rows: NDArray[np.int64], scales: NDArray[np.float64], kernel: str) -> GateLookup:
    """Return the lookup learned from the true neighbors of some rows."""
    lesson = task.in_full(rows, "learn")
    task.sweep(lesson)
    return lookup_from_rows(task.factors.points, rows, lesson.found.neighbors[rows], scales[rows], kernel)


def lookup_from_rows(
    points: NDArray[np.float64],
    rows: NDArray[np.int64],
    neighbors: NDArray[np.int32],
    scales: NDArray[np.float64],
    kernel: str,
) -> GateLookup:
    """Return the lookup learned from some rows and their true neighbors.

    points: float64 (n, d), over the lengthscales, in row order. rows: int64 (t,). neighbors: int32 (t, k).
    scales: float64 (t,), k-th scaled distances; rows where it is inf have fewer than k to choose from and do not count.
    """
    counts = np.isfinite(scales)
    rows, neighbors, scales = rows[counts], neighbors[counts], scales[counts]
    reach = np.zeros(len(rows))
    for column in range(neighbors.shape[1]):
        gaps = points[neighbors[:, column]] - points[rows]
        np.maximum(reach, np.sqrt(np.square(gaps).sum(axis=1)), out=reach)
    # Among repeated points a local scale can be zero; such queries need no more than what lies at distance zero.
    needed = np.divide(reach, scales, out=np.ones(len(rows)), where=scales > 0.0)
    return learn_lookup(scales, needed, kernel, neighbors.shape[1])


def _count_missed(rows: NDArray[np.int64], found: _Found, true: _Found) -> NDArray[np.int64]:
    """Return how many true neighbors each audited row lacks; one that is as far as its k-th is a tie and not missed."""
    missed = np.zeros(len(rows), np.int64)
    for i, row in enumerate(rows):
        nearer = true.neighbors[row][true.distances[row] < found.distances[row, -1]]
        missed[i] = np.count_nonzero(~np.isin(nearer, found.neighbors[row]))
    return missed
