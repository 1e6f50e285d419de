"""The gate's lookup: how far a query must look, as a multiple of its own k-th scaled distance.

The local scale (the k-th scaled distance itself, in lengthscales) decides how correlations decay between a query and its
neighbors, so the multiple is looked up by it, in a few bins. It is learned from the true neighbors of a sample of queries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_core.errors import FileFormatError, InvalidInput

_VERSION = 1
_BINS = 8
_MARGIN = 1.25  # on the largest multiple seen among about 400 queries: see docs/CORE_IMPLEMENTATIONS.md


@dataclass(frozen=True)
class GateLookup:
    """Multiples by local scale.

    edges: float64 (bins - 1,), ascending local scales between the bins, ≥ 0. multiples: float64 (bins,), ≥ 1.
    kernel, k: what it was learned for. Raises InvalidInput for numbers that make no lookup: none may be infinite, since an
    infinite multiple of a local scale of 0 is no radius.
    """

    edges: NDArray[np.float64]
    multiples: NDArray[np.float64]
    kernel: str
    k: int

    def __post_init__(self) -> None:
        edges, multiples = np.asarray(self.edges, float), np.asarray(self.multiples, float)
        if edges.ndim != 1 or multiples.shape != (len(edges) + 1,):
            raise InvalidInput(
                f"a gate lookup has one multiple more than edges, not {multiples.shape} and {edges.shape}; learn it anew"
            )
        for name, values, least in (("edge", edges, 0.0), ("multiple", multiples, 1.0)):
            wrong = ~(np.isfinite(values) & (values >= least))
            if wrong.any():
                at = int(np.argmax(wrong))
                raise InvalidInput(
                    f"{name} {at} of a gate lookup is {values[at]}; it must be finite and at least {least:g}: learn it anew"
                )
        if (np.diff(edges) < 0).any():
            raise InvalidInput("the edges of a gate lookup are not in ascending order; learn it anew")
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "multiples", multiples)

    def bins(self, scales: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bin of each local scale."""
        return np.searchsorted(self.edges, scales).astype(np.int64)

    def radii(self, scales: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gate of each query, a radius in scaled distance; inf where the local scale is inf."""
        with np.errstate(over="ignore"):
            radii: NDArray[np.float64] = self.multiples[self.bins(scales)] * scales
        return radii

    def fits(self, kernel: str, k: int) -> bool:
        """Return True when it was learned for this kernel and at least as many neighbors."""
        return self.kernel == kernel and self.k >= k

    def widened(self, bins: NDArray[np.bool_], factor: float) -> GateLookup:
        """Return the lookup with the multiples of the marked bins made larger."""
        return replace(self, multiples=np.where(bins, _times(self.multiples, factor), self.multiples))

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
            return cls(edges, multiples, str(data["kernel"]), int(data["k"]))
        except InvalidInput as error:
            raise FileFormatError(f"gate lookup has no valid edges and multiples: {error}") from error
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FileFormatError("gate lookup is not readable; learn it anew") from error

    @classmethod
    def read(cls, text: bytes, kernel: str, k: int) -> GateLookup:
        """Read the JSON text of a lookup for a kernel and k neighbors; raises FileFormatError for anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"gate lookup is not JSON ({error}); learn it anew") from error
        lookup = cls.from_json(data)
        if not lookup.fits(kernel, k):
            raise FileFormatError(
                f"gate lookup is for {lookup.kernel!r} and {lookup.k} neighbors, not {kernel!r} and {k}; learn it anew"
            )
        return lookup


def learn_lookup(scales: NDArray[np.float64], needed: NDArray[np.float64], kernel: str, k: int) -> GateLookup:
    """Return the lookup that lets every sampled query reach all its true neighbors, with a margin.

    scales, needed: float64 (queries,), local scale and the largest scaled distance of a true neighbor over it.
    """
    if len(scales) == 0:  # every query is allowed fewer than k points, and looks at all of them
        return GateLookup(np.empty(0), np.full(1, _MARGIN), kernel, k)
    edges = np.quantile(scales, np.arange(1, _BINS) / _BINS)
    bins = np.searchsorted(edges, scales)
    largest = np.array([needed[bins == b].max(initial=1.0) for b in range(_BINS)])
    # Each bin also heeds its neighbors: a few dozen queries see too little of their own tail.
    padded = np.pad(largest, 1, mode="edge")
    spread = np.maximum(np.maximum(padded[:-2], padded[2:]), largest)
    return GateLookup(edges, _times(np.maximum(spread, 1.0), _MARGIN), kernel, k)


def _times(multiples: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Return multiples made larger; the largest number stands for infinity, which a local scale of 0 would make no radius."""
    with np.errstate(over="ignore"):
        larger: NDArray[np.float64] = np.minimum(multiples * factor, np.finfo(float).max)
    return larger
