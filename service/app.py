"""The HTTP application: routes in front, store and queue behind. It computes nothing and never loads the compiler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service.backend import Backend
from service.compression import CompressJson
from service.problems import PROBLEM_ANSWERS, install_problems
from service.request_ids import RequestIds
from service.routes import datasets, graphs, health, metrics, oneshot, problems, queries, tracks
from service.settings import ServiceSettings
from service.traffic import Traffic, Watched

_DESCRIPTION = """Exact neighbor graphs for Gaussian processes.

Upload points once (`POST /v1/datasets`), ask for a graph (`POST /v1/graphs`), fetch its arrays; or do all of it in one
request: `curl --data-binary @points.npy '…/v1/knn?k=30' -o graph.npz`. Arrays travel as `.npy`. Datasets and graphs are
named by their content, so every request may be repeated. A training loop follows a track (`POST /v1/tracks`), whose
newest graph goes with the hyperparameters. Errors are `application/problem+json`. Every answer has an `X-Request-Id`, the
request's own or a new one, which is in every line of the log, the worker's too."""


def create_app(settings: ServiceSettings) -> FastAPI:
    """Return the application; it starts without the store and answers 503 until the store is there."""

    traffic = Traffic()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend = Backend.from_settings(settings, traffic)
        app.state.backend = backend
        try:
            yield
        finally:
            await backend.aclose()

    app = FastAPI(title="pcct", version="1", description=_DESCRIPTION, lifespan=lifespan, responses=PROBLEM_ANSWERS)
    install_problems(app)
    app.add_middleware(CompressJson)
    for module in (datasets, queries, graphs, tracks, oneshot, health, metrics, problems):
        app.include_router(module.router)
    app.middleware_stack = RequestIds(Watched(app.build_middleware_stack(), app, traffic))
    return app
