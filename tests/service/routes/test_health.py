import pytest

from worker.store import WorkerInfo

pytestmark = pytest.mark.anyio


async def test_livez_answers_without_store_or_worker(start_service):
    async with start_service(worker=False) as service:
        assert (await service.client.get("/livez")).status_code == 200


async def test_readyz_counts_jobs_and_workers(service):
    answer = await service.client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "jobs": 0, "workers": 1, "warm_workers": 1, "compiling": []}


async def test_readyz_counts_the_jobs_of_tracks_too(service):
    dataset = await service.upload([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    await service.client.post("/v1/tracks", json={"dataset": dataset, "spec": {"k": 1}})
    assert (await service.client.get("/readyz")).json()["jobs"] == 1


async def test_readyz_names_what_is_missing(start_service):
    async with start_service(worker=False) as service:
        answer = await service.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.headers["content-type"] == "application/problem+json"
        assert "no worker is running" in answer.json()["detail"]
        await service.app.state.backend.store.beat(WorkerInfo("cold", 1, warm=False, graph=None), 60)
        answer = await service.client.get("/readyz")
        assert answer.status_code == 503
        assert "compiling" in answer.json()["detail"]
