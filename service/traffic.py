"""What this process has answered: one line of the log and one count a request, by route and never by id.

Counts are kept in this process, because a write to the store for every poll would cost more than the poll. A scrape
of each API process finds its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import structlog
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.process_collector import ProcessCollector
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.traces import end_span, request_span

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GONE = 499  # no answer had begun when the client went; the number that others use for it
_PROBES = frozenset({"/livez", "/readyz", "/metrics"})
_LOGGER = "pcct.access"

_log = structlog.stdlib.get_logger(_LOGGER)


class Traffic:
    """Counters of one process, and what it tells of itself."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "pcct_http_requests", "Answers", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "pcct_http_request_seconds",
            "From the head of a request to the last byte of its answer, waits that were asked for included",
            ("method", "route"),
            buckets=_BOUNDS_S,
            registry=self._registry,
        )
        self._graphs = Counter(
            "pcct_cache_requests", "Graphs asked for, by whether they were there", ("result",), registry=self._registry
        )
        for result in ("hit", "miss"):
            self._graphs.labels(result)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterable[Metric]:
        """Return all that was counted."""
        return self._registry.collect()

    def count_answer(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def count_graph(self, hit: bool) -> None:
        """Count a graph that was asked for. hit: it was there."""
        self._graphs.labels("hit" if hit else "miss").inc()


class Watched:
    """Wraps an application, and counts and logs each of its answers; failures are answered inside."""

    def __init__(self, app: ASGIApp, routes: FastAPI, traffic: Traffic) -> None:
        self._app = app
        self._routes = routes
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, size = _GONE, 0

        async def send_and_note(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = int(message["status"])
            else:
                size += len(message.get("body", b""))
            await send(message)

        with request_span(scope["method"], Headers(scope=scope).get("traceparent")) as span:
            try:
                await self._app(scope, receive, send_and_note)
            finally:
                route = self._route(scope)
                said: dict[str, str | int] = {"http.route": route, "http.response.status_code": status}
                end_span(span, f"{scope['method']} {route}", said, failed=status >= 500)
                self._note(scope, route, status, time.perf_counter() - started, size)

    def _note(self, scope: Scope, route: str, status: int, seconds: float, size: int) -> None:
        self._traffic.count_answer(scope["method"], route, status, seconds)
        _log_answer(scope, route, status, seconds, size)

    def _route(self, scope: Scope) -> str:
        """Return the template of the route that a request was for, "none" for one that there is not."""
        route = scope.get("route")
        if route is None:  # refused before it was routed
            matches = ((route, route.matches(scope)[0]) for route in self._routes.router.routes)
            route = next((route for route, match in matches if match is not Match.NONE), None)
        return str(getattr(route, "path", "none"))


def _log_answer(scope: Scope, route: str, status: int, seconds: float, size: int) -> None:
    """Log an answer; polls that found nothing new, and those who watch us, only when all is logged."""
    quiet = status == 304 or route in _PROBES  # a probe asks again and again until all is well
    level = logging.DEBUG if quiet else logging.WARNING if status >= 500 else logging.INFO
    if logging.getLogger(_LOGGER).isEnabledFor(level):
        _log.log(
            level,
            "request",
            method=scope["method"],
            route=route,
            path=scope["path"],  # without its query, which may hold what should not be kept
            status=status,
            duration_ms=round(1000 * seconds, 2),
            bytes=size,
        )
