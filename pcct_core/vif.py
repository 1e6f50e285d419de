"""Neighbors under the residual correlation, with a certificate: learn a gate, scan behind it, audit, widen where it fails.

1. The k-th scaled distance of every query is its local scale (plain Euclidean search).
2. Random queries are scanned in full. They teach the lookup how far to look, and are exact from here on.
3. The other queries scan what their gates let through.
4. Rows that found fewer neighbors than they must have are scanned in full.
5. Random pairs beyond the gates are measured. Those that belong in the answer bound how many such pairs there are, and with
   them the recall.
6. Below the asked recall the gate widens for local scales like those that missed, their queries are scanned again, and fresh
   pairs judge. After two widenings, or where an audit costs more, everything is scanned in full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.build import Tree, build_tree
from pcct_core.certificate import Certificate, audit_rate, most_missed
from pcct_core.draws import Draws
from pcct_core.errors import InvalidSpec
from pcct_core.gate import Audit, Found, Sample, audit_rows, follow_rows, scan_gated
from pcct_core.lookup import GateLookup, learn_lookup
from pcct_core.nearest import predecessor_levels, search_points
from pcct_core.parallel import Crew
from pcct_core.residual import Factors, Screen, choose_inducing, make_factors, make_screen, tolerance_of
from pcct_core.search import Queries, count_groups
from pcct_core.spec import Accuracy, GraphSpec, Residual
from pcct_core.telemetry import Telemetry
from pcct_core.topk import NO_ID

_TAUGHT = 1024  # queries that teach the lookup
_FOLLOWING = 256  # queries that teach a gate that follows a previous graph
_ROUNDS = (0.9, 0.05, 0.05)  # share of the error probability spent on each audit: their sum bounds that of the last one
_WIDEN = 1.3
_FOLLOWED = 1.15  # margin on the largest multiple that these need: see docs/CORE_IMPLEMENTATIONS.md
# Levels of the tree for full scans cut by rank: a sixteenth of the pairs is beyond the rank then. More find near points late.
_MOST_RANK_LEVELS = 3
# What costs as much as so many pairs of a full scan, for the choice of the cheaper way.
_BEHIND_GATE, _PER_NEIGHBOR = 800, 30  # what one query meets behind a gate, in all and for every neighbor that it wants
_AUDITED = 6  # an audited pair


class _Level(NamedTuple):
    tree: Tree
    rows: NDArray[np.int32]


@dataclass
class _Task:
    """One graph in the making: what is searched and what is allowed. n rows, k neighbors wanted; found is filled by scans.

    levels: for rows behind gates; V lies in the order of the first one's tree. ranked: for rows that are scanned in full.
    kept: the last screen and its tree, large as V in float32.
    """

    factors: Factors
    levels: list[_Level]
    ranked: _Level
    limit: NDArray[np.int32]
    itself: NDArray[np.int32]
    k: int
    found: Found
    crew: Crew
    telemetry: Telemetry
    kept: tuple[Tree, Screen] | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.limit)

    def scan(self, wanted: NDArray[np.bool_], gates: NDArray[np.float64]) -> None:
        """Scan the wanted rows, bool (n,), behind gates, float64 (n,), none of them NaN."""
        self._scan(self.levels, wanted, gates, "scan")

    def scan_in_full(self, wanted: NDArray[np.bool_], phase: str) -> None:
        """Write the exact answers of the wanted rows, bool (n,)."""
        self._scan([self.ranked], wanted, np.full(self.n, np.inf), phase)

    def _scan(self, levels: list[_Level], wanted: NDArray[np.bool_], gates: NDArray[np.float64], phase: str) -> None:
        rows = [own[wanted[own]] for _, own in levels]
        self.crew.expect(phase, sum(count_groups(len(some)) for some in rows))
        for (tree, _), some in zip(levels, rows, strict=True):
            with self.telemetry.phase("factors"):
                screen = self._screen(tree)
            with self.telemetry.phase(phase):
                queries = Queries(self.factors.points, some, self.limit, self.itself)
                scan_gated(tree, screen, self.factors, queries, self.factors, gates, self.found, self.crew, phase)
            del screen  # the next one is laid out when this one is gone
        self.found.known[wanted] = self.found.neighbors[wanted, -1] >= 0

    def follow(self, previous: NDArray[np.int32]) -> NDArray[np.float64]:
        """Take over the neighbors of an earlier graph, int32 (n, ≥ k); return how far they are, float64 (n,), scaled."""
        reach, rows = np.empty(self.n), self.levels[0].tree.ids[: self.n]
        with self.telemetry.phase("follow"):
            self.crew.run(
                "follow",
                self.n,
                lambda a, b: follow_rows(
                    self.factors, rows, self.limit, self.itself, previous, a, b, self.found, reach
                ),
                grain=64,
            )
        return reach

    def audit(self, gates: NDArray[np.float64], rate: float, key: np.uint64) -> Audit:
        """Measure random pairs beyond gates, float64 (n,), inf for exact rows; each is drawn `rate` times or more.

        key: a stream of `Draws`.
        """
        counts = np.where(np.isfinite(gates), np.ceil(rate * self.allowed()), 0).astype(np.int64)
        audit = Audit(np.zeros(self.n, np.int64), np.zeros(self.n, np.int64))
        queries = Queries(self.factors.points, self.levels[0].tree.ids[: self.n], self.limit, self.itself)
        sample = Sample(key, counts)
        with self.telemetry.phase("audit"):
            self.crew.run(
                "audit",
                self.n,
                lambda a, b: audit_rows(self.factors, queries, gates, sample, a, b, self.found, audit),
                grain=64,
            )
        return audit

    def lacking(self) -> NDArray[np.bool_]:
        """Return which rows have found fewer neighbors than they must have, bool (n,)."""
        due = np.minimum(self.others(), self.k)
        lacking: NDArray[np.bool_] = (due > 0) & (self.found.neighbors[np.arange(self.n), due - 1] < 0)
        return lacking

    def _screen(self, tree: Tree) -> Screen:
        if self.kept is None or self.kept[0] is not tree:
            self.kept = None
            self.kept = (tree, make_screen(self.factors, tree, self.crew))
        return self.kept[1]

    def local_scales(self) -> NDArray[np.float64]:
        """Return the k-th scaled distance of every row, inf where fewer than k are allowed; uses `found` as scratch."""
        with self.telemetry.phase("scales"):
            self.crew.expect("search", sum(count_groups(len(rows)) for _, rows in self.levels))
            for tree, rows in self.levels:
                queries = Queries(self.factors.points, rows, self.limit, self.itself)
                search_points(tree, queries, self.k, self.found.neighbors, self.found.distances, self.crew)
        scales: NDArray[np.float64] = self.found.distances[:, -1].copy()
        return scales

    def allowed(self) -> NDArray[np.int64]:
        """Return how many points stand before each row's limit, itself included where it does."""
        allowed: NDArray[np.int64] = np.minimum(self.limit, self.n).astype(np.int64)
        return allowed

    def others(self) -> NDArray[np.int64]:
        """Return how many points could be neighbors of each row."""
        return self.allowed() - (self.itself >= 0)

    def pairs(self, rows: NDArray[np.bool_] | None = None) -> int:
        """Return how many pairs could be neighbors, of all rows or of the marked ones, bool (n,)."""
        return int(self.others().sum() if rows is None else self.others()[rows].sum())

    def neighbors(self) -> int:
        """Return how many neighbors all rows together have."""
        return int(np.minimum(self.others(), self.k).sum())

    def passed(self, rows: NDArray[np.bool_]) -> int:
        """Return how many of these pairs passed a gate; rows: bool (n,), scanned behind one."""
        return int((self.found.passed - (self.itself >= 0))[rows].sum())


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
    draws: Draws,
    lookup: GateLookup | None,
    previous: NDArray[np.int32] | None,
    crew: Crew,
    telemetry: Telemetry,
) -> Outcome:
    """Find the k nearest of every row under the residual metric, to the accuracy that spec asks for.

    points: float64 (n, d), over the lengthscales. rows: int64 (n,), the point of each row: the order of a Vecchia graph.
    draws: what lessons and audits are drawn by. lookup: from an earlier graph of the same points, or None.
    previous: int32 (n, k), the neighbors in an earlier graph of the same rows, or None; where they lie decides how far each
    row looks, and no lookup is needed.
    Raises InvalidSpec when spec asks for a given lookup and there is none that fits, NotPositiveDefinite, Cancelled.
    """
    metric, accuracy = spec.metric, spec.accuracy
    assert isinstance(metric, Residual)  # noqa: S101  (build_graph comes here for no other)
    kernel = metric.kernel.name
    if lookup is not None and not lookup.fits(kernel, spec.k):
        lookup = None
    gated = isinstance(accuracy, Accuracy) and spec.gate != "off"
    if gated and spec.gate == "lookup" and lookup is None and previous is None:
        raise InvalidSpec(
            "gate is 'lookup', but there is none for this kernel and k; use 'auto' once to learn it", "gate"
        )
    task = _make_task(points, rows, metric, spec, crew, telemetry)
    if not isinstance(accuracy, Accuracy) or not gated or task.pairs() == 0:
        return _scan_everything(task, 0)
    if _audit_rate(task, accuracy, _ROUNDS[0]) * _AUDITED >= 1.0:
        return _scan_everything(task, 0)
    taught = _FOLLOWING if previous is not None else _TAUGHT if lookup is None else 0
    if spec.gate == "auto" and not _gate_pays(task, accuracy, taught):
        return _scan_everything(task, 0)
    return _scan_behind_gate(task, accuracy, _make_gate(task, lookup, previous, kernel), draws, taught)


def scan_behind_gates(
    points: NDArray[np.float64],
    rows: NDArray[np.int64],
    spec: GraphSpec,
    gates: NDArray[np.float64],
    crew: Crew,
    telemetry: Telemetry,
) -> tuple[NDArray[np.int32], NDArray[np.float64], int]:
    """Scan every row behind the given gate, float64 (n,), and trust it; other arguments as in `find_residual`.

    Returns neighbors, distances and how many pairs passed.
    """
    assert isinstance(spec.metric, Residual)  # noqa: S101
    task = _make_task(points, rows, spec.metric, spec, crew, telemetry)
    everything = np.ones(task.n, bool)
    task.scan(everything, _opened(gates, everything))
    return task.found.neighbors, task.found.distances, task.passed(everything)


def _make_task(
    points: NDArray[np.float64],
    rows: NDArray[np.int64],
    metric: Residual,
    spec: GraphSpec,
    crew: Crew,
    telemetry: Telemetry,
) -> _Task:
    n, placed = len(rows), points[rows]
    if spec.kind == "vecchia":
        levels = [_Level(*level) for level in predecessor_levels(placed, crew, telemetry)]
        with telemetry.phase("tree"):
            tree = build_tree(placed, crew, by_index=_rank_levels(n))
        ranked = _Level(tree, tree.ids[:n])
        limit, itself = np.arange(n, dtype=np.int32), np.full(n, -1, np.int32)
    else:
        with telemetry.phase("tree"):
            tree = build_tree(placed, crew)
        ranked = _Level(tree, tree.ids[:n])
        levels = [ranked]
        limit, itself = np.full(n, NO_ID, np.int32), np.arange(n, dtype=np.int32)
    with telemetry.phase("factors"):
        inducing = choose_inducing(points, metric, crew)
        factors = make_factors(placed, levels[0].tree, rows, metric, inducing, crew)
    found = Found(np.empty((n, spec.k), np.int32), np.empty((n, spec.k)), np.zeros(n, bool), np.zeros(n, np.int64))
    return _Task(factors, levels, ranked, limit, itself, spec.k, found, crew, telemetry)


def _rank_levels(n: int) -> int:
    """Return how many levels of the tree for full scans are cut by rank: what is cut by place is 512 ranks or more."""
    return max(0, min(_MOST_RANK_LEVELS, n.bit_length() - 10))


def _audit_rate(task: _Task, accuracy: Accuracy, share: float) -> float:
    return audit_rate((1.0 - accuracy.recall) * task.neighbors(), (1.0 - accuracy.confidence) * share)


def _gate_pays(task: _Task, accuracy: Accuracy, taught: int) -> bool:
    """Return True when learning, scanning behind a gate and auditing cost less than scanning everything in full."""
    pairs = task.pairs()
    lessons = taught / task.n * pairs
    audit = _audit_rate(task, accuracy, _ROUNDS[0]) * pairs * _AUDITED
    behind = task.n * (_BEHIND_GATE + _PER_NEIGHBOR * task.k)
    return 2 * taught <= task.n and lessons + audit + behind < pairs


def _scan_everything(task: _Task, widenings: int) -> Outcome:
    task.scan_in_full(np.ones(task.n, bool), "scan")
    pairs = task.pairs()
    certificate = Certificate(
        "dense",
        "float64",
        degenerate_rows=task.factors.degenerate,
        gate1_candidates=pairs,
        gate1_kept=pairs,
        gate1_pruned=0,
        gate1_widenings=widenings,
        tolerance=tolerance_of(task.factors),
    )
    return Outcome(task.found.neighbors, task.found.distances, certificate, None)


@dataclass
class _Gate:
    """How far each row may look: radii, float64 (n,), in scaled distance; widened where an audit finds them too short.

    scales: float64 (n,), what radii are multiples of: local scales, by the lookup, which is None until it is learned; or where
    the gate follows a previous graph, without a lookup, how far its neighbors are.
    """

    kernel: str
    follows: bool
    scales: NDArray[np.float64]
    lookup: GateLookup | None
    radii: NDArray[np.float64]

    def learn(self, task: _Task, rows: NDArray[np.int64]) -> None:
        """Set the radii by rows that were scanned in full."""
        points, neighbors = task.factors.points, task.found.neighbors[rows]
        if self.follows:
            needed = multiples_needed(points, rows, neighbors, self.scales[rows])[1]
            self.radii = self.scales * (needed.max(initial=1.0) * _FOLLOWED)
            return
        self.lookup = lookup_from_rows(points, rows, neighbors, self.scales[rows], self.kernel)
        self.radii = self.lookup.radii(self.scales)

    def widen(self, rows: NDArray[np.int64]) -> None:
        """Look farther from rows like those that missed a neighbor."""
        if self.lookup is None:
            self.radii = self.radii * _WIDEN
            return
        failing = np.zeros(len(self.lookup.multiples), bool)
        failing[self.lookup.bins(self.scales[rows])] = True
        self.lookup = self.lookup.widened(failing, _WIDEN)
        self.radii = self.lookup.radii(self.scales)


def _make_gate(task: _Task, lookup: GateLookup | None, previous: NDArray[np.int32] | None, kernel: str) -> _Gate:
    if previous is not None:
        # A row that had fewer than k neighbors looks at all it may choose from.
        reach = task.follow(previous)
        return _Gate(kernel, True, reach, None, reach)
    scales = task.local_scales()
    return _Gate(kernel, False, scales, lookup, scales if lookup is None else lookup.radii(scales))


def _opened(radii: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the gates, float64 (n,), of rows, bool (n,), and inf for the others and where a radius is not a number."""
    gates: NDArray[np.float64] = np.where(rows & ~np.isnan(radii), radii, np.inf)
    return gates


def _scan_behind_gate(task: _Task, accuracy: Accuracy, gate: _Gate, draws: Draws, taught: int) -> Outcome:
    behind = np.ones(task.n, bool)
    if taught:
        rows = draws.choose("lessons", taught, task.n)
        behind[rows] = False
        task.scan_in_full(~behind, "teach")
        gate.learn(task, rows)
    wanted = behind
    for widenings, share in enumerate(_ROUNDS):
        rate = _audit_rate(task, accuracy, share)
        if rate * _AUDITED >= 1.0:
            return _scan_everything(task, widenings)
        gates = _opened(gate.radii, behind)
        task.scan(wanted, gates)
        lacking = task.lacking()
        if lacking.any():
            behind = behind & ~lacking
            gates = _opened(gate.radii, behind)
            task.scan_in_full(lacking, "complete")
        audit = task.audit(gates, rate, draws.stream(f"audit {widenings}"))
        certificate = _certify(task, accuracy, behind, audit, rate, share, widenings)
        certificate = replace(certificate, draws=draws.origin)
        if certificate.recall_lower is not None and certificate.recall_lower >= accuracy.recall:
            return Outcome(task.found.neighbors, task.found.distances, certificate, gate.lookup)
        gate.widen(np.flatnonzero(audit.missed))
        wanted = behind & (gate.radii > gates)
    return _scan_everything(task, len(_ROUNDS) - 1)


def _certify(
    task: _Task,
    accuracy: Accuracy,
    behind: NDArray[np.bool_],
    audit: Audit,
    rate: float,
    share: float,
    widenings: int,
) -> Certificate:
    """Return what an audit that drew each pair beyond the gates of some rows, bool (n,), at this rate says of the graph."""
    pairs, kept, missed = task.pairs(behind), task.passed(behind), int(audit.missed.sum())
    neighbors = task.neighbors()
    most = min(most_missed(missed, rate, (1.0 - accuracy.confidence) * share), pairs - kept)
    return Certificate(
        "gated",
        "float64",
        exact=False,
        recall=1.0 - min(missed / rate, most) / neighbors,
        recall_lower=1.0 - most / neighbors,
        confidence=accuracy.confidence,
        audited_pairs=int(audit.measured.sum()),
        audited_queries=int(np.count_nonzero(audit.measured)),
        missed_neighbors=missed,
        degenerate_rows=task.factors.degenerate,
        gate1_candidates=pairs,
        gate1_kept=kept,
        gate1_pruned=pairs - kept,
        gate1_false_negatives=missed,
        gate1_widenings=widenings,
        tolerance=tolerance_of(task.factors),
    )


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
    scales, needed = multiples_needed(points, rows, neighbors, scales)
    return learn_lookup(scales, needed, kernel, neighbors.shape[1])


def multiples_needed(
    points: NDArray[np.float64], rows: NDArray[np.int64], neighbors: NDArray[np.int32], scales: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scales and how many times as far the farthest neighbor is, float64, of the rows whose scale is finite.

    Arguments as in `lookup_from_rows`.
    """
    counts = np.isfinite(scales)
    rows, neighbors, scales = rows[counts], neighbors[counts], scales[counts]
    reach = np.sqrt(np.max([_squared(points, rows, entries) for entries in neighbors.T], axis=0))
    # Among repeated points a scale can be zero; such queries need no more than what lies at distance zero.
    with np.errstate(over="ignore"):
        return scales, np.divide(reach, scales, out=np.ones(len(rows)), where=scales > 0.0)


def _squared(points: NDArray[np.float64], rows: NDArray[np.int64], others: NDArray[Any]) -> NDArray[np.float64]:
    """Return squared scaled distances between rows and others, pair by pair, in the arithmetic of the scan."""
    total = np.zeros(len(rows))
    for column in points.T:
        gap = column[others] - column[rows]
        total += gap * gap
    return total


def count_kept_out(
    points: NDArray[np.float64], rows: NDArray[np.int64], neighbors: NDArray[np.int32], gates: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return how many true neighbors of each row are beyond its gate, computed as the scan does.

    points: float64 (n, d), over the lengthscales, in row order. rows: int64 (t,). neighbors: int32 (t, k), -1 where there
    is none. gates: float64 (t,).
    """
    missed = np.zeros(len(rows), np.int64)
    for entries in neighbors.T:
        missed += (entries >= 0) & (_squared(points, rows, entries) > gates * gates)
    return missed
