from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from pcct_core.errors import Cancelled, InvalidPoints, InvalidSpec, NotPositiveDefinite
from pcct_core.graph import Graph, build_graph
from pcct_core.lookup import GateLookup
from pcct_core.spec import GraphSpec, Inducing, Matern52, Residual
from worker.keys import Keys
from worker.run import Runner, describe_error
from worker.settings import WorkerSettings
from worker.store import DamagedData, Dataset, GraphRecord, Store, UnknownDataset
from worker.tasks import Queue

pytestmark = pytest.mark.anyio

SPEC = GraphSpec(kind="vecchia", k=4, order="given")


class Gated:
    """Builds like the core, but not before `opened`; notices a cancel at once, or never when deaf."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.started = threading.Event()
        self.opened = threading.Event()
        self.cancelled = threading.Event()
        self.deaf = deaf

    def __call__(
        self, X: Any, spec: GraphSpec, *, progress: Any = None, cancel: Any = None, threads: int | None = None
    ) -> Graph:
        progress("gate", 0, 2)
        self.started.set()
        while not self.opened.wait(0.01):
            progress("gate", 1, 2)
            if cancel.is_set():
                self.cancelled.set()
                if not self.deaf:
                    raise Cancelled("the build was cancelled")
        return build_graph(X, spec, progress=progress)


@pytest.fixture
async def queue(valkey_url: str) -> AsyncIterator[Queue]:
    queue = Queue(valkey_url)
    yield queue
    await queue.aclose()


@pytest.fixture
def make_runner(store: Store, queue: Queue, valkey_url: str) -> Callable[..., Runner]:
    def make(build: Any = build_graph, **settings: Any) -> Runner:
        return Runner(store, queue, WorkerSettings(redis_url=valkey_url, **settings), build)

    return make


@pytest.fixture
async def record(store: Store, dataset: Dataset) -> GraphRecord:
    return (await store.request_graph(dataset.id, SPEC))[0]


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 60)


async def test_run_job_publishes_the_graph(
    make_runner: Callable[..., Runner], store: Store, record: GraphRecord, points: np.ndarray
) -> None:
    await make_runner().run_job(record.namespace, record.id, record.request)
    ready = await store.graph(record.id)
    expected = build_graph(points, SPEC)
    assert ready.state == "ready"
    assert ready.certificate == expected.certificate.to_json()
    assert set(ready.arrays) == {"neighbors", "distances", "order"}
    for name, array in expected.arrays().items():
        assert np.array_equal(await store.load_array(record.id, name), array)


async def test_run_job_shows_progress(make_runner: Callable[..., Runner], store: Store, record: GraphRecord) -> None:
    build = Gated()
    runner = make_runner(build)
    job = asyncio.create_task(runner.run_job(record.namespace, record.id, record.request))
    while (running := await store.graph(record.id)).progress is None:  # noqa: ASYNC110  (the store has no event)
        await asyncio.sleep(0.01)
    assert running.state == "running"
    assert runner.building == [record.id]
    assert running.progress["phase"] == "gate"
    assert running.progress["total"] == 2
    assert set(running.progress) == {"phase", "done", "total", "eta_s"}
    build.opened.set()
    await job
    assert runner.building == []
    assert (await store.graph(record.id)).progress is None


@pytest.mark.parametrize("ending", ["cancel_graph", "forget_graph"])
async def test_run_job_stops_when_the_graph_is_not_wanted(
    make_runner: Callable[..., Runner], store: Store, record: GraphRecord, ending: str
) -> None:
    build = Gated()
    job = asyncio.create_task(make_runner(build).run_job(record.namespace, record.id, record.request))
    await until(build.started)
    await getattr(store, ending)(record.id)
    await job
    assert build.cancelled.is_set()
    left = await store.graph(record.id)
    assert left is None or left.state == "cancelled"


async def test_run_job_forgotten_and_asked_again_while_running_builds_for_the_new_request(
    make_runner: Callable[..., Runner], store: Store, dataset: Dataset, record: GraphRecord
) -> None:
    build = Gated()
    old = asyncio.create_task(make_runner(build).run_job(record.namespace, record.id, record.request))
    await until(build.started)
    await store.forget_graph(record.id)
    again, needed = await store.request_graph(dataset.id, SPEC)
    assert needed
    await old
    assert (await store.graph(record.id)).state == "queued"
    await make_runner().run_job(again.namespace, again.id, again.request)
    assert (await store.graph(record.id)).state == "ready"


async def test_run_job_overtaken_by_a_redelivery_stops(
    make_runner: Callable[..., Runner], store: Store, record: GraphRecord
) -> None:
    build = Gated()
    first = asyncio.create_task(make_runner(build).run_job(record.namespace, record.id, record.request))
    await until(build.started)
    await make_runner().run_job(record.namespace, record.id, record.request)
    await first
    assert build.cancelled.is_set()
    ready = await store.graph(record.id)
    assert (ready.state, ready.attempts) == ("ready", 2)


@pytest.mark.parametrize("deaf", [False, True])
async def test_run_job_hands_back_when_the_worker_stops(
    make_runner: Callable[..., Runner], store: Store, queue: Queue, record: GraphRecord, deaf: bool
) -> None:
    build = Gated(deaf=deaf)
    runner = make_runner(build, shutdown_grace_s=0.2)
    job = asyncio.create_task(runner.run_job(record.namespace, record.id, record.request))
    await until(build.started)
    runner.stopping.set()
    await job
    back = await store.graph(record.id)
    assert (back.state, back.attempts, back.request) == ("queued", 0, record.request)
    assert await queue.depth() == 1
    build.opened.set()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (InvalidPoints("row 3 is odd", 3), {"type": "invalid-points", "detail": "row 3 is odd", "row": 3}),
        (InvalidSpec("k is odd", "k"), {"type": "invalid-spec", "detail": "k is odd", "field": "k"}),
        (NotPositiveDefinite("use more"), {"type": "not-positive-definite", "detail": "use more"}),
        (MemoryError(), {"type": "out-of-memory"}),
        (RuntimeError("secret inside"), {"type": "internal-error", "title": "The build failed"}),
        (SystemExit(3), {"type": "internal-error"}),
        (DamagedData("gone"), {"type": "unknown-dataset", "detail": "gone"}),
    ],
)
async def test_run_job_fails_with_a_readable_error(
    make_runner: Callable[..., Runner], store: Store, record: GraphRecord, error: BaseException, shown: dict[str, Any]
) -> None:
    def failing(X: Any, spec: GraphSpec, **rest: Any) -> Graph:
        raise error

    await make_runner(failing).run_job(record.namespace, record.id, record.request)
    failed = await store.graph(record.id)
    assert failed.state == "failed"
    assert failed.error.items() >= shown.items()
    assert {"type", "title", "detail"} <= set(failed.error)
    assert "secret" not in failed.error["detail"]
    assert failed.progress is None


async def test_run_job_fails_when_the_dataset_is_gone(
    make_runner: Callable[..., Runner], store: Store, dataset: Dataset, record: GraphRecord
) -> None:
    await store.delete_dataset(dataset.id)
    await make_runner().run_job(record.namespace, record.id, record.request)
    assert (await store.graph(record.id)).error == describe_error(UnknownDataset(dataset.id))


async def test_run_job_fails_when_the_dataset_is_damaged(
    make_runner: Callable[..., Runner], store: Store, dataset: Dataset, record: GraphRecord, redis: Redis
) -> None:
    await redis.hset(Keys().points(dataset.id), "0", b"nonsense")
    await make_runner().run_job(record.namespace, record.id, record.request)
    failed = await store.graph(record.id)
    assert failed.error["type"] == "unknown-dataset"
    assert "upload it again" in failed.error["detail"]


async def test_run_job_gives_up_on_a_job_that_kills_its_workers(
    make_runner: Callable[..., Runner], store: Store, record: GraphRecord
) -> None:
    for attempt in ("a", "b"):  # two workers that started and were never heard of again
        assert await store.mark_running(record.id, record.request, attempt, max_attempts=2, exhausted={})
    await make_runner(max_attempts=2).run_job(record.namespace, record.id, record.request)
    failed = await store.graph(record.id)
    assert failed.state == "failed"
    assert failed.error["type"] == "worker-died"
    assert "2 times" in failed.error["detail"]


async def test_run_job_waits_out_an_outage(
    make_runner: Callable[..., Runner], store: Store, record: GraphRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store goes away while the build runs and is back only at the third try to publish."""
    real, tries = store.publish_graph, []

    async def publish(*arguments: Any) -> bool:
        tries.append(arguments)
        if len(tries) < 3:
            raise StoreConnectionError("the store is away")
        return await real(*arguments)

    async def set_progress(*arguments: Any) -> bool:
        raise StoreConnectionError("the store is away")

    build = Gated()
    monkeypatch.setattr(store, "publish_graph", publish)
    monkeypatch.setattr(store, "set_progress", set_progress)
    job = asyncio.create_task(make_runner(build).run_job(record.namespace, record.id, record.request))
    await until(build.started)
    await asyncio.sleep(0.3)
    build.opened.set()
    await job
    assert len(tries) == 3
    assert (await store.graph(record.id)).state == "ready"


FULL = [
    OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
]


@pytest.mark.parametrize("error", FULL, ids=["memory", "disk"])
async def test_run_job_that_the_store_has_no_room_for_ends_once_it_takes_the_reason(
    make_runner: Callable[..., Runner],
    store: Store,
    record: GraphRecord,
    monkeypatch: pytest.MonkeyPatch,
    error: ResponseError,
) -> None:
    real, tries = store.fail_graph, []

    async def publish(*arguments: Any) -> bool:
        raise error

    async def fail(*arguments: Any) -> bool:
        tries.append(arguments)
        if len(tries) < 3:
            raise error
        return await real(*arguments)

    monkeypatch.setattr(store, "publish_graph", publish)
    monkeypatch.setattr(store, "fail_graph", fail)
    await make_runner().run_job(record.namespace, record.id, record.request)
    failed = await store.graph(record.id)
    assert (failed.state, failed.error["type"]) == ("failed", "store-refused")
    assert len(tries) == 3


async def test_run_job_leaves_the_job_to_the_queue_when_stopping_in_an_outage(
    make_runner: Callable[..., Runner], store: Store, record: GraphRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*arguments: Any, **rest: Any) -> bool:
        raise StoreConnectionError("the store is away")

    monkeypatch.setattr(store, "mark_running", away)
    runner = make_runner()
    job = asyncio.create_task(runner.run_job(record.namespace, record.id, record.request))
    await asyncio.sleep(0.1)
    assert not job.done()
    runner.stopping.set()
    with pytest.raises(asyncio.CancelledError):
        await job


class TestGateProfiles:
    METRIC = Residual(Matern52(0.5), Inducing(4))

    @pytest.fixture
    def built(self) -> list[GateLookup | None]:
        """What builds were given, newest last."""
        return []

    @pytest.fixture
    def ask(self, make_runner: Callable[..., Runner], store: Store, dataset: Dataset, built: list[Any]) -> Any:
        def build(X: Any, spec: GraphSpec, *, lookup: GateLookup | None = None, **options: Any) -> Graph:
            built.append(lookup)
            assert options["secret"]
            learned = GateLookup(np.array([0.1]), np.array([1.0, 2.0 + len(built)]), "matern52", spec.k)
            return dataclasses.replace(
                build_graph(X, dataclasses.replace(spec, gate="auto")), spec=spec, lookup=learned
            )

        async def ask(seed: int, gate: Any) -> GraphRecord:
            spec = GraphSpec("vecchia", 4, self.METRIC, "random", seed, gate=gate)
            record, _ = await store.request_graph(dataset.id, spec)
            await make_runner(build).run_job(record.namespace, record.id, record.request)
            return await store.graph(record.id)

        return ask

    async def test_first_one_learned_is_kept_and_given_to_those_who_ask_for_it(
        self, ask: Any, store: Store, dataset: Dataset, built: list[Any]
    ) -> None:
        for seed, gate in enumerate(("auto", "auto", "lookup")):
            assert (await ask(seed, gate)).state == "ready"
        assert built[:2] == [None, None]
        assert built[2].to_json() == json.loads(await store.profile(dataset.id, "matern52", 4))
        assert built[2].multiples[1] == 3.0

    @pytest.mark.parametrize(
        "wrong",
        [
            b"",
            b"\xff",
            b"[[[",
            b"[]",
            b'{"learned": true}',
            {"multiples": [1.0, math.nan]},
            {"multiples": [1.0, math.inf]},
            {"multiples": [1.0]},
            {"edges": ["far"]},
            {"version": 99},
            {"kernel": "rbf"},
            {"k": 3},
        ],
        ids=str,
    )
    async def test_one_that_cannot_be_read_is_dropped_by_name_and_learned_anew(
        self, ask: Any, store: Store, dataset: Dataset, built: list[Any], wrong: Any
    ) -> None:
        good = {"version": 1, "kernel": "matern52", "k": 4, "edges": [0.1], "multiples": [1.0, 2.0]}
        text = json.dumps(good | wrong) if isinstance(wrong, dict) else wrong
        await store.redis.hset(store._keys.profiles(dataset.id), "matern52:4", text)
        with structlog.testing.capture_logs() as lines:
            assert (await ask(0, "lookup")).state == "ready"
        (line,) = (line for line in lines if "profile" in line["event"])
        assert line["profile"] == f"{dataset.id[:12]}:matern52:4"
        assert (await ask(1, "lookup")).state == "ready"
        assert built[0] is None
        assert built[1].multiples[1] == 3.0

    async def test_one_that_took_the_place_of_what_could_not_be_read_stays(
        self, ask: Any, store: Store, dataset: Dataset
    ) -> None:
        await ask(0, "auto")
        assert not await store.drop_profile(dataset.id, "matern52", 4, b"what was found")
        kept = await store.profile(dataset.id, "matern52", 4)
        assert kept is not None
        assert await store.drop_profile(dataset.id, "matern52", 4, kept)

    async def test_they_go_with_their_dataset(self, ask: Any, store: Store, dataset: Dataset) -> None:
        await ask(0, "auto")
        await store.delete_dataset(dataset.id)
        assert await store.profile(dataset.id, "matern52", 4) is None
        assert not await store.keep_profile(dataset.id, "matern52", 4, {})


@pytest.mark.parametrize("given", [None, "a secret of the deployment"])
async def test_builds_behind_a_gate_get_the_secret_of_the_deployment_and_no_others(
    given: str | None, make_runner: Callable[..., Runner], store: Store, dataset: Dataset
) -> None:
    told: list[bytes | None] = []

    def build(X: Any, spec: GraphSpec, *, secret: bytes | None = None, **options: Any) -> Graph:
        told.append(secret)
        return build_graph(X, spec, secret=secret)

    residual = Residual(Matern52(0.5), Inducing(4))
    for spec in (
        GraphSpec("knn", 4, residual),
        GraphSpec("knn", 5, residual),
        GraphSpec("knn", 4, residual, accuracy="exact"),
    ):
        runner = make_runner(build, secret=given)
        record, _ = await store.request_graph(dataset.id, spec)
        await runner.run_job(record.namespace, record.id, record.request)
        assert (await store.graph(record.id)).state == "ready"
    expected = await store.secret() if given is None else given.encode()
    assert told == [expected, expected, None]


async def test_lookup_that_was_never_learned_is_an_error_with_the_remedy(
    make_runner: Callable[..., Runner], store: Store, dataset: Dataset
) -> None:
    spec = GraphSpec("vecchia", 4, Residual(Matern52(0.5), Inducing(4)), gate="lookup")
    record, _ = await store.request_graph(dataset.id, spec)
    await make_runner().run_job(record.namespace, record.id, record.request)
    failed = await store.graph(record.id)
    assert failed.error["type"] == "invalid-spec"
    assert "'auto' once" in failed.error["detail"]
