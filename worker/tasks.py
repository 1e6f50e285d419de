"""The job queues: `Queue.submit` and `Queue.follow` on the asking side, `Queue.work` on the working side.

There are two, "interactive" for graphs and "refresh" for tracks, because pydocket knows no priorities and a track that is
refreshed all the time must not keep those waiting who asked for a graph. Nothing else here knows pydocket.

A job's key is the namespace, the graph and the token of the request that queued it, so one request is at most one job
however often it is submitted, and a graph that is deleted and asked for again while it is being built gets a job of its
own: the old one finds its token outdated and stops. Arguments are ids only, because the queue pickles them: the store
must be trusted.
A cancelled graph needs nothing here: its job, when it comes up, finds that it is not wanted.
A follow job's key is the namespace, the track and its driver's token. A key can be queued again once its job has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias, cast

from docket import Docket, Worker
from redis.exceptions import TimeoutError as StoreTimeoutError

from worker.settings import SharedSettings
from worker.store import GraphRecord

Job: TypeAlias = Callable[[str, str, str], Awaitable[None]]

_BUILD, _FOLLOW = "build", "follow"

# A worker with a free hand blocks in the store until a job arrives, so a start takes milliseconds; this is only how
# soon it looks up after finishing one.
_LOOK_UP = timedelta(milliseconds=20)

# Job records outlive their end by this much. Jobs return nothing, so a record is a few hundred bytes.
_RECORD_TTL = timedelta(seconds=60)


class Backlog(NamedTuple):
    """The jobs of a queue that wait or run. oldest_s: since the oldest of them was queued, 0 when there is none."""

    jobs: int
    oldest_s: float


class Queue:
    """The queue of one docket; connects on first use, so it can be made while the store is away.

    name: of the docket; workers on different names do not see each other's jobs. task: what its jobs are called.
    """

    def __init__(self, url: str, name: str = "interactive", *, task: str = _BUILD, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self._task = task
        self._docket = Docket(name=f"pcct:queue:{name}", url=url, execution_ttl=_RECORD_TTL)
        self._docket.register(_declared, names=[task])
        self._opening = asyncio.Lock()
        self._open = False

    @classmethod
    def from_settings(cls, settings: SharedSettings) -> Queue:
        """Return the queue of graphs that the settings name."""
        return cls(settings.store_url, settings.queue, timeout_s=settings.store_timeout_s)

    @classmethod
    def refresh_from_settings(cls, settings: SharedSettings) -> Queue:
        """Return the queue of follow jobs that the settings name."""
        return cls(settings.store_url, settings.refresh_queue, task=_FOLLOW, timeout_s=settings.store_timeout_s)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._open:
            self._open = False
            await self._docket.__aexit__(None, None, None)

    async def submit(self, record: GraphRecord, *, again: str = "") -> None:
        """Queue the job of a graph that `Store.request_graph` said must be queued; harmless when it is already.

        again: any new string makes it a new job of the same request, for a worker that hands one back.
        Raises RedisError when the store is away; ask and submit again then.
        """
        parts = (record.namespace, record.id, record.request, again)
        await self._add(":".join(part for part in parts if part), record.namespace, record.id, record.request)

    async def follow(self, namespace: str, track: str, driver: str) -> None:
        """Queue the job that drives a track; harmless while it is queued or runs. Raises RedisError."""
        await self._add(f"{namespace}:{track}:{driver}", namespace, track, driver)

    async def depth(self) -> int:
        """Return the number of jobs that wait or run."""
        return (await self.backlog()).jobs

    async def backlog(self) -> Backlog:
        """Return how many jobs wait or run, and how long the oldest has done so, by the store's clock."""
        docket = await self._opened()
        async with self._limited(), docket.redis() as redis, redis.pipeline(transaction=False) as pipe:
            pipe.xlen(docket.stream_key)
            pipe.xrange(docket.stream_key, count=1)
            cast(Any, pipe).execute_command("TIME")
            jobs, oldest, (now_s, now_us) = cast(Any, await pipe.execute())
        if not oldest:
            return Backlog(jobs, 0.0)
        queued_s = int(oldest[0][0].partition(b"-")[0]) / 1000
        return Backlog(jobs, max(0.0, now_s + now_us / 1e6 - queued_s))

    async def work(self, job: Job, *, name: str, redelivery_s: float, stopping: asyncio.Event) -> None:
        """Take jobs, one at a time, and await job(namespace, graph, request), or job(namespace, track, driver).

        Returns once `stopping` is set. A job whose worker dies is given to another one after redelivery_s without a sign
        of life. When stopping, the running job is awaited: it must notice `stopping` by itself. Outages of the store are
        waited out.
        """
        docket = await self._opened()
        docket.register(job, names=[self._task])
        async with Worker(
            docket,
            name=name,
            concurrency=1,
            redelivery_timeout=timedelta(seconds=redelivery_s),
            reconnection_delay=timedelta(milliseconds=500),
            minimum_check_interval=_LOOK_UP,
            scheduling_resolution=timedelta(seconds=1),  # nothing is ever scheduled for later
            schedule_automatic_tasks=False,
        ) as worker:
            loop = asyncio.create_task(worker.run_forever(), name="pcct queue")
            stop = asyncio.create_task(stopping.wait())
            await asyncio.wait({loop, stop}, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            loop.cancel()
            await asyncio.wait({loop})
            if not loop.cancelled():
                loop.result()

    async def _add(self, key: str, namespace: str, id: str, token: str) -> None:
        docket = await self._opened()
        async with self._limited():
            await docket.add(self._task, key=key)(namespace, id, token)

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        """Bound the block in time: pydocket's connections wait for ever, because its workers read with a block."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise StoreTimeoutError(f"the queue did not answer within {self._timeout_s:g} s") from error

    async def _opened(self) -> Docket:
        async with self._opening:
            if not self._open:
                await self._docket.__aenter__()
                self._open = True
        return self._docket


async def _declared(namespace: str, id: str, token: str) -> None:
    """Stand for the task in processes that only submit it."""
    raise NotImplementedError("a process that takes jobs must pass its own function to Queue.work")
