"""What is timed, against what, and how good it has to be: one table, one line per case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import data
from numpy.typing import NDArray

from pcct_core.spec import GraphSpec, Haversine

Measure: TypeAlias = Literal["speedup", "cost", "seconds", "megabytes", "growth"]
Work: TypeAlias = Literal["graph", "maximin", "start", "memory", "growth"]

# unit: how a value reads; whether more is better.
MEASURES: dict[Measure, tuple[str, bool]] = {
    "speedup": ("x faster", True),
    "cost": ("x its time", False),
    "seconds": ("s", False),
    "megabytes": ("MB extra", False),
    "growth": ("x per point", False),
}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    points:  makes the points for a given n. n: how many.
    work:    what is done with them: a "graph", a "maximin" order, the "start" of a fresh process up to its first graph, the
             peak "memory" of a process that builds one, or the "growth" of time per point from `SMALL` points to n.
    measure: how the times become one value, to hold against bar (must) and goal (want); None: only recorded.
    rivals:  names in rivals.RIVALS; the fastest of them counts.
    compare: whether the rival's neighbors are compared with ours, row by row.
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


SMALL = 32_768
MILLION = 1_000_000
_VECCHIA = GraphSpec(kind="vecchia", order="random")
_K15 = GraphSpec(k=15)
_SPHERE = GraphSpec(metric=Haversine())
_MAXIMIN = GraphSpec(kind="vecchia", order="maximin")
_KD, _BOTH, _OWN = ("pykdtree",), ("pykdtree", "faiss flat"), ("own k-NN",)
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
SUITES: dict[str, tuple[Case, ...]] = {"core": CORE, "sizes": SIZES}
