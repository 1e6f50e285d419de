import json

import numpy as np
import pytest

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((31, 2))


@pytest.mark.parametrize("path", ["/v1/graphs", "/v1/tracks", f"/v1/tracks/{'0' * 32}/refresh"])
@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-Type": "text/xml"}, "Content-Type text/xml is not read here; send JSON"),
        ({"Content-Type": "text/plain;charset=UTF-8"}, "Content-Type text/plain is not read here; send JSON"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "Content-Encoding gzip is not read here"),
    ],
)
async def test_json_calls_refuse_what_says_that_it_is_something_else(service, path, headers, said):
    answer = await service.client.post(path, content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["type"] == "/problems/unsupported-body"
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "Application/JSON; charset=utf-8", "Content-Encoding": "identity"},
        {"Content-Type": "application/vnd.api+json"},
    ],
)
async def test_json_calls_take_json_and_what_nobody_declared(service, headers):
    wish = json.dumps({"dataset": await service.upload(POINTS), "spec": {"k": 3}}).encode()
    answer = await service.client.post("/v1/graphs", content=wish, headers={**headers, "Prefer": "wait=20"})
    assert answer.status_code == 200


async def test_parameters_that_would_be_ignored_are_refused(service):
    graph = await service.graph(POINTS, k=3)
    dataset = await service.upload(POINTS)
    for method, path, field in [
        ("GET", f"/v1/graphs/{graph}/neighbors?rows=0:5&rows=1:2", "rows"),
        ("GET", f"/v1/graphs/{graph}/neighbors?k=2&k=2", "k"),
        ("POST", "/v1/knn?k=3&k=4", "k"),
        ("GET", f"/v1/graphs/{graph}/arrays?rows=0:5", "rows"),
        ("GET", f"/v1/graphs/{graph}?foo=", "foo"),
        ("DELETE", f"/v1/datasets/{dataset}?dry_run=1", "dry_run"),
        ("POST", "/v1/graphs?wait=3", "wait"),
    ]:
        answer = await service.client.request(method, path)
        assert answer.status_code == 422, path
        assert answer.json()["type"] == "/problems/invalid-parameter"
        assert answer.json()["field"] == field
    assert (await service.client.get(f"/v1/datasets/{dataset}")).status_code == 200


async def test_an_accept_of_nothing_is_none(service):
    graph = await service.graph(POINTS, k=3)
    answer = await service.client.get(f"/v1/graphs/{graph}/neighbors", headers={"Accept": " , ,"})
    assert answer.headers["content-type"] == "application/x-npy"


async def test_a_misspelt_name_is_told_what_to_do(service):
    for answer in (
        await service.client.get(f"/v1/graphs/{await service.graph(POINTS, k=3)}/neighbors?K=2"),
        await service.client.post("/v1/graphs", json={"dataset": "x", "spec": {}, "K": 2}),
    ):
        assert (answer.status_code, answer.json()["field"]) == (422, "K")
        assert answer.json()["detail"].startswith("K: there is nothing of this name here; correct it or leave it out")
