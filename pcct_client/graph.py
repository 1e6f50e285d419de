"""The answer: `Graph`, its arrays and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, repr=False, eq=False)
class Graph:
    """A neighbor graph as the service built it.

    neighbors:   int32 (n, k), ascending by (distance, index); -1 where there is none.
    distances:   float32 or float64 (n, k), in the metric's unit; inf where there is no neighbor.
    order:       int64 (n,) or None. Vecchia graphs only: order[r] is the dataset index of rank r, and the rows and
                 entries of `neighbors` are ranks. A k-NN graph's rows and entries are dataset indices; the rows of a query's
                 answer are its queries.
    id, dataset: names of the graph and of its points in the service.
    spec:        the specification, in its normal form.
    certificate: what was measured about the graph's exactness.
    telemetry:   the service's record of the build.
    timings:     wall seconds of this call: "upload"; "build", waited while it ran; "queue", waited besides, for a
                 worker and for it to read the points and store the graph; "download". A graph that was there takes next
                 to none of "queue" and "build".
    version:     graphs of a `Session` only: which version of its track this is; versions only go up.
    changed:     true from the call of `Session.step` or `sync` that first returns this graph until the next one: time to
                 recompute objective and gradient. The session sets it back.
    """

    neighbors: NDArray[np.int32]
    distances: NDArray[Any]
    order: NDArray[np.int64] | None
    id: str
    dataset: str
    spec: dict[str, Any]
    certificate: dict[str, Any]
    telemetry: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    version: int | None = None
    changed: bool = False

    def in_original_index(self) -> Graph:
        """Return the graph with rows and entries as dataset indices; a k-NN graph already is.

        Row order[r] of the result is row r of this graph with every entry e ≥ 0 replaced by order[e].
        """
        if self.order is None:
            return self
        neighbors = np.empty_like(self.neighbors)
        distances = np.empty_like(self.distances)
        entries = self.order.astype(np.int32)[self.neighbors]
        entries[self.neighbors < 0] = -1
        neighbors[self.order] = entries
        distances[self.order] = self.distances
        return replace(self, neighbors=neighbors, distances=distances, order=None)

    def save(self, path: str | PathLike[str]) -> None:
        """Write neighbors, distances and order, if any, as an uncompressed .npz file that `np.load` reads."""
        arrays = {"neighbors": self.neighbors, "distances": self.distances}
        if self.order is not None:
            arrays["order"] = self.order
        with open(path, "wb") as file:  # noqa: PTH123  (np.savez would append .npz to a bare path)
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        """Return what it is and which one, without the numbers."""
        n, k = self.neighbors.shape
        metric = self.spec.get("metric", {}).get("type", "?")
        version = "" if self.version is None else f", version={self.version}"
        return f"Graph({self.spec.get('kind', '?')}, n={n}, k={k}, {metric}, id={self.id[:12]}…{version})"
