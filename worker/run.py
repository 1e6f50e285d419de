"""One build, from queue to store: read the points, build the graph in a thread, publish it.

A job ends in exactly one of five ways: published; failed, with an error a user can read; not wanted any more
(cancelled, deleted, or overtaken by another attempt); handed back because this worker stops; or, should the worker die,
redelivered by the queue. An outage of the store ends none of them: the job waits and goes on.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

import structlog
from numpy.typing import NDArray
from redis.exceptions import RedisError

from pcct_core.errors import Cancelled, FileFormatError, InvalidPoints, InvalidSpec, NotPositiveDefinite
from pcct_core.lookup import GateLookup
from pcct_core.spec import MAX_PAIRS, Accuracy, GraphSpec, Residual, metric_references
from worker.compiling import Compiling, parts_needed
from worker.eviction import NamespaceFull
from worker.metrics import observe_build
from worker.patience import patiently
from worker.query import QueryAnswer, QuerySpec, TreeCache, Wish, answer_query, wish_from_json
from worker.settings import ENTRY_BYTES, WorkerSettings
from worker.store import DamagedData, GraphRecord, Store, UnknownDataset
from worker.tasks import Queue
from worker.traces import end_span, for_origin, job_span, trace_build

if TYPE_CHECKING:
    from pcct_core.covertree import CoverTree
    from pcct_core.graph import Graph
    from pcct_core.parallel import CancelToken, Progress

T = TypeVar("T")
Notice: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]

_LOOK_S = 0.1  # how often a running job reports, and learns that it should stop
_YIELDING = 10  # steps of niceness: beside a busy thread of the usual priority, a tenth of a core

_log = structlog.stdlib.get_logger("pcct.worker")


class Build(Protocol):
    """What builds a graph: `pcct_core.graph.build_graph`, or a stand-in of a test."""

    def __call__(
        self,
        X: Any,
        spec: GraphSpec,
        *,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        threads: int | None = None,
        lookup: GateLookup | None = None,
        max_pairs: int = MAX_PAIRS,
        secret: bytes | None = None,
    ) -> Graph:
        """Build the graph that spec asks for on the points X."""
        ...


@dataclass
class Runner:
    """Runs jobs of one worker process, one at a time.

    stopping: set when the worker should stop; a running job is then handed back. threads: of one build, None for all.
    yields: whether its builds have a lower priority than the rest of the process.
    queue: where a job is handed back to; None where whoever runs the attempt sees to that.
    building: ids of the graphs being built, one at most; shared by what `within` and `yielding` return.
    compiling: the machine code that is still to come; builds that need it wait.
    """

    store: Store
    queue: Queue | None
    settings: WorkerSettings
    build: Build
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    threads: int | None = None
    yields: bool = False
    building: list[str] = field(default_factory=list)
    compiling: Compiling = field(default_factory=Compiling.nothing)

    def __post_init__(self) -> None:
        self._trees = TreeCache(self.settings.tree_cache_bytes)

    def within(self, namespace: str) -> Runner:
        """Return this runner at work in a namespace of the store."""
        runner = copy(self)
        runner.store = self.store.within(namespace)
        return runner

    def yielding(self) -> Runner:
        """Return this runner for builds that nobody waits for: their threads leave the cores to whoever wants them."""
        runner = copy(self)
        runner.yields = True
        return runner

    async def run_job(self, namespace: str, graph_id: str, request: str) -> None:
        """Do the job of one request; raises CancelledError only when the worker stops while the store is away."""
        runner, attempt = self.within(namespace), secrets.token_hex(8)
        record = await self._insistently(
            lambda: runner.store.mark_running(
                graph_id,
                request,
                attempt,
                max_attempts=self.settings.max_attempts,
                exhausted=exhausted(self.settings.max_attempts),
            )
        )
        if record is not None:
            with for_origin(record.origin):
                await runner._run_attempt(record, attempt, None)
        else:
            with for_origin(await self._patiently(lambda: runner.store.origin(graph_id))):
                _log.info("job skipped: not wanted any more", graph=graph_id[:12])

    async def run_attempt(self, graph_id: str, attempt: str, notice: Notice | None = None) -> None:
        """Bring an attempt that the store has started to one of its ends; raises as `run_job`.

        notice: awaited with {"phase", "done", "total", "eta_s"} whenever that changes.
        """
        record = await self._patiently(lambda: self.store.graph(graph_id))
        if record is not None:
            await self._run_attempt(record, attempt, notice)

    async def _run_attempt(self, record: GraphRecord, attempt: str, notice: Notice | None) -> None:
        log = _log.bind(graph=record.id[:12])
        kind = str(record.spec["kind"])
        with job_span(f"job {kind}", {"pcct.graph": record.id, "pcct.dataset": record.dataset}) as span:
            end = await self._counted_attempt(record, attempt, notice, log)
            end_span(span, f"job {kind}", {"pcct.outcome": end.outcome}, failed=end.outcome == "failed")

    async def _counted_attempt(
        self, record: GraphRecord, attempt: str, notice: Notice | None, log: structlog.stdlib.BoundLogger
    ) -> _End:
        self.building.append(record.id)
        started = time.perf_counter()
        try:
            end = await self._attempt(record, attempt, notice, log)
        except Exception as error:
            # Whatever went wrong, the graph must not stay "running".
            problem = describe_error(error)
            if problem["type"] == "internal-error":
                log.error("job failed", exc_info=error)
            else:
                log.info("job failed", detail=problem["detail"])
            await self._insistently(lambda: self.store.fail_graph(record.id, attempt, problem))
            end = _End("failed")
        finally:
            self.building.remove(record.id)
        seconds = time.perf_counter() - started
        if end.outcome in ("published", "overtaken"):
            log.info(f"job {end.outcome}", seconds=round(seconds, 3))
        await observe_build(self.store.redis, str(record.spec["kind"]), end.outcome, seconds, end.phases)
        return end

    async def _attempt(
        self, record: GraphRecord, attempt: str, notice: Notice | None, log: structlog.stdlib.BoundLogger
    ) -> _End:
        log.info("job started", dataset=record.dataset[:12], spec=record.spec, attempt=record.attempts)
        spec = await self._with_arrays(wish_from_json(record.spec))
        call = await self._call(record.dataset, spec)
        started_ns = time.time_ns()
        build = _BuildThread(call, self.yields)
        if not await self._watch(build, record.id, attempt, notice):
            log.info("job stopped: not wanted any more")
            return _End("stopped")
        if self.stopping.is_set() and not build.finished.done():
            await self._hand_back(record, attempt, log)
            return _End("handed-back")
        try:
            graph = build.finished.result()
        except Cancelled:
            await self._hand_back(record, attempt, log)
            return _End("handed-back")
        trace_build(started_ns, graph.telemetry.seconds)
        if isinstance(graph, QueryAnswer):
            self._trees.keep(self._tree_name(record.dataset), spec.metric, graph.tree)
        if graph.lookup is not None:
            await self._keep_profile(record.dataset, spec, graph.lookup)
        published = await self._patiently(
            lambda: self.store.publish_graph(
                record.id, attempt, graph.arrays(), graph.certificate.to_json(), graph.telemetry.to_json()
            )
        )
        return _End("published", graph.telemetry.seconds) if published else _End("overtaken")

    async def _call(self, dataset: str, spec: Wish) -> Callable[..., Graph | QueryAnswer]:
        """Return what makes the answer, to be called with progress and cancel."""
        max_pairs = self.settings.max_graph_bytes // ENTRY_BYTES
        if isinstance(spec, QuerySpec):
            asked = await self._asked(dataset, spec)
            queries = await self._patiently(partial(self.store.load_points, spec.queries))
            ask = partial(answer_query, asked, queries, spec, threads=self.threads, max_pairs=max_pairs)
            return self._when_compiled(parts_needed(spec, queries, asked.dtype), ask)
        points = await self._patiently(partial(self.store.load_points, dataset))
        call: Callable[..., Graph] = partial(self.build, points, spec, threads=self.threads)
        if spec.kind == "radius":
            call = partial(call, max_pairs=max_pairs)
        elif spec.gate == "lookup":
            call = await self._behind_profile(dataset, spec, points)
        if isinstance(spec.accuracy, Accuracy):
            call = partial(call, secret=await self._secret())
        return self._when_compiled(parts_needed(spec, points), call)

    def _when_compiled(
        self, parts: tuple[str, ...], call: Callable[..., Graph | QueryAnswer]
    ) -> Callable[..., Graph | QueryAnswer]:
        """Return the call, behind a wait for the machine code that it needs while that is still to come."""
        if not self.compiling.missing:
            return call
        return partial(self.compiling.after, parts, call)

    async def _secret(self) -> bytes:
        """Return what the draws of certificates depend on: the settings' secret, or the one that the store keeps."""
        given = self.settings.secret
        return await self._patiently(self.store.secret) if given is None else given.get_secret_value().encode()

    async def _asked(self, dataset: str, spec: QuerySpec) -> NDArray[Any] | CoverTree:
        """Return the tree of a dataset that was asked before, or its points; raises UnknownDataset when it was deleted."""
        tree = self._trees.find(self._tree_name(dataset), spec.metric)
        if tree is None:
            return await self._patiently(partial(self.store.load_points, dataset))
        if await self._patiently(partial(self.store.dataset, dataset)) is None:
            self._trees.drop(self._tree_name(dataset))
            raise UnknownDataset(dataset)
        return tree

    def _tree_name(self, dataset: str) -> str:
        """Return the name of a dataset among the trees, which are those of all namespaces."""
        return f"{self.store.namespace}:{dataset}"

    async def _behind_profile(self, dataset: str, spec: GraphSpec, points: NDArray[Any]) -> Callable[..., Graph]:
        """Return what builds a graph that asks for a gate profile, of its points, with the profile that the dataset has.

        No other graph is built with one: what its gate misses would depend on what was asked for before. A profile that
        cannot be read is dropped, and this build learns the next one: else every job that asks for it would fail.
        """
        call = partial(self.build, points, threads=self.threads)
        if not isinstance(spec.metric, Residual):
            return partial(call, spec, lookup=None)
        kernel = spec.metric.kernel.name
        found = await self._patiently(partial(self.store.profile, dataset, kernel, spec.k))
        if found is None:
            return partial(call, spec, lookup=None)
        try:
            return partial(call, spec, lookup=GateLookup.read(found, kernel, spec.k))
        except FileFormatError as error:
            await self._patiently(partial(self.store.drop_profile, dataset, kernel, spec.k, found))
            name = f"{dataset[:12]}:{kernel}:{spec.k}"
            _log.warning("gate profile dropped; it is learned anew", profile=name, reason=str(error))
            return partial(_learn_anew, call, spec)

    async def _keep_profile(self, dataset: str, spec: Wish, lookup: GateLookup) -> None:
        if isinstance(spec, GraphSpec):  # of those that ask for one, only where it was dropped is there none yet
            await self._patiently(lambda: self.store.keep_profile(dataset, lookup.kernel, lookup.k, lookup.to_json()))

    async def _with_arrays(self, spec: Wish) -> Wish:
        """Return the specification with the arrays of the datasets that it names; a query's own points come later."""
        arrays = {}
        for dataset in metric_references(spec.metric) if isinstance(spec, QuerySpec) else spec.references():
            arrays[dataset] = await self._patiently(partial(self.store.load_points, dataset))
        return spec.with_arrays(arrays)

    async def _watch(self, build: _BuildThread, graph_id: str, attempt: str, notice: Notice | None) -> bool:
        """Report progress until the build has finished; False when its result is not wanted any more.

        When the worker stops, the build is given a grace to notice and is then left behind.
        """
        reported: Mapping[str, Any] | None = None
        deadline = float("inf")
        while not build.finished.done():
            await asyncio.wait({build.finished}, timeout=_LOOK_S)
            if self.stopping.is_set():
                build.cancel.set()
                deadline = min(deadline, time.monotonic() + self.settings.shutdown_grace_s)
                if time.monotonic() >= deadline:
                    return True
                continue
            progress = build.progress()
            with suppress(RedisError):
                # What a build that has finished leaves tells more, and tells it sooner.
                said = None if progress == reported else progress
                if not build.finished.done() and not await self.store.set_progress(graph_id, attempt, said):
                    build.cancel.set()
                    await asyncio.wait({build.finished})
                    return False
                if notice is not None and progress is not None and progress != reported:
                    await notice(progress)
                reported = progress
        return True

    async def _hand_back(self, record: GraphRecord, attempt: str, log: structlog.stdlib.BoundLogger) -> None:
        """Queue the job again at once; a worker that dies in between leaves it to the queue's redelivery."""
        if await self._insistently(lambda: self.store.hand_back(record.id, attempt)):
            if self.queue is not None:
                await self._insistently(partial(self.queue.submit, record, again=attempt))
            log.info("job handed back: this worker stops")

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        return await patiently(call, self.stopping)

    async def _insistently(self, call: Callable[[], Awaitable[T]]) -> T:
        return await patiently(call, self.stopping, full=True)


class _End(NamedTuple):
    """How an attempt has ended. phases: seconds by phase of a published build."""

    outcome: str
    phases: Mapping[str, float] = MappingProxyType({})


class _BuildThread:
    """A build in a thread of its own, which a stopping process may leave behind.

    build: called with progress and cancel. yields: whether its threads have a lower priority than all others.
    finished: future of the graph or answer, or of what the build raised. cancel: set it to stop the build.
    """

    def __init__(self, build: Callable[..., Graph | QueryAnswer], yields: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[Graph | QueryAnswer] = self._loop.create_future()
        # A build that nobody waits for any more may fail in silence.
        self.finished.add_done_callback(lambda finished: finished.cancelled() or finished.exception())
        self.cancel = threading.Event()
        self._yields = yields
        self._latest: tuple[str, int, int] | None = None
        self._phase: tuple[str, float] = ("", 0.0)
        self._call: Callable[[], Graph | QueryAnswer] = partial(build, progress=self._note, cancel=self.cancel)
        threading.Thread(target=self._run, name="pcct build", daemon=True).start()

    def progress(self) -> dict[str, Any] | None:
        """Return {"phase", "done", "total", "eta_s"}; eta_s covers the phase and is None until it can be told."""
        if self._latest is None:
            return None
        phase, done, total = self._latest
        name, since = self._phase
        elapsed = time.monotonic() - since
        eta = round(elapsed / done * (total - done), 1) if name == phase and done and elapsed > _LOOK_S else None
        return {"phase": phase, "done": done, "total": total, "eta_s": eta}

    def _note(self, phase: str, done: int, total: int) -> None:
        if self._phase[0] != phase:
            self._phase = (phase, time.monotonic())
        self._latest = (str(phase), int(done), int(total))

    def _run(self) -> None:
        if self._yields:
            yield_processor()
        try:
            graph = self._call()
        except Exception as error:
            self._settle(partial(self.finished.set_exception, error))
        except BaseException as error:
            # Not even an exit from inside the build ends the worker.
            self._settle(partial(self.finished.set_exception, RuntimeError(repr(error))))
        else:
            self._settle(partial(self.finished.set_result, graph))

    def _settle(self, action: Callable[[], None]) -> None:
        # The loop is closed when a stopping worker has left this build behind.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(action)


def _learn_anew(build: Build, spec: GraphSpec, **options: Any) -> Graph:
    """Return the graph of a specification that asks for a gate profile, built behind a gate that this build learns itself."""
    return replace(build(replace(spec, gate="auto"), **options), spec=spec)


def yield_processor() -> None:
    """Lower the priority of the calling thread, and so of each thread that it starts, below the rest of the process.

    Only a privileged process may raise it again: a thread that calls this should end with the work that yields. Does nothing
    where priorities are not those of threads, on anything but Linux.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + _YIELDING
        os.setpriority(os.PRIO_PROCESS, thread, niceness)  # the kernel keeps it within its range


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return the error as the graph resource shows it: {"type", "title", "detail"}, with "row" or "field" if known."""
    if isinstance(error, InvalidPoints):
        extra = {} if error.row is None else {"row": error.row}
        return {"type": "invalid-points", "title": "The points cannot be used", "detail": str(error), **extra}
    if isinstance(error, InvalidSpec):
        return {
            "type": "invalid-spec",
            "title": "The specification cannot be met",
            "detail": str(error),
            "field": error.field,
        }
    if isinstance(error, NotPositiveDefinite):
        title = "The inducing points cannot be used together"
        return {"type": "not-positive-definite", "title": title, "detail": str(error)}
    if isinstance(error, UnknownDataset | DamagedData):
        return {"type": "unknown-dataset", "title": "The dataset is gone", "detail": str(error)}
    if isinstance(error, NamespaceFull):
        return {"type": "namespace-full", "title": "The namespace is full", "detail": str(error)}
    if isinstance(error, MemoryError):
        detail = "the worker ran out of memory; use fewer points or a smaller k, or give the worker more"
        return {"type": "out-of-memory", "title": "The build needs more memory", "detail": detail}
    if isinstance(error, RedisError):
        detail = f"the store refused the result ({error}); ask again when it has room"
        return {"type": "store-refused", "title": "The store refused the result", "detail": detail}
    detail = f"{type(error).__name__} in the worker; its log has the details; ask again to retry"
    return {"type": "internal-error", "title": "The build failed", "detail": detail}


def exhausted(attempts: int) -> dict[str, Any]:
    """Return the error of a graph whose builds have ended their workers too often."""
    detail = (
        f"the worker died {attempts} times while building this graph, most likely out of memory; "
        "use fewer points or a smaller k, or give the worker more memory, then ask again"
    )
    return {"type": "worker-died", "title": "The build kept ending its worker", "detail": detail}
