"""Patience with a store that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import TimeoutError as StoreTimeoutError

T = TypeVar("T")

_AWAY = (StoreConnectionError, StoreTimeoutError)
_AWAY_PAUSE_S = 0.3


async def patiently(call: Callable[[], Awaitable[T]], stopping: asyncio.Event) -> T:
    """Await call(), again and again while the store is away.

    A stopping worker does not wait: CancelledError leaves the job with the queue, which redelivers it.
    """
    while True:
        try:
            return await call()
        except _AWAY as error:
            if stopping.is_set():
                raise asyncio.CancelledError from error
            await asyncio.sleep(_AWAY_PAUSE_S)
