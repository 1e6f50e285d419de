"""/metrics: what all processes have counted, and how things stand, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service.backend import Backend, InBackend
from worker.metrics import COUNTERS, HISTOGRAMS, Samples

router = APIRouter(tags=["health"])


class _Collected(Collector):
    """Shows metrics that were read before: a registry asks for them without waiting."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


@router.head("/metrics", include_in_schema=False)
@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def read_metrics(request: Request, backend: InBackend) -> Response:
    """Return counters, histograms and gauges; docs/OPERATIONS.md lists them."""
    registry = CollectorRegistry()
    counted = _counted(await backend.tracks.metrics())
    registry.register(_Collected([*counted, *await _gauges(backend), *backend.traffic.collect()]))
    encode, media = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Content-Type": media, "Cache-Control": "no-store"})


def _counted(samples: Samples) -> Iterator[Metric]:
    """Yield what all processes have counted in the store."""
    for counter in COUNTERS:
        counts = CounterMetricFamily(counter.name, counter.help, labels=counter.labels)
        for sample in samples.counters:
            if sample.counter == counter:
                counts.add_metric(sample.labels, sample.value)
        yield counts
    for histogram in HISTOGRAMS:
        values = HistogramMetricFamily(histogram.name, histogram.help, labels=histogram.labels)
        for found in samples.histograms:
            if found.histogram == histogram:
                values.add_metric(found.labels, found.buckets, found.sum)
        yield values


async def _gauges(backend: Backend) -> list[Metric]:
    """Return how things stand now: queues, workers and the store."""
    jobs = GaugeMetricFamily("pcct_queue_jobs", "Jobs that wait or run", labels=("queue",))
    oldest = GaugeMetricFamily(
        "pcct_queue_oldest_seconds", "Age of the oldest job that waits or runs", labels=("queue",)
    )
    for name, queue in (("interactive", backend.queue), ("refresh", backend.refreshes)):
        backlog = await queue.backlog()
        jobs.add_metric((name,), backlog.jobs)
        oldest.add_metric((name,), backlog.oldest_s)
    alive = await backend.store.workers()
    workers = GaugeMetricFamily(
        "pcct_workers", "Workers alive, by whether their kernels are compiled", labels=("warm",)
    )
    for warm in (True, False):
        workers.add_metric((str(warm).lower(),), sum(worker.warm is warm for worker in alive))
    running = GaugeMetricFamily(
        "pcct_graphs_running", "Graphs being built now", value=sum(worker.graph is not None for worker in alive)
    )
    usage = await backend.store.usage()
    return [
        jobs,
        oldest,
        workers,
        running,
        GaugeMetricFamily("pcct_store_bytes", "Memory that the store uses", value=usage.used_bytes),
        GaugeMetricFamily("pcct_store_limit_bytes", "Memory that the store may use, 0: any", value=usage.limit_bytes),
    ]
