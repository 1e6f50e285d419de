"""Stored arrays on their way out: streams of rows, and the answer that carries one with its validators."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import numpy as np
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from service.wire import ArrayStream, write_npz
from worker.store import ArrayInfo, GraphRecord, Store

# The answer to a (graph, slice, format) never changes: its name is made from its content.
_IMMUTABLE = "private, max-age=31536000, immutable"


def array_stream(
    store: Store, graph_id: str, info: ArrayInfo, start: int = 0, stop: int | None = None, k: int | None = None
) -> ArrayStream:
    """Return rows start … stop-1 of a graph's array, and of each only the k nearest entries when k is given."""
    stop = info.shape[0] if stop is None else stop
    rows = store.read_rows(graph_id, info.name, start, stop)
    if k is None:
        return ArrayStream(info.name, info.dtype, (stop - start, *info.shape[1:]), rows)
    return ArrayStream(info.name, info.dtype, (stop - start, k), _nearest(rows, info, k))


def graph_npz(store: Store, record: GraphRecord) -> AsyncIterator[bytes]:
    """Return all arrays of a finished graph as one .npz file."""
    return write_npz([array_stream(store, record.id, info) for info in record.arrays.values()])


def npz_etag(record: GraphRecord) -> str:
    """Return the entity tag of `graph_npz`, made from those of the arrays in it."""
    return hashlib.sha256("".join(info.etag for info in record.arrays.values()).encode()).hexdigest()[:32]


async def stream_answer(
    request: Request,
    pieces: AsyncIterator[bytes],
    media: str,
    etag: str,
    length: int | None = None,
    location: str | None = None,
) -> Response:
    """Return the pieces as an answer with a strong ETag, 304 when the client has it, without a body for HEAD.

    location: where a GET has the same answer, when this is not one; such an answer is neither cached nor revalidated.

    The first piece is read before the answer starts, so that a store that is away or damaged data still become a
    problem; later faults end the connection short of the announced length.
    """
    headers = {"ETag": f'"{etag}"', "Cache-Control": _IMMUTABLE, "Vary": "Accept"}
    if location is not None:
        headers |= {"Content-Location": location, "Cache-Control": "no-store"}
    elif has_tag(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if length is not None:
        headers["Content-Length"] = str(length)
    if request.method == "HEAD":
        answer = Response(headers=headers, media_type=media)
        if length is None:
            del answer.headers["content-length"]  # unknown is not zero
        return answer
    first = await _filled(pieces)

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(body(), headers=headers, media_type=media)


async def _filled(pieces: AsyncIterator[bytes]) -> bytes:
    """Return the first two pieces: the header, made here, and the first rows, read from the store."""
    return await anext(pieces, b"") + await anext(pieces, b"")


async def _nearest(rows: AsyncIterator[bytes], info: ArrayInfo, k: int) -> AsyncIterator[bytes]:
    async for piece in rows:
        yield np.frombuffer(piece, info.dtype).reshape(-1, info.shape[1])[:, :k].tobytes()


def has_tag(if_none_match: str | None, etag: str) -> bool:
    """Return True when the header lists the entity tag, weakly or strongly, or any."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or f'"{etag}"' in tags
