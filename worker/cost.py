"""What a build takes of a worker's memory, estimated before it is queued: measured, and rounded up."""

from __future__ import annotations

from worker.settings import ENTRY_BYTES

_PER_ENTRY = ENTRY_BYTES + 2  # the answer and what sorts it: 1.1 to 1.2 of 12 bytes were measured
_PER_ROW = 128  # ranks, limits, places in the tree, keys of a Hilbert order: 110 were measured
_FIXED = 12_000_000  # any build, however small: scratch of kernels and BLAS on two threads, 9 MB were measured
_PER_COORDINATE = 6 * 8  # as they came, embedded, in the trees of a Vecchia graph, and in the order's
_PER_FACTOR = 16  # V in float64 and float32, and what is solved beside it: 14.6 were measured


def build_bytes(n: int, d: int, k: int, inducing: int = 0, queries: int = 0) -> int:
    """Return the estimated bytes of a graph of n points in d dimensions, or of queries to them.

    inducing: points of a residual metric, 0 for any other.
    """
    rows = n + queries
    return (
        _FIXED
        + (queries or n) * k * _PER_ENTRY
        + rows * (_PER_ROW + d * _PER_COORDINATE)
        + rows * inducing * _PER_FACTOR
    )
