import numpy as np
import pytest

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((31, 2))
ID = "0" * 64


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/datasets", "POST, OPTIONS"),
        (f"/v1/datasets/{ID}", "GET, HEAD, DELETE, OPTIONS"),
        (f"/v1/datasets/{ID}/query", "POST, OPTIONS"),
        ("/v1/graphs", "POST, OPTIONS"),
        (f"/v1/graphs/{ID}", "GET, HEAD, DELETE, OPTIONS"),
        (f"/v1/graphs/{ID}/neighbors", "GET, HEAD, OPTIONS"),
        ("/v1/knn", "POST, OPTIONS"),
        ("/v1/tracks", "POST, OPTIONS"),
        (f"/v1/tracks/{ID}/events", "GET, HEAD, OPTIONS"),
        ("/livez", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_tell_the_methods(service, path, allowed):
    answer = await service.client.options(path)
    assert answer.status_code == 204
    assert answer.headers["allow"] == allowed
    assert answer.content == b""


async def test_every_route_answers_options(service):
    for route in service.app.openapi()["paths"]:
        answer = await service.client.options(route.replace("{", "").replace("}", ""))
        assert answer.status_code == 204, route


async def test_the_bare_address_leads_to_the_documentation(service):
    for method in ("GET", "HEAD"):
        answer = await service.client.request(method, "/")
        assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


async def test_options_of_nothing_are_not_found(service):
    assert (await service.client.options("/v1/nothing")).status_code == 404


async def test_every_get_answers_head(service):
    graph = await service.graph(POINTS, k=3)
    dataset = await service.upload(POINTS)
    track = (await service.client.post("/v1/tracks", json={"dataset": dataset, "spec": {"k": 3}})).json()["id"]
    kept = {"dataset_id": dataset, "graph_id": graph, "track_id": track}
    for path, operations in service.app.openapi()["paths"].items():
        if "get" not in operations or path.endswith("/events"):  # a stream goes on
            continue
        url = path.format(**kept, name="invalid-points" if path.startswith("/problems") else "neighbors")
        got, head = await service.client.get(url), await service.client.head(url)
        assert head.status_code == got.status_code == 200, path
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"], path


async def test_head_of_events_says_what_would_be_streamed(live):
    client, dataset = live.client, await live.upload(POINTS)
    track = (await client.post("/v1/tracks", json={"dataset": dataset, "spec": {"k": 3}})).json()["id"]
    head = await client.head(f"/v1/tracks/{track}/events")
    async with client.stream("GET", f"/v1/tracks/{track}/events") as got:
        ours = ("x-request-id", "date", "transfer-encoding")
        assert {k: v for k, v in head.headers.items() if k not in ours} == {
            k: v for k, v in got.headers.items() if k not in ours
        }
    assert (head.status_code, head.content) == (200, b"")
    for path, known, status in ((ID[:32], "0", 404), (track, "yesterday", 422)):
        for method in ("HEAD", "GET"):
            url = f"/v1/tracks/{path}/events"
            assert (await client.request(method, url, headers={"Last-Event-ID": known})).status_code == status


@pytest.mark.parametrize("media", ["application/x-npy", "application/octet-stream"])
@pytest.mark.parametrize("part", ["", "?rows=2:9&k=2"])
async def test_head_of_an_array_has_the_headers_of_its_get(service, media, part):
    url = f"/v1/graphs/{await service.graph(POINTS, k=3)}/neighbors{part}"
    got, head = [await call(url, headers={"Accept": media}) for call in (service.client.get, service.client.head)]
    ours = ("x-request-id",)
    assert {k: v for k, v in head.headers.items() if k not in ours} == {
        k: v for k, v in got.headers.items() if k not in ours
    }
    assert head.content == b""
    assert head.headers["cache-control"] == "private, max-age=31536000, immutable"
