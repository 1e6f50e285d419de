"""Tracks over HTTP; versions are published and failed by hand, as the job that follows a track does it."""

import asyncio
import json

import numpy as np
import pytest
from redis.exceptions import ConnectionError

from pcct_core.spec import GraphSpec
from worker.tracks import RefreshPolicy, TrackEvent

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((40, 3))
SPEC = {"kind": "vecchia", "k": 5, "order": "given", "metric": {"type": "euclidean", "lengthscale": 0.3}}
RESIDUAL = {"type": "residual", "kernel": "matern52", "lengthscale": [0.3, 0.3, 0.1], "inducing": {"count": 8}}
NOWHERE = "0" * 64
NOBODY = "0" * 32


class Track:
    """A track as a client sees it, and as its job would drive it."""

    def __init__(self, service, body):
        self.service, self.id, self.url = service, body["id"], f"/v1/tracks/{body['id']}"
        self._tracks = service.app.state.backend.tracks

    async def get(self, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.service.client.get(self.url, headers=names)

    async def refresh(self, **wish):
        return await self.service.client.post(f"{self.url}/refresh", json=wish)

    async def delete(self):
        return await self.service.client.delete(self.url)

    async def publish(self):
        pending = (await self._tracks.track(self.id)).pending
        assert await self._tracks.publish_version(self.id, pending, queue_s=0.1, build_s=0.2)

    async def fail(self, detail):
        record = await self._tracks.track(self.id)
        error = {"type": "not-positive-definite", "title": "No factor", "status": 422, "detail": detail}
        assert await self._tracks.fail_version(record, record.pending, error)


async def create(service, wait=None, **wish):
    dataset = await service.upload(POINTS)
    headers = {} if wait is None else {"Prefer": f"wait={wait}"}
    return await service.client.post("/v1/tracks", json={"dataset": dataset, "spec": SPEC} | wish, headers=headers)


async def track_of(service, **wish):
    answer = await create(service, **wish)
    assert answer.status_code == 201, answer.text
    return Track(service, answer.json())


async def published(service, **wish):
    """A track whose version 1 is there, with its graph."""
    spec = wish.get("spec", SPEC)
    assert (await service.ask(await service.upload(POINTS), **spec)).json()["state"] == "ready"
    return await track_of(service, **wish)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (many things change it)
            await asyncio.sleep(0.01)


@pytest.fixture
async def idle(start_service):
    """The service without a worker."""
    async with start_service(worker=False) as service:
        yield service


def waiting_in(service):
    return service.app.state.backend.store._watch._waiting


# Creating


async def test_create_track_describes_what_is_pending(idle):
    answer = await create(idle, policy={"tolerance": 0.2})
    assert answer.status_code == 201
    body = answer.json()
    assert answer.headers["location"] == f"/v1/tracks/{body['id']}"
    assert answer.headers["etag"] == '"0-0"'
    spec = GraphSpec.from_json(SPEC).to_json()
    assert body["spec"] == spec
    assert body["policy"] == RefreshPolicy(tolerance=0.2).to_json()
    assert {body[name] for name in ("graph", "epoch", "error")} == {None}
    assert (body["version"], body["pending_version"], body["failures"]) == (0, 1, 0)
    graph = body["pending"]["graph"]
    expected = {"version": 1, "epoch": 0, "metric": spec["metric"], "graph": graph, "state": "queued", "progress": None}
    assert body["pending"] == expected
    assert "no worker is running" in body["warning"]
    assert (await idle.client.get(answer.headers["location"])).json() == body


async def test_create_track_takes_a_graph_that_is_there(service):
    track = await published(service)
    body = (await track.get()).json()
    assert (body["version"], body["pending"], body["pending_version"], body["warning"]) == (1, None, None, None)
    assert (await service.client.get(f"/v1/graphs/{body['graph']}/neighbors")).status_code == 200


async def test_create_track_waits_as_long_as_preferred(start_service):
    async with start_service(worker=False, max_wait_s=0.05) as service:
        answer = await create(service, wait=20)
        assert answer.headers["preference-applied"] == "wait=0.05"
        assert answer.json()["pending_version"] == 1


@pytest.mark.parametrize(
    ("change", "status", "slug", "field"),
    [
        ({"dataset": NOWHERE}, 404, "unknown-dataset", None),
        ({"dataset": "mine"}, 404, "unknown-dataset", None),
        ({"spec": {"kind": "knn", "k": 40}}, 422, "invalid-spec", "k"),
        ({"spec": SPEC | {"metric": RESIDUAL | {"lengthscale": [1, 1]}}}, 422, "invalid-spec", "metric.lengthscale"),
        ({"spec": SPEC | {"metric": RESIDUAL | {"inducing": {"dataset": NOWHERE}}}}, 404, "unknown-dataset", None),
        ({"spec": {"kind": "tree"}}, 422, "invalid-spec", "kind"),
        ({"policy": {"tolerance": -1}}, 422, "invalid-spec", "policy.tolerance"),
        ({"policy": {"max_epochs": 0}}, 422, "invalid-spec", "policy.max_epochs"),
        ({"policy": {"cooldown_epochs": 1.5}}, 422, "invalid-spec", "policy.cooldown_epochs"),
        ({"policy": {"schedule": "weekly"}}, 422, "invalid-spec", "policy.schedule"),
        ({"policy": {"patience": 1}}, 422, "invalid-spec", "policy.patience"),
        ({"policy": 3}, 422, "invalid-request", "policy"),
        ({"name": "mine"}, 422, "invalid-request", "name"),
    ],
)
async def test_create_track_refuses(idle, redis, change, status, slug, field):
    answer = await create(idle, **change)
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"/problems/{slug}"
    assert answer.json().get("field") == field
    assert await redis.keys("pcct:ns:*:track:*") == []


# Refreshing


async def test_refresh_says_what_it_decided(service):
    track = await published(service)
    body = {"version": 1, "pending_version": None}
    for wish, decision, reason in [
        ({}, "cached", "unchanged"),
        ({"metric": {"lengthscale": 0.3}, "epoch": 1, "force": True}, "cached", "unchanged"),
        ({"metric": {"lengthscale": 0.31}, "epoch": 2}, "cached", "within_tolerance"),
    ]:
        answer = await track.refresh(**wish)
        assert (answer.status_code, answer.json()) == (200, {"decision": decision, "reason": reason} | body)


async def test_refresh_schedules_and_then_is_pending(idle):
    track = await track_of(idle)
    answer = await track.refresh(metric={"lengthscale": 0.6}, epoch=1)
    expected = {"decision": "scheduled", "reason": "drift", "version": 0, "pending_version": 2}
    assert (answer.status_code, answer.json()) == (202, expected)
    answer = await track.refresh(metric={"type": "euclidean", "lengthscale": 0.6}, epoch=1)
    expected = {"decision": "pending", "reason": "unchanged", "version": 0, "pending_version": 2}
    assert (answer.status_code, answer.json()) == (202, expected)
    body = (await track.get()).json()
    assert body["spec"]["metric"] == {"type": "euclidean", "lengthscale": 0.6}
    assert body["pending"] | {"graph": None} == {
        "version": 2,
        "epoch": 1,
        "metric": {"type": "euclidean", "lengthscale": 0.6},
        "graph": None,
        "state": "queued",
        "progress": None,
    }


@pytest.mark.parametrize(
    ("wish", "status", "slug", "field"),
    [
        ({"metric": {"lengthscale": [0.3, 0.3]}}, 422, "invalid-spec", "metric.lengthscale"),
        ({"metric": {"lengthscale": 0}}, 422, "invalid-spec", "metric.lengthscale"),
        ({"metric": {"lengthscale": [0.3, 0.3, -0.1]}}, 422, "invalid-spec", "metric.lengthscale"),
        ({"metric": {"lengthscale": "wide"}}, 422, "invalid-spec", "metric.lengthscale"),
        ({"metric": {"variance": 0}}, 422, "invalid-spec", "metric.variance"),
        ({"metric": {"kernel": "rbf"}}, 422, "not-a-hyperparameter", "metric.kernel"),
        ({"metric": RESIDUAL | {"jitter": 0.1}}, 422, "not-a-hyperparameter", "metric.jitter"),
        ({"metric": {"inducing": {"count": 9}}}, 422, "not-a-hyperparameter", "metric.inducing"),
        ({"metric": {"type": "euclidean"}}, 422, "not-a-hyperparameter", "metric.type"),
        ({"metric": {"period": 1.0}}, 422, "not-a-hyperparameter", "metric.period"),
        ({"metric": 0.3}, 422, "invalid-request", "metric"),
        ({"epoch": 3}, 409, "epoch-backwards", "epoch"),
        ({"epoch": -1}, 422, "invalid-request", "epoch"),
        ({"epoch": 4.5}, 422, "invalid-request", "epoch"),
        ({"epoch": "5"}, 422, "invalid-request", "epoch"),
        ({"epoch": True}, 422, "invalid-request", "epoch"),
        ({"epoch": 2**60}, 422, "invalid-request", "epoch"),
        ({"force": 1}, 422, "invalid-request", "force"),
        ({"k": 7}, 422, "invalid-request", "k"),
    ],
)
async def test_refresh_refuses_and_leaves_the_track_unharmed(idle, wish, status, slug, field):
    track = await track_of(idle, spec=SPEC | {"metric": RESIDUAL})
    await track.refresh(epoch=4)
    before = (await track.get()).json()
    answer = await track.refresh(**wish)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"/problems/{slug}"
    assert answer.json()["field"] == field
    assert (await track.get()).json() == before
    assert (await track.refresh(epoch=4)).json()["decision"] == "pending"


@pytest.mark.parametrize("body", [b"[]", b'{"epoch": 1', b'{"metric": {"lengthscale": NaN}}'])
async def test_refresh_refuses_what_is_not_an_object_of_json(idle, body):
    track = await track_of(idle)
    answer = await idle.client.post(f"{track.url}/refresh", content=body)
    assert answer.status_code == 422
    assert answer.json()["type"] in ("/problems/invalid-request", "/problems/invalid-spec")


async def test_refresh_without_its_dataset_is_not_found_and_harmless(service):
    track = await published(service)
    before = (await track.get()).json()
    await service.client.delete(f"/v1/datasets/{before['dataset']}")
    answer = await track.refresh(metric={"lengthscale": 0.9}, epoch=1)
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/unknown-dataset"
    assert (await track.get()).json() == before


@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("POST", "/refresh"), ("GET", "/events"), ("DELETE", "")])
async def test_an_unknown_or_deleted_track_is_not_found(idle, method, rest):
    track = await track_of(idle)
    assert (await track.delete()).status_code == 204
    for id in (track.id, NOBODY, "mine", NOWHERE):
        answer = await idle.client.request(method, f"/v1/tracks/{id}{rest}", json={} if method == "POST" else None)
        assert answer.status_code == 404, answer.text
        assert answer.json()["type"] == "/problems/unknown-track"
        assert id in answer.json()["detail"]


# Following


async def test_read_track_answers_304_until_something_changes(idle):
    track = await track_of(idle)
    tag = (await track.get()).headers["etag"]
    same = await track.get(If_None_Match=f'"other", W/{tag}')
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert (await idle.client.head(track.url, headers={"If-None-Match": tag})).status_code == 304
    await track.refresh(metric={"lengthscale": 0.6})
    assert (await track.get(If_None_Match=tag)).status_code == 304
    await track.publish()
    newer = await track.get(If_None_Match=tag)
    assert (newer.status_code, newer.headers["etag"]) == (200, '"2-0"')
    body = newer.json()
    assert (body["version"], body["epoch"], body["pending"]) == (2, 1, None)
    assert body["spec"]["metric"]["lengthscale"] == 0.6


async def test_a_poll_of_no_track_is_a_problem(idle):
    for name in (NOBODY, "nonsense"):
        answer = await idle.client.get(f"/v1/tracks/{name}", headers={"If-None-Match": '"1-0"'})
        assert answer.status_code == 404
        assert answer.json()["type"] == "/problems/unknown-track"


async def test_read_track_answers_304_in_one_round_trip_and_no_thread(idle, redis, monkeypatch):
    track = await track_of(idle)
    tag = (await track.get()).headers["etag"]
    monkeypatch.setattr("anyio.to_thread.run_sync", None)
    await redis.config_resetstat()
    assert (await track.get(If_None_Match=tag)).status_code == 304
    calls = {name: stat["calls"] for name, stat in (await redis.info("commandstats")).items()}
    assert calls == {"cmdstat_hmget": 1, "cmdstat_config|resetstat": 1}


@pytest.mark.parametrize("event", ["publish", "fail"])
@pytest.mark.parametrize("known", [True, False])
async def test_read_track_waits_for_a_change(idle, event, known):
    track = await track_of(idle)
    poll = track.get(Prefer="wait=20", **({"If_None_Match": '"0-0"'} if known else {}))
    poll = asyncio.create_task(poll)
    await until(lambda: waiting_in(idle))
    await (track.publish() if event == "publish" else track.fail("too smooth"))
    answer = await poll
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.headers["etag"] == ('"1-0"' if event == "publish" else '"0-1"')
    assert answer.json()["pending"] is None


async def test_read_track_waits_no_longer_than_granted(start_service):
    async with start_service(worker=False, max_wait_s=0.05) as service:
        track = await track_of(service)
        answer = await track.get(Prefer="wait=1000", If_None_Match='"0-0"')
        assert (answer.status_code, answer.headers["preference-applied"]) == (304, "wait=0.05")
        answer = await track.get(Prefer="wait=1000")
        assert (answer.status_code, answer.json()["pending_version"]) == (200, 1)


async def test_read_track_does_not_wait_for_what_is_there(idle):
    track = await track_of(idle)
    answer = await asyncio.wait_for(track.get(Prefer="wait=30", If_None_Match='"7-0"'), 10)
    assert (answer.status_code, answer.headers["etag"]) == (200, '"0-0"')
    await track.publish()
    assert (await asyncio.wait_for(track.get(Prefer="wait=30"), 10)).status_code == 200


async def test_read_track_ends_waiting_when_the_track_is_deleted(idle):
    track = await track_of(idle)
    poll = asyncio.create_task(track.get(Prefer="wait=20"))
    await until(lambda: waiting_in(idle))
    await track.delete()
    assert (await poll).json()["type"] == "/problems/unknown-track"
    assert not waiting_in(idle)


async def test_a_failed_version_is_told_and_the_last_good_one_stays(service):
    track = await published(service)
    good = (await track.get()).json()
    await track.refresh(metric={"lengthscale": 0.9}, epoch=2)
    await track.fail("too smooth")
    body = (await track.get(If_None_Match='"1-0"')).json()
    assert body["error"]["type"] == "/problems/not-positive-definite"
    assert body["error"]["detail"] == "too smooth"
    assert (body["version"], body["graph"], body["spec"]) == (1, good["graph"], good["spec"])
    assert (body["failures"], body["pending"], body["pending_version"]) == (1, None, None)
    assert (await track.refresh(metric={"lengthscale": 0.8}, epoch=3)).json()["pending_version"] == 3
    await track.publish()
    body = (await track.get(If_None_Match='"1-1"')).json()
    assert (body["version"], body["error"], body["failures"]) == (3, None, 1)


# Events


async def read_events(service, track, count, last=None):
    """Return the next events of a stream, as (id, name, data)."""
    headers = {} if last is None else {"Last-Event-ID": last}
    found, event = [], {}
    async with service.client.stream("GET", f"{track.url}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if line:
                event[name] = value
            elif "data" in event:
                found.append((event["id"], event["event"], json.loads(event["data"])))
                event = {}
            if len(found) == count:
                break
    return found


@pytest.fixture
async def live_idle(start_live):
    async with start_live(worker=False) as service:
        yield service


async def test_events_come_in_order_and_resume(live_idle):
    track = await track_of(live_idle)
    stream = asyncio.create_task(read_events(live_idle, track, 5))
    await track.publish()
    await track.refresh(metric={"lengthscale": 0.6}, epoch=1, force=True)
    await track.fail("too smooth")
    events = await stream
    names = [name.removeprefix("neighbor_refresh.") for _, name, _ in events]
    assert names == ["schedule", "complete", "swap", "schedule", "async_error"]
    assert [data["version"] for _, _, data in events] == [1, 1, 1, 2, 2]
    assert {data["track"] for _, _, data in events} == {track.id}
    assert [data["reason"] for _, name, data in events if name.endswith("schedule")] == ["created", "forced"]
    assert events[-1][2]["error"]["type"] == "/problems/not-positive-definite"
    assert events[-1][2]["error"]["detail"] == "too smooth"
    assert all(isinstance(data["time_s"], float) and isinstance(data["epoch"], int) for _, _, data in events)
    assert await read_events(live_idle, track, 2, last=events[2][0]) == events[3:]


async def test_events_end_with_the_track(live_idle):
    track = await track_of(live_idle)
    stream = asyncio.create_task(read_events(live_idle, track, 99))
    await until(lambda: waiting_in(live_idle))
    await track.delete()
    assert [name for _, name, _ in await stream] == ["neighbor_refresh.schedule"]


async def test_events_say_that_they_are_alive(live_idle, monkeypatch):
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.02)
    track = await track_of(live_idle)
    async with live_idle.client.stream("GET", f"{track.url}/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith(":"):
                break


async def test_events_end_when_the_store_goes_away(idle, monkeypatch):
    async def go_away(id, after):
        yield TrackEvent("1-0", "neighbor_refresh.schedule", {"version": 1})
        raise ConnectionError

    track = await track_of(idle)
    monkeypatch.setattr(idle.app.state.backend.tracks, "events", go_away)
    assert await read_events(idle, track, 99) == [("1-0", "neighbor_refresh.schedule", {"version": 1})]


@pytest.mark.parametrize("last", ["newest", "1-2-3", "-1", "9" * 30])
async def test_events_refuse_an_id_that_is_none(idle, last):
    track = await track_of(idle)
    answer = await idle.client.get(f"{track.url}/events", headers={"Last-Event-ID": last})
    assert (answer.status_code, answer.json()["field"]) == (422, "Last-Event-ID")


@pytest.mark.parametrize("kind", ["events", "poll"])
async def test_a_client_that_vanishes_leaves_nothing(live_idle, kind):
    track = await track_of(live_idle)
    before = asyncio.all_tasks()
    follow = read_events(live_idle, track, 99) if kind == "events" else track.get(Prefer="wait=20")
    follow = asyncio.create_task(follow)
    await until(lambda: waiting_in(live_idle))
    follow.cancel()
    await until(lambda: not waiting_in(live_idle))
    listener = {task for task in asyncio.all_tasks() if "events" in task.get_name()}
    await until(lambda: asyncio.all_tasks() - listener <= before)


async def test_a_client_that_vanishes_while_it_creates_a_track_leaves_none(live_idle, redis):
    creation = asyncio.create_task(create(live_idle, wait=20))
    await until(lambda: waiting_in(live_idle))
    creation.cancel()
    await until(lambda: not waiting_in(live_idle))
    async with asyncio.timeout(20):
        while await redis.keys("pcct:ns:*:track:*"):  # noqa: ASYNC110  (the server changes it)
            await asyncio.sleep(0.01)


async def test_streams_and_polls_end_with_the_server(live_idle):
    track = await track_of(live_idle)
    stream = asyncio.create_task(read_events(live_idle, track, 99))
    poll = asyncio.create_task(track.get(Prefer="wait=30", If_None_Match='"0-0"'))
    await until(lambda: sum(map(len, waiting_in(live_idle).values())) == 2)
    live_idle.server.should_exit = True
    assert len(await asyncio.wait_for(stream, 10)) == 1
    assert (await asyncio.wait_for(poll, 10)).status_code == 304
