"""Counts and histograms of builds and refreshes, in one hash that all processes add to: what `/metrics` shows.

They are kept in the store because API and workers are many processes, and a reader wants one set of numbers.
A field is "name|label|label" for a counter and "name|label|bound" for a histogram's bucket, not cumulated. No label is an
id: their values are few, whatever is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.keys import Keys


class Counter(NamedTuple):
    """A counter by labels. name: as Prometheus shows it, without "_total"."""

    name: str
    help: str
    labels: tuple[str, ...]

    def field(self, *values: str) -> str:
        """Return the hash field that counts these values of the labels."""
        return "|".join((self.name, *values))


class Histogram(NamedTuple):
    """A histogram by labels. bounds: upper ends of its buckets, ascending; the last bucket is above them."""

    name: str
    help: str
    bounds: tuple[float, ...]
    labels: tuple[str, ...] = ()

    def field(self, value: float, *values: str) -> str:
        """Return the hash field of the bucket that holds value, for these values of the labels."""
        bound = next((f"{bound:g}" for bound in self.bounds if value <= bound), "+Inf")
        return "|".join((self.name, *values, bound))

    def sum_field(self, *values: str) -> str:
        """Return the hash field of the sum of all values, for these values of the labels."""
        return "|".join((self.name, *values, "sum"))


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

DECISIONS = Counter("pcct_refresh_decisions", "Refreshes by what was decided and why", ("decision", "reason"))
ERRORS = Counter("pcct_refresh_errors", "Versions that failed, by type of error", ("type",))
QUEUE_WAIT_S = Histogram("pcct_refresh_queue_wait_seconds", "From requesting a version to starting its build", _SECONDS)
BUILD_S = Histogram("pcct_refresh_build_seconds", "From starting a version's build to its end", _SECONDS)
STALENESS = Histogram(
    "pcct_refresh_staleness_epochs",
    "Epochs between requesting a version and publishing it",
    (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0),
)
BUILDS = Counter("pcct_builds", "Builds by kind of graph and how they ended", ("kind", "outcome"))
PHASE_S = Counter("pcct_build_phase_seconds", "Seconds of published builds by kind and phase", ("kind", "phase"))
KIND_S = Histogram("pcct_build_seconds", "From a job's start to its published graph", _SECONDS, ("kind",))
EVICTIONS = Counter("pcct_evictions", "What was removed to make room in its namespace, by kind", ("kind",))
COUNTERS = (DECISIONS, ERRORS, BUILDS, PHASE_S, EVICTIONS)
HISTOGRAMS = (QUEUE_WAIT_S, BUILD_S, STALENESS, KIND_S)


class CounterSample(NamedTuple):
    """One counter's value. labels: values, in the order of the counter's labels."""

    counter: Counter
    labels: tuple[str, ...]
    value: float


class HistogramSample(NamedTuple):
    """One histogram. buckets: (upper end as text, values up to it), cumulated, the last one "+Inf" with all.

    labels: in the order of the histogram's labels.
    """

    histogram: Histogram
    labels: tuple[str, ...]
    buckets: tuple[tuple[str, float], ...]
    sum: float


class Samples(NamedTuple):
    """Everything that was counted; every histogram without labels is there, empty ones too."""

    counters: tuple[CounterSample, ...]
    histograms: tuple[HistogramSample, ...]


async def observe(redis: Redis, values: Mapping[Histogram, float], counts: tuple[str, ...] = ()) -> None:
    """Add one value to each histogram and one to each counter field; dropped when the store is away."""
    with suppress(RedisError):
        async with redis.pipeline(transaction=False) as pipe:
            for histogram, value in values.items():
                pipe.hincrby(Keys.metrics, histogram.field(value), 1)
                pipe.hincrbyfloat(Keys.metrics, histogram.sum_field(), value)
            for field in counts:
                pipe.hincrby(Keys.metrics, field, 1)
            await pipe.execute()


async def observe_build(redis: Redis, kind: str, outcome: str, seconds: float, phases: Mapping[str, float]) -> None:
    """Count a build that has ended, and its seconds if it was published; dropped when the store is away."""
    with suppress(RedisError):
        async with redis.pipeline(transaction=False) as pipe:
            pipe.hincrby(Keys.metrics, BUILDS.field(kind, outcome), 1)
            if outcome == "published":
                pipe.hincrby(Keys.metrics, KIND_S.field(seconds, kind), 1)
                pipe.hincrbyfloat(Keys.metrics, KIND_S.sum_field(kind), seconds)
            for phase, taken_s in phases.items():
                pipe.hincrbyfloat(Keys.metrics, PHASE_S.field(kind, phase), taken_s)
            await pipe.execute()


async def read_samples(redis: Redis) -> Samples:
    """Return all that was counted, in one round trip."""
    raw = await cast(Any, redis.hgetall(Keys.metrics))
    return parse_samples({name.decode(): float(value) for name, value in raw.items()})


def parse_samples(fields: Mapping[str, float]) -> Samples:
    """Return the samples of a hash's fields."""
    counters = []
    for counter in COUNTERS:
        for name in sorted(fields):
            first, *labels = name.split("|")
            if first == counter.name and len(labels) == len(counter.labels):
                counters.append(CounterSample(counter, tuple(labels), fields[name]))
    histograms = [
        _histogram(histogram, labels, fields) for histogram in HISTOGRAMS for labels in _labels(histogram, fields)
    ]
    return Samples(tuple(counters), tuple(histograms))


def _labels(histogram: Histogram, fields: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Return the values of the labels that a histogram has been observed with; one without labels always has those."""
    if not histogram.labels:
        return [()]
    parts = [tuple(name.split("|")) for name in fields]
    found = {part[1:-1] for part in parts if part[0] == histogram.name and len(part) == len(histogram.labels) + 2}
    return sorted(found)


def _histogram(histogram: Histogram, labels: tuple[str, ...], fields: Mapping[str, float]) -> HistogramSample:
    total = 0.0
    buckets = []
    for bound in (*(f"{bound:g}" for bound in histogram.bounds), "+Inf"):
        total += fields.get("|".join((histogram.name, *labels, bound)), 0.0)
        buckets.append((bound, total))
    return HistogramSample(histogram, labels, tuple(buckets), fields.get(histogram.sum_field(*labels), 0.0))
