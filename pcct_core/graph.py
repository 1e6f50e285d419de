"""The answer and the calls that make it: `Graph`, `build_graph`, and its two short forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pcct_core.arrays import column_names
from pcct_core.certificate import Certificate
from pcct_core.columns import read_groups
from pcct_core.draws import seed_draws
from pcct_core.errors import InvalidInput, InvalidSpec
from pcct_core.files import write_arrays
from pcct_core.groups import Groups, group_rows
from pcct_core.lookup import GateLookup
from pcct_core.nearest import find_neighbors, find_predecessors, find_radius, same_arrays
from pcct_core.order import order_points
from pcct_core.parallel import CancelToken, Crew, Progress
from pcct_core.place import finish_rows, move_inducing, place_points
from pcct_core.points import as_points, check_request
from pcct_core.spec import MAX_PAIRS, Gate, GraphSpec, Residual, align_inducing, read_k, read_max_pairs
from pcct_core.telemetry import Telemetry
from pcct_core.vif import find_residual

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True, eq=False)
class Graph:
    """A neighbor graph and what is known about it.

    Two graphs are equal when specification, certificate and all arrays are, bit for bit: types, ties and order too. How long
    each took, and the lookups, do not count.

    neighbors: int32 (n, k), ascending by (distance, index); -1 where there is none.
    distances: float32 or float64 (n, k), in the metric's unit; inf where there is no neighbor.
    order:     int64 (n,) or None. Vecchia graphs only: order[r] is the dataset index of rank r, and the rows and
               entries of `neighbors` are ranks. A k-NN graph's rows and entries are dataset indices.
    lookup:    gated graphs only: how far the gate let queries look, for the next graph of the same points.
    offsets:   int64 (n + 1,) or None. Radius graphs only: neighbors and distances are flat, (pairs,), and those of row i are at
               offsets[i]:offsets[i + 1], as in a CSR matrix.
    """

    neighbors: NDArray[np.int32]
    distances: NDArray[Any]
    order: NDArray[np.int64] | None
    spec: GraphSpec
    certificate: Certificate
    telemetry: Telemetry
    lookup: GateLookup | None = None
    offsets: NDArray[np.int64] | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        known = self.spec == other.spec and self.certificate == other.certificate
        return known and same_arrays(tuple(self.arrays().items()), tuple(other.arrays().items()))

    def __hash__(self) -> int:
        return hash((self.spec, self.neighbors.shape, self.neighbors[:1].tobytes()))

    @property
    def n(self) -> int:
        """How many rows the graph has."""
        return len(self.neighbors if self.offsets is None else self.offsets[1:])

    def sliced(self, k: int) -> Graph:
        """Return the graph of the k nearest, 1 ≤ k ≤ the k of this graph: the same as building it with that k."""
        if self.offsets is not None:
            raise InvalidSpec("a radius graph has as many neighbors per row as lie within its radius; it has no k", "k")
        k = read_k(k, self.spec.k)
        if self.neighbors.shape[1] != self.spec.k:
            raise InvalidSpec("every point is its own neighbor here; slice the graph before with_self()", "k")
        return replace(
            self,
            neighbors=np.ascontiguousarray(self.neighbors[:, :k]),
            distances=np.ascontiguousarray(self.distances[:, :k]),
            spec=replace(self.spec, k=k),
        )

    def in_original_index(self) -> Graph:
        """Return the graph with rows and entries as dataset indices; a k-NN or radius graph already is.

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
        itself = np.arange(self.n, dtype=np.int32)
        if self.offsets is None:
            neighbors = np.column_stack((itself, self.neighbors))
            return replace(self, neighbors=neighbors, distances=np.insert(self.distances, 0, 0.0, axis=1))
        starts = self.offsets[:-1]
        return replace(
            self,
            neighbors=np.insert(self.neighbors, starts, itself),
            distances=np.insert(self.distances, starts, 0.0),
            offsets=self.offsets + np.arange(self.n + 1),
        )

    def to_sparse(self, mode: Literal["distance", "connectivity"] = "distance") -> csr_array:
        """Return a SciPy matrix (n, n) in compressed rows: the distances, or ones for "connectivity"; entries by column.

        Rows and columns are what the rows and entries of `neighbors` are: ranks in a Vecchia graph. Distances of 0 are stored
        entries; a row without neighbors is empty. Raises InvalidInput for another mode.
        """
        if mode not in ("distance", "connectivity"):
            raise InvalidInput(f"mode is {mode!r}; use 'distance' or 'connectivity'")
        neighbors, distances, offsets = self.neighbors, self.distances, self.offsets
        if offsets is None:
            there = neighbors >= 0
            offsets = np.concatenate(([0], np.cumsum(there.sum(axis=1))))
            neighbors, distances = neighbors[there], distances[there]
        values = distances.copy() if mode == "distance" else np.ones(len(neighbors), distances.dtype)
        from scipy.sparse import csr_array  # half a second to load, which graphs need not wait for

        # Sorting works in place: without a copy it would reorder arrays of the graph.
        matrix = csr_array((values, neighbors.copy(), offsets.copy()), shape=(self.n, self.n))
        matrix.sort_indices()
        return matrix

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name: neighbors, distances, and order or offsets when there are any."""
        out: dict[str, NDArray[Any]] = {"neighbors": self.neighbors, "distances": self.distances}
        if self.order is not None:
            out["order"] = self.order
        if self.offsets is not None:
            out["offsets"] = self.offsets
        return out

    def save(self, path: str | PathLike[str]) -> None:
        """Write the arrays as an uncompressed .npz file that `np.load` reads.

        A file that is there is replaced whole, or stays as it is when writing fails. Raises OSError.
        """
        write_arrays(path, **self.arrays())


def build_graph(
    X: Any,
    spec: GraphSpec | Mapping[str, Any],
    *,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    threads: int | None = None,
    lookup: GateLookup | None = None,
    previous: Graph | None = None,
    max_pairs: int = MAX_PAIRS,
    secret: bytes | None = None,
) -> Graph:
    """Build the graph that spec asks for on the points X.

    X:        (n, d) real numbers; float32 stays float32, everything else is computed in float64.
    spec:     a `GraphSpec`, or its JSON form, such as {"kind": "vecchia", "k": 30}.
    progress: called as progress(phase, done, total) at least every 100 ms or so, from the calling thread.
    cancel:   checked as often; once set, the build stops and raises Cancelled.
    threads:  number of worker threads, None for one per core.
    lookup:   residual metric only: the gate's lookup of an earlier graph of these points, which saves learning one.
    previous: residual metric only: an earlier graph of these points, of the same kind and order and at least as many
              neighbors, under other hyperparameters. Its neighbors say how far to look, which is nearer than a lookup says.
              The certificate is earned anew. With a lookup or a previous graph, those few neighbors that a gate misses may
              be others than without: leave both out where the same specification must give the same bytes.
    max_pairs: radius graphs only: most neighbors of all rows together; more are refused before memory is taken for them.
    secret:   residual metric only: any bytes, which the pairs that a certificate rests on are then drawn by, beside the points
              and the spec. Give one where whoever made the points may want a certificate to lie; the same one gives the same
              bytes.
    Raises InvalidPoints or InvalidSpec for input that cannot be used, TooManyPairs, NotPositiveDefinite, Cancelled.
    """
    spec = spec if isinstance(spec, GraphSpec) else GraphSpec.from_mapping(spec)
    max_pairs = read_max_pairs(max_pairs)
    _check_beside(lookup, secret)
    points = as_points(X)
    metric = align_inducing(spec.metric, column_names(X))
    spec = spec if metric is spec.metric else replace(spec, metric=metric)
    check_request(points, spec)
    telemetry = Telemetry()
    with Crew(threads, progress, cancel) as crew:
        with telemetry.phase("prepare"):
            placed = place_points(points, spec.metric, crew)
            codes = None if spec.groups is None else read_groups(spec.groups, len(points))
        order = None
        if spec.kind == "vecchia":
            with telemetry.phase("order"):
                order = order_points(points, placed.points, spec.order, spec.seed, crew, placed.scale.weights)
        wanted = {"k": spec.k} if spec.radius is None else {}
        telemetry.counts.update(n=points.shape[0], d=points.shape[1], **wanted, threads=crew.threads)
        groups = None if codes is None else _grouped(codes if order is None else codes[order], telemetry)
        if spec.radius is not None:
            within = find_radius(placed, spec.radius, max_pairs, crew, telemetry, groups)
            known = Certificate("tree", str(placed.key_type))
            return Graph(within.neighbors, within.distances, None, spec, known, telemetry, offsets=within.offsets)
        if isinstance(spec.metric, Residual):
            rows = np.arange(len(points)) if order is None else order
            followed = _followed(previous, len(points), order, spec)
            draws = seed_draws(points, spec, secret)
            moved = replace(spec, metric=move_inducing(spec.metric, placed.origin))
            found = find_residual(placed.points, rows, moved, draws, lookup, followed, crew, telemetry)
            return Graph(found.neighbors, found.distances, order, spec, found.certificate, telemetry, found.lookup)
        placed = placed if order is None else placed.taken(order)
        find = find_neighbors if order is None else find_predecessors
        neighbors = np.empty((len(points), spec.k), np.int32)
        keys = np.empty((len(points), spec.k), placed.key_type)
        method = find(placed, spec.k, neighbors, keys, crew, telemetry, groups)
        with telemetry.phase("finish"):
            distances = finish_rows(placed, placed, neighbors, keys, crew, order)
    return Graph(neighbors, distances, order, spec, Certificate(method, str(placed.key_type)), telemetry)


def _check_beside(lookup: object, secret: object) -> None:
    """Raise InvalidInput for what is no lookup, or no secret."""
    if lookup is not None and not isinstance(lookup, GateLookup):
        raise InvalidInput(
            f"lookup is of type {type(lookup).__name__}; give that of an earlier graph, graph.lookup, or none"
        )
    if secret is not None and not isinstance(secret, bytes | bytearray | memoryview):
        fix = ", such as secret.encode()" if isinstance(secret, str) else ""
        raise InvalidInput(f"secret is of type {type(secret).__name__}; give bytes{fix}, or none")


def _grouped(codes: NDArray[np.int64], telemetry: Telemetry) -> Groups:
    groups = group_rows(codes)
    telemetry.counts["groups"] = len(groups.starts) - 1
    return groups


def knn_graph(
    X: Any,
    k: int = 30,
    metric: Any = "euclidean",
    *,
    accuracy: Any = None,
    gate: Gate = "auto",
    groups: Any = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    threads: int | None = None,
) -> Graph:
    """Return the k-nearest-neighbor graph of X, each point itself excluded; arguments as in `GraphSpec` and `build_graph`."""
    spec = GraphSpec(kind="knn", k=k, metric=metric, accuracy=accuracy, gate=gate, groups=groups)
    return build_graph(X, spec, progress=progress, cancel=cancel, threads=threads)


def vecchia_graph(
    X: Any,
    k: int = 30,
    order: Any = "maximin",
    metric: Any = "euclidean",
    *,
    seed: int = 0,
    accuracy: Any = None,
    gate: Gate = "auto",
    groups: Any = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    threads: int | None = None,
) -> Graph:
    """Return the Vecchia graph of X: row r lists the k nearest among ranks 0 … r-1, of its own group where there are groups.

    The order is one of all points. Arguments as in `GraphSpec` and `build_graph`.
    """
    spec = GraphSpec("vecchia", k, metric, order, seed, accuracy, gate, groups=groups)
    return build_graph(X, spec, progress=progress, cancel=cancel, threads=threads)


def radius_graph(
    X: Any,
    radius: float,
    metric: Any = "euclidean",
    *,
    groups: Any = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    threads: int | None = None,
    max_pairs: int = MAX_PAIRS,
) -> Graph:
    """Return all other points within `radius` (in the metric's unit, itself included) of every point of X, as flat arrays.

    Arguments as in `GraphSpec` and `build_graph`.
    """
    spec = GraphSpec(kind="radius", radius=radius, metric=metric, groups=groups)
    return build_graph(X, spec, progress=progress, cancel=cancel, threads=threads, max_pairs=max_pairs)


def _followed(
    previous: Graph | None, n: int, order: NDArray[np.int64] | None, spec: GraphSpec
) -> NDArray[np.int32] | None:
    """Return the neighbors of the previous graph; raises InvalidInput for one with other rows or fewer neighbors."""
    if previous is None:
        return None
    if not isinstance(previous, Graph):
        raise InvalidInput(f"previous is a {type(previous).__name__}; give an earlier graph of these points, or none")
    if previous.neighbors.shape[-1] != previous.spec.k:
        raise InvalidInput(
            "every point is its own neighbor in the previous graph; give it as it was before with_self()"
        )
    if (previous.spec.kind, previous.spec.k >= spec.k) != (spec.kind, True):
        raise InvalidInput(
            f"the previous graph is {previous.spec.kind} with k = {previous.spec.k}, this one {spec.kind} with k = {spec.k}; "
            "give one of the same kind with at least as many neighbors, or none"
        )
    same_order = order is None or np.array_equal(order, previous.order if previous.order is not None else ())
    if len(previous.neighbors) != n or not same_order:
        raise InvalidInput("the previous graph has other points in its rows; give one with the same order, or none")
    return previous.neighbors
