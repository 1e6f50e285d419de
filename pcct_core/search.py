"""Search: 32 neighboring queries walk the tree together, nearest boxes first.

A group of queries has a box; a node is visited while its box is within the largest bound of the group. In a bucket, the
queries that can still gain from it scan its 32 points each, in vectors, and append what is within their own bound (see
`topk`). Bounds shrink whenever the appended candidates are settled. Nothing is pruned that could be a neighbor: box
distances are computed with the roundings of the distances themselves (proof at `simd.reach_box`).

Source: Friedman, Bentley, Finkel 1977 (branch and bound on boxes); grouping of queries: Curtin et al. 2013 (dual trees).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.build import DEPTH, Tree, build_tree
from pcct_core.jit import entry, inlined, inner
from pcct_core.measure import BY_COORDINATES, COORDINATES, Measure, Reach, measure_candidate, widen_front
from pcct_core.parallel import Crew
from pcct_core.simd import (
    LANES,
    count_bits,
    drop_lowest_bit,
    keep_bits,
    lowest_bit,
    reach_box,
    reach_weighted,
    scan_bucket,
    scan_weighted,
)
from pcct_core.topk import (
    NO_ID,
    Front,
    clear_best,
    full_best,
    make_bests,
    open_front,
    settle,
    sort_rows,
    write_rows,
)

_LONG = 1024  # neighbors of a row that are still collected beside those of 31 others: 384 kB in float64


_ONE_TREE = np.empty(0, np.int32)


class Queries(NamedTuple):
    """What is asked, in an order in which neighbors stand together.

    points: T (m, d). rows: int32 (g,), the rows of points that are asked, in group order; also their rows in the answer.
    limit:  int32 (m,), only indices below it may be neighbors of the row. itself: int32 (m,), index that is the row's own
            point and never its neighbor, -1 where there is none. measure: what orders the candidates.
    roots: int32, of a forest alone: the root of the tree that each 32 entries of rows search; fewer than 32 rows stand first
    there, and NO_ID behind them. Empty where there is one tree.
    """

    points: Any
    rows: Any
    limit: Any
    itself: Any
    measure: Measure = BY_COORDINATES
    roots: Any = _ONE_TREE


class _Group(NamedTuple):
    """One group of 32 queries: coordinates by dimension, T flat (d * LANES); their rows, limits and own indices; their box."""

    coords: Any
    rows: Any
    limit: Any
    itself: Any
    low: Any
    high: Any


class _Beside(NamedTuple):
    """Neighbors of the queries of a group side by side: number i of query l at i * LANES + l; int32 and T, flat."""

    ids: Any
    distances: Any


class _Walk(NamedTuple):
    """A depth-first walk: waiting nodes, their squared distances to the group's box and to its middle."""

    nodes: Any
    reach: Any
    middle: Any


def order_queries(points: NDArray[Any], crew: Crew, weights: NDArray[Any] | None = None) -> NDArray[np.int32]:
    """Return the rows of points, T (m, d), in an order in which neighbors stand together: that of their own tree."""
    rows: NDArray[np.int32] = build_tree(points, crew, phase="", weights=weights).ids[: points.shape[0]]
    return rows


def count_within(
    tree: Tree, queries: Queries, reach: Reach, most: int, counts: NDArray[np.int64], crew: Crew
) -> int | None:
    """Count the points within reach of every asked row; None as soon as they are more than `most` altogether.

    counts: int64 (m + 1,), receives the number of row i at i + 1. Returns their sum.
    """
    counted: list[int] = []

    def count_some(first: int, last: int) -> None:
        if sum(counted) <= most:
            counted.append(count_rows(tree, queries, reach, first, last, counts))

    crew.run("count", count_groups(len(queries.rows)), count_some, grain=4)
    return None if sum(counted) > most else sum(counted)


def list_within(
    tree: Tree,
    queries: Queries,
    reach: Reach,
    offsets: NDArray[np.int64],
    neighbors: NDArray[np.int32],
    keys: NDArray[Any],
    crew: Crew,
) -> None:
    """Write the points that `count_within` has counted, each row ascending by (key, index).

    neighbors: int32 (pairs,), keys: (pairs,), in the type of reach.key; those of row i are at offsets[i]:offsets[i + 1].
    """
    groups = count_groups(len(queries.rows))
    crew.run("search", groups, lambda a, b: list_rows(tree, queries, reach, a, b, offsets, neighbors, keys), grain=4)


def count_groups(queries: int) -> int:
    """Return how many groups that many queries make."""
    return (queries + LANES - 1) // LANES


def search_tree(
    tree: Tree, queries: Queries, k: int, neighbors: NDArray[np.int32], distances: NDArray[Any], crew: Crew
) -> None:
    """Find the k nearest of every asked row; write rows of neighbors, int32 (m, k), and distances, T (m, k)."""
    groups = count_groups(len(queries.rows))
    crew.run("search", groups, lambda a, b: search_groups(tree, queries, k, a, b, neighbors, distances), grain=4)


@entry
def search_groups(tree, queries, k, first, last, neighbors, distances):
    """Search for the groups [first, last), each 32 consecutive entries of queries.rows; return how many times a query
    scanned a bucket.
    """
    scans, measure = 0, queries.measure
    group = make_groups(1, tree)
    walk = make_walk(tree)
    best = make_bests(1, k, distances, tree.coords)
    squared = np.empty(LANES, tree.coords.dtype)
    for number in range(first, last):
        lanes, highest = load_group(group, queries, number)
        clear_best(best, lanes)
        front = open_front(best)
        waiting = start_walk(walk, queries, number)
        while True:
            waiting, node = next_bucket(tree, walk, waiting, group, front, highest)
            if node < 0:
                break
            most, active = scan_node(tree, node, group, best, squared, measure)
            scans += active
            if full_best(best, most):
                front = settle_keys(measure, best, lanes)
        settle(best, lanes)
        write_rows(best, lanes, group.rows, neighbors, distances)
    return scans


@inner
def settle_keys(measure, best, lanes):
    """Sort and merge what was appended, and return the front of what can still be gained."""
    front = settle(best, lanes)
    return front if measure.kind == COORDINATES else widen_front(measure, best, lanes, front)


@inner
def make_groups(parts, tree):
    """Return empty groups one behind the other for the tree's dimension and type, for `part_group`; of one, the group."""
    dtype = tree.coords.dtype
    return _Group(
        np.empty(parts * tree.d * LANES, dtype),
        np.empty(parts * LANES, np.int32),
        np.empty(parts * LANES, np.int32),
        np.empty(parts * LANES, np.int32),
        np.empty(parts * tree.d, dtype),
        np.empty(parts * tree.d, dtype),
    )


@inner
def part_group(groups, part, d):
    """Return one of several groups in d dimensions, which shares their arrays."""
    first, last, corner, end = part * LANES, (part + 1) * LANES, part * d, (part + 1) * d
    return _Group(
        groups.coords[first * d : last * d],
        groups.rows[first:last],
        groups.limit[first:last],
        groups.itself[first:last],
        groups.low[corner:end],
        groups.high[corner:end],
    )


@inner
def load_group(group, queries, number):
    """Fill the group with entries [32 number, …) of queries.rows; return how many there are and their highest limit."""
    start = number * LANES
    lanes = min(LANES, queries.rows.shape[0] - start)
    while queries.rows[start + lanes - 1] == NO_ID:
        lanes -= 1
    highest = np.int32(-1)
    for lane in range(LANES):
        row = queries.rows[start + min(lane, lanes - 1)]
        group.rows[lane] = row
        group.limit[lane] = queries.limit[row]
        group.itself[lane] = queries.itself[row]
        highest = max(highest, queries.limit[row])
        for c in range(group.low.shape[0]):
            group.coords[c * LANES + lane] = queries.points[row, c]
    for c in range(group.low.shape[0]):
        low = group.coords[c * LANES]
        high = low
        for lane in range(1, lanes):
            low = min(low, group.coords[c * LANES + lane])
            high = max(high, group.coords[c * LANES + lane])
        group.low[c] = low
        group.high[c] = high
    return lanes, highest


@inner
def make_walk(tree):
    """Return a stack that is deep enough for any depth-first walk of the tree."""
    dtype = tree.coords.dtype
    return _Walk(np.empty(DEPTH, np.int32), np.empty(DEPTH, dtype), np.empty(DEPTH, dtype))


@inner
def start_walk(walk, queries, number):
    """Put the root of the tree that a group of queries searches on the stack; return the number of waiting nodes."""
    walk.nodes[0] = queries.roots[number] if queries.roots.shape[0] > 0 else 0
    walk.reach[0] = 0
    walk.middle[0] = 0
    return np.int64(1)


@inlined
def next_bucket(tree, walk, waiting, group, front, highest):
    """Walk on to the next leaf within reach; return the number of waiting nodes and the leaf, -1 when none is left.

    front: what the group can still gain from. highest: int32, subtrees without an index below it are passed over.
    """
    while waiting > 0:
        waiting -= 1
        node = walk.nodes[waiting]
        if out_of_reach(walk.reach[waiting], tree.lowest[node], front):
            continue
        if tree.skip[node] == node + 1:
            return waiting, node
        floor = waiting
        # Of two equally near children the left one comes first: among equal points it has the lower indices. One call for
        # both: it is compiled into this place, at its full length.
        for side in range(2):
            child = np.int64(tree.skip[node + 1]) if side == 0 else node + 1
            if tree.lowest[child] < highest:
                waiting = push_node(tree, walk, floor, waiting, child, group, front)
    return waiting, np.int64(-1)


@inner
def out_of_reach(reach, lowest, front):
    """Return True when no query of the group can gain from a subtree: all of it is too far, or ties with higher indices.

    reach: T, squared distance of its box to the group's. lowest: int32, its lowest index.
    """
    return reach > front.bound or (lowest > front.index and np.sqrt(reach) >= front.distance)


@inlined
def push_node(tree, walk, floor, waiting, node, group, front):
    """Put a node on the stack among its siblings [floor, waiting), farthest from the group's middle lowest."""
    reach = walk.reach.dtype.type(0)
    middle = reach
    half = walk.reach.dtype.type(0.5)
    corner = node * tree.d
    weighted = tree.weights.shape[0] > 0
    for c in range(tree.d):
        low, high = tree.low[corner + c], tree.high[corner + c]
        gap = max(low - group.high[c], group.low[c] - high)
        if gap > 0:
            gap = gap * tree.weights[c] if weighted else gap
            reach += gap * gap
        center = group.low[c] + (group.high[c] - group.low[c]) * half
        gap = max(low - center, center - high)
        if gap > 0:
            gap = gap * tree.weights[c] if weighted else gap
            middle += gap * gap
    if out_of_reach(reach, tree.lowest[node], front):
        return waiting
    at = waiting
    while at > floor and walk.middle[at - 1] < middle:
        walk.nodes[at], walk.reach[at], walk.middle[at] = walk.nodes[at - 1], walk.reach[at - 1], walk.middle[at - 1]
        at -= 1
    walk.nodes[at], walk.reach[at], walk.middle[at] = node, reach, middle
    return waiting + 1


@inlined
def scan_node(tree, node, group, best, squared, measure):
    """Let every query that can gain from the leaf's bucket scan it.

    Returns the largest number of rows that a query has appended, and how many queries scanned.
    """
    bucket = tree.bucket[node]
    most, scans = -best.size, 0
    active = reach_leaf(tree, node, group, best.bounds)
    while active != 0:
        lane = lowest_bit(active)
        active = drop_lowest_bit(active)
        most = max(most, scan_lane(tree, bucket, lane, group, best, squared, measure))
        scans += 1
    return most, scans


@inlined
def reach_leaf(tree, node, group, bounds):
    """Return uint32 whose bit l is set where query l may have a point of the node's box within its bound, T (LANES)."""
    if tree.weights.shape[0] > 0:
        return reach_weighted(group.coords, bounds, tree.low, tree.high, node, tree.d, tree.weights)
    return reach_box(group.coords, bounds, tree.low, tree.high, node, tree.d)


@inlined
def scan_lane(tree, bucket, lane, group, best, squared, measure):
    """Append the bucket's points within one query's bound to its candidates; return how many it has now."""
    first = bucket * LANES
    count = best.counts[lane]
    near = scan_within(tree, first, lane, group, best.bounds[lane], squared)
    while near != 0:
        place = lowest_bit(near)
        near = drop_lowest_bit(near)
        index = tree.ids[first + place]
        if index != group.itself[lane]:
            at = (best.size + count) * LANES + lane
            if measure.kind == COORDINATES:
                best.distances[at] = np.sqrt(squared[place])
            else:
                best.distances[at] = measure_candidate(measure, tree, group, first + place, lane, squared[place])
            best.ids[at] = index
            count += 1
    best.counts[lane] = count
    return count


@inlined
def scan_within(tree, first, lane, group, bound, squared):
    """Return the bits of a bucket's points whose squared coordinates' distance is within the bound of one query, and allowed.

    first: the bucket's first place. squared: T (LANES), receives all squared distances.
    """
    limit, at = group.limit[lane], first * tree.d
    if tree.weights.shape[0] > 0:
        return scan_weighted(
            tree.coords, at, tree.d, group.coords, lane, tree.ids, first, limit, bound, squared, tree.weights
        )
    return scan_bucket(tree.coords, at, tree.d, group.coords, lane, tree.ids, first, limit, bound, squared)


@entry
def count_rows(tree, queries, reach, first, last, offsets):
    """Count all points within reach for the groups [first, last): each row's number goes to offsets[row + 1].

    reach: a `measure.Reach`. A row's own point is always within reach, and is not counted. Returns the sum.
    """
    total, measure = 0, queries.measure
    group, walk, squared = make_groups(1, tree), make_walk(tree), np.empty(LANES, tree.coords.dtype)
    counts = np.empty(LANES, np.int64)
    bounds = np.empty(LANES, tree.coords.dtype)
    front = Front(reach.outside, reach.outside, NO_ID)
    for number in range(first, last):
        lanes, highest = load_group(group, queries, number)
        for lane in range(LANES):
            bounds[lane] = reach.outside if lane < lanes else -1
        for lane in range(LANES):
            counts[lane] = -1 if group.itself[lane] >= 0 else 0
        waiting = start_walk(walk, queries, number)
        while True:
            waiting, node = next_bucket(tree, walk, waiting, group, front, highest)
            if node < 0:
                break
            active = reach_leaf(tree, node, group, bounds)
            while active != 0:
                lane = lowest_bit(active)
                active = drop_lowest_bit(active)
                counts[lane] += count_bits(find_within_reach(tree, node, lane, group, measure, reach, squared))
        for lane in range(lanes):
            offsets[group.rows[lane] + 1] = counts[lane]
            total += counts[lane]
    return total


@entry
def list_rows(tree, queries, reach, first, last, offsets, neighbors, distances):
    """Write all points within reach for the groups [first, last), each row to its place and sorted by (key, index).

    The rows of a group are collected side by side and sorted together; long ones, which would take much memory so, in place.
    """
    measure = queries.measure
    group, walk, squared = make_groups(1, tree), make_walk(tree), np.empty(LANES, tree.coords.dtype)
    beside = _Beside(np.empty(_LONG * LANES, np.int32), np.empty(_LONG * LANES, distances.dtype))
    ends = np.empty(LANES, np.int64)
    bounds = np.empty(LANES, tree.coords.dtype)
    front = Front(reach.outside, reach.outside, NO_ID)
    for number in range(first, last):
        lanes, highest = load_group(group, queries, number)
        for lane in range(LANES):
            bounds[lane] = reach.outside if lane < lanes else -1
        longest = longest_row(group, lanes, offsets)
        together = longest <= _LONG
        step = LANES if together else 1
        for lane in range(lanes):
            ends[lane] = lane if together else offsets[group.rows[lane]]
        ids, found = (beside.ids, beside.distances) if together else (neighbors, distances)
        waiting = start_walk(walk, queries, number)
        while True:
            waiting, node = next_bucket(tree, walk, waiting, group, front, highest)
            if node < 0:
                break
            active = reach_leaf(tree, node, group, bounds)
            while active != 0:
                lane = lowest_bit(active)
                active = drop_lowest_bit(active)
                ends[lane] = list_bucket(
                    tree, node, lane, group, measure, reach, squared, (ids, found, ends[lane], step)
                )
        if together:
            write_sorted(beside, longest, lanes, group.rows, offsets, neighbors, distances)
        else:
            for lane in range(lanes):
                start = offsets[group.rows[lane]]
                sort_pairs(neighbors[start : ends[lane]], distances[start : ends[lane]])


@inlined
def list_bucket(tree, node, lane, group, measure, reach, squared, out):
    """Write the leaf's points within reach of one query, itself excepted; return where the next one goes.

    out: (ids, keys, at, step), the arrays, the place of the first and what lies between two.
    """
    ids, keys, at, step = out
    first = tree.bucket[node] * LANES
    near = find_within_reach(tree, node, lane, group, measure, reach, squared)
    while near != 0:
        place = lowest_bit(near)
        near = drop_lowest_bit(near)
        index = tree.ids[first + place]
        if index != group.itself[lane]:
            ids[at] = index
            if measure.kind == COORDINATES:
                keys[at] = np.sqrt(squared[place])
            else:
                keys[at] = measure_candidate(measure, tree, group, first + place, lane, squared[place])
            at += step
    return at


@inlined
def find_within_reach(tree, node, lane, group, measure, reach, squared):
    """Return the bits of the leaf's points within reach of one query; squared: T (LANES), receives all squared distances."""
    first = tree.bucket[node] * LANES
    near = scan_within(tree, first, lane, group, reach.outside, squared)
    if reach.inside == reach.outside:
        return near
    kept, left = near, near
    while left != 0:
        rest = drop_lowest_bit(left)
        place = lowest_bit(left)
        if squared[place] > reach.inside and (
            measure_candidate(measure, tree, group, first + place, lane, squared[place]) > reach.key
        ):
            kept = keep_bits(kept, ~(left ^ rest))
        left = rest
    return kept


@inner
def longest_row(group, lanes, offsets):
    """Return the most neighbors that a query of the group has."""
    longest = 0
    for lane in range(lanes):
        row = group.rows[lane]
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest


@inner
def write_sorted(beside, longest, lanes, rows, offsets, neighbors, distances):
    """Sort what the first `lanes` queries have collected side by side, and write it to their places."""
    size = 1
    while size < longest:
        size *= 2
    for lane in range(LANES):
        filled = offsets[rows[lane] + 1] - offsets[rows[lane]] if lane < lanes else 0
        for at in range(filled * LANES + lane, size * LANES, LANES):
            beside.distances[at] = np.inf
            beside.ids[at] = NO_ID
    sort_rows(beside.distances, beside.ids, np.int64(0), size)
    for lane in range(lanes):
        start = offsets[rows[lane]]
        for i in range(offsets[rows[lane] + 1] - start):
            neighbors[start + i] = beside.ids[i * LANES + lane]
            distances[start + i] = beside.distances[i * LANES + lane]


@inner
def sort_pairs(ids, distances):
    """Sort (distance, id) pairs in place, ties to the lower id.

    Heapsort (Williams 1964, Floyd 1964). Numba compiles its own argsort for three seconds in every process that has no cache.
    """
    size = len(ids)
    for top in range(size // 2 - 1, -1, -1):
        sift_down(ids, distances, top, size)
    for last in range(size - 1, 0, -1):
        ids[0], ids[last] = ids[last], ids[0]
        distances[0], distances[last] = distances[last], distances[0]
        sift_down(ids, distances, np.int64(0), last)


@inner
def sift_down(ids, distances, top, size):
    """Let the pair at `top` of a heap of the first `size` pairs, largest first, sink to where it belongs."""
    while 2 * top + 1 < size:
        child = 2 * top + 1
        if child + 1 < size and pair_before(ids, distances, child, child + 1):
            child += 1
        if not pair_before(ids, distances, top, child):
            return
        ids[top], ids[child] = ids[child], ids[top]
        distances[top], distances[child] = distances[child], distances[top]
        top = child


@inner
def pair_before(ids, distances, a, b):
    """Return True when pair a sorts before pair b."""
    return distances[a] < distances[b] or (distances[a] == distances[b] and ids[a] < ids[b])
