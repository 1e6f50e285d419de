"""Work in chunks on several threads: progress, cancellation, and errors that reach the caller.

Kernels are compiled with `nogil=True` and called from ordinary Python threads. That is our one threading layer: it is safe
for any number of builds at the same time, survives a fork between builds, and leaves nothing running behind a cancelled one.
Numba's own layers fail at least one of the three (workqueue the first, OpenMP the second).
"""

from __future__ import annotations

import operator
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, SupportsIndex, TypeAlias, cast

from pcct_core.errors import Cancelled, InvalidInput

Progress: TypeAlias = Callable[[str, int, int], None]

_CHUNK_S = 0.02  # aim of one chunk: five chunks between two looks at the cancel token would still be within 100 ms
_REPORT_S = 0.05  # between two progress reports


class CancelToken(Protocol):
    """Anything with `is_set()`, such as `threading.Event`."""

    def is_set(self) -> bool:
        """Return True once the work should stop."""
        ...


def _read_threads(threads: object) -> int:
    try:
        number = 0 if isinstance(threads, bool) else operator.index(cast(SupportsIndex, threads))
    except TypeError:
        number = 0
    if number < 1:
        raise InvalidInput(f"threads is {threads!r}; use a whole number of at least 1, or None for one per core")
    return number


class Crew:
    """The threads of one build, its progress callback and its cancel token; used as a context manager.

    threads:  number of threads, the calling one included; None for one per available core.
    progress: called as progress(phase, done, total) from the calling thread only.
    cancel:   looked at between chunks; once set, `run` raises Cancelled after every thread has stopped.
    """

    def __init__(
        self, threads: int | None = None, progress: Progress | None = None, cancel: CancelToken | None = None
    ) -> None:
        self.threads = len(os.sched_getaffinity(0)) if threads is None else _read_threads(threads)
        self.progress = progress
        self.cancel = cancel
        self._pool: ThreadPoolExecutor | None = None
        self._reported_s = 0.0
        self._expected: dict[str, _Phase] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def check(self) -> None:
        """Raise Cancelled if the cancel token is set."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("the build was cancelled; nothing was kept")

    def report(self, phase: str, done: int, total: int) -> None:
        """Call progress, at most every 50 ms unless the phase begins or ends; then look at the cancel token."""
        if self.progress is not None:
            now = time.monotonic()
            if done in (0, total) or now - self._reported_s >= _REPORT_S:
                self._reported_s = now
                self.progress(phase, done, total)
        self.check()

    def expect(self, phase: str, total: int) -> None:
        """Announce that the coming runs of a phase count up to total together; otherwise each counts for itself."""
        self._expected[phase] = _Phase(total)

    def run(
        self, phase: str, total: int, work: Callable[[int, int], object], grain: int = 1, units: float = 1.0
    ) -> None:
        """Call work(start, stop) over [0, total) in chunks, on all threads; return when every chunk is done.

        Chunks start at `grain` items and grow until one takes about 20 ms. Which thread does which chunk is left to
        chance, so work must not depend on it. The first error of any thread is raised here after all have stopped.
        phase: reported, or "" to only look at the cancel token. units: what an item counts in the phase.
        """
        scope = self._expected.get(phase) or _Phase(round(total * units))
        shift = _Shift(total, grain, self.threads)
        self._advance(phase, scope, 0.0)
        helpers = min(self.threads - 1, (total - 1) // grain)
        futures: list[Future[None]] = []
        if helpers > 0:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="pcct-core")
            futures = [self._pool.submit(self._help, shift, work) for _ in range(helpers)]
        try:
            while (chunk := shift.take()) is not None:
                shift.timed(work, chunk)
                self._advance(phase, scope, shift.done * units, last=scope.total - 1)
        finally:
            shift.stopped = True
            for future in futures:
                future.exception()  # waits
        for future in futures:
            future.result()
        scope.done += total * units
        self._advance(phase, scope, 0.0)

    def _advance(self, phase: str, scope: _Phase, more: float, last: int | None = None) -> None:
        """Report what is done; at most `last`, so that a phase ends once, when its threads have."""
        if phase:
            self.report(phase, min(round(scope.done + more), scope.total if last is None else last), scope.total)
        else:
            self.check()

    def _help(self, shift: _Shift, work: Callable[[int, int], object]) -> None:
        try:
            while (chunk := shift.take()) is not None:
                shift.timed(work, chunk)
                self.check()
        except BaseException:
            shift.stopped = True
            raise


@dataclass
class _Phase:
    """What a phase counts up to, and how much of it earlier runs have done."""

    total: int
    done: float = 0.0


class _Shift:
    """One parallel loop: the next chunk to take and how long items have been taking."""

    def __init__(self, total: int, grain: int, threads: int) -> None:
        self.total = total
        self.grain = grain
        self.threads = threads
        self.next = 0
        self.done = 0
        self.seconds = 0.0
        self.stopped = False
        self.lock = threading.Lock()

    def take(self) -> tuple[int, int] | None:
        """Return the next chunk (start, stop), or None when there is none or the loop was stopped."""
        with self.lock:
            left = self.total - self.next
            if left <= 0 or self.stopped:
                return None
            size = self.grain
            if self.seconds > 0.0:
                size = max(size, int(_CHUNK_S * self.done / self.seconds))
            # The last chunks get smaller, so that no thread waits long for another.
            size = min(left, max(self.grain, min(size, left // (2 * self.threads))))
            start = self.next
            self.next += size
            return start, start + size

    def timed(self, work: Callable[[int, int], object], chunk: tuple[int, int]) -> None:
        """Do one chunk and note the time it took."""
        begin = time.perf_counter()
        work(*chunk)
        with self.lock:
            self.done += chunk[1] - chunk[0]
            self.seconds += time.perf_counter() - begin
