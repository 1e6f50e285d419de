"""What graph is wanted: `GraphSpec`, its JSON form and its canonical bytes.

Two specifications that ask for the same graph have the same canonical bytes, so these name the graph in the cache.
Nothing here imports Numba: the HTTP process reads specifications without paying for a compiler.
"""

from __future__ import annotations

import difflib
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
_LONGEST_SHOWN = 60
_LONGEST_BITS = 128


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
        method = _choice(self.method, INDUCING_METHODS, "inducing method", "metric.inducing.method")
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "seed", _whole(self.seed, 0, MAX_SEED, "metric.inducing.seed"))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the seed only where it is read."""
        out: dict[str, Any] = {"count": self.count, "method": self.method}
        if self.method == "random":
            out["seed"] = self.seed
        return out


@dataclass(frozen=True)
class Stored:
    """An array by the name of its content: the SHA-256 that a dataset's id is; with the array itself once it is at hand.

    columns: what its columns are called, where it came as a data frame.
    """

    id: str
    array: Any = field(default=None, compare=False, repr=False)
    columns: tuple[str, ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _SHA256.fullmatch(self.id):
            raise InvalidSpec(f"{_shown(self.id)} is not a dataset id; it has 64 hexadecimal digits", "metric")


@dataclass(frozen=True)
class Residual:
    """The residual correlation of a VIF model: distance sqrt(1 - |rho|) of what inducing points leave unexplained.

    kernel:   RBF, Matern12, Matern32 or Matern52; or one's name, or its JSON, such as {"type": "rbf", "lengthscale": 0.3}.
    inducing: a number of inducing points, an `Inducing` or its JSON, an array (m, d) of them, or a `Stored` one.
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
        object.__setattr__(self, "kernel", read_kernel(self.kernel))
        if self.factors is None:
            object.__setattr__(self, "inducing", _read_inducing(self.inducing))
        jitter = _real(self.jitter)
        if jitter is None or not 0.0 <= jitter < math.inf:
            raise InvalidSpec(f"jitter is {_shown(self.jitter)}; use a number of at least 0", "metric.jitter")
        object.__setattr__(self, "jitter", jitter)
        object.__setattr__(self, "floor", _positive(self.floor, "floor"))

    @classmethod
    def from_factors(cls, V: Any, p: Any, kernel: Any) -> Residual:
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
            value = _real(getattr(self, name))
            if value is None or not 0.0 < value < 1.0:
                said = _shown(getattr(self, name))
                raise InvalidSpec(f"{name} is {said}; use a number above 0 and below 1", f"accuracy.{name}")
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"recall": self.recall, "confidence": self.confidence}


@dataclass(frozen=True)
class GraphSpec:
    """A wanted graph: kind, number of neighbors or radius, metric, and for Vecchia graphs the order.

    kind:     "knn" (each row lists its k nearest other points), "vecchia" (the k nearest among earlier ranks) or "radius"
              (all other points within a radius).
    k:        neighbors per row, 1 ≤ k < n; 0 in the specification of a radius graph, which takes none.
    metric:   `Euclidean`, `Haversine`, `Cosine` or `Residual`; or its name or JSON, which become one.
    order:    Vecchia only: "maximin", "hilbert", "random", "coordinate" or "given" (the rows as they come); or an order of your
              own, an array (n,) that holds the row of each rank, which becomes a `Stored` one.
    seed:     seeds the random order; no other order reads it.
    accuracy: "exact", or for the residual metric an `Accuracy` (or its recall alone), which is its default; graphs under
              the other metrics are always exact.
    gate:     residual metric only: "auto" learns a gate or reuses one, "lookup" only reuses one, "off" scans all pairs.
    radius:   radius graphs only: largest distance of a neighbor, itself included, in the metric's unit; ≥ 0.
    groups:   neighbors are looked for within a point's group alone: labels (n,), numbers, strings, times or a list of any of
              them, which become a `Stored` column; None for one group of all points. Where a group has fewer than k others,
              neighbors are -1 at distance inf. Not under the residual metric.
    """

    kind: Kind = "knn"
    k: int = DEFAULT_K
    metric: Metric = field(default_factory=Euclidean)
    order: Order | Stored = "maximin"
    seed: int = 0
    accuracy: Accuracy | Literal["exact"] | float | None = None
    gate: Gate = "auto"
    radius: float | None = None
    groups: Stored | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", _choice(self.kind, KINDS, "kind", "kind"))
        object.__setattr__(self, "metric", read_metric(self.metric))
        if self.kind == "radius":
            self._check_radius()
        elif self.radius is not None:
            raise InvalidSpec(f"a {self.kind} graph has no radius; leave it out, or use the kind 'radius'", "radius")
        else:
            object.__setattr__(self, "k", _whole(self.k, 1, MAX_COUNT, "k"))
        object.__setattr__(self, "order", _read_order(self.order))
        object.__setattr__(self, "seed", _whole(self.seed, 0, MAX_SEED, "seed"))
        object.__setattr__(self, "gate", _choice(self.gate, GATES, "gate", "gate"))
        if self.gate != "auto" and not isinstance(self.metric, Residual):
            raise InvalidSpec("only the residual metric has a gate; leave it out", "gate")
        object.__setattr__(self, "accuracy", self._accuracy())
        object.__setattr__(self, "groups", self._groups())

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
        wanted: Any = _plain(self.accuracy)
        if isinstance(wanted, str) and wanted == "exact":
            return "exact"
        if isinstance(wanted, Mapping):
            _refuse_unknown(wanted, {"recall", "confidence"}, "accuracy.")
        if not isinstance(self.metric, Residual):
            if wanted is None:
                return "exact"
            raise InvalidSpec(
                f"accuracy is {_shown(wanted)}; graphs under this metric are always exact: leave it out or use 'exact'",
                "accuracy",
            )
        if wanted is None:
            return Accuracy()
        if isinstance(wanted, Accuracy):
            return wanted
        if isinstance(wanted, Mapping):
            return Accuracy(**wanted)
        if isinstance(wanted, str) or _real(wanted) is None or isinstance(wanted, int):
            raise InvalidSpec(f"accuracy is {_shown(wanted)}; use 'exact', or a recall such as 0.999", "accuracy")
        return Accuracy(recall=wanted)

    def _groups(self) -> Stored | None:
        if self.groups is not None and isinstance(self.metric, Residual):
            raise InvalidSpec(
                "the residual metric takes no groups: its inducing points and the audit behind its certificate are of all "
                "points together; build a graph for each group, or use 'euclidean' with the kernel's lengthscale",
                "groups",
            )
        return _read_groups(self.groups)

    @classmethod
    def from_json(cls, data: object) -> GraphSpec:
        """Read a specification from parsed JSON.

        Raises InvalidSpec when a field is unknown, of the wrong type, or out of range, or holds an array in place of the id
        of a dataset.
        """
        spec = cls.from_mapping(data)
        for name, stored in spec._stored().items():
            if stored.array is not None:
                raise InvalidSpec(f"{name} is a list; upload it as a dataset and name that: {{'dataset': id}}", name)
        return spec

    @classmethod
    def from_mapping(cls, data: object) -> GraphSpec:
        """Read a specification from a dictionary in its JSON form, whose values may also be what `GraphSpec` takes itself.

        Raises InvalidSpec when a field is unknown, of the wrong type, or out of range.
        """
        if not isinstance(data, Mapping):
            raise InvalidSpec("the specification must be a JSON object such as {'kind': 'knn', 'k': 30}", "spec")
        known = {"kind", "k", "radius", "metric", "order", "seed", "accuracy", "gate", "groups"}
        _refuse_unknown(data, known, "")
        if isinstance(_plain(data.get("kind")), str) and _plain(data["kind"]) == "radius" and "k" in data:
            raise InvalidSpec("a radius graph lists all points within its radius; leave out k", "k")
        if "accuracy" in data and data["accuracy"] is None:
            raise InvalidSpec("accuracy is null; leave it out, or use 'exact' or a recall such as 0.999", "accuracy")
        return cls(**{name: data[name] for name in known if name in data})

    def to_json(self) -> dict[str, Any]:
        """Return the normal form: every field that the graph depends on, and no other."""
        out: dict[str, Any] = {"kind": self.kind, "metric": self.metric.to_json()}
        if self.kind == "radius":
            out["radius"] = self.radius
        else:
            out["k"] = self.k
        if self.kind == "vecchia":
            given = isinstance(self.order, Stored)
            out["order"] = {"by": "given", "dataset": self.order.id} if isinstance(self.order, Stored) else self.order
            if not given and self.order == "random":
                out["seed"] = self.seed
        if isinstance(self.accuracy, Accuracy):
            out["accuracy"] = self.accuracy.to_json()
            out["gate"] = self.gate
        else:
            out["accuracy"] = "exact"
        if self.groups is not None:
            out["groups"] = {"dataset": self.groups.id}
        return out

    def references(self) -> tuple[str, ...]:
        """Return the ids of the datasets that the specification names beside the points."""
        return tuple(stored.id for stored in self._stored().values())

    def _stored(self) -> dict[str, Stored]:
        """Return the arrays that the specification names by content, by field."""
        return stored_in(self.metric) | self.columns()

    def columns(self) -> dict[str, Stored]:
        """Return the stored arrays of one value a row, by field."""
        order = self.order if self.kind == "vecchia" else None
        columns = {"order": order, "groups": self.groups}
        return {name: column for name, column in columns.items() if isinstance(column, Stored)}

    def with_arrays(self, arrays: Mapping[str, Any]) -> GraphSpec:
        """Return the specification with the arrays of its references at hand; arrays: by id, one for each."""
        columns: dict[str, Any] = {
            name: Stored(column.id, arrays[column.id]) for name, column in self.columns().items() if column.id in arrays
        }
        return replace(self, metric=metric_with_arrays(self.metric, arrays), **columns)

    def canonical(self) -> bytes:
        """Return the normal form as sorted, compact JSON: same graph wanted, same bytes."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def metric_references(metric: Metric) -> tuple[str, ...]:
    """Return the ids of the datasets that a metric names."""
    return tuple(stored.id for stored in stored_in(metric).values())


def metric_with_arrays(metric: Metric, arrays: Mapping[str, Any]) -> Metric:
    """Return a metric with the arrays of its references at hand; arrays: by id, one for each."""
    if not isinstance(metric, Residual) or not stored_in(metric):
        return metric
    if metric.factors is not None:
        v, p = (Stored(stored.id, arrays[stored.id]) for stored in metric.factors)
        return replace(metric, factors=(v, p))
    (inducing,) = stored_in(metric).values()
    return replace(metric, inducing=Stored(inducing.id, arrays[inducing.id]))


def stored_in(metric: Metric) -> dict[str, Stored]:
    """Return the arrays that a metric names by content, by field."""
    if not isinstance(metric, Residual):
        return {}
    if metric.factors is not None:
        return {"metric.v": metric.factors[0], "metric.p": metric.factors[1]}
    return {"metric.inducing": metric.inducing} if isinstance(metric.inducing, Stored) else {}


# Names of other libraries, and what asks for the same here; compared in lower case, without what is no letter or digit.
_OTHER_METRICS = {
    **dict.fromkeys(("l2", "l2norm", "euclid", "minkowski", "p2", "2norm"), "use 'euclidean'"),
    **dict.fromkeys(
        ("sqeuclidean", "squaredeuclidean", "l2sq", "l2squared"),
        "use 'euclidean', which has the same neighbors, and square its distances",
    ),
    **dict.fromkeys(
        ("seuclidean", "standardizedeuclidean"), "use 'euclidean' with the standard deviations as lengthscale"
    ),
    "mahalanobis": "use 'euclidean' on X @ np.linalg.cholesky(VI), VI the inverse covariance",
    **dict.fromkeys(
        ("greatcircle", "geodesic", "vincenty", "gcd", "sphere", "spherical", "geo", "lonlat", "latlon"),
        "use 'haversine', on (longitude, latitude) in degrees",
    ),
    **dict.fromkeys(("cos", "angular", "cosinesimilarity", "cosinedistance"), "use 'cosine'"),
    **dict.fromkeys(("correlation", "pearson"), "use 'cosine' on X - X.mean(axis=1, keepdims=True)"),
    **dict.fromkeys(("dot", "ip", "innerproduct"), "use 'cosine', which orders rows of one length as that does"),
}
_OTHER_KERNELS = {
    **dict.fromkeys(("gaussian", "squaredexponential", "sqexp", "se", "exponentiatedquadratic", "expquad"), "rbf"),
    **dict.fromkeys(("exponential", "laplace", "laplacian", "ou", "absexp", "matern05"), "matern12"),
    "matern15": "matern32",
    "matern25": "matern52",
}


def read_metric(value: object) -> Metric:
    """Return a metric: one as it is, of its name, of its JSON form (an object with a `type`), or of its class.

    Raises InvalidSpec for anything else, and says which is meant where the name is that of another library.
    """
    if isinstance(value, Metric):
        return value
    value = _plain(value)
    if isinstance(value, str):
        value = {"type": value}
    if isinstance(value, Mapping) and "type" in value:
        return _metric_of_type(value)
    if value is Residual:
        raise InvalidSpec("the residual metric needs a kernel; use pcct_core.Residual('matern52')", "metric")
    if isinstance(value, type) and issubclass(value, Euclidean | Haversine | Cosine):
        return value()
    if isinstance(value, Kernel) or (isinstance(value, type) and issubclass(value, Kernel)):
        name = value.__name__ if isinstance(value, type) else type(value).__name__
        raise InvalidSpec(_kernel_as_metric(name), "metric")
    if callable(value):
        raise InvalidSpec(
            f"metric is the function {getattr(value, '__name__', value)!s:.40}, and functions are not taken; "
            f"use one of {', '.join(METRICS)}",
            "metric",
        )
    said = "" if value is None else f", or an object with a 'type' such as {Euclidean(2.0).to_json()}"
    raise InvalidSpec(f"metric is {_shown(value)}; use one of {', '.join(METRICS)}{said}", "metric")


def _metric_of_type(data: Mapping[Any, Any]) -> Metric:
    kind = _plain(data["type"])
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
    if isinstance(kind, str) and (kind in KERNELS or _bare(kind) in _OTHER_KERNELS):
        raise InvalidSpec(_kernel_as_metric(_OTHER_KERNELS.get(_bare(kind), kind)), "metric.type")
    fix = _advised(kind, METRICS, _OTHER_METRICS)
    raise InvalidSpec(f"metric type is {_shown(kind)}; {fix}", "metric.type")


def _kernel_as_metric(name: str) -> str:
    return (
        f"{name} is a kernel and no metric; use 'residual' with this kernel and inducing points, or 'euclidean' with its "
        "lengthscale, which has the same neighbors as the kernel alone"
    )


def read_kernel(value: object) -> Kernel:
    """Return a kernel: one as it is, of its name, of its JSON, {"type", "lengthscale", "variance"}, or of its class.

    Raises InvalidSpec for anything else.
    """
    if isinstance(value, Kernel):
        return value
    if isinstance(value, type) and issubclass(value, Kernel):
        return value()
    if isinstance(value, Mapping) and "type" in value:
        _refuse_unknown(value, {"type", "lengthscale", "variance"}, "metric.kernel.")
        return _kernel_named(
            value["type"], {name: value[name] for name in ("lengthscale", "variance") if name in value}
        )
    return _kernel_named(value, {})


def _kernel_named(name: object, fields: Mapping[str, Any]) -> Kernel:
    name = _plain(name)
    if isinstance(name, str) and name in KERNELS:
        return KERNELS[name](**fields)
    meant = {other: f"use {kernel!r}" for other, kernel in _OTHER_KERNELS.items()}
    meant["matern"] = "use 'matern12', 'matern32' or 'matern52', by its smoothness"
    raise InvalidSpec(f"kernel is {_shown(name)}; {_advised(name, tuple(KERNELS), meant)}", "metric.kernel")


def _bare(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _advised(name: object, names: Sequence[str], others: Mapping[str, str]) -> str:
    """Return which of the names is meant, where that can be told, or all of them."""
    if isinstance(name, str):
        bare = _bare(name)
        if bare in others:
            return others[bare]
        near = difflib.get_close_matches(bare, names, 1, 0.75)
        # Another number is another thing, as of a Matérn kernel, and no slip.
        if near and _digits(bare) in ("", _digits(near[0])):
            return f"use {near[0]!r}"
    return f"use one of {', '.join(names)}"


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


def _refuse_unknown(data: Mapping[Any, Any], known: set[str], prefix: str) -> None:
    for name in data:
        if name not in known:
            raise InvalidSpec(f"unknown field {prefix}{name}; known are {', '.join(sorted(known))}", f"{prefix}{name}")


def _residual_from_json(data: Mapping[Any, Any]) -> Residual:
    known = {"type", "kernel", "variance", "lengthscale", "inducing", "jitter", "floor", "v", "p"}
    _refuse_unknown(data, known, "metric.")
    beside = {name: data[name] for name in ("lengthscale", "variance") if name in data}
    kernel = _plain(data.get("kernel"))
    if isinstance(kernel, str) or kernel is None:
        kernel = _kernel_named(kernel, beside)
    elif beside:
        name = next(iter(beside))
        raise InvalidSpec(
            f"{name} belongs to the kernel, which is given whole; leave it out beside it", f"metric.{name}"
        )
    kernel = read_kernel(kernel)
    fields = {field: data[field] for field in ("jitter", "floor") if field in data}
    if "v" in data or "p" in data:
        if "v" not in data or "p" not in data or "inducing" in data:
            raise InvalidSpec("give both v and p, and no inducing points, or inducing points alone", "metric.v")
        return Residual(kernel, None, factors=(Stored(data["v"]), Stored(data["p"])), **fields)
    return Residual(kernel, **fields, **({"inducing": data["inducing"]} if "inducing" in data else {}))


def _read_inducing(value: Any) -> Inducing | Stored:
    """Return inducing points: a number of them, an `Inducing` or its JSON, or an array of points."""
    if isinstance(value, Inducing | Stored):
        return value
    if isinstance(value, Mapping):
        if "dataset" in value:
            _refuse_unknown(value, {"dataset"}, "metric.inducing.")
            return Stored(value["dataset"])
        _refuse_unknown(value, {"count", "method", "seed"}, "metric.inducing.")
        return Inducing(**value)
    if _real(value) is not None:
        return Inducing(value)
    if getattr(value, "shape", ()) != () or isinstance(value, list | tuple):
        return stored_array(value, "metric.inducing")
    raise InvalidSpec(
        f"inducing is {_shown(value)}; use a number, an object such as {{'count': 512}}, or an array (m, d)",
        "metric.inducing",
    )


def _stored_column(id: object, name: str) -> Stored:
    if not isinstance(id, str) or not _SHA256.fullmatch(id):
        raise InvalidSpec(f"{name} names {_shown(id)}, which is no dataset id; it has 64 hexadecimal digits", name)
    return Stored(id)


def _read_order(value: Any) -> Order | Stored:
    """Return an order: its name, {"by": name}, a stored one, or an array of the row of each rank."""
    if isinstance(value, Mapping):
        by = _choice(value.get("by"), ORDERS, "order.by", "order.by")
        given = by == "given" and "dataset" in value
        _refuse_unknown(value, {"by", "dataset"} if by == "given" else {"by"}, "order.")
        value = _stored_column(value["dataset"], "order") if given else by
    if isinstance(value, Stored):
        return value
    value = _plain(value)
    if hasattr(value, "shape") or isinstance(value, list | tuple | range):
        return store_order(value)
    name: Order = _choice(value, ORDERS, "order", "order", ", or an array with the row of each rank")
    return name


def _read_groups(value: Any) -> Stored | None:
    """Return groups: a stored column, {"dataset": id}, or labels; None for none."""
    if value is None or isinstance(value, Stored):
        return value
    if isinstance(value, Mapping):
        _refuse_unknown(value, {"dataset"}, "groups.")
        return _stored_column(value.get("dataset"), "groups")
    return store_groups(value)


def stored_array(values: Any, name: str) -> Stored:
    """Return an array with the hash of its content: the SHA-256 of the bytes that `np.save` writes for it.

    values: real numbers, as `arrays.read_numbers` takes them; kept as float64. name: the field that holds them.
    Raises InvalidSpec for anything else, for masked values, and for whole numbers that float64 would round.
    """
    from pcct_core.arrays import column_names

    return replace(_named_by_content(_read_array(values, name)), columns=column_names(values))


def align_inducing(metric: Metric, columns: tuple[str, ...] | None) -> Metric:
    """Return a metric whose inducing points have their columns in the order of the points', where both have names.

    columns: names of the points'. Raises InvalidSpec for inducing points whose columns have other names.
    """
    stored = metric.inducing if isinstance(metric, Residual) else None
    if not isinstance(metric, Residual) or not isinstance(stored, Stored):
        return metric
    import numpy as np

    from pcct_core.arrays import align_columns

    try:
        places = align_columns(columns, stored.columns, "inducing points", "Z")
    except InvalidPoints as error:
        raise InvalidSpec(str(error), "metric.inducing") from error
    if places is None:
        return metric
    aligned = _named_by_content(np.ascontiguousarray(stored.array[:, places]))
    return replace(metric, inducing=replace(aligned, columns=columns))


def store_order(values: Any) -> Stored:
    """Return an order of the caller's own with the hash of its content, the id that its upload as a dataset (n, 1) has.

    values: (n,) or (n, 1), the row of each rank: every whole number from 0 to n - 1 once.
    Raises InvalidSpec naming the first entry that is none of them, or is there already.
    """
    from pcct_core.columns import as_order

    return _named_by_content(as_order(_read_array(values, "order")))


def store_groups(labels: Any) -> Stored:
    """Return the groups that points are in with the hash of their content, the id that their upload as a dataset (n, 1) has.

    labels: (n,) or (n, 1), equal for points of one group. Raises InvalidSpec; see `columns.as_groups`.
    """
    from pcct_core.columns import as_groups

    return _named_by_content(as_groups(labels))


def _read_array(values: Any, name: str) -> Any:
    """Return the array of a field as float64; raises InvalidSpec as `stored_array` does."""
    import numpy as np

    from pcct_core.arrays import check_exact, read_numbers

    subject, called = _ARRAY_NAMES[name]
    try:
        array = read_numbers(values, subject, called)
        check_exact(values, array, subject, called)
    except InvalidPoints as error:
        raise InvalidSpec(str(error), name) from error
    return np.ascontiguousarray(array, dtype=np.float64)


def _named_by_content(array: Any) -> Stored:
    import hashlib
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Stored(hashlib.sha256(buffer.getbuffer()).hexdigest(), array)


# What messages call the arrays of a specification, and what the code in them does.
_ARRAY_NAMES = {
    "metric.inducing": ("inducing points", "Z"),
    "metric.v": ("factors V", "V"),
    "metric.p": ("factors p", "p"),
    "order": ("ranks of the order", "order"),
}


def _choice(value: object, choices: Sequence[str], name: str, field: str, more: str = "") -> Any:
    """Return one of the choices, which may come as an array of no dimensions; raises InvalidSpec for anything else."""
    plain = _plain(value)
    if not isinstance(plain, str) or plain not in choices:
        raise InvalidSpec(f"{name} is {_shown(value)}; use one of {', '.join(choices)}{more}", field)
    return str(plain)


def _shown(value: object) -> str:
    """Return a value as messages show it: what it stands for where it is a NumPy scalar, and not all of a long one."""
    plain = _plain(value)
    if isinstance(plain, int) and plain.bit_length() > _LONGEST_BITS:  # Python refuses to write very long ones
        return f"a whole number of {plain.bit_length()} bits"
    text = repr(plain if isinstance(plain, bool | int | float | str | None) else value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _plain(value: Any) -> Any:
    """Return the Python value of an array of no dimensions, as NumPy's scalars are; None of a masked one."""
    return value.tolist() if getattr(value, "shape", None) == () and hasattr(value, "tolist") else value


def _real(value: Any) -> float | None:
    """Return a real number of any type, NumPy's too, as a float; None for bools and all else."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _whole(value: Any, least: int, most: int, name: str) -> int:
    """Return a whole number of any type, NumPy's too, as an int; bools, floats and anything out of range are refused."""
    plain = _plain(value)
    try:
        number = None if isinstance(plain, bool) else operator.index(plain)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise InvalidSpec(f"{name} is {_shown(value)}; {_whole_fix(plain, least, most, name)}", name)
    return number


def _whole_fix(plain: object, least: int, most: int, name: str) -> str:
    """Return what to give in place of a value that is no whole number from `least` to `most`."""
    if isinstance(plain, float) and plain.is_integer() and least <= plain <= most:
        return f"use the whole number {int(plain)}, which is no float"
    if most == MAX_SEED:
        return f"use a whole number from {least} to 2^63 - 1"
    if most != MAX_COUNT:
        return f"use a whole number with {least} ≤ {name} ≤ {most}"
    above = isinstance(plain, int | float) and plain > most
    return f"use a whole number of at most {most}" if above else f"use a whole number of at least {least}"


def read_k(k: object, most: int) -> int:
    """Return a number of neighbors as an int, from 1 to `most`; raises InvalidSpec for anything else."""
    return _whole(k, 1, most, "k")


def read_max_pairs(value: object) -> int:
    """Return the most pairs that a radius graph may have, as an int of at least 0; raises InvalidSpec for anything else."""
    return _whole(value, 0, MAX_SEED, "max_pairs")


def read_radius(value: object) -> float:
    """Return a radius as a float, finite and at least 0; raises InvalidSpec for anything else."""
    fix = "use a finite number of at least 0, in the unit of the metric"
    if value is None:
        raise InvalidSpec(f"radius is missing; {fix}", "radius")
    radius = _real(value)
    if radius is None or not 0.0 <= radius < math.inf:
        raise InvalidSpec(f"radius is {_shown(value)}; {fix}", "radius")
    return radius + 0.0  # -0.0 is the same radius, and gets the same bytes


def _lengthscale(value: object) -> float | tuple[float, ...] | None:
    """Return a lengthscale as None, one float or a tuple of floats; all positive and finite."""
    if value is None:
        return None
    value = value.tolist() if hasattr(value, "tolist") else value  # arrays of any library, from Python callers
    if _real(value) is None and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise InvalidSpec(
            f"lengthscale is {_shown(value)}; use a positive number or a list of them", "metric.lengthscale"
        )
    if isinstance(value, Sequence):
        if not value:
            raise InvalidSpec(
                "lengthscale is an empty list; give one positive number per dimension", "metric.lengthscale"
            )
        return tuple(_positive(item) for item in value)
    return _positive(value)


def _positive(value: object, name: str = "lengthscale") -> float:
    number = _real(value)
    if number is None:
        raise InvalidSpec(f"{name} {_shown(value)} is not a number", f"metric.{name}")
    if not (0.0 < number < math.inf):
        raise InvalidSpec(f"{name} {number} is not positive and finite", f"metric.{name}")
    return number
