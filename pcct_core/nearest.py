"""Nearest neighbors and predecessors: tree search or dense scan, chosen here, once. And all neighbors within a radius."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pcct_core.build import Tree, build_tree, lay_out_trees
from pcct_core.dense import scan_points
from pcct_core.errors import TooManyPairs
from pcct_core.groups import Groups
from pcct_core.parallel import Crew
from pcct_core.place import Placed, refuse_lost
from pcct_core.search import Queries, count_groups, count_rows, count_within, list_within, search_groups, search_tree
from pcct_core.simd import LANES
from pcct_core.telemetry import Telemetry
from pcct_core.topk import NO_ID

_FIRST_RANKS = 2048  # ranks that share one tree; fewer would not fill the threads
_SAMPLES = 4  # groups that probe whether boxes separate the points
_SMALL = 64  # groups; with fewer, probing would cost more than it can save
_COUNTED = 16  # groups whose rows stand for all when there are too many pairs
_HALVINGS = 24  # of the interval that holds the largest radius that would fit
_LOW_DIMENSION = 9  # up to 8 dimensions no measured data set was faster dense


def find_neighbors(
    placed: Placed,
    k: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[Any],
    crew: Crew,
    telemetry: Telemetry,
    groups: Groups | None = None,
) -> str:
    """Write the k nearest other points of every point: neighbors int32 (n, k) and their keys (n, k), of type placed.key_type.

    groups: only points of a row's own group are its neighbors, -1 and inf where there are too few; None for one group of all.
    Returns the search that was used, for the largest group.
    """
    if groups is not None:
        return _find_in_groups(placed, False, k, neighbors, distances, groups, crew, telemetry)
    return _find_among(placed, None, k, neighbors, distances, crew, telemetry)


def _find_among(
    placed: Placed,
    group: Groups | None,
    k: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[Any],
    crew: Crew,
    telemetry: Telemetry,
) -> str:
    """Write the k nearest other points of the points of one group, None for all."""
    with telemetry.phase("tree"):
        tree = build_tree(placed.points, crew, weights=placed.scale.weights, groups=group)
    queries = _every_point(placed, tree)
    with telemetry.phase("search"):
        return search_points(tree, queries, k, neighbors, distances, crew)


def _every_point(placed: Placed, tree: Tree) -> Queries:
    n = placed.points.shape[0]
    limit = np.full(n, NO_ID, np.int32)
    return Queries(placed.points, tree.ids[: tree.n], limit, np.arange(n, dtype=np.int32), placed.measure())


def _every_predecessor(placed: Placed, rows: NDArray[np.int32]) -> Queries:
    n = placed.points.shape[0]
    limit = np.arange(n, dtype=np.int32)
    return Queries(placed.points, rows, limit, np.full(n, -1, np.int32), placed.measure())


def _of_forest(queries: Queries, tree: Tree, groups: Groups) -> Queries:
    """Return queries for which every bucket of a forest asks its own tree."""
    buckets, roots = lay_out_trees(np.diff(groups.starts))
    return queries._replace(rows=tree.ids, roots=np.repeat(roots, np.diff(buckets)).astype(np.int32))


def _find_in_groups(
    placed: Placed,
    predecessors: bool,
    k: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[Any],
    groups: Groups,
    crew: Crew,
    telemetry: Telemetry,
) -> str:
    """Write the k nearest within each group: large ones by themselves, which may be scanned, the others as forests."""
    neighbors.fill(-1)
    distances.fill(np.inf)
    large, small = groups.parted(_SMALL * LANES)
    ranges = [
        each for group in large for each in (_ranges(len(group.rows)) if predecessors else [(0, len(group.rows))])
    ]
    crew.expect("tree", sum(stop for _, stop in ranges) + len(small.rows))
    buckets = int(lay_out_trees(np.diff(small.starts))[0][-1])
    crew.expect("search", sum(count_groups(stop - start) for start, stop in ranges) + buckets)
    methods = []
    for group in large:
        find = _find_before if predecessors else _find_among
        methods.append(find(placed, group, k, neighbors, distances, crew, telemetry))
    for forest in small.batches(placed.points.shape[1]):
        with telemetry.phase("tree"):
            tree = build_tree(placed.points, crew, weights=placed.scale.weights, groups=forest)
        queries = _every_predecessor(placed, tree.ids) if predecessors else _every_point(placed, tree)
        with telemetry.phase("search"):
            search_tree(tree, _of_forest(queries, tree, forest), k, neighbors, distances, crew)
    return methods[0] if methods else "tree"


def find_predecessors(
    placed: Placed,
    k: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[Any],
    crew: Crew,
    telemetry: Telemetry,
    groups: Groups | None = None,
) -> str:
    """Write the k nearest of rows 0 … r-1 for every row r of points in rank order; arrays and groups as in `find_neighbors`.

    Returns the search used for the level with the most ranks, of the largest group.
    """
    if groups is not None:
        return _find_in_groups(placed, True, k, neighbors, distances, groups, crew, telemetry)
    crew.expect("search", sum(count_groups(stop - start) for start, stop in _ranges(len(placed.points))))
    return _find_before(placed, None, k, neighbors, distances, crew, telemetry)


def _find_before(
    placed: Placed,
    group: Groups | None,
    k: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[Any],
    crew: Crew,
    telemetry: Telemetry,
) -> str:
    """Write the k nearest predecessors of the points of one group, None for all."""
    methods = []
    queries = _every_predecessor(placed, np.empty(0, np.int32))
    for tree, rows in predecessor_levels(placed.points, crew, telemetry, placed.scale.weights, group):
        with telemetry.phase("search"):
            methods.append(search_points(tree, queries._replace(rows=rows), k, neighbors, distances, crew))
    return methods[0]


def predecessor_levels(
    points: NDArray[Any],
    crew: Crew,
    telemetry: Telemetry,
    weights: NDArray[Any] | None = None,
    group: Groups | None = None,
) -> Iterator[tuple[Tree, NDArray[np.int32]]]:
    """Yield trees of the first ranks, and the ranks, int32 in tree order, that should search each; the last ranks first.

    group: the ranks that there are, None for all.

    Ranks [3p/8, p) search the tree of ranks below p, then p becomes 3p/8. So at least three eighths of what a query meets
    are allowed, and all trees together cost 1.6 times the first one. Doubling (p/2) costs more trees, p/4 more candidates.
    Source: Gu, Napier, Sun, Wang 2022, section 4 (prefix doubling).
    """
    ranges = _ranges(points.shape[0] if group is None else len(group.rows))
    if group is None:
        crew.expect("tree", sum(stop for _, stop in ranges))
    for start, stop in ranges:
        with telemetry.phase("tree"):
            if group is None:
                tree = build_tree(points[:stop], crew, weights=weights)
            else:
                tree = build_tree(points, crew, weights=weights, groups=group.first_rows(stop))
        ranks = tree.ids[:stop]
        yield tree, ranks[ranks >= (start if group is None else group.rows[start])]


def _ranges(n: int) -> list[tuple[int, int]]:
    """Return the ranges of ranks that share a tree, (start, stop), the last first."""
    ranges = []
    stop = n
    while stop > 0:
        start = stop * 3 // 8 if stop > _FIRST_RANKS else 0
        ranges.append((start, stop))
        stop = start
    return ranges


def search_points(
    tree: Tree, queries: Queries, k: int, neighbors: NDArray[np.int32], distances: NDArray[Any], crew: Crew
) -> str:
    """Find the k nearest of every asked row by the faster of two exact searches; return its name, "tree" or "dense".

    Write rows of neighbors, int32 (m, k), and distances, T (m, k).
    """
    if boxes_separate(tree, queries, k, neighbors, distances):
        search_tree(tree, queries, k, neighbors, distances, crew)
        return "tree"
    scan_points(tree, queries, k, neighbors, distances, crew)
    return "dense"


def boxes_separate(tree: Tree, queries: Queries, k: int, neighbors: NDArray[np.int32], distances: NDArray[Any]) -> bool:
    """Return True when the tree keeps queries away from so many buckets that it beats a dense scan.

    A few groups are searched through the tree (their rows are written) and the share of buckets that their queries scanned
    is compared with the share at which both searches cost the same, measured over dimensions 4 to 128: see
    docs/CORE_IMPLEMENTATIONS.md. What decides is the intrinsic dimension of the points, which this sees and d alone does not.
    """
    groups = len(queries.rows) // LANES
    if groups < _SMALL or tree.d < _LOW_DIMENSION:
        return True
    starts = [groups * i // _SAMPLES for i in range(_SAMPLES)]
    scans = sum(search_groups(tree, queries, k, start, start + 1, neighbors, distances) for start in starts)
    share = scans / (_SAMPLES * len(tree.ids))
    return bool(share < 0.4 + 5.0 / tree.d)


def same_arrays(one: Any, other: Any) -> bool:
    """Return True when two tuples hold the same, arrays in them of one type and shape, value by value."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same_arrays, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)


class RadiusNeighbors(NamedTuple):
    """All points within a radius of each query, row behind row.

    offsets: int64 (m + 1,); row i has neighbors[offsets[i]:offsets[i + 1]], ascending by (distance, index).
    neighbors: int32 (pairs,). distances: T (pairs,), in the metric's unit.
    """

    offsets: NDArray[np.int64]
    neighbors: NDArray[np.int32]
    distances: NDArray[Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RadiusNeighbors) and same_arrays(tuple(self), tuple(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.offsets.shape, self.neighbors.tobytes()))


Asked: TypeAlias = tuple[Tree, Queries]


@dataclass
class _Forests:
    """The forests of groups, each with its queries, as often as one goes through them: several are made anew each time."""

    placed: Placed
    groups: Groups
    crew: Crew
    telemetry: Telemetry
    only: Asked | None = None

    def __iter__(self) -> Iterator[Asked]:
        if self.only is not None:
            yield self.only
            return
        for forest in self.groups.batches(self.placed.points.shape[1]):
            with self.telemetry.phase("tree"):
                tree = build_tree(self.placed.points, self.crew, weights=self.placed.scale.weights, groups=forest)
            asked = tree, _of_forest(_every_point(self.placed, tree), tree, forest)
            self.only = asked if len(forest.rows) == len(self.groups.rows) else None
            yield asked


def find_radius(
    placed: Placed,
    radius: float,
    max_pairs: int,
    crew: Crew,
    telemetry: Telemetry,
    groups: Groups | None = None,
) -> RadiusNeighbors:
    """Return all other points within radius, in the metric's unit, of every point; see `find_within`.

    groups: only points of a row's own group are its neighbors; None for one group of all.
    """
    if groups is not None:
        _, several = groups.parted(len(groups.rows) + 1)
        buckets = int(lay_out_trees(np.diff(several.starts))[0][-1])
        crew.expect("count", buckets)
        crew.expect("search", buckets)
        forests = _Forests(placed, several, crew, telemetry)
        return find_within(forests, placed, placed, radius, max_pairs, crew, telemetry)
    with telemetry.phase("tree"):
        tree = build_tree(placed.points, crew, weights=placed.scale.weights)
    return find_within_points(tree, placed, radius, max_pairs, crew, telemetry)


def find_within_points(
    tree: Tree, placed: Placed, radius: float, max_pairs: int, crew: Crew, telemetry: Telemetry
) -> RadiusNeighbors:
    """Return all other points within radius of every point of the tree, which is that of placed.points."""
    return find_within([(tree, _every_point(placed, tree))], placed, placed, radius, max_pairs, crew, telemetry)


def find_within(
    trees: Iterable[Asked],
    placed: Placed,
    asked: Placed,
    radius: float,
    max_pairs: int,
    crew: Crew,
    telemetry: Telemetry,
) -> RadiusNeighbors:
    """Return all points whose distance in the metric's unit, as it is returned, is at most radius, for every row.

    trees: of placed.points, each with queries of asked.points, a row at most once; gone through twice. The pairs are counted
    before memory is taken for them: raises TooManyPairs when they are more than max_pairs, InvalidPoints for distances that are
    lost (see `place.refuse_lost`).
    """
    reach = placed.reach(radius)
    offsets = np.zeros(len(asked.points) + 1, np.int64)
    left = max_pairs
    for tree, queries in trees:
        with telemetry.phase("count"):
            counted = count_within(tree, queries, reach, left, offsets, crew)
        if counted is None:
            raise _too_many(tree, queries, placed, radius, max_pairs, crew)
        left -= counted
    np.cumsum(offsets, out=offsets)
    neighbors = np.empty(offsets[-1], np.int32)
    keys = np.empty(offsets[-1], placed.key_type)
    for tree, queries in trees:
        with telemetry.phase("search"):
            list_within(tree, queries, reach, offsets, neighbors, keys, crew)
    with telemetry.phase("finish"):
        if placed.scale.least:
            rows = np.repeat(np.arange(len(asked.points)), np.diff(offsets))
            refuse_lost(placed, asked, rows, neighbors, keys)
        distances = keys if keys.dtype == placed.dtype else np.empty(len(keys), placed.dtype)
        placed.finish(keys, distances, crew)
    telemetry.counts["pairs"] = len(neighbors)
    return RadiusNeighbors(offsets, neighbors, distances)


def _too_many(tree: Tree, queries: Queries, placed: Placed, radius: float, max_pairs: int, crew: Crew) -> TooManyPairs:
    m = len(queries.points)
    pairs = _estimate_pairs(tree, queries, placed, radius, crew)
    said = (
        f"radius {radius} holds about {pairs:,.0f} pairs, {pairs / m:,.0f} neighbors per row on average; "
        f"at most {max_pairs:,} pairs are allowed"
    )
    fitting = _fitting_radius(tree, queries, placed, radius, max_pairs, crew)
    if fitting is None:
        return TooManyPairs(
            f"{said}, and no smaller radius would fit: drop duplicates, or ask for k neighbors", "radius"
        )
    return TooManyPairs(f"{said}; use a radius of about {_rounded_down(fitting):g} or less", "radius")


def _rounded_down(value: float) -> float:
    """Return a positive number with two digits, no larger than it is: what is advised must fit as it is written."""
    return float(Context(prec=2, rounding=ROUND_DOWN).create_decimal_from_float(value))


def _estimate_pairs(tree: Tree, queries: Queries, placed: Placed, radius: float, crew: Crew) -> float:
    """Return how many pairs there are within radius of all points that ask, judged by a few groups of 32 rows."""
    groups = count_groups(len(queries.rows))
    reach = placed.reach(radius)
    scratch = np.zeros(len(queries.points) + 1, np.int64)
    chosen = sorted({groups * i // _COUNTED for i in range(_COUNTED)})
    counted, rows = 0, 0
    for group in chosen:
        crew.check()
        counted += count_rows(tree, queries, reach, group, group + 1, scratch)
        rows += int(np.count_nonzero(queries.rows[group * LANES : (group + 1) * LANES] != NO_ID))
    return counted / rows * len(queries.points)


def _fitting_radius(
    tree: Tree, queries: Queries, placed: Placed, radius: float, max_pairs: int, crew: Crew
) -> float | None:
    """Return a radius that holds nine tenths of max_pairs or less, by the same judgement; None when there is none."""
    low_corner, high_corner = tree.low.reshape(-1, tree.d).min(axis=0), tree.high.reshape(-1, tree.d).max(axis=0)
    high = min(radius, placed.span(low_corner, high_corner))
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = _estimate_pairs(tree, queries, placed, middle, crew) <= 0.9 * max_pairs
        low, high = (middle, high) if fits else (low, middle)
    return low or None
