"""/v1/datasets/{id}/query: the neighbors, in a dataset, of points that come with the request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.backend import InBackend
from service.intake import Purpose, check_queries, check_query_between, check_query_on, receive_points
from service.routes.datasets import ARRAY_BODY, find_dataset
from service.routes.oneshot import ANSWER_FORMATS, ANSWERS, KnnQuery, ask_oneshot
from service.wire import choose_format
from worker.query import QuerySpec, metric_references

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.post("/{dataset_id}/query", openapi_extra=ARRAY_BODY, responses=ANSWERS)
async def query_dataset(
    dataset_id: str, request: Request, backend: InBackend, query: Annotated[KnnQuery, Query()]
) -> Response:
    """Return the k nearest rows of the dataset for every row of the body, exactly; a row that is in it finds itself."""
    choose_format(request.headers.get("accept"), ANSWER_FORMATS)
    wanted = query.spec()
    asked = await find_dataset(dataset_id, backend)
    for reference in metric_references(wanted.metric):
        await find_dataset(reference, backend)
    check_query_on(asked, wanted.k, wanted.metric)
    purpose = Purpose(wanted.metric, lambda n, d: check_queries(n, d, asked, wanted.k, backend.settings))
    queries, _ = await receive_points(request, backend.store, backend.settings, purpose)
    spec = QuerySpec(queries.id, wanted.k, wanted.metric)
    check_query_between(asked, queries, spec, backend.settings)
    return await ask_oneshot(request, backend, dataset_id, spec, queries.n)
