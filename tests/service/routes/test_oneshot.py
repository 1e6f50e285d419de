import io

import numpy as np
import pytest

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((50, 2))


def npy(array) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(("path", "names"), [("knn", 2), ("vecchia", 3)])
async def test_oneshot_answers_npz_with_all_arrays(service, path, names):
    # The headers that curl --data-binary sends by itself.
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "*/*"}
    answer = await service.client.post(f"/v1/{path}?k=4", content=npy(POINTS), headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
        assert len(arrays.files) == names
        assert arrays["neighbors"].shape == (50, 4)
    same = await service.client.get(answer.headers["content-location"])
    assert same.content == answer.content
    assert same.headers["etag"] == answer.headers["etag"]


async def test_oneshot_answers_the_neighbors_alone_as_npy(service):
    answer = await service.client.post("/v1/knn?k=4", content=npy(POINTS), headers={"Accept": "application/x-npy"})
    assert answer.headers["content-type"] == "application/x-npy"
    assert np.load(io.BytesIO(answer.content)).shape == (50, 4)


async def test_oneshot_passes_every_parameter_on(service):
    query = "k=3&metric=euclidean&lengthscale=0.5,2&order=random&seed=7"
    answer = await service.client.post(f"/v1/vecchia?{query}", content=npy(POINTS))
    assert answer.status_code == 200
    assert service.gate.builds[0][1].to_json() == {
        "kind": "vecchia",
        "k": 3,
        "metric": {"type": "euclidean", "lengthscale": [0.5, 2.0]},
        "order": "random",
        "seed": 7,
        "accuracy": "exact",
    }


async def test_oneshot_builds_the_same_graph_once(service):
    first = await service.client.post("/v1/knn?k=3&lengthscale=2", content=npy(POINTS))
    body = {"Content-Type": "application/octet-stream"}
    query = "k=3&lengthscale=2&dtype=float64&shape=50,2"
    second = await service.client.post(f"/v1/knn?{query}", content=POINTS.tobytes(), headers=body)
    assert first.content == second.content
    assert first.headers["etag"] == second.headers["etag"]
    assert len(service.gate.builds) == 1


async def test_oneshot_that_takes_too_long_goes_on_as_a_graph(start_service):
    async with start_service(oneshot_wait_s=0) as service:
        service.gate.hold()
        answer = await service.client.post("/v1/knn?k=4", content=npy(POINTS))
        assert answer.status_code == 202
        assert answer.headers["retry-after"]
        service.gate.release()
        done = await service.client.get(answer.headers["location"], headers={"Prefer": "wait=20"})
        assert done.json()["state"] == "ready"


async def test_oneshot_does_not_wait_for_workers_that_are_not_there(start_service, monkeypatch):
    monkeypatch.setattr("service.routes.oneshot._LOOK_S", 0.05)
    async with start_service(worker=False) as service:
        answer = await service.client.post("/v1/knn?k=4", content=npy(POINTS))
        assert answer.status_code == 503
        assert answer.json()["type"] == "/problems/not-ready"
        assert "no worker is running" in answer.json()["detail"]


BAD = {
    "k = 0": ("knn?k=0", POINTS, "invalid-spec", "field", "k"),
    "k = n": ("knn?k=50", POINTS, "invalid-spec", "field", "k"),
    "k is text": ("knn?k=many", POINTS, "invalid-request", "field", "k"),
    "n = 1": ("knn?k=1", POINTS[:1], "invalid-points", "row", None),
    "metric": ("knn?metric=manhattan", POINTS, "invalid-spec", "field", "metric.type"),
    "lengthscale": ("knn?k=3&lengthscale=a", POINTS, "invalid-parameter", "field", "lengthscale"),
    "lengthscales": ("knn?k=3&lengthscale=1,2,3", POINTS, "invalid-spec", "field", "metric.lengthscale"),
    "lengthscale of haversine": ("knn?metric=haversine&lengthscale=1", POINTS, "invalid-spec", "field", None),
    "order": ("vecchia?k=3&order=best", POINTS, "invalid-spec", "field", "order"),
    "order of knn": ("knn?k=3&order=maximin", POINTS, "invalid-request", "field", "order"),
    "misspelt": ("knn?K=3", POINTS, "invalid-request", "field", "K"),
    "latitude": ("knn?k=1&metric=haversine", np.array([[0, 0], [1.0, 91.0]]), "invalid-points", "row", 1),
    "zero row": ("knn?k=1&metric=cosine", np.array([[1, 0], [0, 0.0]]), "invalid-points", "row", 1),
    "nan": ("knn?k=1", np.array([[1, 0], [0, np.nan]]), "invalid-points", "row", 1),
}


@pytest.mark.parametrize("name", BAD)
async def test_oneshot_names_the_fault_and_keeps_nothing(service, redis, name):
    path, points, slug, member, value = BAD[name]
    before = await redis.keys("pcct:[ns]*")
    answer = await service.client.post(f"/v1/{path}", content=npy(points))
    assert answer.status_code == 422
    assert answer.json()["type"] == f"/problems/{slug}"
    assert value is None or answer.json()[member] == value
    assert sorted(await redis.keys("pcct:[ns]*")) == sorted(before)


async def test_oneshot_refuses_formats_that_are_not_written_before_it_works(service):
    answer = await service.client.post("/v1/knn", content=npy(POINTS), headers={"Accept": "text/html"})
    assert answer.status_code == 406
    assert service.gate.builds == []


async def test_oneshot_says_that_a_build_failed(service, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(type(service.gate), "__call__", fail)
    answer = await service.client.post("/v1/knn?k=3", content=npy(POINTS))
    assert answer.status_code == 500
    assert answer.json()["type"] == "/problems/build-failed"
    assert "out of luck" not in answer.text
