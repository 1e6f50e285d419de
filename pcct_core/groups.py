"""Rows in groups: neighbors are looked for within a group alone.

A forest has a tree for each group, laid out one behind the other in the arrays of one `build.Tree`, and points keep their
indices in it. So many small groups cost no more calls than one large one, ties go to the lower index as ever, and what is found
needs no renaming.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.simd import LANES

_ROOM = 1 << 23  # coordinates of the buckets of one forest, unless there are twice as many points: 64 MiB in float64


class Groups(NamedTuple):
    """rows: int32 (m,), group behind group, ascending in each. starts: int64 (groups + 1,), where each begins and all end."""

    rows: NDArray[np.int32]
    starts: NDArray[np.int64]

    def one(self, number: int) -> Groups:
        """Return one group alone."""
        return self._some(number, number + 1)

    def first_rows(self, count: int) -> Groups:
        """Return the first rows of a group that is alone."""
        return Groups(self.rows[:count], np.array((0, count)))

    def parted(self, least: int) -> tuple[list[Groups], Groups]:
        """Return each group of at least so many rows by itself, the largest first, and all others but those of one row."""
        sizes = np.diff(self.starts)
        large = np.flatnonzero(sizes >= least)
        large = large[np.argsort(-sizes[large], kind="stable")]
        small = (sizes < least) & (sizes > 1)
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes[small])))
        return [self.one(int(group)) for group in large], Groups(self.rows[np.repeat(small, sizes)], starts)

    def batches(self, d: int) -> Iterator[Groups]:
        """Yield the groups in forests whose buckets take limited memory: small groups leave them nearly empty.

        d: dimensions of the points.
        """
        most = max(2 * len(self.rows), _ROOM // d) // LANES
        ends = np.cumsum((np.diff(self.starts) + LANES - 1) // LANES)
        first, total = 0, len(ends)
        while first < total:
            before = ends[first - 1] if first else 0
            stop = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
            yield self._some(first, stop)
            first = stop

    def _some(self, first: int, stop: int) -> Groups:
        starts = self.starts[first : stop + 1]
        return Groups(self.rows[starts[0] : starts[-1]], starts - starts[0])


def group_rows(codes: NDArray[np.int64]) -> Groups:
    """Return the rows by group; codes: int64 (n,), equal for rows of one group."""
    rows = np.argsort(codes, kind="stable")
    changes = np.flatnonzero(np.diff(codes[rows])) + 1
    return Groups(rows.astype(np.int32), np.concatenate(((0,), changes, (len(rows),))).astype(np.int64))
