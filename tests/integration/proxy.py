"""A TCP proxy on loopback that makes a network slow and lets its connections break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

_PIECE = 16_384

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Proxy:
    """Listens on `port` while it is entered, and passes on what comes.

    dial: connects to the other side. delay_s: each piece of up to 16 KiB arrives this much later, both ways.
    cut_bytes: connections break without notice after this many bytes, one after the other; at last they hold.
    """

    def __init__(self, dial: Dial, *, delay_s: float = 0.0, cut_bytes: tuple[int, ...] = ()) -> None:
        self._dial, self._delay_s = dial, delay_s
        self._cuts = list(reversed(cut_bytes))
        self.port = 0
        self.broken = 0
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def break_all(self) -> None:
        """Break every connection that there is."""

        def break_all() -> None:
            self.broken += len(self._open) // 2
            self._abort_all()

        self._loop.call_soon_threadsafe(break_all)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        self._server.close()
        self._abort_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _abort_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await self._dial()
        except OSError:
            writer.transport.abort()
            return
        budget = [self._cuts.pop()] if self._cuts else []
        ends = {writer, back}
        self._open |= ends
        try:
            ways = {asyncio.create_task(self._pass(a, b, budget)) for a, b in ((reader, back), (there, writer))}
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._open -= ends
            self.broken += bool(budget and budget[0] < 0)
            for end in ends:
                if budget and budget[0] < 0:
                    end.transport.abort()
                else:
                    end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: list[int]) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                await asyncio.sleep(self._delay_s)
                if budget:
                    budget[0] -= len(piece)
                    if budget[0] < 0:
                        return
                writer.write(piece)
                await writer.drain()
