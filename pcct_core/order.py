"""Vecchia orders: which point comes first. Every order is a permutation, `order[r]` the index of the point with rank r."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.build import build_tree
from pcct_core.columns import read_order
from pcct_core.jit import entry, inner
from pcct_core.parallel import Crew
from pcct_core.simd import LANES, scan_bucket, scan_weighted
from pcct_core.spec import Order, Stored
from pcct_core.topk import NO_ID

_HILBERT_WORD_BITS = 63
_SORT_PARTS, _SORT_SAMPLES = 256, 16  # parts of a long sort, and values sampled for each
_STEP_S = 0.02  # aim of one stretch of maximin steps between two reports


def order_points(
    points: NDArray[Any],
    embedded: NDArray[Any],
    order: Order | Stored,
    seed: int,
    crew: Crew,
    weights: NDArray[Any] | None = None,
) -> NDArray[np.int64]:
    """Return the order, int64 (n,).

    points: (n, d) as given, which "coordinate" sorts by. embedded: T (n, e), where "maximin" and "hilbert" measure, with
    weights as in `build.Tree`.
    order: its name, or a stored one of the caller's own. seed: of "random" (NumPy's PCG64). Ties go to the lower index in
    every order. Raises InvalidSpec for a stored order that is none of these points.
    """
    if isinstance(order, Stored):
        return read_order(order, points.shape[0])
    if order == "maximin":
        return maximin_order(embedded, crew, weights=weights)[0]
    if order == "hilbert":
        wide = embedded if weights is None else np.multiply(embedded, weights, dtype=np.float64)
        return hilbert_order(wide, crew)
    if order == "random":
        return np.random.default_rng(seed).permutation(points.shape[0]).astype(np.int64)
    if order == "coordinate":
        return sort_keys(list(points.T), crew)
    assert order == "given"  # noqa: S101  (the specification takes no other)
    return np.arange(points.shape[0], dtype=np.int64)


def sort_keys(keys: list[NDArray[Any]], crew: Crew) -> NDArray[np.int64]:
    """Return the rows in ascending order of their keys, the first key first, ties to the lower index.

    keys: arrays (n,). Rows are dealt to a few hundred parts by sampled values of the first key, and the parts sorted on all
    threads, so that a cancel does not wait for one long sort.
    """
    first = keys[0]
    n = len(first)
    sample = np.sort(first[:: max(1, n // (_SORT_PARTS * _SORT_SAMPLES))])
    bounds = np.unique(sample[::_SORT_SAMPLES])
    part = np.empty(n, np.uint16)

    def deal(start: int, stop: int) -> None:
        part[start:stop] = np.searchsorted(bounds, first[start:stop], side="right")

    crew.run("", n, deal, grain=16384)
    order = np.argsort(part, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(part, minlength=len(bounds) + 1))

    def sort_parts(start: int, stop: int) -> None:
        for i in range(start, stop):
            place = slice(ends[i - 1] if i else 0, ends[i])
            rows = order[place]
            order[place] = rows[np.lexsort([key[rows] for key in reversed(keys)])]

    crew.run("", len(ends), sort_parts)
    return order


class _Distant(NamedTuple):
    """Distances to the points chosen so far. places: T (buckets * LANES), -1 where chosen or empty.

    farthest: T (nodes,), largest of them in each subtree. index: int32 (nodes,), lowest index that has it.
    home: int32 (n,), bucket of each point. trail: int32 (nodes,), scratch.
    """

    places: Any
    farthest: Any
    index: Any
    home: Any
    trail: Any


def maximin_order(
    points: NDArray[Any], crew: Crew, count: int | None = None, *, weights: NDArray[Any] | None = None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the exact maximin order and each point's distance to the points before it (inf for the first).

    points: T (n, e). count: how many points to order, None for all. weights: as in `build.Tree`.
    The first point is the one nearest to the centroid (both in float64); each next one is the farthest from all before it,
    by distances in T; ties go to the lower index.
    Source: Guinness 2018 (the order); Schäfer, Katzfuss, Owhadi 2021, algorithm 4.1 (only points within reach are updated);
    the tree of running maxima, which gives both the next point and the reach, is ours.
    Cost: one walk of the tree per point; in low dimension O(n log² n) in all, in high dimension O(n² d).
    """
    n = points.shape[0]
    tree = build_tree(points, crew, phase="", weights=weights)
    nodes = len(tree.skip)
    home = np.empty(n, np.int32)
    home[tree.ids[:n]] = np.arange(n, dtype=np.int32) // LANES
    distant = _Distant(
        np.where(tree.ids == NO_ID, -1, np.inf).astype(points.dtype),
        np.empty(nodes, points.dtype),
        np.empty(nodes, np.int32),
        home,
        np.empty(nodes, np.int32),
    )
    find_farthest(tree, distant)
    weighted = points if weights is None else np.multiply(points, weights, dtype=np.float64)
    centroid = weighted.mean(axis=0, dtype=np.float64)
    count = n if count is None else count
    order = np.empty(count, np.int64)
    distances = np.empty(count, points.dtype)
    order[0] = np.argmin(np.square(weighted - centroid).sum(axis=1, dtype=np.float64))
    distances[0] = np.inf
    done, steps = 0, 16
    crew.report("order", 0, count)
    while done < count:
        stop = min(count, done + steps)
        begin = time.perf_counter()
        choose_farthest(tree, points, distant, order, distances, done, stop)
        # A stretch never more than doubles: compilation or a hiccup in one says nothing about the next.
        steps = int(min(2 * steps, max(1, steps * _STEP_S / max(time.perf_counter() - begin, 1e-6))))
        done = stop
        crew.report("order", done, count)
    return order, distances


@entry
def find_farthest(tree, distant):
    """Fill in farthest and index of every node from the places, from the leaves up."""
    for node in range(tree.skip.shape[0] - 1, -1, -1):
        if tree.skip[node] == node + 1:
            find_farthest_place(tree, distant, np.int64(node))
        else:
            find_farthest_child(tree, distant, np.int64(node))


@inner
def find_farthest_place(tree, distant, node):
    """Set the leaf's farthest place; ties to the lower index."""
    first = tree.bucket[node] * LANES
    farthest = distant.places[first]
    for place in range(first + 1, first + LANES):
        farthest = max(farthest, distant.places[place])
    index = NO_ID
    for place in range(first, first + LANES):
        if distant.places[place] == farthest:
            index = min(index, tree.ids[place])
    distant.farthest[node] = farthest
    distant.index[node] = index


@inner
def find_farthest_child(tree, distant, node):
    """Set the node's farthest point to that of its children; ties to the lower index."""
    left, right = node + 1, tree.skip[node + 1]
    a, b = distant.farthest[left], distant.farthest[right]
    if b > a or (b == a and distant.index[right] < distant.index[left]):
        left = right
    distant.farthest[node] = distant.farthest[left]
    distant.index[node] = distant.index[left]


@entry
def choose_farthest(tree, points, distant, order, distances, start, stop):
    """Choose the points of ranks [start, stop). order[start] is set; so is order[stop] on return, if there is one."""
    d = tree.d
    query = np.empty(d * LANES, points.dtype)
    squared = np.empty(LANES, points.dtype)
    zero = points.dtype.type(0)
    weighted = tree.weights.shape[0] > 0
    for rank in range(start, stop):
        chosen = order[rank]
        home = distant.home[chosen]
        for c in range(d):
            query[c * LANES] = points[chosen, c]
        node = 0
        visited = 0
        while node < tree.skip[0]:
            reach = zero
            for c in range(d):
                q = query[c * LANES]
                gap = max(max(tree.low[node * d + c] - q, q - tree.high[node * d + c]), zero)
                gap = gap * tree.weights[c] if weighted else gap
                reach += gap * gap
            last = tree.bucket[node] + (tree.skip[node] - node + 1) // 2
            # Rounding is monotone: no point of the box computes to a smaller distance, so none would change.
            if np.sqrt(reach) >= distant.farthest[node] and not tree.bucket[node] <= home < last:
                node = tree.skip[node]
            elif tree.skip[node] == node + 1:
                first = tree.bucket[node] * LANES
                if weighted:
                    scan_weighted(tree.coords, first * d, d, query, 0, tree.ids, first, 0, zero, squared, tree.weights)
                else:
                    scan_bucket(tree.coords, first * d, d, query, 0, tree.ids, first, 0, zero, squared)
                for place in range(LANES):
                    distance = np.sqrt(squared[place])
                    if distance < distant.places[first + place]:
                        distant.places[first + place] = distance
                    if tree.ids[first + place] == chosen:
                        distant.places[first + place] = -1
                find_farthest_place(tree, distant, np.int64(node))
                node += 1
            else:
                distant.trail[visited] = node
                visited += 1
                node += 1
        for i in range(visited - 1, -1, -1):
            find_farthest_child(tree, distant, np.int64(distant.trail[i]))
        if rank + 1 < order.shape[0]:
            order[rank + 1] = distant.index[0]
            distances[rank + 1] = distant.farthest[0]


def hilbert_order(points: NDArray[Any], crew: Crew) -> NDArray[np.int64]:
    """Return the order along a Hilbert curve through the bounding cube, for any number of dimensions.

    points: T (n, e). Coordinates are rounded to 2^b cells of the widest side, b as large as one 63-bit word allows (at
    least 4, in as many words as that takes); points of one cell keep the order of their indices.
    Source: Skilling 2004, "Programming the Hilbert curve" (axes to transpose).
    """
    n, d = points.shape
    bits = min(31, max(4, _HILBERT_WORD_BITS // d))
    low = points.min(axis=0).astype(np.float64)
    side = float((points.max(axis=0) - low).max()) or 1.0
    words = (bits * d + _HILBERT_WORD_BITS - 1) // _HILBERT_WORD_BITS
    keys = np.zeros((words, n), np.int64)
    crew.run("order", n, lambda a, b: hilbert_keys(points, low, side, bits, a, b, keys), grain=4096)
    return sort_keys(list(keys), crew)


@entry
def hilbert_keys(points, low, side, bits, start, stop, keys):
    """Write the curve position of rows [start, stop) to keys, int64 (words, n), most significant word first.

    low: float64 (d,), corner of the bounding cube, and side > 0, its width; cells are cut 2^bits to a side.
    """
    d = points.shape[1]
    axes = np.empty(d, np.int64)
    top = np.int64(1) << (bits - 1)
    cells = 2.0**bits - 1.0
    for row in range(start, stop):
        for c in range(d):
            # Divided first: cells / side overflows where the side is denormal.
            axes[c] = np.int64((points[row, c] - low[c]) / side * cells)
        q = top
        while q > 1:
            for c in range(d):
                if axes[c] & q:
                    axes[0] ^= q - 1
                else:
                    swap = (axes[0] ^ axes[c]) & (q - 1)
                    axes[0] ^= swap
                    axes[c] ^= swap
            q >>= 1
        for c in range(1, d):
            axes[c] ^= axes[c - 1]
        flip = np.int64(0)
        q = top
        while q > 1:
            if axes[d - 1] & q:
                flip ^= q - 1
            q >>= 1
        for c in range(d):
            axes[c] ^= flip
        place = 0
        for bit in range(bits - 1, -1, -1):
            for c in range(d):
                word = place // _HILBERT_WORD_BITS
                keys[word, row] = (keys[word, row] << 1) | ((axes[c] >> bit) & 1)
                place += 1
