"""The gate's lookup: how far a query must look, as a multiple of its own k-th scaled distance.

The local scale (the k-th scaled distance itself, in lengthscales) decides how correlations decay between a query and its
neighbors, so the multiple is looked up by it, in a few bins. It is learned from the true neighbors of a sample of queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_core.errors import FileFormatError

_VERSION = 1
_BINS = 8
_MARGIN = 1.25  # on the largest multiple seen among about 400 queries: see docs/CORE_IMPLEMENTATIONS.md


@dataclass(frozen=True)
class GateLookup:
    """Multiples by local scale.

    edges: float64 (bins - 1,), ascending local scales between the bins. multiples: float64 (bins,), ≥ 1.
    kernel, k: what it was learned for.
    """

    edges: NDArray[np.float64]
    multiples: NDArray[np.float64]
    kernel: str
    k: int

    def bins(self, scales: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bin of each local scale."""
        return np.searchsorted(self.edges, scales).astype(np.int64)

    def radii(self, scales: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gate of each query, a radius in scaled distance; inf where the local scale is inf."""
        radii: NDArray[np.float64] = self.multiples[self.bins(scales)] * scales
        return radii

    def fits(self, kernel: str, k: int) -> bool:
        """Return True when it was learned for this kernel and at least as many neighbors."""
        return self.kernel == kernel and self.k >= k

    def widened(self, bins: NDArray[np.bool_], factor: float) -> GateLookup:
        """Return the lookup with the multiples of the marked bins made larger."""
        return replace(self, multiples=np.where(bins, self.multiples * factor, self.multiples))

    def to_json(self) -> dict[str, Any]:
        """Return the lookup as a JSON object."""
        return {
            "version": _VERSION,
            "kernel": self.kernel,
            "k": self.k,
            "edges": [float(f"{edge:.6g}") for edge in self.edges],
            "multiples": [float(f"{multiple:.6g}") for multiple in self.multiples],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GateLookup:
        """Read a lookup; raises FileFormatError for another version or numbers that make no lookup."""
        try:
            if data["version"] != _VERSION:
                raise FileFormatError(
                    f"gate lookup has version {data['version']}, this release reads {_VERSION}; learn it anew"
                )
            edges, multiples = np.array(data["edges"], float), np.array(data["multiples"], float)
            if len(multiples) != len(edges) + 1 or not (multiples >= 1).all() or (np.diff(edges) < 0).any():
                raise FileFormatError("gate lookup has no valid edges and multiples; learn it anew")
            return cls(edges, multiples, str(data["kernel"]), int(data["k"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError("gate lookup is not readable; learn it anew") from error


def learn_lookup(scales: NDArray[np.float64], needed: NDArray[np.float64], kernel: str, k: int) -> GateLookup:
    """Return the lookup that lets every sampled query reach all its true neighbors, with a margin.

    scales, needed: float64 (queries,), local scale and the largest scaled distance of a true neighbor over it.
    """
    edges = np.quantile(scales, np.arange(1, _BINS) / _BINS)
    bins = np.searchsorted(edges, scales)
    largest = np.array([needed[bins == b].max(initial=1.0) for b in range(_BINS)])
    # Each bin also heeds its neighbors: a few dozen queries see too little of their own tail.
    padded = np.pad(largest, 1, mode="edge")
    spread = np.maximum(np.maximum(padded[:-2], padded[2:]), largest)
    return GateLookup(edges, np.maximum(spread, 1.0) * _MARGIN, kernel, k)
