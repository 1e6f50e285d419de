from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from pcct_core.errors import Cancelled, NotPositiveDefinite
from pcct_core.graph import Graph, build_graph
from pcct_core.parallel import Crew
from pcct_core.spec import Euclidean, GraphSpec
from worker.follow import Follower
from worker.keys import Keys
from worker.run import Runner
from worker.settings import WorkerSettings
from worker.store import Dataset, Store, graph_id
from worker.tasks import Queue
from worker.tracks import RefreshPolicy, TrackRecord, Tracks

pytestmark = pytest.mark.anyio

BAD = 13.0  # a lengthscale that no graph is built for


def spec_of(lengthscale: float) -> GraphSpec:
    return GraphSpec(kind="vecchia", k=4, order="given", metric=Euclidean(lengthscale))


class Held:
    """Builds like the core, but not before `opened`; `scales` are the lengthscales of the builds that were started."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.scales: list[float] = []
        self.threads: list[int | None] = []

    def __call__(
        self, X: Any, spec: GraphSpec, *, progress: Any = None, cancel: Any = None, threads: int | None = None
    ) -> Graph:
        assert isinstance(spec.metric, Euclidean)
        self.scales.append(float(spec.metric.lengthscale or 1.0))  # type: ignore[arg-type]
        self.threads.append(threads)
        progress("held", 0, 2)
        while not self.opened.wait(0.01):
            if cancel.is_set():
                raise Cancelled("the build was cancelled")
        if self.scales[-1] == BAD:
            raise NotPositiveDefinite("the kernel matrix is not positive definite; raise the jitter")
        return build_graph(X, spec, progress=progress, cancel=cancel, threads=threads)


class Workers:
    """Queues, tracks, and the workers that a test starts."""

    def __init__(self, store: Store, url: str) -> None:
        self.store, self.url = store, url
        self.queue = Queue(url, "refresh", task="follow")
        self.graphs = Queue(url)
        self.tracks = Tracks(store, self.queue, self.graphs)
        self.started: list[tuple[asyncio.Event, asyncio.Task[None], Queue]] = []

    def follower(self, build: Any, timeout_s: float = 60.0, pace_s: float = 0.0) -> Follower:
        stopping = asyncio.Event()
        settings = WorkerSettings(redis_url=self.url, shutdown_grace_s=0.5)
        runner = Runner(self.store, None, settings, build, stopping, threads=1)
        return Follower(self.store, self.tracks, runner, timeout_s, stopping, pace_s)

    def start(self, build: Any, timeout_s: float = 60.0, pace_s: float = 0.0) -> Follower:
        """Start to take jobs."""
        follower, queue = self.follower(build, timeout_s, pace_s), Queue(self.url, "refresh", task="follow")
        name = f"worker {len(self.started)}"
        work = queue.work(follower.run_job, name=name, redelivery_s=5.0, stopping=follower.stopping)
        self.started.append((follower.stopping, asyncio.create_task(work), queue))
        return follower

    async def aclose(self) -> None:
        for stopping, task, queue in self.started:
            stopping.set()
            await task
            await queue.aclose()
        await self.queue.aclose()
        await self.graphs.aclose()


@pytest.fixture
async def workers(store: Store, valkey_url: str) -> AsyncIterator[Workers]:
    workers = Workers(store, valkey_url)
    yield workers
    await workers.aclose()


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
async def track(workers: Workers, dataset: Dataset) -> TrackRecord:
    return await workers.tracks.create(dataset.id, spec_of(1.0), RefreshPolicy())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while True:
            answer = condition()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            await asyncio.sleep(0.01)


async def is_idle(queue: Queue) -> bool:
    return await queue.depth() == 0


async def until_settled(workers: Workers, id: str) -> TrackRecord:
    """Wait until nothing is wanted and no job is left."""
    async with asyncio.timeout(60):
        while True:
            record = await workers.tracks.wait_track(id, 30.0)
            if record.driver == "":
                return record
            await asyncio.sleep(0.01)


async def names(workers: Workers, id: str) -> list[str]:
    """The names of all events so far."""
    entries = await workers.store.redis.xlen(Keys().track_events(id))
    events = workers.tracks.events(id, "0")
    return [(await anext(events)).name.removeprefix("neighbor_refresh.") for _ in range(entries)]


async def test_run_job_publishes_what_a_direct_build_gives(
    workers: Workers, track: TrackRecord, held: Held, points: np.ndarray
) -> None:
    held.opened.set()
    workers.start(held)
    await until_settled(workers, track.id)
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0})
    record = await until_settled(workers, track.id)
    assert (record.version, record.metric, record.epoch) == (2, {"type": "euclidean", "lengthscale": 2.0}, 1)
    assert record.graph is not None
    for name, array in build_graph(points, spec_of(2.0), threads=2).arrays().items():
        stored = await workers.store.load_array(record.graph, name)
        assert (stored.dtype, stored.shape) == (array.dtype, array.shape)
        assert stored.tobytes() == array.tobytes()
    assert held.threads == [1, 1]
    told = await names(workers, track.id)
    assert [name for name in told if name != "progress"] == ["schedule", "complete", "swap"] * 2
    assert "progress" in told


async def test_fifty_refreshes_while_a_build_runs_cause_two_builds(
    workers: Workers, track: TrackRecord, held: Held
) -> None:
    workers.start(held)
    workers.start(held)
    await until(lambda: held.scales)
    answers = [await workers.tracks.refresh(track.id, {"lengthscale": 2.0**epoch}, epoch) for epoch in range(1, 51)]
    assert {answer.decision for answer in answers} == {"scheduled"}
    held.opened.set()
    record = await until_settled(workers, track.id)
    assert held.scales == [1.0, 2.0**50]
    assert (record.version, record.failures) == (51, 0)
    told = await names(workers, track.id)
    assert told.count("swap") == 2  # the build that was running is published too, before the newest one


async def test_fifty_refreshes_that_overtake_a_short_build_cause_two_builds(
    workers: Workers, track: TrackRecord, held: Held
) -> None:
    workers.start(held, pace_s=60.0)
    await until(lambda: held.scales)
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0}, 1)
    held.opened.set()
    first = await workers.tracks.wait_track(track.id, 30.0, track.etag)
    for epoch in range(2, 51):
        await workers.tracks.refresh(track.id, {"lengthscale": 2.0**epoch}, epoch)
        await asyncio.sleep(0.01)
    assert (first.version, held.scales) == (1, [1.0])
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0**51}, 51, force=True)  # as `sync` does: at once
    assert (await until_settled(workers, track.id)).version == 52
    assert held.scales == [1.0, 2.0**51]


async def test_the_newest_version_begins_when_its_pace_is_over(
    workers: Workers, track: TrackRecord, held: Held
) -> None:
    workers.start(held, pace_s=0.2)
    await until(lambda: held.scales)
    for epoch in (1, 2):
        await workers.tracks.refresh(track.id, {"lengthscale": 2.0**epoch}, epoch)
    held.opened.set()
    assert (await until_settled(workers, track.id)).version == 3
    assert held.scales == [1.0, 4.0]


async def test_failure_is_told_and_the_next_refresh_works(workers: Workers, track: TrackRecord, held: Held) -> None:
    held.opened.set()
    workers.start(held)
    good = await until_settled(workers, track.id)
    await workers.tracks.refresh(track.id, {"lengthscale": BAD})
    failed = await until_settled(workers, track.id)
    assert (failed.version, failed.graph, failed.failures) == (1, good.graph, 1)
    assert failed.error is not None
    assert failed.error["type"] == "not-positive-definite"
    assert "raise the jitter" in failed.error["detail"]
    assert (await names(workers, track.id))[-1] == "async_error"
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0})
    after = await until_settled(workers, track.id)
    assert (after.version, after.error, after.failures) == (3, None, 1)


async def test_failed_first_version_can_be_forced_again(workers: Workers, dataset: Dataset, held: Held) -> None:
    held.opened.set()
    workers.start(held)
    track = await workers.tracks.create(dataset.id, spec_of(BAD), RefreshPolicy())
    failed = await until_settled(workers, track.id)
    assert (failed.version, failed.failures) == (0, 1)
    assert (await workers.tracks.refresh(track.id, force=True)).decision == "scheduled"
    assert (await until_settled(workers, track.id)).failures == 2
    assert held.scales == [BAD, BAD]


async def test_dataset_that_is_gone_when_the_build_starts_fails_the_version(
    workers: Workers, track: TrackRecord, held: Held
) -> None:
    await workers.store.delete_dataset(track.dataset)
    workers.start(held)
    failed = await until_settled(workers, track.id)
    assert failed.error is not None
    assert failed.error["type"] == "unknown-dataset"


async def test_track_deleted_while_its_build_runs_stops_it(workers: Workers, track: TrackRecord, held: Held) -> None:
    workers.start(held)
    await until(lambda: held.scales)
    await workers.tracks.delete(track.id)
    await until(lambda: is_idle(workers.queue))
    graph = await workers.store.graph(track.requested_graph)
    assert graph is not None
    assert graph.state == "cancelled"
    assert await workers.store.redis.keys("pcct:ns:*:track:*") == []


async def test_build_overtaken_by_a_cached_graph_is_cancelled_and_can_be_asked_for_again(
    workers: Workers, track: TrackRecord, held: Held
) -> None:
    workers.start(held)
    held.opened.set()
    await until_settled(workers, track.id)
    held.opened.clear()
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0}, 1)
    await until(lambda: held.scales == [1.0, 2.0])
    back = await workers.tracks.refresh(track.id, {"lengthscale": 1.0}, 2)
    assert (back.decision, back.reason, back.version) == ("cached", "ready", 3)
    record = await until_settled(workers, track.id)
    assert (record.version, record.failures, record.error) == (3, 0, None)
    graph = await workers.store.graph(graph_id(record.dataset, spec_of(2.0)))
    assert graph is not None
    assert graph.state == "cancelled"
    held.opened.set()
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0}, 3)
    record = await until_settled(workers, track.id)
    assert (record.version, record.failures, held.scales) == (4, 0, [1.0, 2.0, 2.0])


async def test_build_that_is_wanted_again_is_not_cancelled(workers: Workers, track: TrackRecord, held: Held) -> None:
    workers.start(held)
    await until(lambda: held.scales)
    await workers.tracks.drop_build(track.id, track.requested_graph, overtaken=True)
    held.opened.set()
    record = await until_settled(workers, track.id)
    assert (record.version, record.failures, held.scales) == (1, 0, [1.0])


async def test_graph_deleted_while_it_is_built_fails_the_version(
    workers: Workers, track: TrackRecord, held: Held
) -> None:
    workers.start(held)
    await until(lambda: held.scales)
    await workers.store.forget_graph(track.requested_graph)
    failed = await until_settled(workers, track.id)
    assert failed.error is not None
    assert failed.error["type"] == "cancelled"


async def test_build_that_takes_too_long_is_given_up(workers: Workers, track: TrackRecord, held: Held) -> None:
    workers.start(held, timeout_s=0.2)
    failed = await until_settled(workers, track.id)
    assert failed.error is not None
    assert failed.error["type"] == "refresh-timeout"
    assert (await names(workers, track.id))[-1] == "timeout"
    graph = await workers.store.graph(track.requested_graph)
    assert graph is not None
    assert graph.state == "cancelled"


async def test_stopping_worker_hands_its_track_to_another(workers: Workers, track: TrackRecord, held: Held) -> None:
    first = workers.start(held)
    await until(lambda: held.scales)
    first.stopping.set()
    await workers.started[0][1]
    record = await workers.tracks.track(track.id)
    assert record.driver not in ("", track.driver)
    held.opened.set()
    workers.start(held)
    assert (await until_settled(workers, track.id)).version == 1
    graph = await workers.store.graph(track.requested_graph)
    assert graph is not None
    assert graph.attempts == 1  # a job that was handed back has cost none


async def test_redelivered_job_takes_over_and_the_stalled_one_changes_nothing(
    workers: Workers, track: TrackRecord, held: Held
) -> None:
    stalled = asyncio.create_task(workers.follower(held).run_job("default", track.id, track.driver))
    await until(lambda: held.scales)
    again = Held()
    again.opened.set()
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0})
    await workers.follower(again).run_job("default", track.id, track.driver)
    after = await workers.tracks.track(track.id)
    assert (after.version, after.driver) == (2, "")
    held.opened.set()
    await stalled
    assert await workers.tracks.track(track.id) == after
    # Its own version was overtaken while it was stalled, and nobody waits for that graph.
    left = await workers.store.graph(track.requested_graph)
    assert left is not None
    assert left.state == "cancelled"


async def test_killed_job_leaves_a_shared_build_to_the_queue_of_graphs(
    workers: Workers, track: TrackRecord, held: Held
) -> None:
    killed = asyncio.create_task(workers.follower(held).run_job("default", track.id, track.driver))
    await until(lambda: held.scales)
    await workers.store.request_graph(track.dataset, spec_of(1.0))
    killed.cancel()
    with suppress(asyncio.CancelledError):
        await killed
    held.opened.set()
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0})
    await workers.follower(held).run_job("default", track.id, track.driver)
    assert (await workers.tracks.track(track.id)).version == 2
    left = await workers.store.graph(track.requested_graph)
    assert left is not None
    assert left.state == "queued"
    assert await workers.graphs.depth() == 1


async def test_job_waits_for_a_build_of_the_same_graph_elsewhere(
    workers: Workers, track: TrackRecord, held: Held
) -> None:
    record, _ = await workers.store.request_graph(track.dataset, spec_of(1.0))
    settings = WorkerSettings(redis_url=workers.url)
    interactive = Runner(workers.store, workers.graphs, settings, held)
    building = asyncio.create_task(interactive.run_job(record.namespace, record.id, record.request))
    await until(lambda: held.scales)
    workers.start(held)
    await asyncio.sleep(0.1)
    held.opened.set()
    await building
    assert (await until_settled(workers, track.id)).version == 1
    assert held.scales == [1.0]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
async def test_refresh_that_nobody_waits_for_yields_with_all_its_threads(
    workers: Workers, dataset: Dataset, track: TrackRecord
) -> None:
    usual, priorities = os.getpriority(os.PRIO_PROCESS, 0), []

    def build(
        X: Any, spec: GraphSpec, *, progress: Any = None, cancel: Any = None, threads: int | None = None
    ) -> Graph:
        meeting, found = threading.Barrier(2, timeout=60), {}

        def meet(start: int, stop: int) -> None:
            meeting.wait()
            found[threading.get_native_id()] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        with Crew(2) as crew:
            crew.run("", 2, meet)
        assert len(found) == 2
        priorities.append(set(found.values()))
        return build_graph(X, spec, progress=progress, cancel=cancel, threads=threads)

    workers.start(build)
    await until_settled(workers, track.id)
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0})
    await until_settled(workers, track.id)
    await workers.tracks.refresh(track.id, {"lengthscale": 2.01}, force=True)
    await until_settled(workers, track.id)
    assert priorities == [{usual}, {min(19, usual + 10)}, {usual}]


async def test_track_that_is_refreshed_all_the_time_lets_another_through(
    workers: Workers, track: TrackRecord, dataset: Dataset, held: Held
) -> None:
    workers.start(held)
    await until(lambda: held.scales)
    other = await workers.tracks.create(dataset.id, spec_of(100.0), RefreshPolicy())
    await workers.tracks.refresh(track.id, {"lengthscale": 2.0})
    held.opened.set()
    await until_settled(workers, track.id)
    assert (await until_settled(workers, other.id)).version == 1
    assert held.scales == [1.0, 100.0, 2.0]


async def test_job_of_an_earlier_driver_sees_that_the_present_one_is_queued(
    workers: Workers, track: TrackRecord, held: Held, redis: Redis
) -> None:
    """A worker may die between naming the next driver and queueing its job; its own job then comes back."""
    await redis.hset(Keys().track(track.id), "driver", "next")
    before = await workers.queue.depth()
    await workers.follower(held).run_job("default", track.id, track.driver)
    assert await workers.queue.depth() == before + 1
    held.opened.set()
    workers.start(held)
    assert (await until_settled(workers, track.id)).version == 1
