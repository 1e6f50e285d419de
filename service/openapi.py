"""The OpenAPI document, completed: what routes cannot say of themselves, in tables by operation, parameter and header.

The examples are one story that runs from top to bottom, in the browser too: upload eight points as JSON, ask for their
graph, read its neighbors. Their ids are true, because ids are made of content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from fastapi import FastAPI

from pcct_core.spec import GraphSpec
from service.prefix import link
from service.wire import JSON, POINT_TYPES, npy_header
from worker.store import graph_id

POINTS = [[0.1, 0.2], [0.3, 0.1], [0.5, 0.6], [0.9, 0.4], [0.2, 0.8], [0.7, 0.7], [0.4, 0.3], [0.8, 0.1]]
QUERIES = [[0.35, 0.2], [0.6, 0.65]]
K = 3
SPEC = {"kind": "vecchia", "k": K, "order": "maximin", "metric": {"type": "euclidean", "lengthscale": 1.0}}
_REFRESH = {"metric": {"lengthscale": [0.9, 1.1]}, "epoch": 7, "force": False}
_TRACK_ID = "0123456789abcdef0123456789abcdef"
_TIMES = {"created": "2026-01-01T12:00:00Z", "updated": "2026-01-01T12:00:01Z"}


def _dataset_id(points: list[list[float]]) -> str:
    array = np.array(points)
    return hashlib.sha256(npy_header("float64", array.shape) + array.tobytes()).hexdigest()


DATASET_ID = _dataset_id(POINTS)
GRAPH_ID = graph_id(DATASET_ID, GraphSpec.from_json(SPEC))
WISH = {"dataset": DATASET_ID, "spec": SPEC}

_DATASET = {"id": DATASET_ID, "n": len(POINTS), "d": 2, "dtype": "float64", "bytes": 16 * len(POINTS)}
_FULL_SPEC = GraphSpec.from_json(SPEC).to_json()
_GRAPH = {
    "id": GRAPH_ID,
    "state": "ready",
    "dataset": DATASET_ID,
    "spec": _FULL_SPEC,
    "progress": None,
    "certificate": {"method": "tree", "dtype": "float64", "exact": True},
    "telemetry": {
        "seconds": {"prepare": 0.0002, "order": 0.0003, "tree": 0.0001, "search": 0.0001, "finish": 0.0001},
        "counts": {"n": 8, "d": 2, "k": K, "threads": 2},
    },
    "error": None,
    "arrays": {
        name: {"dtype": dtype, "shape": shape, "href": f"/v1/graphs/{GRAPH_ID}/{name}"}
        for name, dtype, shape in (
            ("neighbors", "int32", [8, K]),
            ("distances", "float64", [8, K]),
            ("order", "int64", [8]),
        )
    },
    **_TIMES,
    "warning": None,
}
_RUNNING = {
    **_GRAPH,
    "state": "running",
    "progress": {"phase": "search", "done": 2048, "total": 8192, "eta_s": 1.5},
    "certificate": None,
    "telemetry": None,
    "arrays": {},
}
_TRACK = {
    "id": _TRACK_ID,
    "dataset": DATASET_ID,
    "spec": _FULL_SPEC,
    "policy": {"tolerance": 0.05, "max_epochs": 5, "cooldown_epochs": 1, "schedule": "drift"},
    "version": 1,
    "graph": GRAPH_ID,
    "epoch": 0,
    "pending_version": None,
    "pending": None,
    "error": None,
    "failures": 0,
    **_TIMES,
    "warning": None,
}
_VECCHIA = {
    "neighbors": [[-1] * 3, [0, -1, -1], [0, 1, -1], [2, 0, 1], [0, 1, 3], [2, 0, 3], [0, 4, 5], [3, 0, 1]],
    "distances": [
        *([None, None, None], [0.5385, None, None], [0.5099, 0.8062, None], [0.3606, 0.5, 0.5099]),
        *([0.3162, 0.6083, 0.781], [0.3162, 0.4472, 0.6083], [0.2236, 0.2236, 0.5], [0.2236, 0.3162, 0.3606]),
    ],
    "order": [6, 4, 3, 5, 0, 7, 1, 2],
}
_KNN = {
    "neighbors": [[1, 6, 2], [0, 6, 7], [5, 6, 4], [7, 5, 2], [2, 5, 6], [2, 3, 6], [1, 0, 2], [3, 6, 1]],
    "distances": [
        *([0.2236, 0.3162, 0.5657], [0.2236, 0.2236, 0.5], [0.2236, 0.3162, 0.3606], [0.3162, 0.3606, 0.4472]),
        *([0.3606, 0.5099, 0.5385], [0.2236, 0.3606, 0.5], [0.2236, 0.3162, 0.3162], [0.3162, 0.4472, 0.5]),
    ],
}
RADIUS = 0.32
_RADIUS = {
    "neighbors": [1, 6, 0, 6, 5, 6, 7, 2, 1, 0, 2, 3],
    "distances": [
        *(0.2236, 0.3162, 0.2236, 0.2236, 0.2236, 0.3162),
        *(0.3162, 0.2236, 0.2236, 0.3162, 0.3162, 0.3162),
    ],
    "offsets": [0, 2, 4, 6, 7, 7, 8, 11, 12],
}
_NEAREST = {
    "neighbors": [[1, 6, 0], [5, 2, 3]],
    "distances": [[0.1118, 0.1118, 0.25], [0.1118, 0.1118, 0.3905]],
}
_CACHED = {"decision": "cached", "reason": "within_tolerance", "version": 1, "pending_version": None}
_SCHEDULED = {"decision": "scheduled", "reason": "drift", "version": 1, "pending_version": 2}
_EVENT = 'event: neighbor_refresh.swap\nid: 1767268801000-0\ndata: {"track":"0123…","version":2,"graph":"9f86…","epoch":7}\n\n'

_EXTERNAL = "What the type of a problem means"

TAGS = [
    {"name": "datasets", "description": "Point arrays, named by the SHA-256 of their content: upload once, ask often."},
    {"name": "graphs", "description": "Ask for a graph of a dataset, watch its build, and read its arrays in parts."},
    {"name": "tracks", "description": "Pointers that a training loop follows while graphs are built behind it."},
    {"name": "one-shot", "description": "An array in, its graph out, in one request."},
    {"name": "health", "description": "For those who run it: liveness, readiness, Prometheus."},
    {"name": "problems", "description": "What the `type` of an error means, and what to do."},
]

_HEADERS = {
    "X-Request-Id": "The request's own id, or a new one; it is in every line that the request causes in the logs",
    "ETag": "Name of this state or content; sent back as `If-None-Match` it makes a 304 of what has not changed",
    "Location": "Path of what was made or asked for",
    "Content-Location": "Path under which GET has the same answer",
    "Retry-After": "Seconds after which to look again",
    "Preference-Applied": "The wait that was granted, as `wait=SECONDS`",
    "Cache-Control": "How long the answer may be kept; arrays of a graph never change",
    "Vary": "The request headers that chose this form of the answer",
    "Content-Encoding": "Coding that `?compress=` asked for, or that JSON has because `Accept-Encoding` takes it",
    "Array-Dtype": "Type of raw numbers, such as int32",
    "Array-Shape": "Shape of raw numbers, such as 100,30",
}

# Description and, where it should stand in the browser's form, example by parameter.
_PARAMETERS: Mapping[str, tuple[str, Any]] = {
    "dataset_id": ("SHA-256 of the array as `np.save` writes it", DATASET_ID),
    "graph_id": ("Id that `POST /v1/graphs` answered", GRAPH_ID),
    "track_id": ("Id that `POST /v1/tracks` answered", None),
    "name": ("`neighbors`, `distances`, `order` of a Vecchia graph, or `offsets` of a radius graph", "neighbors"),
    "rows": ("Part of the rows as a:b, from a and before b", None),
    "k": ("Neighbors per row, nearest first", K),
    "dtype": (f"Of raw numbers alone: {', '.join(POINT_TYPES)}; all but the first become float64", None),
    "shape": ("Of raw numbers alone: 1000,3", None),
    "tensor": ("Of a safetensors file with several tensors: the one that holds the points", None),
    "order": ('maximin, hilbert, random, coordinate or given; or `{"by":"given","dataset":id}`', None),
    "seed": ("Read by the order random", None),
    "prefer": ("`wait=SECONDS`: answer as soon as there is news, at the latest then", "wait=30"),
    "if-none-match": ("ETags that the client has; 304 when one of them still holds", None),
    "last-event-id": ("Id of the last event that the client has", None),
}


class _Operation(NamedTuple):
    """What is added to an operation.

    body: example of a JSON body. answers: example by status. headers: names by status. parameters: examples by name, where
    that of the table would not do.
    """

    summary: str
    body: Any = None
    answers: Mapping[str, Any] = MappingProxyType({})
    headers: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    parameters: Mapping[str, Any] = MappingProxyType({})


_STATE = ("Location", "Preference-Applied")
_LATER = ("Location", "Retry-After", "Preference-Applied")
_CONTENT = ("ETag", "Cache-Control", "Vary", "Content-Encoding")
_VALIDATORS = ("ETag", "Cache-Control")
_RAW = ("Array-Dtype", "Array-Shape")
_ONESHOT = (*_CONTENT, "Content-Location", *_RAW)

_OPERATIONS: Mapping[tuple[str, str], _Operation] = {
    ("post", "/v1/datasets"): _Operation(
        "Upload points",
        POINTS,
        {"201": _DATASET, "200": _DATASET},
        {"201": ("Location",), "200": ("Location",)},
    ),
    ("get", "/v1/datasets/{dataset_id}"): _Operation(
        "Describe a dataset", None, {"200": _DATASET}, {"200": _VALIDATORS, "304": _VALIDATORS}
    ),
    ("delete", "/v1/datasets/{dataset_id}"): _Operation("Remove a dataset"),
    ("post", "/v1/datasets/{dataset_id}/query"): _Operation(
        "Find the neighbors of other points",
        QUERIES,
        {"200": _NEAREST, "202": _RUNNING},
        {"200": _ONESHOT, "202": _LATER},
    ),
    ("post", "/v1/graphs"): _Operation(
        "Ask for a graph", WISH, {"200": _GRAPH, "202": _RUNNING}, {"200": _STATE, "202": _LATER}
    ),
    ("get", "/v1/graphs/{graph_id}"): _Operation("Describe a graph", None, {"200": _GRAPH}, {"200": _LATER}),
    ("delete", "/v1/graphs/{graph_id}"): _Operation("Cancel and forget a graph"),
    ("get", "/v1/graphs/{graph_id}/arrays"): _Operation(
        "Read all arrays of a graph", None, {"200": _VECCHIA}, {"200": _CONTENT, "304": _CONTENT}
    ),
    ("get", "/v1/graphs/{graph_id}/{name}"): _Operation(
        "Read one array of a graph", None, {"200": _VECCHIA["neighbors"]}, {"200": (*_CONTENT, *_RAW), "304": _CONTENT}
    ),
    ("post", "/v1/tracks"): _Operation(
        "Start a track",
        {**WISH, "policy": _TRACK["policy"]},
        {"201": _TRACK},
        {"201": ("Location", "ETag", "Cache-Control", "Preference-Applied")},
    ),
    ("get", "/v1/tracks/{track_id}"): _Operation(
        "Describe a track, or wait for its next version",
        None,
        {"200": _TRACK},
        {
            "200": ("ETag", "Cache-Control", "Preference-Applied"),
            "304": ("ETag", "Cache-Control", "Preference-Applied"),
        },
    ),
    ("delete", "/v1/tracks/{track_id}"): _Operation("End a track"),
    ("post", "/v1/tracks/{track_id}/refresh"): _Operation(
        "Offer new hyperparameters", _REFRESH, {"200": _CACHED, "202": _SCHEDULED}
    ),
    ("get", "/v1/tracks/{track_id}/events"): _Operation("Follow the events of a track", None, {"200": _EVENT}),
    ("post", "/v1/knn"): _Operation(
        "Build a k-NN graph of the points sent",
        POINTS,
        {"200": _KNN, "202": _RUNNING},
        {"200": _ONESHOT, "202": _LATER},
    ),
    ("post", "/v1/vecchia"): _Operation(
        "Build a Vecchia graph of the points sent",
        POINTS,
        {"200": _VECCHIA, "202": _RUNNING},
        {"200": _ONESHOT, "202": _LATER},
    ),
    ("post", "/v1/radius"): _Operation(
        "Build a radius graph of the points sent",
        POINTS,
        {"200": _RADIUS, "202": _RUNNING},
        {"200": _ONESHOT, "202": _LATER},
        {"radius": RADIUS},
    ),
    ("get", "/livez"): _Operation("Is this process alive", None, {"200": {"status": "alive"}}),
    ("get", "/readyz"): _Operation(
        "Can it do its work",
        None,
        {"200": {"status": "ready", "jobs": 0, "workers": 1, "warm_workers": 1, "compiling": []}},
        {"503": ("Retry-After",)},
    ),
    ("get", "/metrics"): _Operation(
        "Metrics for Prometheus", None, {"200": 'pcct_queue_jobs{queue="interactive"} 0.0\n'}
    ),
}


def complete_document(app: FastAPI) -> None:
    """Let the application answer /openapi.json with the completed document."""
    bare = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(bare())
        document: dict[str, Any] = _linked(bare())
        return document | {"externalDocs": {"description": _EXTERNAL, "url": link("/problems")}}

    app.openapi = openapi  # type: ignore[method-assign]


def _linked(value: Any) -> Any:
    """Return a document whose examples name paths of ours as the client reaches them; operations are below its servers."""
    if isinstance(value, dict):
        return {name: _linked(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_linked(each) for each in value]
    return link(value) if isinstance(value, str) and value.startswith(("/v1/", "/problems/")) else value


def _complete(document: dict[str, Any]) -> None:
    document["components"]["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete_operation(operation, _OPERATIONS.get((method, path)))


def _complete_operation(operation: dict[str, Any], more: _Operation | None) -> None:
    """Add what the tables say. more: None for an operation whose route says all of itself."""
    for status, answer in operation["responses"].items():
        names = () if more is None else more.headers.get(status, ())
        headers = {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}
        answer["headers"] = {**headers, **answer.get("headers", {})}
    if any(status == "304" for status in operation["responses"]):
        _add_if_none_match(operation)
    for parameter in operation.get("parameters", []):
        text, example = _PARAMETERS.get(parameter["name"].lower(), ("", None))
        if text:
            parameter.setdefault("description", text)
        example = example if more is None else more.parameters.get(parameter["name"], example)
        if example is not None:
            parameter.setdefault("example", example)
    if more is None:
        return
    operation["summary"] = more.summary
    if more.body is not None:
        _put_example(operation["requestBody"], more.body)
    for status, example in more.answers.items():
        _put_example(operation["responses"][status], example)


def _add_if_none_match(operation: dict[str, Any]) -> None:
    parameters = operation.setdefault("parameters", [])
    if not any(parameter["name"].lower() == "if-none-match" for parameter in parameters):
        parameters.append({"name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"}})


def _put_example(carrier: dict[str, Any], example: Any) -> None:
    """Give the JSON form of a body an example, and put it first, which the browser's form takes; text has no other form."""
    content = carrier.setdefault("content", {})
    media = next((media for media in content if media == JSON), None) or next(iter(content), JSON)
    form = content.pop(media, {})
    carrier["content"] = {media: {**form, "example": example}, **content}
