import io

import numpy as np
import pytest

from tests import naive
from tests.service.conftest import as_npy

pytestmark = pytest.mark.anyio

GRID = np.stack(np.meshgrid(np.arange(7.0), np.arange(6.0)), -1).reshape(-1, 2)
N = len(GRID)


def expected(radius, points=GRID):
    starts, neighbors, distances = naive.radius(points, points, radius)
    others = neighbors != np.repeat(np.arange(len(points)), np.diff(starts))
    return {"offsets": starts - np.arange(len(starts)), "neighbors": neighbors[others], "distances": distances[others]}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert np.array_equal(found[name], array), name


def npz(content):
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


async def read(service, graph, name, query="", accept="application/x-npy"):
    answer = await service.client.get(f"/v1/graphs/{graph}/{name}{query}", headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("radius", [0, 1, 2, np.sqrt(5), 100])
async def test_radius_answers_all_arrays(service, radius):
    answer = await service.client.post(f"/v1/radius?radius={radius}", content=as_npy(GRID))
    assert answer.status_code == 200, answer.text
    same(npz(answer.content), expected(radius))
    again = await service.client.get(answer.headers["content-location"])
    assert again.content == answer.content


async def test_radius_zero_answers_the_duplicates(service):
    points = np.repeat(GRID[:5], 2, axis=0)
    answer = await service.client.post("/v1/radius?radius=0", content=as_npy(points))
    assert npz(answer.content)["neighbors"].tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]


async def test_radius_of_one_point_is_empty(service):
    for accept in ("application/x-npz", "application/json", "application/x-safetensors"):
        answer = await service.client.post("/v1/radius?radius=1", content=as_npy(GRID[:1]), headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        if accept == "application/json":
            assert answer.json() == {"neighbors": [], "distances": [], "offsets": [0, 0]}
        if accept == "application/x-npz":
            assert npz(answer.content)["offsets"].tolist() == [0, 0]


async def test_radius_answers_every_format(service):
    wanted = expected(2)
    graph = await service.graph(GRID, kind="radius", radius=2)
    from safetensors.numpy import load

    tensors = await service.client.get(f"/v1/graphs/{graph}/arrays", headers={"Accept": "application/x-safetensors"})
    same(load(tensors.content), wanted)
    listed = await service.client.get(f"/v1/graphs/{graph}/arrays", headers={"Accept": "application/json"})
    assert listed.json() == {name: array.tolist() for name, array in wanted.items()}
    for name, array in wanted.items():
        raw = await read(service, graph, name, accept="application/octet-stream")
        assert raw.content == array.tobytes()
        assert raw.headers["array-dtype"] == array.dtype.name
        assert raw.headers["array-shape"] == str(len(array))
        assert np.array_equal(np.load(io.BytesIO((await read(service, graph, name)).content)), array)
    alone = await service.client.post(
        "/v1/radius?radius=2", content=as_npy(GRID), headers={"Accept": "application/x-npy"}
    )
    assert np.array_equal(np.load(io.BytesIO(alone.content)), wanted["neighbors"])


@pytest.mark.parametrize("rows", ["0:42", "0:1", "3:20", "20:", ":5", "41:99"])
async def test_rows_of_a_radius_graph_are_a_graph_of_these_rows(rows, start_service):
    # Small chunks, so that rows and offsets lie in several of them.
    async with start_service(chunk_bytes=1024) as service:
        graph = await service.graph(GRID, kind="radius", radius=3)
        start, _, stop = rows.partition(":")
        start, stop = int(start or 0), min(int(stop or N), N)
        parts = {
            name: np.load(io.BytesIO((await read(service, graph, name, f"?rows={rows}")).content))
            for name in ("offsets", "neighbors", "distances")
        }
        whole = expected(3)
        first, last = whole["offsets"][start], whole["offsets"][stop]
        same(
            parts,
            {
                "offsets": whole["offsets"][start : stop + 1] - first,
                "neighbors": whole["neighbors"][first:last],
                "distances": whole["distances"][first:last],
            },
        )


async def test_rows_of_a_radius_graph_have_a_tag_of_their_own(service):
    graph = await service.graph(GRID, kind="radius", radius=1)
    tags = {(await read(service, graph, "offsets", query)).headers["etag"] for query in ("", "?rows=0:42", "?rows=1:9")}
    assert len(tags) == 2
    again = await service.client.get(
        f"/v1/graphs/{graph}/offsets?rows=1:9", headers={"If-None-Match": sorted(tags)[0] + "," + sorted(tags)[1]}
    )
    assert again.status_code == 304


@pytest.mark.parametrize("name", ["neighbors", "distances", "offsets"])
async def test_a_radius_graph_has_no_k_nearest(service, name):
    graph = await service.graph(GRID, kind="radius", radius=1)
    answer = await service.client.get(f"/v1/graphs/{graph}/{name}?k=2")
    assert answer.status_code == 422
    assert answer.json()["field"] == "k"
    assert "within the radius" in answer.json()["detail"]


async def test_rows_behind_a_radius_graph_are_refused(service):
    graph = await service.graph(GRID, kind="radius", radius=1)
    answer = await service.client.get(f"/v1/graphs/{graph}/offsets?rows={N}:")
    assert answer.status_code == 422
    assert f"a < {N}" in answer.json()["detail"]


async def test_a_graph_without_a_radius_has_no_offsets(service):
    graph = await service.graph(GRID, kind="knn", k=3)
    assert (await service.client.get(f"/v1/graphs/{graph}/offsets")).status_code == 404


async def test_the_same_radius_is_one_graph(service):
    dataset = await service.upload(GRID)
    ids = {(await service.ask(dataset, kind="radius", radius=radius)).json()["id"] for radius in (1, 1.0)}
    assert len(ids) == 1
    described = (await service.client.get(f"/v1/graphs/{ids.pop()}")).json()
    assert described["spec"] == {
        "kind": "radius",
        "radius": 1.0,
        "metric": {"type": "euclidean"},
        "accuracy": "exact",
    }
    assert described["certificate"]["method"] == "tree"
    assert described["arrays"]["offsets"]["shape"] == [N + 1]
    assert described["telemetry"]["counts"]["pairs"] == described["arrays"]["neighbors"]["shape"][0]


BAD = {
    "radius=nan": ("invalid-spec", "radius"),
    "radius=-1": ("invalid-spec", "radius"),
    "radius=inf": ("invalid-spec", "radius"),
    "radius=1e999": ("invalid-spec", "radius"),
    "radius=x": ("invalid-request", "radius"),
    "": ("invalid-request", "radius"),
    "radius=1&k=3": ("invalid-request", "k"),
    "radius=1&metric=manhattan": ("invalid-spec", "metric.type"),
    'radius=1&metric={"type":"residual","kernel":"rbf"}': ("invalid-spec", "metric.type"),
}


@pytest.mark.parametrize("query", BAD)
async def test_radius_names_the_fault(service, query):
    slug, field = BAD[query]
    answer = await service.client.post(f"/v1/radius?{query}", content=as_npy(GRID))
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == f"/problems/{slug}"
    assert answer.json()["field"] == field


@pytest.mark.parametrize("radius", ["NaN", "-1", "Infinity", "1e999", '"1"', "null"])
async def test_a_specification_with_a_bad_radius_is_refused(service, radius):
    dataset = await service.upload(GRID)
    body = f'{{"dataset": "{dataset}", "spec": {{"kind": "radius", "radius": {radius}}}}}'
    answer = await service.client.post("/v1/graphs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "radius"


async def test_too_many_neighbors_are_refused_with_a_radius_that_fits(start_service):
    async with start_service(max_graph_bytes=12 * 500) as service:
        answer = await service.client.post("/v1/radius?radius=100", content=as_npy(GRID))
        assert answer.status_code == 422
        assert answer.json()["field"] == "radius"
        assert "1,722 pairs, 41 neighbors per row" in answer.json()["detail"]


async def test_json_of_too_many_neighbors_is_not_acceptable(start_service):
    async with start_service(max_json_bytes=28 * 200) as service:
        answer = await service.client.post(
            "/v1/radius?radius=100", content=as_npy(GRID), headers={"Accept": "application/json"}
        )
        assert answer.status_code == 406
        assert "too many for JSON" in answer.json()["detail"]


QUERIES = GRID[::4] + np.array([0.5, 0.0])


async def test_query_within_a_radius_answers_offsets_too(service):
    dataset = await service.upload(GRID)
    answer = await service.client.post(f"/v1/datasets/{dataset}/query?radius=1.5", content=as_npy(QUERIES))
    assert answer.status_code == 200, answer.text
    same(
        npz(answer.content),
        dict(zip(("offsets", "neighbors", "distances"), naive.radius(GRID, QUERIES, 1.5), strict=True)),
    )
    itself = await service.client.post(f"/v1/datasets/{dataset}/query?radius=0", content=as_npy(GRID[3:9]))
    assert npz(itself.content)["neighbors"].tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("query", "field"),
    [("radius=1&k=2", "k"), ("radius=nan", "radius"), ("radius=-1", "radius"), ("radius=inf", "radius")],
)
async def test_query_names_a_bad_radius(service, query, field):
    dataset = await service.upload(GRID)
    answer = await service.client.post(f"/v1/datasets/{dataset}/query?{query}", content=as_npy(QUERIES))
    assert answer.status_code == 422
    assert answer.json()["field"] == field
