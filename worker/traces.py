"""Traces by OpenTelemetry, from a request through its job to the phases of the build; nothing is loaded without them.

They are on when the environment names an exporter by the usual `OTEL_…` variables and the extra `otel` is installed. What a
job belongs to travels in the store, as its origin: the id of the request and, when there is one, its `traceparent`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

from worker.logs import on_behalf_of, request_id
from worker.settings import traces_exporter

_FLUSH_S = 2.0

_log = structlog.stdlib.get_logger("pcct.traces")


class _Traces:
    """What is loaded once traces are on. tracer: None while they are off."""

    tracer: Any = None
    provider: Any = None


def start_traces(service: str) -> None:
    """Send traces of this process where the environment says, under the name `service` unless it says another.

    A provider that `opentelemetry-instrument` has set up is used as it is.
    """
    kind = traces_exporter()
    if kind is None:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("OTEL_ variables ask for traces, which need more; pip install 'pcct[otel]'")
        return
    provider: Any = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        exporter = _exporter(kind)
        if exporter is None:
            return
        resource = Resource({"service.name": service}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    use_provider(provider)


def use_provider(provider: Any) -> None:
    """Trace by a provider of OpenTelemetry, None to stop."""
    _Traces.provider = provider
    _Traces.tracer = None if provider is None else provider.get_tracer("pcct")


def stop_traces() -> None:
    """Send what was not sent yet, for two seconds at most."""
    if _Traces.provider is not None:
        # In a thread that may be left behind: an exporter goes on trying, whatever time it is given.
        sending = threading.Thread(target=_Traces.provider.force_flush, name="pcct traces", daemon=True)
        sending.start()
        sending.join(_FLUSH_S)


def _exporter(kind: str) -> Any:
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if kind == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    _log.warning("OTEL_TRACES_EXPORTER names an exporter that is not known here; use otlp, console or none", name=kind)
    return None


def origin() -> str:
    """Return what this task works for, as text to be stored with a job: a request's id and the trace that it is part of."""
    if _Traces.tracer is None:
        return request_id()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return f"{request_id()} {carrier.get('traceparent', '')}".rstrip()


@contextmanager
def for_origin(text: str) -> Iterator[None]:
    """Work for an origin: lines carry its request's id, spans belong to its trace."""
    id, _, parent = text.partition(" ")
    with on_behalf_of(id), _within({"traceparent": parent}):
        yield


@contextmanager
def _within(carrier: Mapping[str, str]) -> Iterator[None]:
    if _Traces.tracer is None:
        yield
        return
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    token = context.attach(TraceContextTextMapPropagator().extract(carrier))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def request_span(method: str, traceparent: str | None) -> Iterator[Any]:
    """Trace a request as part of the caller's trace; gives the span, None while traces are off."""
    if _Traces.tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    attributes = {"http.request.method": method, "pcct.request_id": request_id()}
    with (
        _within({"traceparent": traceparent or ""}),
        _Traces.tracer.start_as_current_span(method, kind=SpanKind.SERVER, attributes=attributes) as span,
    ):
        yield span


@contextmanager
def job_span(name: str, attributes: Mapping[str, str | int]) -> Iterator[Any]:
    """Trace a job; gives the span, None while traces are off."""
    if _Traces.tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    with _Traces.tracer.start_as_current_span(name, kind=SpanKind.CONSUMER, attributes=dict(attributes)) as span:
        yield span


def end_span(span: Any, name: str, attributes: Mapping[str, str | int], *, failed: bool) -> None:
    """Say what became of a span; None is passed over."""
    if span is None:
        return
    from opentelemetry.trace import StatusCode

    span.update_name(name)
    span.set_attributes(dict(attributes))
    if failed:
        span.set_status(StatusCode.ERROR)


def trace_build(started_ns: int, seconds: Mapping[str, float]) -> None:
    """Trace a build that has just ended, and its phases one behind the other; seconds: by phase, in the order they ran."""
    if _Traces.tracer is None:
        return
    from opentelemetry import trace

    build = _Traces.tracer.start_span("build", start_time=started_ns)
    within, begin = trace.set_span_in_context(build), started_ns
    for phase, taken_s in seconds.items():
        end = begin + round(taken_s * 1e9)
        _Traces.tracer.start_span(f"phase {phase}", context=within, start_time=begin).end(end)
        begin = end
    build.end(max(begin, time.time_ns()))
