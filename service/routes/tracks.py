"""/v1/tracks: moving pointers that training loops follow, their refreshes and their events."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias, cast

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect

from pcct_core.spec import GraphSpec
from service.access import admit_reader
from service.answers import has_tag
from service.backend import Backend, InBackend, backend_of
from service.intake import check_wish_on, receive_model
from service.prefix import link
from service.problems import problem_type
from service.routes.datasets import find_dataset
from service.routes.graphs import granted_wait
from service.schemas import GRAPH_SPEC, MOVED_METRIC, POLICY
from service.waiting import wait_unless
from service.wire import InvalidParameter
from worker.tracks import (
    MAX_EPOCH,
    Outcome,
    Reason,
    RefreshAnswer,
    RefreshPolicy,
    TrackEvent,
    TrackRecord,
    UnknownTrack,
)

router = APIRouter(prefix="/v1/tracks", tags=["tracks"])

_OLDEST = "0"


class TrackRequest(BaseModel):
    """What `POST /v1/tracks` takes. spec: as of a graph. policy: what is left out has its default."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    spec: Annotated[dict[str, Any], WithJsonSchema(GRAPH_SPEC)]
    policy: Annotated[dict[str, Any], WithJsonSchema(POLICY)] = {}


class RefreshRequest(BaseModel):
    """What a refresh takes, all optional.

    metric: an object with `lengthscale`, `variance` or both, or a whole metric document; left out: as requested last.
    epoch: of the training loop, left out: one more than the largest so far. force: whatever the policy says.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    metric: Annotated[dict[str, Any] | None, WithJsonSchema(MOVED_METRIC)] = None
    epoch: int | None = Field(default=None, ge=0, le=MAX_EPOCH)
    force: bool = False


class RefreshBody(BaseModel):
    """What a refresh decided. pending_version: the version that is being made, null when the answer is `cached`."""

    decision: Outcome
    reason: Reason
    version: int
    pending_version: int | None


class PendingBody(BaseModel):
    """The version that is being made. epoch: at which it was requested. progress: {phase, done, total, eta_s} or null."""

    version: int
    epoch: int
    metric: dict[str, Any]
    graph: str
    state: Literal["queued", "running"]
    progress: dict[str, Any] | None


class TrackBody(BaseModel):
    """A track: its newest finished version, and what is going on.

    spec: of that version, or of the one that is being made while there is none. version: 0 while there is none. graph: id
    of its graph. epoch: at which it was requested. error: why the newest one failed, a problem; failures: how many did.
    warning: why nothing happens at present.
    """

    id: str
    dataset: str
    spec: dict[str, Any]
    policy: dict[str, Any]
    version: int
    graph: str | None
    epoch: int | None
    pending_version: int | None
    pending: PendingBody | None
    error: dict[str, Any] | None
    failures: int
    created: datetime
    updated: datetime
    warning: str | None = None


def _json_body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": model.model_json_schema(), "example": example}}
    required = any(field.is_required() for field in model.model_fields.values())
    return {"requestBody": {"required": required, "content": content}}


_METRIC = {"type": "residual", "kernel": "matern52", "lengthscale": [0.3, 0.3, 0.1], "variance": 1.0}
_TRACK_REQUEST = _json_body(
    TrackRequest,
    {
        "dataset": "64 hex digits",
        "spec": {"kind": "vecchia", "k": 30, "metric": _METRIC},
        "policy": RefreshPolicy().to_json(),
    },
)
_REFRESH_REQUEST = _json_body(
    RefreshRequest, {"metric": {"lengthscale": [0.28, 0.31, 0.1], "variance": 1.1}, "epoch": 7, "force": False}
)
_NOT_CHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "Nothing new since If-None-Match"}}
_REFRESH_ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {"model": RefreshBody, "description": "`pending` or `scheduled`: a newer version is being made"}
}


async def _track_id(track_id: str) -> str:
    if re.fullmatch("[0-9a-f]{32}", track_id) is None:
        raise UnknownTrack(track_id)
    return track_id


class Polled(APIRoute):
    """A route of one track that answers a poll which finds nothing new by itself, at half the cost.

    Polls are most of what an API process does, and most of what one costs is FastAPI's work on parameters that a 304 does
    not need. Whatever waits, or finds something new, takes the usual way.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        usual = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await _not_changed(request) or await usual(request)

        return answer


async def _not_changed(request: Request) -> Response | None:
    """Return 304 to a poll that does not wait and finds nothing new, None to any other request."""
    known = request.headers.get("if-none-match")
    if known is None or "prefer" in request.headers:
        return None
    await admit_reader(request)
    track_id = await _track_id(request.path_params["track_id"])
    etag = await (await backend_of(request)).tracks.etag(track_id)
    return Response(status_code=304, headers=_headers(etag, None)) if has_tag(known, etag) else None


TrackId: TypeAlias = Annotated[str, Depends(_track_id)]


@router.post("", status_code=201, response_model=TrackBody, openapi_extra=_TRACK_REQUEST)
async def create_track(
    request: Request, backend: InBackend, prefer: Annotated[str | None, Header()] = None
) -> JSONResponse:
    """Start a track and make its version 1; `Prefer: wait=SECONDS` waits for that."""
    wish = await receive_model(request, backend.settings, TrackRequest)
    spec = GraphSpec.from_json(wish.spec)
    policy = RefreshPolicy.from_json(wish.policy)
    dataset = await find_dataset(wish.dataset, backend)
    references = [await find_dataset(reference, backend) for reference in spec.references()]
    check_wish_on(dataset, spec, backend.settings, references)
    wait_s = granted_wait(prefer, backend)
    record = await backend.tracks.create(wish.dataset, spec, policy, most=backend.settings.max_tracks)
    try:
        record = await _wait(record, wait_s, None, backend, request)
    except ClientDisconnect:
        await backend.tracks.delete(record.id)  # nobody else knows its id
        raise
    headers = {"Location": link(f"/v1/tracks/{record.id}"), **_headers(record.etag, wait_s)}
    return JSONResponse(await _body(record, backend), 201, headers)


async def read_track(
    track_id: TrackId,
    request: Request,
    backend: InBackend,
    prefer: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Describe a track, or answer 304 when nothing was published and nothing failed since `If-None-Match`.

    `Prefer: wait=SECONDS` waits for that to change; without `If-None-Match`, until nothing is pending.
    """
    wait_s = granted_wait(prefer, backend)
    record = await backend.tracks.read(track_id)
    if if_none_match is None or has_tag(if_none_match, record.etag):
        record = await _wait(record, wait_s, if_none_match and record.etag, backend, request)
    headers = _headers(record.etag, wait_s)
    if has_tag(if_none_match, record.etag):
        return Response(status_code=304, headers=headers)
    return JSONResponse(await _body(record, backend), headers=headers)


router.add_api_route("/{track_id}", read_track, methods=["HEAD"], include_in_schema=False, route_class_override=Polled)
router.add_api_route(
    "/{track_id}", read_track, response_model=TrackBody, responses=_NOT_CHANGED, route_class_override=Polled
)


@router.delete("/{track_id}", status_code=204)
async def delete_track(track_id: TrackId, backend: InBackend) -> None:
    """Stop following: cancel what is pending and forget the track. Its graphs stay in the cache."""
    if not await backend.tracks.delete(track_id):
        raise UnknownTrack(track_id)


@router.post(
    "/{track_id}/refresh", response_model=RefreshBody, openapi_extra=_REFRESH_REQUEST, responses=_REFRESH_ANSWERS
)
async def refresh_track(track_id: TrackId, request: Request, backend: InBackend) -> JSONResponse:
    """Offer new hyperparameters: 200 when the graph that is there will do, 202 when a newer one is being made."""
    wish = await receive_model(request, backend.settings, RefreshRequest)
    answer: RefreshAnswer = await backend.tracks.refresh(track_id, wish.metric, wish.epoch, force=wish.force)
    return JSONResponse(answer.to_json(), 200 if answer.decision == "cached" else 202)


async def _first_event(
    track_id: TrackId, backend: InBackend, last_event_id: Annotated[str | None, Header()] = None
) -> str:
    """Return the id behind which the events begin; raises UnknownTrack or InvalidParameter."""
    if last_event_id is not None and re.fullmatch(r"\d{1,19}(-\d{1,19})?", last_event_id, re.ASCII) is None:
        raise InvalidParameter(
            f"Last-Event-ID is {last_event_id!r}; send the id of an event, or leave it out", "Last-Event-ID"
        )
    await backend.tracks.track(track_id)
    return last_event_id or _OLDEST


async def _followed(
    track_id: TrackId, backend: InBackend, first: Annotated[str, Depends(_first_event)]
) -> AsyncIterator[AsyncIterator[TrackEvent]]:
    """Give the events of a track, and close them behind the answer."""
    events = backend.tracks.events(track_id, first)
    # Here and not in the route: FastAPI leaves a stream's generator to the garbage collector when the client goes.
    with backend.present("wait"):
        async with aclosing(cast("AsyncGenerator[TrackEvent, None]", events)):
            yield events


@router.head("/{track_id}/events", include_in_schema=False)
async def look_for_events(first: Annotated[str, Depends(_first_event)]) -> Response:
    """Answer as GET would, without the stream, which has no length."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    answer = Response(headers=headers, media_type=EventSourceResponse.media_type)
    del answer.headers["content-length"]
    return answer


@router.get("/{track_id}/events", response_class=EventSourceResponse)
async def read_events(
    events: Annotated[AsyncIterator[TrackEvent], Depends(_followed)], backend: InBackend
) -> AsyncIterator[ServerSentEvent]:
    """Stream `neighbor_refresh.…` events as they happen, until the track is deleted.

    Begins behind `Last-Event-ID`, or with the oldest that is kept (of about a thousand).
    """
    # A store that goes away ends the stream; the client connects again and goes on behind the last event it has.
    with suppress(RedisError, UnknownTrack):
        while (event := await wait_unless(anext(events, None), backend.stopping)) is not None:
            data = event.data | ({"error": _problem(event.data["error"])} if "error" in event.data else {})
            yield ServerSentEvent(event=event.name, id=event.id, data=data)


async def _wait(
    record: TrackRecord, wait_s: float | None, etag: str | None, backend: Backend, request: Request
) -> TrackRecord:
    """Return the track when its etag is another (None: when nothing is pending), or as it is after wait_s seconds."""
    if not wait_s or (etag is None and record.pending is None):
        return record
    with backend.present("wait"):
        return (
            await wait_unless(backend.tracks.wait_track(record.id, wait_s, etag), backend.stopping, request) or record
        )


def _headers(etag: str, wait_s: float | None) -> dict[str, str]:
    headers = {"ETag": f'"{etag}"', "Cache-Control": "no-cache"}
    return headers if wait_s is None else {**headers, "Preference-Applied": f"wait={wait_s:g}"}


def _problem(error: Mapping[str, Any]) -> dict[str, Any]:
    return {**error, "type": problem_type(error["type"])}


async def _body(record: TrackRecord, backend: Backend) -> dict[str, Any]:
    pending: PendingBody | None = None
    warning: str | None = None
    if record.pending is not None:
        version, epoch, metric, graph, _ = record.pending
        state, progress = await backend.tracks.progress(record.pending)
        pending = PendingBody(version=version, epoch=epoch, metric=metric, graph=graph, state=state, progress=progress)
        warning = await backend.warning()
    body = TrackBody(
        id=record.id,
        dataset=record.dataset,
        spec=record.spec,
        policy=record.policy.to_json(),
        version=record.version,
        graph=record.graph,
        epoch=record.epoch,
        pending_version=None if pending is None else pending.version,
        pending=pending,
        error=record.error and _problem(record.error),
        failures=record.failures,
        created=datetime.fromtimestamp(record.created_s, UTC),
        updated=datetime.fromtimestamp(record.updated_s, UTC),
        warning=warning,
    )
    return body.model_dump(mode="json")
