"""/metrics: what all processes have counted, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service.backend import InBackend
from worker.metrics import COUNTERS, Samples

router = APIRouter(tags=["health"])


class _Collected(Collector):
    """Shows samples that were read before: a registry asks for them without waiting."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        for counter in COUNTERS:
            family = CounterMetricFamily(counter.name, counter.help, labels=counter.labels)
            for sample in self._samples.counters:
                if sample.counter == counter:
                    family.add_metric(sample.labels, sample.value)
            yield family
        for histogram, buckets, total in self._samples.histograms:
            yield HistogramMetricFamily(histogram.name, histogram.help, buckets=buckets, sum_value=total)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def read_metrics(request: Request, backend: InBackend) -> Response:
    """Return counters and histograms of refreshes; they live in the store, so every process shows the same."""
    registry = CollectorRegistry()
    registry.register(_Collected(await backend.tracks.metrics()))
    encode, media = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Content-Type": media, "Cache-Control": "no-store"})
