"""Exact neighbor graphs for Gaussian processes.

Arrays come in, graphs go out. The map, each module using only those before it:

errors        every named error
geometries    what to do about points of shapely and geopandas
arrays        real numbers from what callers give, and what to do about what holds none
files         files that appear whole; the folder where compiled code is kept
columns       a value for every point beside its coordinates: an order of the caller's own, or its group
spec          what graph is wanted, and its canonical form
points        the door: validation of points, embedding of metrics into Euclidean space
telemetry     times and counts of one build
certificate   what is known about a graph's exactness
parallel      chunks of work on threads: progress and cancellation
jit           compilation: what Python calls, what compiled code calls, where machine code is kept
simd          the vector loops: scan a bucket, reach a box, exchange two rows
topk          the k best of 32 queries at once; the one place where ties are decided
measure       what decides between candidates where coordinates alone do not
place         points where they are searched: coordinates, weights, measure
groups        rows in groups, within which alone neighbors are looked for
build         the tree
search        the walk of 32 queries through the tree: nearest points, all points within a radius
blas          one thread per BLAS call while ours are at work
dense         the scan of all pairs, for points that boxes cannot separate
nearest       neighbors and predecessors: tree or dense, chosen once; neighbors within a radius
order         Vecchia orders
kernels       covariance kernels, 32 pairs at a time
residual      the residual process of a VIF model, as factors
gate          the scan behind a gate, under the residual correlation
lookup        how far the gate lets a query look
vif           learn a gate, scan, audit, widen
covertree     a tree to keep and to ask again
graph         the answer, and the calls that make it
warm          what is compiled before anybody asks for it
prebuild      compiled code to ship in a wheel or an image

Names load on first use, so reading a specification does not load the compiler.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcct_core.covertree import CoverTree as CoverTree
    from pcct_core.covertree import Neighbors as Neighbors
    from pcct_core.errors import Cancelled as Cancelled
    from pcct_core.errors import FileFormatError as FileFormatError
    from pcct_core.errors import InvalidInput as InvalidInput
    from pcct_core.errors import InvalidPoints as InvalidPoints
    from pcct_core.errors import InvalidSpec as InvalidSpec
    from pcct_core.errors import KernelCacheWarning as KernelCacheWarning
    from pcct_core.errors import NotPositiveDefinite as NotPositiveDefinite
    from pcct_core.errors import PcctError as PcctError
    from pcct_core.errors import TooManyPairs as TooManyPairs
    from pcct_core.graph import Graph as Graph
    from pcct_core.graph import build_graph as build_graph
    from pcct_core.graph import knn_graph as knn_graph
    from pcct_core.graph import radius_graph as radius_graph
    from pcct_core.graph import vecchia_graph as vecchia_graph
    from pcct_core.lookup import GateLookup as GateLookup
    from pcct_core.nearest import RadiusNeighbors as RadiusNeighbors
    from pcct_core.spec import RBF as RBF
    from pcct_core.spec import Accuracy as Accuracy
    from pcct_core.spec import Cosine as Cosine
    from pcct_core.spec import Euclidean as Euclidean
    from pcct_core.spec import GraphSpec as GraphSpec
    from pcct_core.spec import Haversine as Haversine
    from pcct_core.spec import Inducing as Inducing
    from pcct_core.spec import Matern12 as Matern12
    from pcct_core.spec import Matern32 as Matern32
    from pcct_core.spec import Matern52 as Matern52
    from pcct_core.spec import Residual as Residual

_HOME = {
    "errors": (
        "Cancelled",
        "FileFormatError",
        "InvalidInput",
        "InvalidPoints",
        "InvalidSpec",
        "KernelCacheWarning",
        "NotPositiveDefinite",
        "PcctError",
        "TooManyPairs",
    ),
    "spec": (
        "RBF",
        "Accuracy",
        "Cosine",
        "Euclidean",
        "GraphSpec",
        "Haversine",
        "Inducing",
        "Matern12",
        "Matern32",
        "Matern52",
        "Residual",
    ),
    "lookup": ("GateLookup",),
    "covertree": ("CoverTree", "Neighbors"),
    "nearest": ("RadiusNeighbors",),
    "graph": ("Graph", "build_graph", "knn_graph", "radius_graph", "vecchia_graph"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'pcct_core' has no attribute {name!r}")
    value = getattr(import_module(f"pcct_core.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
