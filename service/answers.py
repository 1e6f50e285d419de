"""Stored arrays on their way out: streams of rows, and the answer that carries one with its validators."""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from service.arrow import check_writable, write_arrow
from service.compression import Coding, compress_numbers
from service.wire import (
    ARROW,
    JSON,
    NPY,
    NPZ,
    RAW,
    SAFETENSORS,
    ArrayStream,
    Piece,
    npz_bytes,
    safetensors_header,
    safetensors_order,
    write_json,
    write_json_object,
    write_npy,
    write_npz,
    write_safetensors,
)
from worker.store import ArrayInfo, GraphRecord, Store

# The first of each is what a client gets that does not care.
ARRAY_FORMATS = (NPY, RAW, JSON, ARROW)
GRAPH_FORMATS = (NPZ, SAFETENSORS, JSON, ARROW)

# The answer to a (graph, slice, format) never changes: its name is made from its content.
_IMMUTABLE = "private, max-age=31536000, immutable"


def formats_content(formats: tuple[str, ...]) -> dict[str, Any]:
    """Return how the OpenAPI document describes an answer in one of these formats."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {media: {"schema": {}} if media == JSON else binary for media in formats}


def array_stream(
    store: Store, graph_id: str, info: ArrayInfo, start: int = 0, stop: int | None = None, k: int | None = None
) -> ArrayStream:
    """Return rows start … stop-1 of a graph's array, and of each only the k nearest entries when k is given."""
    stop = info.shape[0] if stop is None else stop
    rows = store.read_rows(graph_id, info, start, stop)
    if k is None:
        return ArrayStream(info.name, info.dtype, (stop - start, *info.shape[1:]), rows)
    return ArrayStream(info.name, info.dtype, (stop - start, k), _nearest(rows, info, k))


async def row_stream(store: Store, record: GraphRecord, info: ArrayInfo, start: int, stop: int) -> ArrayStream:
    """Return what rows start … stop-1 of a graph with offsets have in one of its arrays.

    Of the offsets these are stop - start + 1, counted from the first of these rows: the arrays of the same rows fit together.
    """
    offsets = record.arrays["offsets"]
    if stop - start == offsets.shape[0] - 1:
        return array_stream(store, record.id, info)
    first = await _read_offset(store, record, start)
    if info.name != "offsets":
        return array_stream(store, record.id, info, first, await _read_offset(store, record, stop))
    rows = store.read_rows(record.id, info, start, stop + 1)
    return ArrayStream(info.name, info.dtype, (stop - start + 1,), _counted_from(rows, info, first))


class Body(NamedTuple):
    """What an answer carries.

    pieces: its bytes. etag: of these arrays in this format. length: in bytes, None when it is not known before.
    headers: what the bytes do not say.
    """

    pieces: AsyncIterator[Piece]
    media: str
    etag: str
    length: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})


def array_body(array: ArrayStream, media: str, etag: str) -> Body:
    """Return one array in one of ARRAY_FORMATS; etag: of the array."""
    if media == RAW:
        headers = {"Array-Dtype": np.dtype(array.dtype).name, "Array-Shape": ",".join(map(str, array.shape))}
        return Body(array.rows, RAW, f"{etag}.raw", array.data_bytes, headers)
    if media == JSON:
        return Body(write_json(array), JSON, f"{etag}.json")
    if media == ARROW:
        check_writable([array])
        return Body(write_arrow([array]), ARROW, f"{etag}.arrow")
    return Body(write_npy(array), NPY, etag, array.npy_bytes)


def graph_body(store: Store, record: GraphRecord, media: str) -> Body:
    """Return all arrays of a finished graph in one of GRAPH_FORMATS."""
    arrays = [array_stream(store, record.id, info) for info in record.arrays.values()]
    etag = hashlib.sha256("".join(info.etag for info in record.arrays.values()).encode()).hexdigest()[:32]
    if media == SAFETENSORS:
        arrays = safetensors_order(arrays)
        length = len(safetensors_header(arrays)) + sum(array.data_bytes for array in arrays)
        return Body(write_safetensors(arrays), SAFETENSORS, f"{etag}.safetensors", length)
    if media == JSON:
        return Body(write_json_object(arrays), JSON, f"{etag}.json")
    if media == ARROW:
        check_writable(arrays)
        return Body(write_arrow(arrays), ARROW, f"{etag}.arrow")
    return Body(write_npz(arrays), NPZ, etag, npz_bytes(arrays))


def graph_numbers(record: GraphRecord) -> int:
    """Return how many numbers the arrays of a finished graph hold."""
    return sum(math.prod(info.shape) for info in record.arrays.values())


async def stream_answer(
    request: Request, carried: Body, location: str | None = None, *, compress: Coding | None = None
) -> Response:
    """Return a body as an answer with a strong ETag, 304 when the client has it, without a body for HEAD.

    location: where a GET has the same answer, when this is not one; such an answer is neither cached nor revalidated.
    compress: the coding that was asked for; the ETag is then weak, for it names what the bytes stand for.

    The first piece is read before the answer starts, so that a store that is away or damaged data still become a
    problem; later faults end the connection short of the announced length.
    """
    pieces, media, etag, length, said = carried
    headers = {"ETag": f'"{etag}"', "Cache-Control": _IMMUTABLE, "Vary": "Accept", **said}
    if compress is not None:
        headers |= {"ETag": f'W/"{etag}"', "Vary": "Accept, Accept-Encoding"}
    if location is not None:
        where = location if compress is None else f"{location}?compress={compress}"
        headers |= {"Content-Location": where, "Cache-Control": "no-store"}
    elif has_tag(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if compress is not None:
        headers["Content-Encoding"] = compress
        pieces, length = compress_numbers(pieces, compress), None
    if length is not None:
        headers["Content-Length"] = str(length)
    if request.method == "HEAD":
        answer = Response(headers=headers, media_type=media)
        if length is None:
            del answer.headers["content-length"]  # unknown is not zero
        return answer
    # The header, made here, and the first rows, read from the store.
    first = [await anext(pieces, b""), await anext(pieces, b"")]

    async def body() -> AsyncIterator[Piece]:
        for piece in first:
            yield piece
        async for piece in pieces:
            yield piece

    return StreamingResponse(body(), headers=headers, media_type=media)


async def _nearest(rows: AsyncIterator[Piece], info: ArrayInfo, k: int) -> AsyncIterator[bytes]:
    async for piece in rows:
        yield np.frombuffer(piece, info.dtype).reshape(-1, info.shape[1])[:, :k].tobytes()


async def _counted_from(rows: AsyncIterator[Piece], info: ArrayInfo, first: int) -> AsyncIterator[bytes]:
    async for piece in rows:
        yield (np.frombuffer(piece, info.dtype) - first).tobytes()


async def _read_offset(store: Store, record: GraphRecord, row: int) -> int:
    pieces = [piece async for piece in store.read_rows(record.id, record.arrays["offsets"], row, row + 1)]
    return int.from_bytes(b"".join(pieces), "little")


def has_tag(if_none_match: str | None, etag: str) -> bool:
    """Return True when the header lists the entity tag, weakly or strongly, or any."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or f'"{etag}"' in tags
