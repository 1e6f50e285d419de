"""JSON answers, compressed where the client takes that; arrays as numbers never are, for their bits hardly shrink."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from zstandard import ZstdCompressor

from service.wire import choose_coding

_JSON = ("application/json", "application/problem+json")
_CODINGS = ("zstd", "gzip")
_BODILESS = (204, 304)  # compressed, nothing would become something
_LEAST_BYTES = 1024  # less than that fits one packet anyway
_THREAD_BYTES = 1 << 16  # more than that at once would make others wait


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class CompressJson:
    """Compresses the JSON answers of an application by zstd or gzip, as Accept-Encoding asks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        accepted = Headers(scope=scope).get("accept-encoding")
        coding = None if scope["method"] == "HEAD" else choose_coding(accepted, _CODINGS)
        await self._app(scope, receive, _Answer(send, coding).send)


class _Answer:
    """One answer on its way; coding: None to leave it as it is."""

    def __init__(self, send: Send, coding: str | None) -> None:
        self._send = send
        self._coding = coding
        self._compressor: _Compressor | None = None

    async def send(self, message: Message) -> None:
        """Pass a message of the application on."""
        if message["type"] == "http.response.start":
            self._begin(message)
        elif self._compressor is not None and message["type"] == "http.response.body":
            more = message.get("more_body", False)
            body = await self._compressed(self._compressor, message.get("body", b""), more)
            message = {"type": "http.response.body", "body": body, "more_body": more}
        await self._send(message)

    def _begin(self, message: Message) -> None:
        headers = MutableHeaders(raw=message.setdefault("headers", []))
        if message["status"] in _BODILESS or headers.get("content-type", "").partition(";")[0] not in _JSON:
            return
        headers.add_vary_header("Accept-Encoding")
        if self._coding is None or int(headers.get("content-length", _LEAST_BYTES)) < _LEAST_BYTES:
            return
        headers["Content-Encoding"] = self._coding
        if "content-length" in headers:
            del headers["content-length"]
        tag = headers.get("etag", "")
        if tag.startswith('"'):
            headers["ETag"] = f"W/{tag}"  # the same answer in other bytes
        self._compressor = _compressor(self._coding)

    @staticmethod
    async def _compressed(compressor: _Compressor, data: bytes, more: bool) -> bytes:
        def work() -> bytes:
            return compressor.compress(data) + (b"" if more else compressor.flush())

        return await asyncio.to_thread(work) if len(data) > _THREAD_BYTES else work()


def _compressor(coding: str) -> _Compressor:
    made: Any = ZstdCompressor().compressobj() if coding == "zstd" else zlib.compressobj(wbits=31)
    compressor: _Compressor = made
    return compressor
