import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from worker.metrics import DECISIONS, ERRORS, QUEUE_WAIT_S, STALENESS, observe

pytestmark = pytest.mark.anyio

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


async def samples_of(service, accept="text/plain", read=read_text):
    answer = await service.client.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(accept.partition(";")[0])
    assert answer.headers["cache-control"] == "no-store"
    families = list(read(answer.text))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.mark.parametrize(("accept", "read"), [("text/plain", read_text), (OPENMETRICS, read_openmetrics)])
async def test_metrics_show_what_all_processes_have_counted(start_service, redis, accept, read):
    await observe(redis, {QUEUE_WAIT_S: 0.03, STALENESS: 2.0}, (DECISIONS.field("scheduled", "drift"),))
    await observe(redis, {STALENESS: 1000.0}, (DECISIONS.field("scheduled", "drift"), ERRORS.field("internal-error")))
    async with start_service(worker=False) as service:
        samples = await samples_of(service, accept, read)
    assert samples["pcct_refresh_decisions_total", "scheduled", "drift"] == 2
    assert samples["pcct_refresh_errors_total", "internal-error"] == 1
    waits = "pcct_refresh_queue_wait_seconds"
    by_bound = {float(key[1]): value for key, value in samples.items() if key[0] == f"{waits}_bucket"}
    assert (by_bound[0.025], by_bound[0.05], by_bound[float("inf")]) == (0, 1, 1)
    assert (samples[f"{waits}_count",], samples[f"{waits}_sum",]) == (1, pytest.approx(0.03))
    stale = "pcct_refresh_staleness_epochs"
    assert (samples[f"{stale}_count",], samples[f"{stale}_sum",]) == (2, 1002)
    assert samples["pcct_refresh_build_seconds_count",] == 0


async def test_metrics_count_a_refresh(start_service):
    async with start_service(worker=False) as service:
        dataset = await service.upload([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        track = await service.client.post("/v1/tracks", json={"dataset": dataset, "spec": {"k": 1}})
        await service.client.post(f"{track.headers['location']}/refresh", json={})
        samples = await samples_of(service)
    assert samples["pcct_refresh_decisions_total", "pending", "unchanged"] == 1


async def test_metrics_without_a_store_are_a_problem(run_service):
    async with run_service("unix:///nowhere/valkey.sock", worker=False) as service:
        answer = await service.client.get("/metrics")
    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/store-unavailable"
