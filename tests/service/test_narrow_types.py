"""Half floats, whole numbers and booleans: float64 in every format, as the library takes them, under one id."""

import io
import json

import numpy as np
import pytest

from pcct_core.errors import InvalidPoints
from pcct_core.points import as_points
from service.wire import ARROW, NPY, RAW, SAFETENSORS

pytestmark = pytest.mark.anyio

ARRAYS = {
    "float16": np.array([[0.1, 65504.0], [6e-8, -2.5], [3.0, 0.0]], np.float16),
    "bool": np.array([[True, False], [False, False], [True, True]]),
    "int8": np.array([[-128, 127], [0, 1], [2, 3]], np.int8),
    "int16": np.array([[-(1 << 15), 5], [0, 1], [2, 3]], np.int16),
    "int32": np.array([[-(1 << 31), 5], [0, 1], [2, 3]], np.int32),
    "int64": np.array([[-(1 << 63), 1 << 53], [3 << 60, 1], [2, 3]], np.int64),
    "uint8": np.array([[255, 127], [0, 1], [2, 3]], np.uint8),
    "uint16": np.array([[65535, 5], [0, 1], [2, 3]], np.uint16),
    "uint32": np.array([[(1 << 32) - 1, 5], [0, 1], [2, 3]], np.uint32),
    "uint64": np.array([[1 << 63, 1 << 53], [3 << 62, 1], [2, 3]], np.uint64),
}


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def safetensors(array):
    kind = {"b": "BOOL"}.get(array.dtype.kind, f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}")
    head = json.dumps({"X": {"dtype": kind, "shape": array.shape, "data_offsets": [0, array.nbytes]}}).encode()
    return len(head).to_bytes(8, "little") + head + array.tobytes()


def arrow(array, columns):
    pa = pytest.importorskip("pyarrow")
    if columns:
        table = pa.table({str(column): array[:, column] for column in range(array.shape[1])})
    else:
        table = pa.table({"X": pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


BODIES = {
    "npy": lambda X: (NPY, "", npy(X)),
    "npy of the other byte order": lambda X: (NPY, "", npy(X.astype(X.dtype.newbyteorder(">")))),
    "npy in Fortran order": lambda X: (NPY, "", npy(np.asfortranarray(X))),
    "raw": lambda X: (RAW, f"?dtype={X.dtype.name}&shape=3,2", X.tobytes()),
    "safetensors": lambda X: (SAFETENSORS, "", safetensors(X)),
    "arrow columns": lambda X: (ARROW, "", arrow(X, True)),
    "arrow lists": lambda X: (ARROW, "", arrow(X, False)),
}


@pytest.mark.parametrize("name", ARRAYS)
async def test_narrow_types_are_the_float64_points_of_the_library_in_every_format(start_service, name):
    points = as_points(ARRAYS[name])
    assert points.dtype == np.float64
    async with start_service(worker=False) as service:
        expected = await service.upload(points)
        for form, make in BODIES.items():
            media, query, body = make(ARRAYS[name])
            answer = await service.client.post(f"/v1/datasets{query}", content=body, headers={"Content-Type": media})
            assert answer.status_code == 200, (form, answer.text)
            assert (answer.json()["id"], answer.json()["dtype"], answer.json()["n"]) == (expected, "float64", 3), form


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
async def test_whole_numbers_that_float64_rounds_are_refused_with_the_advice_of_the_library(start_service, dtype):
    X = np.zeros((70_000, 2), dtype)  # more than one block of rows
    X[:, 1] = 1 << 60
    X[69_000, 1] += 1
    with pytest.raises(InvalidPoints) as library:
        as_points(X)
    async with start_service(worker=False) as service:
        for form, make in BODIES.items():
            media, query, body = make(X)
            query = query.replace("shape=3,2", "shape=70000,2")
            answer = await service.client.post(f"/v1/datasets{query}", content=body, headers={"Content-Type": media})
            assert answer.status_code == 422, (form, answer.text)
            assert (answer.json()["row"], answer.json()["detail"]) == (69_000, str(library.value)), form


async def test_a_narrow_array_is_held_to_the_limit_of_what_it_becomes(start_service):
    async with start_service(worker=False, max_body_bytes=100) as service:
        narrow = await service.client.post("/v1/datasets", content=npy(np.zeros((7, 2), np.float16)))
        assert narrow.status_code == 413
        assert "array of float64 has 112 bytes, the limit is 100" in narrow.json()["detail"]
