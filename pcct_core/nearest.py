"""Nearest neighbors and nearest predecessors: the choice between tree search and dense scan is made here, once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_core.build import Tree, build_tree
from pcct_core.dense import scan_points
from pcct_core.parallel import Crew
from pcct_core.search import Queries, count_groups, search_groups, search_tree
from pcct_core.simd import LANES
from pcct_core.telemetry import Telemetry
from pcct_core.topk import NO_ID

_FIRST_RANKS = 2048  # ranks that share one tree; fewer would not fill the threads
_SAMPLES = 4  # groups that probe whether boxes separate the points
_SMALL = 64  # groups; with fewer, probing would cost more than it can save
_LOW_DIMENSION = 9  # up to 8 dimensions no measured data set was faster dense


def find_neighbors(
    points: NDArray[Any],
    k: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[Any],
    crew: Crew,
    telemetry: Telemetry,
) -> str:
    """Write the k nearest other points of every point: neighbors int32 (n, k), distances T (n, k); points T (n, d).

    Returns the search that was used.
    """
    n = points.shape[0]
    with telemetry.phase("tree"):
        tree = build_tree(points, crew)
    limit = np.full(n, NO_ID, np.int32)
    queries = Queries(points, tree.ids[:n], limit, np.arange(n, dtype=np.int32))
    with telemetry.phase("search"):
        return search_points(tree, queries, k, neighbors, distances, crew)


def find_predecessors(
    points: NDArray[Any],
    k: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[Any],
    crew: Crew,
    telemetry: Telemetry,
) -> str:
    """Write the k nearest of rows 0 … r-1 for every row r of points, T (n, d) in rank order; arrays as in `find_neighbors`.

    Returns the search used for the level with the most ranks.
    """
    n = points.shape[0]
    limit = np.arange(n, dtype=np.int32)
    itself = np.full(n, -1, np.int32)
    crew.expect("search", sum(count_groups(stop - start) for start, stop in _ranges(n)))
    methods = []
    for tree, rows in predecessor_levels(points, crew, telemetry):
        with telemetry.phase("search"):
            queries = Queries(points, rows, limit, itself)
            methods.append(search_points(tree, queries, k, neighbors, distances, crew))
    return methods[0]


def predecessor_levels(
    points: NDArray[Any], crew: Crew, telemetry: Telemetry
) -> Iterator[tuple[Tree, NDArray[np.int32]]]:
    """Yield trees of the first ranks, and the ranks, int32 in tree order, that should search each; the last ranks first.

    Ranks [3p/8, p) search the tree of ranks below p, then p becomes 3p/8. So at least three eighths of what a query meets
    are allowed, and all trees together cost 1.6 times the first one. Doubling (p/2) costs more trees, p/4 more candidates.
    Source: Gu, Napier, Sun, Wang 2022, section 4 (prefix doubling).
    """
    ranges = _ranges(points.shape[0])
    crew.expect("tree", sum(stop for _, stop in ranges))
    for start, stop in ranges:
        with telemetry.phase("tree"):
            tree = build_tree(points[:stop], crew)
        ranks = tree.ids[:stop]
        yield tree, ranks[ranks >= start]


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
