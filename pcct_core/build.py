"""The compressed cover tree: nets on top, median cuts inside their cells, buckets of 32 points at the bottom.

A cover node has a center; the centers of one level are further than its radius apart, each lies within the radius of
the level above from its parent, and a center stays center of a cell on every level below. Levels on which nothing would
split are left out. A cell with at most `CELL` points, or one that a net would shatter (in high dimension all points are far
from each other), is cut by medians of its widest coordinate down to buckets.

Nodes stand in preorder, so a subtree is one slice of nodes, of buckets and of places. Every node has a box and the lowest
index below it; a cover node also has its center, level and the true radius of its subtree.

Sources: Beygelzimer, Kakade, Langford 2006 (cover tree); Elkin & Kurlin 2022 (compressed); Friedman, Bentley, Finkel 1977
(median cuts and buckets).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pcct_core.nets import choose_net
from pcct_core.parallel import Crew
from pcct_core.simd import LANES
from pcct_core.topk import NO_ID

CELL = 4096  # points; smaller cells cost ragged buckets at their borders, larger ones leave less work to share
_MOST_CENTERS = 256  # per level; beyond that a net is shattering, and comparing with all of them would cost more than cuts
_MOST_LEVELS = 24  # halvings; what is still crowded then is cut by medians
_TASKS = 16  # subtrees handed to the threads; enough to balance two to eight of them
_STACK = 64  # a median tree over 2^31 / 32 buckets has 26 levels, and each holds one waiting sibling


class Tree(NamedTuple):
    """A compressed cover tree over n points in d dimensions, in flat arrays.

    coords: T flat (buckets * d * LANES), by bucket, then dimension; inf where a place is empty.
    ids:    int32 (buckets * LANES), index of the point in each place, NO_ID where empty.
    low, high: T flat (nodes * d), corners of each node's box.
    skip:   int32 (nodes,), the node after this subtree; a leaf has skip[node] == node + 1.
    bucket: int32 (nodes + 1,), first bucket of each subtree; the last entry is the number of buckets.
    lowest: int32 (nodes,), lowest index in each subtree.
    center: int32 (nodes,), index of the center, -1 where a median cut made the node.
    level:  int32 (nodes,), level of a cover node, 0 for the root, -1 where a median cut made the node.
    radius: T (nodes,), distance from the center to the farthest point of the subtree, nan where there is no center.
    radii:  T (levels,), net radius of each level.
    n, d, stack: number of points, dimensions, and the most nodes a depth-first search has waiting.
    """

    coords: Any
    ids: Any
    low: Any
    high: Any
    skip: Any
    bucket: Any
    lowest: Any
    center: Any
    level: Any
    radius: Any
    radii: Any
    n: int
    d: int
    stack: int


_NO_ROWS = np.empty(0, np.int32)


@dataclass
class _Cell:
    """A cover node while the tree is planned.

    rows: its points, ascending, while it has no children. radius: distance to the farthest of them.
    node, end, bucket: first node, node after the subtree, and first bucket, once they are numbered.
    """

    center: int
    level: int
    rows: NDArray[np.int32]
    radius: float
    children: list[_Cell] = field(default_factory=list)
    node: int = 0
    end: int = 0
    bucket: int = 0


class _Cut(NamedTuple):
    """A subtree still to be cut by medians: rows [start, stop) of the working copy, node and bucket numbers."""

    start: int
    stop: int
    bucket: int
    end_bucket: int
    node: int


def build_tree(points: NDArray[Any], crew: Crew, cell: int = CELL) -> Tree:
    """Build the tree of points, T (n, d) C-contiguous and finite; the same bytes for any number of threads.

    cell: points up to which a cell is cut by medians instead of refined by a net.
    """
    root, radii = _plan_cells(points, crew, cell)
    return _lay_out(points, root, np.asarray(radii, points.dtype), crew)


def _plan_cells(points: NDArray[Any], crew: Crew, cell: int) -> tuple[_Cell, list[float]]:
    """Return the root of the cover levels and the radius of each level."""
    n = points.shape[0]
    rows = np.arange(n, dtype=np.int32)
    squared = np.empty(n, points.dtype)
    crew.run("nets", n, lambda a, b: measure_rows(points, 0, a, b, squared), grain=8192)
    root = _Cell(0, 0, rows, float(np.sqrt(squared.max())))
    radii = [root.radius]
    crowded = [root] if n > cell else []
    while crowded and len(radii) < _MOST_LEVELS:
        widest = max(each.radius for each in crowded)
        if not 0.0 < widest < np.inf:
            break
        radius = float(points.dtype.type(min(widest, radii[-1]) / 2))
        if radius == 0.0 or not _refine(points, crowded, radius, len(radii), crew):
            break
        radii.append(radius)
        crowded = [
            part
            for each in crowded
            for part in (each.children or [each])
            if len(part.rows) > cell and part.radius > 0.0
        ]
    return root, radii


def _refine(points: NDArray[Any], crowded: list[_Cell], radius: float, level: int, crew: Crew) -> bool:
    """Choose one net for all crowded cells together and hang its cells below them; False when it would shatter."""
    gathered = np.sort(np.concatenate([each.rows for each in crowded]))
    parent_of = np.empty(points.shape[0], np.int32)
    for number, each in enumerate(crowded):
        parent_of[each.rows] = number
    given = np.searchsorted(gathered, [each.center for each in crowded]).astype(np.int32)
    net = choose_net(points[gathered], given, radius, _MOST_CENTERS, crew)
    if net is None:
        return False
    count = len(net.rows)
    ordered = np.argsort(net.nearest, kind="stable")
    ends = np.cumsum(np.bincount(net.nearest, minlength=count))
    for number in range(count):
        mine = ordered[(ends[number - 1] if number else 0) : ends[number]]
        center = int(gathered[net.rows[number]])
        child = _Cell(center, level, gathered[mine], float(np.sqrt(net.squared[mine].max())))
        crowded[int(parent_of[center])].children.append(child)
    for each in crowded:
        each.rows = _NO_ROWS
        if len(each.children) == 1:  # the center alone: the level would change nothing here, so it is left out
            (only,) = each.children
            each.rows, each.radius, each.children = only.rows, only.radius, []
    return True


def _lay_out(points: NDArray[Any], root: _Cell, radii: NDArray[Any], crew: Crew) -> Tree:
    """Number nodes and buckets in preorder, cut the cells by medians, and fill the arrays."""
    n, d = points.shape
    cells: list[_Cell] = []
    nodes, buckets = _number_cells(root, 0, 0, cells)
    tree = Tree(
        coords=np.empty(buckets * d * LANES, points.dtype),
        ids=np.empty(buckets * LANES, np.int32),
        low=np.empty(nodes * d, points.dtype),
        high=np.empty(nodes * d, points.dtype),
        skip=np.empty(nodes, np.int32),
        bucket=np.empty(nodes + 1, np.int32),
        lowest=np.empty(nodes, np.int32),
        center=np.full(nodes, -1, np.int32),
        level=np.full(nodes, -1, np.int32),
        radius=np.full(nodes, np.nan, points.dtype),
        radii=radii,
        n=n,
        d=d,
        stack=0,
    )
    tree.bucket[nodes] = buckets
    for cell in cells:
        tree.center[cell.node], tree.level[cell.node], tree.radius[cell.node] = cell.center, cell.level, cell.radius
        tree.skip[cell.node], tree.bucket[cell.node] = cell.end, cell.bucket
    ids = np.concatenate([cell.rows for cell in cells])
    work = points[ids]
    _cut_cells(work, ids, [cell for cell in cells if not cell.children], tree, crew)
    stack = gather_upwards(tree)
    for cell in cells:
        if cell.children:
            tree.radius[cell.node] = subtree_radius(tree, points[cell.center], cell.bucket, int(tree.bucket[cell.end]))
    return tree._replace(stack=int(stack))


def _number_cells(cell: _Cell, node: int, bucket: int, cells: list[_Cell]) -> tuple[int, int]:
    """Give preorder numbers to the cell and all below; append them to cells; return the next free node and bucket."""
    cell.node, cell.bucket = node, bucket
    cells.append(cell)
    if cell.children:
        node += 1
        for child in cell.children:
            node, bucket = _number_cells(child, node, bucket, cells)
    else:
        count = (len(cell.rows) + LANES - 1) // LANES
        node, bucket = node + 2 * count - 1, bucket + count
    cell.end = node
    return node, bucket


def _cut_cells(work: NDArray[Any], ids: NDArray[np.int32], leaves: list[_Cell], tree: Tree, crew: Crew) -> None:
    """Cut the leaf cells down to buckets: big ones once at a time until there is work for all threads, then to the end."""
    tasks: list[_Cut] = []
    start = 0
    for cell in leaves:
        stop = start + len(cell.rows)
        tasks.append(_Cut(start, stop, cell.bucket, cell.bucket + (stop - start + LANES - 1) // LANES, cell.node))
        start = stop
    enough = max(2 * LANES, len(work) // _TASKS)
    finished = [task for task in tasks if task.stop - task.start <= enough]
    waiting = [task for task in tasks if task.stop - task.start > enough]
    while waiting:
        halves: list[list[_Cut]] = [[] for _ in waiting]

        def cut_some(first: int, last: int, waiting: list[_Cut] = waiting, halves: list[list[_Cut]] = halves) -> None:
            for i in range(first, last):
                halves[i] = _cut_once(work, ids, waiting[i], tree)

        crew.run("cuts", len(waiting), cut_some)
        parts = [part for pair in halves for part in pair]
        finished += [part for part in parts if part.stop - part.start <= enough]
        waiting = [part for part in parts if part.stop - part.start > enough]
    array = np.array(finished, np.int64)
    crew.run("cuts", len(array), lambda a, b: cut_subtrees(work, ids, array[a:b], tree))


def _cut_once(work: NDArray[Any], ids: NDArray[np.int32], task: _Cut, tree: Tree) -> list[_Cut]:
    axis = measure_box(work, task.start, task.stop, task.node, tree)
    half = (task.end_bucket - task.bucket) // 2
    middle = task.start + half * LANES
    select_rows(work, ids, task.start, task.stop, middle, axis)
    tree.skip[task.node], tree.bucket[task.node] = task.node + 2 * (task.end_bucket - task.bucket) - 1, task.bucket
    cut = task.bucket + half
    return [
        _Cut(task.start, middle, task.bucket, cut, task.node + 1),
        _Cut(middle, task.stop, cut, task.end_bucket, task.node + 2 * half),
    ]


@njit(nogil=True, cache=True)
def measure_rows(points, center, start, stop, squared):  # type: ignore[no-untyped-def]
    """Write the squared distance of each row in [start, stop) to row `center`."""
    for row in range(start, stop):
        total = points.dtype.type(0)
        for c in range(points.shape[1]):
            difference = points[row, c] - points[center, c]
            total += difference * difference
        squared[row] = total


@njit(nogil=True, cache=True)
def measure_box(work, start, stop, node, tree):  # type: ignore[no-untyped-def]
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
    widest = 0
    for c in range(1, d):
        if high[c] - low[c] > high[widest] - low[widest]:
            widest = c
    return widest


@njit(nogil=True, cache=True)
def select_rows(work, ids, start, stop, middle, axis):  # type: ignore[no-untyped-def]
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


@njit(nogil=True, cache=True)
def cut_subtrees(work, ids, tasks, tree):  # type: ignore[no-untyped-def]
    """Cut subtrees down to buckets. tasks: int64 (t, 5), the fields of _Cut."""
    stack = np.empty((_STACK, 5), np.int64)
    for t in range(tasks.shape[0]):
        stack[0] = tasks[t]
        waiting = 1
        while waiting > 0:
            waiting -= 1
            start, stop, bucket, end_bucket, node = stack[waiting]
            axis = measure_box(work, start, stop, node, tree)
            tree.skip[node] = node + 2 * (end_bucket - bucket) - 1
            tree.bucket[node] = bucket
            if end_bucket - bucket == 1:
                fill_bucket(work, ids, start, stop, bucket, tree)
                continue
            half = (end_bucket - bucket) // 2
            middle = start + half * LANES
            select_rows(work, ids, start, stop, middle, axis)
            stack[waiting] = (middle, stop, bucket + half, end_bucket, node + 2 * half)
            stack[waiting + 1] = (start, middle, bucket, bucket + half, node + 1)
            waiting += 2


@njit(nogil=True, cache=True)
def fill_bucket(work, ids, start, stop, bucket, tree):  # type: ignore[no-untyped-def]
    """Write rows [start, stop), at most 32, to their bucket, dimension by dimension."""
    d = work.shape[1]
    for place in range(LANES):
        filled = start + place < stop
        tree.ids[bucket * LANES + place] = ids[start + place] if filled else NO_ID
        for c in range(d):
            tree.coords[(bucket * d + c) * LANES + place] = work[start + place, c] if filled else np.inf


@njit(nogil=True, cache=True)
def gather_upwards(tree):  # type: ignore[no-untyped-def]
    """Fill lowest indices, and boxes of cover nodes with children, from the leaves up; return the stack a search needs."""
    nodes, d = tree.skip.shape[0], tree.d
    for node in range(nodes - 1, -1, -1):
        lowest = NO_ID
        if tree.skip[node] == node + 1:
            for place in range(LANES):
                lowest = min(lowest, tree.ids[tree.bucket[node] * LANES + place])
        else:
            child = node + 1
            while child < tree.skip[node]:
                lowest = min(lowest, tree.lowest[child])
                for c in range(d):
                    low, high = tree.low[child * d + c], tree.high[child * d + c]
                    tree.low[node * d + c] = low if child == node + 1 else min(tree.low[node * d + c], low)
                    tree.high[node * d + c] = high if child == node + 1 else max(tree.high[node * d + c], high)
                child = tree.skip[child]
        tree.lowest[node] = lowest
    return waiting_nodes(tree)


@njit(nogil=True, cache=True)
def waiting_nodes(tree):  # type: ignore[no-untyped-def]
    """Return the most nodes that wait at once when a depth-first search pushes all children of every node it visits."""
    nodes = tree.skip.shape[0]
    waiting = np.ones(nodes, np.int64)
    most = 1
    for node in range(nodes):
        children = 0
        child = node + 1
        while child < tree.skip[node]:
            children += 1
            child = tree.skip[child]
        child = node + 1
        while child < tree.skip[node]:
            waiting[child] = waiting[node] + children - 1
            most = max(most, waiting[child])
            child = tree.skip[child]
    return most


@njit(nogil=True, cache=True)
def subtree_radius(tree, center, bucket, end_bucket):  # type: ignore[no-untyped-def]
    """Return the distance from center, T (d,), to the farthest point of buckets [bucket, end_bucket)."""
    d = tree.d
    farthest = center.dtype.type(0)
    for b in range(bucket, end_bucket):
        for place in range(LANES):
            if tree.ids[b * LANES + place] == NO_ID:
                continue
            total = center.dtype.type(0)
            for c in range(d):
                difference = tree.coords[(b * d + c) * LANES + place] - center[c]
                total += difference * difference
            farthest = max(farthest, total)
    return np.sqrt(farthest)
