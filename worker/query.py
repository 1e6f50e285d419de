"""External queries: the neighbors, in one dataset, of the rows of another. The queue and the store treat them as graphs.

The trees that answer them are kept for a while: fitting one costs more than most searches.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pcct_core.certificate import Certificate
from pcct_core.errors import InvalidSpec
from pcct_core.points import check_shape
from pcct_core.spec import (
    DEFAULT_K,
    MAX_PAIRS,
    Euclidean,
    GraphSpec,
    Kind,
    Metric,
    Residual,
    metric_references,
    metric_with_arrays,
)
from pcct_core.telemetry import Telemetry

if TYPE_CHECKING:
    from pcct_core.covertree import CoverTree
    from pcct_core.lookup import GateLookup
    from pcct_core.parallel import CancelToken, Progress

QUERY = "query"

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class QuerySpec:
    """A wanted answer: the k nearest rows of a dataset, or all within a radius, for every row of another one, exactly.

    queries: id of the dataset that asks. k: neighbors per query, 0 where a radius is asked for, in the metric's unit.
    See `check_query` for what a dataset can be asked.
    """

    queries: str
    k: int = DEFAULT_K
    metric: Metric = field(default_factory=Euclidean)
    radius: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.queries, str) or not _SHA256.fullmatch(self.queries):
            raise InvalidSpec(f"queries is {self.queries!r}; use the id of the dataset whose rows ask", "queries")
        kind: Kind = "knn" if self.radius is None else "radius"
        shared = GraphSpec(kind, self.k, self.metric, radius=self.radius)
        object.__setattr__(self, "k", shared.k)
        object.__setattr__(self, "radius", shared.radius)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuerySpec:
        """Read a query from parsed JSON, {"kind": "query", "queries", "k" or "radius", "metric"}; raises InvalidSpec."""
        known = {"kind", "queries", "k", "radius", "metric", "accuracy"}
        for name in data:
            if name not in known:
                raise InvalidSpec(f"unknown field {name}; a query has {', '.join(sorted(known))}", name)
        if data.get("accuracy", "exact") != "exact":
            raise InvalidSpec("queries are always answered exactly; leave accuracy out or use 'exact'", "accuracy")
        if "k" in data and "radius" in data:
            raise InvalidSpec("a query has k or a radius, not both; leave one out", "k")
        wish = {name: data[name] for name in ("k", "radius", "metric") if name in data}
        shared = GraphSpec.from_json(wish | {"kind": "radius" if "radius" in data else "knn"})
        return cls(data.get("queries", ""), shared.k, shared.metric, shared.radius)

    def to_json(self) -> dict[str, Any]:
        """Return the normal form: every field that the answer depends on, and no other."""
        return {
            "kind": QUERY,
            "queries": self.queries,
            **({"k": self.k} if self.radius is None else {"radius": self.radius}),
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
        return replace(self, metric=metric_with_arrays(self.metric, arrays))


def check_query(n: int, d: int, k: int, metric: Metric) -> None:
    """Raise InvalidSpec when n points in d dimensions cannot be asked for k neighbors of other points."""
    if isinstance(metric, Residual) and metric.factors is not None:
        raise InvalidSpec("given factors say nothing about new points; give inducing points instead", "metric.v")
    if k > n:
        raise InvalidSpec(f"k is {k} but there are only {n} points; use k ≤ {n}", "k")
    check_shape(max(2, n), d, GraphSpec(k=1, metric=metric))


Wish: TypeAlias = GraphSpec | QuerySpec


def wish_from_json(data: object) -> Wish:
    """Read what is wanted, a graph's specification or a query's; raises InvalidSpec."""
    if isinstance(data, Mapping) and data.get("kind") == QUERY:
        return QuerySpec.from_json(data)
    return GraphSpec.from_json(data)


@dataclass(frozen=True)
class QueryAnswer:
    """What a query found.

    neighbors: int32 (m, k), rows of the dataset, ascending by (distance, index). distances: (m, k), in the metric's unit, of
    the type that `CoverTree.query` gives. Within a radius both are flat, and those of query i are at
    offsets[i]:offsets[i + 1], int64 (m + 1,).
    tree: what was asked, for the next query.
    """

    neighbors: NDArray[np.int32]
    distances: NDArray[Any]
    certificate: Certificate
    telemetry: Telemetry
    tree: CoverTree
    offsets: NDArray[np.int64] | None = None
    lookup: GateLookup | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name."""
        out: dict[str, NDArray[Any]] = {"neighbors": self.neighbors, "distances": self.distances}
        return out if self.offsets is None else out | {"offsets": self.offsets}


def answer_query(
    asked: NDArray[Any] | CoverTree,
    Q: NDArray[Any],
    spec: QuerySpec,
    *,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    threads: int | None = None,
    max_pairs: int = MAX_PAIRS,
) -> QueryAnswer:
    """Return the neighbors of the rows of Q, (m, d), among the points X, (n, d).

    asked: X, or the tree of X under the metric of spec. max_pairs: within a radius, most neighbors of all rows together.
    Raises InvalidPoints, InvalidSpec, NotPositiveDefinite, Cancelled. Cost: of the search, and of the tree unless it is given.
    """
    from pcct_core.covertree import CoverTree

    telemetry = Telemetry()
    if isinstance(asked, CoverTree):
        tree = asked
    else:
        with telemetry.phase("build"):
            tree = CoverTree.fit(asked, spec.metric, progress=progress, cancel=cancel, threads=threads)
    telemetry.counts.update(n=tree.n, d=tree.d, queries=Q.shape[0])
    if spec.radius is not None:
        with telemetry.phase("search"):
            within = tree.query_radius(
                Q, spec.radius, progress=progress, cancel=cancel, threads=threads, max_pairs=max_pairs
            )
        telemetry.counts["pairs"] = len(within.neighbors)
        known = Certificate("tree", tree.arithmetic(Q))
        return QueryAnswer(within.neighbors, within.distances, known, telemetry, tree, within.offsets)
    telemetry.counts["k"] = spec.k
    with telemetry.phase("search"):
        found, known = tree.query_certified(Q, spec.k, progress=progress, cancel=cancel, threads=threads)
    return QueryAnswer(found.neighbors, found.distances, known, telemetry, tree)


class TreeCache:
    """Trees of the datasets that were asked last, by dataset and metric; the least recently asked ones go first.

    dataset: a name of one, unlike that of any other. max_bytes: of all trees together; a larger one is not kept. A tree says
    nothing about whether its dataset is still there: whoever takes one looks.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._trees: OrderedDict[tuple[str, str], CoverTree] = OrderedDict()

    def find(self, dataset: str, metric: Metric) -> CoverTree | None:
        """Return the tree of a dataset under a metric, None when it is not kept."""
        key = _tree_key(dataset, metric)
        if key in self._trees:
            self._trees.move_to_end(key)
        return self._trees.get(key)

    def keep(self, dataset: str, metric: Metric, tree: CoverTree) -> None:
        """Keep a tree as the one that was asked last."""
        key = _tree_key(dataset, metric)
        self._trees[key] = tree
        self._trees.move_to_end(key)
        held = sum(kept.nbytes for kept in self._trees.values())
        while held > self._max_bytes:
            held -= self._trees.popitem(last=False)[1].nbytes

    def drop(self, dataset: str) -> None:
        """Forget the trees of a dataset."""
        for key in [key for key in self._trees if key[0] == dataset]:
            del self._trees[key]


def _tree_key(dataset: str, metric: Metric) -> tuple[str, str]:
    return dataset, json.dumps(metric.to_json(), sort_keys=True)
