"""Neighbors under the residual correlation: a gate on the scaled distance, float32 to rule pairs out, float64 to decide.

Residual correlations decay with the scaled distance, though not monotonically, so true neighbors are found among the
nearest by scaled distance. The gate of a query is a radius there. 32 queries that stand together walk the tree of scaled
points. For those that reach a bucket, inner products V_i · V_j in float32 tell which of its points may be within a query's
bound; their correlations are computed in float64, pair by pair, to bits that do not depend on what else is asked. With an
infinite gate the same loop is the dense scan, which is exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pcct_core.build import Tree
from pcct_core.kernels import correlate, make_scratch
from pcct_core.parallel import Crew
from pcct_core.residual import STRETCH, Factors, Screen
from pcct_core.search import Queries, count_groups, load_group, make_group, make_walk, next_bucket, start_walk
from pcct_core.simd import (
    LANES,
    PAIRS,
    QUERIES,
    count_bits,
    drop_lowest_bit,
    keep_bits,
    lowest_bit,
    multiply_rows,
    project_bucket,
    reach_box,
    scan_bucket,
    screen_bucket,
)
from pcct_core.topk import NO_ID, Front, clear_best, full_best, make_best, radius_bound, settle, write_rows

_DOWN = 1.0 - 2.0**-20  # takes more off a limit than float32 can add to it and to its products


class _Room(NamedTuple):
    """Scratch of one group and one bucket.

    explained: float32 flat (LANES * m), V of the queries in units of the variance. own: float64 (LANES,), their residual
    variances. gates: float64 (LANES,), squared.
    squared: float64 flat (LANES * LANES), by query. products: float32, the same, and a spare row.
    near: uint32 (LANES,), points that a query must look at. active: int64 (LANES + QUERIES,), queries that have any.
    chosen: int64 (LANES + PAIRS,), points that are measured; apart, values: float64 (LANES,), of each. exact: float64
    (PAIRS,), products. kernel: see `kernels.correlate`.
    """

    explained: Any
    own: Any
    gates: Any
    squared: Any
    products: Any
    near: Any
    active: Any
    chosen: Any
    apart: Any
    values: Any
    exact: Any
    kernel: Any


def scan_gated(
    tree: Tree,
    screen: Screen,
    stored: Factors,
    queries: Queries,
    asked: Factors,
    gates: NDArray[np.float64],
    bounds: NDArray[np.float64],
    k: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[np.float64],
    crew: Crew,
    phase: str,
) -> int:
    """Find the k nearest by residual correlation among the points within each asked row's gate.

    tree: of the first points of stored. screen: of that tree. queries.points: asked.points. gates: float64, by row of
    queries.points, radius in scaled distance, inf for all. bounds: float64, by row, squared distance that its k-th nearest
    is known not to exceed, inf for unknown. Writes rows of neighbors and distances as `search.search_tree`
    does. Returns how many pairs passed the gates.
    """
    groups = count_groups(len(queries.rows))
    kept: list[int] = []
    crew.run(
        phase,
        groups,
        lambda a, b: kept.append(
            scan_gated_groups(tree, screen, stored, queries, asked, gates, bounds, k, a, b, neighbors, distances)
        ),
    )
    return sum(kept)


@njit(nogil=True, cache=True)
def scan_gated_groups(tree, screen, stored, queries, asked, gates, bounds, k, first, last, neighbors, distances):
    """Search for the groups [first, last), each 32 consecutive entries of queries.rows; return the pairs that passed."""
    group = make_group(tree)
    walk = make_walk(tree)
    best = make_best(k, tree.coords)
    room = make_room(stored.m)
    kept = 0
    for number in range(first, last):
        lanes, highest = load_group(group, queries, number)
        clear_best(best, lanes)
        for lane in range(lanes):
            best.bounds[lane] = bounds[group.rows[lane]]
        widest = load_room(room, group, lanes, asked, gates, screen.scale)
        front = Front(widest, np.float64(np.inf), NO_ID)
        waiting, node = next_bucket(tree, walk, start_walk(walk), group, front, highest)
        while node >= 0:
            most, passed = scan_gated_bucket(tree, screen, stored, asked, node, group, best, room)
            kept += passed
            if full_best(best, most):
                settle(best, lanes)
            waiting, node = next_bucket(tree, walk, waiting, group, front, highest)
        settle(best, lanes)
        write_rows(best, lanes, group.rows, neighbors, distances)
    return kept


@njit(nogil=True)
def make_room(m):
    """Return scratch for groups whose V has m columns."""
    return _Room(
        np.empty(LANES * m, np.float32),
        np.empty(LANES),
        np.empty(LANES),
        np.empty(LANES * LANES),
        np.empty((LANES + 1) * LANES, np.float32),
        np.empty(LANES, np.uint32),
        np.empty(LANES + QUERIES, np.int64),
        np.empty(LANES + PAIRS, np.int64),
        np.empty(LANES),
        np.empty(LANES),
        np.empty(PAIRS),
        make_scratch(),
    )


@njit(nogil=True)
def load_room(room, group, lanes, asked, gates, scale):
    """Gather what the queries of a group bring along; return their widest squared gate. scale: of the screen."""
    widest = 0.0
    m = asked.m
    room.gates[:] = -1.0
    for lane in range(lanes):
        row = group.rows[lane]
        room.own[lane] = asked.p[row]
        room.gates[lane] = gates[row] * gates[row]
        widest = max(widest, room.gates[lane])
        source = np.int64(asked.place[row]) * asked.width
        for c in range(m):
            room.explained[lane * m + c] = scale * asked.explained[source + c]
    return widest


@njit(nogil=True)
def scan_gated_bucket(tree, screen, stored, asked, node, group, best, room):
    """Let every query whose gate reaches the leaf's bucket append what passes its gate and its bound.

    Returns the largest number of rows that a query has appended, and how many pairs passed a gate.
    """
    bucket = int(tree.bucket[node])
    first = bucket * LANES
    reached = reach_box(group.coords, room.gates, tree.low, tree.high, node, tree.d)
    count, passed, most = 0, 0, -best.size
    while reached != 0:
        lane = lowest_bit(reached)
        reached = drop_lowest_bit(reached)
        limit, gate = group.limit[lane], room.gates[lane]
        squared = room.squared[lane * LANES : (lane + 1) * LANES]
        near = scan_bucket(
            tree.coords, first * tree.d, tree.d, group.coords, lane, tree.ids, first, limit, gate, squared
        )
        if near != 0:
            room.near[lane] = near
            room.active[count] = lane
            count += 1
            passed += count_bits(near)
    if count > 0:
        count = screen_active(screen, stored, bucket, best, room, count)
    for i in range(count):
        lane = int(room.active[i])
        most = max(most, append_correlated(tree, stored, asked, first, lane, group, best, room))
    return most, passed


@njit(nogil=True)
def screen_active(screen, stored, bucket, best, room, count):
    """Keep of the active queries those with points that float32 cannot rule out, and only these points; return how many.

    A point within a query's bound has |K - V_i · V_j| ≥ (1 - bound) sqrt(p_i p_j), and float32 finds the left side to within
    screen.slack (proof at `residual.make_screen`, all in units of the variance), so none is lost.
    """
    multiply_single(screen, stored.m, bucket, room, count)
    kept = 0
    for i in range(count):
        lane = int(room.active[i])
        limit = (1.0 - best.bounds[lane]) * np.sqrt(room.own[lane]) * screen.scale * _DOWN
        at = lane * LANES
        likely = screen_bucket(
            room.squared, at, room.products, at, screen.roots, bucket * LANES, screen.shape, limit, screen.slack
        )
        near = keep_bits(room.near[lane], likely)
        if near != 0:
            room.near[lane] = near
            room.active[kept] = lane
            kept += 1
    return kept


@njit(nogil=True)
def multiply_single(screen, m, bucket, room, count):
    """Write to room.products the inner products of the active queries with the bucket's 32 rows of V, in float32.

    The active ones are rounded up to a multiple of eight by ones that stand for no query: the spare row takes their products.
    """
    for i in range(count, count + QUERIES):
        room.active[i] = LANES
    for i in range(count):
        room.products[room.active[i] * LANES : (room.active[i] + 1) * LANES] = 0.0
    for column in range(0, m, STRETCH):
        offset, width = (bucket * m + column) * LANES, min(STRETCH, m - column)
        for i in range(0, count, QUERIES):
            at, to = query_places(room.active, i, m, column)
            project_bucket(screen.blocks, offset, width, room.explained, at, room.products, to)


@njit(nogil=True)
def query_places(active, i, m, column):
    """Return where the coordinates from `column` on of eight active queries start, and where their products do."""
    a, b, c, d = active[i], active[i + 1], active[i + 2], active[i + 3]
    e, f, g, h = active[i + 4], active[i + 5], active[i + 6], active[i + 7]
    last = LANES - 1
    at = (
        min(a, last) * m + column,
        min(b, last) * m + column,
        min(c, last) * m + column,
        min(d, last) * m + column,
        min(e, last) * m + column,
        min(f, last) * m + column,
        min(g, last) * m + column,
        min(h, last) * m + column,
    )
    return at, (a * LANES, b * LANES, c * LANES, d * LANES, e * LANES, f * LANES, g * LANES, h * LANES)


@njit(nogil=True)
def append_correlated(tree, stored, asked, first, lane, group, best, room):
    """Append one query's near points by residual correlation; return how many candidates it has now.

    first: place of the bucket's first point.
    """
    near, found = room.near[lane], 0
    while near != 0:
        index = tree.ids[first + lowest_bit(near)]
        near = drop_lowest_bit(near)
        if index != group.itself[lane]:
            room.chosen[found] = index
            found += 1
    measure(stored, asked, group.rows[lane], found, room)
    count, bound = best.counts[lane], best.bounds[lane]
    for i in range(found):
        if 1.0 - room.values[i] <= bound:
            to = (best.size + count) * LANES + lane
            best.distances[to] = np.sqrt(max(0.0, 1.0 - room.values[i]))
            best.ids[to] = room.chosen[i]
            count += 1
    best.counts[lane] = count
    return count


@njit(nogil=True)
def measure(stored, asked, row, found, room):
    """Write to room.values the size of the residual correlation of an asked row with the first `found` chosen points.

    At most 32. The only place where pairs are decided: in float64, to bits that do not depend on the company.
    """
    chosen, exact, values = room.chosen, room.exact, room.values
    width = int(stored.width)
    for i in range(found):
        total = 0.0
        for c in range(stored.points.shape[1]):
            gap = stored.points[chosen[i], c] - asked.points[row, c]
            total += gap * gap
        room.apart[i] = total
    room.apart[found:] = 0.0
    correlate(stored.code, room.apart, room.kernel, values)
    for i in range(found, found + PAIRS):
        chosen[i] = chosen[0]
    home, own = int(asked.place[row]) * width, asked.p[row]
    for i in range(0, found, PAIRS):
        a, b, c, d = chosen[i], chosen[i + 1], chosen[i + 2], chosen[i + 3]
        starts = (stored.place[a] * width, stored.place[b] * width, stored.place[c] * width, stored.place[d] * width)
        multiply_rows(asked.explained, home, stored.explained, starts, width, exact)
        for j in range(min(PAIRS, found - i)):
            residual = stored.variance * values[i + j] - exact[j]
            values[i + j] = abs(residual) / np.sqrt(own * stored.p[chosen[i + j]])


@njit(nogil=True, cache=True)
def bound_rows(factors, rows, previous, k, first, last, bounds, gates):
    """Write how far the first k of `previous`, int32 (n, ≥ k), are from each of rows[first:last], by either distance.

    bounds: float64 (n,), squared residual distance that none of them exceeds. gates: float64 (n,), scaled distance of the
    farthest. Both inf for a row that has fewer.
    """
    room = make_room(factors.m)
    for i in range(first, last):
        row = rows[i]
        bounds[row] = gates[row] = np.inf
        if previous[row, k - 1] < 0:
            continue
        least, farthest = 1.0, 0.0
        for start in range(0, k, LANES):
            found = min(LANES, k - start)
            for j in range(found):
                room.chosen[j] = previous[row, start + j]
            measure(factors, factors, row, found, room)
            for j in range(found):
                least = min(least, room.values[j])
                farthest = max(farthest, room.apart[j])
        bounds[row] = radius_bound(np.sqrt(max(0.0, 1.0 - least)), room.values)
        gates[row] = np.sqrt(farthest)
