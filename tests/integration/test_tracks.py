"""Tracks over HTTP against `pcct up`: what is published, told, refused and survived."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from pcct_core.graph import build_graph
from pcct_core.spec import GraphSpec

pytestmark = pytest.mark.integration

POINTS = np.random.default_rng(3).random((1500, 3))
METRIC = {"type": "residual", "kernel": "rbf", "lengthscale": [0.3, 0.3, 0.2], "inducing": {"count": 40}, "jitter": 0}
SPEC = {"kind": "vecchia", "k": 10, "metric": METRIC}
SMOOTH = 1e3  # so long a lengthscale makes the kernel matrix of the inducing points singular in float64
EAGER = {"tolerance": 0.0, "cooldown_epochs": 0}


@pytest.fixture(scope="module")
def client(service_url: str, connect: Callable[[str], Any]) -> Iterator[Any]:
    """An HTTP client of the service that the tests of this file share."""
    with connect(service_url) as client:
        yield client


class Track:
    """A track as a client follows it."""

    def __init__(self, client: Any, points: np.ndarray = POINTS, wait: bool = True, **wish: Any) -> None:
        wish = {"dataset": client.upload(points), "spec": SPEC, "policy": EAGER} | wish
        answer = client.post("/v1/tracks", json=wish, headers={"Prefer": "wait=30"} if wait else {})
        assert answer.status_code == 201, answer.text
        self.client, self.body, self.tag = client, answer.json(), answer.headers["etag"]
        self.url = answer.headers["location"]

    def refresh(self, **wish: Any) -> httpx.Response:
        return self.client.post(f"{self.url}/refresh", json=wish)

    def next(self) -> dict[str, Any]:
        """Long-poll for the next change; return the track."""
        while True:
            answer = self.client.get(self.url, headers={"If-None-Match": self.tag, "Prefer": "wait=30"})
            if answer.status_code == 200:
                self.tag = answer.headers["etag"]
                return answer.json()
            assert answer.status_code == 304

    def events(self, until: str, last: str = "0") -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield (id, name, data) of the events from `last` on, up to the first one called `until`."""
        event: dict[str, str] = {}
        with self.client.stream("GET", f"{self.url}/events", headers={"Last-Event-ID": last}) as answer:
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    event[name] = value
                elif "data" in event:
                    name = event["event"].removeprefix("neighbor_refresh.")
                    yield event["id"], name, json.loads(event["data"])
                    if name == until:
                        return
                    event = {}


def check_is_direct_build(track: dict[str, Any], client: Any, points: np.ndarray = POINTS) -> None:
    """The published arrays are, byte for byte, those of a build in this process of the same spec, which knows no track."""
    direct = build_graph(points, GraphSpec.from_json(track["spec"]))
    graph = client.get(f"/v1/graphs/{track['graph']}").json()
    assert graph["spec"] == track["spec"]
    assert set(graph["arrays"]) == set(direct.arrays())
    for name, array in direct.arrays().items():
        stored = client.array(track["graph"], name)
        assert (stored.dtype, stored.shape) == (array.dtype, array.shape)
        assert stored.tobytes() == array.tobytes(), name


def test_a_track_publishes_exactly_what_direct_builds_give(client: Any) -> None:
    track = Track(client)
    assert (track.body["version"], track.body["pending"], track.tag) == (1, None, '"1-0"')
    check_is_direct_build(track.body, client)
    for epoch, scale in enumerate(([0.28, 0.31, 0.2], [0.25, 0.33, 0.2]), start=1):
        answer = track.refresh(metric={"lengthscale": scale, "variance": 1.0 + epoch}, epoch=epoch)
        assert (answer.status_code, answer.json()["decision"]) == (202, "scheduled")
        body = track.next()
        assert (body["version"], body["epoch"], body["failures"]) == (epoch + 1, epoch, 0)
        assert body["spec"]["metric"]["lengthscale"] == scale
        assert body["spec"]["metric"]["variance"] == 1.0 + epoch
        check_is_direct_build(body, client)
    answer = track.refresh(metric={"lengthscale": scale}, epoch=5)
    expected = {"decision": "cached", "reason": "unchanged", "version": 3, "pending_version": None}
    assert (answer.status_code, answer.json()) == (200, expected)


@pytest.mark.parametrize("kind", ["knn", "vecchia"])
def test_a_track_under_a_euclidean_metric_publishes_exactly_what_direct_builds_give(client: Any, kind: str) -> None:
    points = POINTS.astype(np.float32)
    spec = {"kind": kind, "k": 7, "metric": {"type": "euclidean", "lengthscale": 0.5}}
    track = Track(client, points, spec=spec)
    track.refresh(metric={"lengthscale": [0.5, 0.1, 1.0]})
    check_is_direct_build(track.next(), client, points)


def test_a_graph_that_was_built_before_is_published_without_a_build(client: Any) -> None:
    track = Track(client)
    track.refresh(metric={"lengthscale": 0.41})
    assert track.next()["version"] == 2
    answer = track.refresh(metric={"lengthscale": METRIC["lengthscale"]})
    assert (answer.status_code, answer.json()) == (
        200,
        {"decision": "cached", "reason": "ready", "version": 3, "pending_version": None},
    )
    body = track.next()
    assert (body["version"], body["graph"]) == (3, track.body["graph"])


def test_a_graph_that_was_deleted_is_built_again(client: Any) -> None:
    track = Track(client)
    client.delete(f"/v1/graphs/{track.body['graph']}").raise_for_status()
    answer = track.refresh()
    assert (answer.status_code, answer.json()["reason"]) == (202, "lost")
    body = track.next()
    assert (body["version"], body["graph"]) == (2, track.body["graph"])
    check_is_direct_build(body, client)


def test_a_version_that_fails_is_told_and_the_last_good_one_stays(client: Any) -> None:
    track = Track(client)
    assert track.refresh(metric={"lengthscale": SMOOTH}, epoch=1).json()["pending_version"] == 2
    failed = track.next()
    assert failed["error"]["type"] == "/problems/not-positive-definite"
    assert "larger jitter" in failed["error"]["detail"]
    assert (failed["version"], failed["failures"], failed["pending"]) == (1, 1, None)
    assert (failed["graph"], failed["spec"]) == (track.body["graph"], track.body["spec"])
    check_is_direct_build(failed, client)
    told = list(track.events(until="async_error"))
    assert told[-1][2]["error"]["type"] == "/problems/not-positive-definite"
    assert told[-1][2]["version"] == 2

    assert track.refresh(metric={"lengthscale": 0.35}, epoch=2).json()["decision"] == "scheduled"
    body = track.next()
    assert (body["version"], body["failures"], body["error"]) == (3, 1, None)
    check_is_direct_build(body, client)
    assert 'pcct_refresh_errors_total{type="not-positive-definite"}' in client.get("/metrics").text


def test_bad_refreshes_are_refused_and_leave_the_track_unharmed(client: Any) -> None:
    track = Track(client)
    track.refresh(epoch=4)
    before = client.get(track.url).json()
    for wish, status, slug in [
        ({"metric": {"lengthscale": [0.3, 0.3]}}, 422, "invalid-spec"),
        ({"metric": {"lengthscale": [0.3, 0.3, 0.0]}}, 422, "invalid-spec"),
        ({"metric": {"variance": -1.0}}, 422, "invalid-spec"),
        ({"metric": {"kernel": "matern12"}}, 422, "not-a-hyperparameter"),
        ({"metric": METRIC | {"jitter": 0.5}}, 422, "not-a-hyperparameter"),
        ({"epoch": 3}, 409, "epoch-backwards"),
        ({"order": "given"}, 422, "invalid-request"),
    ]:
        answer = track.refresh(**wish)
        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}"), wish
    assert client.get(track.url).json() == before
    assert track.refresh(metric={"lengthscale": 0.45}, epoch=4).json()["decision"] == "scheduled"
    assert track.next()["version"] == 2


def test_a_deleted_track_is_gone_and_its_graphs_stay(client: Any) -> None:
    track = Track(client)
    assert client.delete(track.url).status_code == 204
    for answer in (client.get(track.url), track.refresh(), client.delete(track.url), client.get(f"{track.url}/events")):
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-track")
    check_is_direct_build(track.body, client)


def test_events_tell_each_version_in_order_and_resume(client: Any) -> None:
    track = Track(client, POINTS[::-1])
    first = list(track.events(until="swap"))
    track.refresh(metric={"lengthscale": 0.61}, epoch=1)
    track.next()
    track.refresh(epoch=2)
    second = list(track.events(until="skip_cached", last=first[-1][0]))
    for version, events in ((1, first), (2, second[:-1])):
        names = [name for _, name, _ in events]
        assert (names[0], *names[-2:]) == ("schedule", "complete", "swap")
        assert set(names[1:-2]) <= {"progress"}
        assert {data["version"] for _, _, data in events} == {version}
        done = events[-2][2]
        assert 0 < done["build_s"] <= done["seconds"]
    assert second[-1][2]["reason"] == "unchanged"
    ids = [tuple(map(int, id.split("-"))) for id, _, _ in first + second]
    assert ids == sorted(set(ids))


def test_streams_and_polls_end_when_the_service_stops(start_up: Callable[..., Any], tmp_path: Any) -> None:
    up = start_up(tmp_path / "data")
    with up.wait_ready() as client:
        track = Track(client, POINTS[:100])
        poll = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
        poll.request("GET", track.url, headers={"If-None-Match": track.tag, "Prefer": "wait=30"})
        events = track.events(until="never")
        while next(events)[1] != "swap":
            pass
        status, _, err = up.end(signal.SIGTERM)
        assert list(events) == []
        assert poll.getresponse().status == 304
        poll.close()
    assert status == 0
    assert "Traceback" not in err
    assert "timeout graceful shutdown exceeded" not in err
