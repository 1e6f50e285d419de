import asyncio
import io
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from pcct_core.certificate import Certificate
from pcct_core.errors import Cancelled
from pcct_core.graph import Graph, build_graph
from pcct_core.telemetry import Telemetry
from service.app import create_app
from service.serve import Server, server_config
from service.settings import ServiceSettings
from worker.run import Runner
from worker.settings import WorkerSettings
from worker.store import Store, WorkerInfo
from worker.tasks import Queue


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def scan(X, spec, *, progress=None, cancel=None, threads=None) -> Graph:
    """Build a Euclidean k-NN graph, or a Vecchia graph in the order given, whatever the spec's metric and order."""
    n = len(X)
    distances = np.sqrt(((X[:, None, :] - X[None, :, :]) ** 2).sum(-1)).astype(X.dtype)
    allowed = np.tri(n, k=-1, dtype=bool) if spec.kind == "vecchia" else ~np.eye(n, dtype=bool)
    distances[~allowed] = np.inf
    neighbors = np.argsort(distances, axis=1, kind="stable")[:, : spec.k].astype(np.int32)
    distances = np.take_along_axis(distances, neighbors, 1)
    neighbors[np.isinf(distances)] = -1
    order = np.arange(n) if spec.kind == "vecchia" else None
    return Graph(neighbors, distances, order, spec, Certificate("dense", str(X.dtype)), Telemetry())


class Gate:
    """Builds graphs by `scan`, those of a radius by the core; while `held`, builds wait at the gate and say so.

    fault: raised instead of building, when there is one.
    """

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.builds: list[tuple[int, object]] = []
        self.started = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def __call__(self, X, spec, *, progress=None, cancel=None, threads=None, max_pairs=None, secret=None) -> Graph:
        self.builds.append((len(X), spec))
        progress("scan", 1, 4)
        self.started.set()
        if self.fault is not None:
            raise self.fault
        while not self._open.wait(0.02):
            if cancel.is_set():
                raise Cancelled("the build was cancelled")
        if spec.kind == "radius":
            return build_graph(X, spec, cancel=cancel, max_pairs=max_pairs)
        return scan(X, spec)


@dataclass
class Service:
    """The application, an HTTP client of it, the gate that its worker builds through, and the server if it has one."""

    app: FastAPI
    client: httpx.AsyncClient
    gate: Gate
    server: Server | None = None

    async def upload(self, points: np.ndarray) -> str:
        """Upload points, return the dataset's id."""
        answer = await self.client.post("/v1/datasets", content=as_npy(points))
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["id"]

    async def ask(self, dataset: str, wait: int | None = 20, **spec: object) -> httpx.Response:
        """Ask for a graph."""
        headers = {} if wait is None else {"Prefer": f"wait={wait}"}
        return await self.client.post("/v1/graphs", json={"dataset": dataset, "spec": spec}, headers=headers)

    async def graph(self, points: np.ndarray, **spec: object) -> str:
        """Upload points, build a graph, return its id."""
        answer = await self.ask(await self.upload(points), **spec)
        assert answer.json()["state"] == "ready", answer.text
        return answer.json()["id"]


def as_npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@asynccontextmanager
async def running_service(url: str, worker: bool = True, **settings: object) -> AsyncIterator[Service]:
    """Run the application on its transport and, when asked, a worker beside it in this process."""
    gate = Gate()
    app = create_app(ServiceSettings(redis_url=url, **settings))
    async with app.router.lifespan_context(app), _worker(url, gate, settings) if worker else nullcontext():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Service(app, client, gate)


@asynccontextmanager
async def live_service(url: str, worker: bool = True, **settings: object) -> AsyncIterator[Service]:
    """Run the same behind a real server on loopback, whose connections end as they do in life."""
    gate = Gate()
    wanted = ServiceSettings(redis_url=url, **settings)
    app = create_app(wanted)
    server = Server(server_config(app, wanted, close_s=20), app, [])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with (
                _worker(url, gate, settings) if worker else nullcontext(),
                httpx.AsyncClient(base_url=base, timeout=30.0, trust_env=False) as client,
            ):
                await client.get("/livez")
                yield Service(app, client, gate, server)
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def _worker(url: str, gate: Gate, service: dict[str, object]) -> AsyncIterator[None]:
    shared = {name: value for name, value in service.items() if name in WorkerSettings.model_fields}
    settings = WorkerSettings(redis_url=url, **shared)
    store, queue = Store.from_settings(settings), Queue.from_settings(settings)
    runner = Runner(store, queue, settings, gate)
    await store.beat(WorkerInfo("test", os.getpid(), warm=True, graph=None), 600.0)
    task = asyncio.create_task(queue.work(runner.run_job, name="test", redelivery_s=30.0, stopping=runner.stopping))
    try:
        yield
    finally:
        runner.stopping.set()
        await asyncio.wait({task})
        await queue.aclose()
        await store.aclose()
        task.result()


@pytest.fixture
async def service(valkey_url: str) -> AsyncIterator[Service]:
    """The service with a worker, on an empty store."""
    async with running_service(valkey_url) as running:
        yield running


@pytest.fixture
async def live(valkey_url: str) -> AsyncIterator[Service]:
    """The service behind a real server, with a worker, on an empty store."""
    async with live_service(valkey_url) as running:
        yield running


@pytest.fixture
def start_service(valkey_url: str) -> Callable[..., AbstractAsyncContextManager[Service]]:
    """Start the service on an empty store with settings of the test's own: `async with start_service(...)`."""
    return partial(running_service, valkey_url)


@pytest.fixture
def start_live(valkey_url: str) -> Callable[..., AbstractAsyncContextManager[Service]]:
    """Start the service behind a real server: `async with start_live(...)`."""
    return partial(live_service, valkey_url)


@pytest.fixture
def run_service() -> Callable[..., AbstractAsyncContextManager[Service]]:
    """Start the service on the store at a URL: `async with run_service(url, ...)`."""
    return running_service


@pytest.fixture(scope="module")
def serve() -> Callable[..., AbstractAsyncContextManager[Service]]:
    """Start the service behind a real server on the store at a URL: `async with serve(url, ...)`."""
    return live_service
