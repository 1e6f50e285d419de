import asyncio
import subprocess
import sys
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest

import pcct_client
from pcct_client import (
    AsyncClient,
    BadAnswer,
    BuildFailed,
    Client,
    ClientClosed,
    InvalidRequest,
    InvalidUrl,
    NotFound,
    RequestRefused,
    ServerUnavailable,
    TooLarge,
    TruncatedAnswer,
    VersionMismatch,
    WaitTimeout,
    dataset_id,
)
from pcct_client.following import track_spec
from pcct_client.retry import Retries

POINTS = np.random.default_rng(5).normal(size=(3, 2))


def test_upload_sends_points_that_are_new(client, service, npy):
    assert client.upload(POINTS) == dataset_id(POINTS)
    assert service.said() == [f"HEAD /datasets/{dataset_id(POINTS)}", "POST /datasets"]
    assert service.datasets[dataset_id(POINTS)] == npy(POINTS)
    assert service.requests[1].headers["content-type"] == "application/x-npy"
    assert "transfer-encoding" not in service.requests[1].headers


def test_upload_skips_points_that_are_known(client, service):
    client.upload(POINTS)
    assert client.upload(np.asfortranarray(POINTS)) == dataset_id(POINTS)
    assert service.said()[2:] == [f"HEAD /datasets/{dataset_id(POINTS)}"]


def test_upload_notices_points_that_changed_on_the_way(client, service):
    service.instead["POST", "datasets"] = httpx.Response(201, json={"id": "other"})
    with pytest.raises(BadAnswer, match="changed on the way"):
        client.upload(POINTS)


def test_vecchia_returns_arrays_and_what_is_known_about_them(client, service):
    graph = client.vecchia(POINTS, k=2, metric="haversine")
    for name, array in service.arrays.items():
        np.testing.assert_array_equal(getattr(graph, name), array)
        assert getattr(graph, name).dtype == array.dtype
    assert service.documents[0] == {
        "dataset": dataset_id(POINTS),
        "spec": {"kind": "vecchia", "k": 2, "order": "maximin", "metric": {"type": "haversine"}, "seed": 0},
    }
    assert graph.dataset == dataset_id(POINTS)
    assert graph.certificate["exact"] is True
    assert graph.telemetry["seconds"] == {"search": 100.0}
    assert set(graph.timings) == {"upload", "queue", "build", "download"}
    assert min(graph.timings.values()) >= 0
    assert graph.timings["build"] < 100, "the time of the first build is not this call's"


def test_knn_has_no_order_and_asks_for_none(client, service):
    graph = client.knn(POINTS, k=2)
    assert (graph.order, graph.offsets) == (None, None)
    assert service.said()[-2:] == [f"GET /graphs/{'g' * 64}/neighbors", f"GET /graphs/{'g' * 64}/distances"]
    assert all(request.headers["accept-encoding"] == "identity" for request in service.requests)


def test_query_uploads_both_arrays_and_asks_for_a_graph(client, service):
    queries = POINTS + 1.0
    answer = client.query(POINTS, queries, k=2, metric="haversine")
    assert set(service.datasets) == {dataset_id(POINTS), dataset_id(queries)}
    assert service.documents == [
        {
            "dataset": dataset_id(POINTS),
            "spec": {"kind": "query", "queries": dataset_id(queries), "k": 2, "metric": {"type": "haversine"}},
        }
    ]
    np.testing.assert_array_equal(answer.neighbors, service.arrays["neighbors"])
    assert answer.order is None


def test_radius_has_offsets_and_no_k(client, service):
    service.arrays |= {
        "neighbors": np.array([1, 0], np.int32),
        "distances": np.array([0.5, 0.5]),
        "offsets": np.array([0, 1, 2, 2]),
    }
    graph = client.radius(POINTS, 0.5, metric="cosine")
    assert service.documents[0]["spec"] == {"kind": "radius", "radius": 0.5, "metric": {"type": "cosine"}}
    assert service.said()[-1] == f"GET /graphs/{'g' * 64}/offsets"
    assert (graph.n, graph.order) == (3, None)
    np.testing.assert_array_equal(graph.offsets, [0, 1, 2, 2])


def test_query_within_a_radius_asks_for_no_k(client, service):
    service.arrays |= {
        "neighbors": np.array([1, 0, 2], np.int32),
        "distances": np.array([0.5, 0.5, 0.0]),
        "offsets": np.array([0, 1, 2, 3]),
    }
    answer = client.query(POINTS, "b" * 64, radius=2.0)
    asked = {"kind": "query", "queries": "b" * 64, "radius": 2.0, "metric": {"type": "euclidean"}}
    assert service.documents[0]["spec"] == asked
    np.testing.assert_array_equal(answer.offsets, [0, 1, 2, 3])


def test_query_takes_dataset_ids(client, service):
    client.query("a" * 64, "b" * 64, k=2)
    assert service.said()[0] == "POST /graphs"
    assert service.documents[0]["spec"]["queries"] == "b" * 64


def test_graph_takes_a_dataset_id_and_json_values(client, service):
    spec = {"kind": "knn", "k": 1, "metric": {"type": "euclidean", "lengthscale": np.array([1.0, 0.5])}}
    client.graph("d" * 64, spec, k=np.int64(2))
    assert service.said()[0] == "POST /graphs"
    assert service.documents[0]["spec"] == {
        "kind": "knn",
        "k": 2,
        "metric": {"type": "euclidean", "lengthscale": [1.0, 0.5]},
    }


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array])
def test_calls_take_scalars_of_numpy(client, service, number):
    client.vecchia("d" * 64, number(2), np.array("given"), np.array("cosine"), seed=number(1), timeout=np.float32(9))
    assert service.documents[-1]["spec"] == {
        "kind": "vecchia",
        "k": 2,
        "order": "given",
        "metric": {"type": "cosine"},
        "seed": 1,
    }
    wanted = track_spec("vecchia", number(2), None, "rbf", number(9), {"order": np.array("given")}, variance=number(2))
    metric = {"type": "residual", "kernel": "rbf", "inducing": {"count": 9}, "variance": 2.0}
    assert wanted == {"kind": "vecchia", "k": 2, "metric": metric, "order": "given"}
    assert track_spec("knn", 2, np.array("cosine"), "rbf", 9, {})["metric"] == {"type": "cosine"}


def test_graph_takes_a_metric_of_the_library(client, service):
    from pcct_core.spec import Euclidean

    client.knn(POINTS, k=2, metric=Euclidean(2.0))
    assert service.documents[0]["spec"]["metric"] == {"type": "euclidean", "lengthscale": 2.0}


def test_graph_refuses_a_spec_without_json_form(client):
    with pytest.raises(TypeError, match="has no JSON form"):
        client.knn(POINTS, metric=object())


def test_graph_waits_through_queue_and_build(client, service):
    service.states = ["queued", "running", "running", "ready"]
    seen = []
    client.knn(POINTS, k=2, progress=lambda state, progress: seen.append((state, progress.get("done"))))
    assert seen == [("queued", None), ("running", 1), ("running", 1)]
    waiting = [request for request in service.requests if "prefer" in request.headers]
    assert [request.method for request in waiting] == ["POST", "GET", "GET", "GET"]
    assert {request.headers["prefer"] for request in waiting} == {"wait=1"}


def test_graph_gives_up_at_the_timeout_and_names_the_graph(client, service):
    service.states = ["running"]
    with pytest.raises(WaitTimeout, match=r"now running.*make the same call again") as caught:
        client.knn(POINTS, k=2, timeout=0.3)
    assert caught.value.graph_id == "g" * 64
    assert isinstance(caught.value, TimeoutError)


def test_points_that_a_worker_found_damaged_are_brought_again(client, service):
    service.states = ["queued", "failed", "ready"]
    service.error = {"type": "/problems/unknown-dataset", "detail": "the stored copy is damaged and was removed"}

    def failed():
        service.datasets.clear()
        return service.record()

    service.instead["GET", "graphs"] = failed
    assert client.knn(POINTS, k=2).neighbors.shape == (3, 2)
    posts = [said for said in service.said() if said.startswith("POST")]
    assert posts == ["POST /datasets", "POST /graphs", "POST /datasets", "POST /graphs"]


def test_points_that_a_worker_found_damaged_are_said_where_only_their_id_is_known(client, service):
    service.states = ["failed"]
    service.error = {"type": "/problems/unknown-dataset", "detail": "the stored copy is damaged and was removed"}
    with pytest.raises(BuildFailed, match="damaged and was removed"):
        client.knn("d" * 64, k=2)
    assert service.said() == ["POST /graphs"]


@pytest.mark.parametrize(("state", "words"), [("failed", "failed: out of memory"), ("cancelled", "was cancelled")])
def test_graph_says_why_a_build_failed(client, service, state, words):
    service.states = ["running", state]
    service.error = {"type": "about:blank", "title": "Out of memory", "detail": "out of memory"}
    with pytest.raises(BuildFailed, match=words) as caught:
        client.knn(POINTS, k=2)
    assert (caught.value.state, caught.value.graph_id) == (state, "g" * 64)
    assert caught.value.problem["title"] == "Out of memory"


def test_graph_tells_points_that_the_worker_refused_from_a_build_that_failed(client, service):
    service.states = ["failed"]
    service.error = {
        "type": "/problems/invalid-points",
        "title": "Bad points",
        "detail": "row 7: latitude 91",
        "row": 7,
    }
    with pytest.raises(InvalidRequest, match="row 7: latitude 91") as caught:
        client.knn(POINTS, k=2, metric="haversine")
    assert caught.value.row == 7


def test_graph_says_at_the_timeout_why_nothing_happens(client, service):
    service.states = ["queued"]
    service.warning = "no worker is running"
    with pytest.raises(WaitTimeout, match=r"now queued \(no worker is running\), did not come within 0\.3 s"):
        client.knn(POINTS, k=2, timeout=0.3)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidRequest), (422, InvalidRequest), (404, NotFound), (413, TooLarge), (418, RequestRefused)],
)
def test_problems_become_named_errors(client, service, problem, status, error):
    service.instead["POST", "datasets"] = problem(status, title="Invalid points", detail="row 7 is NaN", row=7)
    with pytest.raises(error, match="Invalid points: row 7 is NaN") as caught:
        client.upload(POINTS)
    assert (caught.value.status, caught.value.row, caught.value.field) == (status, 7, None)
    assert caught.value.type == "https://pcct.dev/problems/test"


def test_problems_name_the_field(client, service, problem):
    service.instead["POST", "graphs"] = problem(422, title="Invalid specification", field="k")
    with pytest.raises(InvalidRequest, match=r"^Invalid specification$") as caught:
        client.knn(POINTS, k=0)
    assert caught.value.field == "k"
    assert isinstance(caught.value, ValueError)


def test_a_store_that_is_down_is_the_service_being_unavailable(client, service):
    document = {"title": "Store unavailable", "detail": "no answer from Redis"}
    service.instead["POST", "graphs"] = httpx.Response(503, json=document, headers={"Retry-After": "3"})
    with pytest.raises(ServerUnavailable, match=r"no answer from Redis.*try again shortly") as caught:
        client.knn(POINTS, k=2)
    assert caught.value.retry_after_s == 3.0


def test_a_store_that_is_down_is_told_from_an_absent_dataset(client, service):
    service.instead["HEAD", "datasets"] = httpx.Response(503)
    with pytest.raises(ServerUnavailable):
        client.upload(POINTS)
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (405, {"text": "<html>no</html>"}),
        (405, {}),
        (200, {"text": "hello"}),
        (302, {"headers": {"Location": "https://elsewhere.test"}}),
        (201, {"json": ["a list"]}),
    ],
)
def test_another_service_at_the_url_is_noticed(client, service, status, body):
    service.instead["POST", "datasets"] = httpx.Response(status, **body)
    with pytest.raises(BadAnswer, match="URL of a pcct service"):
        client.upload(POINTS)


def test_an_answer_that_describes_no_graph_is_noticed(client, service):
    service.instead["POST", "graphs"] = httpx.Response(200, json={"state": "ready"})
    with pytest.raises(BadAnswer, match="does not describe a graph"):
        client.knn(POINTS, k=2)


@pytest.mark.parametrize(("status", "error"), [(404, NotFound), (409, RequestRefused), (503, ServerUnavailable)])
def test_a_graph_whose_arrays_stay_away_is_asked_for_twice(client, service, problem, status, error):
    service.instead["GET", "distances"] = problem(status, title="Gone")
    with pytest.raises(error, match="Gone"):
        client.knn(POINTS, k=2)
    assert [said for said in service.said() if said == "POST /graphs"] == ["POST /graphs"] * 2


def test_a_graph_that_was_lost_since_it_was_ready_is_fetched_anew(client, service, problem):
    def lost():
        del service.instead["GET", "distances"]
        service.datasets.clear()
        return problem(503, title="Stored data were damaged and removed")

    service.instead["GET", "distances"] = lost
    assert client.knn(POINTS, k=2).distances.shape == (3, 2)
    assert [said for said in service.said() if said.startswith("POST")] == ["POST /datasets", "POST /graphs"] * 2


def test_where_a_redirect_leads_is_said_and_not_followed(client, service):
    headers = {"Location": "https://pcct.test/inner/v1/datasets"}
    service.instead["POST", "datasets"] = httpx.Response(308, headers=headers)
    with pytest.raises(BadAnswer, match=r"HTTP 308 leads to https://pcct\.test/inner: .* give it to the client"):
        client.upload(POINTS)
    assert len(service.requests) == 2


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://somewhere",
        "http://",
        "http://host:port",
        "http://host:0",
        "http://host:99999",
        "",
        None,
    ],
)
def test_client_refuses_what_is_no_url(url):
    with pytest.raises(InvalidUrl, match=r"use one such as http://127\.0\.0\.1:8000"):
        Client(url)
    with pytest.raises(ValueError, match=r"use one such as"):
        AsyncClient(url)


def test_a_path_too_many_in_the_url_is_said(client, service):
    problem = {"type": "/problems/not-found", "title": "Not Found", "detail": "there is nothing at /v1/v1/datasets"}
    service.instead["POST", "datasets"] = httpx.Response(404, json=problem)
    with pytest.raises(BadAnswer, match=r"nothing at /v1/v1/datasets: give the client the URL of .* alone"):
        client.upload(POINTS)


def test_a_client_that_is_closed_says_so():
    with Client("http://pcct.test") as client:
        pass
    with pytest.raises(ClientClosed, match=r"http://pcct\.test is closed; make another"):
        client.upload(POINTS)


@pytest.mark.anyio
async def test_a_client_that_is_closed_says_so_async():
    async with AsyncClient("http://pcct.test") as client:
        pass
    with pytest.raises(ClientClosed, match=r"http://pcct\.test is closed"):
        await client.upload(POINTS)


def test_client_keeps_a_path_in_its_url(service):
    seen = []

    def answer(request):
        seen.append(request.url.path)
        return httpx.Response(200)

    with Client("http://pcct.test/inner", transport=httpx.MockTransport(answer)) as client:
        client.upload(POINTS)
    assert seen == [f"/inner/v1/datasets/{dataset_id(POINTS)}"]


def test_no_server_is_said_with_url_and_fix(serve_raw):
    with pytest.raises(ServerUnavailable, match=r"nothing answers at http://127\.0\.0\.1:1; start .*pcct up"):
        Client("http://127.0.0.1:1").upload(POINTS)


@pytest.mark.anyio
async def test_no_server_is_said_with_url_and_fix_async():
    async with AsyncClient("http://127.0.0.1:1") as client:
        with pytest.raises(ServerUnavailable, match=r"nothing answers at http://127\.0\.0\.1:1"):
            await client.upload(POINTS)


def test_a_silent_server_does_not_hang_the_client(serve_raw):
    with Client(serve_raw(None)) as client, pytest.raises(WaitTimeout, match=r"within 0\.3 s"):
        client.upload(POINTS, timeout=0.3)


@pytest.mark.anyio
async def test_a_silent_server_does_not_hang_the_client_async(serve_raw):
    async with AsyncClient(serve_raw(None)) as client:
        with pytest.raises(WaitTimeout, match=r"within 0\.3 s"):
            await client.upload(POINTS, timeout=0.3)


def test_a_connection_that_breaks_says_to_call_again(serve_raw, npy):
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + npy(POINTS)
    with (
        Client(serve_raw(cut), retries=0) as client,
        pytest.raises(ServerUnavailable, match=r"broke during POST.*call again"),
    ):
        client.knn("d" * 64)


def test_loopback_is_reached_past_a_proxy_in_the_environment(monkeypatch, serve_raw):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    known = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with Client(serve_raw(known)) as client:
        assert client.upload(POINTS) == dataset_id(POINTS)


def test_public_names_are_there():
    assert all(hasattr(pcct_client, name) for name in pcct_client.__all__)


def test_import_brings_nothing_heavy():
    code = (
        "import sys, pcct_client\n"
        "heavy = {'numba', 'scipy', 'fastapi', 'pydantic', 'redis', 'pcct_core', 'worker', 'service'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_long_poll_leaves_time_for_its_answer(client, service):
    service.states = ["running"]
    with pytest.raises(WaitTimeout) as caught:
        client.knn("d" * 64, k=2, timeout=1.6)
    assert caught.value.graph_id == "g" * 64
    assert service.requests[0].headers["prefer"] == "wait=1"
    assert len(service.requests) < 12


def test_a_timeout_between_two_requests_is_one_too(serve_raw):
    absent = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with Client(serve_raw(absent)) as client, pytest.raises(WaitTimeout, match=r"the answer .*within 0 s"):
        client.upload(POINTS, timeout=0)


def answer_again(service, key, *answers):
    """Give these answers in turn, and then what the service says itself."""
    left = list(answers)

    def answer():
        if len(left) == 1:
            del service.instead[key]
        return left.pop(0)

    service.instead[key] = answer


def test_another_version_of_the_service_is_named(client, service):
    service.instead["HEAD", "datasets"] = httpx.Response(404, headers={"Pcct-Contract": "2"})
    with pytest.raises(
        VersionMismatch, match=r"speaks version 2 .* this client version 1; install the client"
    ) as caught:
        client.upload(POINTS)
    assert (caught.value.ours, caught.value.theirs) == ("1", "2")
    service.instead["HEAD", "datasets"] = httpx.Response(200, headers={"Pcct-Contract": "1"})
    assert client.upload(POINTS) == dataset_id(POINTS)


def test_points_that_were_evicted_between_two_calls_are_brought_again(client, service):
    def evicted():
        del service.instead["POST", "graphs"]
        service.datasets.clear()
        return httpx.Response(404, json={"type": "/problems/unknown-dataset", "title": "No such dataset"})

    client.upload(POINTS)
    service.instead["POST", "graphs"] = evicted
    assert client.knn(POINTS, k=2).neighbors.shape == (3, 2)
    assert [each.split(" /")[0] + each[-9:] for each in service.said()].count("POST/datasets") == 2
    service.instead["POST", "graphs"] = evicted
    assert client.query(POINTS, "b" * 64, k=2).neighbors.shape == (3, 2)


def test_a_dataset_id_that_is_gone_cannot_be_brought_again(client, service):
    gone = httpx.Response(404, json={"type": "/problems/unknown-dataset", "title": "No such dataset"})
    service.instead["POST", "graphs"] = gone
    with pytest.raises(NotFound, match="No such dataset"):
        client.knn("d" * 64, k=2)
    assert len(service.requests) == 1
    with pytest.raises(NotFound, match="No such dataset"):
        client.knn(POINTS, k=2)
    assert [said for said in service.said() if said == "POST /graphs"] == ["POST /graphs"] * 3


def test_calls_are_made_again_while_the_service_is_away(service):
    away = httpx.Response(503, headers={"Retry-After": "0"})
    answer_again(service, ("HEAD", "datasets"), away)
    answer_again(service, ("POST", "graphs"), away, httpx.Response(429, headers={"Retry-After": "0"}))
    answer_again(service, ("GET", "neighbors"), away)
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        assert client.knn(POINTS, k=2).neighbors.shape == (3, 2)
    assert service.said().count("POST /graphs") == 3


def test_a_service_that_never_answered_is_not_waited_for():
    asked = []

    def refuse(request):
        asked.append(request)
        raise httpx.ConnectError("refused")

    with (
        Client(transport=httpx.MockTransport(refuse)) as client,
        pytest.raises(ServerUnavailable, match=r"pcct up.*refused"),
    ):
        client.upload(POINTS)
    assert len(asked) == 1


def test_a_service_that_comes_back_is_waited_for(service, monkeypatch):
    monkeypatch.setattr("pcct_client.client.Retries", lambda count: Retries(count, first_s=0.01))
    failures = [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("cut")]

    def answer(request):
        if service.requests and failures:
            raise failures.pop()
        return service(request)

    with Client("http://pcct.test", transport=httpx.MockTransport(answer)) as client:
        assert client.knn(POINTS, k=2).neighbors.shape == (3, 2)
    assert not failures


def test_a_download_cut_short_is_fetched_again_or_refused_never_half(service, npy, monkeypatch):
    monkeypatch.setattr("pcct_client.client.Retries", lambda count: Retries(count, first_s=0.01))

    def cut():
        return httpx.Response(200, stream=httpx.ByteStream(npy(service.arrays["neighbors"])[:-4]))

    answer_again(service, ("GET", "neighbors"), cut())
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        np.testing.assert_array_equal(client.knn(POINTS, k=2).neighbors, service.arrays["neighbors"])
        service.instead["GET", "neighbors"] = cut
        with pytest.raises(TruncatedAnswer, match="cut short, and none of it is kept; call again"):
            client.knn(POINTS, k=2)


def interrupted(service, key, error):
    """Raise an error in the middle of a request, once."""

    def answer():
        del service.instead[key]
        raise error

    service.instead[key] = answer


@pytest.mark.parametrize("key", [("POST", "graphs"), ("GET", "graphs")], ids=["while asking", "while waiting"])
def test_ctrl_c_cancels_the_build(service, key):
    service.states = ["running"]
    service.instead["DELETE", "graphs"] = httpx.Response(204)
    interrupted(service, key, KeyboardInterrupt())
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client, pytest.raises(KeyboardInterrupt):
        client.knn(POINTS, k=2)
    assert service.said()[-1] == f"DELETE /graphs/{'g' * 64}"


def test_ctrl_c_in_the_callback_cancels_the_build(client, service):
    def tell(state, progress):
        raise KeyboardInterrupt

    service.states = ["running"]
    service.instead["DELETE", "graphs"] = httpx.Response(204)
    with pytest.raises(KeyboardInterrupt):
        client.knn("d" * 64, k=2, progress=tell)
    assert service.said()[-1].startswith("DELETE /graphs/")


def test_ctrl_c_is_not_held_up_by_a_service_that_refuses_to_cancel(service):
    service.states = ["running"]
    service.instead["DELETE", "graphs"] = httpx.Response(500, text="no")
    interrupted(service, ("GET", "graphs"), KeyboardInterrupt())
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client, pytest.raises(KeyboardInterrupt):
        client.knn(POINTS, k=2)


def test_ctrl_c_leaves_a_graph_alone_that_is_there(service):
    interrupted(service, ("GET", "neighbors"), KeyboardInterrupt())
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client, pytest.raises(KeyboardInterrupt):
        client.knn(POINTS, k=2)
    assert not [said for said in service.said() if said.startswith("DELETE")]


@pytest.mark.anyio
async def test_a_cancelled_task_cancels_the_build(service):
    service.states = ["running"]
    service.instead["DELETE", "graphs"] = httpx.Response(204)
    async with AsyncClient("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        looked = asyncio.Event()
        waiting = asyncio.create_task(client.knn(POINTS, k=2, progress=lambda *_: looked.set()))
        await looked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert service.said()[-1] == f"DELETE /graphs/{'g' * 64}"


def test_downloads_take_no_more_memory_than_their_arrays(live_arrays):
    url, arrays = live_arrays
    size = sum(array.nbytes for array in arrays.values())
    with Client(url) as client:
        client.knn("d" * 64, k=8)
        tracemalloc.start()
        try:
            graph = client.knn("d" * 64, k=8)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    np.testing.assert_array_equal(graph.neighbors, arrays["neighbors"])
    assert size <= peak <= size + (2 << 20)


def test_uploads_take_no_memory_beside_the_points(live_arrays):
    points = np.zeros((1 << 20, 4))
    with Client(live_arrays[0]) as client:
        client.knn("d" * 64, k=8)
        tracemalloc.start()
        try:
            client.upload(points)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak <= 8 << 20


@pytest.fixture
def live_arrays():
    """A server on loopback, in a process of its own so that its memory is not counted, with a graph of 24 MB; its arrays."""
    arrays = {
        "neighbors": np.arange(1 << 21, dtype=np.int32).reshape(-1, 8),
        "distances": np.arange(1 << 21, dtype=np.float64).reshape(-1, 8),
    }
    command = [sys.executable, Path(__file__).with_name("array_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), arrays
        finally:
            process.kill()


class Restarting:
    """A server on loopback that goes away in the middle of the first array: for a moment, or silent for ever."""

    def __init__(self, service, npy, returns):
        self.service, self.npy, self.returns = service, npy, returns
        self.has_failed = False
        self.done = threading.Event()
        self.server = self.listen(0)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def listen(self, port):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = outer.service(httpx.Request(self.command, f"{outer.url}{self.path}", content=content))
                body = answer.read()
                self.send_response(answer.status_code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.path.endswith("neighbors") and not outer.has_failed:
                    outer.has_failed = True
                    self.wfile.write(body[:-6])
                    self.wfile.flush()
                    self.close_connection = True
                    outer.fail()
                elif self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = answer  # noqa: N815  (named by the library)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        return server

    def fail(self):
        if not self.returns:
            self.done.wait()
            return
        self.server.shutdown()
        self.server.server_close()
        threading.Timer(0.3, self.come_back).start()

    def come_back(self):
        self.server = self.listen(self.port)

    def stop(self):
        self.done.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(params=[Client, AsyncClient], ids=["Client", "AsyncClient"])
def ask_live(request, monkeypatch):
    """Ask a server on loopback for a graph, with either client."""
    monkeypatch.setattr("pcct_client.client.Retries", lambda count: Retries(count, first_s=0.2))

    def ask(url, **options):
        if request.param is Client:
            with Client(url) as client:
                return client.knn(POINTS, k=2, **options)

        async def ask_async():
            async with AsyncClient(url) as client:
                return await client.knn(POINTS, k=2, **options)

        return asyncio.run(ask_async())

    return ask


def test_a_restart_in_the_middle_of_a_download_is_waited_for(service, npy, ask_live):
    server = Restarting(service, npy, returns=True)
    try:
        np.testing.assert_array_equal(ask_live(server.url).neighbors, service.arrays["neighbors"])
    finally:
        server.stop()
    assert server.has_failed
    assert service.said().count(f"GET /graphs/{'g' * 64}/neighbors") == 2


def test_silence_in_the_middle_of_a_download_ends_at_the_timeout(service, npy, ask_live):
    server = Restarting(service, npy, returns=False)
    begun = time.monotonic()
    try:
        with pytest.raises(WaitTimeout, match=r"the array neighbors did not come within 0\.7 s"):
            ask_live(server.url, timeout=0.7)
    finally:
        server.stop()
    assert time.monotonic() - begun < 30
