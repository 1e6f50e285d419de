"""The job queues: `Queue.submit` and `Queue.follow` on the asking side, `Queue.work` on the working side.

There are two, "interactive" for graphs and "refresh" for tracks, because pydocket knows no priorities and a track that is
refreshed all the time must not keep those waiting who asked for a graph. Nothing else here knows pydocket, which brings a
ticket for each job to the workers, renews leases and brings it again when a worker dies. Which job a ticket stands for is
decided when a worker takes it: the one whose turn it is (`turns`), so that no namespace waits for all jobs of another.

A job's name is the namespace, the graph and the token of the request that queued it, so one request is at most one job
however often it is submitted, and a graph that is deleted and asked for again while it is being built gets a job of its
own: the old one finds its token outdated and stops.
A cancelled graph needs nothing here: its job, when it comes up, finds that it is not wanted.
A follow job's name is the namespace, the track and its driver's token. A job can be queued again once it has ended.

pydocket pickles what it is given. Nothing is unpickled here: a job is its name, which is checked before it is used, and a
message that is none of ours is dropped.
"""

from __future__ import annotations

import asyncio
import pickle
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar

import docket.worker as docket_worker
import structlog
from docket import Docket, Execution, TaskKey, Worker
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as StoreTimeoutError

from worker.patience import end_tasks, patiently
from worker.settings import SharedSettings
from worker.store import GraphRecord
from worker.turns import Backlog, Turns

T = TypeVar("T")
Job: TypeAlias = Callable[[str, str, str], Awaitable[None]]

_BUILD, _FOLLOW = "build", "follow"

# namespace, SHA-256 of a graph or id of a track, token of a request or driver, and what makes it a new job of the same.
_NAME = re.compile(r"([a-z0-9][a-z0-9-]{0,62}):([0-9a-f]{64}|[0-9a-f]{32}):([0-9a-z]{1,32})(?::[0-9a-z]{1,32})?")

# A worker with a free hand blocks in the store until a job arrives, so a start takes milliseconds; this is only how
# soon it looks up after finishing one.
_LOOK_UP = timedelta(milliseconds=20)

# Job records outlive their end by this much. Jobs return nothing, so a record is a few hundred bytes.
_RECORD_TTL = timedelta(seconds=60)

_MEND_S = 1.0  # how often a worker looks for jobs whose ticket was never made
_MOST_MENDED = 100

_log = structlog.stdlib.get_logger("pcct.worker")


class Queue:
    """The queue of one docket; connects on first use, so it can be made while the store is away.

    name: of the docket; workers on different names do not see each other's jobs. task: what its jobs are called.
    """

    def __init__(self, url: str, name: str = "interactive", *, task: str = _BUILD, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self._task = task
        self._turns = Turns(name)
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
        await self._add(record.namespace, record.id, record.request, again)

    async def follow(self, namespace: str, track: str, driver: str) -> None:
        """Queue the job that drives a track; harmless while it is queued or runs. Raises RedisError."""
        await self._add(namespace, track, driver)

    async def depth(self) -> int:
        """Return the number of jobs that wait or run."""
        return (await self.backlog()).jobs

    async def backlog(self) -> Backlog:
        """Return how many jobs wait or run, and how long the oldest has done so, by the store's clock."""
        return await self._ask(self._turns.backlog)

    async def work(self, job: Job, *, name: str, redelivery_s: float, stopping: asyncio.Event) -> None:
        """Take jobs, one at a time, and await job(namespace, graph, request), or job(namespace, track, driver).

        Returns once `stopping` is set. Namespaces take turns. A job whose worker dies is given to another one after
        redelivery_s without a sign of life. When stopping, the running job is awaited: it must notice `stopping` by itself.
        Outages of the store are waited out.
        """
        docket = await self._opened()

        async def serve(ticket: str = TaskKey()) -> None:
            await self._serve(ticket, job, stopping)

        docket.register(serve, names=[self._task])
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
            mending = asyncio.create_task(self._mend(stopping), name="pcct tickets")
            stop = asyncio.create_task(stopping.wait())
            await asyncio.wait({loop, stop}, return_when=asyncio.FIRST_COMPLETED)
            loop.cancel()  # once: it then ends in its own way
            await end_tasks([stop, mending])
            await asyncio.wait({loop})
            if not loop.cancelled():
                loop.result()

    async def _serve(self, ticket: str, job: Job, stopping: asyncio.Event) -> None:
        """Do the job whose turn it is; a ticket that is left by CancelledError is delivered again, for the same job."""
        if not _NAME.fullmatch(ticket):
            _log.warning("job refused: it is none of ours", job=ticket[:80])
            return
        delivery = secrets.token_hex(8)
        name = await patiently(partial(self._ask, self._turns.take, ticket, delivery), stopping, full=True)
        if name is None:
            return
        try:
            await self._do(name, job)
        except Exception:
            await self._finish(ticket, delivery, name, stopping)
            raise
        await self._finish(ticket, delivery, name, stopping)

    async def _do(self, name: str, job: Job) -> None:
        parts = _NAME.fullmatch(name)
        if parts is None:
            _log.warning("job refused: it is none of ours", job=name[:80])
        else:
            await job(parts[1], parts[2], parts[3])

    async def _finish(self, ticket: str, delivery: str, name: str, stopping: asyncio.Event) -> None:
        await patiently(partial(self._ask, self._turns.finish, ticket, delivery, name), stopping, full=True)

    async def _mend(self, stopping: asyncio.Event) -> None:
        """Make tickets for jobs that have none, because whoever queued them died before making it."""
        while not stopping.is_set():
            await asyncio.sleep(_MEND_S)
            with suppress(RedisError):
                docket = await self._opened()
                for name in await self._ask(self._turns.without_ticket, docket.stream_key, _MOST_MENDED):
                    await self._make_ticket(name)

    async def _add(self, *parts: str) -> None:
        name = ":".join(part for part in parts if part)
        await self._ask(self._turns.enter, name)
        await self._make_ticket(name)

    async def _make_ticket(self, name: str) -> None:
        """Make the ticket that is named like a job; harmless while there is one."""
        docket = await self._opened()
        async with self._limited():
            # The arguments are for workers from before there were turns, which may share a store for a while.
            await docket.add(self._task, key=name)(*name.split(":")[:3])

    async def _ask(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        docket = await self._opened()
        async with self._limited(), docket.redis() as redis:
            return await call(redis, *args)

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


class _Ticket(Execution):
    """A message of the queue, of which only the name is read: neither arguments nor anything else is unpickled."""

    @classmethod
    async def from_message(cls, docket: Docket, message: dict[bytes, bytes], *args: Any, **options: Any) -> Self:
        """Return the ticket of a message, whatever that holds."""
        name = message.get(b"key", b"").decode(errors="replace")
        number = message.get(b"generation", b"0")
        read = {
            b"key": name.encode(),
            b"function": next(task for task in (_BUILD, _FOLLOW) if task in docket.tasks).encode(),
            b"args": _NOTHING[0],
            b"kwargs": _NOTHING[1],
            b"when": datetime.now(UTC).isoformat().encode(),
            b"attempt": b"1",
            b"generation": number if number.isdigit() else b"0",
        }
        return await super().from_message(docket, read, *args, **options)


_NOTHING = pickle.dumps(()), pickle.dumps({})
docket_worker.Execution = _Ticket  # type: ignore[attr-defined]  # pydocket has no setting for this
