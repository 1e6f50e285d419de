"""What a build takes of a worker's memory, estimated before it is queued: measured, and rounded up."""

from __future__ import annotations

from worker.settings import ENTRY_BYTES

_PER_ENTRY = ENTRY_BYTES + 2  # the answer and what sorts it: 1.1 to 1.2 of 12 bytes were measured
_PER_ROW = 128  # ranks, limits, places in the tree, keys of a Hilbert order: 110 were measured
_FIXED = 12_000_000  # any build, however small: scratch of kernels and BLAS on two threads, 9 MB were measured
_PER_COORDINATE = 6 * 8  # as they came, embedded, in the trees of a Vecchia graph, and in the order's
_PER_FACTOR = 16  # V in float64 and float32, and what is solved beside it: 14.6 were measured
_PER_GIVEN = 8  # V as it was given
_FOREST_PLACES = 1 << 23  # coordinates of one forest, as `pcct_core.groups` bounds them
_PLACES_PER_ROW = 16  # a group of two rows, the smallest that is looked at, takes a bucket of 32
_PER_PLACE, _PER_PLACE_COORDINATE = 12, 9  # row, query and tree of a place; coordinates, and boxes


def build_bytes(
    n: int, d: int, k: int, inducing: int = 0, queries: int = 0, *, given: bool = False, grouped: bool = False
) -> int:
    """Return the estimated bytes of a graph of n points in d dimensions, or of queries to them.

    inducing: points of a residual metric, or columns of its factors, 0 for any other. given: the factors come with the
    specification. grouped: neighbors are looked for within groups, each of which takes whole buckets.
    """
    rows = n + queries
    places = min(_PLACES_PER_ROW * n, max(2 * n, _FOREST_PLACES // d)) if grouped else 0
    return (
        _FIXED
        + (queries or n) * k * _PER_ENTRY
        + rows * (_PER_ROW + d * _PER_COORDINATE)
        + rows * inducing * (_PER_FACTOR + _PER_GIVEN * given)
        + places * (_PER_PLACE + d * _PER_PLACE_COORDINATE)
    )
