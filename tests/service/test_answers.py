import io
import json

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((31, 2)).astype(np.float32)


@pytest.fixture
async def graph(service):
    """The path of a Vecchia graph; its first rows lack neighbors, and an odd number of entries tempts alignment."""
    return f"/v1/graphs/{await service.graph(POINTS, kind='vecchia', k=3, order='given')}"


async def fetch(service, url, media, **headers):
    answer = await service.client.get(url, headers={"Accept": media, **headers})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == media
    return answer


async def load(service, url):
    return np.load(io.BytesIO((await fetch(service, url, "application/x-npy")).content))


@pytest.mark.parametrize("name", ["neighbors", "distances", "order"])
@pytest.mark.parametrize("part", ["", "?rows=3:9"])
async def test_raw_numbers_say_their_type_and_shape(service, graph, name, part):
    expected = await load(service, f"{graph}/{name}{part}")
    answer = await fetch(service, f"{graph}/{name}{part}", "application/octet-stream")
    shape = tuple(map(int, answer.headers["array-shape"].split(",")))
    array = np.frombuffer(answer.content, answer.headers["array-dtype"]).reshape(shape)
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)
    assert int(answer.headers["content-length"]) == expected.nbytes


@pytest.mark.parametrize("name", ["neighbors", "distances", "order"])
async def test_json_lists_hold_every_digit(service, graph, name):
    expected = await load(service, f"{graph}/{name}")
    rows = (await fetch(service, f"{graph}/{name}", "application/json")).json()
    array = np.array(rows, dtype=object)
    assert (array == None).sum() == (np.isinf(expected) if expected.dtype.kind == "f" else np.zeros(1)).sum()  # noqa: E711
    array[array == None] = np.inf  # noqa: E711
    np.testing.assert_array_equal(array.astype(expected.dtype), expected)


async def test_json_goes_over_chunks(start_service):
    async with start_service(chunk_bytes=1024) as service:
        points = np.random.default_rng(1).random((400, 2))
        url = f"/v1/graphs/{await service.graph(points, k=4)}/neighbors"
        expected = await load(service, url)
        np.testing.assert_array_equal((await fetch(service, url, "application/json")).json(), expected)


async def test_arrays_come_as_safetensors(service, graph):
    answer = await fetch(service, f"{graph}/arrays", "application/x-safetensors")
    assert int(answer.headers["content-length"]) == len(answer.content)
    arrays = load_safetensors(answer.content)
    assert set(arrays) == {"neighbors", "distances", "order"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, await load(service, f"{graph}/{name}"))
    length = int.from_bytes(answer.content[:8], "little")
    for entry in json.loads(answer.content[8 : 8 + length]).values():
        assert (8 + length + entry["data_offsets"][0]) % (int(entry["dtype"][1:]) // 8) == 0, "aligned when mapped"


async def test_arrays_come_as_json(service, graph):
    arrays = (await fetch(service, f"{graph}/arrays", "application/json")).json()
    assert arrays["order"] == list(range(31))
    assert arrays["neighbors"][:2] == [[-1, -1, -1], [0, -1, -1]]
    assert arrays["distances"][0] == [None, None, None]


async def test_formats_have_entity_tags_of_their_own(service, graph):
    tags = set()
    for url, media in [
        ("neighbors", "application/x-npy"),
        ("neighbors", "application/octet-stream"),
        ("neighbors", "application/json"),
        ("arrays", "application/x-npz"),
        ("arrays", "application/x-safetensors"),
        ("arrays", "application/json"),
    ]:
        tag = (await fetch(service, f"{graph}/{url}", media)).headers["etag"]
        headers = {"Accept": media, "If-None-Match": tag}
        assert (await service.client.get(f"{graph}/{url}", headers=headers)).status_code == 304
        tags.add(tag)
    assert len(tags) == 6


async def test_json_that_is_too_large_says_what_to_ask_for(start_service):
    async with start_service(max_json_bytes=1000) as service:
        url = f"/v1/graphs/{await service.graph(POINTS, k=3)}"
        refused = await service.client.get(f"{url}/neighbors", headers={"Accept": "application/json"})
        assert refused.status_code == 406
        assert refused.json()["type"] == "/problems/not-acceptable"
        assert "application/x-npy" in refused.json()["detail"]
        assert "rows=" in refused.json()["detail"]
        await fetch(service, f"{url}/neighbors?rows=0:10", "application/json")
        either = await service.client.get(f"{url}/arrays", headers={"Accept": "application/json, */*;q=0.1"})
        assert either.headers["content-type"] == "application/x-npz"


@pytest.mark.parametrize("path", ["neighbors", "arrays"])
async def test_formats_that_are_not_written_are_refused_with_those_that_are(service, graph, path):
    refused = await service.client.get(f"{graph}/{path}", headers={"Accept": "text/csv"})
    assert refused.status_code == 406
    for media in ("application/json", "application/x-np"):
        assert media in refused.json()["detail"]


@pytest.mark.parametrize("media", ["application/x-safetensors", "application/json", "application/octet-stream"])
async def test_oneshot_answers_in_every_format(service, media):
    answer = await service.client.post("/v1/knn?k=3", json=POINTS.tolist(), headers={"Accept": media})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == media
    same = await fetch(service, answer.headers["content-location"], media)
    assert same.content == answer.content


async def test_oneshot_refuses_json_that_is_too_large_before_it_builds(start_service):
    async with start_service(max_json_bytes=1000) as service:
        body = POINTS.tobytes()
        headers = {"Accept": "application/json", "Content-Type": "application/octet-stream"}
        answer = await service.client.post("/v1/knn?k=3&dtype=float32&shape=31,2", content=body, headers=headers)
        assert answer.status_code == 406
        assert service.gate.builds == []
