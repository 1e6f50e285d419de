"""`Session` and `AsyncSession`: a graph that follows the hyperparameters of a training loop, which never waits for it.

Where the state is, and what is said to the service: `following`. Here is what runs it: two daemon threads, or two tasks.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, NoReturn, TypeAlias

from pcct_client.calls import DEFAULT_TIMEOUT_S, Deadline, Flow
from pcct_client.errors import BelongsElsewhere, CannotPickle, ClientError
from pcct_client.following import CLOSE_S, Following, unexpected
from pcct_client.graph import Graph
from pcct_client.reach import running_loop

# What carries out a flow: `run` as it is, `call` for one that the caller waits for, making its calls again where that helps.
Run: TypeAlias = Callable[[Flow[Any]], Any]
AsyncRun: TypeAlias = Callable[[Flow[Any]], Awaitable[Any]]

_RESTART_S = 1.0


class Background:
    """The two daemon threads of a session. They hold this object, so it lives until both have ended.

    run: carries out a flow with blocking I/O.
    """

    def __init__(self, run: Run, following: Following) -> None:
        self.run = run
        self.following = following
        self._process = os.getpid()
        self._threads = [
            threading.Thread(target=self._keep_running, args=(flow,), name=f"pcct-{flow.__name__}", daemon=True)
            for flow in (following.send, following.fetch)
        ]

    @property
    def is_here(self) -> bool:
        """Whether this is the process that has the threads, not a fork of it."""
        return os.getpid() == self._process

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()
        _running.add(self)

    def leave(self) -> None:
        """Have both end. In a fork there is nothing to end, and a bell may be in the hands of a thread that is not there."""
        if self.is_here:
            self.following.leave()

    def stop(self) -> None:
        """End both, and wait for that a moment."""
        if not self.is_here:
            return
        self.following.leave()
        deadline = Deadline(CLOSE_S)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(deadline.left_s(CLOSE_S))

    def _keep_running(self, flow: Callable[[], Flow[None]]) -> None:
        while True:
            try:
                self.run(flow())
                return
            except Exception as error:
                if self.following.closed:
                    return
                self.following.note(flow.__name__, unexpected(error))
            self.following.closing.wait(_RESTART_S)


class _View:
    """What a session shows of its state, whoever talks to the service for it."""

    _following: Following

    @property
    def graph(self) -> Graph:
        """The graph of the last step; before the first step, the one that it will return. Never swaps."""
        return self._following.graph

    @property
    def version(self) -> int:
        """The version of `graph`, counted from 1; it only goes up, and may skip numbers."""
        return self.graph.version or 0

    @property
    def last_error(self) -> ClientError | None:
        """What keeps newer graphs away at present: the service is gone, refuses, or cannot build. None: all is well."""
        return self._following.last_error

    @property
    def shared(self) -> str | None:
        """What another program does to this session's track, if it refreshes it too and has gone ahead; None: nothing.

        The session goes on with its own hyperparameters. The logger `pcct_client` tells it once, as a warning.
        """
        return self._following.shared

    @property
    def events(self) -> deque[dict[str, Any]]:
        """The latest events, oldest first: {"event": "neighbor_refresh.swap", "track", "time_s", "epoch", …}."""
        return self._following.events.copy()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: threads, tasks and the track cannot go along."""
        raise CannotPickle(
            "a session belongs to the process that began it and cannot be pickled; send session.graph, "
            "or the client, and begin another session with Client.track"
        )

    def __repr__(self) -> str:
        """Return the graph of the last step, in one line."""
        return f"{type(self).__name__}({self.graph if self._following.has_begun else 'not begun'})"


class Session(_View):
    """A graph that follows a training loop; `Client.track` begins one.

    Two daemon threads talk to the service; they end with `close`, with the client, with the interpreter, or when nobody
    holds the session any more. Errors in them go to `last_error`, never to stderr. They do not survive a fork: in the child
    `step` goes on returning the last graph, and the track stays the parent's.
    """

    def __init__(self, background: Background, timeout: float | None, call: Run) -> None:
        self._background = background
        self._following = background.following
        try:
            call(self._following.open(Deadline(timeout)))
        except BaseException:
            with contextlib.suppress(ClientError):
                background.run(self._following.forget())
            raise
        background.start()
        # The threads hold the state, not the session, so that a session that was dropped ends.
        weakref.finalize(self, background.leave).atexit = False

    def step(
        self, lengthscale: Any = None, variance: Any = None, *, epoch: int | None = None, force: bool = False
    ) -> Graph:
        """Leave the newest hyperparameters and return the newest finished graph, at once.

        lengthscale, variance: numbers or arrays (NumPy, JAX, PyTorch); what is left out stays as it was.
        epoch: one more than at the last step if left out; it cannot go backwards. force: have a graph built for exactly
        these values whatever the policy says, unless it is there.
        Returns the same object until a newer graph is swapped in; then `graph.changed` is true until the next step.
        Never waits for the network or a build; trouble with either is in `last_error`. Raises InvalidStep for a value that
        no graph can have, SessionClosed.
        """
        if self._background.is_here:
            self._following.leave_wish(lengthscale, variance, epoch, force)
            return self._following.take()
        return self._following.graph

    def sync(self, timeout: float | None = DEFAULT_TIMEOUT_S) -> Graph:
        """Wait for the graph that was built for exactly the hyperparameters of the last step, and return it.

        What a convergence check needs. Raises WaitTimeout, what the service refused them with, or BuildFailed; the graph
        of the last step stays then.
        """
        if not self._background.is_here:
            raise BelongsElsewhere(
                "the session belongs to the process that began it; this is a fork: begin another here"
            )
        self._background.run(self._following.sync(Deadline(timeout)))
        return self._following.take()

    def close(self) -> None:
        """End the session; the service forgets the track. Takes a few seconds at most, whatever the service does."""
        self._background.stop()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncSession(_View):
    """`Session` for asyncio: `async with client.track(…) as session`, or `session = await client.track(…)`.

    Two tasks talk to the service, whenever the loop is free: a long computation belongs into `asyncio.to_thread`. They end with
    the event loop that the session was begun in; it works in no other. In a fork `step` goes on returning the last graph.
    """

    def __init__(
        self,
        run: AsyncRun,
        following: Following,
        timeout: float | None,
        call: AsyncRun,
        on_close: Callable[[], None],
    ) -> None:
        self._run = run
        self._call = call
        self._following = following
        self._timeout = timeout
        self._on_close = on_close
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def step(
        self, lengthscale: Any = None, variance: Any = None, *, epoch: int | None = None, force: bool = False
    ) -> Graph:
        """Leave the newest hyperparameters and return the newest finished graph; see `Session.step`.

        Lets other tasks run once and waits for nothing.
        """
        if os.getpid() != self._process:
            return self._following.graph
        self._check_loop()
        self._following.leave_wish(lengthscale, variance, epoch, force)
        await asyncio.sleep(0)
        return self._following.take()

    async def sync(self, timeout: float | None = DEFAULT_TIMEOUT_S) -> Graph:  # noqa: ASYNC109
        """Wait for the graph of exactly the last step's hyperparameters; see `Session.sync`."""
        self._check_loop()
        await self._run(self._following.sync(Deadline(timeout)))
        return self._following.take()

    async def open(self) -> AsyncSession:
        """Upload the points, create the track and get its first graph; `async with` and `await` do this."""
        if self._tasks:
            self._check_loop()
            return self
        self._loop = running_loop()
        try:
            await self._call(self._following.open(Deadline(self._timeout)))
        except BaseException:
            with contextlib.suppress(ClientError):
                await asyncio.shield(asyncio.ensure_future(self._run(self._following.forget())))
            self._on_close()
            raise
        self._tasks = [
            asyncio.create_task(_keep_running_async(self._run, flow, self._following), name=f"pcct-{flow.__name__}")
            for flow in (self._following.send, self._following.fetch)
        ]
        return self

    async def aclose(self) -> None:
        """End the session; the service forgets the track. Takes a few seconds at most, whatever the service does."""
        self._on_close()
        if os.getpid() != self._process:
            return
        if self._loop not in (None, running_loop()):
            await self._close_from_elsewhere(self._loop)
            return
        self._following.leave()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _close_from_elsewhere(self, loop: asyncio.AbstractEventLoop) -> None:
        """End a session of another loop: there, if it runs in another thread; if it has ended, its tasks have too."""
        if loop.is_running():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.aclose(), loop))
            return
        with contextlib.suppress(RuntimeError):  # tasks that still wait for a bell, and that nothing can wake any more
            self._following.leave()
        with contextlib.suppress(ClientError):
            await self._run(self._following.forget())

    def _check_loop(self) -> None:
        """Raise BelongsElsewhere in another event loop than the session's, or in a fork."""
        if os.getpid() != self._process or self._loop not in (None, running_loop()):
            ended = self._loop is not None and self._loop.is_closed()
            raise BelongsElsewhere(
                f"the session belongs to the event loop that began it, {'which has ended' if ended else 'which is another'}; "
                "begin another session here, with client.track"
            )

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self.open().__await__()

    async def __aenter__(self) -> AsyncSession:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _keep_running_async(run: AsyncRun, flow: Callable[[], Flow[None]], following: Following) -> None:
    while True:
        try:
            await run(flow())
            return
        except Exception as error:
            if following.closed:
                return
            following.note(flow.__name__, unexpected(error))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(following.closing.wait(), _RESTART_S)


_running: weakref.WeakSet[Background] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Tell the service about sessions that are still open when the interpreter ends."""
    for background in list(_running):
        background.stop()
