"""The k best of each of 32 queries at once: append what is near enough, then sort and merge by networks.

Rows hold one candidate of every query (32 lanes), so one exchange of two rows is a handful of vector instructions and
needs no branch. Rows [0, size) are the best so far, ascending by (distance, id); rows [size, …) are what was appended
since. `settle` sorts the appended rows in chunks of `size` (Batcher's odd-even merge sort), keeps the lowest `size` of
best and chunk (a bitonic merge), and lowers each query's bound to its k-th best.

Sources: Batcher 1968 (both networks); Johnson, Douze, Jégou 2019, section 4 (append first, sort late).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pcct_core.jit import inner
from pcct_core.simd import LANES, order_rows

NO_ID = np.int32(2**31 - 1)  # sorts after every point, so an empty place is always last


class Best(NamedTuple):
    """Candidates of one group of 32 queries.

    distances: flat ((size + room) * LANES), not squared; T, or float64 where a metric measures itself. ids: int32, same layout.
    counts:    int64 (LANES), rows appended since the last settle, less `size` before the first one: what comes first is
               appended to the best rows, which are still empty.
    bounds:    T (LANES), squared: what is above cannot enter.
    settled:   int64 (1,), 1 after the first settle.
    k, size:   neighbors wanted; the power of two of best rows, size ≥ k.
    room:      appended rows that fit, a multiple of size.
    """

    distances: Any
    ids: Any
    counts: Any
    bounds: Any
    settled: Any
    k: int
    size: int
    room: int


@inner
def make_best(k, dtype_of):
    """Return a Best for k neighbors, distances and bounds in the type of the array `dtype_of`; see `make_bests`."""
    return make_bests(1, k, dtype_of, dtype_of)


@inner
def make_bests(parts, k, dtype_of, bounds_of):
    """Return the Bests of several groups one behind the other, for `part_best`; of one group, its Best.

    Distances have the type of one array and bounds that of another, the coordinates'. `clear_best` fills a Best in.
    """
    size = 16
    while size < k:
        size *= 2
    room = max(2 * LANES, 2 * size)
    places = parts * (size + room) * LANES
    distances, bounds = np.empty(places, dtype_of.dtype), np.empty(parts * LANES, bounds_of.dtype)
    ids, counts = np.empty(places, np.int32), np.empty(parts * LANES, np.int64)
    return Best(distances, ids, counts, bounds, np.empty(parts, np.int64), k, size, room)


@inner
def part_best(bests, part):
    """Return the Best of one of several groups, which shares their arrays."""
    places = (bests.size + bests.room) * LANES
    start, stop, first, last = part * places, (part + 1) * places, part * LANES, (part + 1) * LANES
    distances, ids, settled = bests.distances[start:stop], bests.ids[start:stop], bests.settled[part : part + 1]
    counts, bounds = bests.counts[first:last], bests.bounds[first:last]
    return Best(distances, ids, counts, bounds, settled, bests.k, bests.size, bests.room)


@inner
def clear_best(best, lanes):
    """Forget all candidates; the first `lanes` queries accept everything, the others nothing."""
    forget_rows(best.distances, best.ids, np.int64(0), best.size + best.room)
    best.settled[0] = 0
    for lane in range(LANES):
        best.counts[lane] = -best.size
        best.bounds[lane] = np.inf if lane < lanes else -1


@inner
def forget_rows(distances, ids, start, stop):
    """Empty the rows [start, stop). By a loop: Numba compiles 3 s for assignments to slices, to say when shapes differ."""
    for at in range(start * LANES, stop * LANES):
        distances[at] = np.inf
        ids[at] = NO_ID


@inner
def take_row(best, lane, row, neighbors, distances):
    """Give a query that was just cleared the k candidates of its row, int32 and T (n, k), in any order."""
    farthest = distances.dtype.type(0)
    for i in range(best.k):
        at = i * LANES + lane
        best.ids[at] = neighbors[row, i]
        best.distances[at] = distances[row, i]
        farthest = max(farthest, distances[row, i])
    best.counts[lane] = best.k - best.size
    best.bounds[lane] = radius_bound(farthest, distances)


@inner
def sort_rows(distances, ids, first, size):
    """Sort rows [first, first + size) in every lane; size is a power of two. Batcher's odd-even merge sort."""
    p = 1
    while p < size:
        step = p
        while step >= 1:
            j = step & (p - 1)
            while j + step < size:
                for i in range(j, min(j + step, size - step)):
                    if (i ^ (i + step)) & ~(2 * p - 1) == 0:
                        order_rows(distances, ids, first + i, first + i + step)
                j += 2 * step
            step >>= 1
        p <<= 1


@inner
def full_best(best, most):
    """Return True when the candidates should be settled before another bucket; most: the largest of best.counts.

    The first time as soon as some query has more than fill the best rows, for until then it accepts everything.
    """
    return most > (best.room - LANES if best.settled[0] else 0)


@inner
def sort_chunk(distances, ids, first, rows):
    """Sort rows [first, first + rows) and the empty ones after them, as far as a power of two reaches."""
    size = 1
    while size < rows:
        size *= 2
    sort_rows(distances, ids, first, size)


@inner
def merge_rows(distances, ids, first, size):
    """Leave in rows [0, size) the lowest of them and of rows [first, first + size), sorted; both come sorted."""
    for i in range(size):
        order_rows(distances, ids, i, first + size - 1 - i)
    step = size >> 1
    while step >= 1:
        for j in range(0, size, 2 * step):
            for i in range(j, j + step):
                order_rows(distances, ids, i, i + step)
        step >>= 1


class Front(NamedTuple):
    """What a group can still gain from: the largest bound (squared), k-th distance and k-th index of its queries."""

    bound: Any
    distance: Any
    index: Any


@inner
def open_front(best):
    """Return the front of a group that has found nothing yet: everything can be gained."""
    return Front(best.bounds[0], best.distances.dtype.type(np.inf), NO_ID)


@inner
def radius_bound(r, typed):
    """Return a bound on squared distances that loses no point whose rounded distance is at most r.

    r: T. typed: any array of T. Proof: such a point has sqrt(s) (1 - u) ≤ r, so s ≤ r² (1 + 3u); r * r is computed within
    (1 ± u) or, near underflow, within the smallest normal number. The factor 1 + 8 eps (eps = 2u) and the addition of
    that number cover both.
    """
    number = typed.dtype.type
    slack = number(1) + number(8) * number(np.finfo(typed.dtype).eps)
    return r * r * slack + number(np.finfo(typed.dtype).tiny)


@inner
def settle(best, lanes):
    """Sort and merge what was appended, lower the bounds of the first `lanes` queries, return their front."""
    distances, ids, size = best.distances, best.ids, best.size
    rows = -size
    for lane in range(lanes):
        rows = max(rows, best.counts[lane])
    for lane in range(LANES):
        best.counts[lane] = 0
    if not best.settled[0]:
        sort_chunk(distances, ids, np.int64(0), min(size, size + rows))
        best.settled[0] = 1
    for first in range(size, size + rows, size):
        sort_chunk(distances, ids, first, min(size, size + rows - first))
        merge_rows(distances, ids, first, size)
    rows = max(rows, 0)
    stop = size + (rows + size - 1) // size * size
    forget_rows(distances, ids, size, stop)
    last = (best.k - 1) * LANES
    bound, distance, index = best.bounds.dtype.type(0), distances.dtype.type(0), np.int32(0)
    for lane in range(lanes):
        r = distances[last + lane]
        best.bounds[lane] = radius_bound(r, distances)
        bound = max(bound, best.bounds[lane])
        distance = max(distance, r)
        index = max(index, ids[last + lane])
    return Front(bound, distance, index)


@inner
def write_rows(best, lanes, rows, neighbors, distances):
    """Write the k best of the first `lanes` queries to their rows of the answer.

    rows: int32 (LANES), row of each query. neighbors: int32 (n, k), -1 where there is none. distances: T (n, k).
    """
    for lane in range(lanes):
        row = rows[lane]
        for i in range(best.k):
            at = i * LANES + lane
            neighbors[row, i] = -1 if best.ids[at] == NO_ID else best.ids[at]
            distances[row, i] = best.distances[at]
