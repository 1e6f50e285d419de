"""`PcctNeighborsTransformer`: scikit-learn's `KNeighborsTransformer` over exact pcct graphs. Needs scikit-learn and SciPy.

    from sklearn.manifold import Isomap
    from sklearn.pipeline import make_pipeline
    from pcct_client.sklearn import PcctNeighborsTransformer

    make_pipeline(PcctNeighborsTransformer(n_neighbors=10), Isomap(n_neighbors=10, metric="precomputed")).fit(X)

Computes in this process with `pcct_core`, or on a service when given its `url`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_client.calls import DEFAULT_TIMEOUT_S
from pcct_client.client import Client
from pcct_client.errors import MissingExtra

try:
    import sklearn
    from scipy import sparse
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtra(f"pcct_client.sklearn needs scikit-learn: pip install 'pcct[sklearn]' ({error})") from error

EARTH_RADIUS_KM = 6371.0088  # what pcct's great-circle distances are on; scikit-learn's are on the unit sphere

_EUCLIDEAN = ("euclidean", "l2", "minkowski")
_METRICS = (*_EUCLIDEAN, "seuclidean", "haversine", "cosine")
_MODES = ("distance", "connectivity")


class _Pairs(NamedTuple):
    """Neighbors of each row: neighbors int32 (m, k) and distances float64 (m, k), ascending."""

    neighbors: NDArray[np.int32]
    distances: NDArray[np.float64]


class PcctNeighborsTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Transform X into the exact sparse graph of its nearest neighbors, as `sklearn.neighbors.KNeighborsTransformer` does.

    mode:          "distance" or "connectivity". As in scikit-learn each row counts itself: with "distance" it is one more
                   entry, at distance 0, so that rows have n_neighbors + 1; with "connectivity" it is one of n_neighbors.
    n_neighbors:   neighbors per row.
    metric:        "euclidean" (also "minkowski" or "l2"), "seuclidean", "cosine", or "haversine": rows are (latitude,
                   longitude) in radians and distances are radians of the unit sphere, as in scikit-learn; pcct itself takes
                   (longitude, latitude) in degrees and answers in km.
    metric_params: {"lengthscale": one positive number, or one per column} with "euclidean", which divides the columns;
                   {"V": one variance per column} with "seuclidean". None for the others.
    n_jobs:        threads in this process; None or -1: one per core.
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
        metric: str = "euclidean",
        metric_params: Mapping[str, Any] | None = None,
        n_jobs: int | None = None,
        url: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.mode = mode
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.metric_params = metric_params
        self.n_jobs = n_jobs
        self.url = url
        self.timeout = timeout

    def fit(self, X: Any, y: Any = None) -> PcctNeighborsTransformer:
        """Keep the rows of X, (n, d), to look for neighbors among; y is ignored.

        Raises ValueError for parameters or rows that cannot be used, and the errors of `pcct_client` with a `url`.
        """
        _check_choices(self.mode, self.n_neighbors, self.n_jobs)
        metric = _read_metric(self.metric, self.metric_params)
        self._in_radians = self.metric == "haversine"
        points = self._read_points(X, reset=True)
        self._searcher: _InProcess | _OnService
        if self.url is None:
            self._searcher = _InProcess(points, metric, _threads(self.n_jobs))
        else:
            self._searcher = _OnService(points, metric, self.url, self.timeout)
        self.n_samples_fit_ = self._n_features_out = len(points)
        return self

    def transform(self, X: Any) -> Any:
        """Return the graph from the rows of X, (m, d), to the fitted ones: sparse CSR, float64 (m, n_samples_fit_).

        Raises ValueError for rows that cannot be used or fewer fitted rows than neighbors, and the errors of `pcct_client`
        with a `url`.
        """
        check_is_fitted(self)
        _check_choices(self.mode, self.n_neighbors, self.n_jobs)
        points = self._read_points(X, reset=False)
        k = self.n_neighbors + (self.mode == "distance")
        if k > self.n_samples_fit_:
            raise ValueError(
                f"n_neighbors is {self.n_neighbors}, which takes {k} fitted samples in mode {self.mode!r}, but there are "
                f"n_samples_fit = {self.n_samples_fit_}; use n_neighbors ≤ {self.n_neighbors - k + self.n_samples_fit_}"
            )
        if np.array_equal(points, self._searcher.points):
            found = _with_self(self._searcher.search_itself(k - 1) if k > 1 else _nobody(len(points)))
        else:
            found = self._searcher.search(points, k)
        return _csr(found, self.n_samples_fit_, self.mode)

    def _read_points(self, X: Any, reset: bool) -> NDArray[np.float64]:
        """Return the rows of X as pcct takes them, in memory of their own: X may change later."""
        points: NDArray[np.float64] = validate_data(self, X, reset=reset, dtype=np.float64, order="C", copy=True)
        return _degrees(points) if self._in_radians else points


class _Metric(NamedTuple):
    """A metric as pcct knows it, and what its distances are multiplied by to be scikit-learn's."""

    spec: dict[str, Any]
    unit: float = 1.0


@dataclass(frozen=True)
class _OnService:
    """Search by a service, which is given the points now."""

    points: NDArray[np.float64]
    metric: _Metric
    url: str
    timeout: float | None

    def __post_init__(self) -> None:
        with Client(self.url) as client:
            client.upload(self.points, timeout=self.timeout)

    def search_itself(self, k: int) -> _Pairs:
        """Return the k nearest others of every point."""
        with Client(self.url) as client:
            return _pairs(client.knn(self.points, k, self.metric.spec, timeout=self.timeout), self.metric)

    def search(self, queries: NDArray[np.float64], k: int) -> _Pairs:
        """Return the k nearest points of every query."""
        with Client(self.url) as client:
            return _pairs(client.query(self.points, queries, k, self.metric.spec, timeout=self.timeout), self.metric)


class _InProcess:
    """Search in this process, by a tree that is built now."""

    def __init__(self, points: NDArray[np.float64], metric: _Metric, threads: int | None) -> None:
        try:
            from pcct_core import CoverTree, GraphSpec
        except ImportError as error:
            raise MissingExtra(
                f"without url= neighbors are computed by pcct_core, which cannot be loaded ({error}); "
                "pip install 'pcct[core]', or give the url of a service"
            ) from error
        self.points = points
        self._metric = metric
        self._threads = threads
        self._tree = CoverTree.fit(points, GraphSpec.from_json({"metric": metric.spec}).metric, threads=threads)

    def search_itself(self, k: int) -> _Pairs:
        """Return the k nearest others of every point."""
        from pcct_core import knn_graph

        return _pairs(knn_graph(self.points, k, self._tree.metric, threads=self._threads), self._metric)

    def search(self, queries: NDArray[np.float64], k: int) -> _Pairs:
        """Return the k nearest points of every query."""
        return _pairs(self._tree.query(queries, k, threads=self._threads), self._metric)


def _check_choices(mode: Any, n_neighbors: Any, n_jobs: Any) -> None:
    if mode not in _MODES:
        raise ValueError(f"mode is {mode!r}; use one of {', '.join(_MODES)}")
    if not _is_whole(n_neighbors) or n_neighbors < 1:
        raise ValueError(f"n_neighbors is {n_neighbors!r}; use a whole number of at least 1")
    if n_jobs is not None and (not _is_whole(n_jobs) or (n_jobs < 1 and n_jobs != -1)):
        raise ValueError(f"n_jobs is {n_jobs!r}; use a whole number of at least 1, or None or -1 for one per core")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _threads(n_jobs: int | None) -> int | None:
    return None if n_jobs in (None, -1) else n_jobs


def _read_metric(metric: Any, params: Any) -> _Metric:
    """Return the metric that two of the transformer's parameters name; raises ValueError."""
    if not isinstance(metric, str) or metric not in _METRICS:
        raise ValueError(f"metric is {metric!r}; use one of {', '.join(_METRICS)}")
    known = "lengthscale" if metric in _EUCLIDEAN else "V" if metric == "seuclidean" else None
    params = dict(params or {})
    if unknown := set(params) - {known}:
        takes = f"takes {known} alone" if known else "has none"
        raise ValueError(f"unknown metric_params {', '.join(map(repr, sorted(unknown)))}; {metric} {takes}")
    if metric == "haversine":
        return _Metric({"type": "haversine"}, 1.0 / EARTH_RADIUS_KM)
    if metric == "cosine":
        return _Metric({"type": "cosine"})
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
    """Return (longitude, latitude) in degrees from (latitude, longitude) in radians; raises ValueError."""
    if radians.shape[1] != 2:
        raise ValueError(f"haversine needs 2 columns (latitude, longitude), X has {radians.shape[1]}")
    outside = np.abs(radians) > (np.pi / 2, 2 * np.pi)
    if outside.any():
        row = int(np.argmax(outside.any(axis=1)))
        raise ValueError(
            f"row {row} is ({radians[row, 0]:g}, {radians[row, 1]:g}), which is no (latitude, longitude) in radians, within "
            "[-π/2, π/2] and [-2π, 2π]; use np.radians(X), latitude first"
        )
    return np.ascontiguousarray(np.degrees(radians)[:, ::-1])


def _pairs(found: Any, metric: _Metric) -> _Pairs:
    distances = np.asarray(found.distances, np.float64)
    return _Pairs(found.neighbors, distances if metric.unit == 1.0 else distances * metric.unit)


def _nobody(n: int) -> _Pairs:
    return _Pairs(np.empty((n, 0), np.int32), np.empty((n, 0)))


def _with_self(others: _Pairs) -> _Pairs:
    """Return each row itself, at distance 0, and then the others."""
    n = len(others.neighbors)
    itself = np.arange(n, dtype=np.int32)[:, None]
    return _Pairs(np.hstack([itself, others.neighbors]), np.hstack([np.zeros((n, 1)), others.distances]))


def _csr(found: _Pairs, columns: int, mode: str) -> Any:
    """Return the graph in the sparse format that scikit-learn is set up to give."""
    m, k = found.neighbors.shape
    data = found.distances.ravel() if mode == "distance" else np.ones(m * k)
    # Releases before 1.9 know matrices only, and have no such setting.
    arrays = sklearn.get_config().get("sparse_interface") == "sparray"
    make = sparse.csr_array if arrays else sparse.csr_matrix
    return make((data, found.neighbors.ravel(), np.arange(0, m * k + 1, k)), shape=(m, columns))
