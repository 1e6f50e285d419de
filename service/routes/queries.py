"""/v1/datasets/{id}/query: the neighbors, in a dataset, of points that come with the request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from pcct_core.spec import DEFAULT_K, GraphSpec, metric_references
from service.backend import InBackend
from service.compression import check_takes
from service.intake import Purpose, check_queries, check_query_between, check_query_on, receive_points
from service.routes.datasets import ARRAY_BODY, find_dataset
from service.routes.oneshot import ANSWER_FORMATS, ANSWERS, MetricQuery, ask_oneshot
from service.wire import InvalidParameter, choose_format
from worker.query import QuerySpec

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


class NeighborsQuery(MetricQuery):
    """What is asked of a dataset, as query parameters: k neighbors, or all within a radius."""

    k: Annotated[int | None, Field(description=f"Neighbors per query; {DEFAULT_K} without a radius")] = None
    radius: Annotated[
        float | None, Field(description="All neighbors within it instead, itself included, in the metric's unit")
    ] = None

    def spec(self) -> GraphSpec:
        """Return k or radius, and the metric, as a graph's; raises InvalidSpec or InvalidParameter."""
        if self.radius is None:
            return GraphSpec.from_json({"k": DEFAULT_K if self.k is None else self.k, "metric": self.metric_json()})
        if self.k is not None:
            raise InvalidParameter("a query has k or a radius, not both; leave one out", "k")
        return GraphSpec.from_json({"kind": "radius", "radius": self.radius, "metric": self.metric_json()})


@router.post("/{dataset_id}/query", openapi_extra=ARRAY_BODY, responses=ANSWERS)
async def query_dataset(
    dataset_id: str, request: Request, backend: InBackend, query: Annotated[NeighborsQuery, Query()]
) -> Response:
    """Return the k nearest rows of the dataset, or all within a radius, for every row of the body, exactly.

    A row that is in the dataset finds itself.
    """
    check_takes(query.compress, request.headers.get("accept-encoding"))
    choose_format(request.headers.get("accept"), ANSWER_FORMATS)
    wanted = query.spec()
    asked = await find_dataset(dataset_id, backend)
    references = [await find_dataset(reference, backend) for reference in metric_references(wanted.metric)]
    check_query_on(asked, wanted.k, wanted.metric)
    purpose = Purpose(wanted.metric, lambda n, d: check_queries(n, d, asked, wanted, backend.settings, references))
    with backend.present("one-shot"):
        queries, _ = await receive_points(request, backend.store, backend.settings, purpose)
        spec = QuerySpec(queries.id, wanted.k, wanted.metric, wanted.radius)
        check_query_between(asked, queries, spec, backend.settings, references)
        return await ask_oneshot(request, backend, dataset_id, spec, queries.n, query.compress)
