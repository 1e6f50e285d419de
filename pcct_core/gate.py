"""Neighbors under the residual correlation: a gate on the scaled distance, and float64 behind it.

Residual correlations decay with the scaled distance, though not monotonically, so true neighbors are found among the
nearest by scaled distance. The gate of a query is a radius there. 32 queries that stand together walk the tree of scaled
points; the inner products V_i · V_j of those that reach a bucket, the kernel and the k best follow while the bucket's rows
of V are in cache. With an infinite gate the same loop is the dense scan, which is exact, and computes every pair to the
same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pcct_core.build import Tree
from pcct_core.kernels import correlate, correlate_one, make_scratch
from pcct_core.parallel import Crew
from pcct_core.residual import COLUMNS, SINGLE_COLUMNS, Factors
from pcct_core.search import Queries, count_groups, load_group, make_group, make_walk, next_bucket, start_walk
from pcct_core.simd import (
    LANES,
    QUERIES,
    count_bits,
    drop_lowest_bit,
    fit_below,
    keep_bits,
    lowest_bit,
    project_bucket,
    reach_box,
    scan_bucket,
)
from pcct_core.topk import NO_ID, Front, clear_best, full_best, make_best, settle, write_rows

ALL = np.uint32(2**32 - 1)  # the mask of all points of a bucket


class _Room(NamedTuple):
    """Scratch of one group and one bucket.

    explained: float64 flat (LANES * m), V of the queries. own: float64 (LANES,), their residual variances.
    explained_single: float32, as explained. partial: float32 (QUERIES * LANES,).
    gates: float64 (LANES,), squared. squared: float64 flat (LANES * LANES), by query. products: the same, and a spare row.
    near: uint32 (LANES,), points within the gate. active: int64 (LANES + QUERIES,), queries that have any.
    values, ones, zeros, variances: float64 (LANES,). kernel: see `kernels.correlate`.
    """

    explained: Any
    explained_single: Any
    partial: Any
    own: Any
    gates: Any
    squared: Any
    products: Any
    near: Any
    active: Any
    values: Any
    ones: Any
    zeros: Any
    variances: Any
    kernel: Any


def scan_gated(
    tree: Tree,
    stored: Factors,
    queries: Queries,
    asked: Factors,
    gates: NDArray[np.float64],
    k: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[np.float64],
    crew: Crew,
    phase: str,
) -> int:
    """Find the k nearest by residual correlation among the points within each asked row's gate.

    tree: of stored.points. queries.points: asked.points. gates: float64, by row of queries.points, radius in scaled
    distance, inf for all. Writes rows of neighbors and distances as `search.search_tree` does.
    Returns how many pairs passed the gates.
    """
    groups = count_groups(len(queries.rows))
    kept: list[int] = []
    crew.run(
        phase,
        groups,
        lambda a, b: kept.append(scan_gated_groups(tree, stored, queries, asked, gates, k, a, b, neighbors, distances)),
    )
    return sum(kept)


@njit(nogil=True, cache=True)
def scan_gated_groups(tree, stored, queries, asked, gates, k, first, last, neighbors, distances):
    """Search for the groups [first, last), each 32 consecutive entries of queries.rows; return the pairs that passed."""
    group = make_group(tree)
    walk = make_walk(tree)
    best = make_best(k, tree.coords)
    room = make_room(stored.m)
    kept = 0
    for number in range(first, last):
        lanes, highest = load_group(group, queries, number)
        clear_best(best, lanes)
        widest = load_room(room, group, lanes, asked, gates)
        front = Front(widest, np.float64(np.inf), NO_ID)
        waiting, node = next_bucket(tree, walk, start_walk(walk), group, front, highest)
        while node >= 0:
            most, passed = scan_gated_bucket(tree, stored, node, group, best, room)
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
        np.empty(LANES * m),
        np.empty(LANES * m, np.float32),
        np.empty(QUERIES * LANES, np.float32),
        np.empty(LANES),
        np.empty(LANES),
        np.empty(LANES * LANES),
        np.empty((LANES + 1) * LANES),
        np.empty(LANES, np.uint32),
        np.empty(LANES + QUERIES, np.int64),
        np.empty(LANES),
        np.ones(LANES),
        np.zeros(LANES),
        np.empty(LANES),
        make_scratch(),
    )


@njit(nogil=True)
def load_room(room, group, lanes, asked, gates):
    """Gather what the queries of a group bring along; return their widest squared gate."""
    widest = 0.0
    m = asked.m
    room.gates[:] = -1.0
    for lane in range(lanes):
        row = group.rows[lane]
        room.own[lane] = asked.p[row]
        room.gates[lane] = gates[row] * gates[row]
        widest = max(widest, room.gates[lane])
        home = asked.place[row]
        source = (home // LANES) * m * LANES + home % LANES
        for c in range(m):
            room.explained[lane * m + c] = asked.blocks[source + c * LANES]
            room.explained_single[lane * m + c] = asked.blocks[source + c * LANES]
    return widest


@njit(nogil=True)
def scan_gated_bucket(tree, stored, node, group, best, room):
    """Let every query whose gate reaches the leaf's bucket append what passes its gate and its bound.

    Returns the largest number of rows that a query has appended, and how many pairs passed a gate.
    """
    bucket = tree.bucket[node]
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
    if count == 0:
        return most, passed
    for place in range(LANES):
        index = tree.ids[first + place]
        room.variances[place] = stored.p[index] if index < tree.n else 1.0
    if stored.single.shape[0] > 0 and best.settled[0]:
        count = filter_active(tree, stored, node, group, best, room, count)
    multiply_bucket(stored, bucket, room, count)
    for i in range(count):
        lane = int(room.active[i])
        most = max(most, append_correlated(tree, stored, first, lane, group, best, room))
    return most, passed


@njit(nogil=True)
def multiply_bucket(stored, bucket, room, count):
    """Write to room.products the inner products of the active queries with the bucket's 32 rows of V, in float64."""
    m = stored.m
    start_products(room, count)
    for column in range(0, m, COLUMNS):
        width = min(COLUMNS, m - column)
        for i in range(0, count, QUERIES):
            at, to = query_places(room.active, i, m, column)
            project_bucket(stored.blocks, (bucket * m + column) * LANES, width, room.explained, at, room.products, to)


@njit(nogil=True)
def multiply_single(stored, bucket, room, count):
    """Write the same products from V in float32; stretches of SINGLE_COLUMNS are summed in it, then added in float64."""
    m = stored.m
    start_products(room, count)
    partial = room.partial
    for column in range(0, m, SINGLE_COLUMNS):
        width = min(SINGLE_COLUMNS, m - column)
        for i in range(0, count, QUERIES):
            at, to = query_places(room.active, i, m, column)
            partial[:] = 0
            places = (0, LANES, 2 * LANES, 3 * LANES)
            project_bucket(
                stored.single, (bucket * m + column) * LANES, width, room.explained_single, at, partial, places
            )
            for j in range(LANES):
                room.products[to[0] + j] += partial[j]
                room.products[to[1] + j] += partial[LANES + j]
                room.products[to[2] + j] += partial[2 * LANES + j]
                room.products[to[3] + j] += partial[3 * LANES + j]


@njit(nogil=True)
def start_products(room, count):
    """Set the products of the first `count` active queries to zero; round the active ones up to a multiple of four.

    What is added stands for no query: its products go to the spare row, which is never read.
    """
    for i in range(count, count + QUERIES):
        room.active[i] = LANES
    for i in range(count):
        room.products[room.active[i] * LANES : (room.active[i] + 1) * LANES] = 0.0


@njit(nogil=True)
def query_places(active, i, m, column):
    """Return where the coordinates from `column` on of four active queries start, and where their products do."""
    a, b, c, d = active[i], active[i + 1], active[i + 2], active[i + 3]
    last = LANES - 1
    at = (min(a, last) * m + column, min(b, last) * m + column, min(c, last) * m + column, min(d, last) * m + column)
    return at, (a * LANES, b * LANES, c * LANES, d * LANES)


@njit(nogil=True)
def filter_active(tree, stored, node, group, best, room, count):
    """Keep of the active queries those for which float32 products leave some point of the bucket a chance; return how many.

    A product in float32 is within stored.slack of the float64 one (proof at `residual.add_filter`), so no point within a
    query's bound is lost: 1 - (|K - product| + slack) / sqrt(p_i p_j) is at most its true 1 - |rho|. First with one bound on K
    and one on p_j for the whole bucket, which is enough for most, then point by point.
    """
    bucket = np.int64(tree.bucket[node])
    multiply_single(stored, bucket, room, count)
    least = room.variances[0]
    for j in range(1, LANES):
        least = min(least, room.variances[j])
    kept = 0
    values = room.values
    for i in range(count):
        lane = int(room.active[i])
        top = stored.variance * correlate_one(stored.code, box_distance(tree, node, group, lane))
        spare = (1.0 - best.bounds[lane]) * np.sqrt(room.own[lane] * least) - top - stored.slack
        at = lane * LANES
        if spare > 0.0 and all_within(room.products, at, room.zeros, spare):
            continue
        correlate(stored.code, room.squared[at : at + LANES], room.kernel, values)
        for j in range(LANES):
            residual = stored.variance * values[j] - room.products[at + j]
            values[j] = (abs(residual) + stored.slack) / np.sqrt(room.own[lane] * room.variances[j])
        if keep_bits(room.near[lane], fit_below(values, 0, room.ones, 0, best.bounds[lane])) != 0:
            room.active[kept] = lane
            kept += 1
    return kept


@njit(nogil=True)
def all_within(products, at, zeros, bound):
    """Return True when the 32 products from `at` on all lie in [-bound, bound]."""
    above = fit_below(products, at, zeros, 0, bound)
    return keep_bits(above, fit_below(zeros, 0, products, at, bound)) == ALL


@njit(nogil=True)
def box_distance(tree, node, group, lane):
    """Return the squared distance from one query to the node's box."""
    total = 0.0
    for c in range(tree.d):
        q = group.coords[c * LANES + lane]
        gap = max(max(tree.low[node * tree.d + c] - q, q - tree.high[node * tree.d + c]), 0.0)
        total += gap * gap
    return total


@njit(nogil=True)
def append_correlated(tree, stored, first, lane, group, best, room):
    """Append one query's near points by residual correlation; return how many candidates it has now.

    first: place of the bucket's first point.
    """
    values = room.values
    correlate(stored.code, room.squared[lane * LANES : (lane + 1) * LANES], room.kernel, values)
    for j in range(LANES):
        residual = stored.variance * values[j] - room.products[lane * LANES + j]
        values[j] = abs(residual) / np.sqrt(room.own[lane] * room.variances[j])
    near = keep_bits(room.near[lane], fit_below(values, 0, room.ones, 0, best.bounds[lane]))
    count = best.counts[lane]
    while near != 0:
        place = lowest_bit(near)
        near = drop_lowest_bit(near)
        index = tree.ids[first + place]
        if index != group.itself[lane]:
            to = (best.size + count) * LANES + lane
            best.distances[to] = np.sqrt(max(0.0, 1.0 - values[place]))
            best.ids[to] = index
            count += 1
    best.counts[lane] = count
    return count
