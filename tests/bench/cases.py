"""What is timed, against what, and how good it has to be: one table, one line per case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import data
from numpy.typing import NDArray

from pcct_core.spec import RBF, GraphSpec, Haversine, Inducing, Kernel, Matern32, Matern52, Residual

Measure: TypeAlias = Literal["speedup", "cost", "seconds", "scaled", "megabytes", "beyond_v", "growth", "pruned"]
Work: TypeAlias = Literal["graph", "refresh", "maximin", "start", "memory", "growth"]

# unit: how a value reads; whether more is better.
MEASURES: dict[Measure, tuple[str, bool]] = {
    "speedup": ("x faster", True),
    "cost": ("x its time", False),
    "seconds": ("s", False),
    "scaled": ("s scaled", False),
    "megabytes": ("MB extra", False),
    "beyond_v": ("MB beyond V", False),
    "growth": ("x per point", False),
    "pruned": ("pruned", True),
}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    points:  makes the points for a given n. n: how many.
    work:    what is done with them: a "graph", its "refresh" from what the graph of `before` has left, a "maximin" order, the
             "start" of a fresh process up to its first graph, the peak "memory" of a process that builds one, or the "growth"
             of time per point from `SMALL` points to n.
    measure: how the times become one value, to hold against bar (must) and goal (want); None: only recorded.
    rivals:  names in rivals.RIVALS; the fastest of them counts.
    compare: whether the rival's neighbors are compared with ours, row by row.
    recall:  least recall, certified and in rows compared by brute force, without which the bar is missed whatever the value.
    before:  of a refresh: the graph that was there.
    """

    name: str
    points: Callable[[int], NDArray[Any]]
    n: int
    measure: Measure
    bar: float | None = None
    goal: float | None = None
    rivals: tuple[str, ...] = ()
    work: Work = "graph"
    spec: GraphSpec = field(default_factory=GraphSpec)
    compare: bool = False
    recall: float | None = None
    before: GraphSpec | None = None

    @property
    def residual(self) -> bool:
        """Whether the metric is the residual one, whose larger cases wait for the guardrail."""
        return isinstance(self.spec.metric, Residual)


SMALL = 32_768
MILLION = 1_000_000
_VECCHIA = GraphSpec(kind="vecchia", order="random")
_K15 = GraphSpec(k=15)
_SPHERE = GraphSpec(metric=Haversine())
_MAXIMIN = GraphSpec(kind="vecchia", order="maximin")
_KD, _BOTH, _OWN = ("pykdtree",), ("pykdtree", "faiss flat"), ("own k-NN",)
_RADIUS = GraphSpec("radius", radius=0.0626)  # 31 neighbors on average
_WITHIN = ("scipy pairs", "scipy distances", "sklearn radius")
_KD32_64 = ("pykdtree", "pykdtree float32")

CORE = (
    Case("knn-d2-32k", data.uniform_2, SMALL, "speedup", 1.5, 2.5, _KD),
    Case("knn-d3-32k", data.uniform_3, SMALL, "speedup", 1.5, 2.5, _KD),
    Case("knn-d8-32k", data.uniform_8, SMALL, "speedup", 1.2, 2.0, _BOTH),
    Case("knn-manifold-32k", data.manifold, SMALL, "speedup", 1.5, 2.5, _KD),
    Case("knn-d64-16k", data.uniform_64, 16_384, "cost", 1.5, 1.0, ("faiss flat",), spec=_K15, compare=True),
    Case("knn-places", data.places, 240_000, "speedup", 2.0, 3.0, _KD32_64, spec=_SPHERE),
    Case("vecchia-d3-32k", data.uniform_3, SMALL, "cost", 2.2, 1.5, _OWN, spec=_VECCHIA),
    Case("vecchia-gpboost", data.uniform_3_float64, SMALL, "speedup", 15.0, 40.0, ("gpboost",), spec=_VECCHIA),
    Case("maximin-d2-32k", data.uniform_2, SMALL, "seconds", 0.4, 0.2, work="maximin", spec=_MAXIMIN),
    Case("radius-d3-32k", data.uniform_3, SMALL, "speedup", 1.0, 2.0, _WITHIN, spec=_RADIUS),
    Case("start", data.uniform_3, 1_000, "seconds", 5.0, 2.0, work="start"),
    Case("knn-d3-1m", data.uniform_3, MILLION, "speedup", 2.0, 4.0, _KD),
    Case("vecchia-d3-1m", data.uniform_3, MILLION, "cost", 2.2, 1.5, _OWN, spec=_VECCHIA),
    Case("maximin-d2-1m", data.uniform_2, MILLION, "seconds", 25.0, 12.5, work="maximin", spec=_MAXIMIN),
    Case("memory-d3-1m", data.uniform_3, MILLION, "megabytes", 400.0, 200.0, work="memory"),
    Case("growth-d3-4m", data.uniform_3, 4 * MILLION, "growth", 2.0, 1.5, work="growth"),
)
SIZES = tuple(
    case
    for label, n in (("2k", 2_048), ("8k", 8_192), ("32k", SMALL))
    for case in (
        Case(f"knn-d3-{label}", data.uniform_3, n, "speedup", rivals=_KD),
        Case(f"vecchia-d3-{label}", data.uniform_3, n, "cost", rivals=_OWN, spec=_VECCHIA),
        Case(f"vecchia-maximin-d3-{label}", data.uniform_3, n, "cost", rivals=_OWN, spec=_MAXIMIN),
    )
)


def _residual(kernel: Kernel, accuracy: Literal["exact"] | None = None) -> GraphSpec:
    return GraphSpec("vecchia", 50, Residual(kernel, Inducing(512)), "random", accuracy=accuracy)


LARGE = 200_000
RECALL = 0.999
_M52, _RBF = _residual(Matern52(lengthscale=0.3)), _residual(RBF(lengthscale=1.0))
_M52_MOVED = _residual(Matern52(lengthscale=0.33))
_M52_EXACT = _residual(Matern52(lengthscale=0.3), "exact")
_M32 = _residual(Matern32(lengthscale=(0.3, 0.42, 0.58, 0.8, 1.12, 1.55, 2.16, 3.0)))
_CUBE, _NORMAL, _CUBE_8 = data.uniform_3_float64, data.normal_3, data.uniform_8_float64
_COLD, _SEARCH = ("own cold",), ("gpboost search",)

RESIDUAL = (
    Case("matern52-d3-2k", _CUBE, 2_048, "scaled", spec=_M52, recall=RECALL),
    Case("rbf-d3-2k", _NORMAL, 2_048, "scaled", spec=_RBF, recall=RECALL),
    Case("matern32-d8-2k", _CUBE_8, 2_048, "scaled", spec=_M32, recall=RECALL),
    Case("matern52-d3-8k", _CUBE, 8_192, "scaled", spec=_M52, recall=RECALL),
    Case("rbf-d3-8k", _NORMAL, 8_192, "scaled", spec=_RBF, recall=RECALL),
    Case("matern32-d8-8k", _CUBE_8, 8_192, "scaled", spec=_M32, recall=RECALL),
    Case("exact-d3-8k", _CUBE, 8_192, "scaled", spec=_M52_EXACT, recall=1.0),
    Case("gpboost-8k", _CUBE, 8_192, "speedup", 15.0, 40.0, _SEARCH, spec=_M52, recall=RECALL),
    Case("matern52-d3-32k", _CUBE, SMALL, "scaled", 3.0, 1.0, spec=_M52, recall=RECALL),
    Case("rbf-d3-32k", _NORMAL, SMALL, "scaled", goal=4.0, spec=_RBF, recall=RECALL),
    Case("matern32-d8-32k", _CUBE_8, SMALL, "scaled", goal=8.0, spec=_M32, recall=RECALL),
    Case("gate-d3-32k", _CUBE, SMALL, "pruned", 0.9, 0.97, spec=_M52, recall=RECALL),
    Case("refresh-d3-8k", _CUBE, 8_192, "cost", None, None, _COLD, "refresh", _M52_MOVED, recall=RECALL, before=_M52),
    Case("refresh-d3-32k", _CUBE, SMALL, "cost", 0.7, 0.4, _COLD, "refresh", _M52_MOVED, recall=RECALL, before=_M52),
    Case("growth-d3-200k", _CUBE, LARGE, "growth", 1.5, work="growth", spec=_M52, recall=RECALL),
    Case("memory-d3-200k", _CUBE, LARGE, "beyond_v", 1000.0, work="memory", spec=_M52),
)
SUITES: dict[str, tuple[Case, ...]] = {"core": CORE, "sizes": SIZES, "residual": RESIDUAL}
