"""/v1/graphs: asking for a graph, watching it, and reading its arrays."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from service.answers import (
    ARRAY_FORMATS,
    GRAPH_FORMATS,
    array_body,
    array_stream,
    formats_content,
    graph_body,
    graph_numbers,
    row_stream,
    stream_answer,
)
from service.backend import Backend, InBackend
from service.compression import CompressQuery, check_takes
from service.intake import check_query_between, check_wish_on, receive_model
from service.prefix import link
from service.problems import GraphFailed, GraphNotReady, UnknownArray, problem_type
from service.routes.datasets import find_dataset, is_content_id
from service.schemas import WISH
from service.wire import InvalidParameter, choose_format, choose_sized_format
from worker.query import QuerySpec, wish_from_json
from worker.store import TERMINAL, ArrayInfo, GraphRecord, UnknownGraph

router = APIRouter(prefix="/v1/graphs", tags=["graphs"])

_RETRY_AFTER_S = "1"


class GraphRequest(BaseModel):
    """What `POST /v1/graphs` takes. spec: see docs/reference/specification.md; everything in it but `k` has a default."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    spec: Annotated[dict[str, Any], WithJsonSchema(WISH)]


_CERTIFIED = (
    "How the graph was made and what is certain of it, when ready: method, dtype and exact; all other fields under the "
    "residual metric alone, those of its audit where it was looked for behind a gate. tolerance: squared distances that "
    "differ by more are ordered rightly. draws: what the audit was drawn by, `secret:` and a hash of the deployment's secret, "
    "or `public`"
)
_GATED = {
    "method": "gated",
    "dtype": "float64",
    "exact": False,
    "recall": 1.0,
    "recall_lower": 0.9936,
    "confidence": 0.95,
    "audited_pairs": 388089,
    "audited_queries": 7929,
    "missed_neighbors": 0,
    "degenerate_rows": 0,
    "gate1_candidates": 35849100,
    "gate1_kept": 373807,
    "gate1_pruned": 35475293,
    "gate1_false_negatives": 0,
    "gate1_widenings": 0,
    "tolerance": 2.9e-08,
    "draws": "secret:0adbe6ad18343000",
}


class GraphBody(BaseModel):
    """A graph's state and what is known about it.

    progress: {phase, done, total, eta_s} while running. error: a problem, when failed. arrays: description by name,
    when ready. warning: why nothing happens at present.
    """

    id: str
    state: Literal["queued", "running", "ready", "failed", "cancelled"]
    dataset: str
    spec: dict[str, Any]
    progress: dict[str, Any] | None
    certificate: Annotated[dict[str, Any] | None, Field(description=_CERTIFIED, examples=[_GATED])]
    telemetry: dict[str, Any] | None
    error: dict[str, Any] | None
    arrays: dict[str, dict[str, Any]]
    created: datetime
    updated: datetime
    warning: str | None = None


class SliceQuery(CompressQuery):
    """Which part of an array is wanted: ?rows=a:b (from a, before b) and the ?k= nearest, which a radius graph has not."""

    model_config = ConfigDict(extra="forbid")

    rows: str | None = None
    k: int | None = None


_GRAPH_REQUEST = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": GraphRequest.model_json_schema(),
                "example": {"dataset": "64 hex digits", "spec": {"kind": "vecchia", "k": 30, "order": "maximin"}},
            }
        },
    }
}
_ARRAY_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": formats_content(ARRAY_FORMATS)},
    304: {"description": "The array named by If-None-Match is still the one"},
}


async def _graph_id(graph_id: str) -> str:
    if not is_content_id(graph_id):
        raise UnknownGraph(graph_id)
    return graph_id


GraphId: TypeAlias = Annotated[str, Depends(_graph_id)]


@router.post(
    "",
    response_model=GraphBody,
    openapi_extra=_GRAPH_REQUEST,
    responses={202: {"model": GraphBody, "description": "Queued or running"}},
)
async def request_graph(
    request: Request, backend: InBackend, prefer: Annotated[str | None, Header()] = None
) -> JSONResponse:
    """Ask for a graph: 200 when it has ended (or does within `Prefer: wait=SECONDS`), else 202."""
    wish = await receive_model(request, backend.settings, GraphRequest)
    spec = wish_from_json(wish.spec)
    dataset = await find_dataset(wish.dataset, backend)
    references = [await find_dataset(reference, backend) for reference in spec.references()]
    if isinstance(spec, QuerySpec):
        check_query_between(dataset, references[0], spec, backend.settings, references[1:])
    else:
        check_wish_on(dataset, spec, backend.settings, references)
    wait_s = granted_wait(prefer, backend)
    record = await backend.ask_graph(wish.dataset, spec)
    return await graph_answer(await backend.wait_graph(record, wait_s or 0.0, request), backend, wait_s)


@router.head("/{graph_id}", include_in_schema=False)
@router.get("/{graph_id}", response_model=GraphBody)
async def read_graph(
    graph_id: GraphId, request: Request, backend: InBackend, prefer: Annotated[str | None, Header()] = None
) -> JSONResponse:
    """Describe a graph; with `Prefer: wait=SECONDS` as soon as it has ended."""
    wait_s = granted_wait(prefer, backend)
    record = await _find_graph(graph_id, backend)
    await backend.ensure_job(record)
    answer = await graph_answer(await backend.wait_graph(record, wait_s or 0.0, request), backend, wait_s)
    answer.status_code = 200
    return answer


@router.delete("/{graph_id}", status_code=204)
async def delete_graph(graph_id: GraphId, backend: InBackend) -> None:
    """Cancel a graph's job and forget the graph."""
    if not await backend.store.forget_graph(graph_id):
        raise UnknownGraph(graph_id)


@router.head("/{graph_id}/arrays", include_in_schema=False)
@router.get(
    "/{graph_id}/arrays",
    responses={200: {"content": formats_content(GRAPH_FORMATS)}, 304: _ARRAY_ANSWER[304]},
)
async def read_arrays(
    graph_id: GraphId, request: Request, backend: InBackend, query: Annotated[CompressQuery, Query()]
) -> Response:
    """Return all arrays in one answer, as .npz, safetensors or, when small, a JSON object of lists."""
    for name in request.query_params:
        if name not in CompressQuery.model_fields:
            raise InvalidParameter(f"all arrays come whole; leave out {name!r:.80}, or read one of them in part", name)
    accept = request.headers.get("accept")
    check_takes(query.compress, request.headers.get("accept-encoding"))
    choose_format(accept, GRAPH_FORMATS)
    record = await _ready(graph_id, backend)
    media = choose_sized_format(accept, GRAPH_FORMATS, graph_numbers(record), backend.settings.max_json_bytes)
    return await stream_answer(request, graph_body(backend.store, record, media), compress=query.compress)


@router.head("/{graph_id}/{name}", include_in_schema=False)
@router.get("/{graph_id}/{name}", responses=_ARRAY_ANSWER)
async def read_array(
    graph_id: GraphId, name: str, request: Request, backend: InBackend, part: Annotated[SliceQuery, Query()]
) -> Response:
    """Return one of the graph's arrays, whole or in part, as .npy, raw numbers or, when small, a JSON list.

    Rows of a radius graph are found by its offsets: neighbors and distances of `?rows=a:b` are the entries of these rows, and
    its offsets are b - a + 1 numbers that begin with 0, so that the three parts are a graph of these rows by themselves.
    """
    accept = request.headers.get("accept")
    check_takes(part.compress, request.headers.get("accept-encoding"))
    choose_format(accept, ARRAY_FORMATS)
    record = await _ready(graph_id, backend)
    if name not in record.arrays:
        raise UnknownArray(f"graph {graph_id} has no array {name!r}; it has {', '.join(record.arrays)}")
    info = record.arrays[name]
    offsets = record.arrays.get("offsets")
    k = _checked_k(part.k, info, flat=offsets is not None)
    if offsets is None:
        start, stop = _row_range(part.rows, info.shape[0])
        stream = array_stream(backend.store, graph_id, info, start, stop, k)
    else:
        start, stop = _row_range(part.rows, offsets.shape[0] - 1)
        stream = await row_stream(backend.store, record, info, start, stop)
    etag = info.etag if stream.shape == info.shape else f"{info.etag}.{start}-{stop}.{k or 'all'}"
    media = choose_sized_format(accept, ARRAY_FORMATS, math.prod(stream.shape), backend.settings.max_json_bytes)
    return await stream_answer(request, array_body(stream, media, etag), compress=part.compress)


async def graph_answer(record: GraphRecord, backend: Backend, wait_s: float | None = None) -> JSONResponse:
    """Return a graph as JSON: 200 when its job has ended, else 202 with where and when to look again."""
    done = record.state in TERMINAL
    warning = None if done else await backend.warning()
    headers = {"Location": link(f"/v1/graphs/{record.id}")}
    if not done:
        headers["Retry-After"] = _RETRY_AFTER_S
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    return JSONResponse(_body(record, warning).model_dump(mode="json"), 200 if done else 202, headers)


def granted_wait(prefer: str | None, backend: Backend) -> float | None:
    """Return the seconds of `Prefer: wait=SECONDS`, at most `max_wait_s`; None when it does not ask."""
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", prefer or "", re.ASCII | re.IGNORECASE)
    return min(float(match[1]), backend.settings.max_wait_s) if match else None


def _body(record: GraphRecord, warning: str | None) -> GraphBody:
    arrays = {
        name: {
            "dtype": np.dtype(info.dtype).name,
            "shape": list(info.shape),
            "href": link(f"/v1/graphs/{record.id}/{name}"),
        }
        for name, info in record.arrays.items()
    }
    error = record.error and {**record.error, "type": problem_type(record.error["type"])}
    return GraphBody(
        id=record.id,
        state=record.state,
        dataset=record.dataset,
        spec=record.spec,
        progress=record.progress,
        certificate=record.certificate,
        telemetry=record.telemetry,
        error=error,
        arrays=arrays,
        created=datetime.fromtimestamp(record.created_s, UTC),
        updated=datetime.fromtimestamp(record.updated_s, UTC),
        warning=warning,
    )


async def _find_graph(graph_id: str, backend: Backend) -> GraphRecord:
    record = await backend.store.graph(graph_id)
    if record is None:
        raise UnknownGraph(graph_id)
    return record


async def _ready(graph_id: str, backend: Backend) -> GraphRecord:
    """Return the record of a finished graph; raises UnknownGraph, GraphNotReady or GraphFailed."""
    record = await _find_graph(graph_id, backend)
    if record.state == "ready":
        return record
    if record.state in TERMINAL:
        raise GraphFailed(graph_id, record.state, (record.error or {}).get("detail", ""))
    raise GraphNotReady(graph_id, record.state)


def _row_range(text: str | None, n: int) -> tuple[int, int]:
    """Return first and behind-last row of "a:b", "a:" or ":b"; a range that ends behind the array ends with it."""
    if text is None:
        return 0, n
    match = re.fullmatch(r"(\d{0,18}):(\d{0,18})", text, re.ASCII)
    start, stop = (int(match[1] or 0), min(int(match[2] or n), n)) if match else (0, 0)
    if start >= stop:
        raise InvalidParameter(f"rows is {text!r}; use rows=a:b with 0 ≤ a < b, and a < {n}", "rows")
    return start, stop


def _checked_k(k: int | None, info: ArrayInfo, *, flat: bool) -> int | None:
    if k is None:
        return None
    if flat:
        raise InvalidParameter("rows have all neighbors within the radius here, not k of them; leave out k", "k")
    if len(info.shape) < 2:
        raise InvalidParameter(f"{info.name} has one value per row; leave out k", "k")
    if not 1 <= k <= info.shape[1]:
        raise InvalidParameter(f"k is {k}; this graph can be sliced to 1 ≤ k ≤ {info.shape[1]}", "k")
    return k
