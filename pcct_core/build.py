"""The tree: a compressed cover tree whose cells are boxes, cut by medians down to buckets of 32 points.

Every node covers its points by their bounding box; a cell is cut at the median of its widest coordinate, on a multiple
of 32 points, so that every bucket but the last is full and boxes of siblings share no more than a face. Each point is
stored once. Nodes stand in preorder, so a subtree is one slice of nodes, of buckets and of places. Each node knows the
lowest index below it, which is the lowest rank when the points come in Vecchia order.

Why boxes and medians and not balls and nets: docs/CORE_IMPLEMENTATIONS.md has the measurements.
Source: Friedman, Bentley, Finkel 1977 (median cuts of the widest coordinate, buckets); the layout is ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.groups import Groups
from pcct_core.jit import entry, inner
from pcct_core.parallel import Crew
from pcct_core.simd import LANES
from pcct_core.topk import NO_ID

_TASKS = 16  # subtrees handed to the threads; enough to balance two to eight of them
DEPTH = 32  # the median tree of 2^31 points has 27 levels


class Tree(NamedTuple):
    """A tree over n points in d dimensions, in flat arrays; or a forest, one tree behind the other, see `groups.Groups`.

    coords: T flat (buckets * d * LANES), by bucket, then dimension; inf where a place is empty.
    ids:    int32 (buckets * LANES), index of the point in each place; the empty places are the last ones of each tree and hold
            NO_ID.
    low, high: T flat (nodes * d), corners of each node's box.
    skip:   int32 (nodes,), the node after this subtree; a leaf has skip[node] == node + 1.
    bucket: int32 (nodes,), first bucket of each subtree.
    lowest: int32 (nodes,), lowest index in each subtree.
    n, d:   number of points and of dimensions.
    weights: T (d,), what differences of each coordinate are multiplied by before they are squared; empty for ones.
    """

    coords: Any
    ids: Any
    low: Any
    high: Any
    skip: Any
    bucket: Any
    lowest: Any
    n: int
    d: int
    weights: Any


class _Cut(NamedTuple):
    """A subtree still to be cut: rows [start, stop) of the working copy, its buckets and its node."""

    start: int
    stop: int
    bucket: int
    end_bucket: int
    node: int


_TO_BUCKETS = np.empty((0, len(_Cut._fields)), np.int64)


def build_tree(
    points: NDArray[Any],
    crew: Crew,
    phase: str = "tree",
    *,
    by_index: int = 0,
    weights: NDArray[Any] | None = None,
    groups: Groups | None = None,
) -> Tree:
    """Build the tree of points, T (n, d) C-contiguous and finite; the same bytes for any number of threads.

    phase: what progress is reported as, "" for none. by_index: so many levels from the root on are cut by index instead of
    place, for walks that must meet few points beyond an index and few of which are pruned by place. weights: as in `Tree`.
    groups: the rows that are in the tree, or in each tree of a forest; None for all in one.
    Cost: O(n d log n) time; 2 n (d + 1) numbers of memory beside the points, half of them released at the end. The trees of a
    forest take whole buckets.
    """
    work = points.copy() if groups is None else points[groups.rows]
    n, d = work.shape
    ids = np.arange(n, dtype=np.int32) if groups is None else groups.rows.copy()
    starts = np.array((0, n)) if groups is None else groups.starts
    buckets, roots = lay_out_trees(np.diff(starts))
    tree = allocate_tree(n, d, points.dtype, weights, groups)
    enough = max(2 * LANES, n // _TASKS)
    finished: list[_Cut] = []
    cuts = [_Cut(*cut) for cut in np.column_stack((starts[:-1], starts[1:], buckets[:-1], buckets[1:], roots)).tolist()]
    while True:
        most = LANES if by_index > 0 else enough
        finished += [cut for cut in cuts if cut.stop - cut.start <= most]
        waiting = [cut for cut in cuts if cut.stop - cut.start > most]
        if not waiting:
            break
        cuts = _cut_once(work, ids, waiting, tree, by_index > 0, crew)
        by_index -= 1
    tasks = np.array(finished, np.int64)
    share = n / len(tasks)
    crew.run(
        phase,
        len(tasks),
        lambda first, last: cut_subtrees(work, ids, tasks[first:last], tree, False, _TO_BUCKETS),
        units=share,
    )
    complete_nodes(tree)
    return tree


def lay_out_trees(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where trees of so many points, int64 (trees,), begin one behind the other.

    Returns the first bucket of each and the number of all, (trees + 1,), and the root of each, (trees,): a tree has twice as
    many nodes as buckets, less one.
    """
    buckets = np.concatenate((np.zeros(1, np.int64), np.cumsum((sizes + LANES - 1) // LANES)))
    return buckets, 2 * buckets[:-1] - np.arange(len(sizes))


def allocate_tree(
    n: int, d: int, dtype: Any, weights: NDArray[Any] | None = None, groups: Groups | None = None
) -> Tree:
    """Return a tree for n points in d dimensions, or a forest; of its nodes only skip and bucket of the roots are filled in.

    `complete_nodes` fills in those of the others.
    """
    first, roots = lay_out_trees(np.array((n,)) if groups is None else np.diff(groups.starts))
    buckets = int(first[-1])
    nodes = 2 * buckets - len(roots)
    tree = Tree(
        coords=np.empty(buckets * d * LANES, dtype),
        ids=np.empty(buckets * LANES, np.int32),
        low=np.empty(nodes * d, dtype),
        high=np.empty(nodes * d, dtype),
        skip=np.empty(nodes, np.int32),
        bucket=np.empty(nodes, np.int32),
        lowest=np.empty(nodes, np.int32),
        n=n,
        d=d,
        weights=np.empty(0, dtype) if weights is None else weights,
    )
    tree.bucket[roots] = first[:-1]
    tree.skip[roots] = np.append(roots[1:], nodes)
    return tree


def _cut_once(
    work: NDArray[Any], ids: NDArray[np.int32], waiting: list[_Cut], tree: Tree, by_index: bool, crew: Crew
) -> list[_Cut]:
    """Cut every waiting subtree once, in parallel; return the halves, or the subtree itself when it is a bucket."""
    tasks = np.array(waiting, np.int64)
    halves = np.empty((2 * len(tasks), len(_Cut._fields)), np.int64)
    crew.run(
        "",
        len(tasks),
        lambda first, last: cut_subtrees(work, ids, tasks[first:last], tree, by_index, halves[2 * first : 2 * last]),
    )
    return [_Cut(*half) for half in halves.tolist()]


@entry
def cut_subtrees(work, ids, tasks, tree, by_index, halves):
    """Cut subtrees down to buckets; or once each, where there are halves to be written.

    tasks: int64 (t, 5), the fields of _Cut; empty ones are passed over. by_index: see `cut_node`. halves: int64 (2 t, 5),
    receives what each task is cut into; (0, 5) for down to buckets.
    """
    stack = np.empty((DEPTH, 5), np.int64)
    once = halves.shape[0] > 0
    for t in range(tasks.shape[0]):
        for i in range(5):
            stack[0, i] = tasks[t, i]
        waiting = 1
        while waiting > 0:
            waiting -= 1
            start, stop, bucket = stack[waiting, 0], stack[waiting, 1], stack[waiting, 2]
            end_bucket, node = stack[waiting, 3], stack[waiting, 4]
            if start == stop:
                continue
            left, right = cut_node(work, ids, tree, by_index, start, stop, bucket, end_bucket, node)
            for i in range(5):
                if once:
                    halves[2 * t, i] = left[i]
                    halves[2 * t + 1, i] = right[i]
                else:
                    stack[waiting, i] = right[i]
                    stack[waiting + 1, i] = left[i]
            waiting += 0 if once else 2


@inner
def cut_node(work, ids, tree, by_index, start, stop, bucket, end_bucket, node):
    """Write one node and cut it in two; return both halves as (start, stop, bucket, end_bucket, node).

    by_index: cut by index rows that are still sorted by it.

    work: T (n, d) and ids: int32 (n,), both reordered inside [start, stop). A node of one bucket fills it, and both halves
    are empty. Equal points are cut by index, so that a search among ties can pass over whole subtrees of higher ones.
    """
    axis = measure_box(work, start, stop, node, tree)
    half = (end_bucket - bucket) // 2
    if half == 0:
        fill_bucket(work, ids, start, stop, bucket, tree)
        return (stop, stop, end_bucket, end_bucket, node), (stop, stop, end_bucket, end_bucket, node)
    middle = start + half * LANES
    if by_index:
        pass
    elif tree.low[node * tree.d + axis] < tree.high[node * tree.d + axis]:
        select_rows(work, ids, start, stop, middle, axis)
    else:
        select_ids(ids, start, stop, middle)
    left = (start, middle, bucket, bucket + half, node + 1)
    right = (middle, stop, bucket + half, end_bucket, node + 2 * half)
    return left, right


@inner
def measure_box(work, start, stop, node, tree):
    """Write the box of rows [start, stop) as the box of `node`; return its widest coordinate, the first of equals."""
    d = work.shape[1]
    low = tree.low[node * d : (node + 1) * d]
    high = tree.high[node * d : (node + 1) * d]
    for c in range(d):
        low[c] = work[start, c]
        high[c] = work[start, c]
    for row in range(start + 1, stop):
        for c in range(d):
            low[c] = min(low[c], work[row, c])
            high[c] = max(high[c], work[row, c])
    widest, width = 0, work.dtype.type(-1)
    for c in range(d):
        side = high[c] - low[c]
        if tree.weights.shape[0] > 0:
            side *= tree.weights[c]
        if side > width:
            widest, width = c, side
    return widest


@inner
def select_rows(work, ids, start, stop, middle, axis):
    """Reorder rows [start, stop) so that on `axis` rows before `middle` are ≤ those from it on. Hoare's select."""
    d = work.shape[1]
    left, right = start, stop - 1
    while left < right:
        a, b, c = work[left, axis], work[(left + right) // 2, axis], work[right, axis]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = left, right
        while i <= j:
            while work[i, axis] < pivot:
                i += 1
            while work[j, axis] > pivot:
                j -= 1
            if i <= j:
                for k in range(d):
                    work[i, k], work[j, k] = work[j, k], work[i, k]
                ids[i], ids[j] = ids[j], ids[i]
                i += 1
                j -= 1
        if middle <= j:
            right = j
        elif middle >= i:
            left = i
        else:
            return


@inner
def select_ids(ids, start, stop, middle):
    """Reorder ids[start:stop] so that those before `middle` are below those from it on; their rows of `work` are equal."""
    left, right = start, stop - 1
    while left < right:
        pivot = ids[(left + right) // 2]
        i, j = left, right
        while i <= j:
            while ids[i] < pivot:
                i += 1
            while ids[j] > pivot:
                j -= 1
            if i <= j:
                ids[i], ids[j] = ids[j], ids[i]
                i += 1
                j -= 1
        if middle <= j:
            right = j
        elif middle >= i:
            left = i
        else:
            return


@inner
def fill_bucket(work, ids, start, stop, bucket, tree):
    """Write rows [start, stop), at most 32, to their bucket, dimension by dimension."""
    d = work.shape[1]
    for place in range(LANES):
        filled = start + place < stop
        tree.ids[bucket * LANES + place] = ids[start + place] if filled else NO_ID
        for c in range(d):
            tree.coords[(bucket * d + c) * LANES + place] = work[start + place, c] if filled else np.inf


@entry
def complete_nodes(tree):
    """Fill in skip, bucket and lowest index of every node, from skip and bucket of the roots and from ids.

    A tree's shape follows from its number of buckets.
    """
    for node in range(tree.skip.shape[0]):
        half = (tree.skip[node] - node + 1) // 4
        if half > 0:
            right = node + 2 * half
            tree.bucket[node + 1], tree.skip[node + 1] = tree.bucket[node], right
            tree.bucket[right], tree.skip[right] = tree.bucket[node] + half, tree.skip[node]
    for node in range(tree.skip.shape[0] - 1, -1, -1):
        lowest = NO_ID
        if tree.skip[node] == node + 1:
            for place in range(LANES):
                lowest = min(lowest, tree.ids[tree.bucket[node] * LANES + place])
        else:
            lowest = min(tree.lowest[node + 1], tree.lowest[tree.skip[node + 1]])
        tree.lowest[node] = lowest
