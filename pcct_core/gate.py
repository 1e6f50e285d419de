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
from numpy.typing import NDArray

from pcct_core.build import Tree
from pcct_core.draws import draw_words, index_below
from pcct_core.jit import entry, inner
from pcct_core.kernels import correlate, make_scratch
from pcct_core.parallel import Crew
from pcct_core.residual import STRETCH, Factors, Screen
from pcct_core.search import Queries, count_groups, load_group, make_groups, make_walk, next_bucket, start_walk
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
from pcct_core.topk import NO_ID, Front, clear_best, full_best, make_best, settle, take_row, write_rows

_DOWN = 1.0 - 2.0**-20  # takes more off a limit than float32 can add to it and to its products
_SHIFT = 6755399441055744.0  # 1.5 * 2^52: beside it a number keeps its whole part


class Found(NamedTuple):
    """What is found of n rows so far.

    neighbors: int32 (n, k), distances: float64 (n, k), the answer. known: bool (n,), rows that hold k candidates already, in
    any order: what they are is not measured again. passed: int64 (n,), pairs of each row that passed its gate when it was
    scanned last, itself included where it stands in the tree.
    """

    neighbors: Any
    distances: Any
    known: Any
    passed: Any


class _Room(NamedTuple):
    """Scratch of one group and one bucket.

    explained: float32 flat (LANES * m), V of the queries. roots: float64 (LANES,), of their residual variances.
    halves: float64 (LANES,), of their steps. gates: float64 (LANES,), squared.
    squared: float64 flat (LANES * LANES), by query. products: float32, the same, and a spare row.
    passed: int64 (LANES,), pairs that passed each query's gate.
    near: uint32 (LANES,), points that a query must look at. active: int64 (LANES + QUERIES,), queries that have any.
    chosen: int64 (LANES + PAIRS,), points that are measured; apart, values: float64 (LANES,), their squared scaled and
    residual distances. exact: float64 (PAIRS,), products. kernel: see `kernels.correlate`.
    """

    explained: Any
    roots: Any
    halves: Any
    gates: Any
    passed: Any
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
    found: Found,
    crew: Crew,
    phase: str,
) -> None:
    """Find the k nearest by residual correlation among the points within each asked row's gate.

    tree: of the first points of stored. screen: of that tree. queries.points: asked.points. gates: float64, by row of
    queries.points, radius in scaled distance, inf for all. Writes the asked rows of found, neighbors and distances as
    `search.search_tree` does.
    """
    crew.run(
        phase,
        count_groups(len(queries.rows)),
        lambda a, b: scan_gated_groups(tree, screen, stored, queries, asked, gates, a, b, found),
    )


@entry
def scan_gated_groups(tree, screen, stored, queries, asked, gates, first, last, found):
    """Search for the groups [first, last), each 32 consecutive entries of queries.rows."""
    group = make_groups(1, tree)
    walk = make_walk(tree)
    best = make_best(found.neighbors.shape[1], tree.coords)
    room = make_room(stored.m)
    for number in range(first, last):
        lanes, highest = load_group(group, queries, number)
        clear_best(best, lanes)
        for lane in range(lanes):
            if found.known[group.rows[lane]]:
                take_row(best, lane, group.rows[lane], found.neighbors, found.distances)
        widest = load_room(room, group, lanes, asked, gates)
        front = Front(widest, np.float64(np.inf), NO_ID)
        waiting = start_walk(walk, queries, number)
        while True:
            waiting, node = next_bucket(tree, walk, waiting, group, front, highest)
            if node < 0:
                break
            most = scan_gated_bucket(tree, screen, stored, asked, node, group, best, room, found)
            if full_best(best, most):
                settle(best, lanes)
        settle(best, lanes)
        write_rows(best, lanes, group.rows, found.neighbors, found.distances)
        for lane in range(lanes):
            found.passed[group.rows[lane]] = room.passed[lane]


@inner
def make_room(m):
    """Return scratch for groups whose V has m columns."""
    return _Room(
        np.empty(LANES * m, np.float32),
        np.empty(LANES),
        np.empty(LANES),
        np.empty(LANES),
        np.empty(LANES, np.int64),
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


@inner
def load_room(room, group, lanes, asked, gates):
    """Gather what the queries of a group bring along; return their widest squared gate."""
    widest = 0.0
    m = asked.m
    for lane in range(LANES):
        room.gates[lane] = -1.0
        room.passed[lane] = 0
    for lane in range(lanes):
        row = group.rows[lane]
        room.roots[lane] = np.sqrt(asked.p[row])
        room.halves[lane] = 0.5 * asked.steps[row]
        room.gates[lane] = gates[row] * gates[row]
        widest = max(widest, room.gates[lane])
        source = np.int64(asked.place[row]) * asked.width
        for c in range(m):
            room.explained[lane * m + c] = asked.explained[source + c]
    return widest


@inner
def scan_gated_bucket(tree, screen, stored, asked, node, group, best, room, found):
    """Let every query whose gate reaches the leaf's bucket append what passes its gate and its bound.

    Returns the largest number of rows that a query has appended.
    """
    bucket = int(tree.bucket[node])
    first = bucket * LANES
    reached = reach_box(group.coords, room.gates, tree.low, tree.high, node, tree.d)
    count, most = 0, -best.size
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
            room.passed[lane] += count_bits(near)
    if count > 0:
        count = screen_active(screen, stored, bucket, best, room, count)
    for i in range(count):
        lane = int(room.active[i])
        most = max(most, append_correlated(tree, stored, asked, first, lane, group, best, room, found))
    return most


@inner
def screen_active(screen, stored, bucket, best, room, count):
    """Keep of the active queries those with points that float32 cannot rule out, and only these points; return how many.

    A point within a query's bound has |K - V_i · V_j| ≥ (1 - bound - step / 2) sqrt(p_i p_j), and float32 finds the left
    side to within screen.slack (proof at `residual.make_screen`), so none is lost.
    """
    multiply_single(screen, stored.m, bucket, room, count)
    kept = 0
    for i in range(count):
        lane = int(room.active[i])
        limit = (1.0 - best.bounds[lane] - room.halves[lane]) * room.roots[lane] * _DOWN
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


@inner
def multiply_single(screen, m, bucket, room, count):
    """Write to room.products the inner products of the active queries with the bucket's 32 rows of V, in float32.

    The active ones are rounded up to a multiple of eight by ones that stand for no query: the spare row takes their products.
    """
    for i in range(count, count + QUERIES):
        room.active[i] = LANES
    for i in range(count):
        for at in range(room.active[i] * LANES, (room.active[i] + 1) * LANES):
            room.products[at] = 0.0
    for column in range(0, m, STRETCH):
        offset, width = (bucket * m + column) * LANES, min(STRETCH, m - column)
        for i in range(0, count, QUERIES):
            at, to = query_places(room.active, i, m, column)
            project_bucket(screen.blocks, offset, width, room.explained, at, room.products, to)


@inner
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


@inner
def append_correlated(tree, stored, asked, first, lane, group, best, room, found):
    """Append one query's near points by residual correlation; return how many candidates it has now.

    first: place of the bucket's first point.
    """
    near, count, row = room.near[lane], 0, group.rows[lane]
    known = found.known[row]
    while near != 0:
        index = tree.ids[first + lowest_bit(near)]
        near = drop_lowest_bit(near)
        if index != group.itself[lane] and not (known and holds(found.neighbors, row, index)):
            room.chosen[count] = index
            count += 1
    measure(stored, asked, row, count, room)
    counted, bound = best.counts[lane], best.bounds[lane]
    for i in range(count):
        if room.values[i] <= bound:
            to = (best.size + counted) * LANES + lane
            best.distances[to] = np.sqrt(room.values[i])
            best.ids[to] = room.chosen[i]
            counted += 1
    best.counts[lane] = counted
    return counted


@inner
def holds(neighbors, row, index):
    """Return True when index stands in a row of neighbors, int32 (n, k); all are compared, 16 at a time."""
    hits = np.int32(0)
    for c in range(neighbors.shape[1]):
        hits |= np.int32(neighbors[row, c] == index)
    return hits != 0


@inner
def measure(stored, asked, row, count, room):
    """Write to room.values the squared residual distances of an asked row from the first `count` chosen points.

    At most 32. The only place where pairs are decided: in float64, to bits that do not depend on the company, and rounded to
    multiples of a step (see `residual`), so that what float64 cannot tell apart ties.
    """
    chosen, exact, values = room.chosen, room.exact, room.values
    width = int(stored.width)
    for i in range(count):
        total = 0.0
        for c in range(stored.points.shape[1]):
            gap = stored.points[chosen[i], c] - asked.points[row, c]
            total += gap * gap
        room.apart[i] = total
    for i in range(count, LANES):
        room.apart[i] = 0.0
    correlate(stored.code, room.apart, room.kernel, values)
    for i in range(count, count + PAIRS):
        chosen[i] = chosen[0]
    home, own, step = int(asked.place[row]) * width, asked.p[row], asked.steps[row]
    for i in range(0, count, PAIRS):
        a, b, c, d = chosen[i], chosen[i + 1], chosen[i + 2], chosen[i + 3]
        starts = (stored.place[a] * width, stored.place[b] * width, stored.place[c] * width, stored.place[d] * width)
        multiply_rows(asked.explained, home, stored.explained, starts, width, exact)
        for j in range(min(PAIRS, count - i)):
            residual = abs(values[i + j] - exact[j]) / np.sqrt(own * stored.p[chosen[i + j]])
            # Added to it, a number is rounded to a multiple of the step, half of them to the even one.
            shift = _SHIFT * max(step, stored.steps[chosen[i + j]])
            apart = (max(0.0, 1.0 - residual) + shift) - shift
            values[i + j] = 0.0 if room.apart[i + j] == 0.0 else apart


@entry
def follow_rows(factors, rows, limit, itself, previous, first, last, found, gates):
    """Take over the first k of `previous`, int32 (n, ≥ k), of rows[first:last], measured anew, as what is known of them.

    limit, itself: as of `search.Queries`. gates: float64 (n,), receives the scaled distance of the farthest of them, inf for
    a row that has fewer than k, or others than it may have.
    """
    room = make_room(factors.m)
    k = found.neighbors.shape[1]
    for i in range(first, last):
        row = rows[i]
        found.known[row] = may_have(previous, row, k, limit[row], itself[row])
        gates[row] = 0.0 if found.known[row] else np.inf
        for start in range(0, k if found.known[row] else 0, LANES):
            count = min(LANES, k - start)
            for j in range(count):
                room.chosen[j] = previous[row, start + j]
            measure(factors, factors, row, count, room)
            for j in range(count):
                found.neighbors[row, start + j] = previous[row, start + j]
                found.distances[row, start + j] = np.sqrt(room.values[j])
                gates[row] = max(gates[row], np.sqrt(room.apart[j]))


@inner
def may_have(neighbors, row, k, limit, itself):
    """Return True when the first k neighbors of a row are different points below limit, and not the row itself."""
    wrong = 0
    for c in range(k):
        index = neighbors[row, c]
        wrong += int(index < 0) + int(index >= limit) + int(index == itself)
        for e in range(c):
            wrong += int(neighbors[row, e] == index)
    return wrong == 0


class Sample(NamedTuple):
    """Which pairs are audited. key: uint64, a stream of `draws`. counts: int64 (n,), draws of each row."""

    key: Any
    counts: Any


class Audit(NamedTuple):
    """What random pairs beyond the gates showed. measured: int64 (n,), pairs of each row. missed: those in the answer."""

    measured: Any
    missed: Any


@entry
def audit_rows(factors, queries, gates, sample, first, last, found, audit):
    """Measure random pairs of queries.rows[first:last] beyond their gates, and count those that belong in the answer.

    gates: float64 (n,), as in the scan. Each draw names one of the points that its row may have; those within its gate are
    passed over. Writes the rows of audit: pairs, and those of them that come before the row's last neighbor, by
    (distance, index).
    """
    room = make_room(factors.m)
    n = factors.points.shape[0]
    for i in range(first, last):
        row = queries.rows[i]
        allowed, gate = min(np.int64(queries.limit[row]), n), gates[row] * gates[row]
        count, words, draws = 0, (np.uint64(0), np.uint64(0)), sample.counts[row]
        for at in range(draws):
            if at % 2 == 0:
                words = draw_words(sample.key, row, at // 2)
            index = index_below(words[at % 2], allowed)
            if index != queries.itself[row] and squared_between(factors.points, index, row) > gate:
                room.chosen[count] = index
                count += 1
            if count == LANES or at + 1 == draws:
                count_missed(factors, row, count, room, found, audit)
                count = 0


@inner
def squared_between(points, index, row):
    """Return the squared distance of two rows of points, float64 (n, d), in the arithmetic of the scan."""
    squared = 0.0
    for c in range(points.shape[1]):
        gap = points[index, c] - points[row, c]
        squared += gap * gap
    return squared


@inner
def count_missed(factors, row, count, room, found, audit):
    """Measure the first `count` chosen points, at most 32, and note how many come before the last neighbor of a row."""
    if count == 0:
        return
    measure(factors, factors, row, count, room)
    last = found.neighbors.shape[1] - 1
    distance, neighbor = found.distances[row, last], found.neighbors[row, last]
    for j in range(count):
        apart = np.sqrt(room.values[j])
        if apart < distance or (apart == distance and room.chosen[j] < neighbor):
            audit.missed[row] += 1
    audit.measured[row] += count
