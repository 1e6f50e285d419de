"""Arrays of one value a point over HTTP, by the real core: an order of the caller's own, and groups."""

import json
import re

import httpx
import numpy as np
import pytest

import pcct_core as pc
from pcct_client import AsyncClient
from pcct_client.errors import InvalidArray, InvalidRequest
from pcct_core.graph import build_graph

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((60, 2))
ORDER = np.random.default_rng(1).permutation(60)


@pytest.fixture
async def client(service, monkeypatch):
    """A client of the service, whose worker builds for real."""

    def build(gate, X, spec, **options):
        gate.builds.append((len(X), spec))
        return build_graph(X, spec, **options)

    monkeypatch.setattr(type(service.gate), "__call__", build)
    async with AsyncClient("http://test", transport=httpx.ASGITransport(service.app)) as client:
        yield client


def check(graph, expected):
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(getattr(graph, name), array)


async def test_the_client_uploads_an_order_and_names_it(client, service):
    expected = pc.vecchia_graph(POINTS, 5, ORDER)
    graph = await client.vecchia(POINTS, 5, ORDER)
    check(graph, expected)
    assert graph.spec == expected.spec.to_json()  # the same id in the library and over HTTP
    for same in (ORDER.tolist(), ORDER.astype(np.float32), graph.spec["order"]):
        assert (await client.vecchia(POINTS, 5, same)).id == graph.id
    assert (await client.graph(POINTS, {"kind": "vecchia", "k": 5}, order=ORDER)).id == graph.id
    assert len(service.gate.builds) == 1


async def test_a_lost_order_is_brought_again(client, service):
    graph = await client.vecchia(POINTS, 5, ORDER)
    for call in (f"/v1/graphs/{graph.id}", f"/v1/datasets/{graph.spec['order']['dataset']}"):
        await service.client.delete(call)
    assert (await client.vecchia(POINTS, 5, ORDER)).id == graph.id


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (np.arange(60) + 1, "entry 59 of the order is 60.*subtract 1"),
        (np.arange(59), "59 entries for 60 points"),
        (np.zeros(60), "entry 1 of the order is 0, which entry 0 is already"),
    ],
)
async def test_a_bad_order_is_the_callers_fault(client, order, said):
    with pytest.raises(InvalidRequest, match=said) as refused:
        await client.vecchia(POINTS, 5, order)
    assert refused.value.field == "order"


async def test_an_order_of_two_columns_is_refused(client, service):
    with pytest.raises(InvalidArray, match="one value for every point"):
        await client.vecchia(POINTS, 5, np.zeros((60, 2)))
    reference = {"by": "given", "dataset": await client.upload(POINTS)}
    with pytest.raises(InvalidRequest, match="2 columns"):
        await client.vecchia(POINTS, 5, reference)
    answer = await service.ask(await service.upload(POINTS), kind="vecchia", k=5, order=ORDER.tolist())
    assert (answer.status_code, answer.json()["field"]) == (422, "order")
    assert "upload it as a dataset" in answer.json()["detail"]


async def test_a_one_shot_takes_the_name_of_an_order(client, service):
    order = {"by": "given", "dataset": await client.upload(ORDER[:, None].astype(float))}
    points = POINTS.astype("<f8")
    query = {"k": 5, "order": json.dumps(order), "dtype": "float64", "shape": "60,2"}
    answer = await service.client.post(
        "/v1/vecchia", params=query, content=points.tobytes(), headers={"Accept": "application/json"}
    )
    assert answer.json()["order"] == ORDER.tolist()


GROUPS = np.random.default_rng(2).integers(0, 9, 60)


@pytest.mark.parametrize(
    "wish", [{"kind": "knn", "k": 5}, {"kind": "vecchia", "k": 5}, {"kind": "radius", "radius": 0.3}]
)
async def test_graphs_and_tracks_find_neighbors_within_a_group(client, service, wish):
    expected = pc.build_graph(POINTS, {**wish, "groups": GROUPS})
    groups = {"dataset": await client.upload(expected.spec.groups.array)}
    graph = await client.graph(POINTS, {**wish, "groups": groups})
    check(graph, expected)
    assert graph.spec == expected.spec.to_json()  # the same id in the library and over HTTP
    if wish["kind"] != "radius":
        async with client.track(POINTS, **wish, metric="euclidean", groups=groups) as session:
            check(session.graph, expected)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([[0.0]] * 41 + [[1.5]] * 19, r"row 41 of groups is 1\.5"),
        ([[2.0**54]] * 60, "row 0 of groups is 1"),
        ([[0.0]] * 59, "59 entries for 60 points"),
        ([[0.0, 1.0]] * 60, "2 columns"),
    ],
)
async def test_bad_groups_are_refused_before_a_job(client, service, column, said):
    groups = {"dataset": await client.upload(np.array(column))}
    for path, more in (("/v1/graphs", {}), ("/v1/tracks", {"policy": {}})):
        wish = {"dataset": await client.upload(POINTS), "spec": {"kind": "vecchia", "k": 5, "groups": groups}, **more}
        answer = await service.client.post(path, json=wish)
        assert (answer.status_code, answer.json()["field"]) == (422, "groups")
        assert re.search(said, answer.json()["detail"])
    assert service.gate.builds == []
