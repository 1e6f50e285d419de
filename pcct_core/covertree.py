"""A tree to keep: `CoverTree`, built once, asked many times, saved and loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pcct_core.arrays import align_columns, column_names
from pcct_core.build import Tree, allocate_tree, build_tree, complete_nodes
from pcct_core.certificate import Certificate
from pcct_core.errors import FileFormatError, InvalidPoints, InvalidSpec
from pcct_core.files import write_arrays
from pcct_core.gate import Found, scan_gated
from pcct_core.measure import Rows, padded_width, square_rows
from pcct_core.nearest import RadiusNeighbors, find_within, find_within_points, same_arrays, search_points
from pcct_core.parallel import CancelToken, Crew, Progress
from pcct_core.place import Placed, finish_rows, join_scales, move_inducing, place_points
from pcct_core.points import Extent, Scale, as_points, check_metric, check_shape, measure_extent
from pcct_core.residual import Factors, Screen, choose_inducing, make_factors, make_screen, tolerance_of
from pcct_core.search import Queries, order_queries
from pcct_core.simd import LANES
from pcct_core.spec import (
    MAX_PAIRS,
    Cosine,
    GraphSpec,
    Haversine,
    Metric,
    Residual,
    align_inducing,
    read_k,
    read_max_pairs,
    read_metric,
    read_radius,
)
from pcct_core.telemetry import Telemetry
from pcct_core.topk import NO_ID

_FORMAT = "pcct cover tree"
_VERSION = 2
_ARRAYS = ("coords", "ids", "low", "high")
_ROWS = "rows"  # under the cosine metric, one array more


class Neighbors(NamedTuple):
    """Nearest points of each query: neighbors int32 (m, k), ascending by (distance, index), and distances T (m, k)."""

    neighbors: NDArray[np.int32]
    distances: NDArray[Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Neighbors) and same_arrays(tuple(self), tuple(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.neighbors.shape, self.neighbors.tobytes()))


class _Process(NamedTuple):
    """The residual process of a tree's points, and the inducing points, float64 (m, d), that it can be continued from.

    origin: float64 (d,), what is subtracted from coordinates before anything else.
    """

    factors: Factors
    screen: Screen
    inducing: NDArray[np.float64]
    origin: NDArray[np.float64]


class CoverTree:
    """A point set, ready to be asked for neighbors; made by `CoverTree.fit` or `CoverTree.load`.

    Queries are answered in the wider type of theirs and the points': float32 only where both are float32, so no digit of
    either is lost. What is no float array, such as a list or whole numbers, is float64. The first float64 queries to float32
    points take a second tree, of the same points in float64, which is kept.

    Under the residual metric it answers `query`, exactly; it knows no radii there and is not saved.
    """

    def __init__(
        self,
        tree: Tree,
        metric: Metric,
        d: int,
        extent: Extent,
        rows: Rows | None = None,
        process: _Process | None = None,
        columns: tuple[str, ...] | None = None,
    ) -> None:
        self._tree = tree
        self._extent = extent
        self._rows = rows
        self._process = process
        self._columns = columns
        self._wide: CoverTree | None = None
        self.metric = metric
        self.d = d

    @classmethod
    def fit(
        cls,
        X: Any,
        metric: Any = "euclidean",
        *,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        threads: int | None = None,
    ) -> CoverTree:
        """Build the tree of X, (n, d) real numbers with n ≥ 1; arguments and errors as in `build_graph`.

        The names of a data frame's columns are kept: columns of queries in a frame are matched by them.
        """
        points = as_points(X)
        metric = align_inducing(read_metric(metric), column_names(X))
        if isinstance(metric, Residual) and metric.factors is not None:
            raise InvalidSpec("given factors say nothing about new points; give inducing points instead", "metric")
        check_shape(max(2, points.shape[0]), points.shape[1], GraphSpec(k=1, metric=metric))
        check_metric(points, metric)
        with Crew(threads, progress, cancel) as crew:
            return cls._fit(points, metric, column_names(X), crew)

    @classmethod
    def _fit(cls, points: NDArray[Any], metric: Metric, columns: tuple[str, ...] | None, crew: Crew) -> CoverTree:
        """Build the tree of checked points."""
        placed = place_points(points, metric, crew)
        tree = build_tree(placed.points, crew, weights=placed.scale.weights)
        process = _make_process(placed, tree, metric, crew) if isinstance(metric, Residual) else None
        return cls(tree, metric, points.shape[1], placed.extent, placed.rows, process, columns)

    @property
    def n(self) -> int:
        """Number of points."""
        return int(self._tree.n)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the tree holds."""
        own = _array_bytes(self._tree) + _array_bytes(self._rows) + _array_bytes(self._process)
        return own if self._wide is None else own + self._wide.nbytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the coordinates that are searched, float32 or float64; float64 under haversine and the residual metric."""
        dtype: np.dtype[Any] = self._tree.coords.dtype
        return dtype

    def arithmetic(self, queries: NDArray[Any]) -> str:
        """Return the type of the numbers that decide between the points for these queries: "float32" or "float64"."""
        narrow = self._rows is None and self.dtype == np.float32 and queries.dtype == np.float32
        return "float32" if narrow else "float64"

    def __repr__(self) -> str:
        return f"CoverTree(n={self.n}, d={self.d}, dtype={self.dtype}, metric={self.metric})"

    def query(
        self,
        Q: Any,
        k: int = 30,
        *,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        threads: int | None = None,
    ) -> Neighbors:
        """Return the k nearest points of every query, 1 ≤ k ≤ n. Q: (m, d); a query that is a point of the tree finds it.

        Distances are float32 where Q and the points are; float64 otherwise, under haversine and under the residual metric.
        Raises InvalidPoints, InvalidSpec, Cancelled.
        """
        return self.query_certified(Q, k, progress=progress, cancel=cancel, threads=threads)[0]

    def query_certified(
        self,
        Q: Any,
        k: int = 30,
        *,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        threads: int | None = None,
    ) -> tuple[Neighbors, Certificate]:
        """Return what `query` does, and the certificate that says how it was found."""
        k = read_k(k, self.n)
        queries = self._read_queries(Q)
        with Crew(threads, progress, cancel) as crew:
            return self._as_wide_as(queries, crew)._find(queries, k, crew)

    def query_radius(
        self,
        Q: Any,
        radius: float,
        *,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        threads: int | None = None,
        max_pairs: int = MAX_PAIRS,
    ) -> RadiusNeighbors:
        """Return all points within `radius` ≥ 0 (in the metric's unit, itself included) of every query. Q: (m, d).

        Distances have the type that those of `query` have, to which the radius is rounded.
        max_pairs: most neighbors of all queries together.
        Raises InvalidPoints, InvalidSpec, TooManyPairs, Cancelled.
        """
        self._without_process()
        radius, max_pairs = read_radius(radius), read_max_pairs(max_pairs)
        queries = self._read_queries(Q)
        with Crew(threads, progress, cancel) as crew:
            tree = self._as_wide_as(queries, crew)
            placed, asked = tree._place_queries(queries, crew)
            trees = [(tree._weighted(placed), _external(placed, asked, crew))]
            return find_within(trees, placed, asked, radius, max_pairs, crew, Telemetry())

    def radius_graph(
        self,
        radius: float,
        *,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        threads: int | None = None,
        max_pairs: int = MAX_PAIRS,
    ) -> RadiusNeighbors:
        """Return all other points within `radius` of every point of the tree; otherwise as `query_radius`."""
        self._without_process()
        radius, max_pairs = read_radius(radius), read_max_pairs(max_pairs)
        with Crew(threads, progress, cancel) as crew:
            own = self._placed(_stored_points(self._tree))
            placed, _ = join_scales(own, own)
            return find_within_points(self._weighted(placed), placed, radius, max_pairs, crew, Telemetry())

    def save(self, path: str | PathLike[str]) -> None:
        """Write the tree to a file that `CoverTree.load` reads; an uncompressed .npz with a checksum."""
        self._without_process()
        tree = self._tree
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "n": tree.n,
            "d": self.d,
            "metric": self.metric.to_json(),
        }
        if self._columns is not None:
            header["columns"] = list(self._columns)
        arrays = {name: getattr(tree, name) for name in _ARRAYS}
        if self._rows is not None:
            arrays[_ROWS] = self._rows.rows
        header["sha256"] = _digest(arrays)
        text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
        write_arrays(path, header=text, **arrays)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> CoverTree:
        """Read a tree that `save` wrote.

        Raises FileFormatError for another format or version, or a file that is cut short or damaged; OSError.
        """
        try:
            # Opened here, for np.load leaves a damaged file open.
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:  # noqa: PTH123
                header = json.loads(bytes(file["header"]))
                if header["format"] != _FORMAT:
                    raise FileFormatError(f"{path} is not a saved cover tree")
                if header["version"] != _VERSION:
                    raise FileFormatError(
                        f"{path} has format version {header['version']}, this release reads version {_VERSION}; "
                        "fit the tree again, or use the release that wrote it"
                    )
                return _restore(header, {name: file[name] for name in (*_ARRAYS, _ROWS) if name in file})
        except FileFormatError:
            raise
        except (BadZipFile, KeyError, ValueError, TypeError, EOFError) as error:
            raise FileFormatError(f"{path} is not a saved cover tree, or is damaged; fit the tree again") from error

    def _find(self, queries: NDArray[Any], k: int, crew: Crew) -> tuple[Neighbors, Certificate]:
        """Return the k nearest of queries that are no wider than the points."""
        tolerance = None
        placed, asked = self._place_queries(queries, crew)
        m = len(asked.points)
        neighbors, keys = np.empty((m, k), np.int32), np.empty((m, k), placed.key_type)
        if self._process is None:
            method = search_points(self._weighted(placed), _external(placed, asked, crew), k, neighbors, keys, crew)
        else:
            factors = self._scan(self._process, asked.points, neighbors, keys, crew)
            method, tolerance = "dense", tolerance_of(self._process.factors, factors)
        distances = finish_rows(placed, asked, neighbors, keys, crew)
        return Neighbors(neighbors, distances), Certificate(method, str(placed.key_type), tolerance=tolerance)

    def _scan(
        self,
        process: _Process,
        points: NDArray[np.float64],
        neighbors: NDArray[np.int32],
        distances: NDArray[np.float64],
        crew: Crew,
    ) -> Factors:
        """Write the nearest by residual correlation: every point is looked at, for only that is exact.

        Returns the factors of the queries.
        """
        metric, m = self.metric, len(points)
        assert isinstance(metric, Residual)  # noqa: S101  (no other has a process)
        tree = build_tree(points, crew, phase="")
        asked = make_factors(points, tree, np.arange(m), metric, process.inducing, crew)
        queries = Queries(points, tree.ids[:m], np.full(m, NO_ID, np.int32), np.full(m, -1, np.int32))
        found = Found(neighbors, distances, np.zeros(m, bool), np.zeros(m, np.int64))
        scan_gated(
            self._tree, process.screen, process.factors, queries, asked, np.full(m, np.inf), found, crew, "search"
        )
        return asked

    def _without_process(self) -> None:
        if self._process is not None:
            raise InvalidSpec(
                "under the residual metric a tree answers query() alone; fit one with another metric for this",
                "metric.type",
            )

    def _read_queries(self, Q: Any) -> NDArray[Any]:
        """Return queries, T (m, d), with their columns as those of the points are, checked for the metric."""
        queries = as_points(Q, "queries", "Q")
        if queries.shape[1] != self.d:
            raise InvalidPoints(f"queries have {queries.shape[1]} columns, the tree's points have {self.d}")
        places = align_columns(self._columns, column_names(Q))
        if places is not None:
            queries = as_points(queries[:, places], "queries", "Q")
        check_metric(queries, self.metric)
        return queries

    def _as_wide_as(self, queries: NDArray[Any], crew: Crew) -> CoverTree:
        """Return the tree of these points in a type that holds the queries too: this one, or one in float64, made once."""
        if queries.dtype.itemsize <= self.dtype.itemsize:
            return self
        if self._wide is None:
            points = _stored_points(self._tree) if self._rows is None else self._rows.rows[:, : self.d]
            # Of two threads that come here at once each makes the same tree, and one of the two is kept.
            self._wide = self._fit(points.astype(np.float64), self.metric, None, crew)
        return self._wide

    def _place_queries(self, queries: NDArray[Any], crew: Crew) -> tuple[Placed, Placed]:
        """Return the tree's points, without their coordinates where nothing needs them, and the queries, in one scale.

        queries: no wider than the points.
        """
        if not isinstance(self.metric, Haversine):
            queries = queries.astype(self.dtype, copy=False)
        none = np.empty((0, self._tree.d), self.dtype)
        origin = None if self._process is None else self._process.origin
        placed, asked = join_scales(self._placed(none), place_points(queries, self.metric, crew, origin))
        return (placed._replace(points=_stored_points(self._tree)) if placed.scale.least else placed), asked

    def _placed(self, points: NDArray[Any]) -> Placed:
        return Placed(points, self.metric, Scale(), self._rows, self._extent, points.dtype, None)

    def _weighted(self, placed: Placed) -> Tree:
        """Return the tree with the weights that the points and the queries have together."""
        weights = placed.scale.weights
        return self._tree._replace(weights=np.empty(0, self.dtype) if weights is None else weights)


def _array_bytes(value: Any) -> int:
    """Return the bytes of all arrays in a tuple, and in the tuples in it."""
    if isinstance(value, tuple):
        return sum(map(_array_bytes, value))
    return int(getattr(value, "nbytes", 0))


def _make_process(placed: Placed, tree: Tree, metric: Residual, crew: Crew) -> _Process:
    inducing = choose_inducing(placed.points, move_inducing(metric, placed.origin), crew)
    assert inducing is not None  # noqa: S101  (fit refuses given factors)
    assert placed.origin is not None  # noqa: S101  (points of a residual metric have one)
    factors = make_factors(placed.points, tree, np.arange(tree.n), metric, inducing, crew)
    return _Process(factors, make_screen(factors, tree, crew), inducing, placed.origin)


def _external(placed: Placed, asked: Placed, crew: Crew) -> Queries:
    m = len(asked.points)
    rows = order_queries(asked.points, crew, asked.scale.weights)
    return Queries(asked.points, rows, np.full(m, NO_ID, np.int32), np.full(m, -1, np.int32), placed.measure(asked))


def _stored_points(tree: Tree) -> NDArray[Any]:
    """Return the tree's points in index order, T (n, d)."""
    blocks = tree.coords.reshape(-1, tree.d, LANES).transpose(0, 2, 1).reshape(-1, tree.d)[: tree.n]
    points: NDArray[Any] = np.empty_like(blocks)
    points[tree.ids[: tree.n]] = blocks
    return points


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array.data)
    return digest.hexdigest()


def _restore(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> CoverTree:
    """Return the tree of a file; nothing in it is trusted that a kernel would follow out of bounds."""
    n, d, dtype = int(header["n"]), int(header["d"]), arrays["coords"].dtype
    metric = read_metric(header["metric"])
    buckets = (n + LANES - 1) // LANES
    if n < 1 or dtype not in (np.float32, np.float64) or len(arrays["coords"]) % (buckets * LANES):
        raise ValueError("shape")
    tree = allocate_tree(n, len(arrays["coords"]) // (buckets * LANES), dtype)
    for name in _ARRAYS:
        getattr(tree, name)[:] = arrays[name]
    if _digest(arrays) != header["sha256"] or not np.array_equal(np.sort(tree.ids[:n]), np.arange(n)):
        raise ValueError("content")
    if (tree.ids[n:] != NO_ID).any():
        raise ValueError("content")
    complete_nodes(tree)
    extent = measure_extent(_stored_points(tree), metric)
    columns = header.get("columns")
    names = None if columns is None else tuple(map(str, columns))
    return CoverTree(tree, metric, d, extent, _restore_rows(metric, n, d, arrays), columns=names)


def _restore_rows(metric: Metric, n: int, d: int, arrays: dict[str, NDArray[Any]]) -> Rows | None:
    if not isinstance(metric, Cosine):
        return None
    rows = np.ascontiguousarray(arrays[_ROWS])
    if rows.dtype != arrays["coords"].dtype or rows.shape != (n, padded_width(d)):
        raise ValueError("shape")
    with Crew(1) as crew:
        return square_rows(rows, d, crew)
