from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as StoreConnectionError

from pcct_core.errors import InvalidSpec
from pcct_core.spec import Cosine, Euclidean, GraphSpec, Inducing, Matern52, Residual, Stored
from worker.keys import Keys
from worker.store import Dataset, Store, UnknownDataset
from worker.tasks import Queue
from worker.tracks import (
    MAX_EPOCH,
    EpochBackwards,
    Hyperparameters,
    Newest,
    NotAHyperparameter,
    RefreshPolicy,
    TrackEvent,
    TrackRecord,
    Tracks,
    UnknownTrack,
    decide,
    drift,
    merge_metric,
)

pytestmark = pytest.mark.anyio

SPEC = GraphSpec(kind="vecchia", k=3, metric=Euclidean(0.3))
H = Hyperparameters
DRIFT, POWERS = RefreshPolicy(), RefreshPolicy(schedule="powers_of_two")
EAGER = RefreshPolicy(cooldown_epochs=0)


class FakeQueue:
    """Records jobs; raises like a store that is away while `away`."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, str]] = []
        self.submitted: list[str] = []
        self.away = False

    async def follow(self, namespace: str, track: str, driver: str) -> None:
        if self.away:
            raise StoreConnectionError("away")
        if (track, driver) not in self.jobs:
            self.jobs.append((track, driver))

    async def submit(self, record: Any) -> None:
        self.submitted.append(record.id)

    async def depth(self) -> int:
        return len(self.jobs)


@pytest.fixture
def queue() -> FakeQueue:
    return FakeQueue()


@pytest.fixture
def tracks(store: Store, queue: FakeQueue) -> Tracks:
    return Tracks(store, queue, queue)  # type: ignore[arg-type]


@pytest.fixture
async def track(tracks: Tracks, dataset: Dataset) -> TrackRecord:
    return await tracks.create(dataset.id, SPEC, RefreshPolicy())


async def drive(tracks: Tracks, id: str, delivery: str = "d") -> TrackRecord:
    """Return the record after a job has entered."""
    record = await tracks.track(id)
    assert await tracks.enter(id, record.driver, delivery)
    return await tracks.track(id)


async def publish(tracks: Tracks, id: str) -> TrackRecord:
    """Publish the newest requested version as if a job had built its graph, and let the job end."""
    record = await drive(tracks, id)
    assert record.pending is not None
    await make_ready(tracks, record.pending.graph)
    assert await tracks.publish_version(id, record.pending, queue_s=0.1, build_s=0.2)
    await tracks.release(record)
    return await tracks.track(id)


async def make_ready(tracks: Tracks, graph: str) -> None:
    """Store a graph whose arrays are whole."""
    await tracks._store.redis.hset(Keys().graph(graph), mapping={"state": "ready", "chunks": 1})
    await tracks._store.redis.hset(Keys().arrays(graph), "neighbors:0", b"")


async def told(tracks: Tracks, id: str) -> list[TrackEvent]:
    """The events so far."""
    entries = await tracks._store.redis.xlen(Keys().track_events(id))
    events = tracks.events(id, "0")
    return [await anext(events) for _ in range(entries)]


# decide

OLD = H(0.3, 1.0)
NEAR, FAR = H(0.3 * math.exp(0.049), 1.0), H(0.3 * math.exp(0.051), 1.0)


@pytest.mark.parametrize(
    ("policy", "newest", "moved", "epoch", "force", "expected"),
    [
        # identical
        (DRIFT, Newest(OLD, 3, "published"), OLD, 9, False, "cached unchanged"),
        (DRIFT, Newest(OLD, 3, "published"), OLD, 9, True, "cached unchanged"),
        (DRIFT, Newest(OLD, 3, "pending"), OLD, 9, False, "pending unchanged"),
        (DRIFT, Newest(OLD, 3, "pending"), OLD, 3, True, "pending unchanged"),
        (DRIFT, Newest(OLD, 3, "lost"), OLD, 3, False, "scheduled lost"),
        (DRIFT, Newest(OLD, 3, "lost"), OLD, 3, True, "scheduled forced"),
        (DRIFT, Newest(OLD, 3, "failed"), OLD, 3, False, "cached cooldown"),
        (DRIFT, Newest(OLD, 3, "failed"), OLD, 4, False, "scheduled failed"),
        (DRIFT, Newest(OLD, 3, "failed"), OLD, 3, True, "scheduled forced"),
        (DRIFT, Newest(H(), 0, "published"), H(), 99, False, "cached unchanged"),
        # force
        (DRIFT, Newest(OLD, 3, "published"), NEAR, 3, True, "scheduled forced"),
        (POWERS, Newest(OLD, 3, "pending"), NEAR, 3, True, "scheduled forced"),
        # cooldown
        (DRIFT, Newest(OLD, 3, "published"), FAR, 3, False, "cached cooldown"),
        (DRIFT, Newest(OLD, 3, "pending"), FAR, 3, False, "pending cooldown"),
        (RefreshPolicy(cooldown_epochs=3), Newest(OLD, 3, "published"), FAR, 5, False, "cached cooldown"),
        (RefreshPolicy(cooldown_epochs=3), Newest(OLD, 3, "published"), FAR, 6, False, "scheduled drift"),
        (RefreshPolicy(cooldown_epochs=9), Newest(OLD, 0, "published"), FAR, 6, False, "cached cooldown"),
        (EAGER, Newest(OLD, 3, "published"), FAR, 3, False, "scheduled drift"),
        (RefreshPolicy(cooldown_epochs=3), Newest(OLD, 3, "failed"), FAR, 3, False, "scheduled failed"),
        (RefreshPolicy(cooldown_epochs=3), Newest(OLD, 3, "failed"), NEAR, 3, False, "scheduled failed"),
        (RefreshPolicy(cooldown_epochs=3), Newest(OLD, 3, "failed"), OLD, 5, False, "cached cooldown"),
        (DRIFT, Newest(OLD, 3, "lost"), FAR, 3, False, "scheduled lost"),
        # drift
        (DRIFT, Newest(OLD, 3, "published"), NEAR, 4, False, "cached within_tolerance"),
        (DRIFT, Newest(OLD, 3, "pending"), NEAR, 4, False, "pending within_tolerance"),
        (DRIFT, Newest(OLD, 3, "published"), FAR, 4, False, "scheduled drift"),
        (DRIFT, Newest(OLD, 3, "pending"), FAR, 4, False, "scheduled drift"),
        (DRIFT, Newest(OLD, 3, "published"), H(0.3, 1.06), 4, False, "scheduled drift"),
        (DRIFT, Newest(OLD, 3, "published"), H(0.3, 1.04), 4, False, "cached within_tolerance"),
        (DRIFT, Newest(OLD, 3, "published"), H((0.3, 0.3, 0.31), 1.0), 4, False, "cached within_tolerance"),
        (DRIFT, Newest(OLD, 3, "published"), H((0.3, 0.3, 0.32), 1.0), 4, False, "scheduled drift"),
        (RefreshPolicy(tolerance=0.0), Newest(OLD, 3, "published"), NEAR, 4, False, "scheduled drift"),
        (DRIFT, Newest(OLD, 3, "failed"), NEAR, 4, False, "scheduled failed"),
        # the latest
        (DRIFT, Newest(OLD, 3, "published"), NEAR, 7, False, "cached within_tolerance"),
        (DRIFT, Newest(OLD, 3, "published"), NEAR, 8, False, "scheduled max_epochs"),
        (DRIFT, Newest(OLD, 3, "pending"), NEAR, 8, False, "scheduled max_epochs"),
        # powers of two
        (POWERS, Newest(OLD, 0, "published"), FAR, 1, False, "scheduled power_of_two"),
        (POWERS, Newest(OLD, 0, "published"), FAR, 0, False, "cached cooldown"),
        (RefreshPolicy(schedule="powers_of_two", cooldown_epochs=0), Newest(OLD, 0, "published"), FAR, 0, False,
         "cached not_due"),
        (POWERS, Newest(OLD, 2, "published"), FAR, 3, False, "cached not_due"),
        (POWERS, Newest(OLD, 2, "pending"), FAR, 3, False, "pending not_due"),
        (POWERS, Newest(OLD, 2, "published"), FAR, 4, False, "scheduled power_of_two"),
        (POWERS, Newest(OLD, 4, "published"), FAR, 7, False, "cached not_due"),
        (POWERS, Newest(OLD, 4, "published"), FAR, 100, False, "scheduled power_of_two"),
        (POWERS, Newest(OLD, 100, "published"), FAR, 127, False, "cached not_due"),
        (POWERS, Newest(OLD, 5, "failed"), FAR, 6, False, "scheduled failed"),
    ],
)  # fmt: skip
def test_decide_table(
    policy: RefreshPolicy, newest: Newest, moved: Hyperparameters, epoch: int, force: bool, expected: str
) -> None:
    assert " ".join(decide(policy, newest, moved, epoch, force)) == expected


def test_drift_is_the_largest_of_all() -> None:
    assert drift(H(1.0, 1.0), H(1.0, 1.0)) == 0.0
    assert drift(H(2.0), H(1.0)) == pytest.approx(math.log(2))
    assert drift(H((1.0, 2.0), 1.0), H(1.0, 3.0)) == pytest.approx(math.log(3))
    assert drift(H((1.0, 2.0), 1.0), H((8.0, 2.0), 3.0)) == pytest.approx(math.log(8))
    assert drift(H(), H()) == 0.0


def test_hyperparameters_of_each_metric() -> None:
    assert H.of(Euclidean()) == H(1.0)
    assert H.of(Euclidean((1.0, 2.0))) == H((1.0, 2.0))
    assert H.of(Cosine()) == H()
    assert H.of(Residual(Matern52(0.5, 2.0))) == H(0.5, 2.0)


# RefreshPolicy


def test_refresh_policy_reads_what_it_writes() -> None:
    assert RefreshPolicy.from_json({}) == RefreshPolicy(0.05, 5, 1, "drift")
    policy = RefreshPolicy(0.0, 1, 0, "powers_of_two")
    assert RefreshPolicy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"tolerance": -0.1}, "policy.tolerance"),
        ({"tolerance": math.nan}, "policy.tolerance"),
        ({"tolerance": math.inf}, "policy.tolerance"),
        ({"tolerance": "a"}, "policy.tolerance"),
        ({"tolerance": True}, "policy.tolerance"),
        ({"max_epochs": 0}, "policy.max_epochs"),
        ({"max_epochs": 1.5}, "policy.max_epochs"),
        ({"cooldown_epochs": -1}, "policy.cooldown_epochs"),
        ({"cooldown_epochs": True}, "policy.cooldown_epochs"),
        ({"schedule": "daily"}, "policy.schedule"),
        ({"schedule": ["drift"]}, "policy.schedule"),
        ({"cooldown": 1}, "policy.cooldown"),
        ([], "policy"),
        (None, "policy"),
    ],
)
def test_refresh_policy_refuses(data: object, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        RefreshPolicy.from_json(data)
    assert caught.value.field == field


# merge_metric

RESIDUAL = Residual(Matern52((0.3, 0.2), 2.0), Inducing(8, "random", 3)).to_json()


@pytest.mark.parametrize(
    ("track", "given", "expected"),
    [
        (RESIDUAL, {"lengthscale": 0.5}, RESIDUAL | {"lengthscale": 0.5}),
        (RESIDUAL, {"variance": 3}, RESIDUAL | {"variance": 3.0}),
        (RESIDUAL, {}, RESIDUAL),
        (RESIDUAL, RESIDUAL | {"variance": 1.5}, RESIDUAL | {"variance": 1.5}),
        (RESIDUAL, {"type": "residual", "kernel": "matern52", "variance": 1.0}, RESIDUAL | {"variance": 1.0}),
        ({"type": "euclidean"}, {"lengthscale": [1, 2]}, {"type": "euclidean", "lengthscale": [1.0, 2.0]}),
        ({"type": "euclidean", "lengthscale": 2.0}, {"lengthscale": 1}, {"type": "euclidean"}),
        ({"type": "euclidean", "lengthscale": 2.0}, {}, {"type": "euclidean", "lengthscale": 2.0}),
        ({"type": "haversine"}, {}, {"type": "haversine"}),
        ({"type": "cosine"}, {"type": "cosine"}, {"type": "cosine"}),
    ],
)
def test_merge_metric_moves_hyperparameters(track: dict[str, Any], given: object, expected: dict[str, Any]) -> None:
    assert merge_metric(track, given).to_json() == expected


FACTORS = Residual(Matern52(0.3), None, factors=(Stored("a" * 64), Stored("b" * 64))).to_json()


@pytest.mark.parametrize(
    ("track", "given", "field"),
    [
        (RESIDUAL, {"kernel": "rbf"}, "metric.kernel"),
        (RESIDUAL, {"type": "euclidean", "lengthscale": 1.0}, "metric.type"),
        (RESIDUAL, {"inducing": {"count": 9}}, "metric.inducing"),
        (RESIDUAL, {"jitter": 0.1}, "metric.jitter"),
        (RESIDUAL, {"v": "a" * 64, "p": "b" * 64}, "metric.v"),
        (RESIDUAL, {"nonsense": 1}, "metric.nonsense"),
        (FACTORS, {"lengthscale": 0.5}, "metric.lengthscale"),
        ({"type": "euclidean"}, {"variance": 1.0}, "metric.variance"),
        ({"type": "haversine"}, {"lengthscale": 1.0}, "metric.lengthscale"),
    ],
)
def test_merge_metric_refuses_other_changes(track: dict[str, Any], given: object, field: str) -> None:
    with pytest.raises(NotAHyperparameter) as caught:
        merge_metric(track, given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"lengthscale": 0}, "metric.lengthscale"),
        ({"lengthscale": [1.0, -1.0]}, "metric.lengthscale"),
        ({"lengthscale": "a"}, "metric.lengthscale"),
        ({"lengthscale": None}, "metric.lengthscale"),
        ({"variance": math.inf}, "metric.variance"),
        ({"variance": -1}, "metric.variance"),
        ("residual", "metric"),
        ([1.0], "metric"),
    ],
)
def test_merge_metric_refuses_values(given: object, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        merge_metric(RESIDUAL, given)
    assert caught.value.field == field


# Tracks, asking


async def test_create_requests_version_1(track: TrackRecord, dataset: Dataset, queue: FakeQueue) -> None:
    assert (track.version, track.graph, track.metric, track.epoch, track.error) == (0, None, None, None, None)
    assert (track.n, track.d, track.seen_epoch, track.etag) == (200, 3, 0, "0-0")
    assert track.pending is not None
    assert (track.pending.version, track.pending.epoch) == (1, 0)
    assert track.spec == SPEC.to_json()
    assert queue.jobs == [(track.id, track.driver)]


async def test_create_refuses(tracks: Tracks, dataset: Dataset, redis: Redis) -> None:
    with pytest.raises(UnknownDataset):
        await tracks.create("e" * 64, SPEC, RefreshPolicy())
    with pytest.raises(InvalidSpec, match="4 values for 3 dimensions"):
        await tracks.create(dataset.id, GraphSpec(k=3, metric=Euclidean((1.0,) * 4)), RefreshPolicy())
    assert await redis.keys("pcct:ns:*:track:*") == []


async def test_refresh_names_versions_as_they_are_requested(tracks: Tracks, track: TrackRecord) -> None:
    await publish(tracks, track.id)
    answers = [await tracks.refresh(track.id, {"lengthscale": 2.0**epoch}, epoch) for epoch in range(1, 4)]
    assert answers == [("scheduled", "drift", 1, version) for version in (2, 3, 4)]
    assert await tracks.refresh(track.id, {"lengthscale": 8.0}, 4) == ("pending", "unchanged", 1, 4)
    after = await publish(tracks, track.id)
    assert (after.version, after.epoch, after.metric) == (4, 3, {"type": "euclidean", "lengthscale": 8.0})
    assert after.spec == SPEC.to_json() | {"metric": after.metric}
    assert after.driver == ""
    assert await tracks.refresh(track.id) == ("cached", "unchanged", 4, None)


async def test_refresh_keeps_one_driver_until_it_ends(tracks: Tracks, track: TrackRecord, queue: FakeQueue) -> None:
    for epoch in range(1, 4):
        await tracks.refresh(track.id, {"lengthscale": 2.0**epoch}, epoch)
    assert queue.jobs == [(track.id, track.driver)]
    await publish(tracks, track.id)
    await tracks.refresh(track.id, {"lengthscale": 99.0})
    assert len(queue.jobs) == 2


async def test_refresh_of_a_graph_that_is_there_needs_no_job(
    tracks: Tracks, track: TrackRecord, dataset: Dataset, queue: FakeQueue
) -> None:
    await publish(tracks, track.id)
    await tracks.refresh(track.id, {"lengthscale": 5.0})
    await publish(tracks, track.id)
    jobs = list(queue.jobs)
    assert await tracks.refresh(track.id, {"lengthscale": 0.3}) == ("cached", "ready", 3, None)
    again = await tracks.track(track.id)
    assert (again.version, again.pending, again.metric) == (3, None, {"type": "euclidean", "lengthscale": 0.3})
    other = await tracks.create(dataset.id, SPEC, RefreshPolicy())
    assert (other.version, other.pending, other.driver) == (1, None, "")
    assert queue.jobs == jobs


@pytest.mark.parametrize("force", [False, True])
async def test_refresh_of_a_lost_graph_schedules_it_again(
    tracks: Tracks, track: TrackRecord, redis: Redis, force: bool
) -> None:
    record = await publish(tracks, track.id)
    await redis.delete(Keys().arrays(record.graph))  # type: ignore[arg-type]
    answer = await tracks.refresh(track.id, epoch=0, force=force)
    assert answer == ("scheduled", "forced" if force else "lost", 1, 2)


async def test_refresh_refuses_and_leaves_the_track_unharmed(
    tracks: Tracks, track: TrackRecord, store: Store, dataset: Dataset
) -> None:
    before = await publish(tracks, track.id)
    await tracks.refresh(track.id, epoch=7)
    before = await tracks.track(track.id)
    for metric, epoch, error, field in (
        ({"lengthscale": [1.0, 2.0]}, 8, InvalidSpec, "metric.lengthscale"),
        ({"lengthscale": -1.0}, 8, InvalidSpec, "metric.lengthscale"),
        ({"type": "cosine"}, 8, NotAHyperparameter, "metric.type"),
        ({"lengthscale": 9.0}, 6, EpochBackwards, "epoch"),
        ({"lengthscale": 9.0}, -1, InvalidSpec, "epoch"),
        ({"lengthscale": 9.0}, MAX_EPOCH + 1, InvalidSpec, "epoch"),
    ):
        with pytest.raises(error) as caught:
            await tracks.refresh(track.id, metric, epoch)
        assert caught.value.field == field
    await store.delete_dataset(dataset.id)
    with pytest.raises(UnknownDataset):
        await tracks.refresh(track.id, {"lengthscale": 9.0}, 8)
    assert await tracks.track(track.id) == before


async def test_refresh_of_an_unknown_track(tracks: Tracks, track: TrackRecord) -> None:
    assert await tracks.delete(track.id)
    assert not await tracks.delete(track.id)
    for call in (tracks.track(track.id), tracks.refresh(track.id), tracks.wait_track(track.id, 1.0)):
        with pytest.raises(UnknownTrack):
            await call
    with pytest.raises(UnknownTrack):
        await anext(tracks.events(track.id))


async def test_refresh_of_a_metric_without_hyperparameters_is_unchanged(tracks: Tracks, dataset: Dataset) -> None:
    track = await tracks.create(dataset.id, GraphSpec(k=3, metric=Cosine()), RefreshPolicy())
    await publish(tracks, track.id)
    assert await tracks.refresh(track.id, {}, 99) == ("cached", "unchanged", 1, None)


async def test_refresh_at_once_by_fifty_numbers_every_version_once(tracks: Tracks, track: TrackRecord) -> None:
    answers = await asyncio.gather(*(tracks.refresh(track.id, {"lengthscale": 2.0 + i}, force=True) for i in range(50)))
    assert sorted(answer.pending_version for answer in answers) == list(range(2, 52))
    newest = max(answers, key=lambda answer: answer.pending_version)
    record = await tracks.track(track.id)
    assert record.requested == newest.pending_version
    assert record.requested_metric["lengthscale"] == 2.0 + answers.index(newest)


@pytest.mark.parametrize("heal", ["refresh", "wait"])
async def test_driver_whose_job_was_never_submitted_is_found(
    tracks: Tracks, track: TrackRecord, queue: FakeQueue, heal: str
) -> None:
    await publish(tracks, track.id)
    queue.away = True
    with pytest.raises(StoreConnectionError):
        await tracks.refresh(track.id, {"lengthscale": 9.0})
    queue.away = False
    queue.jobs.clear()
    await (tracks.refresh(track.id, epoch=1) if heal == "refresh" else tracks.wait_track(track.id, 0.01))
    assert queue.jobs == [(track.id, (await tracks.track(track.id)).driver)]


# Tracks, driving


async def test_publish_version_only_goes_up(tracks: Tracks, track: TrackRecord) -> None:
    stalled = (await drive(tracks, track.id)).pending
    assert stalled is not None
    await tracks.refresh(track.id, {"lengthscale": 9.0})
    after = await publish(tracks, track.id)
    assert after.version == 2
    assert not await tracks.publish_version(track.id, stalled, queue_s=0.0, build_s=0.0)
    assert await tracks.track(track.id) == after
    assert after.pending is None


async def test_publish_version_of_an_overtaken_build_is_in_order(tracks: Tracks, track: TrackRecord) -> None:
    first = (await drive(tracks, track.id)).pending
    assert first is not None
    await tracks.refresh(track.id, {"lengthscale": 9.0}, 4)
    assert await tracks.publish_version(track.id, first, queue_s=0.0, build_s=0.0)
    record = await tracks.track(track.id)
    assert (record.version, record.graph, record.metric) == (1, first.graph, first.metric)
    assert record.pending is not None
    assert record.pending.version == 2
    assert (await told(tracks, track.id))[-1].data["staleness_epochs"] == 4


async def test_fail_version_keeps_what_is_published(tracks: Tracks, track: TrackRecord) -> None:
    good = await publish(tracks, track.id)
    await tracks.refresh(track.id, {"lengthscale": 9.0})
    record = await drive(tracks, track.id)
    assert record.pending is not None
    assert await tracks.fail_version(record, record.pending, {"type": "not-positive-definite", "title": "t"})
    failed = await tracks.track(track.id)
    assert (failed.version, failed.graph, failed.failures, failed.etag) == (1, good.graph, 1, "1-1")
    assert failed.error == {"type": "not-positive-definite", "title": "t"}
    assert failed.pending is None
    assert await tracks.release(failed)
    assert await tracks.refresh(track.id, {"lengthscale": 8.0}) == ("scheduled", "failed", 1, 3)
    assert (await tracks.track(track.id)).error is None
    assert (await publish(tracks, track.id)).version == 3


async def test_fail_version_of_an_earlier_delivery_does_not_count(tracks: Tracks, track: TrackRecord) -> None:
    stalled = await drive(tracks, track.id, "first")
    assert stalled.pending is not None
    await drive(tracks, track.id, "second")
    assert not await tracks.fail_version(stalled, stalled.pending, {"type": "odd"})
    assert await tracks.begin(stalled, 1) is None
    assert await tracks.release(stalled)
    record = await tracks.track(track.id)
    assert (record.failures, record.error, record.driver) == (0, None, track.driver)


async def test_release_goes_on_when_something_newer_is_wanted(tracks: Tracks, track: TrackRecord) -> None:
    record = await drive(tracks, track.id)
    assert record.pending is not None
    assert not await tracks.release(record)
    await tracks.publish_version(track.id, record.pending, queue_s=0.0, build_s=0.0)
    assert await tracks.release(record)
    assert (await tracks.track(track.id)).driver == ""


async def test_hand_over_names_and_queues_the_next_driver(tracks: Tracks, track: TrackRecord, queue: FakeQueue) -> None:
    record = await drive(tracks, track.id)
    await tracks.hand_over(record)
    after = await tracks.track(track.id)
    assert after.driver not in ("", record.driver)
    assert queue.jobs[-1] == (track.id, after.driver)
    assert not await tracks.enter(track.id, record.driver, "late")


async def test_begin_tells_what_was_begun_before(tracks: Tracks, track: TrackRecord) -> None:
    record = await drive(tracks, track.id)
    begun = await tracks.begin(record, 1)
    assert begun is not None
    assert begun.before == ""
    assert 0.0 <= begun.queue_s < 60.0
    await tracks.refresh(track.id, {"lengthscale": 9.0})
    assert await tracks.begin(record, 1) is None
    again = await tracks.begin(record, 2)
    assert again is not None
    assert again.before == record.requested_graph


# Waiting and events


async def later(call: Any) -> asyncio.Task[Any]:
    """Start to wait, and return once the wait is under way."""
    task = asyncio.create_task(call)
    await asyncio.sleep(0.05)
    assert not task.done()
    return task


@pytest.mark.parametrize("etag", [None, "0-0"])
async def test_wait_track_returns_when_a_version_is_published(
    tracks: Tracks, track: TrackRecord, etag: str | None
) -> None:
    waiting = await later(tracks.wait_track(track.id, 60.0, etag))
    await publish(tracks, track.id)
    assert (await waiting).etag == "1-0"


async def test_wait_track_returns_when_a_version_fails(tracks: Tracks, track: TrackRecord) -> None:
    record = await drive(tracks, track.id)
    waiting = await later(tracks.wait_track(track.id, 60.0))
    assert record.pending is not None
    await tracks.fail_version(record, record.pending, {"type": "odd"})
    assert (await waiting).error == {"type": "odd"}


async def test_wait_track_returns_the_present_at_the_timeout(tracks: Tracks, track: TrackRecord) -> None:
    assert (await tracks.wait_track(track.id, 0.0)).etag == "0-0"
    assert (await tracks.wait_track(track.id, 0.05, "0-0")).etag == "0-0"
    assert (await tracks.wait_track(track.id, 60.0, "7-7")).etag == "0-0"


async def test_wait_track_ends_when_the_track_is_deleted(tracks: Tracks, track: TrackRecord) -> None:
    waiting = await later(tracks.wait_track(track.id, 60.0))
    await tracks.delete(track.id)
    with pytest.raises(UnknownTrack):
        await waiting


async def test_events_in_order_resumed_and_ended_by_delete(tracks: Tracks, track: TrackRecord) -> None:
    live = tracks.events(track.id)
    first = await later(anext(live))
    await publish(tracks, track.id)
    assert (await first).name == "neighbor_refresh.complete"
    await tracks.refresh(track.id)
    await tracks.refresh(track.id, {"lengthscale": 9.0})
    events = await told(tracks, track.id)
    assert [event.name.removeprefix("neighbor_refresh.") for event in events] == [
        *("schedule", "complete", "swap", "skip_cached", "schedule")
    ]
    assert [event.data["version"] for event in events] == [1, 1, 1, 1, 2]
    assert {"track", "version", "epoch", "time_s", "seconds", "queue_s", "build_s"} <= set(events[1].data)
    assert events[1].data["seconds"] == pytest.approx(0.3)
    assert events[3].data["reason"] == "unchanged"
    assert [event async for event in resumed(tracks, track.id, events[1].id, 3)] == events[2:]
    assert [(await anext(live)).id for _ in range(3)] == [event.id for event in events[2:]]
    rest = await later(collected(live))
    await tracks.delete(track.id)
    assert await rest == []


async def collected(events: AsyncIterator[TrackEvent]) -> list[TrackEvent]:
    return [event async for event in events]


async def resumed(tracks: Tracks, id: str, after: str, count: int) -> AsyncIterator[TrackEvent]:
    events = tracks.events(id, after)
    for _ in range(count):
        yield await anext(events)


@pytest.mark.parametrize("after", ["", "x", "1-", "-1", "1-2-3", "9" * 20])
async def test_events_refuse_what_is_no_id(tracks: Tracks, track: TrackRecord, after: str) -> None:
    with pytest.raises(InvalidSpec, match="not the id of an event"):
        await anext(tracks.events(track.id, after))


async def test_events_are_bounded(tracks: Tracks, track: TrackRecord, redis: Redis) -> None:
    await publish(tracks, track.id)
    for _ in range(1500):
        await tracks.refresh(track.id, epoch=1)
    assert await redis.xlen(Keys().track_events(track.id)) < 1300


async def test_metrics_count_decisions_errors_and_times(tracks: Tracks, track: TrackRecord) -> None:
    await publish(tracks, track.id)
    await tracks.refresh(track.id, epoch=1)
    await tracks.refresh(track.id, {"lengthscale": 9.0}, epoch=2)
    record = await drive(tracks, track.id)
    assert record.pending is not None
    await tracks.fail_version(record, record.pending, {"type": "odd"})
    samples = await tracks.metrics()
    counted = {(sample.counter.name, *sample.labels): sample.value for sample in samples.counters}
    assert counted == {
        ("pcct_refresh_decisions", "scheduled", "created"): 1,
        ("pcct_refresh_decisions", "cached", "unchanged"): 1,
        ("pcct_refresh_decisions", "scheduled", "drift"): 1,
        ("pcct_refresh_errors", "odd"): 1,
    }
    wait, build, stale = samples.histograms
    assert (wait.sum, build.sum, stale.sum) == pytest.approx((0.1, 0.2, 0.0))
    assert wait.buckets[2:4] == (("0.05", 0), ("0.1", 1))
    assert {histogram.buckets[-1] for histogram in samples.histograms} == {("+Inf", 1)}


async def test_progress_of_a_pending_version(
    tracks: Tracks, track: TrackRecord, store: Store, dataset: Dataset
) -> None:
    assert track.pending is not None
    assert await tracks.progress(track.pending) == ("queued", None)
    await drive(tracks, track.id)
    claim = await store.claim_graph(dataset.id, SPEC, track.id, "d", max_attempts=3, exhausted={})
    shown = {"phase": "search", "done": 1, "total": 2, "eta_s": None}
    await store.set_progress(track.pending.graph, claim.attempt, shown)
    assert await tracks.progress(track.pending) == ("running", shown)


@pytest.mark.parametrize("shared", [False, True])
async def test_delete_cancels_its_build_unless_others_asked(
    tracks: Tracks, track: TrackRecord, store: Store, dataset: Dataset, queue: FakeQueue, shared: bool
) -> None:
    record = await drive(tracks, track.id)
    await tracks.begin(record, 1)
    claim = await store.claim_graph(dataset.id, SPEC, track.id, "d", max_attempts=3, exhausted={})
    if shared:
        assert not (await store.request_graph(dataset.id, SPEC))[1]
    await tracks.delete(track.id)
    graph = await store.graph(record.requested_graph)
    assert graph is not None
    assert graph.state == ("queued" if shared else "cancelled")
    assert queue.submitted == ([graph.id] if shared else [])
    assert not await store.set_progress(graph.id, claim.attempt, None)


# Store.claim_graph


async def claim(store: Store, track: str, delivery: str = "d") -> str:
    exhausted = {"type": "worker-died", "title": "", "detail": ""}
    return (await store.claim_graph("d" * 64, SPEC, track, delivery, max_attempts=2, exhausted=exhausted)).standing


async def test_claim_graph_takes_over_from_an_earlier_delivery(
    tracks: Tracks, track: TrackRecord, store: Store
) -> None:
    await drive(tracks, track.id, "a")
    assert await claim(store, track.id, "a") == "started"
    await drive(tracks, track.id, "b")
    assert await claim(store, track.id, "a") == "unwanted"
    assert await claim(store, track.id, "b") == "started"
    await drive(tracks, track.id, "c")
    assert await claim(store, track.id, "c") == "ended"
    graph = await store.graph(track.requested_graph)
    assert graph is not None
    assert (graph.state, graph.error) == ("failed", {"type": "worker-died", "title": "", "detail": ""})


async def test_claim_graph_waits_for_a_build_elsewhere(
    tracks: Tracks, track: TrackRecord, store: Store, dataset: Dataset
) -> None:
    await drive(tracks, track.id)
    record, _ = await store.request_graph(dataset.id, SPEC)
    assert await store.mark_running(record.id, record.request, "x", max_attempts=3, exhausted={})
    assert await claim(store, track.id) == "elsewhere"
    assert await store.set_progress(record.id, "x", None)


async def test_claim_graph_turns_away_a_queued_job(
    tracks: Tracks, track: TrackRecord, store: Store, dataset: Dataset
) -> None:
    await drive(tracks, track.id)
    record, needed = await store.request_graph(dataset.id, SPEC)
    assert needed
    assert await claim(store, track.id) == "started"
    assert not await store.mark_running(record.id, record.request, "x", max_attempts=3, exhausted={})
    # Whoever asked for it gets it from the track's build, or from a job of its own once that is dropped.
    queued = await store.drop_graph(record.id, track.id)
    assert queued is not None
    assert queued.state == "queued"
    assert await store.mark_running(record.id, queued.request, "x", max_attempts=3, exhausted={})
    assert await store.drop_graph(record.id, track.id) is None
    assert await store.set_progress(record.id, "x", None)


async def test_claim_graph_by_two_tracks_builds_once(
    tracks: Tracks, track: TrackRecord, store: Store, dataset: Dataset
) -> None:
    other = await tracks.create(dataset.id, SPEC, RefreshPolicy())
    await drive(tracks, track.id)
    await drive(tracks, other.id)
    assert await claim(store, track.id) == "started"
    assert await claim(store, other.id) == "elsewhere"
    assert await store.drop_graph(track.requested_graph, track.id) is not None
    assert await claim(store, other.id) == "started"


async def test_claim_graph_without_dataset_or_track(
    tracks: Tracks, track: TrackRecord, store: Store, dataset: Dataset
) -> None:
    await drive(tracks, track.id)
    await store.delete_dataset(dataset.id)
    with pytest.raises(UnknownDataset):
        await claim(store, track.id)
    await tracks.delete(track.id)
    assert await claim(store, track.id) == "unwanted"


async def test_jobs_of_a_track_are_queued_once(valkey_url: str) -> None:
    queue = Queue(valkey_url, "refresh", task="follow")
    await asyncio.gather(*(queue.follow("default", "t", "one") for _ in range(5)), queue.follow("default", "t", "two"))
    assert await queue.depth() == 2
    await queue.aclose()
