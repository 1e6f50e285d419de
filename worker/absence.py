"""What a process says of a store that does not answer: at once, then every half minute, and that the store is back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from redis.exceptions import RedisError

from worker.store_url import VARIABLE, without_password

_AGAIN_S = 30.0

_log = structlog.stdlib.get_logger("pcct.store")


class Absence:
    """Tells of one store's outages. url: of the store, shown without its password. clock: seconds that only grow."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = without_password(url)
        self._clock = clock
        self._told = -math.inf

    def note_failure(self, reason: object) -> None:
        """Take one failure; tell it when it is the first of its outage, or half a minute after the last that was told."""
        now = self._clock()
        if now - self._told >= _AGAIN_S:
            self._told = now
            fix = f"start it, or correct {VARIABLE}"
            _log.warning("the store is away; waiting for it", store=self._store, fix=fix, reason=str(reason))

    def note_answer(self) -> None:
        """Take one answer; tell it when it ends an outage."""
        if self._told != -math.inf:
            self._told = -math.inf
            _log.info("the store is back", store=self._store)

    async def watch(self, ask: Callable[[], Awaitable[object]], every_s: float, leaving: asyncio.Event) -> None:
        """Await ask() every every_s seconds until `leaving` is set, and tell when the store is away and when it is back."""
        # A client that is connecting may swallow a cancellation; the event ends the loop even then.
        while not leaving.is_set():
            try:
                await ask()
                self.note_answer()
            except RedisError as error:
                self.note_failure(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await leaving.wait()
