"""Nets: a maximal set of centers with pairwise distance > r, and every point attached to its nearest center.

Points come by rank. A point further than r from all centers so far becomes one, which is the sequential greedy answer
and so does not depend on threads. It is found in batches that grow eightfold: all points of a batch are compared with
the known centers in parallel; only the few left uncovered are in conflict with each other, and those conflicts are settled
one by one, lowest rank first (the maximal independent set with rank as priority).

Sources: Izbicki & Shelton 2015 (nearest-ancestor attachment); Gu, Napier, Sun, Wang 2022, section 4 (batches by prefix
doubling, conflicts inside a batch as an independent set).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pcct_core.parallel import Crew
from pcct_core.simd import LANES, lowest_bit, scan_bucket
from pcct_core.topk import NO_ID

_FIRST_BATCH = 4096
_BATCH_GROWTH = 8


class Centers(NamedTuple):
    """Centers of one level, in blocks of 32 for `scan_bucket`.

    coords: T flat (blocks * d * LANES), inf where a place is empty. numbers: int32 (blocks * LANES), their running
    number, NO_ID where empty. points: int32 (blocks * LANES), the row of `points` that each center is.
    """

    coords: Any
    numbers: Any
    points: Any


class Net(NamedTuple):
    """A net of some points.

    rows:    int32 (m,), rows that are centers, in the order they were chosen (the given ones first).
    nearest: int32 (n,), number of each row's nearest center, ties to the lower number.
    squared: T (n,), squared distance to it.
    """

    rows: NDArray[np.int32]
    nearest: NDArray[np.int32]
    squared: NDArray[Any]


def choose_net(points: NDArray[Any], given: NDArray[np.int32], radius: float, most: int, crew: Crew) -> Net | None:
    """Return a net with the rows `given` as its first centers, or None if it would have more than `most` centers.

    points: T (n, d), rows in rank order. radius: T, same unit; rows further than it from every center become centers.
    Cost: n · m / 32 vector distances.
    """
    n, d = points.shape
    blocks = (most + LANES - 1) // LANES
    centers = Centers(
        np.full(blocks * d * LANES, np.inf, points.dtype),
        np.full(blocks * LANES, NO_ID, np.int32),
        np.full(blocks * LANES, -1, np.int32),
    )
    for number, row in enumerate(given):
        place_center(points, int(row), centers, number)
    count = len(given)
    limit = points.dtype.type(radius) * points.dtype.type(radius)
    nearest = np.full(n, -1, np.int32)
    squared = np.full(n, np.inf, points.dtype)
    batches: list[tuple[int, int, int]] = []  # start, stop, centers known when the batch was compared
    start, size = 0, _FIRST_BATCH
    while start < n:
        stop = min(n, start + size)
        batches.append((start, stop, count))
        _attach(points, centers, (start, stop), (0, count), nearest, squared, crew)
        count = settle_conflicts(points, start, stop, squared, limit, centers, count, most)
        if count > most:
            return None
        start, size = stop, size * _BATCH_GROWTH
    for start, stop, known in batches:
        _attach(points, centers, (start, stop), (known, count), nearest, squared, crew)
    return Net(centers.points[:count].copy(), nearest, squared)


def _attach(
    points: NDArray[Any],
    centers: Centers,
    rows: tuple[int, int],
    numbers: tuple[int, int],
    nearest: NDArray[np.int32],
    squared: NDArray[Any],
    crew: Crew,
) -> None:
    if numbers[0] == numbers[1]:
        return
    start = rows[0]
    crew.run(
        "nets",
        rows[1] - start,
        lambda a, b: attach_rows(points, start + a, start + b, centers, numbers[0], numbers[1], nearest, squared),
        grain=2048,
    )


@njit(nogil=True, cache=True)
def place_center(points, row, centers, number):  # type: ignore[no-untyped-def]
    """Make row `row` the center with the given running number."""
    d = points.shape[1]
    block, lane = number // LANES, number % LANES
    for c in range(d):
        centers.coords[(block * d + c) * LANES + lane] = points[row, c]
    centers.numbers[number] = number
    centers.points[number] = row


@njit(nogil=True, cache=True)
def attach_rows(points, start, stop, centers, first, count, nearest, squared):  # type: ignore[no-untyped-def]
    """Compare rows [start, stop) with centers [first, count) and keep the nearest; earlier centers win ties."""
    d = points.shape[1]
    query = np.empty(d * LANES, points.dtype)
    distances = np.empty(LANES, points.dtype)
    for row in range(start, stop):
        for c in range(d):
            query[c * LANES] = points[row, c]
        for block in range(first // LANES, (count + LANES - 1) // LANES):
            at = block * LANES
            mask = scan_bucket(
                centers.coords, at * d, d, query, 0, centers.numbers, at, count, squared[row], distances
            )
            while mask != 0:
                lane = lowest_bit(mask)
                mask &= mask - np.uint32(1)
                if distances[lane] < squared[row]:
                    squared[row] = distances[lane]
                    nearest[row] = at + lane


@njit(nogil=True, cache=True)
def settle_conflicts(points, start, stop, squared, limit, centers, count, most):  # type: ignore[no-untyped-def]
    """Make centers of the rows [start, stop) that none covers, lowest first; return the new count.

    squared: T (n,), to the centers known before this batch. limit: T, squared radius. Stops past `most` centers.
    """
    d = points.shape[1]
    known = count
    query = np.empty(d * LANES, points.dtype)
    distances = np.empty(LANES, points.dtype)
    for row in range(start, stop):
        if squared[row] <= limit:
            continue
        for c in range(d):
            query[c * LANES] = points[row, c]
        covered = False
        for block in range(known // LANES, (count + LANES - 1) // LANES):
            at = block * LANES
            if scan_bucket(centers.coords, at * d, d, query, 0, centers.numbers, at, count, limit, distances) != 0:
                covered = True
                break
        if not covered:
            if count == most:
                return most + 1
            place_center(points, row, centers, count)
            count += 1
    return count
