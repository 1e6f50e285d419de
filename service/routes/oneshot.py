"""/v1/knn, /v1/vecchia and /v1/radius: an array in, its graph out, in one request."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ConfigDict, Field

from pcct_core.errors import InvalidPoints, InvalidSpec
from pcct_core.spec import DEFAULT_K, GraphSpec
from service.answers import (
    GRAPH_FORMATS,
    array_body,
    array_stream,
    formats_content,
    graph_body,
    graph_numbers,
    stream_answer,
)
from service.backend import Backend, InBackend
from service.compression import Coding, CompressQuery, check_takes
from service.intake import Purpose, check_wish, check_wish_on, receive_points
from service.prefix import link
from service.problems import BuildFailed, GraphFailed, NotReady
from service.routes.datasets import ARRAY_BODY, find_dataset
from service.routes.graphs import GraphBody, graph_answer
from service.wire import JSON, NPY, RAW, InvalidParameter, choose_format, choose_sized_format
from worker.query import Wish
from worker.store import TERMINAL, GraphRecord

router = APIRouter(prefix="/v1", tags=["one-shot"])

ANSWER_FORMATS = (*GRAPH_FORMATS, NPY, RAW)
_LOOK_S = 5.0  # how often a waiting request makes sure that somebody works; a worker may just be starting

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "All arrays as .npz, safetensors or, when small, a JSON object of lists; or, with "
        "`Accept: application/x-npy` or `application/octet-stream`, the neighbors alone",
        "content": formats_content(ANSWER_FORMATS),
    },
    202: {"model": GraphBody, "description": "Not finished yet; it goes on, see Location"},
}


class MetricQuery(CompressQuery):
    """A metric as query parameters; dtype and shape describe a raw body, tensor names one of a safetensors file."""

    model_config = ConfigDict(extra="forbid")

    metric: Annotated[str, Field(description="A metric's name, or all of it as in a specification, in JSON")] = (
        "euclidean"
    )
    lengthscale: Annotated[str | None, Field(description="One positive number, or one per dimension: 0.3,0.3,0.1")] = (
        None
    )
    dtype: str | None = None
    shape: str | None = None
    tensor: str | None = None

    def metric_json(self) -> dict[str, Any]:
        """Return the metric as in a specification; raises InvalidParameter."""
        example = '{"type":"euclidean"}'
        metric = _object(self.metric, "metric", example) or {"type": self.metric}
        if self.lengthscale is None:
            return metric
        try:
            values = [float(part) for part in self.lengthscale.split(",")]
        except ValueError:
            raise InvalidParameter(
                f"lengthscale is {self.lengthscale!r}; use a number, or numbers with commas between", "lengthscale"
            ) from None
        return metric | {"lengthscale": values[0] if len(values) == 1 else values}


def _object(text: str, name: str, example: str) -> dict[str, Any] | None:
    """Return a query parameter that is a JSON object, None where it is a name; raises InvalidParameter."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidParameter(f"{name} is not JSON; use a name, or an object such as {example}", name) from None
    return value


class KnnQuery(MetricQuery):
    """A k-NN graph as query parameters."""

    k: int = DEFAULT_K

    def spec(self) -> GraphSpec:
        """Return the specification; raises InvalidSpec or InvalidParameter."""
        return GraphSpec.from_json({"kind": "knn", "k": self.k, "metric": self.metric_json()})


class RadiusQuery(MetricQuery):
    """A radius graph as query parameters."""

    radius: Annotated[float, Field(description="Largest distance of a neighbor, itself included, in the metric's unit")]

    def spec(self) -> GraphSpec:
        """Return the specification; raises InvalidSpec or InvalidParameter."""
        return GraphSpec.from_json({"kind": "radius", "radius": self.radius, "metric": self.metric_json()})


class VecchiaQuery(KnnQuery):
    """A Vecchia graph as query parameters."""

    order: Annotated[str, Field(description="An order's name, or all of it as in a specification, in JSON")] = "maximin"
    seed: int = 0

    def spec(self) -> GraphSpec:
        """Return the specification; raises InvalidSpec or InvalidParameter."""
        order = _object(self.order, "order", '{"by":"given","dataset":id}') or self.order
        wish = {"kind": "vecchia", "k": self.k, "metric": self.metric_json(), "order": order, "seed": self.seed}
        return GraphSpec.from_json(wish)


@router.post("/knn", openapi_extra=ARRAY_BODY, responses=ANSWERS)
async def build_knn(request: Request, backend: InBackend, query: Annotated[KnnQuery, Query()]) -> Response:
    """Return the exact k-nearest-neighbor graph of the array in the body."""
    return await _build(request, backend, query.spec(), query.compress)


@router.post("/vecchia", openapi_extra=ARRAY_BODY, responses=ANSWERS)
async def build_vecchia(request: Request, backend: InBackend, query: Annotated[VecchiaQuery, Query()]) -> Response:
    """Return the Vecchia graph of the array in the body: row r lists the k nearest among ranks 0 … r-1."""
    return await _build(request, backend, query.spec(), query.compress)


@router.post("/radius", openapi_extra=ARRAY_BODY, responses=ANSWERS)
async def build_radius(request: Request, backend: InBackend, query: Annotated[RadiusQuery, Query()]) -> Response:
    """Return the radius graph of the array in the body: all other points within `radius` of each, row behind row.

    The neighbors of row i are neighbors[offsets[i]:offsets[i + 1]], nearest first. 422 when they are too many altogether.
    """
    return await _build(request, backend, query.spec(), query.compress)


async def _build(request: Request, backend: Backend, spec: GraphSpec, compress: Coding | None) -> Response:
    check_takes(compress, request.headers.get("accept-encoding"))
    choose_format(request.headers.get("accept"), ANSWER_FORMATS)
    references = [await find_dataset(reference, backend) for reference in spec.references()]
    purpose = Purpose(spec.metric, lambda n, d: check_wish(n, d, spec, backend.settings, references))
    with backend.present("one-shot"):
        dataset, _ = await receive_points(request, backend.store, backend.settings, purpose)
        check_wish_on(dataset, spec, backend.settings, references)
        return await ask_oneshot(request, backend, dataset.id, spec, dataset.n, compress)


async def ask_oneshot(
    request: Request, backend: Backend, dataset_id: str, spec: Wish, rows: int, compress: Coding | None
) -> Response:
    """Ask for a graph, wait, and return its arrays; 202 when it takes longer than `oneshot_wait_s`.

    rows: of its arrays. Raises NothingAcceptable before anything is asked for.
    """
    accept, most = request.headers.get("accept"), backend.settings.max_json_bytes
    # Neighbors, distances, and the order of a Vecchia graph, or the offsets of a radius graph, of which no more is known yet.
    media = choose_sized_format(accept, ANSWER_FORMATS, rows * (2 * spec.k + 1), most)
    record = await _wait(await backend.ask_graph(dataset_id, spec), backend, request)
    if record.state not in TERMINAL:
        return await graph_answer(record, backend)
    if record.state != "ready":
        raise _failure(record)
    location = link(f"/v1/graphs/{record.id}")
    if media == JSON:
        media = choose_sized_format(accept, ANSWER_FORMATS, graph_numbers(record), most)
    if media in GRAPH_FORMATS:
        return await stream_answer(
            request, graph_body(backend.store, record, media), f"{location}/arrays", compress=compress
        )
    info = record.arrays["neighbors"]
    body = array_body(array_stream(backend.store, record.id, info), media, info.etag)
    return await stream_answer(request, body, f"{location}/neighbors", compress=compress)


async def _wait(record: GraphRecord, backend: Backend, request: Request) -> GraphRecord:
    """Wait up to `oneshot_wait_s` seconds; raises NotReady once nobody is there who could build the graph."""
    deadline = time.monotonic() + backend.settings.oneshot_wait_s
    while record.state not in TERMINAL and not backend.stopping.is_set():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        record = await backend.wait_graph(record, min(left_s, _LOOK_S), request)
        if record.state not in TERMINAL and not await backend.store.workers():
            raise NotReady(
                f"no worker is running, start one with `pcct work`; graph {record.id} stays queued until then"
            )
    return record


def _failure(record: GraphRecord) -> Exception:
    """Return the exception for a job that ended without a graph; what the job says of the input stays a 422."""
    error = record.error or {}
    detail = str(error.get("detail", ""))
    if record.state == "cancelled":
        return GraphFailed(record.id, "cancelled", detail)
    if error.get("type") == "invalid-points":
        return InvalidPoints(detail, error.get("row"))
    if error.get("type") == "invalid-spec":
        return InvalidSpec(detail, str(error.get("field", "spec")))
    return BuildFailed(f"graph {record.id} failed: {detail}; ask again to try again")
