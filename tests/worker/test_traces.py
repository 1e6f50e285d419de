from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from worker import traces
from worker.logs import on_behalf_of, request_id

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Traces are on, and kept here."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces.use_provider(provider)
    yield exporter
    traces.use_provider(None)


def test_an_origin_is_the_request_alone_while_traces_are_off() -> None:
    with on_behalf_of("mine"), traces.request_span("GET", PARENT) as span:
        assert span is None
        assert traces.origin() == "mine"
        traces.trace_build(0, {"search": 1.0})
    with traces.for_origin(f"mine {PARENT}"), traces.job_span("job", {}) as span:
        assert (span, request_id()) == (None, "mine")
    traces.stop_traces()


@pytest.mark.parametrize("id", ["mine", ""])
def test_a_job_goes_on_with_the_trace_of_its_origin(spans: InMemorySpanExporter, id: str) -> None:
    with on_behalf_of(id), traces.request_span("POST", PARENT) as span:
        origin = traces.origin()
        traces.end_span(span, "POST /v1/graphs", {"http.response.status_code": 202}, failed=False)
    with traces.for_origin(origin), traces.job_span("job knn", {"pcct.graph": "g"}) as span:
        assert request_id() == id
        traces.trace_build(1_000_000_000, {"tree": 0.5, "search": 0.25})
        traces.end_span(span, "job knn", {}, failed=True)
    found = {span.name: span for span in spans.get_finished_spans()}
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {PARENT.split("-")[1]}
    chain = ["POST /v1/graphs", "job knn", "build"]
    for parent, child in (*pairwise(chain), ("build", "phase tree"), ("build", "phase search")):
        assert found[child].parent.span_id == found[parent].context.span_id
    assert f"{found['POST /v1/graphs'].parent.span_id:016x}" == PARENT.split("-")[2]
    tree, search = found["phase tree"], found["phase search"]
    assert (tree.start_time, tree.end_time) == (1_000_000_000, 1_500_000_000)
    assert (search.start_time, search.end_time) == (1_500_000_000, 1_750_000_000)
    assert [span.name for span in found.values() if not span.status.is_ok] == ["job knn"]


def test_an_origin_that_is_not_known_starts_a_trace_of_its_own(spans: InMemorySpanExporter) -> None:
    with traces.for_origin(""), traces.job_span("job knn", {}):
        assert request_id() == ""
    (span,) = spans.get_finished_spans()
    assert span.parent is None


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; from worker.traces import *\n{code}"
    variables = {"PYTHONPATH": ":".join(sys.path), **environment}
    return subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True, timeout=60
    )


@pytest.mark.parametrize("environment", [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
def test_start_traces_loads_nothing_that_is_not_asked_for(environment: dict[str, str]) -> None:
    done = run("start_traces('pcct-x'); print('opentelemetry.exporter' in sys.modules)", **environment)
    assert done.stdout == "False\n"


def test_start_traces_follows_the_environment() -> None:
    code = "start_traces('pcct-x')\nwith job_span('job knn', {}): pass\nstop_traces()"
    out = run(code, OTEL_TRACES_EXPORTER="console").stdout
    assert '"name": "job knn"' in out
    assert '"service.name": "pcct-x"' in out
    out = run(code, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="theirs").stdout
    assert '"service.name": "theirs"' in out


def test_start_traces_survives_what_is_not_there() -> None:
    assert "use otlp, console or none" in run("start_traces('x')", OTEL_TRACES_EXPORTER="zipkin").stdout
    hidden = "sys.modules['opentelemetry.sdk'] = None; start_traces('x')"
    assert "pip install 'pcct[otel]'" in run(hidden, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1").stdout
    code = "start_traces('x')\nwith job_span('job knn', {}): pass\nstop_traces()"
    run(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
