"""scikit-learn's neighbor transformers over exact pcct graphs. Needs scikit-learn and SciPy.

    from sklearn.manifold import Isomap
    from sklearn.pipeline import make_pipeline
    from pcct_client.sklearn import PcctNeighborsTransformer

    make_pipeline(PcctNeighborsTransformer(n_neighbors=10), Isomap(n_neighbors=10, metric="precomputed")).fit(X)

`PcctNeighborsTransformer` takes the place of `KNeighborsTransformer`, `PcctRadiusNeighborsTransformer` that of
`RadiusNeighborsTransformer`. Both compute in this process with `pcct_core`, or on a service when given its `url`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pcct_client.calls import DEFAULT_TIMEOUT_S
from pcct_client.client import Client
from pcct_client.errors import MissingExtra
from pcct_client.geometry import is_geometry
from pcct_client.inputs import as_array
from pcct_client.values import EXACT_WHOLE, check_unmasked

try:
    import joblib
    import sklearn
    from scipy import sparse
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtra(f"pcct_client.sklearn needs scikit-learn: pip install 'pcct[sklearn]' ({error})") from error

EARTH_RADIUS_KM = 6371.0088  # what pcct's great-circle distances are on; scikit-learn's are on the unit sphere

_EUCLIDEAN = ("euclidean", "l2", "minkowski")
_METRICS = (*_EUCLIDEAN, "sqeuclidean", "seuclidean", "haversine", "cosine")
_MODES = ("distance", "connectivity")
_ALGORITHMS = ("auto", "ball_tree", "kd_tree", "brute")

# The largest latitude and longitude in radians, and what float32 makes of them, which is beyond both.
_LIMITS = np.array([np.pi / 2, 2 * np.pi])
_LIMITS_32 = _LIMITS.astype(np.float32).astype(np.float64)

# Beyond a radius by more than its rounding in another unit: what is found too far is left out again.
_WIDER = 1 + 8 * np.finfo(np.float64).eps

_Self = TypeVar("_Self", bound="_Transformer")


class _Found(NamedTuple):
    """Neighbors of each row, row behind row.

    offsets: int64 (m + 1,); row i has neighbors[offsets[i]:offsets[i + 1]], by ascending distance. neighbors: int32 (pairs,).
    distances: float64 (pairs,).
    """

    offsets: NDArray[np.int64]
    neighbors: NDArray[np.int32]
    distances: NDArray[np.float64]

    def rows(self) -> NDArray[np.int64]:
        """Return the row of every pair."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


class _Transformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What both transformers share: their parameters, checked in `fit`, and the points they look among."""

    mode: str
    algorithm: str
    leaf_size: int
    metric: str
    p: float | None
    metric_params: Mapping[str, Any] | None
    n_jobs: int | None
    url: str | None
    timeout: float | None

    def fit(self: _Self, X: Any, y: Any = None) -> _Self:
        """Keep the rows of X, (n, d), to look for neighbors among; y is ignored.

        Raises ValueError for parameters or rows that cannot be used, and the errors of `pcct_client` with a `url`.
        """
        self._check_choices()
        self._metric = _read_metric(self.metric, self.metric_params, self.p)
        points = self._read_points(X, reset=True)
        self._searcher: _InProcess | _OnService
        if self.url is None:
            self._searcher = _InProcess(points, self._metric.spec, _threads(self.n_jobs))
        else:
            self._searcher = _OnService(points, self._metric.spec, self.url, self.timeout)
        self.n_samples_fit_ = self._n_features_out = len(points)
        return self

    def transform(self, X: Any) -> Any:
        """Return the graph from the rows of X, (m, d), to the fitted ones: sparse CSR, float64 (m, n_samples_fit_).

        Raises ValueError for rows that cannot be used or fewer fitted rows than neighbors, and the errors of `pcct_client`
        with a `url`.
        """
        check_is_fitted(self)
        self._check_choices()
        points = self._read_points(X, reset=False)
        own = self._searcher.points
        found = self._search(points, itself=np.array_equal(points, own))
        return _csr(found, len(own), self.mode)

    def _search(self, points: NDArray[np.float64], itself: bool) -> _Found:
        """Return the neighbors of points in scikit-learn's unit; itself: the points are the fitted ones."""
        raise NotImplementedError

    def _check_choices(self) -> None:
        """Raise ValueError for parameters that say how to search, not what is near."""
        if self.mode not in _MODES:
            raise ValueError(f"mode is {self.mode!r}; use one of {', '.join(_MODES)}")
        if self.algorithm not in _ALGORITHMS:
            raise ValueError(f"algorithm is {self.algorithm!r}; use one of {', '.join(_ALGORITHMS)}")
        if not _is_whole(self.leaf_size) or self.leaf_size < 1:
            raise ValueError(f"leaf_size is {self.leaf_size!r}; use a whole number of at least 1")
        _threads(self.n_jobs)

    def _read_points(self, X: Any, reset: bool) -> NDArray[np.float64]:
        """Return the rows of X as pcct takes them, in memory of their own: X may change later."""
        if is_geometry(getattr(X, "geometry", X)):
            raise ValueError(
                "X holds geometries; use X.get_coordinates(), or for haversine, of points in degrees, "
                "np.radians(X.get_coordinates()[['y', 'x']])"
            )
        check_unmasked(X)  # scikit-learn takes what lies behind a mask
        points: NDArray[np.float64] = validate_data(self, X, reset=reset, dtype=np.float64, order="C", copy=True)
        if np.abs(points).max() >= EXACT_WHOLE:
            as_array(X)  # raises for whole numbers that were rounded
        return _degrees(points) if self._metric.spec["type"] == "haversine" else points


class PcctNeighborsTransformer(_Transformer):
    """Transform X into the exact sparse graph of its nearest neighbors, as `sklearn.neighbors.KNeighborsTransformer` does.

    mode:          "distance" or "connectivity". As in scikit-learn each row counts itself: with "distance" it is one more
                   entry, at distance 0, so that rows have n_neighbors + 1; with "connectivity" it is one of n_neighbors.
    n_neighbors:   neighbors per row.
    algorithm, leaf_size: taken as scikit-learn takes them, and without effect: how to search is chosen by measurement, and
                   the neighbors are the same by any.
    metric:        "euclidean" (also "minkowski" or "l2"), "sqeuclidean", "seuclidean", "cosine", or "haversine": rows are
                   (latitude, longitude) in radians and distances are radians of the unit sphere, as in scikit-learn; pcct
                   itself takes (longitude, latitude) in degrees and answers in km.
    p:             with "minkowski" 2, or None, which means it; no effect on the other metrics, as in scikit-learn.
    metric_params: {"lengthscale": one positive number, or one per column} with "euclidean", which divides the columns;
                   {"V": one variance per column} with "seuclidean". None for the others.
    n_jobs:        threads in this process; None or -1: one per core; -2: all cores but one, and so on.
    url:           the service that shall compute, such as "http://127.0.0.1:8000"; None: this process, with `pcct_core`.
    timeout:       seconds for one call of the service, None: as long as it takes.

    Points are float64, as they are in scikit-learn. Among equal distances the lower row of X comes first, so that answers
    are the same on every machine. In the graph of the rows that were fitted the diagonal is always there, however many
    rows are equal.

    n_features_in_, feature_names_in_: columns seen in `fit`. n_samples_fit_: rows seen in `fit`.
    """

    def __init__(
        self,
        *,
        mode: str = "distance",
        n_neighbors: int = 5,
        algorithm: str = "auto",
        leaf_size: int = 30,
        metric: str = "euclidean",
        p: float | None = 2,
        metric_params: Mapping[str, Any] | None = None,
        n_jobs: int | None = None,
        url: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.mode = mode
        self.n_neighbors = n_neighbors
        self.algorithm = algorithm
        self.leaf_size = leaf_size
        self.metric = metric
        self.p = p
        self.metric_params = metric_params
        self.n_jobs = n_jobs
        self.url = url
        self.timeout = timeout

    def _check_choices(self) -> None:
        super()._check_choices()
        if not _is_whole(self.n_neighbors) or self.n_neighbors < 1:
            raise ValueError(f"n_neighbors is {self.n_neighbors!r}; use a whole number of at least 1")

    def _search(self, points: NDArray[np.float64], itself: bool) -> _Found:
        k = self.n_neighbors + (self.mode == "distance")
        if k > self.n_samples_fit_:
            raise ValueError(
                f"n_neighbors is {self.n_neighbors}, which takes {k} fitted samples in mode {self.mode!r}, but there are "
                f"n_samples_fit = {self.n_samples_fit_}; use n_neighbors ≤ {self.n_neighbors - k + self.n_samples_fit_}"
            )
        if not itself:
            return self._metric.measured(self._searcher.nearest(points, k), points, self._searcher.points)
        others = self._searcher.nearest_others(k - 1) if k > 1 else _nobody(len(points))
        return _with_self(self._metric.measured(others, points, points))


class PcctRadiusNeighborsTransformer(_Transformer):
    """Transform X into the exact sparse graph of all neighbors within a radius, as `RadiusNeighborsTransformer` does.

    mode:     "distance" or "connectivity"; as in scikit-learn each row has itself in both, at distance 0.
    radius:   largest distance of a neighbor, itself included, in the unit of the metric: a square for "sqeuclidean", radians
              for "haversine".

    The other parameters, the attributes, and what is promised are those of `PcctNeighborsTransformer`.
    """

    def __init__(
        self,
        *,
        mode: str = "distance",
        radius: float = 1.0,
        algorithm: str = "auto",
        leaf_size: int = 30,
        metric: str = "euclidean",
        p: float | None = 2,
        metric_params: Mapping[str, Any] | None = None,
        n_jobs: int | None = None,
        url: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.mode = mode
        self.radius = radius
        self.algorithm = algorithm
        self.leaf_size = leaf_size
        self.metric = metric
        self.p = p
        self.metric_params = metric_params
        self.n_jobs = n_jobs
        self.url = url
        self.timeout = timeout

    def _check_choices(self) -> None:
        super()._check_choices()
        if not _is_real(self.radius) or not 0 <= self.radius < np.inf:
            raise ValueError(f"radius is {self.radius!r}; use a finite number of at least 0")

    def _search(self, points: NDArray[np.float64], itself: bool) -> _Found:
        reach = self._metric.reach(float(self.radius))
        own = self._searcher.points
        found = self._searcher.others_within(reach) if itself else self._searcher.within(points, reach)
        found = _closest(self._metric.measured(found, points, own), float(self.radius))
        return _with_self(found) if itself else found


class _Metric(NamedTuple):
    """A metric as pcct knows it, and how its distances become scikit-learn's: multiplied by a unit, or as their squares."""

    spec: dict[str, Any]
    unit: float = 1.0
    squared: bool = False

    def measured(self, found: _Found, queries: NDArray[np.float64], points: NDArray[np.float64]) -> _Found:
        """Return what was found by pcct with scikit-learn's distances."""
        if not self.squared:
            return found if self.unit == 1.0 else found._replace(distances=found.distances * self.unit)
        rows, total = found.rows(), np.zeros(len(found.neighbors))
        # Not the root squared again, which is rounded twice; added in pcct's order, so that both are of the same sum.
        for column in range(points.shape[1]):
            difference = points[found.neighbors, column] - queries[rows, column]
            total += difference * difference
        if not (np.diff(total)[np.diff(rows) == 0] < 0).any():
            return found._replace(distances=total)
        order = np.lexsort((found.neighbors, total, rows))  # roots may tie where the sums do not
        return _Found(found.offsets, found.neighbors[order], total[order])

    def reach(self, radius: float) -> float:
        """Return a radius in pcct's unit within which there is all that is within this one of scikit-learn's."""
        if self.squared:
            return float(np.sqrt(radius))  # rounding keeps an order, so no sum that is within the radius is lost
        return radius if self.unit == 1.0 else radius / self.unit * _WIDER


@dataclass(frozen=True)
class _OnService:
    """Search by a service, which is given the points now; metric: its JSON form."""

    points: NDArray[np.float64]
    metric: dict[str, Any]
    url: str
    timeout: float | None

    def __post_init__(self) -> None:
        with Client(self.url) as client:
            client.upload(self.points, timeout=self.timeout)

    def nearest_others(self, k: int) -> _Found:
        """Return the k nearest others of every point."""
        with Client(self.url) as client:
            return _found(client.knn(self.points, k, self.metric, timeout=self.timeout))

    def nearest(self, queries: NDArray[np.float64], k: int) -> _Found:
        """Return the k nearest points of every query."""
        with Client(self.url) as client:
            return _found(client.query(self.points, queries, k, self.metric, timeout=self.timeout))

    def others_within(self, radius: float) -> _Found:
        """Return all others within the radius of every point."""
        with Client(self.url) as client:
            return _found(client.radius(self.points, radius, self.metric, timeout=self.timeout))

    def within(self, queries: NDArray[np.float64], radius: float) -> _Found:
        """Return all points within the radius of every query."""
        with Client(self.url) as client:
            return _found(client.query(self.points, queries, metric=self.metric, radius=radius, timeout=self.timeout))


class _InProcess:
    """Search in this process, by a tree that is built now; metric: its JSON form."""

    def __init__(self, points: NDArray[np.float64], metric: dict[str, Any], threads: int | None) -> None:
        try:
            from pcct_core import CoverTree, GraphSpec
        except ImportError as error:
            raise MissingExtra(
                f"without url= neighbors are computed by pcct_core, which cannot be loaded ({error}); "
                "pip install 'pcct[core]', or give the url of a service"
            ) from error
        self.points = points
        self._threads = threads
        self._tree = CoverTree.fit(points, GraphSpec.from_json({"metric": metric}).metric, threads=threads)

    def nearest_others(self, k: int) -> _Found:
        """Return the k nearest others of every point."""
        from pcct_core import knn_graph

        return _found(knn_graph(self.points, k, self._tree.metric, threads=self._threads))

    def nearest(self, queries: NDArray[np.float64], k: int) -> _Found:
        """Return the k nearest points of every query."""
        return _found(self._tree.query(queries, k, threads=self._threads))

    def others_within(self, radius: float) -> _Found:
        """Return all others within the radius of every point."""
        return _found(self._tree.radius_graph(radius, threads=self._threads))

    def within(self, queries: NDArray[np.float64], radius: float) -> _Found:
        """Return all points within the radius of every query."""
        return _found(self._tree.query_radius(queries, radius, threads=self._threads))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _threads(n_jobs: Any) -> int | None:
    """Return how many threads n_jobs asks for, as joblib reads it; None: one per core. Raises ValueError."""
    if n_jobs is None or (_is_whole(n_jobs) and n_jobs == -1):
        return None
    if not _is_whole(n_jobs) or n_jobs == 0:
        raise ValueError(
            f"n_jobs is {n_jobs!r}; use a whole number of at least 1, None or -1 for one per core, -2 for all cores but one"
        )
    return int(n_jobs) if n_jobs > 0 else max(1, joblib.cpu_count() + 1 + int(n_jobs))


def _read_metric(metric: Any, params: Any, p: Any) -> _Metric:
    """Return the metric that three of the transformers' parameters name; raises ValueError."""
    if not isinstance(metric, str) or metric not in _METRICS:
        raise ValueError(f"metric is {metric!r}; use one of {', '.join(_METRICS)}")
    if p is not None and not (_is_real(p) and p > 0 and (p == 2 or metric != "minkowski")):
        raise ValueError(f"p is {p!r}; use 2, the only minkowski metric here, which is the Euclidean one")
    known = "lengthscale" if metric in _EUCLIDEAN else "V" if metric == "seuclidean" else None
    params = dict(params or {})
    if unknown := set(params) - {known}:
        takes = f"takes {known} alone" if known else "has none"
        raise ValueError(f"unknown metric_params {', '.join(map(repr, sorted(unknown)))}; {metric} {takes}")
    if metric == "haversine":
        return _Metric({"type": "haversine"}, 1.0 / EARTH_RADIUS_KM)
    if metric == "cosine":
        return _Metric({"type": "cosine"})
    if metric == "sqeuclidean":
        return _Metric({"type": "euclidean"}, squared=True)
    if metric == "seuclidean":
        return _Metric({"type": "euclidean", "lengthscale": np.sqrt(_variances(params.get("V"))).tolist()})
    scale = {name: np.asarray(value).tolist() for name, value in params.items()}
    return _Metric({"type": "euclidean", **scale})


def _variances(V: Any) -> NDArray[np.float64]:
    variances = np.empty(0) if V is None else np.asarray(V, np.float64)
    if variances.ndim != 1 or not len(variances) or not (variances > 0).all():
        raise ValueError("seuclidean needs metric_params={'V': …}, one positive variance per column")
    return variances


def _degrees(radians: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (longitude, latitude) in degrees from (latitude, longitude) in radians; raises ValueError.

    A pole or a meridian that was rounded up, in float32 or by one unit in float64, is where it was meant to be.
    """
    if radians.shape[1] != 2:
        raise ValueError(f"haversine needs 2 columns (latitude, longitude), X has {radians.shape[1]}")
    size = np.abs(radians)
    size = np.where((size == _LIMITS_32) | (size == np.nextafter(_LIMITS, np.inf)), _LIMITS, size)
    outside = size > _LIMITS
    if outside.any():
        row = int(np.argmax(outside.any(axis=1)))
        raise ValueError(
            f"row {row} is ({radians[row, 0]!s}, {radians[row, 1]!s}), which is no (latitude, longitude) in radians, within "
            "[-π/2, π/2] and [-2π, 2π]; use np.radians(X), latitude first"
        )
    return np.ascontiguousarray(np.degrees(np.copysign(size, radians))[:, ::-1])


def _found(answer: Any) -> _Found:
    """Return an answer of the library or the service: one row behind the other, or as many neighbors in each."""
    distances = np.asarray(answer.distances, np.float64)
    offsets = getattr(answer, "offsets", None)
    if offsets is None:
        m, k = distances.shape
        offsets = np.arange(0, m * k + 1, k) if k else np.zeros(m + 1, np.int64)
    return _Found(offsets, answer.neighbors.reshape(-1), distances.reshape(-1))


def _nobody(n: int) -> _Found:
    return _Found(np.zeros(n + 1, np.int64), np.empty(0, np.int32), np.empty(0))


def _closest(found: _Found, radius: float) -> _Found:
    """Return those pairs that are within the radius."""
    within = found.distances <= radius
    if within.all():
        return found
    counts = np.bincount(found.rows()[within], minlength=len(found.offsets) - 1)
    return _Found(np.concatenate(([0], np.cumsum(counts))), found.neighbors[within], found.distances[within])


def _with_self(others: _Found) -> _Found:
    """Return each row itself, at distance 0, and then the others."""
    n = len(others.offsets) - 1
    starts = others.offsets[:-1]
    return _Found(
        others.offsets + np.arange(n + 1),
        np.insert(others.neighbors, starts, np.arange(n, dtype=np.int32)),
        np.insert(others.distances, starts, 0.0),
    )


def _csr(found: _Found, columns: int, mode: str) -> Any:
    """Return the graph in the sparse format that scikit-learn is set up to give."""
    data = found.distances if mode == "distance" else np.ones(len(found.neighbors))
    # Releases before 1.9 know matrices only, and have no such setting.
    arrays = sklearn.get_config().get("sparse_interface") == "sparray"
    make = sparse.csr_array if arrays else sparse.csr_matrix
    return make((data, found.neighbors, found.offsets), shape=(len(found.offsets) - 1, columns))
