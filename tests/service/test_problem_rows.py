"""Every row of the table of problems, provoked over HTTP: a row without a case fails."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.exceptions import RequestValidationError
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.requests import ClientDisconnect

import service.problems as problems
from pcct_core.errors import InvalidPoints, InvalidSpec
from service.access import RateLimited, ScopeTooSmall, Unauthenticated
from service.api_keys import ApiKeys
from service.crowd import TooManyAtOnce
from service.problems import HTTP_PROBLEMS, JOB_PROBLEMS, PROBLEMS, every_problem
from service.routes.problems import problems_markdown
from service.wire import (
    BodyTooLarge,
    InvalidParameter,
    MalformedArray,
    NothingAcceptable,
    UnsupportedBody,
    WrongLength,
)
from worker.eviction import NamespaceFull
from worker.keys import Keys
from worker.store import DamagedData, NewerLayout, Store, TooManyJobs, UnknownDataset, UnknownGraph
from worker.tracks import EpochBackwards, NotAHyperparameter, TooManyTracks, UnknownTrack

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(5).random((20, 2))
NOBODY = "0" * 64


@dataclass
class Stage:
    """What a case may start and touch."""

    start_service: Callable[..., Any]
    run_service: Callable[..., Any]
    redis: Redis
    monkeypatch: pytest.MonkeyPatch
    stack: AsyncExitStack

    async def service(self, **settings: Any) -> Any:
        return await self.stack.enter_async_context(self.start_service(**settings))

    async def service_on(self, url: str, **settings: Any) -> Any:
        return await self.stack.enter_async_context(self.run_service(url, worker=False, **settings))


Case = Callable[[Stage], Awaitable[httpx.Response]]
CASES: dict[type[Exception], Case] = {}


def provokes(kind: type[Exception]) -> Callable[[Case], Case]:
    def keep(case: Case) -> Case:
        CASES[kind] = case
        return case

    return keep


async def _key(service: Any, scope: str) -> dict[str, str]:
    _, text = await ApiKeys(service.app.state.backend.store.redis).create("default", scope)
    return {"Authorization": f"Bearer {text}"}


@provokes(Unauthenticated)
async def _(stage: Stage) -> httpx.Response:
    service = await stage.service(auth="on", worker=False)
    return await service.client.get(f"/v1/datasets/{NOBODY}")


@provokes(ScopeTooSmall)
async def _(stage: Stage) -> httpx.Response:
    service = await stage.service(auth="on", worker=False)
    return await service.client.delete(f"/v1/datasets/{NOBODY}", headers=await _key(service, "read"))


@provokes(RateLimited)
async def _(stage: Stage) -> httpx.Response:
    service = await stage.service(rate_limit="1/second", worker=False)
    answer = await service.client.get(f"/v1/datasets/{NOBODY}")
    while answer.status_code == 404:  # until two fall into one second
        answer = await service.client.get(f"/v1/datasets/{NOBODY}")
    return answer


@provokes(NamespaceFull)
async def _(stage: Stage) -> httpx.Response:
    service = await stage.service(namespace_bytes=100, worker=False)
    return await service.client.post("/v1/datasets", json=POINTS.tolist())


@provokes(TooManyJobs)
async def _(stage: Stage) -> httpx.Response:
    service = await stage.service(max_jobs=1, worker=False)
    dataset = await service.upload(POINTS)
    assert (await service.ask(dataset, None, kind="knn", k=1)).status_code == 202
    return await service.ask(dataset, None, kind="knn", k=2)


@provokes(TooManyTracks)
async def _(stage: Stage) -> httpx.Response:
    service = await stage.service(max_tracks=1, worker=False)
    wish = {"dataset": await service.upload(POINTS), "spec": {"kind": "vecchia", "k": 2}}
    assert (await service.client.post("/v1/tracks", json=wish)).status_code == 201
    return await service.client.post("/v1/tracks", json=wish)


@provokes(TooManyAtOnce)
async def _(stage: Stage) -> httpx.Response:
    service = await stage.service(max_oneshots=1)
    service.gate.hold()
    first = asyncio.create_task(service.client.post("/v1/knn?k=2", json=POINTS.tolist()))
    await asyncio.to_thread(service.gate.started.wait)
    answer = await service.client.post("/v1/knn?k=3", json=POINTS.tolist())
    service.gate.release()
    assert (await first).status_code == 200
    return answer


@pytest.fixture
async def stage(start_service, run_service, redis, monkeypatch):
    async with AsyncExitStack() as stack:
        yield Stage(start_service, run_service, redis, monkeypatch, stack)


@pytest.mark.parametrize("kind", list(PROBLEMS), ids=lambda kind: kind.__name__)
async def test_every_row_is_answered_as_the_table_says(stage, kind):
    answer, row = await CASES[kind](stage), PROBLEMS[kind]
    assert answer.status_code == row.status, answer.text
    assert answer.headers["content-type"] == problems.MEDIA_TYPE
    body = answer.json()
    assert (body["type"], body["title"], body["status"]) == (f"/problems/{row.slug}", row.title, row.status)
    assert len(body["detail"]) > 10
    wait = None if row.retry_after_s is None else str(row.retry_after_s)
    assert answer.headers.get("retry-after") == wait


@pytest.mark.parametrize("slug", list(every_problem()))
async def test_every_type_resolves(start_service, slug):
    async with start_service(worker=False) as service:
        described = await service.client.get(f"/problems/{slug}")
        shown = await service.client.get(f"/problems/{slug}", headers={"Accept": "text/html,*/*;q=0.8"})
    row = every_problem()[slug]
    assert described.json() == {
        "type": f"/problems/{slug}",
        "title": row.title,
        "status": row.status,
        "cause": row.cause,
        "fix": row.fix,
        "example": row.example,
        "retry_after_s": row.retry_after_s,
    }
    assert shown.headers["content-type"].startswith("text/html")
    assert f"<h1>{row.title}</h1>" in shown.text
    assert "Fix" in shown.text
    for text in (row.cause, row.fix):
        assert text.endswith(".")


async def test_the_list_names_every_problem(start_service):
    async with start_service(worker=False) as service:
        listed = await service.client.get("/problems")
        shown = await service.client.get("/problems", headers={"Accept": "text/html"})
    assert [page["type"] for page in listed.json()] == [f"/problems/{slug}" for slug in every_problem()]
    assert re.findall('href="/problems/([^"]+)"', shown.text) == list(every_problem())


def test_docs_have_what_the_table_says():
    page = Path(__file__).parents[2] / "docs/PROBLEMS.md"
    assert page.read_text() == problems_markdown(), "run: python -m service.routes.problems > docs/PROBLEMS.md"


def test_what_jobs_leave_has_a_page():
    worker = Path(__file__).parents[2] / "worker"
    left = {slug for file in worker.glob("*.py") for slug in re.findall(r'"type": "([a-z-]+)"', file.read_text())}
    assert left <= set(every_problem())
    rows = [*PROBLEMS.values(), *HTTP_PROBLEMS.values()]
    assert {row.slug for row in JOB_PROBLEMS}.isdisjoint(row.slug for row in rows)


async def finished(service: Any, **spec: Any) -> str:
    return await service.graph(POINTS, **{"k": 3, **spec})


async def track(service: Any) -> str:
    metric = {"type": "euclidean", "lengthscale": 1.0}
    wish = {"dataset": await service.upload(POINTS), "spec": {"k": 3, "metric": metric}}
    return (await service.client.post("/v1/tracks", json=wish)).headers["location"]


@provokes(InvalidPoints)
async def nan(stage: Stage) -> httpx.Response:
    return await (await stage.service()).client.post("/v1/datasets?dtype=float64&shape=1,1", **raw(b"\xff" * 8))


def raw(body: bytes) -> dict[str, Any]:
    return {"content": body, "headers": {"Content-Type": "application/octet-stream"}}


@provokes(InvalidSpec)
async def no_neighbors(stage: Stage) -> httpx.Response:
    service = await stage.service()
    return await service.ask(await service.upload(POINTS), k=0)


@provokes(InvalidParameter)
async def odd_rows(stage: Stage) -> httpx.Response:
    service = await stage.service()
    return await service.client.get(f"/v1/graphs/{await finished(service)}/neighbors?rows=x")


@provokes(RequestValidationError)
async def empty_wish(stage: Stage) -> httpx.Response:
    return await (await stage.service()).client.post("/v1/graphs", json={})


@provokes(MalformedArray)
async def noise(stage: Stage) -> httpx.Response:
    return await (await stage.service()).client.post(
        "/v1/datasets", content=b"no array at all", headers={"Content-Type": "application/x-npy"}
    )


@provokes(WrongLength)
async def short(stage: Stage) -> httpx.Response:
    return await (await stage.service()).client.post("/v1/datasets?dtype=float64&shape=2,1", **raw(b"\0" * 8))


@provokes(BodyTooLarge)
async def large(stage: Stage) -> httpx.Response:
    return await (await stage.service(max_body_bytes=8)).client.post("/v1/datasets", json=POINTS.tolist())


@provokes(UnsupportedBody)
async def csv(stage: Stage) -> httpx.Response:
    return await (await stage.service()).client.post(
        "/v1/datasets", content=b"1,2", headers={"Content-Type": "text/csv"}
    )


@provokes(NothingAcceptable)
async def picture(stage: Stage) -> httpx.Response:
    service = await stage.service()
    return await service.client.get(f"/v1/graphs/{await finished(service)}/neighbors", headers={"Accept": "image/png"})


@provokes(ClientDisconnect)
async def broken_off(stage: Stage) -> httpx.Response:
    """Speak to the application itself: a client that is gone cannot read its answer."""
    service = await stage.service()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/graphs", "headers": [], "query_string": b""}
    await service.app({**scope, "root_path": "", "http_version": "1.1"}, receive, send)
    return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=sent[1]["body"])


@provokes(UnknownDataset)
async def no_dataset(stage: Stage) -> httpx.Response:
    return await (await stage.service()).client.get(f"/v1/datasets/{NOBODY}")


@provokes(UnknownGraph)
async def no_graph(stage: Stage) -> httpx.Response:
    return await (await stage.service()).client.get(f"/v1/graphs/{NOBODY}")


@provokes(problems.UnknownArray)
async def no_array(stage: Stage) -> httpx.Response:
    service = await stage.service()
    return await service.client.get(f"/v1/graphs/{await finished(service)}/order")


@provokes(UnknownTrack)
async def no_track(stage: Stage) -> httpx.Response:
    return await (await stage.service()).client.get(f"/v1/tracks/{NOBODY[:32]}")


@provokes(problems.UnknownProblem)
async def no_problem(stage: Stage) -> httpx.Response:
    return await (await stage.service()).client.get("/problems/none")


@provokes(EpochBackwards)
async def back_in_time(stage: Stage) -> httpx.Response:
    service = await stage.service()
    refresh = f"{await track(service)}/refresh"
    await service.client.post(refresh, json={"epoch": 7})
    return await service.client.post(refresh, json={"epoch": 3})


@provokes(NotAHyperparameter)
async def other_metric(stage: Stage) -> httpx.Response:
    service = await stage.service()
    return await service.client.post(f"{await track(service)}/refresh", json={"metric": {"type": "cosine"}})


@provokes(problems.GraphNotReady)
async def too_early(stage: Stage) -> httpx.Response:
    service = await stage.service()
    service.gate.hold()
    graph = (await service.ask(await service.upload(POINTS), wait=None, k=3)).json()["id"]
    return await service.client.get(f"/v1/graphs/{graph}/neighbors")


@provokes(problems.GraphFailed)
async def arrays_of_a_failure(stage: Stage) -> httpx.Response:
    service = await stage.service()
    service.gate.fault = RuntimeError("a bug")
    graph = (await service.ask(await service.upload(POINTS), k=3)).json()
    assert graph["state"] == "failed"
    return await service.client.get(f"/v1/graphs/{graph['id']}/neighbors")


@provokes(problems.GraphDeleted)
async def deleted_meanwhile(stage: Stage) -> httpx.Response:
    service = await stage.service()
    service.gate.hold()
    dataset = await service.upload(POINTS)
    graph = (await service.ask(dataset, wait=None, k=3)).json()["id"]
    asking = asyncio.create_task(service.ask(dataset, wait=20, k=3))
    await asyncio.sleep(0.2)
    await service.client.delete(f"/v1/graphs/{graph}")
    return await asking


@provokes(DamagedData)
async def damaged(stage: Stage) -> httpx.Response:
    service = await stage.service()
    graph = await finished(service)
    (key,) = [key async for key in stage.redis.scan_iter(f"*{graph}:arrays")]
    await stage.redis.hset(key, "neighbors:0", b"rust")
    return await service.client.get(f"/v1/graphs/{graph}/neighbors")


@provokes(problems.BuildFailed)
async def oneshot_of_a_failure(stage: Stage) -> httpx.Response:
    service = await stage.service()
    service.gate.fault = RuntimeError("a bug")
    return await service.client.post("/v1/knn?k=3", json=POINTS.tolist())


@provokes(problems.UploadStalled)
async def stalled(stage: Stage) -> httpx.Response:
    async def body():
        yield b"\x93NUMPY"
        await asyncio.sleep(5)

    return await (await stage.service(upload_idle_s=0.05)).client.post("/v1/datasets", content=body())


@provokes(problems.NotReady)
async def without_worker(stage: Stage) -> httpx.Response:
    return await (await stage.service(worker=False)).client.get("/readyz")


@provokes(NewerLayout)
async def with_a_store_of_a_later_release(stage: Stage) -> httpx.Response:
    await stage.redis.set(Keys.layout, 99)
    return await (await stage.service(worker=False)).client.get("/readyz")


@provokes(RedisConnectionError)
async def without_store(stage: Stage) -> httpx.Response:
    return await (await stage.service_on("unix:///nowhere/valkey.sock")).client.get(f"/v1/graphs/{NOBODY}")


@provokes(RedisTimeoutError)
async def with_a_store_that_hangs(stage: Stage) -> httpx.Response:
    silent = stage.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    service = await stage.service_on(f"redis://127.0.0.1:{silent.getsockname()[1]}", store_timeout_s=0.2)
    return await service.client.get(f"/v1/graphs/{NOBODY}")


@provokes(ReadOnlyError)
async def with_a_replica(stage: Stage) -> httpx.Response:
    service = await stage.service(worker=False)
    stage.stack.push_async_callback(stage.redis.execute_command, "REPLICAOF", "NO", "ONE")
    await stage.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    return await service.client.post("/v1/datasets", json=POINTS.tolist())


@provokes(OutOfMemoryError)
async def with_a_full_store(stage: Stage) -> httpx.Response:
    service = await stage.service(worker=False)
    stage.stack.push_async_callback(stage.redis.config_set, "maxmemory", 0)
    await stage.redis.config_set("maxmemory", 1)
    return await service.client.post("/v1/datasets", json=POINTS.tolist())


@provokes(Exception)
async def bug(stage: Stage) -> httpx.Response:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    stage.monkeypatch.setattr(Store, "graph", fail)
    return await (await stage.service(worker=False)).client.get(f"/v1/graphs/{NOBODY}")
