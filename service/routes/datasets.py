"""/v1/datasets: point arrays, named by their content."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from service.answers import has_tag
from service.backend import InBackend
from service.intake import receive_points
from service.prefix import link
from service.wire import ARROW, JSON, NPY, RAW, SAFETENSORS
from worker.store import Dataset, UnknownDataset

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

ARRAY_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A float32 or float64 array (n, d), or one of float16, whole numbers or bool, which becomes float64: "
        "a .npy file, "
        "raw little-endian numbers with ?dtype=&shape=, "
        "a safetensors file (?tensor=NAME where it has several), a small JSON list of rows, or, with the extra arrow, an Arrow "
        "stream of one column of fixed-size lists or of one column per dimension. As it is, or compressed with "
        "`Content-Encoding: zstd` or `gzip`; limits and id are those of what comes out.",
        "content": {
            NPY: {"schema": {"type": "string", "format": "binary"}},
            RAW: {"schema": {"type": "string", "format": "binary"}},
            SAFETENSORS: {"schema": {"type": "string", "format": "binary"}},
            ARROW: {"schema": {"type": "string", "format": "binary"}},
            JSON: {"schema": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}},
        },
    }
}


class RawQuery(BaseModel):
    """How raw numbers (application/octet-stream) are to be read, and which tensor of a safetensors file."""

    model_config = ConfigDict(extra="forbid")

    dtype: str | None = None
    shape: str | None = None
    tensor: str | None = None


class DatasetBody(BaseModel):
    """A dataset; its id is the SHA-256 of the array as np.save writes it (C order, little-endian)."""

    id: str
    n: int
    d: int
    dtype: str
    bytes: int

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetBody:
        """Return the body for a stored dataset."""
        return cls(id=dataset.id, n=dataset.n, d=dataset.d, dtype=dataset.dtype, bytes=dataset.bytes)


@router.post("", status_code=201, openapi_extra=ARRAY_BODY, responses={200: {"description": "It was known already"}})
async def create_dataset(
    request: Request, response: Response, backend: InBackend, query: Annotated[RawQuery, Query()]
) -> DatasetBody:
    """Upload an array; 201, or 200 when it was known."""
    dataset, created = await receive_points(request, backend.store, backend.settings)
    response.status_code = 201 if created else 200
    response.headers["Location"] = link(f"/v1/datasets/{dataset.id}")
    return DatasetBody.of(dataset)


@router.head("/{dataset_id}", include_in_schema=False)
@router.get(
    "/{dataset_id}", response_model=DatasetBody, responses={304: {"description": "It is there, and never changes"}}
)
async def read_dataset(dataset_id: str, request: Request, backend: InBackend) -> Response:
    """Describe a dataset; HEAD tells whether an upload can be skipped."""
    dataset = await find_dataset(dataset_id, backend)
    # What it says never changes, but whether it is there does.
    headers = {"ETag": f'"{dataset_id}"', "Cache-Control": "private, no-cache"}
    if has_tag(request.headers.get("if-none-match"), dataset_id):
        return Response(status_code=304, headers=headers)
    return JSONResponse(DatasetBody.of(dataset).model_dump(), headers=headers)


@router.delete("/{dataset_id}", status_code=204)
async def delete_dataset(dataset_id: str, backend: InBackend) -> None:
    """Remove a dataset; graphs already made from it stay."""
    await find_dataset(dataset_id, backend)
    await backend.store.delete_dataset(dataset_id)


def is_content_id(text: str) -> bool:
    """Return True for a SHA-256 in lower-case hex; nothing else may become part of a key."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


async def find_dataset(dataset_id: str, backend: InBackend) -> Dataset:
    """Return the dataset; raises UnknownDataset."""
    dataset = await backend.store.dataset(dataset_id) if is_content_id(dataset_id) else None
    if dataset is None:
        raise UnknownDataset(dataset_id)
    return dataset
