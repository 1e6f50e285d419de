import asyncio
import hashlib
import io

import numpy as np
import pytest

from pcct_core.spec import GraphSpec
from worker.keys import Keys
from worker.query import wish_from_json

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((50, 3))
KNN = {"kind": "knn", "k": 5}
VECCHIA = {"kind": "vecchia", "k": 5, "order": "given"}


def load(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-npy"
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


async def arrays_of(service, id: str) -> dict[str, np.ndarray]:
    names = (await service.client.get(f"/v1/graphs/{id}")).json()["arrays"]
    return {name: load(await service.client.get(f"/v1/graphs/{id}/{name}")) for name in names}


async def test_request_graph_waits_as_long_as_preferred(service):
    dataset = await service.upload(POINTS)
    answer = await service.ask(dataset, wait=20, **KNN)
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=20"
    body = answer.json()
    assert body["state"] == "ready"
    assert body["id"] == hashlib.sha256(f"{dataset}\n".encode() + GraphSpec.from_json(KNN).canonical()).hexdigest()
    assert body["dataset"] == dataset
    assert body["spec"] == GraphSpec.from_json(KNN).to_json()
    assert body["certificate"]["exact"] is True
    assert body["arrays"]["neighbors"]["shape"] == [50, 5]
    assert "warning" not in body or body["warning"] is None


async def test_request_graph_answers_202_until_it_is_there(service):
    service.gate.hold()
    answer = await service.ask(await service.upload(POINTS), wait=None, **KNN)
    assert answer.status_code == 202
    assert answer.headers["retry-after"] == "1"
    assert "preference-applied" not in answer.headers
    assert answer.json()["state"] == "queued"
    place = answer.headers["location"]
    assert place == f"/v1/graphs/{answer.json()['id']}"
    await asyncio.to_thread(service.gate.started.wait)
    while (running := (await service.client.get(place)).json())["progress"] is None:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert running["state"] == "running"
    assert running["progress"] | {"eta_s": None} == {"phase": "scan", "done": 1, "total": 4, "eta_s": None}
    early = await service.client.get(f"{place}/neighbors")
    assert early.status_code == 409
    assert early.json()["type"] == "/problems/graph-not-ready"
    assert early.json()["state"] == "running"
    assert early.headers["retry-after"] == "1"
    service.gate.release()
    done = await service.client.get(place, headers={"Prefer": "wait=20"})
    assert done.json()["state"] == "ready"
    assert (await service.ask(done.json()["dataset"], wait=None, **KNN)).status_code == 200


async def test_request_graph_grants_no_more_than_the_longest_wait(start_service):
    async with start_service(max_wait_s=0) as service:
        service.gate.hold()
        answer = await service.ask(await service.upload(POINTS), wait=1000, **KNN)
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "wait=0"
        service.gate.release()


async def test_request_graph_asked_twenty_times_at_once_builds_once(service):
    dataset = await service.upload(POINTS)
    same = [KNN, {"k": 5, "kind": "knn", "metric": {"type": "euclidean"}}, KNN | {"metric": "euclidean", "seed": 3}]
    answers = await asyncio.gather(*(service.ask(dataset, **same[i % 3]) for i in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(service.gate.builds) == 1


async def test_request_graph_says_when_nothing_can_run(start_service):
    async with start_service(worker=False) as service:
        answer = await service.ask(await service.upload(POINTS), wait=None, **KNN)
        assert answer.status_code == 202
        assert "no worker is running" in answer.json()["warning"]
        again = await service.client.get(answer.headers["location"])
        assert "no worker is running" in again.json()["warning"]


BAD_SPECS = {
    "k = 0": ({"kind": "knn", "k": 0}, "k"),
    "k = n": ({"kind": "knn", "k": 50}, "k"),
    "k is text": ({"kind": "knn", "k": "5"}, "k"),
    "k over the limit": ({"kind": "knn", "k": 5000}, "k"),
    "metric": ({"k": 5, "metric": {"type": "manhattan"}}, "metric.type"),
    "no metric type": ({"k": 5, "metric": {}}, "metric"),
    "haversine in 3-d": ({"k": 5, "metric": "haversine"}, "metric.type"),
    "lengthscales": ({"k": 5, "metric": {"type": "euclidean", "lengthscale": [1, 2]}}, "metric.lengthscale"),
    "lengthscale": ({"k": 5, "metric": {"type": "euclidean", "lengthscale": -1}}, "metric.lengthscale"),
    "kind": ({"kind": "ann", "k": 5}, "kind"),
    "order": ({"kind": "vecchia", "k": 5, "order": "sorted"}, "order"),
    "field": ({"k": 5, "neighbours": 3}, "neighbours"),
    "accuracy": ({"k": 5, "accuracy": 0.5}, "accuracy"),
}


@pytest.mark.parametrize("name", BAD_SPECS)
async def test_request_graph_refuses_a_bad_spec(service, name):
    spec, field = BAD_SPECS[name]
    answer = await service.ask(await service.upload(POINTS), **spec)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/invalid-spec"
    assert answer.json()["field"] == field


@pytest.mark.parametrize(
    ("points", "metric", "row", "words"),
    [
        ([[0, 0], [10, 20], [5, 91], [0, -95]], "haversine", 2, "latitude 91"),
        ([[0, 0], [361, 20], [5, 5]], "haversine", 1, "longitude 361"),
        ([[1, 0], [2, 1], [0, 0]], "cosine", 2, "all zeros"),
    ],
)
async def test_request_graph_refuses_points_that_the_metric_is_not_defined_on(service, points, metric, row, words):
    dataset = await service.upload(np.array(points, float))
    answer = await service.ask(dataset, k=1, metric=metric)
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-points"
    assert answer.json()["row"] == row
    assert words in answer.json()["detail"]
    assert service.gate.builds == []
    assert (await service.ask(dataset, k=1)).status_code == 200


async def test_request_graph_names_rows_behind_the_first_block(service):
    points = np.full((100_000, 2), 45.0)
    points[99_000, 1] = 91.0
    answer = await service.ask(await service.upload(points), k=1, metric="haversine")
    assert answer.json()["row"] == 99_000
    assert "row 99000: latitude 91" in answer.json()["detail"]


async def test_request_graph_refuses_a_single_point(service):
    answer = await service.ask(await service.upload(np.zeros((1, 2))), k=1)
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-points"
    assert "at least 2 points" in answer.json()["detail"]


async def test_request_graph_refuses_an_unaffordable_graph(start_service):
    async with start_service(worker=False, max_graph_bytes=1000) as service:
        answer = await service.ask(await service.upload(POINTS), **KNN)
        assert answer.status_code == 422
        assert "3000 bytes" in answer.json()["detail"]


@pytest.mark.parametrize("id", ["0" * 64, "places", ""])
async def test_request_graph_refuses_an_unknown_dataset(service, id):
    answer = await service.ask(id, **KNN)
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/unknown-dataset"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b'{"spec": {}}', "dataset"),
        (b'{"dataset": "x"}', "spec"),
        (b'{"dataset": 5, "spec": {}}', "dataset"),
        (b'{"dataset": "x", "spec": 5}', "spec"),
        (b'{"dataset": "x", "spec": {}, "wait": 5}', "wait"),
        (b"[" * 100_000, "body"),
        (b"\xff\xfe", "body"),
    ],
)
async def test_request_graph_refuses_a_bad_request(service, body, field):
    answer = await service.client.post("/v1/graphs", content=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/invalid-request"
    assert answer.json()["field"] == field


async def test_request_graph_refuses_a_huge_request(service):
    answer = await service.client.post("/v1/graphs", content=b" " * (2 << 20))
    assert answer.status_code == 413


async def test_a_failed_job_shows_its_error_and_can_be_asked_for_again(service, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(type(service.gate), "__call__", fail)
    dataset = await service.upload(POINTS)
    answer = await service.ask(dataset, **KNN)
    assert answer.status_code == 200
    assert answer.json()["state"] == "failed"
    assert answer.json()["error"]["type"] == "/problems/internal-error"
    array = await service.client.get(f"/v1/graphs/{answer.json()['id']}/neighbors")
    assert array.status_code == 409
    assert array.json()["type"] == "/problems/graph-failed"
    monkeypatch.undo()
    assert (await service.ask(dataset, **KNN)).json()["state"] == "ready"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", [KNN, VECCHIA], ids=["knn", "vecchia"])
async def test_read_array_gives_the_graph_whole_and_in_parts(service, dtype, spec):
    points = POINTS.astype(dtype)
    id = await service.graph(points, **spec)
    arrays = await arrays_of(service, id)
    assert arrays["neighbors"].shape == (50, 5)
    assert arrays["neighbors"].dtype == np.int32
    assert arrays["distances"].dtype == dtype
    assert ("order" in arrays) == (spec is VECCHIA)
    for query, part in [
        ("rows=10:20", np.s_[10:20]),
        ("rows=:7", np.s_[:7]),
        ("rows=45:", np.s_[45:]),
        ("rows=40:99", np.s_[40:]),
        ("k=2", np.s_[:, :2]),
        ("rows=3:4&k=1", np.s_[3:4, :1]),
        ("k=5", np.s_[:]),
    ]:
        for name in ("neighbors", "distances"):
            got = load(await service.client.get(f"/v1/graphs/{id}/{name}?{query}"))
            np.testing.assert_array_equal(got, arrays[name][part])
    if "order" in arrays:
        got = load(await service.client.get(f"/v1/graphs/{id}/order?rows=5:9"))
        np.testing.assert_array_equal(got, arrays["order"][5:9])


async def test_read_array_slices_across_chunks(start_service):
    async with start_service(chunk_bytes=1024) as service:
        id = await service.graph(np.random.default_rng(0).random((300, 2)), kind="knn", k=7)
        whole = load(await service.client.get(f"/v1/graphs/{id}/distances"))
        part = load(await service.client.get(f"/v1/graphs/{id}/distances?rows=11:277&k=3"))
        np.testing.assert_array_equal(part, whole[11:277, :3])


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("neighbors?rows=5", "rows"),
        ("neighbors?rows=-3:5", "rows"),
        ("neighbors?rows=9:9", "rows"),
        ("neighbors?rows=50:", "rows"),
        ("neighbors?k=0", "k"),
        ("neighbors?k=6", "k"),
        ("neighbors?k=x", "k"),
        ("neighbors?row=1:2", "row"),
        ("order?k=2", "k"),
    ],
)
async def test_read_array_refuses_a_bad_slice(service, path, field):
    id = await service.graph(POINTS, **VECCHIA)
    answer = await service.client.get(f"/v1/graphs/{id}/{path}")
    assert answer.status_code == 422
    assert answer.json()["field"] == field


async def test_read_array_names_the_arrays_that_there_are(service):
    id = await service.graph(POINTS, **KNN)
    for name in ("order", "weights"):
        answer = await service.client.get(f"/v1/graphs/{id}/{name}")
        assert answer.status_code == 404
        assert answer.json()["type"] == "/problems/unknown-array"
        assert "neighbors, distances" in answer.json()["detail"]


async def test_read_array_is_revalidated_by_a_strong_etag(service):
    id = await service.graph(POINTS, **KNN)
    tags = set()
    for path in ("neighbors", "neighbors?rows=0:9", "neighbors?rows=1:9", "neighbors?k=2", "distances", "arrays"):
        url = f"/v1/graphs/{id}/{path}"
        answer = await service.client.get(url)
        tag = answer.headers["etag"]
        assert tag.startswith('"')
        assert "immutable" in answer.headers["cache-control"]
        tags.add(tag)
        for known in (tag, f'"x", {tag}', f"W/{tag}", "*"):
            again = await service.client.get(url, headers={"If-None-Match": known})
            assert again.status_code == 304
            assert again.content == b""
            assert again.headers["etag"] == tag
        other = await service.client.get(url, headers={"If-None-Match": '"x"'})
        assert other.status_code == 200
        assert other.content == answer.content
        head = await service.client.head(url)
        assert head.status_code == 200
        assert head.content == b""
        assert head.headers["etag"] == tag
        assert head.headers.get("content-length", "") in ("", str(len(answer.content)))
    assert len(tags) == 6


async def test_read_array_announces_its_length(service):
    id = await service.graph(POINTS, **KNN)
    for part in ("neighbors?rows=3:30&k=2", "arrays"):
        answer = await service.client.get(f"/v1/graphs/{id}/{part}")
        assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("path", ["neighbors", "arrays"])
async def test_read_array_refuses_formats_that_are_not_written(service, path):
    id = await service.graph(POINTS, **KNN)
    answer = await service.client.get(f"/v1/graphs/{id}/{path}", headers={"Accept": "text/csv"})
    assert answer.status_code == 406
    assert answer.json()["type"] == "/problems/not-acceptable"


async def test_read_arrays_gives_all_in_one_npz(service):
    id = await service.graph(POINTS, **VECCHIA)
    answer = await service.client.get(f"/v1/graphs/{id}/arrays")
    assert answer.headers["content-type"] == "application/x-npz"
    arrays = await arrays_of(service, id)
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as got:
        assert set(got.files) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(got[name], array)


async def test_damaged_arrays_are_a_503_and_built_again(service, redis):
    id = await service.graph(POINTS, **KNN)
    key = Keys().arrays(id)
    await redis.hset(key, "neighbors:0", b"x" * len(await redis.hget(key, "neighbors:0")))
    answer = await service.client.get(f"/v1/graphs/{id}/neighbors")
    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/damaged-data"
    assert answer.headers["retry-after"]
    assert await service.graph(POINTS, **KNN) == id
    assert load(await service.client.get(f"/v1/graphs/{id}/neighbors")).shape == (50, 5)


async def test_delete_graph_cancels_and_forgets(service):
    service.gate.hold()
    dataset = await service.upload(POINTS)
    id = (await service.ask(dataset, wait=None, **KNN)).json()["id"]
    await asyncio.to_thread(service.gate.started.wait)
    waiting = asyncio.create_task(service.ask(dataset, wait=20, **KNN))
    waiters = service.app.state.backend.store._watch._waiting
    while (Keys().changes, id) not in waiters:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert (await service.client.delete(f"/v1/graphs/{id}")).status_code == 204
    assert (await waiting).json()["type"] == "/problems/graph-deleted"
    assert (await service.client.get(f"/v1/graphs/{id}")).status_code == 404
    service.gate.release()
    assert (await service.ask(dataset, **KNN)).json()["state"] == "ready"


@pytest.mark.parametrize("id", ["0" * 64, "x"])
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/neighbors"), ("GET", "/arrays")])
async def test_unknown_graphs_are_not_found(service, id, method, path):
    answer = await service.client.request(method, f"/v1/graphs/{id}{path}")
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/unknown-graph"


async def test_read_graph_queues_a_job_that_the_store_has_lost(service, redis) -> None:
    store = service.app.state.backend.store
    dataset = await service.upload(POINTS)
    record, _ = await store.request_graph(dataset, wish_from_json(KNN))
    await redis.hincrbyfloat(store.keys.graph(record.id), "updated_s", -60)
    answer = await service.client.get(f"/v1/graphs/{record.id}", headers={"Prefer": "wait=20"})
    assert answer.json()["state"] == "ready"


async def test_read_graph_queues_a_run_that_fell_silent_again(service, redis) -> None:
    store = service.app.state.backend.store
    dataset = await service.upload(POINTS)
    record, _ = await store.request_graph(dataset, wish_from_json(KNN))
    assert await store.mark_running(record.id, record.request, "dead", max_attempts=3, exhausted={})
    assert (await service.client.get(f"/v1/graphs/{record.id}")).json()["state"] == "running"
    await redis.hincrbyfloat(store.keys.graph(record.id), "updated_s", -3600)
    assert (await service.client.get(f"/v1/graphs/{record.id}")).status_code == 200
    answer = await service.client.get(f"/v1/graphs/{record.id}", headers={"Prefer": "wait=20"})
    assert answer.json()["state"] == "ready"


async def test_read_graph_of_a_silent_run_without_its_dataset_shows_it(start_service, redis) -> None:
    async with start_service(worker=False) as service:
        store = service.app.state.backend.store
        dataset = await service.upload(POINTS)
        record, _ = await store.request_graph(dataset, wish_from_json(KNN))
        assert await store.mark_running(record.id, record.request, "dead", max_attempts=3, exhausted={})
        await redis.hincrbyfloat(store.keys.graph(record.id), "updated_s", -3600)
        await store.delete_dataset(dataset)
        assert (await service.client.get(f"/v1/graphs/{record.id}")).json()["state"] == "running"
