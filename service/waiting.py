"""Waits that end early: when this process stops, or when the client that waits has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from anyio import CancelScope
from fastapi import Request
from starlette.requests import ClientDisconnect

from worker.patience import end_tasks

T = TypeVar("T")


async def wait_unless(waiting: Awaitable[T], stopping: asyncio.Event, request: Request | None = None) -> T | None:
    """Return what `waiting` returns, or None once `stopping` is set; whatever ends first cancels the rest.

    request: of the client that waits, its body read; raises ClientDisconnect when that client has gone.
    """
    work = asyncio.ensure_future(waiting)
    stop = asyncio.ensure_future(stopping.wait())
    others = [stop] if request is None else [stop, asyncio.ensure_future(_gone(request))]
    try:
        await asyncio.wait([work, *others], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if stop.done():
            return None
        raise ClientDisconnect
    finally:
        with CancelScope(shield=True):  # of a stream whose client has gone: it cancels every further wait as well
            await end_tasks([work, *others])


async def _gone(request: Request) -> bool:
    """Return True when the connection of a request has ended."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return True
