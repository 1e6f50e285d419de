"""Every failure as RFC 9457 `application/problem+json`: exception -> status, name and documentation, one table.

The `type` of a problem is `/problems/<slug>`, behind the prefix of a proxy if there is one: its last part is a stable name to
branch on, and the whole leads to a page that explains it (`routes.problems`);
`detail` states the fact and the fix.
`row` and `field` are there when the fault lies in one row or in one field of the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from pcct_core.errors import InvalidPoints, InvalidSpec, PcctError
from service.access import RateLimited, ScopeTooSmall, Unauthenticated
from service.crowd import TooManyAtOnce
from service.prefix import link
from service.wire import (
    BodyTooLarge,
    InvalidParameter,
    MalformedArray,
    NothingAcceptable,
    UnsupportedBody,
    WrongLength,
)
from worker.eviction import NamespaceFull
from worker.logs import Outage, request_id
from worker.patience import refuses_writes
from worker.store import DamagedData, NewerLayout, TooManyJobs, UnknownDataset, UnknownGraph
from worker.tracks import TIMEOUT, EpochBackwards, NotAHyperparameter, TooManyTracks, UnknownTrack

MEDIA_TYPE = "application/problem+json"

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_log = structlog.get_logger(__name__)
_outage = Outage()  # every request, and the probe of /readyz several times a second, meets the same one


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


class UnknownProblem(PcctError):
    """No kind of problem has this name."""


class NotReady(PcctError):
    """The service cannot do its work now; the message names what is missing."""


class Problem(NamedTuple):
    """One row of the table, and what its documentation page says.

    cause: what has happened, one sentence. fix: what to do. example: a `detail` as it is answered.
    retry_after_s: seconds after which the same request may succeed, None when it must change first.
    """

    status: HTTPStatus
    slug: str
    title: str
    cause: str
    fix: str
    example: str
    retry_after_s: int | None = None


_ID = "9f86d081…"
_STORE_DETAIL = "the store behind this service does not take the request now; try again after Retry-After seconds"
_STORE_AWAY = Problem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "store-unavailable",
    "The store does not answer",
    cause="Redis or Valkey is down, restarting, unreachable from the API, or a read-only replica.",
    fix="Try again after `Retry-After` seconds: nothing was lost, and every request may be repeated. Operators: "
    "`pcct doctor` tells what is wrong with the store.",
    example=_STORE_DETAIL,
    retry_after_s=2,
)
_STORE_FULL = Problem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "store-full",
    "The store takes no more data",
    cause="Redis or Valkey has reached its memory limit, or its disk is full.",
    fix="Delete datasets and graphs that are not needed, or raise `maxmemory` of the store, or make room on its disk; then "
    "try again. Nothing is half stored.",
    example=_STORE_DETAIL,
    retry_after_s=30,
)

# Looked up along the exception's method resolution order, so a subclass without a row has its parent's.
PROBLEMS: Mapping[type[Exception], Problem] = {
    InvalidPoints: Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid-points",
        "The points cannot be used",
        cause="The array holds NaN or infinity, has no row or no column, or a row that the metric is not defined on.",
        fix="Correct or drop the row that `row` names; there may be more behind it.",
        example="row 3, column 1 is nan; remove or fill such rows",
    ),
    InvalidSpec: Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid-spec",
        "The specification cannot be met",
        cause="A field of the specification is unknown or out of range, or does not fit these points.",
        fix="Change the field that `field` names as `detail` says; docs/reference/specification.md lists all fields.",
        example="k is 30, this service allows k ≤ 20",
    ),
    InvalidParameter: Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid-parameter",
        "A query parameter cannot be used",
        cause="A parameter of the URL, or a header, has a value that means nothing here.",
        fix="Change the parameter that `field` names as `detail` says.",
        example="rows is 'x'; use rows=a:b with 0 ≤ a < b, and a < 1000",
    ),
    RequestValidationError: Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid-request",
        "The request cannot be used",
        cause="The JSON body or the URL lacks a field, has one that is not known, or one of the wrong type.",
        fix="Change what `errors` lists, one entry a field, and compare with the example at /docs.",
        example="dataset: Field required",
    ),
    MalformedArray: Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "malformed-array",
        "The body is not an array",
        cause="The body is not in the format that its Content-Type says, or of a type of number that is not taken.",
        fix="Send what `np.save` writes, or say the format with `Content-Type`; pickled objects are never read.",
        example="the body is not a .npy file: it starts with b'1.0,2.0'; send a float32 or float64 .npy file as the whole body",
    ),
    WrongLength: Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "wrong-length",
        "The body's length does not fit its shape",
        cause="The upload ended early or went on too long for the shape that it announced. Nothing was kept.",
        fix="Send it again, whole; for raw numbers compare `dtype` and `shape` with the length.",
        example="a (2, 1) array of float64 has 16 bytes of numbers, the body holds 8: it was cut short; "
        "with curl use --data-binary, -d drops bytes",
    ),
    BodyTooLarge: Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too-large",
        "The body is over the configured limit",
        cause="The body, or the array that its header announces, is larger than this service takes.",
        fix="Send fewer rows, or float32; operators raise the limit that `detail` names (`PCCT_MAX_…`).",
        example="a (1000, 2) array of float64 has 16000 bytes, the limit is 8000",
    ),
    UnsupportedBody: Problem(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported-body",
        "The body's type is not read here",
        cause="`Content-Type` or `Content-Encoding` names a format that is not taken in.",
        fix="Use one of the formats or content codings that `detail` lists.",
        example="text/csv is not read here; send application/x-npy",
    ),
    NothingAcceptable: Problem(
        HTTPStatus.NOT_ACCEPTABLE,
        "not-acceptable",
        "No format that is written here fits Accept",
        cause="`Accept` excludes every format that this answer can have, or allows JSON alone for a large array, or "
        "`Accept-Encoding` excludes what `compress` asks for.",
        fix="Accept one of the formats that `detail` lists, or leave out `Accept`, or `compress`.",
        example="nothing here fits Accept: image/png; ask for application/x-npy or application/json",
    ),
    ClientDisconnect: Problem(
        HTTPStatus.BAD_REQUEST,
        "truncated-request",
        "The connection ended inside the request",
        cause="The client, or something between, closed the connection before the body was complete.",
        fix="Send it again; nothing was kept.",
        example="the connection ended before the body did; nothing was kept",
    ),
    Unauthenticated: Problem(
        HTTPStatus.UNAUTHORIZED,
        "unauthenticated",
        "A valid API key is needed",
        cause="The request carries no API key, or one that was never made here, is not complete, or was revoked.",
        fix="Send `Authorization: Bearer KEY`, or `X-API-Key: KEY`. Operators: `pcct keys create` makes a key.",
        example="this service needs an API key; send `Authorization: Bearer KEY`; "
        "an operator makes keys with `pcct keys create`",
    ),
    ScopeTooSmall: Problem(
        HTTPStatus.FORBIDDEN,
        "scope-too-small",
        "The API key does not allow this",
        cause="The key's scope is below what the request needs: read for GET and HEAD, write for what uploads, asks, "
        "refreshes or deletes, admin for what shows the whole deployment.",
        fix="Use a key with the scope that `detail` names.",
        example="this needs a key with the scope write, yours has read; use another key",
    ),
    RateLimited: Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate-limited",
        "Too many requests",
        cause="The key, or the address where no key is needed, has used up the rate that `PCCT_RATE_LIMIT` sets.",
        fix="Wait for `Retry-After` seconds. Wait for graphs and tracks with `Prefer: wait=30` instead of asking often.",
        example="more than 100 requests in 1 s; try again in 1 s, and ask less often",
        retry_after_s=1,
    ),
    TooManyJobs: Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "too-many-jobs",
        "Too many graphs are queued",
        cause="The namespace has `PCCT_MAX_JOBS` graphs that wait or are built. What was asked for before goes on.",
        fix="Wait for some of them with `GET /v1/graphs/{id}` and `Prefer: wait=30`, then ask again.",
        example="this namespace has 1000 graphs queued or running, the most that it may; wait for some of them",
        retry_after_s=5,
    ),
    TooManyAtOnce: Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "too-many-at-once",
        "Too many requests are held at once",
        cause="As many one-shot requests, or waiting ones, of the namespace are under way as one API process holds.",
        fix="Try again when one has ended; ask for graphs with `POST /v1/graphs` and wait for several in turn.",
        example="32 of this namespace's one-shot requests are being answered (PCCT_MAX_ONESHOTS); wait for one, "
        "or use POST /v1/graphs",
        retry_after_s=1,
    ),
    TooManyTracks: Problem(
        HTTPStatus.INSUFFICIENT_STORAGE,
        "too-many-tracks",
        "There are too many tracks",
        cause="The namespace has `PCCT_MAX_TRACKS` tracks.",
        fix="Delete tracks that nobody follows with `DELETE /v1/tracks/{id}`; after `PCCT_TRACK_IDLE_S` they go by themselves.",
        example="this namespace has 1000 tracks, the most that it may; delete those that nobody follows",
    ),
    UnknownDataset: Problem(
        HTTPStatus.NOT_FOUND,
        "unknown-dataset",
        "There is no such dataset",
        cause="No dataset has this id: it was never uploaded here, or was deleted or evicted since.",
        fix="Upload the points with `POST /v1/datasets`; the id is the SHA-256 of what `np.save` writes.",
        example=f"there is no dataset {_ID}; upload it first",
    ),
    UnknownGraph: Problem(
        HTTPStatus.NOT_FOUND,
        "unknown-graph",
        "There is no such graph",
        cause="No graph has this id: nobody asked for it here, or it was deleted or evicted since.",
        fix="Ask for it with `POST /v1/graphs`, which gives its id.",
        example=f"there is no graph {_ID}; ask for it with POST /v1/graphs",
    ),
    UnknownArray: Problem(
        HTTPStatus.NOT_FOUND,
        "unknown-array",
        "The graph has no such array",
        cause="Graphs differ in their arrays: a k-NN graph has no `order`.",
        fix="Read one of the arrays that `detail` lists.",
        example=f"graph {_ID} has no array 'order'; it has neighbors, distances",
    ),
    UnknownTrack: Problem(
        HTTPStatus.NOT_FOUND,
        "unknown-track",
        "There is no such track",
        cause="No track has this id: it was deleted, or the store that kept it is another one.",
        fix="Start one with `POST /v1/tracks`.",
        example="there is no track 0123456789abcdef; create one with POST /v1/tracks",
    ),
    UnknownProblem: Problem(
        HTTPStatus.NOT_FOUND,
        "unknown-problem",
        "There is no such problem",
        cause="No answer of this release has a `type` of this name.",
        fix="See /problems for all that there are.",
        example="there is no problem 'x'; GET /problems lists all",
    ),
    EpochBackwards: Problem(
        HTTPStatus.CONFLICT,
        "epoch-backwards",
        "The epoch goes backwards",
        cause="A refresh has a smaller epoch than one before: two loops share the track, or a loop began anew.",
        fix="Count on from the largest epoch so far, which `seen_epoch` names, leave `epoch` out, or start a track of its own.",
        example="epoch 3 is before 7, which this track has seen; epochs only go up: use 7 or more",
    ),
    NotAHyperparameter: Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "not-a-hyperparameter",
        "A refresh changes hyperparameters only",
        cause="The metric of a refresh differs from the track's in more than lengthscale and variance.",
        fix="Send `lengthscale` and `variance` alone; start another track for another kernel or metric.",
        example="a refresh cannot change metric.type: this track follows lengthscale; create another track",
    ),
    GraphNotReady: Problem(
        HTTPStatus.CONFLICT,
        "graph-not-ready",
        "The graph is not finished",
        cause="The arrays were asked for while the graph is queued or running.",
        fix="Wait for it with `GET /v1/graphs/{id}` and `Prefer: wait=30`, then ask again.",
        example=f"graph {_ID} is running; its arrays can be read when GET /v1/graphs/{_ID} says ready",
        retry_after_s=1,
    ),
    GraphFailed: Problem(
        HTTPStatus.CONFLICT,
        "graph-failed",
        "The graph was not finished",
        cause="The graph's job failed or was cancelled, so that there are no arrays.",
        fix="See `error` of `GET /v1/graphs/{id}`, remove the cause, and ask again with `POST /v1/graphs`.",
        example=f"graph {_ID} cancelled; POST /v1/graphs asks for it again",
    ),
    GraphDeleted: Problem(
        HTTPStatus.CONFLICT,
        "graph-deleted",
        "The graph was deleted",
        cause="Somebody deleted the graph while this request waited for it.",
        fix="Ask for it again.",
        example="the graph was deleted while this request waited for it; ask for it again",
    ),
    DamagedData: Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "damaged-data",
        "Stored data were damaged and removed",
        cause="A stored array failed its checksum, or pieces of it were lost. It is never given out.",
        fix="Ask for the graph again, which builds it anew, or upload the points again; look at the store's disk.",
        example=f"the stored neighbors of graph {_ID} are damaged and were removed; ask for the graph again",
        retry_after_s=1,
    ),
    BuildFailed: Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "build-failed",
        "The graph could not be built",
        cause="The job of a one-shot request ended with an error that is not the caller's.",
        fix="Ask again; if it fails again, look for the graph's id in the log of the worker.",
        example=f"graph {_ID} failed: the worker ran out of memory; ask again to try again",
    ),
    UploadStalled: Problem(
        HTTPStatus.REQUEST_TIMEOUT,
        "upload-stalled",
        "The body stopped arriving",
        cause="The client sent nothing for `PCCT_UPLOAD_IDLE_S` seconds in the middle of its body, or for that long less than "
        "`PCCT_MIN_UPLOAD_RATE`.",
        fix="Send it again; nothing was kept.",
        example="nothing has come for 60 s and the body is not complete; send it again",
    ),
    NotReady: Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "not-ready",
        "The service is not ready",
        cause="No worker runs, or all workers are still compiling their kernels.",
        fix="Start a worker with `pcct work`, or wait: the first start on a machine compiles for up to a minute.",
        example="no worker is running, so nothing that is queued is built; start one with `pcct work`",
        retry_after_s=2,
    ),
    NamespaceFull: Problem(
        HTTPStatus.INSUFFICIENT_STORAGE,
        "namespace-full",
        "The namespace is full",
        cause="What is to be kept does not fit into `PCCT_NAMESPACE_BYTES` beside what tracks and running jobs need; all else "
        "would be evicted.",
        fix="Delete tracks that are not followed any more, wait for jobs, or send fewer points. Operators: raise "
        "`PCCT_NAMESPACE_BYTES`.",
        example="16000 bytes do not fit: this namespace may hold 20000 bytes, of which 8000 are in use by tracks and running "
        "jobs; delete tracks or wait for jobs, send fewer points, or have PCCT_NAMESPACE_BYTES raised",
    ),
    NewerLayout: Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "newer-layout",
        "The store belongs to a later release",
        cause="A later release of pcct has used this store, and this process could read wrongly what that has written.",
        fix="Operators: upgrade this process, or give it a store of its own.",
        example="the store has layout 2 of a later release of pcct, this one knows 1; upgrade this process, or give it a "
        "store of its own (PCCT_REDIS_URL, or --data-dir)",
        retry_after_s=30,
    ),
    RedisConnectionError: _STORE_AWAY,
    RedisTimeoutError: _STORE_AWAY,
    ReadOnlyError: _STORE_AWAY,
    OutOfMemoryError: _STORE_FULL,
    Exception: Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal-error",
        "The service failed",
        cause="A fault of pcct itself; the traceback is in the log under the request id.",
        fix="Ask again; if it fails again, report it with the lines of the log that have this request id.",
        example="an unexpected error; it is in the log of the service under request id 4bf92f3577b34da6",
    ),
}

# What a connection is told that no request comes of.
HEAD_STALLED = Problem(
    HTTPStatus.REQUEST_TIMEOUT,
    "head-stalled",
    "No request came",
    cause="The connection was open for `PCCT_HEAD_S` seconds, and the head of a request did not come or was not complete.",
    fix="Connect when there is something to ask, and send the head at once.",
    example="the head of a request did not come in time; connect again and send it at once",
)
HEAD_TOO_LARGE = Problem(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "head-too-large",
    "The head of the request is too large",
    cause="URL and headers, or what follows a chunked body, have more than 64 KiB.",
    fix="Send arrays and specifications in the body, and fewer or shorter headers and cookies.",
    example="the head of a request may have 65536 bytes; send arrays in the body, and fewer headers",
)
BUSY = Problem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "too-many-connections",
    "Too many connections",
    cause="The API process has `PCCT_MAX_CONNECTIONS` connections open.",
    fix="Try again after `Retry-After` seconds, and use one connection for many requests. Operators: raise the limit, or run "
    "more API processes.",
    example="this process has as many connections as it may; try again, and use one connection for many requests",
    retry_after_s=1,
)

# Faults that the framework finds before a route runs, by status.
HTTP_PROBLEMS: Mapping[int, Problem] = {
    400: Problem(
        HTTPStatus.BAD_REQUEST,
        "bad-request",
        "Bad Request",
        cause="What came is not HTTP/1.1 as this service reads it: https:// on a port that speaks http://, HTTP/2, or a line "
        "that is no header.",
        fix="Use an HTTP client, and http:// where nothing before the service speaks https://; compare with the examples at "
        "/docs.",
        example="this is not HTTP/1.1; use an HTTP client, and http:// unless a proxy before the service speaks https://",
    ),
    404: Problem(
        HTTPStatus.NOT_FOUND,
        "not-found",
        "Not Found",
        cause="There is no route at this path.",
        fix="See /docs for what there is; all calls begin with `/v1`.",
        example="there is nothing at /v2/graphs; see /docs for what there is",
    ),
    405: Problem(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "Method Not Allowed",
        cause="There is a route at this path, but not for this method.",
        fix="Use one of the methods that `Allow` lists.",
        example="GET cannot be used on /v1/knn; use POST",
    ),
}

# What a job may leave as the `error` of its graph or track; such a problem is part of a description, not an answer's status.
JOB_PROBLEMS: Sequence[Problem] = (
    Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "not-positive-definite",
        "The inducing points cannot be used together",
        cause="Inducing points repeat, or are so close that their covariance cannot be factorised.",
        fix="Raise `jitter`, or choose fewer or other inducing points.",
        example="the covariance of the inducing points is not positive definite; raise jitter",
    ),
    Problem(
        HTTPStatus.INSUFFICIENT_STORAGE,
        "out-of-memory",
        "The build needs more memory",
        cause="The worker could not get the memory that the build needs.",
        fix="Use fewer points or a smaller k, or give the worker more memory.",
        example="the worker ran out of memory; use fewer points or a smaller k, or give the worker more",
    ),
    Problem(
        HTTPStatus.INSUFFICIENT_STORAGE,
        "store-refused",
        "The store refused the result",
        cause="The graph was built, but the store did not take it, mostly because it is full.",
        fix="Make room in the store, then ask again.",
        example="the store refused the result (command not allowed when used memory > 'maxmemory'); ask again",
    ),
    Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "worker-died",
        "The build kept ending its worker",
        cause="The worker process died `PCCT_MAX_ATTEMPTS` times while it built this graph, mostly out of memory.",
        fix="Use fewer points or a smaller k, or give the worker more memory, then ask again.",
        example="the worker died 3 times while building this graph, most likely out of memory",
    ),
    Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "damaged-graph",
        "The stored graph was damaged",
        cause="A stored array of the graph failed its checksum, and the graph was dropped.",
        fix="Ask for the graph again, which builds it anew.",
        example=f"the stored neighbors of graph {_ID} are damaged and were removed; ask for the graph again",
    ),
    Problem(
        HTTPStatus.GATEWAY_TIMEOUT,
        TIMEOUT,
        "The refresh took too long",
        cause="The build of a track's version took longer than `PCCT_REFRESH_TIMEOUT_S`.",
        fix="Use fewer points or a smaller k, or raise the limit, and refresh again; the last good version stays.",
        example="the build took longer than PCCT_REFRESH_TIMEOUT_S (600 s) and was given up",
    ),
    Problem(
        HTTPStatus.CONFLICT,
        "cancelled",
        "The build was cancelled",
        cause="Somebody cancelled or deleted the graph that a track's version waited for.",
        fix="Refresh with `force` to ask for it again; the last good version stays.",
        example="the graph was deleted while it was built for this track; refresh the track to ask for it again",
    ),
)


def every_problem() -> dict[str, Problem]:
    """Return all kinds of problems by their slug, sorted by status."""
    rows = [*PROBLEMS.values(), HEAD_STALLED, HEAD_TOO_LARGE, BUSY, *HTTP_PROBLEMS.values(), *JOB_PROBLEMS]
    return {row.slug: row for row in sorted(rows, key=lambda row: (row.status, row.slug))}


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


def _answers(description: str, slug: str) -> dict[str, Any]:
    problem = every_problem()[slug]
    example = problem_body(problem, problem.example)
    headers = {
        "Retry-After": {
            "description": "Seconds after which the same request may succeed; only where waiting helps",
            "schema": {"type": "integer"},
        }
    }
    content = {MEDIA_TYPE: {"schema": ProblemBody.model_json_schema(), "example": example}}
    return {"description": description, "headers": headers, "content": content}


def install_problems(app: FastAPI) -> None:
    """Make every failure of `app` answer as a problem."""
    for kind in PROBLEMS:
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ResponseError, _answer_refusal)


def problem_of(error: Exception) -> Problem:
    """Return the table's row for an exception."""
    return next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)


def problem_type(slug: str) -> str:
    """Return the stable name of a kind of problem."""
    return link(f"/problems/{slug}")


def problem_body(problem: Problem, detail: str, **extra: Any) -> dict[str, Any]:
    """Return the members of a problem; extra ones that are None are left out."""
    body = {
        "type": problem_type(problem.slug),
        "title": problem.title,
        "status": int(problem.status),
        "detail": detail,
    }
    return body | {name: value for name, value in extra.items() if value is not None}


# For the OpenAPI document; it also keeps FastAPI from describing an error format that is never sent.
PROBLEM_ANSWERS: dict[int | str, dict[str, Any]] = {
    "4XX": _answers("The request cannot be met; `type` leads to the page that explains why", "unknown-dataset"),
    "5XX": _answers("The service cannot answer now; `type` leads to the page that explains why", "store-unavailable"),
}


async def _answer(request: Request, error: Exception) -> JSONResponse:
    problem = problem_of(error)
    if isinstance(error, RequestValidationError):
        return _validation_response(problem, error)
    detail = str(error)
    if problem.slug == "internal-error":
        # The server logs the traceback: Starlette raises the exception again behind this answer.
        detail = f"an unexpected error; it is in the log of the service under request id {request_id()}"
    elif problem.slug.startswith("store-"):
        if _outage.tells():
            _log.warning("store_unavailable", method=request.method, path=request.url.path, error=detail)
        detail = problem.example
    elif problem.slug == "truncated-request":
        detail = problem.example
    extra = {name: getattr(error, name, None) for name in ("row", "field", "state", "seen_epoch")}
    return _response(problem, problem_body(problem, detail, **extra), getattr(error, "headers", None))


async def _answer_refusal(request: Request, error: Exception) -> JSONResponse:
    """Answer what redis-py has no class for; all else that the store finds wrong with a command is a fault of ours."""
    if refuses_writes(error):
        return await _answer(request, OutOfMemoryError(str(error)))
    raise error


def _validation_response(problem: Problem, error: RequestValidationError) -> JSONResponse:
    # The rejected input is left out: it may be large, or not JSON (NaN).
    errors = [{"field": _field(item["loc"]), "message": _message(item)} for item in error.errors()]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors[:5])
    return _response(
        problem, problem_body(problem, detail, field=errors[0]["field"] if errors else None, errors=errors)
    )


def _message(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return "there is nothing of this name here; correct it or leave it out"
    return str(fault["msg"])


def _field(location: tuple[int | str, ...]) -> str:
    """Return the dotted name of a field, without the part of the request that it is in."""
    parts = location[1:] if location and location[0] in ("query", "path", "body", "header") else location
    return ".".join(map(str, parts)) or "body"


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for this class only)
    status = HTTPStatus(error.status_code)
    problem = HTTP_PROBLEMS.get(error.status_code, HTTP_PROBLEMS[400])._replace(status=status, title=status.phrase)
    detail = error.detail
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path}; see /docs for what there is"
    elif error.status_code == 405:
        allowed = ", ".join(_allowed_methods(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        detail = f"{request.method} cannot be used on {request.url.path}; use {allowed}"
        return _response(problem, problem_body(problem, detail), {"Allow": allowed})
    return _response(problem, problem_body(problem, detail), error.headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods that some route takes at the request's path; the framework knows those of one route only."""

    def is_taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)

    return [method for method in _METHODS if method == "OPTIONS" or is_taken(method)]


def _response(problem: Problem, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    retry = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
    return JSONResponse(body, problem.status, headers={**retry, **(headers or {})}, media_type=MEDIA_TYPE)
