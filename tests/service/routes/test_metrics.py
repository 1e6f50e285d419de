import asyncio
import re
from pathlib import Path

import numpy as np
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


async def wait_for(service, key, value):
    """The samples, once the worker has counted; it does so behind its answer."""
    for _ in range(200):
        samples = await samples_of(service)
        if samples.get(key) == value:
            return samples
        await asyncio.sleep(0.02)
    raise AssertionError(f"{key} never became {value}: {samples.get(key)}")


async def test_metrics_count_answers_by_route_and_never_by_id(service):
    points = np.random.default_rng(1).random((20, 2))
    graph = await service.graph(points, k=3)
    tag = (await service.client.get(f"/v1/graphs/{graph}/neighbors")).headers["etag"]
    for _ in range(3):
        await service.client.get(f"/v1/graphs/{graph}/neighbors", headers={"If-None-Match": tag})
    await service.client.get("/nothing/here")
    await service.client.request("ODD", "/v1/datasets")
    samples = await samples_of(service)
    requests = {key[1:]: value for key, value in samples.items() if key[0] == "pcct_http_requests_total"}
    assert requests == {
        ("POST", "/v1/datasets", "201"): 1,
        ("POST", "/v1/graphs", "200"): 1,
        ("GET", "/v1/graphs/{graph_id}/{name}", "200"): 1,
        ("GET", "/v1/graphs/{graph_id}/{name}", "304"): 3,
        ("GET", "none", "404"): 1,
        ("other", "/v1/datasets", "405"): 1,
    }
    assert samples["pcct_http_request_seconds_count", "GET", "/v1/graphs/{graph_id}/{name}"] == 4
    text = (await service.client.get("/metrics")).text
    assert graph[:12] not in text
    assert not re.search("[0-9a-f]{32}", text)


async def test_metrics_count_builds_and_the_cache(service):
    points = np.random.default_rng(1).random((20, 2))
    dataset = await service.upload(points)
    for _ in range(3):
        await service.ask(dataset, k=3)
    service.gate.fault = MemoryError()
    await service.ask(dataset, k=4)
    samples = await wait_for(service, ("pcct_builds_total", "knn", "failed"), 1)
    assert samples["pcct_builds_total", "knn", "published"] == 1
    assert samples["pcct_build_seconds_count", "knn"] == 1
    assert samples["pcct_cache_requests_total", "hit"] == 2
    assert samples["pcct_cache_requests_total", "miss"] == 2


async def test_metrics_show_how_things_stand(start_service):
    async with start_service(worker=False) as service:
        dataset = await service.upload(np.random.default_rng(1).random((20, 2)))
        before = await samples_of(service)
        await service.ask(dataset, wait=None, k=3)
        await service.ask(dataset, wait=None, k=4)
        await asyncio.sleep(0.05)
        after = await samples_of(service)
    assert (before["pcct_queue_jobs", "interactive"], before["pcct_queue_oldest_seconds", "interactive"]) == (0, 0)
    assert after["pcct_queue_jobs", "interactive"] == 2
    assert 0.04 < after["pcct_queue_oldest_seconds", "interactive"] < 60
    assert (after["pcct_queue_jobs", "refresh"], after["pcct_graphs_running",]) == (0, 0)
    assert (after["pcct_workers", "true"], after["pcct_workers", "false"]) == (0, 0)
    assert after["pcct_store_bytes",] > 1000
    assert after["pcct_store_limit_bytes",] == 0
    assert after["process_resident_memory_bytes",] > 1000


async def test_operations_guide_lists_every_metric_and_no_other(service):
    await service.graph(np.random.default_rng(1).random((20, 2)), k=3)
    await wait_for(service, ("pcct_builds_total", "knn", "published"), 1)
    families = list(read_text((await service.client.get("/metrics")).text))
    kinds = {family.name: family.type for family in families if family.name.startswith("pcct_")}
    kinds = {name: kind for name, kind in kinds.items() if not name.endswith("_created")}
    guide = (Path(__file__).parents[3] / "docs/OPERATIONS.md").read_text()
    rows = re.findall(r"^\| `(pcct_[a-z_]+)` \| (\w+) \|([^|]*)\|", guide, re.MULTILINE)
    assert {name.removesuffix("_total"): kind for name, kind, _ in rows} == kinds
    labels = {name.removesuffix("_total"): set(re.findall("`([a-z]+)`", cell)) for name, _, cell in rows}
    for family in families:
        for sample in family.samples:
            if family.name in labels:
                assert set(sample.labels) - {"le"} == labels[family.name], sample
