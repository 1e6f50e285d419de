"""External queries: the neighbors, in one dataset, of the rows of another. The queue and the store treat them as graphs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pcct_core.certificate import Certificate
from pcct_core.errors import InvalidSpec
from pcct_core.points import check_shape
from pcct_core.spec import Euclidean, GraphSpec, Metric, Residual
from pcct_core.telemetry import Telemetry

if TYPE_CHECKING:
    from pcct_core.lookup import GateLookup
    from pcct_core.parallel import CancelToken, Progress

QUERY = "query"

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class QuerySpec:
    """A wanted answer: the k nearest rows of a dataset for every row of another one, exactly.

    queries: id of the dataset that asks. k: neighbors per query. See `check_query` for what a dataset can be asked.
    """

    queries: str
    k: int = 30
    metric: Metric = field(default_factory=Euclidean)

    def __post_init__(self) -> None:
        if not isinstance(self.queries, str) or not _SHA256.fullmatch(self.queries):
            raise InvalidSpec(f"queries is {self.queries!r}; use the id of the dataset whose rows ask", "queries")
        object.__setattr__(self, "k", GraphSpec(k=self.k).k)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuerySpec:
        """Read a query from parsed JSON, {"kind": "query", "queries", "k", "metric"}; raises InvalidSpec."""
        known = {"kind", "queries", "k", "metric", "accuracy"}
        for name in data:
            if name not in known:
                raise InvalidSpec(f"unknown field {name}; a query has {', '.join(sorted(known))}", name)
        if data.get("accuracy", "exact") != "exact":
            raise InvalidSpec("queries are always answered exactly; leave accuracy out or use 'exact'", "accuracy")
        shared = GraphSpec.from_json({name: data[name] for name in ("k", "metric") if name in data})
        return cls(data.get("queries", ""), shared.k, shared.metric)

    def to_json(self) -> dict[str, Any]:
        """Return the normal form: every field that the answer depends on, and no other."""
        return {
            "kind": QUERY,
            "queries": self.queries,
            "k": self.k,
            "metric": self.metric.to_json(),
            "accuracy": "exact",
        }

    def canonical(self) -> bytes:
        """Return the normal form as sorted, compact JSON: same answer wanted, same bytes."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def references(self) -> tuple[str, ...]:
        """Return the ids of the datasets that the query names beside the one that is asked; the queries are the first."""
        return (self.queries, *metric_references(self.metric))

    def with_arrays(self, arrays: Mapping[str, Any]) -> QuerySpec:
        """Return the query with the arrays of its metric at hand; arrays: by id."""
        return replace(self, metric=GraphSpec(k=1, metric=self.metric).with_arrays(arrays).metric)


def check_query(n: int, d: int, k: int, metric: Metric) -> None:
    """Raise InvalidSpec when n points in d dimensions cannot be asked for k neighbors of other points."""
    if isinstance(metric, Residual) and metric.factors is not None:
        raise InvalidSpec("given factors say nothing about new points; give inducing points instead", "metric.v")
    if k > n:
        raise InvalidSpec(f"k is {k} but there are only {n} points; use k ≤ {n}", "k")
    check_shape(max(2, n), d, GraphSpec(k=1, metric=metric))


Wish: TypeAlias = GraphSpec | QuerySpec


def metric_references(metric: Metric) -> tuple[str, ...]:
    """Return the ids of the datasets that a metric names."""
    return GraphSpec(k=1, metric=metric).references()


def wish_from_json(data: object) -> Wish:
    """Read what is wanted, a graph's specification or a query's; raises InvalidSpec."""
    if isinstance(data, Mapping) and data.get("kind") == QUERY:
        return QuerySpec.from_json(data)
    return GraphSpec.from_json(data)


@dataclass(frozen=True)
class QueryAnswer:
    """What a query found.

    neighbors: int32 (m, k), rows of the dataset, ascending by (distance, index). distances: float32 or float64 (m, k), in
    the metric's unit.
    """

    neighbors: NDArray[np.int32]
    distances: NDArray[Any]
    certificate: Certificate
    telemetry: Telemetry
    lookup: GateLookup | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name."""
        return {"neighbors": self.neighbors, "distances": self.distances}


def answer_query(
    X: NDArray[Any],
    Q: NDArray[Any],
    spec: QuerySpec,
    *,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    threads: int | None = None,
) -> QueryAnswer:
    """Return the neighbors of the rows of Q, (m, d), among the points X, (n, d).

    Raises InvalidPoints, InvalidSpec, NotPositiveDefinite, Cancelled. Cost: that of the tree of X and of the search.
    """
    from pcct_core.covertree import CoverTree

    telemetry = Telemetry(counts={"n": X.shape[0], "d": X.shape[1], "queries": Q.shape[0], "k": spec.k})
    with telemetry.phase("build"):
        tree = CoverTree.fit(X, spec.metric, progress=progress, cancel=cancel, threads=threads)
    with telemetry.phase("search"):
        found = tree.query(Q, spec.k, progress=progress, cancel=cancel, threads=threads)
    method = "dense" if isinstance(spec.metric, Residual) else "tree"
    return QueryAnswer(*found, Certificate(method, str(found.distances.dtype)), telemetry)
