"""Connections that cost nothing while nothing comes of them: uvicorn's protocol, with an end for those who never ask.

uvicorn ends connections that are idle between two requests. One whose first request does not come, or whose head comes byte by
byte, it would keep for ever, and a head of any length it would hold. What is said to those who send no HTTP, or are one too
many, is a problem like any other.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import secrets
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from service.problems import BUSY, HEAD_STALLED, HEAD_TOO_LARGE, HTTP_PROBLEMS, MEDIA_TYPE, Problem, problem_body
from service.request_ids import CONTRACT, CONTRACT_HEADER, HEADER

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
else:
    Protocol = AutoHTTPProtocol

_MOST_HEAD_BYTES = 64 << 10  # as h11 has it, which counts by itself
_COUNTS_HEADS = hasattr(AutoHTTPProtocol, "on_body")  # httptools keeps whatever comes, names and values apart

_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


def bounded_protocol(head_s: float, most: int) -> type[Protocol]:
    """Return a protocol for `uvicorn.Config(http=…)`.

    head_s: longest time for the head of a request, from the connection or its first byte. most: connections at once.
    """

    class Bounded(Protocol):
        _head_timer: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _between = _COUNTS_HEADS  # whether the next byte begins a request; httptools says when one begins and ends

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                self._refuse(BUSY)
            else:
                self._await_head()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            self._head_bytes += len(data)
            if self.cycle is None or self.cycle.response_complete:
                data = _without_upgrade(data)
            if self._between:
                data = _with_escapes(data)
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._await_head()
            else:
                self._stop_timer()
            if _COUNTS_HEADS and self._head_bytes > _MOST_HEAD_BYTES:
                self._refuse(HEAD_TOO_LARGE)

        def on_headers_complete(self) -> None:
            self._head_bytes = 0
            super().on_headers_complete()

        def on_message_begin(self) -> None:
            self._between = False
            super().on_message_begin()

        def on_message_complete(self) -> None:
            self._between = True
            super().on_message_complete()

        def on_body(self, body: bytes) -> None:
            self._head_bytes = 0
            super().on_body(body)

        def send_400_response(self, msg: str) -> None:
            self._refuse(HTTP_PROBLEMS[400])

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
            if self.transport.is_closing():
                return
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                self.transport.write(_answer(problem))
            self.transport.close()

    return Bounded


def raise_file_limit() -> None:
    """Let this process hold as many connections as the system allows it: the usual limit of 1024 files is soft."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _without_upgrade(data: bytes) -> bytes:
    """Return the beginning of a request without the wish for another protocol, which may be ignored.

    httptools takes the body for that other protocol. Java's HttpClient and `curl --http2` wish for HTTP/2 in every request.
    """
    end = data.find(b"\r\n\r\n")
    found = _UPGRADE.search(data, 0, len(data) if end < 0 else end)
    return data if found is None else data[: found.start()] + data[found.end() :]


def _with_escapes(data: bytes) -> bytes:
    """Return the beginning of a request with %XX for what its first line must not hold: `curl …?metric=é` sends é as it is."""
    end = data.find(b"\n")
    line = data if end < 0 else data[:end]
    if line.isascii():
        return data
    return _BEYOND_ASCII.sub(lambda found: b"%%%02X" % found[0][0], line) + data[len(line) :]


def _answer(problem: Problem) -> bytes:
    body: dict[str, Any] = problem_body(problem, problem.example)
    text = json.dumps(body).encode()
    retry = "" if problem.retry_after_s is None else f"Retry-After: {problem.retry_after_s}\r\n"
    head = (
        f"HTTP/1.1 {int(problem.status)} {problem.status.phrase}\r\nContent-Type: {MEDIA_TYPE}\r\n{retry}"
        f"{HEADER}: {secrets.token_hex(8)}\r\n{CONTRACT_HEADER}: {CONTRACT}\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text
