"""Sessions against a service that keeps its tracks in memory and builds when the test says so; both kinds of session."""

import asyncio
import contextlib
import gc
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from pcct_client import (
    AsyncClient,
    BadAnswer,
    BelongsElsewhere,
    BuildFailed,
    Client,
    ClientError,
    InvalidArray,
    InvalidRequest,
    InvalidStep,
    NotFound,
    RefreshPolicy,
    ServerUnavailable,
    SessionClosed,
    WaitTimeout,
)

POINTS = np.random.default_rng(5).normal(size=(3, 2))
PATIENCE_S = 20.0


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    return answer


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def problem(status, kind, **fields):
    document = {"type": f"/problems/{kind}", "title": kind, "detail": f"{kind} it is", "status": status, **fields}
    return httpx.Response(status, json=document)


class Tracks:
    """Tracks, datasets and graphs as contract.md describes them. `held`: versions stay pending until `finish`."""

    def __init__(self):
        self.lock = threading.RLock()
        self.held = False
        self.away = False
        self.failing = None
        self.refuse = None
        self.tells_epoch = True
        self.defaults = {}  # hyperparameters that the service adds where a spec leaves them out
        self.warning = None
        self.datasets = {}
        self.graphs = {}
        self.tracks = {}
        self.said = []
        self.refreshes = []

    def forget_everything(self):
        with self.lock:
            self.datasets.clear()
            self.graphs.clear()
            self.tracks.clear()

    def finish(self):
        """End the build of the newest version of every track."""
        with self.lock:
            for track in self.tracks.values():
                if track["requested"] == track["version"] or track["error"]:
                    continue
                if self.failing:
                    track["error"] = self.failing
                    track["failures"] += 1
                    continue
                metric = track["wanted"]
                graph = hashlib.sha256(json.dumps(metric, sort_keys=True).encode()).hexdigest()
                spec = {**track["spec"], "metric": metric}
                self.graphs[graph] = {"dataset": track["dataset"], "spec": spec}
                track.update(version=track["requested"], graph=graph, spec=spec)

    def schedule(self, track, metric):
        track.update(wanted=metric, requested=track["requested"] + 1, error=None)
        if not self.held:
            self.finish()

    def body(self, track, status=200):
        pending = track["requested"] if track["requested"] > track["version"] and not track["error"] else None
        names = ("id", "dataset", "spec", "version", "graph", "error", "failures")
        document = {**{name: track[name] for name in names}, "pending_version": pending, "warning": self.warning}
        return httpx.Response(status, json=document, headers={"ETag": self.etag(track)})

    def etag(self, track):
        return f'"{track["version"]}-{track["failures"]}"'

    def answer(self, request):
        """Return the answer, or None while the request is to be held."""
        with self.lock:
            if self.away:
                raise httpx.ConnectError("refused", request=request)
            kind, *rest = request.url.path.removeprefix("/v1/").split("/")
            return getattr(self, kind + "_")(request, *rest)

    def datasets_(self, request, name=None):
        if request.method == "HEAD":
            return httpx.Response(200 if name in self.datasets else 404)
        name = hashlib.sha256(request.content).hexdigest()
        self.datasets[name] = request.content
        return httpx.Response(201, json={"id": name})

    def graphs_(self, request, name, array=None):
        if name not in self.graphs:
            return problem(404, "unknown-graph")
        described = self.graphs[name]
        if array is None:
            return httpx.Response(200, json={"id": name, "state": "ready", **described, "telemetry": {}})
        scale = np.ravel(described["spec"]["metric"].get("lengthscale", 1.0))[0]
        arrays = {
            "neighbors": np.zeros((3, 2), np.int32),
            "distances": np.full((3, 2), scale),
            "order": np.arange(3),
        }
        return httpx.Response(200, content=npy(arrays[array]))

    def tracks_(self, request, name=None, action=None):
        if name is None:
            document = json.loads(request.content)
            if document["dataset"] not in self.datasets:
                return problem(404, "unknown-dataset")
            track = {
                "id": f"{len(self.said):032x}",
                "version": 0,
                "epoch": 0,
                "requested": 0,
                "failures": 0,
                "graph": None,
            }
            metric = {**self.defaults, **document["spec"]["metric"]}
            track |= {
                "error": None,
                "spec": {**document["spec"], "metric": metric},
                "dataset": document["dataset"],
                "policy": document["policy"],
            }
            self.tracks[track["id"]] = track
            self.schedule(track, metric)
            return self.body(track, 201)
        if name not in self.tracks:
            return problem(404, "unknown-track")
        track = self.tracks[name]
        if request.method == "DELETE":
            del self.tracks[name]
            return httpx.Response(204)
        if action == "refresh":
            return self.refresh(track, json.loads(request.content))
        if request.headers.get("if-none-match") == self.etag(track):
            return None if "prefer" in request.headers else httpx.Response(304)
        return self.body(track)

    def refresh(self, track, document):
        self.refreshes.append(document)
        if document["epoch"] < track["epoch"]:
            seen = {"seen_epoch": track["epoch"]} if self.tells_epoch else {}
            return problem(409, "epoch-backwards", field="epoch", **seen)
        track["epoch"] = document["epoch"]
        if self.refuse:
            return problem(422, self.refuse, field="metric.lengthscale")
        metric = {**track["wanted"], **document["metric"]}
        there = metric == track["wanted"] and not track["error"]
        if there and (track["graph"] in self.graphs or track["requested"] > track["version"]):
            decision, reason = "cached" if track["requested"] == track["version"] else "pending", "unchanged"
        elif track["dataset"] not in self.datasets:
            return problem(404, "unknown-dataset")
        else:
            self.schedule(track, metric)
            decision, reason = "scheduled", "forced" if document["force"] else "drift"
        version, requested = track["version"], track["requested"]
        answer = {"decision": decision, "reason": reason, "version": version}
        answer["pending_version"] = requested if requested > version else None
        return httpx.Response(200 if decision == "cached" else 202, json=answer)

    def __call__(self, request):
        self.said.append(f"{request.method} {request.url.path}")
        while (answer := self.answer(request)) is None:
            time.sleep(0.002)
        return answer

    async def async_call(self, request):
        self.said.append(f"{request.method} {request.url.path}")
        while (answer := self.answer(request)) is None:  # noqa: ASYNC110  (as its blocking twin does)
            await asyncio.sleep(0.002)
        return answer


class BlockingSession:
    """An `AsyncSession` under blocking calls; its loop runs in a thread of its own."""

    def __init__(self, loop, client, arguments, options):
        self._loop = loop

        async def begin():
            return await client.track(*arguments, **options)

        self.session = self._run(begin())

    def __getattr__(self, name):
        return getattr(self.session, name)

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def step(self, *arguments, **options):
        return self._run(self.session.step(*arguments, **options))

    def sync(self, timeout=PATIENCE_S):
        return self._run(self.session.sync(timeout))

    def close(self):
        self._run(self.session.aclose())


@pytest.fixture
def service():
    return Tracks()


@pytest.fixture(params=["Session", "AsyncSession"])
def track(request, service):
    """Begins a session, of either kind; they are closed at the end, as the client is."""
    if request.param == "Session":
        with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
            yield client.track
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    client = AsyncClient("http://pcct.test", transport=httpx.MockTransport(service.async_call))
    yield lambda *arguments, **options: BlockingSession(loop, client, arguments, options)
    asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(PATIENCE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def step_until_changed(session, **wish):
    return until(lambda: graph if (graph := session.step(**wish)).changed else None)


def scale_of(graph):
    return graph.distances[0, 0]


def test_a_session_is_shown_by_its_graph(service):
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        session = client.track(POINTS, k=2, metric="euclidean")
        assert repr(session) == f"Session({session.graph!r})"
    session = AsyncClient("http://pcct.test").track(POINTS, k=2, metric="euclidean")
    assert repr(session) == "AsyncSession(not begun)"


def test_track_asks_for_what_the_arguments_say(service, track):
    track(POINTS, 2, "rbf", [0.3, 0.2], 2.0, 16, accuracy="exact", policy=RefreshPolicy(tolerance=0.2), gate="off")
    (made,) = service.tracks.values()
    inducing = {"count": 16}
    metric = {"type": "residual", "kernel": "rbf", "inducing": inducing, "lengthscale": [0.3, 0.2], "variance": 2.0}
    spec = {"kind": "vecchia", "k": 2, "order": "maximin", "seed": 0, "accuracy": "exact", "gate": "off"}
    assert made["spec"] == {**spec, "metric": metric}
    assert made["policy"] == {"tolerance": 0.2, "max_epochs": 5, "cooldown_epochs": 1, "schedule": "drift"}


def test_track_says_what_a_policy_is():
    with Client("http://pcct.test") as client, pytest.raises(TypeError, match=r"use pcct_client\.RefreshPolicy"):
        client.track(POINTS, k=2, lengthscale=0.3, policy={"tolerance": 0.2})


@pytest.mark.parametrize("metric", ["euclidean", {"type": "euclidean", "lengthscale": 0.1}])
def test_track_takes_another_metric(service, track, metric):
    track(POINTS, k=2, metric=metric, lengthscale=0.5, kind="knn")
    (made,) = service.tracks.values()
    assert made["spec"]["metric"] == {"type": "euclidean", "lengthscale": 0.5}


def test_track_takes_a_dataset_id(service, track):
    service.datasets["d" * 64] = b""
    assert track("d" * 64, k=2).graph.dataset == "d" * 64
    assert not any("datasets" in said for said in service.said)


def test_first_step_hands_over_version_one_as_changed(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    assert (session.version, session.last_error) == (1, None)
    graph = session.step(lengthscale=0.3)
    assert graph is session.graph
    assert (graph.version, graph.changed, scale_of(graph)) == (1, True, 0.3)
    assert session.step(lengthscale=0.3) is graph
    assert not graph.changed
    assert not [event for event in session.events if event["event"].endswith("swap")], "nothing was swapped out"


def test_step_swaps_in_a_graph_that_has_come(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    first = session.step(lengthscale=0.3)
    service.held = True
    for _ in range(20):
        assert session.step(lengthscale=0.4) is first
    until(lambda: service.refreshes)
    assert session.step(lengthscale=0.4) is first
    service.finish()
    second = step_until_changed(session, lengthscale=0.4)
    assert second is not first
    assert (second.version, scale_of(second)) == (2, 0.4)
    assert not first.changed
    assert session.step(lengthscale=0.4) is second
    assert not second.changed


def test_events_tell_the_story(service, track):
    told = []
    session = track(POINTS, k=2, lengthscale=0.3, events=told.append)
    session.step(lengthscale=0.3)
    step_until_changed(session, lengthscale=0.4)
    assert told == list(session.events)
    names = [event["event"].removeprefix("neighbor_refresh.") for event in told]
    assert names[0] == "complete"
    for name in ("schedule", "complete", "swap"):
        (event,) = [event for event in told[1:] if event["event"] == f"neighbor_refresh.{name}"]
        assert event["version"] == 2
        assert event["track"] in service.tracks
    assert event["staleness_epochs"] >= 0


def test_a_callback_that_raises_does_not_reach_the_loop(service, track):
    def fail(event):
        raise OSError("disk full")

    session = track(POINTS, k=2, lengthscale=0.3, events=fail)
    session.step(lengthscale=0.3)
    step_until_changed(session, lengthscale=0.4)
    assert "disk full" in str(session.last_error)


def test_a_callback_that_works_again_clears_its_error(service, track):
    disk = {"full": True}

    def write(event):
        if disk["full"]:
            raise OSError("disk full")

    session = track(POINTS, k=2, lengthscale=0.3, events=write)
    session.step(lengthscale=0.3)
    step_until_changed(session, lengthscale=0.4)
    disk["full"] = False
    step_until_changed(session, lengthscale=0.5)
    until(lambda: session.last_error is None)


def test_events_may_be_walked_while_more_come(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    walked = iter(session.events)
    step_until_changed(session, lengthscale=0.4)
    list(walked)


def test_only_the_newest_wish_is_sent(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.held = True
    for epoch in range(500):
        session.step(lengthscale=0.3 + epoch / 1000, epoch=epoch)
    until(lambda: service.refreshes and service.refreshes[-1]["epoch"] == 499)
    assert service.refreshes[-1]["metric"] == {"lengthscale": 0.3 + 499 / 1000}
    assert len(service.refreshes) < 100


def test_a_force_is_not_lost_when_a_later_wish_takes_its_place(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.away = True
    session.step(lengthscale=0.4)
    until(lambda: session.last_error)
    session.step(lengthscale=0.5, force=True)
    session.step(lengthscale=0.6)
    service.away = False
    until(lambda: service.refreshes)
    assert service.refreshes[-1] == {"metric": {"lengthscale": 0.6}, "epoch": 3, "force": True}


def test_what_a_step_leaves_out_stays_as_it_was(service, track):
    session = track(POINTS, k=2, lengthscale=[0.3, 0.2], variance=1.5)
    session.step(variance=2.0)
    assert session.sync().spec["metric"]["lengthscale"] == [0.3, 0.2]
    session.step(lengthscale=0.4, epoch=9)
    session.step(force=True)  # asked for whether or not the graph of the step before is there by now
    wanted = {"metric": {"lengthscale": 0.4, "variance": 2.0}, "epoch": 10, "force": True}
    until(lambda: service.refreshes[-1] == wanted)


def test_a_step_keeps_its_numbers_when_the_array_changes_later(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    scale = np.array([[0.4, 0.5]])
    session.step(lengthscale=scale)
    scale[:] = 9.0
    assert session.sync().spec["metric"]["lengthscale"] == [0.4, 0.5]


def test_a_step_takes_one_number_in_any_shape(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    session.step(lengthscale=np.array([[0.4]]), variance=np.float32(2.0))
    assert session.sync().spec["metric"] == {
        "type": "residual",
        "kernel": "matern52",
        "inducing": {"count": 512},
        "lengthscale": 0.4,
        "variance": 2.0,
    }


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, "long", [], [0.1, 0.0], [[0.1, 0.2], [0.3, 0.4]]])
def test_a_step_refuses_what_no_graph_can_have(service, track, bad):
    session = track(POINTS, k=2, lengthscale=0.3)
    with pytest.raises(InvalidStep, match="lengthscale"):
        session.step(lengthscale=bad)
    assert scale_of(session.step(lengthscale=0.3)) == 0.3


def test_a_step_refuses_an_epoch_that_goes_backwards(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    session.step(epoch=7)
    session.step(epoch=7)
    with pytest.raises(InvalidStep, match="epoch 6 is before 7"):
        session.step(epoch=6)


def test_sync_returns_at_once_when_the_graph_is_the_right_one(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.away = True
    session.step(lengthscale=0.3)
    assert session.sync(timeout=0.0).version == 1


def test_sync_waits_for_the_newest_and_forces_it(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.held = True
    session.step(lengthscale=0.4)
    until(lambda: service.refreshes)
    session.step(lengthscale=0.5)
    stop = threading.Event()

    def build():
        while not stop.wait(0.01):
            service.finish()

    builder = threading.Thread(target=build)
    builder.start()
    graph = session.sync(timeout=PATIENCE_S)
    stop.set()
    builder.join()
    assert (scale_of(graph), graph.changed) == (0.5, True)
    assert service.refreshes[-1]["force"] is True
    assert session.step(lengthscale=0.5) is graph
    assert not graph.changed


def test_sync_gives_up_at_the_timeout_and_says_what_is_wrong(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.away = True
    graph = session.step(lengthscale=0.4)
    until(lambda: session.last_error)
    with pytest.raises(WaitTimeout, match=r"newest hyperparameters \(meanwhile: nothing answers at .*within 0\.1 s"):
        session.sync(timeout=0.1)
    assert session.step(lengthscale=0.7) is graph


def test_sync_says_at_the_timeout_why_nothing_happens(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.held, service.warning = True, "no worker is running"
    session.step(lengthscale=0.4)
    until(lambda: service.refreshes)
    with pytest.raises(WaitTimeout, match=r"newest hyperparameters \(meanwhile: no worker is running\)"):
        session.sync(timeout=0.3)


def test_a_refused_wish_shows_in_last_error_and_in_sync(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.refuse = "invalid-spec"
    graph = session.step(lengthscale=[0.3, 0.3, 0.3])
    error = until(lambda: session.last_error)
    assert isinstance(error, InvalidRequest)
    assert error.field == "metric.lengthscale"
    with pytest.raises(InvalidRequest, match="invalid-spec it is"):
        session.sync()
    assert session.step(lengthscale=[0.3, 0.3, 0.3]) is graph
    service.refuse = None
    session.step(lengthscale=0.4)
    assert scale_of(session.sync()) == 0.4
    assert session.last_error is None


def test_a_refused_value_does_not_stay_in_force(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.refuse = "not-a-hyperparameter"
    session.step(variance=2.0)
    until(lambda: session.last_error)
    service.refuse = None
    session.step(lengthscale=0.4)
    session.sync()
    assert service.refreshes[-1]["metric"] == {"lengthscale": 0.4}


def test_a_refused_value_does_not_stay_in_force_in_a_loop_that_goes_on(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    accept = service.refresh

    def refuse_variance(track, document):
        if "variance" not in document["metric"]:
            return accept(track, document)
        session._following.leave_wish(lengthscale=0.4)  # as a step does: newer than what is refused now
        return problem(422, "not-a-hyperparameter")

    service.refresh = refuse_variance
    session.step(variance=2.0)
    until(lambda: service.refreshes)
    assert service.refreshes[-1]["metric"] == {"lengthscale": 0.4}


def test_a_step_refuses_a_variance_for_each_dimension(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    with pytest.raises(InvalidStep, match=r"variance is \[1.0, 2.0\]; use one positive number"):
        session.step(variance=[1.0, 2.0])


def test_a_failed_build_keeps_the_last_graph_and_the_next_goes_on(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    graph = session.step(lengthscale=0.3)
    service.failing = {"type": "/problems/store-full", "title": "Full", "detail": "no room"}
    session.step(lengthscale=0.4)
    error = until(lambda: session.last_error)
    assert isinstance(error, BuildFailed)
    assert "newest version of the track failed: no room" in str(error)
    assert "neighbor_refresh.async_error" in [event["event"] for event in session.events]
    with pytest.raises(BuildFailed, match="no room"):
        session.sync()
    assert session.step() is graph
    service.failing = None
    session.step(lengthscale=0.5)
    assert scale_of(session.sync()) == 0.5
    assert session.last_error is None


def lose_points_at_the_next_build(service):
    """Let the service find at its next build that the points are gone, as when their stored copy is damaged."""
    finish = service.finish

    def lose():
        service.finish = finish
        service.datasets.clear()
        service.failing = {"type": "/problems/unknown-dataset", "title": "Gone", "detail": "upload it again"}
        finish()
        service.failing = None

    service.finish = lose


def test_points_that_a_build_did_not_find_are_brought_again(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    lose_points_at_the_next_build(service)
    session.step(lengthscale=0.4)
    assert scale_of(session.sync()) == 0.4
    assert len(service.datasets) == 1
    assert session.last_error is None


def test_points_that_are_lost_again_at_once_are_told(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    lose_points_at_the_next_build(service)
    session.step(lengthscale=0.4)
    session.sync()
    lose_points_at_the_next_build(service)
    session.step(lengthscale=0.5)
    assert "upload it again" in str(until(lambda: session.last_error))


def test_a_kernel_matrix_without_factor_is_a_refusal_here_too(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.failing = {"type": "/problems/not-positive-definite", "title": "No factor", "detail": "raise jitter"}
    session.step(lengthscale=4.0)
    with pytest.raises(InvalidRequest, match="raise jitter"):
        session.sync()


def test_a_service_that_is_away_is_told_and_survived(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    graph = session.step(lengthscale=0.3)
    service.away = True
    assert session.step(lengthscale=0.4) is graph
    assert isinstance(until(lambda: session.last_error), ServerUnavailable)
    assert session.step(lengthscale=0.5) is graph
    service.away = False
    assert scale_of(step_until_changed(session, lengthscale=0.5)) == 0.5
    until(lambda: session.last_error is None)


def test_a_service_that_goes_while_a_build_runs_is_survived(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    session.step()
    service.held = True
    session.step(lengthscale=0.4)
    until(lambda: f"GET /v1/tracks/{session.graph and next(iter(service.tracks))}" in service.said)
    service.away = True
    assert isinstance(until(lambda: session.last_error), ServerUnavailable)
    service.finish()
    service.away = False
    assert scale_of(step_until_changed(session, lengthscale=0.4)) == 0.4
    assert session.last_error is None


def test_an_empty_service_is_given_points_and_track_again(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    session.step()
    service.forget_everything()
    graph = step_until_changed(session, lengthscale=0.4)
    assert (scale_of(graph), graph.version) == (0.4, 2)
    assert list(service.datasets) == [graph.dataset]
    (remade,) = service.tracks.values()
    assert (remade["version"], remade["spec"]["metric"]["lengthscale"]) == (1, 0.4)
    session.step(lengthscale=0.5)
    graph = session.sync()
    assert (scale_of(graph), graph.version) == (0.5, 3)
    assert session.last_error is None


def test_a_track_that_is_lost_while_it_is_waited_for_is_made_again(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    session.step()
    service.held = True
    session.step(lengthscale=0.4)
    until(lambda: service.refreshes)
    service.held = False
    service.forget_everything()
    assert scale_of(session.sync()) == 0.4


def test_points_that_were_lost_are_brought_again(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    session.step()
    service.datasets.clear()
    assert scale_of(step_until_changed(session, lengthscale=0.4)) == 0.4
    assert session.graph.dataset in service.datasets


def test_points_that_were_lost_and_have_changed_are_not_mistaken(service, track):
    points = POINTS.copy()
    session = track(points, k=2, lengthscale=0.3)
    graph = session.step()
    service.datasets.clear()
    points[0] = 9.0
    session.step(lengthscale=0.4)
    with pytest.raises(InvalidArray, match="changed since"):
        session.sync()
    assert session.step() is graph


def test_a_dataset_id_that_was_lost_is_told(service, track):
    service.datasets["d" * 64] = b""
    session = track("d" * 64, k=2, lengthscale=0.3)
    service.datasets.clear()
    session.step(lengthscale=0.4)
    with pytest.raises(NotFound, match="unknown-dataset"):
        session.sync()


def test_a_graph_that_was_lost_before_it_was_fetched_is_built_again(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    session.step()
    service.held = True
    session.step(lengthscale=0.4)
    until(lambda: service.refreshes)
    with service.lock:
        service.held = False
        service.finish()
        service.graphs.clear()
    graph = session.sync()
    assert (scale_of(graph), graph.version) == (0.4, 3)


def test_opening_raises_what_is_wrong_and_leaves_no_track(service, track):
    service.failing = {"type": "/problems/not-positive-definite", "title": "No factor", "detail": "raise jitter"}
    with pytest.raises(InvalidRequest, match="raise jitter"):
        track(POINTS, k=2, lengthscale=0.3)
    service.failing, service.held = None, True
    with pytest.raises(WaitTimeout, match="first graph of the track"):
        track(POINTS, k=2, lengthscale=0.3, timeout=0.3)
    assert not service.tracks


def test_closing_has_the_track_forgotten(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    session.step(lengthscale=0.4)
    session.close()
    assert not service.tracks
    with pytest.raises(SessionClosed):
        session.step(lengthscale=0.4)
    session.close()


def test_closing_while_the_service_is_away_is_quick(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    service.away = True
    session.step(lengthscale=0.4)
    until(lambda: session.last_error)
    begun = time.monotonic()
    session.close()
    assert time.monotonic() - begun < 5


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name in ("pcct-send", "pcct-fetch")]


def test_closing_the_client_closes_its_sessions(service):
    client = Client("http://pcct.test", transport=httpx.MockTransport(service))
    with client.track(POINTS, k=2, lengthscale=0.3) as session:
        assert len(background_threads()) == 2
        assert all(thread.daemon for thread in background_threads())
        client.close()
        assert not background_threads()
        assert not service.tracks
    with pytest.raises(SessionClosed):
        session.step()


def test_a_session_that_nobody_holds_ends(service):
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        client.track(POINTS, k=2, lengthscale=0.3).step()
        gc.collect()
        until(lambda: not background_threads())
        assert not service.tracks


def test_the_client_waits_for_sessions_that_nobody_holds(service):
    for _ in range(20):
        with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
            client.track(POINTS, k=2, lengthscale=0.3).step()
        assert not service.tracks


def test_errors_that_nobody_foresaw_stay_off_stderr(service, capsys):
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        session = client.track(POINTS, k=2, lengthscale=0.3)
        service.tracks_, kept = None, service.tracks_
        session.step(lengthscale=0.4)
        error = until(lambda: session.last_error)
        assert type(error) is ClientError
        assert "TypeError" in str(error)
        service.tracks_ = kept
        assert scale_of(session.sync()) == 0.4
        until(lambda: session.last_error is None)
    assert capsys.readouterr().err == ""


def test_ctrl_c_ends_sync_and_leaves_the_session_whole(service):
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        session = client.track(POINTS, k=2, lengthscale=0.3)
        session.step(lengthscale=0.4)
        service.held = True
        session.step(lengthscale=0.6)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            session.sync()
        timer.join()
        service.held = False
        service.finish()
        assert scale_of(session.sync()) == 0.6


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_keeps_the_last_graph_and_leaves_the_track_alone(service):
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        session = client.track(POINTS, k=2, lengthscale=0.3)
        graph = session.step()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                same = session.step(lengthscale=0.9) is graph
                session.close()
                os._exit(0 if same else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert service.tracks


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_fork_a_session_waits_for_nobody_and_says_where_it_belongs(service):
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        session = client.track(POINTS, k=2, lengthscale=0.3)
        with session._following._lock:  # as a thread of the parent may hold it
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    assert session.last_error is None
                    assert session.step(lengthscale=0.9).version == session.version == 1
                    with pytest.raises(BelongsElsewhere, match="this is a fork: begin another here"):
                        session.sync()
                    assert repr(session)
                    session.close()
                    del session
                    gc.collect()
                    client.close()
                    os._exit(0)
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert scale_of(session.step()) == 0.3


def test_an_async_session_belongs_to_its_loop(service):
    client = AsyncClient("http://pcct.test", transport=httpx.MockTransport(service.async_call))

    async def begin():
        return await client.track(POINTS, k=2, lengthscale=0.3)

    async def use(session):
        for use in (session.step, session.sync, session.open):
            with pytest.raises(BelongsElsewhere, match="which has ended; begin another session here"):
                await use()

    session = asyncio.run(begin())
    asyncio.run(use(session))
    assert session.graph.version == 1
    assert len(service.tracks) == 1
    asyncio.run(client.aclose())
    assert not service.tracks
    with pytest.raises(SessionClosed):
        session._following.leave_wish()


def test_an_async_client_closes_sessions_of_other_loops_where_they_are(service):
    client = AsyncClient("http://pcct.test", transport=httpx.MockTransport(service.async_call))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    session = BlockingSession(loop, client, (POINTS,), {"k": 2, "lengthscale": 0.3}).session

    async def close():
        with pytest.raises(BelongsElsewhere, match="which is another"):
            await session.step()
        await client.aclose()

    asyncio.run(close())
    assert not service.tracks
    assert all(task.done() and not task.cancelled() for task in session._tasks)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_the_last_graph_of_an_async_session(service):
    async def child(session, client):
        assert (await session.step(lengthscale=0.9)).version == 1
        with pytest.raises(BelongsElsewhere):
            await session.sync()
        await client.aclose()

    async def run():
        async with AsyncClient("http://pcct.test", transport=httpx.MockTransport(service.async_call)) as client:
            session = await client.track(POINTS, k=2, lengthscale=0.3)
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    asyncio.run(child(session, client))
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222  (nothing else runs)
            assert service.tracks

    asyncio.run(run())


def test_a_program_that_ends_without_closing_has_the_track_forgotten():
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import httpx, numpy as np, test_session
from pcct_client import Client
service = test_session.Tracks()
session = Client("http://pcct.test", transport=httpx.MockTransport(service)).track(np.eye(3), k=2)
import atexit
session.step(lengthscale=0.4)
print(len(service.tracks))
def last():
    print(len(service.tracks))
import pcct_client.session
atexit.unregister(pcct_client.session._stop_all)
atexit.register(last)
atexit.register(pcct_client.session._stop_all)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("1\n0\n", "")


def refresh_from_outside(service, **document):
    """Refresh the session's track as another program does; returns the track."""
    (track,) = service.tracks.values()
    with service.lock:
        assert service.refresh(track, {"metric": {}, "force": True, **document}).status_code in (200, 202)
    return track


def test_a_session_counts_on_from_the_epoch_of_another_program_and_says_so_once(service, track, caplog):
    session = track(POINTS, k=2, lengthscale=0.3)
    assert session.shared is None
    shared = refresh_from_outside(service, epoch=10**6)
    for lengthscale in (0.4, 0.5):
        session.step(lengthscale=lengthscale)
        assert scale_of(session.sync()) == lengthscale
    assert 10**6 < shared["epoch"] < 10**6 + 10
    refresh_from_outside(service, epoch=10**9)
    session.step(lengthscale=0.6)
    assert scale_of(session.sync()) == 0.6
    assert session.last_error is None
    assert (
        session.shared
        == f"another program refreshes the session's track {shared['id']} too, and has brought it to epoch "
        + ("1000000000: the session counts on from there; give it a track of its own")
    )
    said = [record for record in caplog.records if record.name == "pcct_client"]
    assert [record.levelname for record in said] == ["WARNING"]
    assert "epoch 1000000:" in said[0].getMessage()
    told = [event["error"]["detail"] for event in session.events if "error" in event]
    assert told == [said[0].getMessage()]


@pytest.mark.parametrize("epoch", [2**53 - 1, 1000])
def test_a_session_leaves_a_track_whose_epoch_it_cannot_follow(service, track, epoch):
    service.tells_epoch = epoch > 1000
    session = track(POINTS, k=2, lengthscale=0.3)
    first = session.step()
    lost = refresh_from_outside(service, epoch=epoch)
    session.step(lengthscale=0.4)
    graph = session.sync()
    assert (scale_of(graph), session.last_error) == (0.4, None)
    assert graph.version > first.version
    assert "goes on with another track" in session.shared
    assert len(service.tracks) == 2
    assert lost["epoch"] == epoch


def test_what_another_program_sets_does_not_stay(service, track):
    service.defaults = {"lengthscale": 1.0, "variance": 1.0}
    session = track(POINTS, k=2)
    refresh_from_outside(service, metric={"lengthscale": 0.2, "variance": 5.0}, epoch=0)
    session.step(lengthscale=0.4)
    metric = session.sync().spec["metric"]
    assert (metric["lengthscale"], metric["variance"]) == (0.4, 1.0)
    assert service.refreshes[-1]["metric"] == {"lengthscale": 0.4, "variance": 1.0}


def test_a_lengthscale_of_one_that_nobody_gave_is_sent_too(service, track):
    session = track(POINTS, k=2, metric="euclidean")
    refresh_from_outside(service, metric={"lengthscale": 7.0}, epoch=0)
    session.step(force=True)
    until(lambda: len(service.refreshes) > 1)
    assert service.refreshes[-1]["metric"] == {"lengthscale": 1.0}


def test_sync_is_not_content_with_a_newer_graph_of_another_program(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    kept = service.body

    def overtake(track, status=200):
        if track["version"] == 2 and track["spec"]["metric"]["lengthscale"] == 0.4:
            service.refresh(track, {"metric": {"lengthscale": 9.0}, "epoch": track["epoch"], "force": True})
        return kept(track, status)

    service.body = overtake
    session.step(lengthscale=0.4)
    assert scale_of(session.sync()) == 0.4


def test_a_session_notices_graphs_of_others(service, track):
    session = track(POINTS, k=2, lengthscale=0.3)
    graph, kept = session.step(), service.graphs_

    def mix(request, name, array=None):
        with service.lock:
            others = {**service.graphs[name], "dataset": "f" * 64}
            return (
                kept(request, name, array)
                if array
                else httpx.Response(200, json={"id": name, "state": "ready", **others})
            )

    service.graphs_ = mix
    session.step(lengthscale=0.4)
    assert isinstance(until(lambda: session.last_error), BadAnswer)
    assert "ffff" in str(session.last_error)
    service.graphs_ = kept
    assert scale_of(session.sync()) == 0.4
    assert scale_of(graph) == 0.3
