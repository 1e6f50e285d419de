from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from pcct_core.spec import GraphSpec
from worker.store import Dataset, GraphRecord, Store
from worker.tasks import Job, Queue
from worker.turns import Turns

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


def named(namespace: str, number: int) -> tuple[str, str]:
    """Return the namespace and the id of a track."""
    return namespace, f"{number:032x}"


async def test_work_serves_another_namespace_before_all_jobs_of_the_first(valkey_url: str) -> None:
    queue = Queue(valkey_url, "refresh", task="follow")
    served: list[str] = []
    release, begun = asyncio.Event(), asyncio.Event()

    async def job(namespace: str, id: str, token: str) -> None:
        served.append(namespace)
        begun.set()
        await release.wait()

    for number in range(50):
        await queue.follow(*named("a", number), "1")
    stopping = asyncio.Event()
    work = asyncio.create_task(queue.work(job, name="w", redelivery_s=5.0, stopping=stopping))
    await begun.wait()
    await queue.follow(*named("b", 1), "1")
    release.set()
    await until(lambda: "b" in served)
    assert served.index("b") <= 2  # workers + 1
    stopping.set()
    await work
    await queue.aclose()


async def test_work_finds_jobs_whose_ticket_was_never_made(valkey_url: str, redis: Redis, record: GraphRecord) -> None:
    ran: list[str] = []

    async def job(namespace: str, graph: str, request: str) -> None:
        ran.append(graph)

    await Turns("interactive").enter(redis, f"default:{record.id}:{record.request}")
    async with working(valkey_url, job):
        await until(lambda: bool(ran))
    assert ran == [record.id]


class Bomb:
    """Does harm when it is unpickled."""

    exploded = False

    def __reduce__(self):
        return setattr, (Bomb, "exploded", True)


@pytest.mark.parametrize(
    "message",
    [
        {"key": "default:../../etc:0"},
        {"key": "a b:" + "0" * 64 + ":1"},
        {"key": b"\xff\xfe", "generation": "x"},
        {"nonsense": "1"},
        {"key": "KEY", "function": "os.system", "when": "never", "attempt": "many"},
    ],
)
async def test_work_drops_messages_that_are_none_of_ours_and_unpickles_nothing(
    valkey_url: str, redis: Redis, queue: Queue, record: GraphRecord, message: dict[str, str]
) -> None:
    ran: list[str] = []

    async def job(namespace: str, graph: str, request: str) -> None:
        ran.append(graph)

    await queue.depth()
    stream = queue._docket.stream_key
    bomb = {"args": pickle.dumps(Bomb()), "kwargs": pickle.dumps(Bomb())}
    async with working(valkey_url, job):
        await queue.submit(record)
        await until(lambda: ran == [record.id])
        await redis.xadd(stream, bomb | message)
        await queue.submit(replace(record, request="anew"))
        await until(lambda: len(ran) == 2)

        async def gone() -> bool:
            return await redis.xlen(stream) == 0

        await until(gone)
    assert not Bomb.exploded


async def test_work_reads_the_name_of_a_job_and_not_what_is_pickled_beside_it(
    valkey_url: str, redis: Redis, queue: Queue, record: GraphRecord
) -> None:
    ran: list[tuple[str, str, str]] = []

    async def job(namespace: str, graph: str, request: str) -> None:
        ran.append((namespace, graph, request))

    await queue.submit(record)
    async with redis.pipeline() as pipe:
        stream = queue._docket.stream_key
        ((number, fields),) = await redis.xrange(stream)
        pipe.xdel(stream, number)
        pipe.xadd(stream, fields | {b"args": pickle.dumps(Bomb()), b"kwargs": b"no pickle"})
        await pipe.execute()
    async with working(valkey_url, job):
        await until(lambda: bool(ran))
    assert ran == [("default", record.id, record.request)]
    assert not Bomb.exploded


async def test_a_name_in_turns_that_is_none_of_ours_is_refused(
    valkey_url: str, redis: Redis, queue: Queue, record: GraphRecord
) -> None:
    ran: list[str] = []

    async def job(namespace: str, graph: str, request: str) -> None:
        ran.append(graph)

    await Turns("interactive").enter(redis, "default:*:1")
    await queue.submit(record)
    async with working(valkey_url, job):

        async def drained() -> bool:
            return await queue.depth() == 0

        await until(drained)
    assert ran == [record.id]
