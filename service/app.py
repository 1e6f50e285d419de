"""The HTTP application: routes in front, store and queue behind. It computes nothing and never loads the compiler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

from service.access import Access, Limiter, guarded
from service.api_keys import ApiKeys
from service.backend import Backend
from service.compression import CompressJson
from service.cors import allow_origins
from service.intake import check_parameters
from service.openapi import TAGS, complete_document
from service.prefix import Prefixed, link
from service.problems import PROBLEM_ANSWERS, install_problems
from service.request_ids import RequestIds
from service.routes import datasets, graphs, health, metrics, oneshot, problems, queries, tracks
from service.settings import ServiceSettings
from service.traffic import Traffic, Watched
from worker.absence import Absence
from worker.patience import end_tasks

_LOOK_S = 2.0  # at the store, to tell when it is away

_DESCRIPTION = """Exact neighbor graphs for Gaussian processes.

Upload points once (`POST /v1/datasets`), ask for a graph (`POST /v1/graphs`), fetch its arrays; or do all of it in one
request: `curl --data-binary @points.npy '…/v1/knn?k=30' -o graph.npz`. Arrays travel as `.npy`. Datasets and graphs are
named by their content, so every request may be repeated. A training loop follows a track (`POST /v1/tracks`), whose
newest graph goes with the hyperparameters. Errors are `application/problem+json`.

Every operation below can be tried with the values that are filled in, from top to bottom: `POST /v1/datasets`,
`POST /v1/graphs`, then what its answer names. Every answer has an `X-Request-Id`, the
request's own or a new one, which is in every line of the log, the worker's too."""


def create_app(settings: ServiceSettings, absence: Absence | None = None) -> FastAPI:
    """Return the application; it starts without the store and answers 503 until the store is there.

    absence: what was told of the store before, None for nothing.

    Callers need keys where `settings.auth` is "on". What "auto" means depends on the address, which is not known here:
    `run_api` decides.
    """
    keys = settings.auth == "on"
    traffic = Traffic()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend = Backend.from_settings(settings, traffic)
        app.state.backend = backend
        app.state.access = Access(
            ApiKeys(backend.store.redis) if keys else None,
            Limiter(settings.rate_limit) if settings.rate_limit is not None else None,
        )
        told = absence or Absence(settings.store_url)
        watch = asyncio.create_task(told.watch(backend.store.redis.ping, _LOOK_S, backend.stopping), name="pcct watch")
        try:
            yield
        finally:
            await end_tasks([watch])
            await backend.aclose()

    # FastAPI's page for the browser, with its scripts from here instead of from a network that may not be there.
    app = FastAPIOffline(
        redoc_url=None,
        redirect_slashes=False,  # `Prefixed` takes the slash off: a redirect of an upload is followed by few
        static_url="/docs/assets",
        title="pcct",
        version="1",
        description=_DESCRIPTION,
        openapi_tags=TAGS,
        swagger_ui_parameters={"tryItOutEnabled": True, "defaultModelsExpandDepth": 0, "displayRequestDuration": True},
        lifespan=lifespan,
        responses=PROBLEM_ANSWERS,
    )
    install_problems(app)
    app.add_middleware(CompressJson)
    for module in (datasets, queries, graphs, tracks, oneshot):
        app.include_router(module.router, dependencies=[*guarded(keys), Depends(check_parameters)])
    app.include_router(metrics.router, dependencies=guarded(keys, admin=True))
    for module in (health, problems):
        app.include_router(module.router)
    app.add_route("/", _open_documentation, methods=["GET"], include_in_schema=False)
    complete_document(app)
    watched = Watched(allow_origins(app.build_middleware_stack(), settings.allowed_origins), app, traffic)
    app.middleware_stack = Prefixed(
        RequestIds(watched), settings.root_path, trusted=settings.trust_forwarded_prefix == "on"
    )
    return app


async def _open_documentation(request: Request) -> RedirectResponse:
    """Lead a browser that was given the bare address to the page where calls can be tried."""
    return RedirectResponse(link("/docs"))
