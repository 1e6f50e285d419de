"""Tracks: moving pointers that training loops follow, what a refresh decides, and how versions are swapped.

A track is one hash. Its versions are numbered when they are requested, so published ones go up and may skip numbers:
only the newest requested one is ever built. `decide` is pure; every change of state is one Lua script that compares before it
sets, so a worker that stalled and comes back can neither lower a version nor mix two.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import structlog
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from pcct_core.errors import InvalidInput, InvalidSpec, PcctError
from pcct_core.points import check_shape, lengthscale_of
from pcct_core.spec import Euclidean, GraphSpec, Metric, Residual, read_metric
from worker.keys import Keys
from worker.metrics import BUILD_S, DECISIONS, ERRORS, QUEUE_WAIT_S, STALENESS, Samples, observe, read_samples
from worker.patience import dispensable
from worker.store import Store, UnknownDataset, graph_id, wait_for_change
from worker.traces import origin

if TYPE_CHECKING:
    from worker.tasks import Queue

Outcome: TypeAlias = Literal["cached", "pending", "scheduled"]
Reason: TypeAlias = Literal[
    "created",
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
MAX_EPOCH = 2**53 - 1  # the store's scripts count in float64
TIMEOUT = "refresh-timeout"  # type of the error of a build that took too long

_EVENTS_KEPT = 1000
_EVENTS_AT_ONCE = 100
_USE_S = 60.0
_USES_KEPT = 10_000
_MOST_EXPIRED = 1000  # of one namespace at once
_NO_DATASET = -1
_NO_ROOM = -5
MOST_TRACKS = 1000  # of one namespace, where nothing else is said
_EVENT_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")

_log = structlog.stdlib.get_logger("pcct.tracks")


class UnknownTrack(PcctError):
    """No track has this id, or not any more; `track` is the id."""

    def __init__(self, track: str) -> None:
        super().__init__(f"there is no track {track}; create one with POST /v1/tracks")
        self.track = track


class TooManyTracks(PcctError):
    """The namespace has as many tracks as it may."""

    def __init__(self, most: int) -> None:
        super().__init__(f"this namespace has {most} tracks, the most that it may; delete those that nobody follows")


class EpochBackwards(PcctError):
    """A refresh came with an epoch below one that the track has seen, `seen_epoch`; `field` is "epoch"."""

    def __init__(self, epoch: int, seen: int) -> None:
        super().__init__(
            f"epoch {epoch} is before {seen}, which this track has seen; epochs only go up: use {seen} or more"
        )
        self.field = "epoch"
        self.seen_epoch = seen


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
    requested, requested_graph, requested_metric, requested_epoch, requested_s: the newest requested version. forced: whether
    somebody wants exactly this one.
    seen_epoch: largest epoch posted. failures: versions that failed. error: why the newest requested one did, a problem.
    driver: token of the job that is queued or running, "" for none. delivery: of the run of it that counts, "" while queued.
    building: graph that it has begun, "" for none.
    revision: changes whenever the answer to a refresh may.
    created_s, updated_s: Unix time by the store's clock. origin: of the request that asked for the newest version.
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
    forced: bool
    seen_epoch: int
    failures: int
    error: dict[str, Any] | None
    driver: str
    delivery: str
    building: str
    revision: str
    created_s: float
    updated_s: float
    origin: str

    @property
    def spec(self) -> dict[str, Any]:
        """The published version's spec; that of the newest requested one before there is any."""
        return self.template | {"metric": self.requested_metric if self.metric is None else self.metric}

    @property
    def etag(self) -> str:
        """Changes whenever a version is published or fails; without quotes."""
        return _etag(self.version, self.failures)

    @property
    def pending(self) -> Pending | None:
        """The version that is wanted and not there yet."""
        if self.requested <= self.version or self.error is not None:
            return None
        return Pending(
            self.requested, self.requested_epoch, self.requested_metric, self.requested_graph, self.requested_s
        )


class Begun(NamedTuple):
    """A version whose build begins. before: graph that the track began last, or "". queue_s: time since the request."""

    before: str
    queue_s: float


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

    A failed version counts as absent: others are asked for at once, and only the same ones wait for the cooldown, so that
    a loop which keeps asking for what cannot be built does not keep a worker busy. A lost one (published, its graph gone
    from the store) is always built again.
    """
    waiting: Outcome = "pending" if newest.standing == "pending" else "cached"
    if newest.standing in ("published", "pending") and hyperparameters == newest.hyperparameters:
        return Decision(waiting, "unchanged")
    if force:
        return Decision("scheduled", "forced")
    if newest.standing == "lost":
        return Decision("scheduled", "lost")
    if newest.standing == "failed" and hyperparameters != newest.hyperparameters:
        return Decision("scheduled", "failed")
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
    metric = read_metric({**track, **given})
    merged = metric.to_json()
    for name in track:
        if name not in movable and merged.get(name) != track[name]:
            raise _immovable(name, movable)
    return metric


# Scripts name the answers that several of them give alike: -3 there is no such track, -4 the epoch is before one seen.

# Requests the next version, of a new track too. KEYS: track, events, dataset description, graph, arrays, metrics,
# tracks, tracked.
# ARGV: track id, channel, revision that the decision was made on, epoch, version, graph, metric, token of a new driver,
# event schedule, event skip_cached, event swap, counter of a scheduled one, counter of a ready one, events kept, request id,
# namespace, most tracks of it, '1' when forced or ''; then field, value, … of a new track.
# → the driver whose job must be queued, '' when it was published at once because its graph is there, and the graph that the
# track is building; or -1 no such dataset, -5 the namespace has its most tracks, -2 the track has changed since: decide again.
_SCHEDULE = """
local now = redis.call('TIME')
now = string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6)
if #ARGV == 18 then
    local revision = redis.call('HGET', KEYS[1], 'revision')
    if not revision then
        return -3
    end
    if tonumber(ARGV[4]) < tonumber(redis.call('HGET', KEYS[1], 'seen_epoch')) then
        return -4
    end
    if revision ~= ARGV[3] then
        return -2
    end
end
local ready = redis.call('HGET', KEYS[4], 'state') == 'ready'
    and redis.call('HLEN', KEYS[5]) == tonumber(redis.call('HGET', KEYS[4], 'chunks'))
if not ready and redis.call('EXISTS', KEYS[3]) == 0 then
    return -1
end
if #ARGV > 18 then
    if redis.call('ZCARD', KEYS[7]) >= tonumber(ARGV[17]) then
        return -5
    end
    redis.call('HSET', KEYS[1], 'created_s', now, unpack(ARGV, 19))
end
redis.call('ZADD', KEYS[7], now, ARGV[1])
redis.call('SADD', KEYS[8], ARGV[16])
redis.call('HSET', KEYS[1], 'requested', ARGV[5], 'requested_graph', ARGV[6], 'requested_metric', ARGV[7],
    'requested_epoch', ARGV[4], 'requested_s', now, 'forced', ARGV[18], 'seen_epoch', ARGV[4], 'origin', ARGV[15],
    'updated_s', now)
redis.call('HINCRBY', KEYS[1], 'revision', 1)
redis.call('HDEL', KEYS[1], 'error')
if ready then
    redis.call('HSET', KEYS[1], 'version', ARGV[5], 'graph', ARGV[6], 'metric', ARGV[7], 'epoch', ARGV[4])
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[14], '*', 'event', ARGV[10])
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[14], '*', 'event', ARGV[11])
    redis.call('HINCRBY', KEYS[6], ARGV[13], 1)
else
    if redis.call('HGET', KEYS[1], 'driver') == '' then
        redis.call('HSET', KEYS[1], 'driver', ARGV[8])
    end
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[14], '*', 'event', ARGV[9])
    redis.call('HINCRBY', KEYS[6], ARGV[12], 1)
end
redis.call('PUBLISH', ARGV[2], ARGV[1])
local fields = redis.call('HMGET', KEYS[1], 'driver', 'building')
return {ready and '' or fields[1], fields[2]}
"""

# A refresh that requests nothing. KEYS: track, events, metrics, tracks. ARGV: track id, channel, epoch, counter, event or '',
# events kept. → 1
_NOTE = """
local seen = redis.call('HGET', KEYS[1], 'seen_epoch')
if not seen then
    return -3
end
if tonumber(ARGV[3]) < tonumber(seen) then
    return -4
end
local now = redis.call('TIME')
redis.call('ZADD', KEYS[4], tonumber(now[1]) + tonumber(now[2]) / 1e6, ARGV[1])
redis.call('HSET', KEYS[1], 'seen_epoch', ARGV[3])
redis.call('HINCRBY', KEYS[3], ARGV[4], 1)
if ARGV[5] ~= '' then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'event', ARGV[5])
    redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return 1
"""

# A job starts to drive. The queue may deliver a job twice, when a worker stalls: what counts is the latest delivery, and
# all that a driver does is compared with it. KEYS: track. ARGV: driver, delivery. → 1, or 0 when the driver is not the one.
_ENTER = """
if redis.call('HGET', KEYS[1], 'driver') ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'delivery', ARGV[2])
return 1
"""

# A driver begins the newest requested version. KEYS: track. ARGV: delivery, version.
# → what was begun before and the seconds since the request, or nothing when the delivery or version is not the one.
_BEGIN = """
local fields = redis.call('HMGET', KEYS[1], 'delivery', 'requested', 'building', 'requested_graph', 'requested_s')
if fields[1] ~= ARGV[1] or fields[2] ~= ARGV[2] then
    return {}
end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'building', fields[4])
return {fields[3], string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6 - tonumber(fields[5]))}
"""

# KEYS: track, events. ARGV: track id, channel, version, graph, metric, epoch, event complete, event swap, events kept.
# → epochs since the request, or -3, or -2 when what is published is as new.
_PUBLISH = """
local fields = redis.call('HMGET', KEYS[1], 'version', 'requested', 'seen_epoch')
if not fields[1] then
    return -3
end
if tonumber(ARGV[3]) <= tonumber(fields[1]) then
    return -2
end
local now = redis.call('TIME')
local stale = tonumber(fields[3]) - tonumber(ARGV[6])
redis.call('HSET', KEYS[1], 'version', ARGV[3], 'graph', ARGV[4], 'metric', ARGV[5], 'epoch', ARGV[6],
    'updated_s', string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6))
redis.call('HINCRBY', KEYS[1], 'revision', 1)
if fields[2] == ARGV[3] then
    redis.call('HDEL', KEYS[1], 'error')
end
local swap = string.sub(ARGV[8], 1, -2) .. string.format(',"staleness_epochs":%.0f}', stale)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[9], '*', 'event', ARGV[7])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[9], '*', 'event', swap)
redis.call('PUBLISH', ARGV[2], ARGV[1])
return stale
"""

# KEYS: track, events. ARGV: track id, channel, delivery, version, error, event, events kept.
# → 1, or 0 when it no longer counts.
_FAIL = """
local fields = redis.call('HMGET', KEYS[1], 'delivery', 'version', 'requested', 'error')
if fields[1] ~= ARGV[3] or tonumber(ARGV[4]) <= tonumber(fields[2]) then
    return 0
end
if fields[3] == ARGV[4] then
    if fields[4] then
        return 0
    end
    redis.call('HSET', KEYS[1], 'error', ARGV[5])
end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'updated_s', string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6))
redis.call('HINCRBY', KEYS[1], 'failures', 1)
redis.call('HINCRBY', KEYS[1], 'revision', 1)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'event', ARGV[6])
redis.call('PUBLISH', ARGV[2], ARGV[1])
return 1
"""

# KEYS: track, events. ARGV: track id, channel, event, events kept. → 1 or -3
_TELL = """
if redis.call('EXISTS', KEYS[1]) == 0 then
    return -3
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'event', ARGV[3])
redis.call('PUBLISH', ARGV[2], ARGV[1])
return 1
"""

# A driver ends, unless something is wanted that was requested meanwhile. KEYS: track. ARGV: delivery. → 1 ended, 0 go on
_RELEASE = """
local fields = redis.call('HMGET', KEYS[1], 'delivery', 'version', 'requested', 'error')
if fields[1] ~= ARGV[1] then
    return 1
end
if tonumber(fields[3]) > tonumber(fields[2]) and not fields[4] then
    return 0
end
redis.call('HSET', KEYS[1], 'driver', '', 'delivery', '', 'building', '')
return 1
"""

# KEYS: track. ARGV: delivery, the next driver. → 1, or 0 when the delivery is not the one.
_HAND_OVER = """
if redis.call('HGET', KEYS[1], 'delivery') ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'driver', ARGV[2], 'delivery', '')
return 1
"""

# KEYS: track, tracks, tracked. ARGV: track id, namespace. → 1
_USE = """
if redis.call('EXISTS', KEYS[1]) == 1 then
    local now = redis.call('TIME')
    redis.call('ZADD', KEYS[2], tonumber(now[1]) + tonumber(now[2]) / 1e6, ARGV[1])
    redis.call('SADD', KEYS[3], ARGV[2])
end
return 1
"""

# KEYS: tracks, tracked. ARGV: namespace, seconds, most. → ids of tracks that nobody has used for so long.
_IDLE = """
if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('SREM', KEYS[2], ARGV[1])
    return {}
end
local now = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', tonumber(now[1]) - tonumber(ARGV[2]), 'LIMIT', 0, ARGV[3])
"""

# KEYS: track, events, tracks. ARGV: track id, channel, seconds that nobody must have used it for.
# → the graph that was begun last, or '', or nothing: no such track, or it was used.
_DELETE = """
local now = redis.call('TIME')
if tonumber(ARGV[3]) > 0 and tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or 0) > tonumber(now[1]) - tonumber(ARGV[3]) then
    return false
end
local building = redis.call('HGET', KEYS[1], 'building')
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[1])
return building
"""

_SCRIPTS = {
    "schedule": _SCHEDULE,
    "note": _NOTE,
    "enter": _ENTER,
    "begin": _BEGIN,
    "publish": _PUBLISH,
    "fail": _FAIL,
    "tell": _TELL,
    "release": _RELEASE,
    "hand_over": _HAND_OVER,
    "use": _USE,
    "idle": _IDLE,
    "delete": _DELETE,
}


class Tracks:
    """The tracks of one namespace. Every method may raise `redis.exceptions.RedisError` when the store is away.

    queue: of the follow jobs (`Queue.refresh_from_settings`).
    graphs: of interactive jobs, for what a deleted track was building and others wait for too.
    """

    def __init__(self, store: Store, queue: Queue, graphs: Queue) -> None:
        self._store = store
        self._keys = store.keys
        self._queue = queue
        self._graphs = graphs
        self._uses: dict[tuple[str, str], float] = {}
        self._scripts: dict[str, AsyncScript] = {
            name: store.redis.register_script(text) for name, text in _SCRIPTS.items()
        }

    def within(self, namespace: str) -> Tracks:
        """Return the tracks of a namespace on the same connections."""
        tracks = copy(self)
        tracks._store = self._store.within(namespace)
        tracks._keys = tracks._store.keys
        return tracks

    # Asking side

    async def create(
        self, dataset_id: str, spec: GraphSpec, policy: RefreshPolicy, *, most: int = MOST_TRACKS
    ) -> TrackRecord:
        """Make a track and request its version 1, at epoch 0.

        Raises UnknownDataset, InvalidSpec for the shape, or TooManyTracks when the namespace has `most` of them.
        """
        dataset = await self._store.dataset(dataset_id)
        if dataset is None:
            raise UnknownDataset(dataset_id)
        check_shape(dataset.n, dataset.d, spec)
        base = {
            "dataset": dataset_id,
            "n": dataset.n,
            "d": dataset.d,
            "template": _dump(spec.to_json()),
            "policy": _dump(policy.to_json()),
            "version": 0,
            "failures": 0,
            "revision": 0,
            "driver": "",
            "delivery": "",
            "building": "",
        }
        id = secrets.token_hex(16)
        try:
            await self._schedule(_Wish(id, dataset_id, spec, 0, 1, "created", "0"), base, most)
            return await self.track(id)
        except BaseException:
            with suppress(RedisError):
                await asyncio.shield(self.delete(id))  # nobody will ever know its id
            raise

    async def track(self, id: str) -> TrackRecord:
        """Return a track, in one round trip; raises UnknownTrack."""
        raw = await cast(Any, self._store.redis.hgetall(self._keys.track(id)))
        if not raw:
            raise UnknownTrack(id)
        return _record(id, {name.decode(): value.decode() for name, value in raw.items()})

    async def etag(self, id: str) -> str:
        """Return the etag of a track and nothing else, for polls, so that it counts as used; raises UnknownTrack."""
        version, failures = await cast(Any, self._store.redis.hmget(self._keys.track(id), ("version", "failures")))
        if version is None:
            raise UnknownTrack(id)
        await self._use(id)
        return _etag(int(version), int(failures))

    async def read(self, id: str) -> TrackRecord:
        """Return a track for somebody who follows it, so that it counts as used; raises UnknownTrack."""
        record = await self.track(id)
        await self._use(id)
        return record

    async def refresh(
        self, id: str, metric: object = None, epoch: int | None = None, *, force: bool = False
    ) -> RefreshAnswer:
        """Decide on new hyperparameters and, where that is due, request a version and see that a job builds it.

        metric: see `merge_metric`; None keeps the newest requested one. epoch: None for one more than the largest seen.
        Raises UnknownTrack, EpochBackwards, NotAHyperparameter, InvalidSpec, UnknownDataset; the track is unharmed then.
        """
        while True:
            record = await self.track(id)
            spec = moved_spec(record, metric)
            at = checked_epoch(record, epoch)
            decision = decide(record.policy, await self._newest(record), Hyperparameters.of(spec.metric), at, force)
            if decision.decision == "scheduled":
                wish = _Wish(id, record.dataset, spec, at, record.requested + 1, decision.reason, record.revision)
                answer = await self._schedule(wish)
                if answer is None:
                    continue
                if answer:
                    return RefreshAnswer("scheduled", decision.reason, record.version, wish.version)
                return RefreshAnswer("cached", "ready", wish.version, None)
            if await self._note(record, at, decision):
                if decision.decision == "pending":
                    await self.ensure_driver(record)
                    return RefreshAnswer(*decision, record.version, record.requested)
                return RefreshAnswer(*decision, record.version, None)

    async def wait_track(self, id: str, timeout_s: float, etag: str | None = None) -> TrackRecord:
        """Return the track once its etag is another, or without etag once nothing is pending; else as it is at last.

        Raises UnknownTrack, also when the track is deleted while waiting.
        """
        deadline = time.monotonic() + timeout_s
        ensured = False
        async with self._store.listen(id) as changed:
            while True:
                changed.clear()
                record = await self.track(id)
                left = deadline - time.monotonic()
                arrived = record.pending is None if etag is None else record.etag != etag
                if arrived or left <= 0:
                    return record
                if not ensured and record.pending is not None:
                    await self.ensure_driver(record)
                    ensured = True
                await wait_for_change(changed, left)

    async def progress(self, pending: Pending) -> tuple[Literal["queued", "running"], dict[str, Any] | None]:
        """Return the state of a pending version's build and, while it runs, its {"phase", "done", "total", "eta_s"}."""
        graph = await self._store.graph(pending.graph)
        running = graph is not None and graph.state in ("running", "ready")
        return ("running", graph.progress) if running and graph is not None else ("queued", None)

    async def events(self, id: str, after: str | None = None) -> AsyncIterator[TrackEvent]:
        """Yield events after the one with id `after` as they happen; ends when the track is deleted.

        after: "0" begins with the oldest that is kept, None with what happens from now on. The first step raises
        UnknownTrack when there is none to begin with, InvalidSpec when `after` is not the id of an event.
        """
        last = await self._last_event(id) if after is None else _event_id(after)
        await self.track(id)
        async with self._store.listen(id) as changed:
            while True:
                changed.clear()
                await self._use(id)
                entries = await cast(
                    Any, self._store.redis.xrange(self._keys.track_events(id), f"({last}", "+", _EVENTS_AT_ONCE)
                )
                for entry, fields in entries:
                    last = entry.decode()
                    yield _event(last, fields[b"event"])
                if not entries:
                    if not await cast(Any, self._store.redis.exists(self._keys.track(id))):
                        return
                    await wait_for_change(changed, math.inf)

    async def metrics(self) -> Samples:
        """Return what was counted about refreshes, in all processes."""
        return await read_samples(self._store.redis)

    async def delete(self, id: str) -> bool:
        """Forget a track and cancel what it has pending; return False when there was none.

        A build that somebody else has asked for meanwhile starts again from the queue of graphs.
        """
        return await self._delete(id, 0.0)

    async def expire(self, idle_s: float) -> int:
        """Delete the tracks of all namespaces that nobody has read or refreshed for idle_s seconds; return how many."""
        count = 0
        for name in await cast(Any, self._store.redis.smembers(Keys.tracked)):
            tracks = self.within(name.decode())
            args = [name, math.ceil(idle_s), _MOST_EXPIRED]
            for id in await tracks._run("idle", [tracks._keys.tracks, Keys.tracked], args):
                if await tracks._delete(id.decode(), idle_s):
                    _log.info("track expired", track=id.decode(), idle_s=idle_s)
                    count += 1
        return count

    # Driving side

    async def enter(self, id: str, driver: str, delivery: str) -> bool:
        """Start to drive a track; earlier deliveries of the job count no more. False when the driver is not the one."""
        return bool(await self._run("enter", [self._keys.track(id)], [driver, delivery]))

    async def begin(self, record: TrackRecord, version: int) -> Begun | None:
        """Begin to build the newest requested version; None when its delivery or the version is not the one any more."""
        answer = await self._run("begin", [self._keys.track(record.id)], [record.delivery, version])
        return Begun(answer[0].decode(), float(answer[1])) if answer else None

    async def publish_version(self, id: str, pending: Pending, *, queue_s: float, build_s: float) -> bool:
        """Swap the track to a version whose graph is ready; False when the track is gone or has one as new."""
        event = {"track": id, "version": pending.version, "epoch": pending.epoch, "graph": pending.graph}
        times = {"seconds": round(queue_s + build_s, 6), "queue_s": round(queue_s, 6), "build_s": round(build_s, 6)}
        complete, swap = _message("complete", event | times), _message("swap", event)
        stale = await self._run(
            "publish",
            [self._keys.track(id), self._keys.track_events(id)],
            [
                *(id, self._keys.changes, pending.version, pending.graph, _dump(pending.metric), pending.epoch),
                *(complete, swap, _EVENTS_KEPT),
            ],
        )
        if stale < 0:
            _log.info("neighbor_refresh.overtaken", **event)
            return False
        _log.info("neighbor_refresh.complete", **event, **times)
        _log.info("neighbor_refresh.swap", **event, staleness_epochs=stale)
        await observe(self._store.redis, {QUEUE_WAIT_S: queue_s, BUILD_S: build_s, STALENESS: stale})
        return True

    async def fail_version(self, record: TrackRecord, pending: Pending, error: Mapping[str, Any]) -> bool:
        """Record why a version has no graph; False when it no longer counts. What is published stays."""
        name: EventName = "timeout" if error["type"] == TIMEOUT else "async_error"
        event = {"track": record.id, "version": pending.version, "epoch": pending.epoch, "error": dict(error)}
        failed = await self._run(
            "fail",
            [self._keys.track(record.id), self._keys.track_events(record.id)],
            [
                *(record.id, self._keys.changes, record.delivery, pending.version, _dump(error)),
                *(_message(name, event), _EVENTS_KEPT),
            ],
        )
        if failed:
            _log.warning(f"neighbor_refresh.{name}", **event)
            await observe(self._store.redis, {}, (ERRORS.field(str(error["type"])),))
        return bool(failed)

    async def tell_progress(self, id: str, pending: Pending, progress: Mapping[str, Any]) -> None:
        """Add an event "progress"."""
        known = {name: progress[name] for name in ("phase", "done", "total")}
        event = {"track": id, "version": pending.version, "epoch": pending.epoch} | known
        keys = [self._keys.track(id), self._keys.track_events(id)]
        await self._run("tell", keys, [id, self._keys.changes, _message("progress", event), _EVENTS_KEPT])

    async def release(self, record: TrackRecord) -> bool:
        """End the driver; False when it must go on, because something newer is wanted."""
        return bool(await self._run("release", [self._keys.track(record.id)], [record.delivery]))

    async def hand_over(self, record: TrackRecord) -> None:
        """Give the track to a new driver, whose job waits its turn like every other."""
        successor = _new_driver()
        if await self._run("hand_over", [self._keys.track(record.id)], [record.delivery, successor]):
            await self._queue.follow(self._store.namespace, record.id, successor)

    async def ensure_driver(self, record: TrackRecord) -> None:
        """See that the job of the track's driver is queued or running: whoever named it may have died before submitting."""
        if record.driver:
            await self._queue.follow(self._store.namespace, record.id, record.driver)

    async def waiting(self) -> int:
        """Return the number of follow jobs that wait or run."""
        return await self._queue.depth()

    async def drop_build(self, id: str, graph: str, *, overtaken: bool = False) -> None:
        """End what the track has begun to build; if others asked for it too, their job is queued.

        overtaken: see `Store.drop_graph`.
        """
        wanted = await self._store.drop_graph(graph, id, overtaken=overtaken)
        if wanted is not None:
            await self._graphs.submit(wanted)

    # Inside

    async def _use(self, id: str) -> None:
        """Note that a track is used, at most once a minute: a poll that finds nothing new must stay cheap."""
        name, now = (self._store.namespace, id), time.monotonic()
        if now - self._uses.get(name, -math.inf) < _USE_S:
            return
        if len(self._uses) >= _USES_KEPT:
            for old in [old for old, used in self._uses.items() if now - used >= _USE_S]:
                del self._uses[old]
        self._uses[name] = now
        with dispensable():
            await self._run("use", [self._keys.track(id), self._keys.tracks, Keys.tracked], [id, self._store.namespace])

    async def _delete(self, id: str, idle_s: float) -> bool:
        keys = [self._keys.track(id), self._keys.track_events(id), self._keys.tracks]
        building = await self._run("delete", keys, [id, self._keys.changes, math.ceil(idle_s)])
        if building:
            await self.drop_build(id, building.decode())
        return building is not None

    async def _newest(self, record: TrackRecord) -> Newest:
        standing: Standing = "published"
        if record.error is not None:
            standing = "failed"
        elif record.pending is not None:
            standing = "pending"
        elif not await self._store.is_intact(record.requested_graph):
            standing = "lost"
        return Newest(Hyperparameters.of(read_metric(record.requested_metric)), record.requested_epoch, standing)

    async def _schedule(
        self, wish: _Wish, base: Mapping[str, Any] | None = None, most: int = MOST_TRACKS
    ) -> bool | None:
        """Request a version and queue a job for it.

        False when its graph was there, so that it is published; None when to decide again.
        """
        graph = graph_id(wish.dataset, wish.spec)
        event = {"track": wish.track, "version": wish.version, "epoch": wish.epoch, "graph": graph}
        reasoned = event | {"reason": wish.reason}
        answer = await self._run(
            "schedule",
            [
                *(self._keys.track(wish.track), self._keys.track_events(wish.track), self._keys.dataset(wish.dataset)),
                *(self._keys.graph(graph), self._keys.arrays(graph), Keys.metrics, self._keys.tracks, Keys.tracked),
            ],
            [
                *(wish.track, self._keys.changes, wish.revision, wish.epoch, wish.version, graph),
                *(_dump(wish.spec.metric.to_json()), _new_driver()),
                _message("schedule", reasoned),
                _message("skip_cached", event | {"reason": "ready"}),
                _message("swap", event | {"staleness_epochs": 0}),
                *(DECISIONS.field("scheduled", wish.reason), DECISIONS.field("cached", "ready"), _EVENTS_KEPT),
                *(origin(), self._store.namespace, most, "1" if wish.reason == "forced" else ""),
                *(part for item in (base or {}).items() for part in item),
            ],
        )
        if answer == _NO_DATASET:
            raise UnknownDataset(wish.dataset)
        if answer == _NO_ROOM:
            raise TooManyTracks(most)
        if isinstance(answer, int):
            return None
        driver, building = (part.decode() for part in answer)
        _log.info("neighbor_refresh.schedule" if driver else "neighbor_refresh.swap", **reasoned)
        if driver:
            await self._queue.follow(self._store.namespace, wish.track, driver)
        elif building not in ("", graph):
            # An older version, which cannot be published any more.
            await self.drop_build(wish.track, building, overtaken=True)
        return bool(driver)

    async def _note(self, record: TrackRecord, epoch: int, decision: Decision) -> bool:
        """Count a refresh that requests nothing; False when to decide again."""
        cached = decision.decision == "cached"
        event = {"track": record.id, "version": record.version, "epoch": epoch, "reason": decision.reason}
        answer = await self._run(
            "note",
            [
                *(self._keys.track(record.id), self._keys.track_events(record.id)),
                *(Keys.metrics, self._keys.tracks),
            ],
            [
                *(record.id, self._keys.changes, epoch, DECISIONS.field(*decision)),
                *(_message("skip_cached", event) if cached else "", _EVENTS_KEPT),
            ],
        )
        if cached and answer == 1:
            _log.debug("neighbor_refresh.skip_cached", **event)
        return bool(answer == 1)

    async def _last_event(self, id: str) -> str:
        newest = await cast(Any, self._store.redis.xrevrange(self._keys.track_events(id), count=1))
        return newest[0][0].decode() if newest else "0-0"

    async def _run(self, script: str, keys: list[str], args: list[Any]) -> Any:
        return await self._scripts[script](keys=keys, args=args)


class _Wish(NamedTuple):
    """A version that is to be requested. revision: of the track that this was decided on."""

    track: str
    dataset: str
    spec: GraphSpec
    epoch: int
    version: int
    reason: Reason
    revision: str


def moved_spec(record: TrackRecord, metric: object) -> GraphSpec:
    """Return the spec of the track's newest requested version with new hyperparameters; see `merge_metric`."""
    newest = record.requested_metric
    merged = read_metric(newest) if metric is None else merge_metric(newest, metric)
    spec = GraphSpec.from_json(record.template | {"metric": merged.to_json()})
    check_shape(record.n, record.d, spec)
    return spec


def checked_epoch(record: TrackRecord, epoch: int | None) -> int:
    """Return the epoch of a refresh; raises EpochBackwards, or InvalidSpec when it is not one."""
    if epoch is None:
        return min(record.seen_epoch + 1, MAX_EPOCH)
    if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch <= MAX_EPOCH:
        raise InvalidSpec(f"epoch is {epoch!r}; use a whole number from 0 to 2^53 - 1", "epoch")
    if epoch < record.seen_epoch:
        raise EpochBackwards(epoch, record.seen_epoch)
    return epoch


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


def _record(id: str, fields: Mapping[str, str]) -> TrackRecord:
    return TrackRecord(
        id=id,
        dataset=fields["dataset"],
        n=int(fields["n"]),
        d=int(fields["d"]),
        template=json.loads(fields["template"]),
        policy=RefreshPolicy.from_json(json.loads(fields["policy"])),
        version=int(fields["version"]),
        graph=fields.get("graph"),
        metric=json.loads(fields["metric"]) if "metric" in fields else None,
        epoch=int(fields["epoch"]) if "epoch" in fields else None,
        requested=int(fields["requested"]),
        requested_graph=fields["requested_graph"],
        requested_metric=json.loads(fields["requested_metric"]),
        requested_epoch=int(fields["requested_epoch"]),
        requested_s=float(fields["requested_s"]),
        forced=fields.get("forced") == "1",
        seen_epoch=int(fields["seen_epoch"]),
        failures=int(fields["failures"]),
        error=json.loads(fields["error"]) if "error" in fields else None,
        driver=fields["driver"],
        delivery=fields["delivery"],
        building=fields["building"],
        revision=fields["revision"],
        created_s=float(fields["created_s"]),
        updated_s=float(fields["updated_s"]),
        origin=fields.get("origin", ""),
    )


def _etag(version: int, failures: int) -> str:
    return f"{version}-{failures}"


def _event(id: str, text: bytes) -> TrackEvent:
    data = json.loads(text)
    name = data.pop("event")
    return TrackEvent(id, name, data | {"time_s": int(id.partition("-")[0]) / 1000})


def _event_id(text: str) -> str:
    if not _EVENT_ID.fullmatch(text):
        raise InvalidSpec(f"{text!r} is not the id of an event; use the id of the last one seen", "last-event-id")
    return text


def _message(name: EventName, data: Mapping[str, Any]) -> str:
    return _dump({"event": f"neighbor_refresh.{name}", **data})


def _new_driver() -> str:
    return secrets.token_hex(8)


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
