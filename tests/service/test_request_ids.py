import io
import json
import logging
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import structlog
from docket import Worker  # noqa: F401  (sets up its own loggers when it is first imported)

from service.request_ids import sane_id
from worker.follow import Follower
from worker.logs import configure_logs
from worker.run import Runner
from worker.settings import SharedSettings, WorkerSettings
from worker.store import Store
from worker.tasks import Queue
from worker.tracks import Tracks

pytestmark = pytest.mark.anyio


@pytest.fixture
def logged() -> Iterator[Callable[[], list[dict]]]:
    """Log as JSON, as in life, but to memory; call it for the lines so far."""
    root, queue = logging.getLogger(), logging.getLogger("docket")
    handlers, level, queue_level = root.handlers, root.level, queue.level
    configure_logs(SharedSettings(log_format="json"))
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level = handlers, level
    queue.setLevel(queue_level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


@pytest.mark.parametrize("path", ["/livez", "/v1/graphs/none", "/v2/graphs", "/readyz"])
async def test_every_answer_names_the_contract(service, path):
    from pcct_client.calls import CONTRACT, CONTRACT_HEADER

    assert (await service.client.get(path)).headers[CONTRACT_HEADER] == CONTRACT


@pytest.mark.parametrize("text", ["a", "4bf92f3577b34da6", "req-1_2.3:4@host/5+6=", "x" * 128])
def test_sane_id_takes_what_tracing_sends(text):
    assert sane_id(text) == text


@pytest.mark.parametrize("text", [None, "", "x" * 129, "a b", "a\nb", "a\n", "-a", "<b>", "ü", "a;b", 'a"b'])
def test_sane_id_refuses_what_could_harm_a_log(text):
    assert sane_id(text) is None


async def test_an_answer_repeats_the_id_of_the_request(service):
    answer = await service.client.get("/livez", headers={"X-Request-Id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]


async def test_an_answer_has_a_new_id_without_a_sane_one(service):
    made = set()
    for headers in ({}, {"X-Request-Id": "not sane"}, {"X-Request-Id": ""}):
        answer = await service.client.get("/v1/nothing/here", headers=headers)
        assert answer.status_code == 404
        made.add(answer.headers["x-request-id"])
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", id) for id in made)


async def test_a_failure_tells_the_id_that_its_lines_have(service, monkeypatch):
    async def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Store, "graph", fail)
    answer = await service.client.get(f"/v1/graphs/{'0' * 64}", headers={"X-Request-Id": "bad-day"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "bad-day"
    assert "bad-day" in answer.json()["detail"]


async def test_the_lines_of_a_failure_have_the_id(live, monkeypatch, logged):
    async def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Store, "graph", fail)
    await live.client.get(f"/v1/graphs/{'0' * 64}", headers={"X-Request-Id": "bad-day"})
    assert {line.get("request_id") for line in logged() if line["level"] == "error"} == {"bad-day"}


async def test_the_id_follows_the_job_into_the_lines_of_the_worker(live, logged):
    dataset = await live.upload(np.random.default_rng(0).random((20, 2)))
    wish = {"dataset": dataset, "spec": {"k": 3}}
    for id in ("first", "second"):  # the second finds the graph ready
        headers = {"Prefer": "wait=20", "X-Request-Id": id}
        answer = await live.client.post("/v1/graphs", json=wish, headers=headers)
        assert answer.json()["state"] == "ready"
    lines = {line["event"]: line.get("request_id") for line in logged()}
    assert {event: lines[event] for event in ("graph queued", "job started", "job published")} == {
        "graph queued": "first",
        "job started": "first",
        "job published": "first",
    }
    headers = {"Prefer": "wait=20", "X-Request-Id": "third"}
    await live.client.post("/v1/graphs", json={"dataset": dataset, "spec": {"k": 4}}, headers=headers)
    assert [line["request_id"] for line in logged() if line["event"] == "job started"] == ["first", "third"]


async def test_the_id_follows_a_refresh_into_the_lines_of_the_worker(live, valkey_url, logged):
    dataset = await live.upload(np.random.default_rng(0).random((20, 2)))
    wish = {"dataset": dataset, "spec": {"k": 3, "metric": {"type": "euclidean", "lengthscale": 1.0}}}
    made = await live.client.post("/v1/tracks", json=wish, headers={"X-Request-Id": "creation"})
    track = made.json()["id"]
    settings = WorkerSettings(redis_url=valkey_url)
    store, refreshes = Store.from_settings(settings), Queue.refresh_from_settings(settings)
    tracks = Tracks(store, refreshes, Queue.from_settings(settings))
    follower = Follower(store, tracks, Runner(store, None, settings, live.gate), 20.0)
    await follower.run_job("default", track, (await tracks.track(track)).driver)
    change = {"metric": {"lengthscale": 2.0}, "epoch": 7}
    await live.client.post(f"/v1/tracks/{track}/refresh", json=change, headers={"X-Request-Id": "change"})
    await follower.run_job("default", track, (await tracks.track(track)).driver)
    await refreshes.aclose()
    await store.aclose()
    for event in ("neighbor_refresh.schedule", "job started", "job published", "neighbor_refresh.swap"):
        assert [line["request_id"] for line in logged() if line["event"] == event] == ["creation", "change"], event
