"""What graph is wanted: `GraphSpec`, its JSON form and its canonical bytes.

Two specifications that ask for the same graph have the same canonical bytes, so these name the graph in the cache.
Nothing here imports Numba: the HTTP process reads specifications without paying for a compiler.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pcct_core.errors import InvalidSpec

Kind: TypeAlias = Literal["knn", "vecchia"]
Order: TypeAlias = Literal["maximin", "hilbert", "random", "coordinate", "given"]

KINDS: tuple[Kind, ...] = ("knn", "vecchia")
ORDERS: tuple[Order, ...] = ("maximin", "hilbert", "random", "coordinate", "given")

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Euclidean:
    """Euclidean distance after dividing every coordinate by its lengthscale.

    lengthscale: None (all ones), one positive number, or one per dimension; same unit as the coordinates.
    """

    lengthscale: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", _lengthscale(self.lengthscale))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without fields that are at their default."""
        out: dict[str, Any] = {"type": "euclidean"}
        if self.lengthscale is not None:
            out["lengthscale"] = list(self.lengthscale) if isinstance(self.lengthscale, tuple) else self.lengthscale
        return out


@dataclass(frozen=True)
class Haversine:
    """Great-circle distance in km between (longitude, latitude) pairs in degrees, on a sphere of radius 6371.0088 km."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"type": "haversine"}


@dataclass(frozen=True)
class Cosine:
    """Cosine distance, 1 - cos(angle), between rows that are not zero."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"type": "cosine"}


Metric: TypeAlias = Euclidean | Haversine | Cosine
METRICS: tuple[str, ...] = ("euclidean", "haversine", "cosine")


@dataclass(frozen=True)
class GraphSpec:
    """A wanted graph: kind, number of neighbors, metric, and for Vecchia graphs the order.

    kind:     "knn" (each row lists its k nearest other points) or "vecchia" (the k nearest among earlier ranks).
    k:        neighbors per row, 1 ≤ k < n.
    metric:   `Euclidean`, `Haversine` or `Cosine`.
    order:    Vecchia only: "maximin", "hilbert", "random", "coordinate" or "given" (the rows as they come).
    seed:     seeds the random order; no other order reads it.
    accuracy: "exact"; graphs under these metrics always are.
    """

    kind: Kind = "knn"
    k: int = 30
    metric: Metric = field(default_factory=Euclidean)
    order: Order = "maximin"
    seed: int = 0
    accuracy: Literal["exact"] = "exact"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidSpec(f"kind is {self.kind!r}; use one of {', '.join(KINDS)}", "kind")
        k, seed = _whole(self.k), _whole(self.seed)
        if k is None or not 1 <= k < 2**31:
            raise InvalidSpec(f"k is {self.k!r}; use a whole number of at least 1", "k")
        if self.order not in ORDERS:
            raise InvalidSpec(f"order is {self.order!r}; use one of {', '.join(ORDERS)}", "order")
        if seed is None or not 0 <= seed <= MAX_SEED:
            raise InvalidSpec(f"seed is {self.seed!r}; use a whole number from 0 to 2^63 - 1", "seed")
        if self.accuracy != "exact":
            raise InvalidSpec(
                f"accuracy is {self.accuracy!r}; graphs under this metric are always exact: leave it out or use 'exact'",
                "accuracy",
            )
        object.__setattr__(self, "k", k)
        object.__setattr__(self, "seed", seed)

    @classmethod
    def from_json(cls, data: object) -> GraphSpec:
        """Read a specification from parsed JSON.

        Raises InvalidSpec when a field is unknown, of the wrong type, or out of range.
        """
        if not isinstance(data, Mapping):
            raise InvalidSpec("the specification must be a JSON object such as {'kind': 'knn', 'k': 30}", "spec")
        known = {"kind", "k", "metric", "order", "seed", "accuracy"}
        _refuse_unknown(data, known, "")
        fields = {name: data[name] for name in known if name in data and name != "metric"}
        if "metric" in data:
            fields["metric"] = metric_from_json(data["metric"])
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Return the normal form: every field that the graph depends on, and no other."""
        out: dict[str, Any] = {"kind": self.kind, "k": self.k, "metric": self.metric.to_json()}
        if self.kind == "vecchia":
            out["order"] = self.order
            if self.order == "random":
                out["seed"] = self.seed
        out["accuracy"] = self.accuracy
        return out

    def canonical(self) -> bytes:
        """Return the normal form as sorted, compact JSON: same graph wanted, same bytes."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def metric_from_json(data: object) -> Metric:
    """Read a metric from its JSON form, an object with a `type`, or from the bare type name.

    Raises InvalidSpec when the type is unknown or a parameter is wrong.
    """
    if isinstance(data, str):
        data = {"type": data}
    if not isinstance(data, Mapping) or "type" not in data:
        raise InvalidSpec(f"metric must be an object with a 'type', one of {', '.join(METRICS)}", "metric")
    kind = data["type"]
    if kind == "euclidean":
        _refuse_unknown(data, {"type", "lengthscale"}, "metric.")
        return Euclidean(data.get("lengthscale"))
    if kind == "haversine":
        _refuse_unknown(data, {"type"}, "metric.")
        return Haversine()
    if kind == "cosine":
        _refuse_unknown(data, {"type"}, "metric.")
        return Cosine()
    raise InvalidSpec(f"metric type is {kind!r}; use one of {', '.join(METRICS)}", "metric.type")


def _refuse_unknown(data: Mapping[Any, Any], known: set[str], prefix: str) -> None:
    for name in data:
        if name not in known:
            raise InvalidSpec(f"unknown field {prefix}{name}; known are {', '.join(sorted(known))}", f"{prefix}{name}")


def _whole(value: Any) -> int | None:
    """Return a whole number of any type, NumPy's too, as an int; None for anything else, bools included."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _lengthscale(value: object) -> float | tuple[float, ...] | None:
    """Return a lengthscale as None, one float or a tuple of floats; all positive and finite."""
    if value is None:
        return None
    if isinstance(value, bool | str) or not isinstance(value, int | float | Sequence):
        # NumPy scalars and arrays arrive here from Python callers, never from JSON.
        tolist = getattr(value, "tolist", None)
        if tolist is None:
            raise InvalidSpec(
                f"lengthscale is {value!r}; use a positive number or a list of them", "metric.lengthscale"
            )
        return _lengthscale(tolist())
    if isinstance(value, Sequence):
        if not value:
            raise InvalidSpec(
                "lengthscale is an empty list; give one positive number per dimension", "metric.lengthscale"
            )
        return tuple(_positive(item) for item in value)
    return _positive(value)


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidSpec(f"lengthscale {value!r} is not a number", "metric.lengthscale")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (0.0 < number < math.inf):
        raise InvalidSpec(f"lengthscale {number} is not positive and finite", "metric.lengthscale")
    return number
