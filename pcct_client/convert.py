"""The pairs of a graph as other libraries keep them; each is imported by the function that needs it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pcct_client.errors import MissingExtra, NotForThisGraph
from pcct_client.extras import load

SparseMode: TypeAlias = Literal["distance", "connectivity"]
FrameLibrary: TypeAlias = Literal["pandas", "polars"]


class Pairs(NamedTuple):
    """Every (row, entry) of a graph that is there, row by row, nearest first.

    offsets: int64 (rows + 1,), row r has the pairs offsets[r] … offsets[r + 1] - 1. neighbors: int32 (pairs,).
    distances: float32 or float64 (pairs,).
    """

    offsets: NDArray[np.int64]
    neighbors: NDArray[np.int32]
    distances: NDArray[Any]

    def rows(self) -> NDArray[np.int32]:
        """Return the row of every pair."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), np.diff(self.offsets))


class GraphArrays(NamedTuple):
    """A graph's arrays in another library, under their names in `Graph`; None for those that it does not have."""

    neighbors: Any
    distances: Any
    order: Any = None
    offsets: Any = None


def sparse_matrix(pairs: Pairs, columns: int, mode: SparseMode) -> Any:
    """Return the pairs as `scipy.sparse.csr_array` (rows, columns), entries of a row by column.

    A distance of 0 is stored, as scikit-learn expects of duplicates.
    """
    if mode not in ("distance", "connectivity"):
        raise NotForThisGraph(f"mode is {mode!r}; use 'distance' or 'connectivity'")
    sparse = load("scipy.sparse", "Graph.to_sparse")
    values = pairs.distances if mode == "distance" else np.ones(len(pairs.neighbors), pairs.distances.dtype)
    shape = (len(pairs.offsets) - 1, columns)
    # Sorting works in place: without a copy it would reorder arrays of the graph.
    matrix = sparse.csr_array((values.copy(), pairs.neighbors.copy(), pairs.offsets), shape=shape)
    matrix.sort_indices()
    return matrix


def torch_tensors(arrays: GraphArrays) -> GraphArrays:
    """Return the arrays as torch tensors on the CPU; neighbors become int64, which torch indexes with."""
    torch = load("torch", "Graph.to_torch")
    indices = arrays._replace(neighbors=arrays.neighbors.astype(np.int64))
    # By DLPack and not `from_numpy`, for a torch that was built for NumPy 1 has no other way beside NumPy 2.
    return GraphArrays(*(None if array is None else torch.from_dlpack(array) for array in indices))


def jax_arrays(arrays: GraphArrays) -> GraphArrays:
    """Return the arrays as JAX arrays; 64 bits stay only where jax_enable_x64 is on."""
    jax = load("jax", "Graph.to_jax")
    exact = jax.config.jax_enable_x64
    # Said here, for JAX would warn about each array that it is not asked to keep.
    types = {"f": np.float32, "i": np.int32}
    kept = (array if array is None or exact else array.astype(types[array.dtype.kind]) for array in arrays)
    return GraphArrays(*(None if array is None else jax.numpy.asarray(array) for array in kept))


def networkx_graph(pairs: Pairs, queries: bool) -> Any:
    """Return a `networkx.DiGraph` with an edge from each row to each of its entries, its distance as `weight`.

    queries: the rows are not points but queries; then row i is the node ("query", i).
    """
    graph = load("networkx", "Graph.to_networkx").DiGraph()
    names: list[Any] = list(range(len(pairs.offsets) - 1))
    if queries:
        names = [("query", row) for row in names]
    graph.add_nodes_from(names)
    rows = (names[row] for row in pairs.rows().tolist())
    graph.add_weighted_edges_from(zip(rows, pairs.neighbors.tolist(), pairs.distances.tolist(), strict=True))
    return graph


def frame(pairs: Pairs, library: FrameLibrary | None) -> Any:
    """Return a data frame of one line per pair: row, position (0 for the nearest), neighbor, distance.

    A row without neighbors has one line, as a graph's arrays tell it: neighbor -1 at distance inf, and position -1.
    """
    if library not in (None, "pandas", "polars"):
        raise NotForThisGraph(f"library is {library!r}; use 'pandas' or 'polars'")
    rows = pairs.rows()
    empty = np.flatnonzero(np.diff(pairs.offsets) == 0).astype(np.int32)
    at = pairs.offsets[empty]
    columns = {
        "row": np.insert(rows, at, empty),
        "position": np.insert((np.arange(len(rows)) - pairs.offsets[rows]).astype(np.int32), at, -1),
        "neighbor": np.insert(pairs.neighbors, at, -1),
        "distance": np.insert(pairs.distances, at, np.inf),
    }
    return _frames(library).DataFrame(columns)


def _frames(library: FrameLibrary | None) -> Any:
    if library is not None:
        return load(library, "Graph.to_frame")
    try:
        return load("pandas", "Graph.to_frame")
    except MissingExtra as missing:
        try:
            return load("polars", "Graph.to_frame")
        except MissingExtra:
            raise missing from None
