"""Tracks: moving pointers that training loops follow, what a refresh decides, and how versions are swapped.

A track is one hash. Its versions are numbered when they are requested, so published ones go up and may skip numbers:
only the newest requested one is ever built. `decide` is pure; every change of state is one Lua script that compares before it
sets, so a worker that stalled and comes back can neither lower a version nor mix two.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from pcct_core.errors import InvalidInput, InvalidSpec, PcctError
from pcct_core.points import lengthscale_of
from pcct_core.spec import Euclidean, GraphSpec, Metric, Residual, metric_from_json
from worker.metrics import Samples
from worker.store import Store

if TYPE_CHECKING:
    from worker.tasks import Queue

Outcome: TypeAlias = Literal["cached", "pending", "scheduled"]
Reason: TypeAlias = Literal[
    "unchanged",
    "cooldown",
    "within_tolerance",
    "not_due",
    "ready",
    "drift",
    "max_epochs",
    "power_of_two",
    "forced",
    "failed",
    "lost",
]
Standing: TypeAlias = Literal["published", "pending", "failed", "lost"]
EventName: TypeAlias = Literal["schedule", "skip_cached", "progress", "complete", "swap", "timeout", "async_error"]

SCHEDULES = ("drift", "powers_of_two")


class UnknownTrack(PcctError):
    """No track has this id, or not any more; `track` is the id."""

    def __init__(self, track: str) -> None:
        super().__init__(f"there is no track {track}; create one with POST /v1/tracks")
        self.track = track


class EpochBackwards(PcctError):
    """A refresh came with an epoch below one that the track has seen; `field` is "epoch"."""

    def __init__(self, epoch: int, seen: int) -> None:
        super().__init__(
            f"epoch {epoch} is before {seen}, which this track has seen; epochs only go up: use {seen} or more"
        )
        self.field = "epoch"


class NotAHyperparameter(InvalidInput):
    """A refresh would change more than lengthscale and variance; `field` names what, such as "metric.kernel"."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class RefreshPolicy:
    """When a refresh schedules a new version.

    tolerance:       largest |Δ log lengthscale| or |Δ log variance| that keeps the graph; at least 0.
    max_epochs:      a version is this many epochs old at most; at least 1. Not read by "powers_of_two".
    cooldown_epochs: fewest epochs between two versions, unless forced; at least 0.
    schedule:        "drift", or "powers_of_two": epochs 1, 2, 4, 8 …
    """

    tolerance: float = 0.05
    max_epochs: int = 5
    cooldown_epochs: int = 1
    schedule: Literal["drift", "powers_of_two"] = "drift"

    def __post_init__(self) -> None:
        tolerance = self.tolerance
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0.0 <= tolerance < math.inf:
            raise InvalidSpec(f"tolerance is {tolerance!r}; use a number of at least 0", "policy.tolerance")
        object.__setattr__(self, "tolerance", float(tolerance))
        for name, least in (("max_epochs", 1), ("cooldown_epochs", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidSpec(f"{name} is {value!r}; use a whole number of at least {least}", f"policy.{name}")
        if self.schedule not in SCHEDULES:
            raise InvalidSpec(f"schedule is {self.schedule!r}; use one of {', '.join(SCHEDULES)}", "policy.schedule")

    @classmethod
    def from_json(cls, data: object) -> RefreshPolicy:
        """Read a policy from parsed JSON; what is left out keeps its default. Raises InvalidSpec."""
        if not isinstance(data, Mapping):
            raise InvalidSpec("the policy must be a JSON object such as {'tolerance': 0.05}", "policy")
        known = tuple(cls.__dataclass_fields__)
        for name in data:
            if name not in known:
                raise InvalidSpec(f"unknown field policy.{name}; known are {', '.join(known)}", f"policy.{name}")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, every field stated."""
        return asdict(self)


class Hyperparameters(NamedTuple):
    """What may move along a track; None where the metric has none.

    lengthscale: one positive number, or one per dimension. variance: positive.
    """

    lengthscale: float | tuple[float, ...] | None = None
    variance: float | None = None

    @classmethod
    def of(cls, metric: Metric) -> Hyperparameters:
        """Return those of a metric."""
        scale = lengthscale_of(metric)
        if isinstance(metric, Euclidean) and scale is None:
            scale = 1.0
        return cls(scale, metric.kernel.variance if isinstance(metric, Residual) else None)


class Newest(NamedTuple):
    """The newest requested version, as a decision sees it. epoch: at which it was requested."""

    hyperparameters: Hyperparameters
    epoch: int
    standing: Standing


class Decision(NamedTuple):
    """What a refresh does, and why."""

    decision: Outcome
    reason: Reason


class RefreshAnswer(NamedTuple):
    """What a refresh answers.

    version: published one, 0 when there is none yet. pending_version: the newest requested one while it is not published,
    None when decision is "cached".
    """

    decision: Outcome
    reason: Reason
    version: int
    pending_version: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return self._asdict()


class Pending(NamedTuple):
    """A version that is requested and neither published nor failed. metric: JSON form. requested_s: Unix time."""

    version: int
    epoch: int
    metric: dict[str, Any]
    graph: str
    requested_s: float


@dataclass(frozen=True)
class TrackRecord:
    """What is known about a track.

    template: spec as it was created; n, d: shape of the dataset; policy: JSON forms.
    version, graph, metric, epoch: the published version (0, None, None, None before the first); metric is a whole document.
    requested, requested_graph, requested_metric, requested_epoch, requested_s: the newest requested version.
    seen_epoch: largest epoch posted. failures: versions that failed. error: why the newest requested one did, a problem.
    driver: token of the job that is queued or running, "" for none. building: graph it has begun, "" for none.
    created_s, updated_s: Unix time by the store's clock.
    """

    id: str
    dataset: str
    n: int
    d: int
    template: dict[str, Any]
    policy: RefreshPolicy
    version: int
    graph: str | None
    metric: dict[str, Any] | None
    epoch: int | None
    requested: int
    requested_graph: str
    requested_metric: dict[str, Any]
    requested_epoch: int
    requested_s: float
    seen_epoch: int
    failures: int
    error: dict[str, Any] | None
    driver: str
    building: str
    created_s: float
    updated_s: float

    @property
    def spec(self) -> dict[str, Any]:
        """The published version's spec; that of the newest requested one before there is any."""
        return self.template | {"metric": self.requested_metric if self.metric is None else self.metric}

    @property
    def etag(self) -> str:
        """Changes whenever a version is published or fails; without quotes."""
        return f"{self.version}-{self.failures}"

    @property
    def pending(self) -> Pending | None:
        """The version that is wanted and not there yet."""
        if self.requested <= self.version or self.error is not None:
            return None
        return Pending(
            self.requested, self.requested_epoch, self.requested_metric, self.requested_graph, self.requested_s
        )


class TrackEvent(NamedTuple):
    """One event of a track. id: grows; name: "neighbor_refresh.swap" and so on; data: JSON object."""

    id: str
    name: str
    data: dict[str, Any]


def drift(old: Hyperparameters, new: Hyperparameters) -> float:
    """Return the largest |Δ log| over all lengthscales and the variance; one lengthscale stands for every dimension."""
    return max(_log_distance(old.lengthscale, new.lengthscale), _log_distance(old.variance, new.variance))


def decide(
    policy: RefreshPolicy, newest: Newest, hyperparameters: Hyperparameters, epoch: int, force: bool = False
) -> Decision:
    """Return what a refresh does, compared with the newest requested version.

    A failed version counts as absent, but for the cooldown; a lost one (published, its graph gone from the store) is
    always built again.
    """
    waiting: Outcome = "pending" if newest.standing == "pending" else "cached"
    if newest.standing in ("published", "pending") and hyperparameters == newest.hyperparameters:
        return Decision(waiting, "unchanged")
    if force:
        return Decision("scheduled", "forced")
    if newest.standing == "lost":
        return Decision("scheduled", "lost")
    if epoch - newest.epoch < policy.cooldown_epochs:
        return Decision(waiting, "cooldown")
    if newest.standing == "failed":
        return Decision("scheduled", "failed")
    if policy.schedule == "powers_of_two":
        due = 1 << (epoch.bit_length() - 1) if epoch else 0  # largest power of two up to epoch
        return Decision("scheduled", "power_of_two") if due > newest.epoch else Decision(waiting, "not_due")
    if drift(newest.hyperparameters, hyperparameters) > policy.tolerance:
        return Decision("scheduled", "drift")
    if epoch - newest.epoch >= policy.max_epochs:
        return Decision("scheduled", "max_epochs")
    return Decision(waiting, "within_tolerance")


def merge_metric(track: Mapping[str, Any], given: object) -> Metric:
    """Return the track's metric with the given hyperparameters.

    track: JSON form of the newest requested metric. given: an object with lengthscale or variance, or a whole metric
    document that differs in nothing else. Raises NotAHyperparameter, or InvalidSpec for a value that cannot be used.
    """
    if not isinstance(given, Mapping):
        raise InvalidSpec("metric must be an object such as {'lengthscale': 0.3, 'variance': 1.0}", "metric")
    movable = _movable(track)
    for name in given:
        if name not in movable and (name not in track or (name == "type" and given[name] != track[name])):
            raise _immovable(name, movable)
    metric = metric_from_json({**track, **given})
    merged = metric.to_json()
    for name in track:
        if name not in movable and merged.get(name) != track[name]:
            raise _immovable(name, movable)
    return metric


class Tracks:
    """The tracks of one store. Every method may raise `redis.exceptions.RedisError` when the store is away.

    queue: of the follow jobs (`Queue.refresh_from_settings`).
    """

    def __init__(self, store: Store, queue: Queue) -> None:
        self._store = store
        self._queue = queue

    # Asking side

    async def create(self, dataset_id: str, spec: GraphSpec, policy: RefreshPolicy) -> TrackRecord:
        """Make a track and request its version 1, at epoch 0; raises UnknownDataset, or InvalidSpec for the shape."""
        raise NotImplementedError

    async def track(self, id: str) -> TrackRecord:
        """Return a track, in one round trip; raises UnknownTrack."""
        raise NotImplementedError

    async def refresh(
        self, id: str, metric: object = None, epoch: int | None = None, *, force: bool = False
    ) -> RefreshAnswer:
        """Decide on new hyperparameters and, where that is due, request a version and see that a job builds it.

        metric: see `merge_metric`; None keeps the newest requested one. epoch: None for one more than the largest seen.
        Raises UnknownTrack, EpochBackwards, NotAHyperparameter, InvalidSpec, UnknownDataset; the track is unharmed then.
        """
        raise NotImplementedError

    async def wait_track(self, id: str, timeout_s: float, etag: str | None = None) -> TrackRecord:
        """Return the track once its etag is another, or without etag once nothing is pending; else as it is at last.

        Raises UnknownTrack, also when the track is deleted while waiting.
        """
        raise NotImplementedError

    async def progress(self, pending: Pending) -> tuple[Literal["queued", "running"], dict[str, Any] | None]:
        """Return the state of a pending version's build and, while it runs, its {"phase", "done", "total", "eta_s"}."""
        raise NotImplementedError

    def events(self, id: str, after: str | None = None) -> AsyncIterator[TrackEvent]:
        """Yield events after the one with id `after` (None: from now on) as they happen; ends when the track is deleted.

        Raises UnknownTrack when there is none to begin with, InvalidSpec when `after` is not an event's id.
        """
        raise NotImplementedError

    async def metrics(self) -> Samples:
        """Return what was counted about refreshes, in all processes."""
        raise NotImplementedError

    async def delete(self, id: str) -> bool:
        """Forget a track and cancel what it has pending; return False when there was none.

        A build that somebody else has asked for meanwhile goes on in the interactive queue.
        """
        raise NotImplementedError


def _movable(metric: Mapping[str, Any]) -> tuple[str, ...]:
    if metric["type"] == "euclidean":
        return ("lengthscale",)
    # Precomputed factors belong to the hyperparameters that they were computed with.
    return ("lengthscale", "variance") if metric["type"] == "residual" and "v" not in metric else ()


def _immovable(name: str, movable: tuple[str, ...]) -> NotAHyperparameter:
    fix = f"this track follows {' and '.join(movable)}" if movable else "this track's metric has no hyperparameters"
    return NotAHyperparameter(f"a refresh cannot change metric.{name}: {fix}; create another track", f"metric.{name}")


def _log_distance(old: float | tuple[float, ...] | None, new: float | tuple[float, ...] | None) -> float:
    if old is None or new is None:
        return 0.0
    olds = old if isinstance(old, tuple) else (old,)
    news = new if isinstance(new, tuple) else (new,)
    count = max(len(olds), len(news))
    pairs = zip(olds * (count // len(olds)), news * (count // len(news)), strict=True)
    return max(abs(math.log(b) - math.log(a)) for a, b in pairs)
