"""Every failure as RFC 9457 `application/problem+json`: exception -> (status, slug, title), one table.

The `type` of a problem is `/problems/<slug>`, a stable name to branch on; `detail` states the fact and the fix.
`row` and `field` are there when the fault lies in one row or in one field of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from pcct_core.errors import InvalidPoints, InvalidSpec, PcctError
from service.wire import (
    BodyTooLarge,
    InvalidParameter,
    MalformedArray,
    NothingAcceptable,
    UnsupportedBody,
    WrongLength,
)
from worker.logs import request_id
from worker.store import DamagedData, UnknownDataset, UnknownGraph
from worker.tracks import EpochBackwards, NotAHyperparameter, UnknownTrack

MEDIA_TYPE = "application/problem+json"

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_log = structlog.get_logger(__name__)


class UnknownArray(PcctError):
    """The graph is there but does not have this array."""


class GraphNotReady(PcctError):
    """The graph's arrays were asked for before it is finished.

    state: queued or running.
    """

    def __init__(self, graph_id: str, state: str) -> None:
        super().__init__(
            f"graph {graph_id} is {state}; its arrays can be read when GET /v1/graphs/{graph_id} says ready"
        )
        self.state = state


class GraphFailed(PcctError):
    """The graph's job ended without a graph.

    state: failed or cancelled.
    """

    def __init__(self, graph_id: str, state: str, why: str) -> None:
        super().__init__(f"graph {graph_id} {state}{f': {why}' if why else ''}; POST /v1/graphs asks for it again")
        self.state = state


class GraphDeleted(PcctError):
    """Somebody deleted the graph while this request waited for it."""

    def __init__(self) -> None:
        super().__init__("the graph was deleted while this request waited for it; ask for it again")


class BuildFailed(PcctError):
    """The job of a one-shot request ended with an error that is not the caller's."""


class UploadStalled(PcctError):
    """The client stopped sending in the middle of its body."""


class NotReady(PcctError):
    """The service cannot do its work now; the message names what is missing."""


class Problem(NamedTuple):
    """One row of the table.

    retry_after_s: seconds after which the same request may succeed, None when it must change first.
    """

    status: HTTPStatus
    slug: str
    title: str
    retry_after_s: int | None = None


_STORE_AWAY = Problem(HTTPStatus.SERVICE_UNAVAILABLE, "store-unavailable", "The store does not answer", 2)
_STORE_FULL = Problem(HTTPStatus.SERVICE_UNAVAILABLE, "store-full", "The store takes no more data", 30)

# Looked up along the exception's method resolution order, so a subclass without a row has its parent's.
PROBLEMS: Mapping[type[Exception], Problem] = {
    InvalidPoints: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-points", "The points cannot be used"),
    InvalidSpec: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-spec", "The specification cannot be met"),
    InvalidParameter: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-parameter", "A query parameter cannot be used"),
    RequestValidationError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request", "The request cannot be used"),
    MalformedArray: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "malformed-array", "The body is not an array"),
    WrongLength: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "wrong-length", "The body's length does not fit its shape"),
    BodyTooLarge: Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", "The body is over the configured limit"),
    UnsupportedBody: Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-body", "The body's type is not read here"),
    NothingAcceptable: Problem(
        HTTPStatus.NOT_ACCEPTABLE, "not-acceptable", "No format that is written here fits Accept"
    ),
    ClientDisconnect: Problem(HTTPStatus.BAD_REQUEST, "truncated-request", "The connection ended inside the request"),
    UnknownDataset: Problem(HTTPStatus.NOT_FOUND, "unknown-dataset", "There is no such dataset"),
    UnknownGraph: Problem(HTTPStatus.NOT_FOUND, "unknown-graph", "There is no such graph"),
    UnknownArray: Problem(HTTPStatus.NOT_FOUND, "unknown-array", "The graph has no such array"),
    UnknownTrack: Problem(HTTPStatus.NOT_FOUND, "unknown-track", "There is no such track"),
    EpochBackwards: Problem(HTTPStatus.CONFLICT, "epoch-backwards", "The epoch goes backwards"),
    NotAHyperparameter: Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, "not-a-hyperparameter", "A refresh changes hyperparameters only"
    ),
    GraphNotReady: Problem(HTTPStatus.CONFLICT, "graph-not-ready", "The graph is not finished", 1),
    GraphFailed: Problem(HTTPStatus.CONFLICT, "graph-failed", "The graph was not finished"),
    GraphDeleted: Problem(HTTPStatus.CONFLICT, "graph-deleted", "The graph was deleted"),
    DamagedData: Problem(HTTPStatus.SERVICE_UNAVAILABLE, "damaged-data", "Stored data were damaged and removed", 1),
    BuildFailed: Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "build-failed", "The graph could not be built"),
    UploadStalled: Problem(HTTPStatus.REQUEST_TIMEOUT, "upload-stalled", "The body stopped arriving"),
    NotReady: Problem(HTTPStatus.SERVICE_UNAVAILABLE, "not-ready", "The service is not ready", 2),
    RedisConnectionError: _STORE_AWAY,
    RedisTimeoutError: _STORE_AWAY,
    ReadOnlyError: _STORE_AWAY,
    OutOfMemoryError: _STORE_FULL,
    Exception: Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error", "The service failed"),
}

# Faults that the framework finds before a route runs.
_HTTP_SLUGS = {404: "not-found", 405: "method-not-allowed", 400: "bad-request"}


class ProblemBody(BaseModel):
    """An error; `type` is the name to branch on, `detail` states the fact and the fix.

    row: first offending row of the array, if one is. field: offending field or parameter, if one is.
    """

    type: str
    title: str
    status: int
    detail: str
    row: int | None = None
    field: str | None = None


# For the OpenAPI document; it also keeps FastAPI from describing an error format that is never sent.
PROBLEM_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": ProblemBody.model_json_schema()}},
    }
    for status, description in {"4XX": "The request cannot be met", "5XX": "The service cannot answer now"}.items()
}


def install_problems(app: FastAPI) -> None:
    """Make every failure of `app` answer as a problem."""
    for kind in PROBLEMS:
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(HTTPException, _answer_http)


def problem_of(error: Exception) -> Problem:
    """Return the table's row for an exception."""
    return next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)


def problem_type(slug: str) -> str:
    """Return the stable name of a kind of problem."""
    return f"/problems/{slug}"


def problem_body(problem: Problem, detail: str, **extra: Any) -> dict[str, Any]:
    """Return the members of a problem; extra ones that are None are left out."""
    body = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": int(problem.status),
        "detail": detail,
    }
    return body | {name: value for name, value in extra.items() if value is not None}


async def _answer(request: Request, error: Exception) -> JSONResponse:
    problem = problem_of(error)
    if isinstance(error, RequestValidationError):
        return _validation_response(problem, error)
    detail = str(error)
    if problem.slug == "internal-error":
        # The server logs the traceback: Starlette raises the exception again behind this answer.
        detail = f"an unexpected error; it is in the log of the service under request id {request_id()}"
    elif problem.slug.startswith("store-"):
        _log.warning("store_unavailable", method=request.method, path=request.url.path, error=detail)
        detail = "the store behind this service does not take the request now; try again after Retry-After seconds"
    elif problem.slug == "truncated-request":
        detail = "the connection ended before the body did; nothing was kept"
    extra = {name: getattr(error, name, None) for name in ("row", "field", "state")}
    return _response(problem, problem_body(problem, detail, **extra))


def _validation_response(problem: Problem, error: RequestValidationError) -> JSONResponse:
    # The rejected input is left out: it may be large, or not JSON (NaN).
    errors = [{"field": _field(item["loc"]), "message": item["msg"]} for item in error.errors()]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors[:5])
    return _response(
        problem, problem_body(problem, detail, field=errors[0]["field"] if errors else None, errors=errors)
    )


def _field(location: tuple[int | str, ...]) -> str:
    """Return the dotted name of a field, without the part of the request that it is in."""
    parts = location[1:] if location and location[0] in ("query", "path", "body", "header") else location
    return ".".join(map(str, parts)) or "body"


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for this class only)
    status = HTTPStatus(error.status_code)
    problem = Problem(status, _HTTP_SLUGS.get(error.status_code, f"http-{error.status_code}"), status.phrase)
    detail = error.detail
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path}; see /docs for what there is"
    elif error.status_code == 405:
        allowed = ", ".join(_allowed_methods(request))
        detail = f"{request.method} cannot be used on {request.url.path}; use {allowed}"
        return _response(problem, problem_body(problem, detail), {"Allow": allowed})
    return _response(problem, problem_body(problem, detail), error.headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods that some route takes at the request's path; the framework knows those of one route only."""

    def is_taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)

    return [method for method in _METHODS if is_taken(method)]


def _response(problem: Problem, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    retry = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
    return JSONResponse(body, problem.status, headers={**(headers or {}), **retry}, media_type=MEDIA_TYPE)
