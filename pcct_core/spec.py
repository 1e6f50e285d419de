"""What graph is wanted: `GraphSpec`, its JSON form and its canonical bytes.

Two specifications that ask for the same graph have the same canonical bytes, so these name the graph in the cache.
Nothing here imports Numba: the HTTP process reads specifications without paying for a compiler.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

from pcct_core.errors import InvalidPoints, InvalidSpec

Kind: TypeAlias = Literal["knn", "vecchia", "radius"]
Gate: TypeAlias = Literal["auto", "lookup", "off"]
Order: TypeAlias = Literal["maximin", "hilbert", "random", "coordinate", "given"]

KINDS: tuple[Kind, ...] = ("knn", "vecchia", "radius")
ORDERS: tuple[Order, ...] = ("maximin", "hilbert", "random", "coordinate", "given")

INDUCING_METHODS = ("maximin", "random")
GATES: tuple[Gate, ...] = ("auto", "lookup", "off")

DEFAULT_K = 30
MAX_PAIRS = 1 << 30  # of a radius graph, unless told otherwise: 12 GiB of neighbors and distances in float64
MAX_SEED = 2**63 - 1
MAX_COUNT = 2**31 - 1
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Euclidean:
    """Euclidean distance after dividing every coordinate by its lengthscale.

    lengthscale: None (ones; 1.0 becomes None), one positive number, or one per dimension; unit of the coordinates.
    """

    lengthscale: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        scale = _lengthscale(self.lengthscale)
        object.__setattr__(self, "lengthscale", None if scale == 1.0 else scale)

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


@dataclass(frozen=True)
class Kernel:
    """A stationary covariance kernel; use RBF, Matern12, Matern32 or Matern52.

    variance: marginal variance, positive. lengthscale: one positive number, or one per dimension; unit of the coordinates.
    """

    lengthscale: float | tuple[float, ...] = 1.0
    variance: float = 1.0
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.name not in KERNELS:
            raise InvalidSpec(f"a kernel is one of {', '.join(KERNELS)}", "metric.kernel")
        if self.lengthscale is None:
            raise InvalidSpec("lengthscale is missing; use a positive number or a list of them", "metric.lengthscale")
        object.__setattr__(self, "lengthscale", _lengthscale(self.lengthscale))
        object.__setattr__(self, "variance", _positive(self.variance, "variance"))


class RBF(Kernel):
    """exp(-r²/2), the squared exponential."""

    name = "rbf"


class Matern12(Kernel):
    """exp(-r), the exponential."""

    name = "matern12"


class Matern32(Kernel):
    """(1 + √3 r) exp(-√3 r)."""

    name = "matern32"


class Matern52(Kernel):
    """(1 + √5 r + 5 r²/3) exp(-√5 r)."""

    name = "matern52"


KERNELS: dict[str, type[Kernel]] = {}
KERNELS.update({kernel.name: kernel for kernel in (RBF, Matern12, Matern32, Matern52)})


@dataclass(frozen=True)
class Inducing:
    """How many inducing points are chosen among the points, and how.

    count:  their number m, 1 ≤ m ≤ n.
    method: "maximin" (the first m of the exact maximin order over the scaled points) or "random" (seeded).
    seed:   of "random".
    """

    count: int = 512
    method: Literal["maximin", "random"] = "maximin"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", _whole(self.count, 1, MAX_COUNT, "metric.inducing.count"))
        if self.method not in INDUCING_METHODS:
            raise InvalidSpec(
                f"inducing method is {self.method!r}; use one of {', '.join(INDUCING_METHODS)}",
                "metric.inducing.method",
            )
        object.__setattr__(self, "seed", _whole(self.seed, 0, MAX_SEED, "metric.inducing.seed"))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the seed only where it is read."""
        out: dict[str, Any] = {"count": self.count, "method": self.method}
        if self.method == "random":
            out["seed"] = self.seed
        return out


@dataclass(frozen=True)
class Stored:
    """An array by the name of its content: the SHA-256 that a dataset's id is; with the array itself once it is at hand."""

    id: str
    array: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _SHA256.fullmatch(self.id):
            raise InvalidSpec(f"{self.id!r} is not a dataset id; it has 64 hexadecimal digits", "metric")


@dataclass(frozen=True)
class Residual:
    """The residual correlation of a VIF model: distance sqrt(1 - |rho|) of what inducing points leave unexplained.

    kernel:   RBF, Matern12, Matern32 or Matern52.
    inducing: a number of inducing points, an `Inducing`, an array (m, d) of them, or a `Stored` one.
    jitter:   added to the diagonal of their kernel matrix, in units of the variance; ≥ 0.
    floor:    least residual variance, in units of the variance; > 0.
    factors:  (V, p) instead of inducing points: see `from_factors`.
    """

    kernel: Kernel
    inducing: Inducing | Stored | None = field(default_factory=Inducing)
    jitter: float = 1e-6
    floor: float = 1e-9
    factors: tuple[Stored, Stored] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            raise InvalidSpec(
                f"kernel is {self.kernel!r}; use pcct_core.Matern52(...) or another kernel", "metric.kernel"
            )
        if self.factors is None and not isinstance(self.inducing, Inducing | Stored):
            given: Any = self.inducing
            if isinstance(given, int) and not isinstance(given, bool):
                object.__setattr__(self, "inducing", Inducing(given))
            elif hasattr(given, "shape"):
                object.__setattr__(self, "inducing", stored_array(given, "metric.inducing"))
            else:
                raise InvalidSpec(
                    f"inducing is {given!r}; use a number, an Inducing, or an array (m, d)", "metric.inducing"
                )
        if (
            isinstance(self.jitter, bool)
            or not isinstance(self.jitter, int | float)
            or not 0.0 <= self.jitter < math.inf
        ):
            raise InvalidSpec(f"jitter is {self.jitter!r}; use a number of at least 0", "metric.jitter")
        object.__setattr__(self, "jitter", float(self.jitter))
        object.__setattr__(self, "floor", _positive(self.floor, "floor"))

    @classmethod
    def from_factors(cls, V: Any, p: Any, kernel: Kernel) -> Residual:
        """Use given factors: V (n, m), rows of the explained part, and p (n,), residual variances > 0, both float64."""
        return cls(kernel, inducing=None, factors=(stored_array(V, "metric.v"), stored_array(p, "metric.p")))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, every field stated; arrays by the hash of their content."""
        scale = self.kernel.lengthscale
        out: dict[str, Any] = {
            "type": "residual",
            "kernel": self.kernel.name,
            "variance": self.kernel.variance,
            "lengthscale": list(scale) if isinstance(scale, tuple) else scale,
        }
        if self.factors is not None:
            return out | {"v": self.factors[0].id, "p": self.factors[1].id}
        assert self.inducing is not None  # noqa: S101  (the constructor refuses it)
        inducing = {"dataset": self.inducing.id} if isinstance(self.inducing, Stored) else self.inducing.to_json()
        return out | {"inducing": inducing, "jitter": self.jitter, "floor": self.floor}


Metric: TypeAlias = Euclidean | Haversine | Cosine | Residual
METRICS: tuple[str, ...] = ("euclidean", "haversine", "cosine", "residual")


@dataclass(frozen=True)
class Accuracy:
    """The recall of true neighbors that a graph must be certified for, at a confidence; both above 0 and below 1."""

    recall: float = 0.999
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("recall", "confidence"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < 1.0:
                raise InvalidSpec(f"{name} is {value!r}; use a number above 0 and below 1", f"accuracy.{name}")
            object.__setattr__(self, name, float(value))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"recall": self.recall, "confidence": self.confidence}


@dataclass(frozen=True)
class GraphSpec:
    """A wanted graph: kind, number of neighbors or radius, metric, and for Vecchia graphs the order.

    kind:     "knn" (each row lists its k nearest other points), "vecchia" (the k nearest among earlier ranks) or "radius"
              (all other points within a radius).
    k:        neighbors per row, 1 ≤ k < n; 0 in the specification of a radius graph, which takes none.
    metric:   `Euclidean`, `Haversine`, `Cosine` or `Residual`.
    order:    Vecchia only: "maximin", "hilbert", "random", "coordinate" or "given" (the rows as they come).
    seed:     seeds the random order; no other order reads it.
    accuracy: "exact", or for the residual metric an `Accuracy` (or its recall alone), which is its default; graphs under
              the other metrics are always exact.
    gate:     residual metric only: "auto" learns a gate or reuses one, "lookup" only reuses one, "off" scans all pairs.
    radius:   radius graphs only: largest distance of a neighbor, itself included, in the metric's unit; ≥ 0.
    """

    kind: Kind = "knn"
    k: int = DEFAULT_K
    metric: Metric = field(default_factory=Euclidean)
    order: Order = "maximin"
    seed: int = 0
    accuracy: Accuracy | Literal["exact"] | float | None = None
    gate: Gate = "auto"
    radius: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidSpec(f"kind is {self.kind!r}; use one of {', '.join(KINDS)}", "kind")
        if self.kind == "radius":
            self._check_radius()
        elif self.radius is not None:
            raise InvalidSpec(f"a {self.kind} graph has no radius; leave it out, or use the kind 'radius'", "radius")
        else:
            object.__setattr__(self, "k", _whole(self.k, 1, MAX_COUNT, "k"))
        if self.order not in ORDERS:
            raise InvalidSpec(f"order is {self.order!r}; use one of {', '.join(ORDERS)}", "order")
        object.__setattr__(self, "seed", _whole(self.seed, 0, MAX_SEED, "seed"))
        if self.gate not in GATES:
            raise InvalidSpec(f"gate is {self.gate!r}; use one of {', '.join(GATES)}", "gate")
        if self.gate != "auto" and not isinstance(self.metric, Residual):
            raise InvalidSpec("only the residual metric has a gate; leave it out", "gate")
        object.__setattr__(self, "accuracy", self._accuracy())

    def _check_radius(self) -> None:
        if self.k not in (0, DEFAULT_K):
            raise InvalidSpec("a radius graph lists all points within its radius; leave out k", "k")
        if isinstance(self.metric, Residual):
            raise InvalidSpec(
                "the residual metric takes no radius: almost all points are nearly 1 apart there; "
                "use 'euclidean' with the kernel's lengthscale, or ask for k neighbors",
                "metric.type",
            )
        object.__setattr__(self, "k", 0)
        object.__setattr__(self, "radius", read_radius(self.radius))

    def _accuracy(self) -> Accuracy | Literal["exact"]:
        wanted: Any = self.accuracy
        if not isinstance(self.metric, Residual):
            if wanted is None or wanted == "exact":
                return "exact"
            raise InvalidSpec(
                f"accuracy is {wanted!r}; graphs under this metric are always exact: leave it out or use 'exact'",
                "accuracy",
            )
        if wanted == "exact" or isinstance(wanted, Accuracy):
            return "exact" if wanted == "exact" else wanted
        if wanted is None:
            return Accuracy()
        if isinstance(wanted, float):
            return Accuracy(recall=wanted)
        raise InvalidSpec(f"accuracy is {wanted!r}; use 'exact', or a recall such as 0.999", "accuracy")

    @classmethod
    def from_json(cls, data: object) -> GraphSpec:
        """Read a specification from parsed JSON.

        Raises InvalidSpec when a field is unknown, of the wrong type, or out of range.
        """
        if not isinstance(data, Mapping):
            raise InvalidSpec("the specification must be a JSON object such as {'kind': 'knn', 'k': 30}", "spec")
        known = {"kind", "k", "radius", "metric", "order", "seed", "accuracy", "gate"}
        _refuse_unknown(data, known, "")
        if data.get("kind") == "radius" and "k" in data:
            raise InvalidSpec("a radius graph lists all points within its radius; leave out k", "k")
        fields = {name: data[name] for name in known if name in data and name not in ("metric", "accuracy")}
        if "metric" in data:
            fields["metric"] = metric_from_json(data["metric"])
        if "accuracy" in data:
            fields["accuracy"] = _accuracy_from_json(data["accuracy"])
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Return the normal form: every field that the graph depends on, and no other."""
        out: dict[str, Any] = {"kind": self.kind, "metric": self.metric.to_json()}
        if self.kind == "radius":
            out["radius"] = self.radius
        else:
            out["k"] = self.k
        if self.kind == "vecchia":
            out["order"] = self.order
            if self.order == "random":
                out["seed"] = self.seed
        if isinstance(self.accuracy, Accuracy):
            out["accuracy"] = self.accuracy.to_json()
            out["gate"] = self.gate
        else:
            out["accuracy"] = "exact"
        return out

    def references(self) -> tuple[str, ...]:
        """Return the ids of the datasets that the specification names beside the points."""
        return tuple(stored.id for stored in _stored_in(self.metric))

    def with_arrays(self, arrays: Mapping[str, Any]) -> GraphSpec:
        """Return the specification with the arrays of its references at hand; arrays: by id, one for each."""
        metric = self.metric
        if not isinstance(metric, Residual) or not _stored_in(metric):
            return self
        if metric.factors is not None:
            v, p = (Stored(stored.id, arrays[stored.id]) for stored in metric.factors)
            return replace(self, metric=replace(metric, factors=(v, p)))
        (inducing,) = _stored_in(metric)
        return replace(self, metric=replace(metric, inducing=Stored(inducing.id, arrays[inducing.id])))

    def canonical(self) -> bytes:
        """Return the normal form as sorted, compact JSON: same graph wanted, same bytes."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _stored_in(metric: Metric) -> tuple[Stored, ...]:
    if not isinstance(metric, Residual):
        return ()
    if metric.factors is not None:
        return metric.factors
    return (metric.inducing,) if isinstance(metric.inducing, Stored) else ()


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
    if kind == "residual":
        return _residual_from_json(data)
    raise InvalidSpec(f"metric type is {kind!r}; use one of {', '.join(METRICS)}", "metric.type")


def _refuse_unknown(data: Mapping[Any, Any], known: set[str], prefix: str) -> None:
    for name in data:
        if name not in known:
            raise InvalidSpec(f"unknown field {prefix}{name}; known are {', '.join(sorted(known))}", f"{prefix}{name}")


def _residual_from_json(data: Mapping[Any, Any]) -> Residual:
    known = {"type", "kernel", "variance", "lengthscale", "inducing", "jitter", "floor", "v", "p"}
    _refuse_unknown(data, known, "metric.")
    name = data.get("kernel")
    if not isinstance(name, str) or name not in KERNELS:
        raise InvalidSpec(f"metric.kernel is {name!r}; use one of {', '.join(KERNELS)}", "metric.kernel")
    kernel = KERNELS[name](data.get("lengthscale", 1.0), data.get("variance", 1.0))
    fields = {field: data[field] for field in ("jitter", "floor") if field in data}
    if "v" in data or "p" in data:
        if "v" not in data or "p" not in data or "inducing" in data:
            raise InvalidSpec("give both v and p, and no inducing points, or inducing points alone", "metric.v")
        return Residual(kernel, None, factors=(Stored(data["v"]), Stored(data["p"])), **fields)
    if "inducing" in data:
        fields["inducing"] = _inducing_from_json(data["inducing"])
    return Residual(kernel, **fields)


def _inducing_from_json(data: object) -> Inducing | Stored:
    if isinstance(data, int) and not isinstance(data, bool):
        return Inducing(data)
    if not isinstance(data, Mapping):
        raise InvalidSpec("inducing must be a number or an object such as {'count': 512}", "metric.inducing")
    if "dataset" in data:
        _refuse_unknown(data, {"dataset"}, "metric.inducing.")
        return Stored(data["dataset"])
    _refuse_unknown(data, {"count", "method", "seed"}, "metric.inducing.")
    return Inducing(**data)


def _accuracy_from_json(data: object) -> Any:
    if data is None:
        raise InvalidSpec("accuracy is null; leave it out, or use 'exact' or a recall such as 0.999", "accuracy")
    if not isinstance(data, Mapping):
        return data
    _refuse_unknown(data, {"recall", "confidence"}, "accuracy.")
    return Accuracy(**data)


def stored_array(values: Any, name: str) -> Stored:
    """Return an array with the hash of its content: the SHA-256 of the bytes that `np.save` writes for it.

    values: real numbers, as `arrays.read_numbers` takes them; kept as float64. name: the field that holds them.
    Raises InvalidSpec for anything else, for masked values, and for whole numbers that float64 would round.
    """
    import hashlib
    import io

    import numpy as np

    from pcct_core.arrays import check_exact, read_numbers

    subject, called = _ARRAY_NAMES[name]
    try:
        array = read_numbers(values, subject, called)
        check_exact(values, array, subject, called)
    except InvalidPoints as error:
        raise InvalidSpec(str(error), name) from error
    array = np.ascontiguousarray(array, dtype=np.float64)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Stored(hashlib.sha256(buffer.getbuffer()).hexdigest(), array)


# What messages call the arrays of a specification, and what the code in them does.
_ARRAY_NAMES = {
    "metric.inducing": ("inducing points", "Z"),
    "metric.v": ("factors V", "V"),
    "metric.p": ("factors p", "p"),
}


def _whole(value: Any, least: int, most: int, name: str) -> int:
    """Return a whole number of any type, NumPy's too, as an int; bools and anything out of range are refused."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        upper = "at least 1" if most == MAX_COUNT else "from 0 to 2^63 - 1"
        raise InvalidSpec(f"{name} is {value!r}; use a whole number {upper}", name)
    return number


def read_radius(value: object) -> float:
    """Return a radius as a float, finite and at least 0; raises InvalidSpec for anything else."""
    fix = "use a finite number of at least 0, in the unit of the metric"
    if value is None:
        raise InvalidSpec(f"radius is missing; {fix}", "radius")
    try:
        radius = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:
        radius = math.inf
    if not 0.0 <= radius < math.inf:
        raise InvalidSpec(f"radius is {str(value)[:40]}; {fix}", "radius")
    return radius + 0.0  # -0.0 is the same radius, and gets the same bytes


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


def _positive(value: object, name: str = "lengthscale") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidSpec(f"{name} {value!r} is not a number", f"metric.{name}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (0.0 < number < math.inf):
        raise InvalidSpec(f"{name} {number} is not positive and finite", f"metric.{name}")
    return number
