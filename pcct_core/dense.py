"""The dense scan, for points that boxes cannot separate: a matrix product filters, exact distances decide.

128 queries meet 512 points at a time. |x - q|² / 2 = |x|² / 2 - x·q + |q|² / 2, so one matrix product and a comparison
tell which points may be within a query's bound; whole buckets that hold one are scanned by the exact kernel of the tree
search. Both use the same order, ties and arithmetic, so the answers are the same bytes. Memory: the points once more, and
per thread a block of 128 × 512 products.

The filter loses nothing. Let u be the unit roundoff, x and q centered (an exact shift up to u|x|, u|q|), and
R = |q| + max |x|. The product of length d, the halved norms and their difference are each within (d + 2) u R² of their
exact values, the shifted squared distance within 4 u R² of the unshifted one, and the distance that the exact kernel
computes within (d + 2) u of it, relatively. Weights add a rounding, u|x| and u|q|, to the shift, and one to every
difference: 6 u R². Altogether less than 4 (d + 8) u R², for d u far below 1; the bound is widened by that.
Source of the expansion: Johnson, Douze, Jégou 2019, section 4; of the bounds: Higham 2002, section 3.1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.blas import single_threaded_blas
from pcct_core.build import Tree
from pcct_core.jit import entry, inner
from pcct_core.parallel import Crew
from pcct_core.search import (
    Queries,
    count_groups,
    load_group,
    make_groups,
    part_group,
    scan_lane,
    settle_keys,
    sort_pairs,
)
from pcct_core.simd import LANES, fit_below
from pcct_core.topk import clear_best, full_best, make_bests, open_front, part_best, settle, write_rows

_TEAM = 4  # groups whose queries share one product; 128 rows keep BLAS near its peak
_CHUNK = 16  # buckets per product; 128 × 512 float32 products are a quarter of a typical second-level cache


class _Rows(NamedTuple):
    """The tree's points as rows, in tree order.

    rows: T (buckets * LANES, d), centered and weighted, zero where empty. halves: T flat, |x|² / 2, inf where empty.
    center: float64 (d,). weights: T (d,). longest: float64, largest |x|. low, high: T (chunks, d), boxes of _CHUNK buckets
    each, neither centered nor weighted.
    """

    rows: Any
    halves: Any
    center: Any
    weights: Any
    longest: float
    low: Any
    high: Any


def scan_points(
    tree: Tree, queries: Queries, k: int, neighbors: NDArray[np.int32], distances: NDArray[Any], crew: Crew
) -> None:
    """Find the k nearest of every asked row, as `search.search_tree` does and with the same answer."""
    rows = _lay_out_rows(tree)
    teams = (len(queries.rows) + _TEAM * LANES - 1) // (_TEAM * LANES)
    with single_threaded_blas():
        crew.run(
            "search",
            teams,
            lambda a, b: scan_teams(tree, rows, queries, k, a, b, neighbors, distances),
            units=count_groups(len(queries.rows)) / max(1, teams),
        )


def _lay_out_rows(tree: Tree) -> _Rows:
    d, dtype = tree.d, tree.coords.dtype
    rows = tree.coords.reshape(-1, d, LANES).transpose(0, 2, 1).copy().reshape(-1, d)
    center = rows[: tree.n].mean(axis=0, dtype=np.float64)
    weights = tree.weights if len(tree.weights) else np.ones(d, dtype)
    rows[: tree.n] = (rows[: tree.n] - center) * weights
    rows[tree.n :] = 0
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    longest = float(np.sqrt(squares.max()))
    halves = (squares / 2).astype(dtype)
    halves[tree.n :] = np.inf
    leaves = np.flatnonzero(tree.skip == np.arange(1, len(tree.skip) + 1))
    starts = np.arange(0, len(leaves), _CHUNK)
    low = np.minimum.reduceat(tree.low.reshape(-1, d)[leaves], starts, axis=0)
    high = np.maximum.reduceat(tree.high.reshape(-1, d)[leaves], starts, axis=0)
    return _Rows(rows, halves, center, weights, longest, low, high)


@entry
def scan_teams(tree, rows, queries, k, first, last, neighbors, distances):
    """Search for the teams [first, last), each _TEAM groups of 32 consecutive entries of queries.rows."""
    measure = queries.measure
    groups, bests = make_groups(_TEAM, tree), make_bests(_TEAM, k, distances, tree.coords)
    lanes = np.empty(_TEAM, np.int64)
    reaches = np.empty(_TEAM, tree.coords.dtype)
    centered = np.zeros((_TEAM * LANES, tree.d), tree.coords.dtype)
    squares = np.empty(_TEAM * LANES, np.float64)
    fits = np.empty(_TEAM * LANES, tree.coords.dtype)
    product = np.empty(_TEAM * LANES * _CHUNK * LANES, tree.coords.dtype)
    squared = np.empty(LANES, tree.coords.dtype)
    order, away = np.empty(rows.low.shape[0], np.int32), np.empty(rows.low.shape[0], np.float64)
    buckets = tree.ids.shape[0] // LANES
    for team in range(first, last):
        for g in range(_TEAM):
            lanes[g] = 0
            reaches[g] = -1
            if (team * _TEAM + g) * LANES < queries.rows.shape[0]:
                group, best = part_group(groups, g, tree.d), part_best(bests, g)
                lanes[g] = load_group(group, queries, team * _TEAM + g)[0]
                clear_best(best, lanes[g])
                reaches[g] = open_front(best).bound
                center_group(group, g, rows, centered, squares)
                widen_bounds(best, g, rows, squares, fits)
        order_chunks(part_group(groups, 0, tree.d), rows, order, away)
        for chunk in order:
            if not reach_chunk(groups, lanes, reaches, rows, chunk):
                continue
            start = chunk * _CHUNK
            stop = min(buckets, start + _CHUNK)
            width = (stop - start) * LANES
            block = product[: _TEAM * LANES * width].reshape((_TEAM * LANES, width))
            np.dot(centered, rows.rows[start * LANES : stop * LANES].T, block)
            for g in range(_TEAM):
                group, best = part_group(groups, g, tree.d), part_best(bests, g)
                for bucket in range(start, stop):
                    most = -best.size
                    column = (bucket - start) * LANES
                    for lane in range(lanes[g]):
                        row = g * LANES + lane
                        if fit_below(product, row * width + column, rows.halves, bucket * LANES, fits[row]) != 0:
                            most = max(most, scan_lane(tree, bucket, lane, group, best, squared, measure))
                    if full_best(best, most):
                        reaches[g] = settle_keys(measure, best, lanes[g]).bound
                        widen_bounds(best, g, rows, squares, fits)
        for g in range(_TEAM):
            group, best = part_group(groups, g, tree.d), part_best(bests, g)
            settle(best, lanes[g])
            write_rows(best, lanes[g], group.rows, neighbors, distances)


@inner
def center_group(group, g, rows, centered, squares):
    """Write the group's queries, centered, as rows of the team's block, and their squared lengths."""
    for lane in range(LANES):
        total = 0.0
        for c in range(rows.center.shape[0]):
            value = (group.coords[c * LANES + lane] - rows.center[c]) * rows.weights[c]
            centered[g * LANES + lane, c] = value
            total += value * value
        squares[g * LANES + lane] = total


@inner
def widen_bounds(best, g, rows, squares, fits):
    """Write what |x|² / 2 - x·q may be at most for a point within each query's bound: see the proof at the top."""
    d = rows.center.shape[0]
    unit = np.float64(np.finfo(fits.dtype).eps) / 2
    for lane in range(LANES):
        square = squares[g * LANES + lane]
        span = np.sqrt(square) + rows.longest
        slack = 4 * (d + 8) * unit * span * span
        fits[g * LANES + lane] = (np.float64(best.bounds[lane]) - square + slack) / 2


@inner
def box_gap(group, low, high, weights):
    """Return the squared distance between the group's box and another, T (d,) corners; weights: T (d,)."""
    total = low.dtype.type(0)
    for c in range(low.shape[0]):
        gap = max(low[c] - group.high[c], group.low[c] - high[c])
        if gap > 0:
            gap *= weights[c]
            total += gap * gap
    return total


@inner
def order_chunks(group, rows, order, away):
    """Write the chunks by the distance of their middles to that of the group's box, nearest first, to order, int32 (chunks,).

    away: float64 (chunks,), receives four times these distances, squared.
    """
    for chunk in range(order.shape[0]):
        order[chunk], away[chunk] = chunk, 0.0
        for c in range(rows.low.shape[1]):
            gap = (rows.low[chunk, c] + rows.high[chunk, c] - group.low[c] - group.high[c]) * rows.weights[c]
            away[chunk] += gap * gap
    sort_pairs(order, away)


@inner
def reach_chunk(groups, lanes, reaches, rows, chunk):
    """Return True when some group of the team can gain from the chunk."""
    reached, d = False, rows.low.shape[1]
    for g in range(_TEAM):
        if lanes[g] > 0:
            gap = box_gap(part_group(groups, g, d), rows.low[chunk], rows.high[chunk], rows.weights)
            reached |= gap <= reaches[g]
    return reached
