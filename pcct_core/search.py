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
from numba import njit
from numpy.typing import NDArray

from pcct_core.build import Tree
from pcct_core.parallel import Crew
from pcct_core.simd import LANES, lowest_bit, reach_box, scan_bucket
from pcct_core.topk import NO_ID, Best, clear_best, make_best, settle, write_rows


class Queries(NamedTuple):
    """What is asked, in an order in which neighbors stand together.

    points: T (m, d). rows: int32 (g,), the rows of points that are asked, in group order; also their rows in the answer.
    limit:  int32 (m,), only indices below it may be neighbors of the row. itself: int32 (m,), index that is the row's own
            point and never its neighbor, -1 where there is none.
    """

    points: Any
    rows: Any
    limit: Any
    itself: Any


class _Group(NamedTuple):
    """One group of 32 queries: coordinates by dimension, T flat (d * LANES); their rows, limits and own indices; their box."""

    coords: Any
    rows: Any
    limit: Any
    itself: Any
    low: Any
    high: Any


class _Walk(NamedTuple):
    """A depth-first walk: waiting nodes, their squared distances to the group's box and to its middle."""

    nodes: Any
    reach: Any
    middle: Any


def search_tree(
    tree: Tree, queries: Queries, k: int, neighbors: NDArray[np.int32], distances: NDArray[Any], crew: Crew, phase: str
) -> None:
    """Find the k nearest of every asked row; write rows of neighbors, int32 (m, k), and distances, T (m, k)."""
    groups = (len(queries.rows) + LANES - 1) // LANES
    crew.run(phase, groups, lambda a, b: search_groups(tree, queries, k, a, b, neighbors, distances), grain=4)


@njit(nogil=True, cache=True)
def search_groups(tree, queries, k, first, last, neighbors, distances):  # type: ignore[no-untyped-def]
    """Search for the groups [first, last), each 32 consecutive entries of queries.rows."""
    group = make_group(tree)
    walk = make_walk(tree)
    best = make_best(k, tree.coords)
    squared = np.empty(LANES, tree.coords.dtype)
    for number in range(first, last):
        lanes, highest = load_group(group, queries, number)
        clear_best(best, lanes)
        waiting = start_walk(walk)
        widest = best.bounds[0]
        appended = 0
        while waiting > 0:
            waiting, node = next_bucket(tree, walk, waiting, group, widest, highest)
            if node < 0:
                break
            appended = max(appended, scan_node(tree, node, group, best, squared))
            if appended > best.room - LANES:
                widest = settle(best, lanes)
                appended = 0
        settle(best, lanes)
        write_rows(best, lanes, group.rows, neighbors, distances)


@njit(nogil=True)
def make_group(tree):  # type: ignore[no-untyped-def]
    """Return an empty group for the tree's dimension and type."""
    dtype = tree.coords.dtype
    return _Group(
        np.empty(tree.d * LANES, dtype),
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
        np.empty(tree.d, dtype),
        np.empty(tree.d, dtype),
    )


@njit(nogil=True)
def load_group(group, queries, number):  # type: ignore[no-untyped-def]
    """Fill the group with entries [32 number, …) of queries.rows; return how many there are and their highest limit."""
    start = number * LANES
    lanes = min(LANES, queries.rows.shape[0] - start)
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


@njit(nogil=True)
def make_walk(tree):  # type: ignore[no-untyped-def]
    """Return a stack that is deep enough for any depth-first walk of the tree."""
    dtype = tree.coords.dtype
    return _Walk(np.empty(tree.stack + 1, np.int32), np.empty(tree.stack + 1, dtype), np.empty(tree.stack + 1, dtype))


@njit(nogil=True)
def start_walk(walk):  # type: ignore[no-untyped-def]
    """Put the root on the stack; return the number of waiting nodes."""
    walk.nodes[0] = 0
    walk.reach[0] = 0
    walk.middle[0] = 0
    return 1


@njit(nogil=True)
def next_bucket(tree, walk, waiting, group, widest, highest):  # type: ignore[no-untyped-def]
    """Walk on to the next leaf within reach; return the number of waiting nodes and the leaf, -1 when none is left.

    widest: T, largest squared bound of the group. highest: int32, subtrees without an index below it are passed over.
    """
    while waiting > 0:
        waiting -= 1
        if walk.reach[waiting] > widest:
            continue
        node = walk.nodes[waiting]
        if tree.skip[node] == node + 1:
            return waiting, node
        floor = waiting
        child = node + 1
        while child < tree.skip[node]:
            if tree.lowest[child] < highest:
                waiting = push_node(tree, walk, floor, waiting, child, group, widest)
            child = tree.skip[child]
    return waiting, -1


@njit(nogil=True)
def push_node(tree, walk, floor, waiting, node, group, widest):  # type: ignore[no-untyped-def]
    """Put a node on the stack among its siblings [floor, waiting), farthest from the group's middle lowest."""
    reach = walk.reach.dtype.type(0)
    middle = reach
    half = walk.reach.dtype.type(0.5)
    corner = node * tree.d
    for c in range(tree.d):
        low, high = tree.low[corner + c], tree.high[corner + c]
        gap = max(low - group.high[c], group.low[c] - high)
        if gap > 0:
            reach += gap * gap
        center = group.low[c] + (group.high[c] - group.low[c]) * half
        gap = max(low - center, center - high)
        if gap > 0:
            middle += gap * gap
    if reach > widest:
        return waiting
    at = waiting
    while at > floor and walk.middle[at - 1] < middle:
        walk.nodes[at], walk.reach[at], walk.middle[at] = walk.nodes[at - 1], walk.reach[at - 1], walk.middle[at - 1]
        at -= 1
    walk.nodes[at], walk.reach[at], walk.middle[at] = node, reach, middle
    return waiting + 1


@njit(nogil=True)
def scan_node(tree, node, group, best, squared):  # type: ignore[no-untyped-def]
    """Let every query that can gain from the leaf's bucket append what is within its bound; return the largest count."""
    bucket = tree.bucket[node]
    first = bucket * LANES
    offset = first * tree.d
    most = np.int64(0)
    active = reach_box(group.coords, best.bounds, tree.low, tree.high, node, tree.d)
    while active != 0:
        lane = lowest_bit(active)
        active &= active - np.uint32(1)
        near = scan_bucket(
            tree.coords, offset, tree.d, group.coords, lane, tree.ids, first, group.limit[lane], best.bounds[lane], squared
        )
        count = best.counts[lane]
        while near != 0:
            place = lowest_bit(near)
            near &= near - np.uint32(1)
            index = tree.ids[first + place]
            if index != group.itself[lane]:
                at = (best.size + count) * LANES + lane
                best.distances[at] = np.sqrt(squared[place])
                best.ids[at] = index
                count += 1
        best.counts[lane] = count
        most = max(most, count)
    return most
