from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from redis.exceptions import RedisError

from pcct_core.spec import GraphSpec
from worker.store import Dataset, GraphRecord, Store
from worker.tasks import Job, Queue

pytestmark = pytest.mark.anyio


@pytest.fixture
async def queue(valkey_url: str) -> AsyncIterator[Queue]:
    queue = Queue(valkey_url)
    yield queue
    await queue.aclose()


@pytest.fixture
async def record(store: Store, dataset: Dataset) -> GraphRecord:
    return (await store.request_graph(dataset.id, GraphSpec(k=3)))[0]


@asynccontextmanager
async def working(url: str, job: Job, *, name: str = "w", redelivery_s: float = 5.0) -> AsyncIterator[asyncio.Event]:
    """Work in the background; stopped at the end, or by the event."""
    queue, stopping = Queue(url), asyncio.Event()
    task = asyncio.create_task(queue.work(job, name=name, redelivery_s=redelivery_s, stopping=stopping))
    try:
        yield stopping
    finally:
        stopping.set()
        await task
        await queue.aclose()


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        await asyncio.sleep(0.01)


async def test_submit_the_same_request_twenty_times_runs_once(
    valkey_url: str, queue: Queue, record: GraphRecord
) -> None:
    ran: list[tuple[str, str, str]] = []
    release = asyncio.Event()

    async def job(namespace: str, graph: str, request: str) -> None:
        ran.append((namespace, graph, request))
        await release.wait()

    await asyncio.gather(*(queue.submit(record) for _ in range(10)))
    assert await queue.depth() == 1
    async with working(valkey_url, job):
        await until(lambda: bool(ran))
        await asyncio.gather(*(queue.submit(record) for _ in range(10)))  # while it runs
        release.set()

        async def drained() -> bool:
            return await queue.depth() == 0

        await until(drained)
    assert ran == [("default", record.id, record.request)]


async def test_submit_a_new_request_while_the_old_one_runs_queues_it(
    valkey_url: str, queue: Queue, record: GraphRecord
) -> None:
    ran: list[str] = []
    release = asyncio.Event()

    async def job(namespace: str, graph: str, request: str) -> None:
        ran.append(request)
        await release.wait()

    async with working(valkey_url, job):
        await queue.submit(record)
        await until(lambda: len(ran) == 1)
        await queue.submit(replace(record, request="anew"))
        release.set()
        await until(lambda: len(ran) == 2)
    assert ran == [record.request, "anew"]


async def test_submit_without_a_store_raises_and_recovers(valkey_url: str, record: GraphRecord) -> None:
    queue = Queue(valkey_url + ".nowhere")
    with pytest.raises(RedisError):
        await queue.submit(record)
    await queue.aclose()


async def test_work_awaits_the_running_job_when_stopping(valkey_url: str, queue: Queue, record: GraphRecord) -> None:
    done = asyncio.Event()
    started = asyncio.Event()

    async def job(namespace: str, graph: str, request: str) -> None:
        started.set()
        await asyncio.sleep(0.3)
        done.set()

    await queue.submit(record)
    async with working(valkey_url, job) as stopping:
        await started.wait()
        stopping.set()
    assert done.is_set()
    assert await queue.depth() == 0


async def test_work_leaves_a_cancelled_job_to_the_next_worker(
    valkey_url: str, queue: Queue, record: GraphRecord
) -> None:
    """A job that ends by CancelledError while stopping is what a dead worker looks like: it is redelivered."""
    stopping_now: list[asyncio.Event] = []
    ran: list[str] = []

    async def dying(namespace: str, graph: str, request: str) -> None:
        stopping_now[0].set()
        await asyncio.sleep(0.2)
        raise asyncio.CancelledError

    async def living(namespace: str, graph: str, request: str) -> None:
        ran.append(graph)

    await queue.submit(record)
    async with working(valkey_url, dying, name="first") as stopping:
        stopping_now.append(stopping)
        await stopping.wait()
    assert await queue.depth() == 1
    async with working(valkey_url, living, name="second", redelivery_s=0.4):
        await until(lambda: bool(ran))
    assert ran == [record.id]
