"""Machine code for the worker's builds: compiled by processes of its own, so that the worker goes on meanwhile.

Two processes compile side by side what `pcct_core.warm` lists, in files where the worker's builds find it. A build that needs
a part which is not there yet waits for it, and says so. Where no files can be kept, or a compiler fails, builds compile for
themselves when they first need it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from pcct_core.errors import Cancelled
from pcct_core.spec import Residual

if TYPE_CHECKING:
    from pcct_core.parallel import CancelToken, Progress
    from worker.query import Wish

T = TypeVar("T")

FIRST = "float64"  # the part that most graphs need: a worker that has it is ready
# What two processes compile side by side, each part after those whose code it shares.
SHIFTS = (("float64", "residual", "dense"), ("float32", "radius", "float32-radius", "float32-dense"))
PHASE = "compiling"
_BOXES_SERVE = 8  # dimensions: up to there no search is a scan of all pairs
_LOOK_S = 0.1

_log = structlog.stdlib.get_logger("pcct.worker")


def parts_needed(spec: Wish, points: NDArray[Any], asked: Any = np.float64) -> tuple[str, ...]:
    """Return the parts that an answer may need; points: T (n, d), those of its rows. asked: type of the points of a query."""
    if isinstance(spec.metric, Residual):
        return ("float64", "residual")
    search = "radius" if spec.radius is not None else "dense" if points.shape[1] > _BOXES_SERVE else None
    parts = ["float64"] if search is None else ["float64", search]
    if np.float32 in (points.dtype, asked):
        parts += ["float32"] if search is None else ["float32", f"float32-{search}"]
    return tuple(parts)


class Compiling:
    """What of the machine code is there. Made with the parts that are not, by name, and how long each takes, in seconds.

    directory: where compilers keep it. They would find the same one, and each would tell again where that costs something.
    Used by the event loop, and by the threads of builds, which wait.
    """

    def __init__(self, missing: dict[str, float], directory: Path | None = None) -> None:
        self._takes_s = dict(missing)
        self._missing = dict.fromkeys(missing)
        self._started = time.monotonic()
        self._changed = threading.Condition()
        self._environment = os.environ | ({} if directory is None else {"NUMBA_CACHE_DIR": str(directory)})

    @classmethod
    def nothing(cls) -> Compiling:
        """Return that of a worker that lacks nothing, or that compiles for itself."""
        return cls({})

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the parts that are still to come."""
        return tuple(self._missing)

    def arrived(self, parts: Sequence[str]) -> None:
        """Note that parts are there, or will not come from elsewhere: builds that wait for them go on."""
        with self._changed:
            for part in parts:
                self._missing.pop(part, None)
            self._changed.notify_all()

    def wait(self, parts: Sequence[str], timeout_s: float | None = None) -> bool:
        """Wait for parts; True once none of them is missing."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(part in self._missing for part in parts), timeout_s)

    def after(
        self, parts: Sequence[str], build: Callable[..., T], *, progress: Progress | None = None, cancel: CancelToken
    ) -> T:
        """Return build(progress, cancel), called once the parts are there; until then progress tells of the phase."""
        expected_s = max(1.0, sum(self._takes_s.get(part, 0.0) for part in parts))
        while not self.wait(parts, _LOOK_S):
            if cancel.is_set():
                raise Cancelled("the build was cancelled while its code was compiled; nothing was kept")
            if progress is not None:
                # In tenths of a second. On a busy machine it takes longer than expected: a sixth is always left.
                passed_s = time.monotonic() - self._started
                progress(PHASE, int(10 * passed_s), int(10 * max(expected_s, 1.2 * passed_s)))
        return build(progress=progress, cancel=cancel)

    async def run(self, shifts: Sequence[Sequence[str]]) -> None:
        """Compile what is missing, each shift by a process of its own; returns when nothing is."""
        async with asyncio.TaskGroup() as group:
            for shift in shifts:
                wanted = [part for part in shift if part in self._missing]
                if wanted:
                    group.create_task(self._compile(wanted))

    async def _compile(self, parts: Sequence[str]) -> None:
        command = (sys.executable, "-P", "-m", "pcct_core.warm", *parts)
        # The compiler ends when its standard input does: with this process, however that ends.
        try:
            compiler = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=self._environment
            )
        except OSError as error:
            self._give_up(parts, str(error))
            return
        assert compiler.stdout is not None  # noqa: S101  (it was asked for)
        try:
            async for line in compiler.stdout:
                part = line.decode().strip()
                self.arrived([part])
                _log.info("compiled", part=part, after_s=round(time.monotonic() - self._started, 1))
            status = await compiler.wait()
            left = [part for part in parts if part in self._missing]
            if left:
                self._give_up(left, f"exit status {status}")
        finally:
            if compiler.returncode is None:
                with suppress(ProcessLookupError):
                    compiler.kill()

    def _give_up(self, parts: Sequence[str], reason: str) -> None:
        """Let builds that wait for parts go on: no compiler brings these any more."""
        _log.warning("the compiler failed; builds compile for themselves", reason=reason, parts=parts)
        self.arrived(parts)
