"""The state machine of a track under workers that stall, die and come back, and an API that dies before it submits.

Workers run the real job against the real store, but each call they make waits for a permit, so hypothesis decides where one
of them stops. A worker that is killed never continues; one that stalls has its job delivered again and may continue later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as StoreConnectionError

from pcct_core.errors import NotPositiveDefinite
from pcct_core.graph import Graph, build_graph
from pcct_core.spec import Euclidean, GraphSpec
from worker.follow import Follower
from worker.keys import Keys
from worker.run import Runner
from worker.settings import WorkerSettings
from worker.store import Store, graph_id
from worker.tracks import RefreshPolicy, Tracks

T = TypeVar("T")

DATASET = "d" * 64
POINTS = np.random.default_rng(3).random((12, 2))
BAD = 13.0  # a lengthscale that no graph is built for
SCALES = st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, BAD])
CALLS = (None, "claim_graph", "publish_graph", "fail_version", *("publish_version", "release", "end") * 2)
MOST_ROUNDS = 30  # of all workers, until nothing is left to do
MOST_CALLS = 60  # of one step; a worker that waits for another's build makes calls for ever


def spec_of(lengthscale: float) -> GraphSpec:
    return GraphSpec(kind="vecchia", k=2, order="given", metric=Euclidean(lengthscale))


def build(X: Any, spec: GraphSpec, **rest: Any) -> Graph:
    if spec == spec_of(BAD):
        raise NotPositiveDefinite("not positive definite")
    return build_graph(X, spec)


class Gate:
    """Lets calls through one by one.

    call: name of the one that waits, None while none does. settled: set when one waits or the job has ended.
    """

    def __init__(self) -> None:
        self.call: str | None = None
        self.settled = asyncio.Event()
        self._permit = asyncio.Semaphore(0)

    def let_one(self) -> None:
        self.call = None
        self.settled.clear()
        self._permit.release()

    async def enter(self, call: str) -> None:
        if self._permit.locked():
            self.call = call
            self.settled.set()
        await self._permit.acquire()


class Paced:
    """An object whose awaited methods wait at a gate first; none waits for other workers longer than that."""

    def __init__(self, target: Any, gate: Gate) -> None:
        self._target, self._gate = target, gate

    def within(self, namespace: str) -> Paced:
        return Paced(self._target.within(namespace), self._gate)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def paced(*args: Any, **kwargs: Any) -> Any:
            await self._gate.enter(name)
            return await (method(args[0], 0.0) if name == "wait_graph" else method(*args, **kwargs))

        return paced


class Jobs:
    """The queue of follow jobs as the driver sees it: at least once, by key; `lose` the next submit for an API that dies."""

    def __init__(self) -> None:
        self.queued: list[tuple[str, str]] = []
        self.running: list[tuple[str, str]] = []
        self.lose = False

    async def follow(self, namespace: str, track: str, driver: str) -> None:
        if self.lose:
            self.lose = False
            raise StoreConnectionError("died")
        if (track, driver) not in self.queued + self.running:
            self.queued.append((track, driver))

    async def submit(self, record: Any) -> None:
        """Stand for the queue of graphs, whose jobs never run here."""

    async def depth(self) -> int:
        return len(self.queued) + len(self.running)


class Worker:
    """One delivery of a job. lost: its lease was given away."""

    def __init__(self, job: tuple[str, str], task: asyncio.Task[None], gate: Gate) -> None:
        self.job, self.task, self.gate, self.lost = job, task, gate, False


class TrackMachine(RuleBasedStateMachine):
    """One track and the deliveries of its jobs."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        with SyncRedis.from_url(self.url) as client:
            client.flushall()
        self.loop = asyncio.Runner()
        self.workers: list[Worker] = []
        self.jobs = Jobs()
        self.wished: dict[int, float] = {}
        self.version = 0
        self.requested = 1
        self.orphaned = False

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(call)

    @initialize(scale=SCALES)
    def create(self, scale: float) -> None:
        async def create() -> str:
            self.store = Store(Redis.from_url(self.url))
            self.tracks = Tracks(self.store, self.jobs, self.jobs)  # type: ignore[arg-type]
            async with self.store.upload(*POINTS.shape, "float64") as upload:
                await upload.write(POINTS.tobytes())
                await upload.commit(DATASET)
            return (await self.tracks.create(DATASET, spec_of(scale), RefreshPolicy(cooldown_epochs=0))).id

        self.id = self.run(create())
        self.wished[1] = scale

    @rule(scale=SCALES, force=st.booleans(), dies=st.booleans())
    def refresh(self, scale: float, force: bool, dies: bool) -> None:
        self.jobs.lose = dies
        self.wished[self.requested + 1] = scale
        try:
            self.run(self.tracks.refresh(self.id, {"lengthscale": scale}, force=force))
        except StoreConnectionError:
            self.orphaned = True  # until somebody asks again
        else:
            self.orphaned = False
        self.jobs.lose = False

    @precondition(lambda self: self.workers or self.jobs.queued)
    @rule(who=st.integers(0, 11), call=st.sampled_from(CALLS))
    def advance(self, who: int, call: str | None) -> None:
        """Let a worker go on until it is about to make this call (None: by one call), or start one on a queued job."""
        chosen = who % (len(self.workers) + bool(self.jobs.queued))
        if chosen == len(self.workers):
            self._deliver()
        self.run(self._step(self.workers[chosen], call))

    # Hypothesis chooses among rules alike; workers must move more often than anything else happens.
    @precondition(lambda self: self.workers or self.jobs.queued)
    @rule(call=st.sampled_from(CALLS))
    def advance_newest(self, call: str | None) -> None:
        self.advance(len(self.workers) - (not self.jobs.queued), call)

    @precondition(lambda self: self.workers)
    @rule(who=st.integers(0, 11), stalls=st.booleans(), scale=SCALES)
    def interrupt(self, who: int, stalls: bool, scale: float) -> None:
        """A worker dies, or stalls until its lease runs out, which it does not notice; its job is delivered again.

        Meanwhile the training loop has gone on.
        """
        worker = self.workers[who % len(self.workers)]
        if not worker.lost:
            self.jobs.running.remove(worker.job)
            self.jobs.queued.append(worker.job)
        worker.lost = True
        if not stalls:
            self.workers.remove(worker)
            self.run(_end(worker.task))
        self.refresh(scale, force=False, dies=False)

    @rule(scale=SCALES, evicts=st.booleans())
    def disturb(self, scale: float, evicts: bool) -> None:
        """The published graph's arrays are lost, or somebody else asks for one of the graphs, whose job waits."""
        graph = self.run(self.tracks.track(self.id)).graph
        if not evicts:
            self.run(self._ask(scale))
        elif graph is not None:
            self.run(_unlink(self.store, Keys().arrays(graph)))

    @invariant()
    def versions_go_up_and_match_what_was_wished_and_someone_builds(self) -> None:
        if not self.wished:
            return
        record = self.run(self.tracks.track(self.id))
        assert self.requested in (record.requested, record.requested - 1)
        self.requested = record.requested
        assert self.version <= record.version <= record.requested
        self.version = record.version
        assert record.requested_graph == graph_id(DATASET, spec_of(self.wished[record.requested]))
        if record.version:
            wished = spec_of(self.wished[record.version])
            assert record.graph == graph_id(DATASET, wished)
            assert record.spec == wished.to_json()
        if record.error is not None:
            assert self.wished[record.requested] == BAD
        if record.pending is not None and not self.orphaned:
            job = (self.id, record.driver)
            handing_over = [worker.job for worker in self.workers if not worker.lost]  # it queues the next driver's job
            assert job in self.jobs.queued + self.jobs.running or handing_over

    def teardown(self) -> None:
        """With workers alive, the newest version is finally published, and no job is left."""
        try:
            if self.wished:
                self._drain()
        finally:
            for worker in self.workers:
                self.run(_end(worker.task))
            if self.wished:
                self.run(self.store.aclose())
            self.loop.close()

    def _drain(self) -> None:
        self.run(self._ask_again())
        for _ in range(MOST_ROUNDS):
            if self.jobs.queued:
                self._deliver()
            for worker in list(self.workers):
                self.run(self._step(worker, "end"))
        assert not self.jobs.queued
        assert not self.workers
        record = self.run(self.tracks.track(self.id))
        assert (record.pending, record.driver, self.jobs.running) == (None, "", [])
        if record.error is None:
            assert record.version == record.requested
        if record.graph is not None and self.run(self.store.is_intact(record.graph)):
            self.run(self._compare(record.graph, self.wished[record.version]))

    async def _ask_again(self) -> None:
        """Queue the driver's job if the API died before it did."""
        await self.tracks.ensure_driver(await self.tracks.track(self.id))

    async def _compare(self, graph: str, scale: float) -> None:
        for name, array in build_graph(POINTS, spec_of(scale)).arrays().items():
            assert (await self.store.load_array(graph, name)).tobytes() == array.tobytes()

    async def _step(self, worker: Worker, call: str | None) -> None:
        for _ in range(MOST_CALLS):
            worker.gate.let_one()
            await worker.gate.settled.wait()
            if worker.task.done():
                worker.task.result()
                self.workers.remove(worker)
                if not worker.lost:
                    self.jobs.running.remove(worker.job)
            if worker.task.done() or call in (None, worker.gate.call):
                return

    def _deliver(self) -> None:
        job = self.jobs.queued.pop(0)
        self.jobs.running.append(job)
        gate = Gate()

        async def start() -> asyncio.Task[None]:
            store, tracks = Paced(self.store, gate), Paced(self.tracks, gate)
            runner = Runner(store, None, WorkerSettings(max_attempts=50), build)  # type: ignore[arg-type]
            follower = Follower(store, tracks, runner, 600.0)  # type: ignore[arg-type]
            task = asyncio.create_task(follower.run_job("default", *job))
            task.add_done_callback(lambda _: gate.settled.set())
            return task

        self.workers.append(Worker(job, self.run(start()), gate))

    async def _ask(self, scale: float) -> None:
        await self.store.request_graph(DATASET, spec_of(scale))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _unlink(store: Store, key: str) -> None:
    await store.redis.unlink(key)


def machine(url: str) -> Callable[[], TrackMachine]:
    return type("Machine", (TrackMachine,), {"url": url})


def test_track_survives_workers_that_stall_die_and_return(embedded_url: str) -> None:
    run_state_machine_as_test(
        machine(embedded_url),
        settings=settings(
            max_examples=50,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate,),  # shrinking takes minutes; the failing run is short enough to read
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
