import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.traffic import Traffic
from worker import traces
from worker.logs import configure_logs
from worker.settings import SharedSettings

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["info"])
def logged(request) -> Iterator[Callable[[], list[dict]]]:
    """Log as JSON, as in life, but to memory; call it for the access lines so far."""
    root, queue = logging.getLogger(), logging.getLogger("docket")
    handlers, level, queue_level = root.handlers, root.level, queue.level
    configure_logs(SharedSettings(log_format="json", log_level=request.param))
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    yield lambda: [line for line in map(json.loads, stream.getvalue().splitlines()) if line["logger"] == "pcct.access"]
    root.handlers, root.level = handlers, level
    queue.setLevel(queue_level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


async def test_every_answer_is_one_line(live, logged):
    points = np.random.default_rng(0).random((20, 2))
    graph = await live.graph(points, k=3)
    path = f"/v1/graphs/{graph}/neighbors"
    headers = {"X-Request-Id": "mine", "Authorization": "Bearer hunter2hunter2"}
    answer = await live.client.get(f"{path}?k=2&token=hunter2", headers=headers)
    assert answer.status_code == 422
    answer = await live.client.get(f"{path}?k=2", headers=headers)
    lines = logged()
    assert [line["route"] for line in lines] == ["/v1/datasets", "/v1/graphs", *["/v1/graphs/{graph_id}/{name}"] * 2]
    line = lines[-1]
    assert line["duration_ms"] > 0
    assert {key: line[key] for key in ("event", "level", "method", "path", "status", "bytes", "request_id")} == {
        "event": "request",
        "level": "info",
        "method": "GET",
        "path": path,
        "status": 200,
        "bytes": len(answer.content),
        "request_id": "mine",
    }
    assert "hunter2" not in json.dumps(lines)


async def test_polls_without_news_and_probes_are_not_worth_a_line(live, logged):
    graph = await live.graph(np.random.default_rng(0).random((20, 2)), k=3)
    tag = (await live.client.get(f"/v1/graphs/{graph}/order")).headers.get("etag")
    tag = (await live.client.get(f"/v1/graphs/{graph}/neighbors")).headers["etag"]
    before = len(logged())
    answer = await live.client.get(f"/v1/graphs/{graph}/neighbors", headers={"If-None-Match": tag})
    assert answer.status_code == 304
    for probe in ("/livez", "/readyz", "/metrics"):
        assert (await live.client.get(probe)).status_code == 200
    assert len(logged()) == before


@pytest.mark.parametrize("logged", ["debug"], indirect=True)
async def test_all_is_logged_once_at_debug(live, logged):
    before = len(logged())
    await live.client.get("/livez")
    assert [line["route"] for line in logged()[before:]] == ["/livez"]


async def test_a_failure_is_a_warning_but_not_one_that_a_probe_finds(run_service, logged):
    async with run_service("unix:///nowhere/valkey.sock", worker=False) as service:
        assert (await service.client.get("/readyz")).status_code == 503
        assert (await service.client.get(f"/v1/graphs/{'0' * 64}")).status_code == 503
    (line,) = logged()
    assert (line["level"], line["status"], line["route"]) == ("warning", 503, "/v1/graphs/{graph_id}")


def test_count_answer_keeps_odd_methods_together():
    traffic = Traffic()
    for method in ("GET", "BREW", "STEW"):
        traffic.count_answer(method, "/", 200, 0.1)
    counts = {
        sample.labels["method"]: sample.value
        for metric in traffic.collect()
        for sample in metric.samples
        if sample.name == "pcct_http_requests_total"
    }
    assert counts == {"GET": 1, "other": 2}


PROGRAM = """
import asyncio
from service.app import create_app
from service.settings import ServiceSettings
from worker.logs import configure_logs
import httpx

settings = ServiceSettings()
configure_logs(settings)

async def main():
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path in ("/readyz", "/metrics", "/v1/graphs/" + "0" * 64):
                answer = await client.get(path, headers={"Authorization": "Bearer hunter2hunter2"})
                print(answer.status_code, answer.text)

asyncio.run(main())
"""


def test_the_password_of_the_store_is_never_told(tmp_path):
    environment = {
        "PCCT_REDIS_URL": "redis://me:hunter2@127.0.0.1:1/0",
        "PCCT_LOG_LEVEL": "debug",
        "PCCT_LOG_FORMAT": "json",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("503 ") == 3
    assert "store_unavailable" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


async def test_a_trace_leads_from_the_request_to_the_phases_of_its_build(live):
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces.use_provider(provider)
    try:
        dataset = await live.upload(np.random.default_rng(0).random((20, 2)))
        headers = {"Prefer": "wait=20", "X-Request-Id": "mine"}
        await live.client.post("/v1/graphs", json={"dataset": dataset, "spec": {"k": 3}}, headers=headers)
        for _ in range(500):  # the job ends behind its answer
            jobs = [span for span in exporter.get_finished_spans() if span.name == "job knn"]
            if jobs:
                break
            await asyncio.sleep(0.02)
    finally:
        traces.use_provider(None)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request, build = spans["POST /v1/graphs"], spans["build"]
    assert jobs[0].parent.span_id == request.context.span_id
    assert build.parent.span_id == jobs[0].context.span_id
    assert jobs[0].attributes["pcct.outcome"] == "published"
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/graphs",
        "http.response.status_code": 200,
        "pcct.request_id": "mine",
    }
