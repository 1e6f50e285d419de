"""Patience with a store that is away, or full, and with its client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as StoreTimeoutError

T = TypeVar("T")

_AWAY = (StoreConnectionError, StoreTimeoutError)
_AWAY_PAUSE_S = 0.3
_INSIST_S = 0.05


def refuses_writes(error: BaseException) -> bool:
    """Return whether an error of the store means that it takes no data now: its memory or its disk is full.

    redis-py has a class for the first only; a Redis before 7 wraps either when it happens inside a script.
    """
    if isinstance(error, OutOfMemoryError | ReadOnlyError):
        return True
    text = str(error)
    return isinstance(error, ResponseError) and ("MISCONF " in text or "OOM command not allowed" in text)


@contextmanager
def dispensable() -> Iterator[None]:
    """Go without the write in the block while the store takes none: what is there can be read even then."""
    try:
        yield
    except RedisError as error:
        if not refuses_writes(error):
            raise


async def patiently(call: Callable[[], Awaitable[T]], stopping: asyncio.Event, *, full: bool = False) -> T:
    """Await call(), again and again while the store is away.

    full: also while the store is full, for the few bytes that say what became of a job; without them it would be stuck.
    A stopping worker does not wait: CancelledError leaves the job with the queue, which redelivers it.
    """
    while True:
        try:
            return await call()
        except RedisError as error:
            if not (isinstance(error, _AWAY) or (full and refuses_writes(error))):
                raise
            if stopping.is_set():
                raise asyncio.CancelledError from error
            await asyncio.sleep(_AWAY_PAUSE_S)


async def end_tasks(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel tasks until they have ended: redis-py swallows a cancellation that meets it while it connects."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_INSIST_S)
