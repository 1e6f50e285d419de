from __future__ import annotations

import pytest
from redis.asyncio import Redis

from worker.metrics import (
    BUILD_S,
    DECISIONS,
    ERRORS,
    HISTOGRAMS,
    KIND_S,
    QUEUE_WAIT_S,
    STALENESS,
    observe,
    observe_build,
    parse_samples,
    read_samples,
)

pytestmark = pytest.mark.anyio


async def test_observe_adds_up_over_processes(redis: Redis) -> None:
    for value in (0.5, 0.02, 1e6):
        await observe(
            redis, {BUILD_S: value, STALENESS: 0.0}, (ERRORS.field("odd"), DECISIONS.field("cached", "ready"))
        )
    samples = await read_samples(redis)
    assert [(sample.counter.name, sample.labels, sample.value) for sample in samples.counters] == [
        ("pcct_refresh_decisions", ("cached", "ready"), 3.0),
        ("pcct_refresh_errors", ("odd",), 3.0),
    ]
    wait, build, stale = samples.histograms  # one by kind is not there before a build
    assert (wait.histogram, wait.sum, {count for _, count in wait.buckets}) == (QUEUE_WAIT_S, 0.0, {0.0})
    assert build.sum == pytest.approx(1e6 + 0.52)
    assert dict(build.buckets) == {f"{bound:g}": 1.0 if bound < 0.5 else 2.0 for bound in BUILD_S.bounds} | {
        "0.01": 0.0,
        "+Inf": 3.0,
    }
    assert stale.buckets[0] == ("0", 3.0)


async def test_observe_build_adds_up_by_kind_and_phase(redis: Redis) -> None:
    await observe_build(redis, "knn", "published", 0.5, {"tree": 0.1, "search": 0.25})
    await observe_build(redis, "knn", "published", 90.0, {"tree": 0.2})
    await observe_build(redis, "vecchia", "failed", 3.0, {})
    samples = await read_samples(redis)
    assert {(sample.counter.name, *sample.labels): pytest.approx(sample.value) for sample in samples.counters} == {
        ("pcct_builds", "knn", "published"): 2,
        ("pcct_builds", "vecchia", "failed"): 1,
        ("pcct_build_phase_seconds", "knn", "search"): 0.25,
        ("pcct_build_phase_seconds", "knn", "tree"): 0.3,
    }
    (build,) = (sample for sample in samples.histograms if sample.histogram == KIND_S)
    assert (build.labels, build.sum) == (("knn",), pytest.approx(90.5))
    assert dict(build.buckets)["0.5"] == 1
    assert dict(build.buckets)["+Inf"] == 2


async def test_observe_drops_what_it_cannot_store(valkey_url: str) -> None:
    async with Redis.from_url(valkey_url + ".nowhere") as away:
        await observe(away, {BUILD_S: 1.0})
        await observe_build(away, "knn", "failed", 1.0, {})


def test_parse_samples_shows_every_histogram_and_passes_over_unknown_fields() -> None:
    samples = parse_samples({"pcct_refresh_decisions|one": 1.0, "else": 2.0})
    assert samples.counters == ()
    assert [sample.histogram for sample in samples.histograms] == [each for each in HISTOGRAMS if not each.labels]


def test_histogram_bounds_ascend_and_hold_their_upper_end() -> None:
    for histogram in HISTOGRAMS:
        assert list(histogram.bounds) == sorted(set(histogram.bounds))
        assert histogram.field(histogram.bounds[1]) == f"{histogram.name}|{histogram.bounds[1]:g}"
        assert histogram.field(histogram.bounds[-1] + 1) == f"{histogram.name}|+Inf"
