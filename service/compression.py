"""Compressed answers: JSON where the client takes that, arrays as numbers only where it asks, for their bits shrink little.

Every HTTP library says `Accept-Encoding`, so that is no wish: `?compress=` is one.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import BaseModel, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from zstandard import ZstdCompressor

from service.wire import CODINGS, NothingAcceptable, Piece, choose_coding, takes_coding

Coding: TypeAlias = Literal["zstd", "gzip"]

_JSON = ("application/json", "application/problem+json")
_BODILESS = (204, 304)  # compressed, nothing would become something
_LEAST_BYTES = 1024  # less than that fits one packet anyway
# Of 32,768 points the indices take 0.54 of their bytes; the usual level's 0.49 takes seven times as long.
_GZIP_OF_NUMBERS = 1
_THREAD_BYTES = 1 << 16  # more than that at once would make others wait


class CompressQuery(BaseModel):
    """The wish for a compressed answer, as a query parameter."""

    compress: Annotated[
        Coding | None, Field(description="Send the answer in this content coding; arrays never are without it")
    ] = None


class _Compressor(Protocol):
    def compress(self, data: Piece, /) -> bytes: ...

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
        coding = None if scope["method"] == "HEAD" else choose_coding(accepted, CODINGS)
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
            body = await _compressed(self._compressor, message.get("body", b""), last=not more)
            message = {"type": "http.response.body", "body": body, "more_body": more}
        await self._send(message)

    def _begin(self, message: Message) -> None:
        headers = MutableHeaders(raw=message.setdefault("headers", []))
        if message["status"] in _BODILESS or "content-encoding" in headers:
            return
        if headers.get("content-type", "").partition(";")[0] not in _JSON:
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


def check_takes(compress: Coding | None, accept_encoding: str | None) -> None:
    """Raise NothingAcceptable when the coding that is wished for could not be read by who sends this Accept-Encoding."""
    if compress is not None and not takes_coding(accept_encoding, compress):
        raise NothingAcceptable(
            f"compress asks for {compress}, and Accept-Encoding: {accept_encoding} excludes it; accept {compress}, "
            "ask for another coding, or leave out compress"
        )


async def compress_numbers(pieces: AsyncIterator[Piece], coding: Coding) -> AsyncIterator[bytes]:
    """Yield the pieces of an array in a coding, each as it comes."""
    compressor = _compressor(coding, _GZIP_OF_NUMBERS)
    async for piece in pieces:
        packed = await _compressed(compressor, piece, last=False)
        if packed:
            yield packed
    yield compressor.flush()


async def _compressed(compressor: _Compressor, data: Piece, *, last: bool) -> bytes:
    def work() -> bytes:
        return compressor.compress(data) + (compressor.flush() if last else b"")

    return await asyncio.to_thread(work) if len(data) > _THREAD_BYTES else work()


def _compressor(coding: str, gzip_level: int = -1) -> _Compressor:
    made: Any = ZstdCompressor().compressobj() if coding == "zstd" else zlib.compressobj(gzip_level, wbits=31)
    compressor: _Compressor = made
    return compressor
