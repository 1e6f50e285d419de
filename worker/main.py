"""The worker process: say "alive", load the core, take jobs until told to stop, hand back what is unfinished."""

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

import structlog
from redis.exceptions import RedisError

from worker.absence import Absence
from worker.compiling import FIRST, SHIFTS, Compiling
from worker.follow import Follower
from worker.logs import configure_logs
from worker.patience import patiently
from worker.run import Build, Runner
from worker.settings import WorkerSettings
from worker.signals import remember_signals
from worker.store import NewerLayout, Store, WorkerInfo
from worker.tasks import Job, Queue
from worker.traces import start_traces, stop_traces
from worker.tracks import Tracks

_SWEEP_S = 60.0
_BEATS_TO_LIVE = 5  # a worker counts as gone after missing this many heartbeats
_BEATS_TO_LOAD = (
    30  # the same while it loads the core: a compiler in this process lets nothing else run for up to ten seconds
)

_log = structlog.stdlib.get_logger("pcct.worker")


def run_worker(
    settings: WorkerSettings,
    *,
    absence: Absence | None = None,
    load_build: Callable[[], Build] | None = None,
) -> NoReturn:
    """Work until SIGTERM or SIGINT, then end this process.

    absence: what was told of the store before, None for nothing.
    load_build: returns what builds graphs, which lacks no code; None for the core.
    """
    told = remember_signals()
    configure_logs(settings)
    start_traces("pcct-worker")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        load = load_core if load_build is None else lambda: (load_build(), Compiling.nothing())
        status = runner.run(_work(settings, absence or Absence(settings.store_url), load, told))
    stop_traces()
    # A build that was left behind may still run compiled code, which must not meet a dying interpreter.
    os._exit(status)


def load_core() -> tuple[Build, Compiling]:
    """Import the core, and read the machine code that most graphs need; return what builds graphs, and what is to be compiled.

    Where no files can be kept, everything is compiled before this returns, in this process.
    """
    from pcct_core import jit, warm
    from pcct_core.graph import build_graph

    directory = jit.code_directory()
    if directory is None:
        for part in warm.PARTS:
            warm.warm(part)
        return build_graph, Compiling.nothing()
    if warm.is_warm(FIRST):
        warm.warm(FIRST)
    missing = {part: takes_s for part, takes_s in warm.PARTS.items() if not warm.is_warm(part)}
    return build_graph, Compiling(missing, directory)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's loops, which send chunks without copying them, None where it is not installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


async def _work(
    settings: WorkerSettings, absence: Absence, load: Callable[[], tuple[Build, Compiling]], told: list[int]
) -> int:
    """Return the exit status of a worker that has ended. told: the signals that came before its loop hears them."""
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    store, queue = Store.from_settings(settings), Queue.from_settings(settings)
    refreshes = Queue.refresh_from_settings(settings)
    stopping, leaving = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if told:
        stopping.set()
    runners: list[Runner] = []

    def info() -> WorkerInfo:
        graph = next((graph for runner in runners for graph in runner.building), None)
        missing = runners[0].compiling.missing if runners else ()
        return WorkerInfo(name, os.getpid(), bool(runners) and FIRST not in missing, graph, missing)

    tracks = Tracks(store, refreshes, queue)
    beat = absence.watch(lambda: _say_alive(store, info(), settings.heartbeat_s), settings.heartbeat_s, leaving)
    beats = asyncio.create_task(beat, name="pcct heartbeat")
    sweeps = asyncio.create_task(_sweep(tracks, settings.track_idle_s, leaving), name="pcct sweep")
    compilers: list[asyncio.Task[None]] = []
    status = 0
    try:
        with suppress(RedisError):  # a first look, before minutes of compiling
            await store.check_layout()
        started = time.perf_counter()
        loaded = await _loaded(load, stopping)
        if loaded is not None:
            build, compiling = loaded
            await _check_layout(store, stopping)
            threads = settings.refresh_threads or max(1, len(os.sched_getaffinity(0)) - 1)
            runner = Runner(store, queue, settings, build, stopping, settings.threads, compiling=compiling)
            refresher = Runner(store, None, settings, build, stopping, threads, compiling=compiling)
            follower = Follower(store, tracks, refresher, settings.refresh_timeout_s, stopping)
            runners += [runner, refresher]
            with suppress(RedisError):
                await _say_alive(store, info(), settings.heartbeat_s)
            loading_s = round(time.perf_counter() - started, 2)
            _log.info("worker ready", worker=name, loading_s=loading_s, compiling=compiling.missing)
            compilers.append(asyncio.create_task(compiling.run(SHIFTS), name="pcct compilers"))
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
        for task in (beats, sweeps, *compilers):
            task.cancel()
        await asyncio.wait({beats, sweeps, *compilers})
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


async def _loaded(
    load: Callable[[], tuple[Build, Compiling]], stopping: asyncio.Event
) -> tuple[Build, Compiling] | None:
    """Return what was loaded, or None when the worker was told to stop before; loading goes on in a thread."""
    loading = asyncio.ensure_future(asyncio.to_thread(load))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({loading, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not loading.done():
        _log.info("worker stopped while warming up")
        os._exit(0)  # the compiler cannot be interrupted, and no job has been taken
    return await loading


async def _say_alive(store: Store, worker: WorkerInfo, every_s: float) -> None:
    await store.beat(worker, every_s * (_BEATS_TO_LIVE if worker.warm else _BEATS_TO_LOAD))


async def _sweep(tracks: Tracks, idle_s: float, leaving: asyncio.Event, every_s: float = _SWEEP_S) -> None:
    """Delete tracks that nobody uses any more, now and then."""
    while not leaving.is_set():
        await asyncio.sleep(every_s)
        with suppress(RedisError):
            await tracks.expire(idle_s)
