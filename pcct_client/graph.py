"""The answer: `Graph`, its arrays and what is known about them."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_client import convert
from pcct_client.arrays import npy_body
from pcct_client.convert import FrameLibrary, GraphArrays, Pairs, SparseMode
from pcct_client.errors import NotForThisGraph
from pcct_client.files import write_arrays


class Children(NamedTuple):
    """A graph read backwards: who lists a point as a neighbor.

    offsets: int64 (points + 1,). rows: int32 (pairs,); those that list point j are rows[offsets[j]:offsets[j + 1]], ascending.
    """

    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]


@dataclass(frozen=True, repr=False, eq=False)
class Graph:
    """A neighbor graph as the service built it.

    neighbors:   int32 (n, k), ascending by (distance, index); -1 where there is none. A radius graph has as many per row as
                 there are, one row behind the other: (pairs,).
    distances:   float32 or float64, shaped as neighbors, in the metric's unit; inf where there is no neighbor.
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
    offsets:     int64 (n + 1,) or None. Radius graphs only: row i has neighbors[offsets[i]:offsets[i + 1]].
    points, queries: what the graph was asked for with, where that was an array and not an id; for `plot`. Not copied.
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
    offsets: NDArray[np.int64] | None = None
    points: NDArray[Any] | None = None
    queries: NDArray[Any] | None = None

    @property
    def n(self) -> int:
        """How many rows the graph has."""
        return len(self.neighbors if self.offsets is None else self.offsets[1:])

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

    def with_self(self) -> Graph:
        """Return the graph with every point as its own first neighbor, at distance 0, before duplicates of it too."""
        if self._is_query:
            raise NotForThisGraph("the rows of a query's answer are queries, not points: none can be its own neighbor")
        itself = np.arange(self.n, dtype=np.int32)
        if self.offsets is None:
            neighbors = np.column_stack((itself, self.neighbors))
            distances = np.insert(self.distances, 0, 0.0, axis=1)
            return replace(self, neighbors=neighbors, distances=distances)
        starts = self.offsets[:-1]
        return replace(
            self,
            neighbors=np.insert(self.neighbors, starts, itself),
            distances=np.insert(self.distances, starts, 0.0),
            offsets=self.offsets + np.arange(self.n + 1),
        )

    def children(self) -> Children:
        """Return who lists each point: the rows that change when it does. Ranks in a Vecchia graph, as in `neighbors`."""
        pairs = self._pairs()
        by_entry = np.argsort(pairs.neighbors, kind="stable")
        offsets = np.zeros(self._columns() + 1, np.int64)
        np.cumsum(np.bincount(pairs.neighbors, minlength=self._columns()), out=offsets[1:])
        return Children(offsets, pairs.rows()[by_entry])

    def conditioning_sets(self) -> list[NDArray[np.int32]]:
        """Return, for every row of a Vecchia graph, the points that it is conditioned on, nearest first; no -1 among them.

        Ranks, or dataset indices after `in_original_index`. Each is a view into `neighbors`, not a copy.
        """
        if self.spec.get("kind") != "vecchia":
            raise NotForThisGraph(
                "conditioning sets are what a Vecchia graph has; ask for one with client.vecchia(X, k)"
            )
        counts = (self.neighbors >= 0).sum(axis=1)
        return [row[:count] for row, count in zip(self.neighbors, counts.tolist(), strict=True)]

    def to_sparse(self, mode: SparseMode = "distance") -> Any:
        """Return `scipy.sparse.csr_array` (n, n) of the distances, or of ones for "connectivity"; needs SciPy.

        A query's answer has a column for every point of the dataset. Distances of 0 are stored entries.
        """
        return convert.sparse_matrix(self._pairs(), self._columns(), mode)

    def to_torch(self) -> GraphArrays:
        """Return (neighbors, distances, order, offsets) as CPU tensors; neighbors are int64, the others share memory."""
        return convert.torch_tensors(self._arrays())

    def to_jax(self) -> GraphArrays:
        """Return (neighbors, distances, order, offsets) as JAX arrays; float64 becomes float32 unless jax_enable_x64 is on."""
        return convert.jax_arrays(self._arrays())

    def to_networkx(self) -> Any:
        """Return a `networkx.DiGraph`: an edge from each row to each of its neighbors, with the distance as `weight`.

        The queries of a query's answer are the nodes ("query", i).
        """
        return convert.networkx_graph(self._pairs(), self._is_query)

    def to_frame(self, library: FrameLibrary | None = None) -> Any:
        """Return a data frame with one line per pair: row, position (0 for the nearest), neighbor, distance.

        A row without neighbors has one line, with neighbor -1 at distance inf, and position -1.
        library: "pandas" or "polars"; left out, pandas, or polars where that alone is installed.
        """
        return convert.frame(self._pairs(), library)

    def plot(self, i: int, *, points: Any = None, whole: bool = False, ax: Any = None) -> Any:
        """Draw row i: the point, its neighbors, the rest faint; returns the matplotlib axes. Needs matplotlib.

        i:      row of `neighbors`: in a Vecchia graph a rank.
        points: the points (n, d) of the dataset, where the graph was asked for by a dataset id. Of more than two columns the
                first two are drawn.
        whole:  show all points, not only those around. ax: axes to draw on instead of a new figure.
        """
        i = operator.index(i)
        if not -self.n <= i < self.n:
            raise NotForThisGraph(f"row {i} is not there; this graph has the rows 0 to {self.n - 1}")
        i = i % self.n
        cloud = self._cloud(points)
        place = cloud[i]
        if self._is_query:
            if self.queries is None:
                raise NotForThisGraph("the queries are not here, only their id; ask with the array: client.query(X, Q)")
            place = self.queries[i]
        pairs = self._pairs()
        row = slice(pairs.offsets[i], pairs.offsets[i + 1])
        from pcct_client.plot import plot_row

        return plot_row(
            cloud,
            place,
            pairs.neighbors[row],
            self._row_title(i, pairs.distances[row]),
            allowed=None if self.order is None else i,
            geographic=self._metric == "haversine",
            whole=whole,
            axes=ax,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write neighbors, distances, and order or offsets, if any, as an uncompressed .npz file that `np.load` reads.

        A file that is there is replaced whole, or stays as it is when writing fails. Raises OSError.
        """
        arrays = {name: array for name, array in self._arrays()._asdict().items() if array is not None}
        write_arrays(path, arrays)

    def __repr__(self) -> str:
        """Return what it is, in one line and without the numbers."""
        kind = self.spec.get("kind", "?")
        rows = f"queries={self.n}" if self._is_query else f"n={self.n}"
        width = f"k={self.neighbors.shape[1]}" if self.offsets is None else f"pairs={len(self.neighbors)}"
        version = "" if self.version is None else f", version={self.version}"
        return f"Graph({kind}, {rows}, {width}, {self._metric}{version}, {self._exactness()})"

    @property
    def _metric(self) -> str:
        return str(self.spec.get("metric", {}).get("type", "?"))

    @property
    def _is_query(self) -> bool:
        return self.spec.get("kind") == "query"

    def _exactness(self) -> str:
        """Return the certificate in a few words."""
        if not self.certificate:
            return "no certificate"
        if self.certificate.get("exact"):
            return "exact"
        bound, confidence = self.certificate.get("recall_lower"), self.certificate.get("confidence")
        if bound is None or confidence is None:
            return "not exact"
        return f"recall ≥ {bound:.5g} at {confidence:.0%} confidence"

    def _arrays(self) -> GraphArrays:
        return GraphArrays(self.neighbors, self.distances, self.order, self.offsets)

    def _pairs(self) -> Pairs:
        if self.offsets is not None:
            return Pairs(self.offsets, self.neighbors, self.distances)
        there = self.neighbors >= 0
        offsets = np.zeros(self.n + 1, np.int64)
        np.cumsum(there.sum(axis=1), out=offsets[1:])
        return Pairs(offsets, self.neighbors[there], self.distances[there])

    def _columns(self) -> int:
        """Return how many points an entry can name."""
        if not self._is_query:
            return self.n
        if self.points is not None:
            return len(self.points)
        return int(self.telemetry["counts"]["n"])

    def _cloud(self, points: Any) -> NDArray[Any]:
        """Return the points in the order of the graph's entries."""
        cloud = self.points if points is None else npy_body(points).points
        if cloud is None:
            raise NotForThisGraph(
                "the graph was asked for by a dataset id, so its points are not here; give them: graph.plot(i, points=X)"
            )
        if len(cloud) != self._columns():
            raise NotForThisGraph(
                f"these are {len(cloud)} points, the graph has {self._columns()}; give those it was made of"
            )
        return cloud if self.order is None else cloud[self.order]

    def _row_title(self, i: int, distances: NDArray[Any]) -> str:
        unit = " km" if self._metric == "haversine" else ""
        reach = f", within {distances.max():.4g}{unit}" if len(distances) else ""
        row = "query" if self._is_query else "row" if self.order is None else "rank"
        word = "neighbor" if len(distances) == 1 else "neighbors"
        return f"{row} {i:,} and its {len(distances)} {word}{reach} ({self._metric})"
