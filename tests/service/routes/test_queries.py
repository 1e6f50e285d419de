import io
import json

import numpy as np
import pytest

from tests.service.conftest import as_npy

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((50, 2))
QUERIES = np.random.default_rng(1).random((7, 2))


def nearest(k):
    distances = np.sqrt(((QUERIES[:, None] - POINTS) ** 2).sum(-1))
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


async def test_query_answers_neighbors_and_distances(service):
    dataset = await service.upload(POINTS)
    answer = await service.client.post(f"/v1/datasets/{dataset}/query?k=4", content=as_npy(QUERIES))
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
        assert arrays["neighbors"].dtype == np.int32
        assert np.array_equal(arrays["neighbors"], nearest(4))
        assert arrays["distances"].shape == (7, 4)
    same = await service.client.get(answer.headers["content-location"])
    assert same.content == answer.content
    assert service.gate.builds == []


async def test_query_answers_the_neighbors_alone_as_npy(service):
    dataset = await service.upload(POINTS)
    url = f"/v1/datasets/{dataset}/query?k=50"
    answer = await service.client.post(url, content=as_npy(QUERIES), headers={"Accept": "application/x-npy"})
    assert np.array_equal(np.load(io.BytesIO(answer.content)), nearest(50))


@pytest.mark.parametrize("form", ["json", "raw"])
async def test_query_reads_every_format_and_is_answered_once(service, form):
    dataset = await service.upload(POINTS)
    url = f"/v1/datasets/{dataset}/query?k=4"
    first = await service.client.post(url, content=as_npy(QUERIES))
    if form == "json":
        second = await service.client.post(url, json=QUERIES.tolist())
    else:
        media = {"Content-Type": "application/octet-stream"}
        second = await service.client.post(f"{url}&dtype=float64&shape=7,2", content=QUERIES.tobytes(), headers=media)
    assert second.content == first.content
    assert second.headers["content-location"] == first.headers["content-location"]


async def test_query_is_a_graph_of_its_own_kind(service):
    dataset, queries = await service.upload(POINTS), await service.upload(QUERIES)
    asked = await service.ask(dataset, kind="query", queries=queries, k=4)
    assert asked.status_code == 200, asked.text
    assert asked.json()["spec"]["queries"] == queries
    assert asked.json()["certificate"]["exact"]
    answer = await service.client.post(f"/v1/datasets/{dataset}/query?k=4", content=as_npy(QUERIES))
    assert answer.headers["content-location"] == f"/v1/graphs/{asked.json()['id']}/arrays"


async def test_query_takes_a_residual_metric_as_json(service):
    dataset, inducing = await service.upload(POINTS), await service.upload(POINTS[:9])
    metric = {"type": "residual", "kernel": "matern52", "lengthscale": 0.3, "inducing": {"dataset": inducing}}
    url = f"/v1/datasets/{dataset}/query"
    answer = await service.client.post(
        url,
        params={"k": 5, "metric": json.dumps(metric)},
        content=as_npy(QUERIES),
        headers={"Accept": "application/x-npy"},
    )
    assert answer.status_code == 200, answer.text
    from pcct_core import CoverTree, Matern52, Residual

    expected = CoverTree.fit(POINTS, Residual(Matern52(0.3), POINTS[:9])).query(QUERIES, 5)
    assert np.array_equal(np.load(io.BytesIO(answer.content)), expected.neighbors)


ABSENT = {"type": "residual", "kernel": "rbf", "inducing": {"dataset": "a" * 64}}
FACTORS = {"type": "residual", "kernel": "rbf", "v": "a" * 64, "p": "a" * 64}

BAD = {
    "k = 0": ("k=0", QUERIES, 422, "invalid-spec", "field", "k"),
    "k > n": ("k=51", QUERIES, 422, "invalid-spec", "field", "k"),
    "columns": ("k=3", np.ones((4, 3)), 422, "invalid-points", "row", None),
    "nan": ("k=3", np.array([[0, 0], [0, np.nan]]), 422, "invalid-points", "row", 1),
    "metric": ("metric=manhattan", QUERIES, 422, "invalid-spec", "field", "metric.type"),
    "metric json": ("metric={", QUERIES, 422, "invalid-parameter", "field", "metric"),
    "latitude": ("k=1&metric=haversine", np.array([[0, 0], [0, 91.0]]), 422, "invalid-points", "row", 1),
    "zero row": ("k=1&metric=cosine", np.array([[1, 0], [0, 0.0]]), 422, "invalid-points", "row", 1),
    "inducing": (f"metric={json.dumps(ABSENT)}", QUERIES, 404, "unknown-dataset", "row", None),
    "order": ("order=maximin", QUERIES, 422, "invalid-request", "field", "order"),
}


@pytest.mark.parametrize("name", BAD)
async def test_query_names_the_fault_and_keeps_nothing(service, redis, name):
    parameters, queries, status, slug, member, value = BAD[name]
    dataset = await service.upload(POINTS)
    before = await redis.keys("pcct:[ns]*")
    answer = await service.client.post(f"/v1/datasets/{dataset}/query?{parameters}", content=as_npy(queries))
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"/problems/{slug}"
    assert value is None or answer.json()[member] == value
    assert sorted(await redis.keys("pcct:[ns]*")) == sorted(before)


async def test_query_refuses_a_dataset_that_the_metric_is_not_defined_on(service):
    dataset = await service.upload(np.array([[0.0, 0.0], [1.0, 91.0]]))
    answer = await service.client.post(f"/v1/datasets/{dataset}/query?k=1&metric=haversine", content=as_npy(QUERIES))
    assert answer.status_code == 422
    assert answer.json()["row"] == 1


async def test_query_refuses_given_factors(service):
    dataset, factors = await service.upload(POINTS), await service.upload(np.ones((50, 1)))
    metric = FACTORS | {"v": factors, "p": factors}
    url = f"/v1/datasets/{dataset}/query"
    answer = await service.client.post(url, params={"k": 2, "metric": json.dumps(metric)}, content=as_npy(QUERIES))
    assert answer.status_code == 422
    assert "new points" in answer.json()["detail"]


@pytest.mark.parametrize("dataset", ["0" * 64, "x"])
async def test_query_of_an_unknown_dataset_is_not_found(service, dataset):
    answer = await service.client.post(f"/v1/datasets/{dataset}/query?k=1", content=as_npy(QUERIES))
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/unknown-dataset"


async def test_request_of_a_query_without_its_queries_is_not_found(service):
    answer = await service.ask(await service.upload(POINTS), kind="query", queries="b" * 64, k=2)
    assert answer.status_code == 404
