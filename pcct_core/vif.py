"""Neighbors under the residual correlation, with a certificate: learn a gate, audit it, widen it where it fails, use it.

1. The k-th scaled distance of every query is its local scale (plain Euclidean search).
2. Random queries are scanned in full. Some teach the lookup how far to look; for the others, what the gate would have kept
   out of their true neighbors bounds the recall of all queries behind it. All of these rows are exact from here on.
3. Below the asked recall the gate widens for the local scales that missed, and a fresh sample judges. After two widenings,
   or where it is cheaper from the start, everything is scanned in full.
4. The other queries scan what their gates let through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.build import Tree, build_tree
from pcct_core.certificate import Certificate, audit_size, graph_recall_lower_bound
from pcct_core.errors import InvalidSpec
from pcct_core.gate import bound_rows, scan_gated
from pcct_core.lookup import GateLookup, learn_lookup
from pcct_core.nearest import predecessor_levels, search_points
from pcct_core.parallel import Crew
from pcct_core.residual import Factors, Screen, choose_inducing, make_factors, make_screen
from pcct_core.search import Queries, count_groups
from pcct_core.spec import Accuracy, GraphSpec, Residual
from pcct_core.telemetry import Telemetry
from pcct_core.topk import NO_ID

_TAUGHT = 1024  # queries that teach the lookup
_ROUNDS = (0.9, 0.05, 0.05)  # share of the error probability spent on each audit: their sum bounds that of the last one
_WIDEN = 1.3
_FOLLOWED = 1.3  # gate over how far the neighbors of the previous graph are: see docs/CORE_IMPLEMENTATIONS.md
# Levels of the tree for full scans cut by rank: a sixteenth of the pairs is beyond the rank then. More find near points late.
_MOST_RANK_LEVELS = 3
_BEHIND_GATE = 4000  # pairs that cost as much as what one query meets behind a gate, for the choice of the cheaper way


class _Level(NamedTuple):
    tree: Tree
    rows: NDArray[np.int32]


class _Found(NamedTuple):
    neighbors: NDArray[np.int32]
    distances: NDArray[np.float64]


@dataclass
class _Task:
    """One graph in the making: what is searched and what is allowed. n rows, k neighbors wanted; found is filled by scans.

    levels: for rows behind gates; V lies in the order of the first one's tree. ranked: for rows that are scanned in full.
    bounds: float64 (n,), squared distance that a row's k-th neighbor is known not to exceed, inf for unknown.
    kept: the last screen and its tree, large as V in float32.
    """

    factors: Factors
    levels: list[_Level]
    ranked: _Level
    limit: NDArray[np.int32]
    itself: NDArray[np.int32]
    k: int
    bounds: NDArray[np.float64]
    found: _Found
    crew: Crew
    telemetry: Telemetry
    kept: tuple[Tree, Screen] | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.limit)

    def scan(self, wanted: NDArray[np.bool_], gates: NDArray[np.float64]) -> int:
        """Scan the wanted rows, bool (n,), behind gates, float64 (n,); return how many pairs passed them."""
        return self._scan(self.levels, wanted, gates, "scan")

    def scan_in_full(self, wanted: NDArray[np.bool_], phase: str) -> None:
        """Write the exact answers of the wanted rows, bool (n,)."""
        self._scan([self.ranked], wanted, np.full(self.n, np.inf), phase)

    def _scan(self, levels: list[_Level], wanted: NDArray[np.bool_], gates: NDArray[np.float64], phase: str) -> int:
        rows = [own[wanted[own]] for _, own in levels]
        self.crew.expect(phase, sum(count_groups(len(some)) for some in rows))
        kept = 0
        for (tree, _), some in zip(levels, rows, strict=True):
            with self.telemetry.phase("factors"):
                screen = self._screen(tree)
            with self.telemetry.phase(phase):
                queries = Queries(self.factors.points, some, self.limit, self.itself)
                kept += scan_gated(
                    tree,
                    screen,
                    self.factors,
                    queries,
                    self.factors,
                    gates,
                    self.bounds,
                    self.k,
                    *self.found,
                    self.crew,
                    phase,
                )
            del screen  # the next one is laid out when this one is gone
        return kept

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
                search_points(tree, queries, self.k, *self.found, self.crew)
        return self.found.distances[:, -1].copy()

    def pairs(self, rows: NDArray[np.bool_] | None = None) -> int:
        """Return how many pairs could be neighbors, of all rows or of the marked ones, bool (n,)."""
        allowed = np.minimum(self.limit, self.n).astype(np.int64) - (self.itself >= 0)
        return int(allowed.sum() if rows is None else allowed[rows].sum())


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
    previous: NDArray[np.int32] | None,
    crew: Crew,
    telemetry: Telemetry,
) -> Outcome:
    """Find the k nearest of every row under the residual metric, to the accuracy that spec asks for.

    points: float64 (n, d), over the lengthscales. rows: int64 (n,), the point of each row: the order of a Vecchia graph.
    lookup: from an earlier graph of the same points, or None. previous: int32 (n, k), the neighbors in an earlier graph of
    the same rows, or None; where they lie decides how far each row looks, and no lookup is needed.
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
    if not isinstance(accuracy, Accuracy) or not gated:
        return _scan_everything(task, 0)
    known = lookup is not None or previous is not None
    if spec.gate == "auto" and not _gate_pays(task, accuracy, 0 if known else _TAUGHT):
        return _scan_everything(task, 0)
    return _scan_behind_gate(task, accuracy, _make_gate(task, lookup, previous, kernel))


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
    kept = task.scan(np.ones(task.n, bool), gates)
    return *task.found, kept


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
    found = _Found(np.empty((n, spec.k), np.int32), np.empty((n, spec.k)))
    return _Task(factors, levels, ranked, limit, itself, spec.k, np.full(n, np.inf), found, crew, telemetry)


def _rank_levels(n: int) -> int:
    """Return how many levels of the tree for full scans are cut by rank: what is cut by place is 512 ranks or more."""
    return max(0, min(_MOST_RANK_LEVELS, n.bit_length() - 10))


def _audit_rows(accuracy: Accuracy, share: float, pool: int, rows: int) -> int:
    return audit_size(accuracy.recall, (1.0 - accuracy.confidence) * share, pool, rows)


def _gate_pays(task: _Task, accuracy: Accuracy, taught: int) -> bool:
    """Return True when learning, auditing and scanning behind a gate cost less than scanning everything in full."""
    sampled = _audit_rows(accuracy, _ROUNDS[0], max(1, task.n - taught), task.n) + taught
    return 2 * sampled <= task.n and task.n * _BEHIND_GATE < task.pairs()


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
    )
    return Outcome(*task.found, certificate, None)


@dataclass
class _Gate:
    """How far each row may look: radii, float64 (n,), in scaled distance; widened where an audit finds them too short.

    taught: rows that must teach the lookup first. lookup: None until then, and where the radii follow a previous graph.
    """

    kernel: str
    taught: int
    scales: NDArray[np.float64] | None
    lookup: GateLookup | None
    radii: NDArray[np.float64]

    def learn(self, task: _Task, rows: NDArray[np.int64]) -> None:
        """Make the lookup from rows that were scanned in full."""
        assert self.scales is not None  # noqa: S101  (a gate that learns has them)
        neighbors = task.found.neighbors[rows]
        self.lookup = lookup_from_rows(task.factors.points, rows, neighbors, self.scales[rows], self.kernel)
        self.taught, self.radii = 0, self.lookup.radii(self.scales)

    def widen(self, rows: NDArray[np.int64]) -> None:
        """Look farther from rows like those that missed a neighbor."""
        if self.lookup is None or self.scales is None:
            self.radii = self.radii * _WIDEN
            return
        failing = np.zeros(len(self.lookup.multiples), bool)
        failing[self.lookup.bins(self.scales[rows])] = True
        self.lookup = self.lookup.widened(failing, _WIDEN)
        self.radii = self.lookup.radii(self.scales)


def _make_gate(task: _Task, lookup: GateLookup | None, previous: NDArray[np.int32] | None, kernel: str) -> _Gate:
    if previous is not None:
        # A row that had fewer than k neighbors looks at all it may choose from.
        reach, rows = np.empty(task.n), task.levels[0].tree.ids[: task.n]
        with task.telemetry.phase("follow"):
            task.crew.run(
                "follow",
                task.n,
                lambda a, b: bound_rows(task.factors, rows, previous, task.k, a, b, task.bounds, reach),
                grain=64,
            )
        return _Gate(kernel, 0, None, None, reach * _FOLLOWED)
    scales = task.local_scales()
    if lookup is not None:
        return _Gate(kernel, 0, scales, lookup, lookup.radii(scales))
    return _Gate(kernel, _TAUGHT, scales, None, scales)


def _scan_behind_gate(task: _Task, accuracy: Accuracy, gate: _Gate) -> Outcome:
    # One fixed generator: the same input draws the same samples, and gives the same bytes.
    shuffled = np.random.default_rng(0).permutation(task.n)
    rest = np.ones(task.n, bool)
    for widenings, share in enumerate(_ROUNDS):
        taught, pool = gate.taught, len(shuffled) - gate.taught
        if pool < 1:
            break
        size = _audit_rows(accuracy, share, pool, task.n)
        sample, shuffled = shuffled[: taught + size], shuffled[taught + size :]
        sampled = np.zeros(task.n, bool)
        sampled[sample] = True
        task.scan_in_full(sampled, "audit")
        rest &= ~sampled
        if taught:
            gate.learn(task, sample[:taught])
        audited = sample[taught:]
        missed = count_kept_out(task.factors.points, audited, task.found.neighbors[audited], gate.radii[audited])
        losses = missed / np.minimum(task.k, np.maximum(1, np.minimum(task.limit[audited], task.n - 1)))
        lower = graph_recall_lower_bound(losses, (1.0 - accuracy.confidence) * share, pool, task.n)
        if lower >= accuracy.recall:
            kept, pairs = task.scan(rest, gate.radii), task.pairs(rest)
            certificate = Certificate(
                "gated",
                "float64",
                exact=False,
                recall=float(1.0 - losses.mean() * rest.mean()),
                recall_lower=lower,
                confidence=accuracy.confidence,
                audited_queries=size,
                missed_neighbors=int(missed.sum()),
                degenerate_rows=task.factors.degenerate,
                gate1_candidates=pairs,
                gate1_kept=kept,
                gate1_pruned=pairs - kept,
                gate1_false_negatives=int(missed.sum()),
                gate1_widenings=widenings,
            )
            return Outcome(*task.found, certificate, gate.lookup)
        gate.widen(audited[missed > 0])
    return _scan_everything(task, len(_ROUNDS) - 1)


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
    reach = np.sqrt(np.max([_squared(points, rows, entries) for entries in neighbors.T], axis=0))
    # Among repeated points a local scale can be zero; such queries need no more than what lies at distance zero.
    needed = np.divide(reach, scales, out=np.ones(len(rows)), where=scales > 0.0)
    return learn_lookup(scales, needed, kernel, neighbors.shape[1])


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
