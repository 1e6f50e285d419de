"""Connections that cost nothing while nothing comes of them: uvicorn's protocol, with an end for those who never ask.

uvicorn ends connections that are idle between two requests. One whose first request does not come, or whose head comes byte by
byte, it would keep for ever, and it knows no problem for one too many.
"""

from __future__ import annotations

import asyncio
import json
import resource
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from service.problems import BUSY, HEAD_STALLED, MEDIA_TYPE, Problem, problem_body

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
else:
    Protocol = AutoHTTPProtocol


def bounded_protocol(head_s: float, most: int) -> type[Protocol]:
    """Return a protocol for `uvicorn.Config(http=…)`.

    head_s: longest time for the head of a request, from the connection or its first byte. most: connections at once.
    """

    class Bounded(Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                self._refuse(BUSY)
            else:
                self._await_head()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._await_head()
            else:
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(head_s, self._refuse, HEAD_STALLED)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _refuse(self, problem: Problem) -> None:
            if not self.transport.is_closing():
                self.transport.write(_answer(problem))
                self.transport.close()

    return Bounded


def raise_file_limit() -> None:
    """Let this process hold as many connections as the system allows it: the usual limit of 1024 files is soft."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _answer(problem: Problem) -> bytes:
    body: dict[str, Any] = problem_body(problem, problem.example)
    text = json.dumps(body).encode()
    retry = "" if problem.retry_after_s is None else f"Retry-After: {problem.retry_after_s}\r\n"
    head = (
        f"HTTP/1.1 {int(problem.status)} {problem.status.phrase}\r\nContent-Type: {MEDIA_TYPE}\r\n{retry}"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text
