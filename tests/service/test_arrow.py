import io

import numpy as np
import pyarrow as pa
import pytest

from service import arrow, wire

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((31, 3))


@pytest.mark.parametrize("chunk_bytes", [1024, 1 << 20])
@pytest.mark.parametrize("kind", ["knn", "vecchia"])
async def test_graphs_come_as_tables(start_service, chunk_bytes, kind):
    async with start_service(chunk_bytes=chunk_bytes) as service:
        points = np.random.default_rng(2).random((300, 2))
        spec = {"kind": kind, "k": 4} | ({"order": "given"} if kind == "vecchia" else {})
        graph = f"/v1/graphs/{await service.graph(points, **spec)}"
        answer = await service.client.get(f"{graph}/arrays", headers={"Accept": wire.ARROW})
        assert answer.headers["content-type"] == wire.ARROW
        table = pa.ipc.open_stream(answer.content).read_all()
        arrays = np.load(io.BytesIO((await service.client.get(f"{graph}/arrays")).content))
        assert table.column_names == list(arrays.files)
        for name in arrays.files:
            read = np.array(table[name].to_pylist(), arrays[name].dtype)
            np.testing.assert_array_equal(read, arrays[name])
        part = await service.client.get(f"{graph}/neighbors?rows=3:9&k=2", headers={"Accept": wire.ARROW})
        column = pa.ipc.open_stream(part.content).read_all()["neighbors"]
        assert column.type == pa.list_(pa.int32(), 2)
        np.testing.assert_array_equal(column.to_pylist(), arrays["neighbors"][3:9, :2])


async def test_streams_are_not_read(service):
    answer = await service.client.post("/v1/datasets", content=b"x", headers={"Content-Type": wire.ARROW})
    assert answer.status_code == 415
    assert "only written" in answer.json()["detail"]


async def test_without_pyarrow_the_extra_is_named(service, monkeypatch):
    graph = await service.graph(POINTS, k=3)
    monkeypatch.setattr(arrow, "find_spec", lambda name: None)
    asked = await service.client.get(f"/v1/graphs/{graph}/neighbors", headers={"Accept": wire.ARROW})
    assert asked.status_code == 406
    assert "pcct[arrow]" in asked.json()["detail"]
