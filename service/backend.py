"""What every route works with: the settings, the store and the queue of this process."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeAlias

import structlog
from fastapi import Depends, Request

from service.crowd import Crowd, Kind
from service.problems import GraphDeleted
from service.settings import ServiceSettings
from service.traffic import Traffic
from service.waiting import wait_unless
from worker.query import Wish, wish_from_json
from worker.store import TERMINAL, GraphRecord, Store, TooManyJobs, UnknownDataset
from worker.tasks import Queue
from worker.tracks import Tracks

_QUEUED_LONG_S = 10.0  # a graph is waited for in vain hardly ever; looking whether its job is there costs a round trip

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Backend:
    """Settings, store, queue, tracks and counts; nothing here connects before it is used.

    queue: jobs of graphs that somebody waits for. refreshes: jobs that follow tracks.
    stopping: set when the process stops; whatever waits for somebody else then answers with what there is.
    others: those of the namespaces that were asked for, kept because every poll asks.
    """

    settings: ServiceSettings
    store: Store
    queue: Queue
    refreshes: Queue
    tracks: Tracks
    traffic: Traffic
    crowd: Crowd
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    others: dict[str, Backend] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_settings(cls, settings: ServiceSettings, traffic: Traffic) -> Backend:
        """Return a backend with connections of its own."""
        store, queue = Store.from_settings(settings), Queue.from_settings(settings)
        refreshes = Queue.refresh_from_settings(settings)
        crowd = Crowd({"one-shot": settings.max_oneshots, "wait": settings.max_waits})
        return cls(settings, store, queue, refreshes, Tracks(store, refreshes, queue), traffic, crowd)

    def within(self, namespace: str) -> Backend:
        """Return the backend of a namespace, on the same connections."""
        if namespace == self.store.namespace:
            return self
        found = self.others.get(namespace)
        if found is None:
            found = replace(self, store=self.store.within(namespace), tracks=self.tracks.within(namespace))
            self.others[namespace] = found
        return found

    async def aclose(self) -> None:
        """Close the connections."""
        await self.queue.aclose()
        await self.refreshes.aclose()
        await self.store.aclose()

    async def ask_graph(self, dataset_id: str, spec: Wish) -> GraphRecord:
        """Ask for a graph and queue its job if it needs one; raises UnknownDataset or TooManyJobs."""
        settings = self.settings
        record, wanted = await self.store.request_graph(
            dataset_id, spec, queue=settings.queue, most_jobs=settings.max_jobs
        )
        self.traffic.count_graph(record.state == "ready")
        if wanted:
            await self.queue.submit(record)
            _log.info("graph queued", graph=record.id[:12])
        return record

    async def ensure_job(self, record: GraphRecord) -> None:
        """See that a graph which has been silent for long has a job: a store that restarted may have lost its last second.

        Silent by our clock; if the store's disagrees, this asks in vain, which changes nothing.
        """
        silent_s = abs(time.time() - record.updated_s)
        if record.state == "queued" and silent_s > _QUEUED_LONG_S:
            await self.queue.submit(record)
        elif record.state == "running" and silent_s > self.settings.stale_run_s:
            with suppress(UnknownDataset, TooManyJobs):
                await self.ask_graph(record.dataset, wish_from_json(record.spec))

    async def wait_graph(self, record: GraphRecord, wait_s: float, request: Request) -> GraphRecord:
        """Return the record when its job has ended, or as it is after wait_s seconds or when this process stops.

        request: of the client that waits. Raises TooManyAtOnce, GraphDeleted, or ClientDisconnect when the client has gone.
        """
        if record.state in TERMINAL or wait_s <= 0:
            return record
        with self.present("wait"):
            latest = await wait_unless(self.store.wait_graph(record.id, wait_s), self.stopping, request)
        if latest is None and not self.stopping.is_set():
            raise GraphDeleted
        return latest or record

    def present(self, kind: Kind) -> AbstractContextManager[None]:
        """Return a context that counts a request among those of its kind in its namespace; it raises TooManyAtOnce."""
        return self.crowd.present(self.store.namespace, kind)

    async def warning(self) -> str | None:
        """Return why nothing that is queued can run now, None when it can."""
        workers = await self.store.workers()
        if not workers:
            usage = await self.store.usage()
            if usage.limit_bytes and usage.used_bytes >= usage.limit_bytes:
                return (
                    f"the store is full: it uses {usage.used_bytes} of {usage.limit_bytes} bytes, and workers cannot report "
                    "to it; delete datasets and graphs, or raise its maxmemory"
                )
            return "no worker is running, so nothing that is queued is built; start one with `pcct work`"
        if not any(worker.warm for worker in workers):
            return "the workers are still compiling their kernels; what is queued is built after that"
        return None


# Async, like every dependency here: FastAPI sends others through a thread.
async def backend_of(request: Request) -> Backend:
    """Return the backend of the namespace that the request was admitted to."""
    backend: Backend = request.app.state.backend
    return backend.within(request.state.namespace)


async def _open_backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


InBackend: TypeAlias = Annotated[Backend, Depends(backend_of)]
InOpenBackend: TypeAlias = Annotated[Backend, Depends(_open_backend)]  # for routes that show nothing of a namespace
