"""The worker process: say "alive", warm the kernels, take jobs until told to stop, hand back what is unfinished."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

import numpy as np
import structlog
from redis.exceptions import RedisError

from pcct_core.spec import Cosine, Euclidean, GraphSpec, Haversine, Inducing, Matern52, Order, Residual
from worker.follow import Follower
from worker.logs import configure_logs
from worker.patience import patiently
from worker.query import QuerySpec, answer_query
from worker.run import Build, Runner
from worker.settings import WorkerSettings
from worker.store import NewerLayout, Store, WorkerInfo
from worker.tasks import Job, Queue
from worker.traces import start_traces, stop_traces
from worker.tracks import Tracks

_NOBODY = "0" * 64  # asks while warming up; no dataset has this id
_SWEEP_S = 60.0
_BEATS_TO_LIVE = 5  # a worker counts as gone after missing this many heartbeats
_BEATS_TO_COMPILE = 30  # the same while its kernels compile: the compiler lets nothing else run for up to ten seconds

_log = structlog.stdlib.get_logger("pcct.worker")


def run_worker(
    settings: WorkerSettings,
    *,
    load_build: Callable[[], Build] | None = None,
) -> NoReturn:
    """Work until SIGTERM or SIGINT, then end this process.

    load_build: returns what builds graphs; None for the core, loaded and warmed.
    """
    configure_logs(settings)
    start_traces("pcct-worker")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        status = runner.run(_work(settings, load_build or load_warm_build))
    stop_traces()
    # A build that was left behind may still run compiled code, which must not meet a dying interpreter.
    os._exit(status)


def load_warm_build() -> Build:
    """Import the core and run every kind of graph and query once on a few points, so that no user waits for the compiler."""
    from pcct_core.graph import build_graph
    from pcct_core.lookup import GateLookup

    generator = np.random.default_rng(0)
    orders: tuple[Order, ...] = ("maximin", "hilbert", "random", "coordinate", "given")
    for dtype in (np.float64, np.float32):
        for d, metric in ((2, Haversine()), (3, Euclidean(0.5)), (3, Cosine()), (24, Euclidean())):
            points = generator.uniform(1.0, 2.0, (300, d)).astype(dtype)
            build_graph(points, GraphSpec(kind="knn", k=4, metric=metric))
            build_graph(points, GraphSpec(kind="radius", radius=0.1, metric=metric))
            answer_query(points, points[:40], QuerySpec(_NOBODY, 4, metric))
            for order in orders if d == 3 else orders[:1]:
                build_graph(points, GraphSpec(kind="vecchia", k=4, metric=metric, order=order))
    # More points than share one tree, so that what lays out a smaller one is compiled too.
    points = generator.random((2100, 2))
    residual = Residual(Matern52(1.0), Inducing(8))
    build_graph(points, GraphSpec(kind="vecchia", k=4, metric=residual, order="given"))
    lookup = GateLookup(np.empty(0), np.full(1, 4.0), residual.kernel.name, 4)
    for kind in ("vecchia", "knn"):
        # So few points are audited at a low recall alone: all pairs cost less where more must be drawn.
        gated = GraphSpec(kind=kind, k=4, metric=residual, order="given", accuracy=0.9, gate="lookup")
        build_graph(points, gated, lookup=lookup)
    answer_query(points[:300], points[:40], QuerySpec(_NOBODY, 4, residual))
    return build_graph


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's loops, which send chunks without copying them, None where it is not installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


async def _work(settings: WorkerSettings, load_build: Callable[[], Build]) -> int:
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    store, queue = Store.from_settings(settings), Queue.from_settings(settings)
    refreshes = Queue.refresh_from_settings(settings)
    stopping, leaving = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    runners: list[Runner] = []

    def info() -> WorkerInfo:
        graph = next((graph for runner in runners for graph in runner.building), None)
        return WorkerInfo(name, os.getpid(), warm=bool(runners), graph=graph)

    tracks = Tracks(store, refreshes, queue)
    beats = asyncio.create_task(_beat(store, info, settings.heartbeat_s, leaving), name="pcct heartbeat")
    sweeps = asyncio.create_task(_sweep(tracks, settings.track_idle_s, leaving), name="pcct sweep")
    status = 0
    try:
        with suppress(RedisError):  # a first look, before minutes of compiling
            await store.check_layout()
        started = time.perf_counter()
        build = await _loaded(load_build, stopping)
        if build is not None:
            await _check_layout(store, stopping)
            threads = settings.refresh_threads or max(1, len(os.sched_getaffinity(0)) - 1)
            runner = Runner(store, queue, settings, build, stopping, settings.threads)
            refresher = Runner(store, None, settings, build, stopping, threads)
            follower = Follower(store, tracks, refresher, settings.refresh_timeout_s, stopping)
            runners += [runner, refresher]
            with suppress(RedisError):
                await _say_alive(store, info(), settings.heartbeat_s)
            _log.info("worker ready", worker=name, warm_up_s=round(time.perf_counter() - started, 2))
            take = partial(_take_jobs, name=name, redelivery_s=settings.redelivery_s, stopping=stopping)
            async with asyncio.TaskGroup() as group:
                group.create_task(take(queue, runner.run_job))
                group.create_task(take(refreshes, follower.run_job))
    except NewerLayout as error:
        _log.error("worker refuses to start", reason=str(error))
        status = 1
    except Exception as error:
        _log.error("worker failed", exc_info=error)
        status = 1
    finally:
        leaving.set()
        beats.cancel()
        sweeps.cancel()
        await asyncio.wait({beats, sweeps})
        with suppress(RedisError):
            await store.leave(name)
            await queue.aclose()
            await refreshes.aclose()
            await store.aclose()
    _log.info("worker stopped", worker=name)
    return status


async def _check_layout(store: Store, stopping: asyncio.Event) -> None:
    """Return once the store has a layout that we can read, or the worker is to stop; raises NewerLayout."""
    with suppress(asyncio.CancelledError):  # which says that it is to stop
        await patiently(store.check_layout, stopping, full=True)


async def _take_jobs(queue: Queue, job: Job, *, name: str, redelivery_s: float, stopping: asyncio.Event) -> None:
    """Take jobs of one queue until told to stop; a queue that fails stops the others too."""
    try:
        await queue.work(job, name=name, redelivery_s=redelivery_s, stopping=stopping)
    finally:
        stopping.set()


async def _loaded(load_build: Callable[[], Build], stopping: asyncio.Event) -> Build | None:
    """Return the loaded build, or None when the worker was told to stop before; loading goes on in a thread."""
    loading = asyncio.ensure_future(asyncio.to_thread(load_build))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({loading, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not loading.done():
        _log.info("worker stopped while warming up")
        os._exit(0)  # the compiler cannot be interrupted, and no job has been taken
    return await loading


async def _say_alive(store: Store, worker: WorkerInfo, every_s: float) -> None:
    await store.beat(worker, every_s * (_BEATS_TO_LIVE if worker.warm else _BEATS_TO_COMPILE))


async def _beat(store: Store, info: Callable[[], WorkerInfo], every_s: float, leaving: asyncio.Event) -> None:
    """Keep saying that this worker is alive; an outage of the store is logged once, and so is its end."""
    away = False
    # A client that is connecting may swallow a cancellation; the event ends the loop even then.
    while not leaving.is_set():
        try:
            await _say_alive(store, info(), every_s)
            if away:
                _log.info("the store is back")
            away = False
        except RedisError as error:
            if not away:
                _log.warning("the store is away; waiting for it", reason=str(error))
            away = True
        await asyncio.sleep(every_s)


async def _sweep(tracks: Tracks, idle_s: float, leaving: asyncio.Event, every_s: float = _SWEEP_S) -> None:
    """Delete tracks that nobody uses any more, now and then."""
    while not leaving.is_set():
        await asyncio.sleep(every_s)
        with suppress(RedisError):
            await tracks.expire(idle_s)
