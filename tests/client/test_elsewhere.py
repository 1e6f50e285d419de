"""One client in several processes, event loops and threads, and on its way to others: connections stay at home."""

import asyncio
import copy
import gc
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import pickle
import threading
from contextlib import contextmanager

import cloudpickle
import httpx
import numpy as np
import pytest

from pcct_client import (
    AsyncClient,
    BadAnswer,
    BelongsElsewhere,
    CannotPickle,
    Client,
    ClientClosed,
    ClientError,
    Graph,
    NoEventLoop,
    RefreshPolicy,
    dataset_id,
    errors,
)
from pcct_client.calls import _difference
from pcct_core.spec import GraphSpec

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of 3.12, where other threads run
KEY = "pcct_ab12_sEcReT"


def points(seed):
    return np.random.default_rng(seed).random((5 + seed % 7, 2))


class Handler(http.server.BaseHTTPRequestHandler):
    """Any graph is ready at once; its neighbors are made of its dataset's id, so that those of others are told apart."""

    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self):
        super().setup()
        self.server.counted.append(self.client_address)

    def do_HEAD(self):
        self.answer(200 if self.path.rpartition("/")[2] in self.server.datasets else 404, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/datasets":
            name = hashlib.sha256(body).hexdigest()
            self.server.datasets[name] = len(body)
            self.answer(201, json.dumps({"id": name}).encode())
            return
        wish = json.loads(body)
        graph = hashlib.sha256(body).hexdigest()
        self.server.graphs[graph] = wish
        self.answer(200, json.dumps({"id": graph, "state": "ready", **wish}).encode())

    def do_GET(self):
        _, _, _, graph, name = self.path.split("/")
        wish = self.server.graphs[graph]
        rows = (self.server.datasets[wish["dataset"]] - 128) // 16
        self.answer(200, npy(made_of(wish["dataset"], rows, wish["spec"]["k"])[name]))

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def made_of(dataset, rows, k):
    drawn = np.random.default_rng(int(dataset[:8], 16))
    return {"neighbors": drawn.integers(0, rows, (rows, k), np.int32), "distances": drawn.random((rows, k))}


def is_right(graph, X, k):
    expected = made_of(dataset_id(X), len(X), k)
    return (
        graph.dataset == dataset_id(X)
        and np.array_equal(graph.neighbors, expected["neighbors"])
        and np.array_equal(graph.distances, expected["distances"])
    )


@pytest.fixture
def server():
    """A real HTTP server on loopback that keeps connections alive; `counted`: one entry for each that came."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.datasets, server.graphs, server.counted = {}, {}, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def wrong_answers(client, seeds):
    """Ask for graphs of these points; return how many are wrong."""
    return sum(not is_right(client.knn(points(seed), k=2), points(seed), 2) for seed in seeds)


async def wrong_answers_async(client, seeds):
    async def is_wrong(seed):
        return not is_right(await client.knn(points(seed), k=2), points(seed), 2)

    wrong = 0
    for begin in range(0, len(seeds), 4):
        wrong += sum(await asyncio.gather(*(is_wrong(seed) for seed in seeds[begin : begin + 4])))
    return wrong


@contextmanager
def children(work, count):
    """Fork `count` children that exit with what work(i) returns; checks at the end that all returned 0."""
    pids = []
    for i in range(count):
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                status = min(work(i), 98)
            finally:
                os._exit(status)
        pids.append(pid)
    yield
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * count


@FORKS
def test_children_of_a_fork_get_their_own_answers_while_the_parent_asks_too(server):
    with Client(server.url) as client:
        assert wrong_answers(client, range(3)) == 0
        with children(lambda i: wrong_answers(client, range(100 * i, 100 * i + 25)), 4):
            assert wrong_answers(client, range(1000, 1025)) == 0
        assert wrong_answers(client, range(5)) == 0
    assert len(server.counted) == 5, "one connection for each process, and the parent's outlives its children"


@FORKS
def test_children_of_a_fork_get_their_own_answers_async(server):
    client = AsyncClient(server.url)

    def child(i):
        return asyncio.run(wrong_answers_async(client, range(100 * i, 100 * i + 12)))

    async def parent():
        async with client:
            assert await wrong_answers_async(client, range(3)) == 0
            with children(child, 3):
                assert await wrong_answers_async(client, range(1000, 1012)) == 0
            assert await wrong_answers_async(client, range(3)) == 0

    asyncio.run(parent())


@FORKS
def test_a_fork_while_other_threads_are_in_the_middle_of_requests(server):
    with Client(server.url) as client:
        asked = threading.Barrier(5)
        stop = threading.Event()
        wrong = []

        def ask(begin):
            asked.wait()
            while not stop.is_set():
                wrong.append(wrong_answers(client, range(begin, begin + 3)))

        threads = [threading.Thread(target=ask, args=[begin]) for begin in (0, 10, 20, 30)]
        for thread in threads:
            thread.start()
        asked.wait()
        for _ in range(3):
            with children(lambda i: wrong_answers(client, range(100 * i, 100 * i + 4)), 2):
                pass
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong
        assert sum(wrong) == 0


@FORKS
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_pools_of_multiprocessing_have_clients_that_work(server, start):
    with Client(server.url) as client:
        assert wrong_answers(client, [1]) == 0
        with multiprocessing.get_context(start).Pool(2) as pool:
            assert pool.starmap(wrong_answers, [(client, [2, 3]), (client, [4, 5])]) == [0, 0]


@FORKS
def test_a_child_closes_its_own_connections_alone(server):
    def child(_):
        assert wrong_answers(client, [2]) == 0
        client.close()
        with pytest.raises(ClientClosed):
            client.knn(points(3), k=2)
        return 0

    with Client(server.url) as client:
        assert wrong_answers(client, [1]) == 0
        with children(child, 1):
            pass
        assert wrong_answers(client, [1]) == 0
    assert len(server.counted) == 2


@FORKS
def test_a_transport_of_the_callers_stays_in_its_process(service):
    client = Client("http://pcct.test", transport=httpx.MockTransport(service))
    other = AsyncClient("http://pcct.test", transport=httpx.MockTransport(service))

    def child(_):
        with pytest.raises(BelongsElsewhere, match="make another client here"):
            client.upload(points(1))
        with pytest.raises(BelongsElsewhere, match="make another client here"):
            asyncio.run(other.upload(points(1)))
        client.close()
        return 0

    with children(child, 1):
        pass
    assert client.upload(points(1)) == dataset_id(points(1))


def test_where_no_asyncio_loop_runs_the_error_says_so():
    """As under trio, and in a fork of a coroutine, whose loop does not run in the child."""
    with pytest.raises(
        NoEventLoop, match=r"under asyncio\.run.*or use Client \(under trio in trio\.to_thread\.run_sync\)"
    ):
        AsyncClient().upload(points(1)).send(None)


def test_one_async_client_over_several_loops_in_turn(server):
    client = AsyncClient(server.url)
    for seed in range(3):
        assert asyncio.run(wrong_answers_async(client, [seed, seed + 1])) == 0
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(wrong_answers_async(client, [1])) == 0
    loop.close()  # without what asyncio.run does at the end: nothing is left open
    gc.collect()
    asyncio.run(client.aclose())
    with pytest.raises(ClientClosed):
        asyncio.run(client.knn(points(1), k=2))


def test_one_async_client_in_the_loops_of_several_threads(server):
    client, wrong = AsyncClient(server.url), []

    def run(begin):
        wrong.append(asyncio.run(wrong_answers_async(client, range(begin, begin + 8))))

    threads = [threading.Thread(target=run, args=[begin]) for begin in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0, 0, 0]
    assert not client._connections._pools


def test_connections_are_kept_inside_of_async_with(server):
    async def ask():
        async with AsyncClient(server.url) as client:
            for seed in range(4):
                assert is_right(await client.knn(points(seed), k=2), points(seed), 2)
        assert len(server.counted) == 1

    asyncio.run(ask())


def test_a_call_of_another_loop_outlives_aclose(server):
    client = AsyncClient(server.url)
    has_begun, is_closed = threading.Event(), threading.Event()

    def tell(state, progress):
        has_begun.set()
        assert is_closed.wait(30)

    def slow(self):
        # One look at a graph that is not ready yet: the call is in its middle.
        wish = {"dataset": "d" * 64, "spec": {"kind": "knn", "k": 2, "metric": {"type": "euclidean"}}}
        state = "ready" if is_closed.is_set() else "running"
        self.server.graphs["g" * 64] = wish
        self.server.datasets["d" * 64] = 128 + 16 * 3
        body = json.dumps({"id": "g" * 64, "state": state, **wish}).encode()
        if self.command == "POST":
            self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, body)

    get = Handler.do_GET
    server.RequestHandlerClass = type(
        "Slow",
        (Handler,),
        {"do_POST": slow, "do_GET": lambda self: get(self) if self.path.count("/") == 4 else slow(self)},
    )
    shapes = []
    thread = threading.Thread(
        target=lambda: shapes.append(asyncio.run(client.knn("d" * 64, k=2, progress=tell)).neighbors.shape)
    )
    thread.start()
    assert has_begun.wait(30)
    asyncio.run(client.aclose())
    is_closed.set()
    thread.join()
    assert shapes == [(3, 2)]


class TestMixedAnswers:
    """Whatever mixes answers up, what comes back for something else is refused."""

    def ask(self, service, **changed):
        def record():
            document = json.loads(service.requests[-1].content)
            return httpx.Response(200, json={"id": "g" * 64, "state": "ready", **document, **changed})

        service.instead["POST", "graphs"] = record
        with Client("http://pcct.test", transport=httpx.MockTransport(service), retries=0) as client:
            return client.vecchia(points(5)[:3], k=2, metric={"type": "euclidean", "lengthscale": [0.5, 1]})

    @pytest.mark.parametrize(
        ("spec", "named"),
        [
            ({"k": 3}, "spec.k"),
            ({"kind": "knn"}, "spec.kind"),
            ({"order": "hilbert"}, "spec.order"),
            ({"metric": {"type": "cosine"}}, "spec.metric.type"),
            ({"metric": {"type": "euclidean", "lengthscale": [0.5, 2.0]}}, "spec.metric.lengthscale"),
            ({"metric": {"type": "euclidean", "lengthscale": [0.5]}}, "spec.metric.lengthscale"),
        ],
    )
    def test_a_graph_for_another_spec_is_refused(self, service, spec, named):
        asked = {
            "kind": "vecchia",
            "k": 2,
            "order": "maximin",
            "metric": {"type": "euclidean", "lengthscale": [0.5, 1.0]},
        }
        assert self.ask(service, spec=asked).n == 3
        with pytest.raises(BadAnswer, match=rf"made for another {named} than was asked for"):
            self.ask(service, spec=asked | spec)
        del asked["k"]
        with pytest.raises(BadAnswer, match=r"another spec\.k than"):
            self.ask(service, spec=asked)

    @pytest.mark.parametrize("changed", [{"dataset": "f" * 64}, {"dataset": None}])
    def test_a_graph_of_another_dataset_is_refused(self, service, changed):
        with pytest.raises(BadAnswer, match=f"is of dataset {changed['dataset']}, not "):
            self.ask(service, **changed)

    def test_another_graph_than_the_one_that_was_waited_for_is_refused(self, client, service):
        service.states = ["queued", "ready"]
        service.instead["GET", "graphs"] = lambda: httpx.Response(
            200, json={"id": "h" * 64, "state": "ready", **service.documents[-1]}
        )
        with pytest.raises(BadAnswer, match="describes the graph hhh"):
            client.knn(points(5)[:3], k=2)

    @pytest.mark.parametrize(
        "arrays",
        [
            {"neighbors": np.zeros((4, 2), np.int32), "distances": np.zeros((4, 2))},
            {"neighbors": np.zeros((3, 3), np.int32), "distances": np.zeros((3, 3))},
            {"neighbors": np.zeros((3, 2), np.int64)},
            {"neighbors": np.zeros((3, 2))},
            {"distances": np.zeros((3, 2), np.int64)},
            {"distances": np.zeros((3, 1))},
            {"neighbors": np.zeros(6, np.int32), "distances": np.zeros(6)},
            {"order": np.zeros(4, np.int64)},
        ],
    )
    def test_arrays_of_another_graph_are_refused(self, client, service, arrays):
        service.arrays |= arrays
        with pytest.raises(BadAnswer, match="are not those of a graph of 3 rows with 2 neighbors each"):
            client.vecchia(points(5)[:3], k=2)

    @pytest.mark.parametrize(
        "offsets", [[0, 1, 2], [0, 1, 2, 4], [1, 1, 2, 3], [0, 2, 1, 3], [0.0, 1.0, 2.0, 3.5], [[0, 3]]]
    )
    def test_offsets_of_another_graph_are_refused(self, client, service, offsets):
        service.arrays = {"neighbors": np.zeros(3, np.int32), "distances": np.zeros(3), "offsets": np.array(offsets)}
        with pytest.raises(BadAnswer, match="are not those of a graph of 3 rows"):
            client.radius(points(5)[:3], 1.0)

    def test_an_etag_of_another_dataset_is_refused(self, client, service):
        service.instead["HEAD", "datasets"] = httpx.Response(200, headers={"ETag": f'"{"f" * 64}"'})
        with pytest.raises(BadAnswer, match="the answer has the ETag"):
            client.upload(points(5))

    def test_every_normal_form_of_the_service_is_an_answer_to_what_was_asked(self):
        stored = "a" * 64
        metrics = [
            *({"type": "euclidean", "lengthscale": scale} for scale in (1, 1.0, 0.3, [1, 1], [0.3, 2])),
            *("haversine", "cosine", {"type": "euclidean"}),
            {"type": "residual", "kernel": "rbf", "inducing": 7, "variance": 2},
            {"type": "residual", "kernel": "matern52", "inducing": {"count": 9, "seed": 4}, "lengthscale": [1, 2]},
            {"type": "residual", "kernel": "matern12", "inducing": {"dataset": stored}, "jitter": 0},
            {"type": "residual", "kernel": "matern32", "v": stored, "p": stored},
        ]
        for metric in metrics:
            for fields in ({"k": 4}, {"kind": "vecchia", "order": "hilbert", "seed": 3, "accuracy": "exact"}):
                asked = {"metric": metric, **fields}
                assert _difference(asked, GraphSpec.from_json(asked).to_json(), "spec") is None


class TestPickles:
    """What a client, a graph and an error are in another process."""

    @pytest.fixture(params=["pickle", "cloudpickle", "deepcopy"])
    def again(self, request):
        if request.param == "deepcopy":
            return copy.deepcopy
        library = {"pickle": pickle, "cloudpickle": cloudpickle}[request.param]
        return lambda value: library.loads(library.dumps(value))

    @pytest.mark.parametrize("make", [Client, AsyncClient])
    def test_a_client_is_what_it_was_made_with(self, monkeypatch, again, make):
        monkeypatch.delenv("PCCT_API_KEY", raising=False)
        client = make("http://me:pw@h:8000/inner", retries=2, headers={"X-Token": "é"})
        other = again(client)
        assert type(other) is make
        assert repr(other) == repr(client)
        assert (other._address.headers, other._retries) == (client._address.headers, client._retries)
        assert again(make(api_key=KEY))._address.headers["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize("make", [Client, AsyncClient])
    def test_a_key_of_the_environment_stays_there(self, monkeypatch, again, make):
        monkeypatch.setenv("PCCT_API_KEY", KEY)
        client = make("http://h:8000")
        assert KEY.encode() not in pickle.dumps(client)
        monkeypatch.setenv("PCCT_API_KEY", "pcct_there")
        assert again(client)._address.headers["authorization"] == "Bearer pcct_there"

    def test_a_client_that_is_used_works_again_elsewhere(self, server):
        with Client(server.url) as client:
            assert wrong_answers(client, [1]) == 0
            with pickle.loads(pickle.dumps(client)) as other, copy.deepcopy(client) as third:
                assert wrong_answers(other, [2]) + wrong_answers(third, [3]) == 0
            assert wrong_answers(client, [1]) == 0
        with pickle.loads(pickle.dumps(client)) as other:
            assert wrong_answers(other, [2]) == 0

    def test_a_transport_pickles_or_is_named(self, service):
        client = Client("http://pcct.test", transport=httpx.MockTransport(service))
        with pytest.raises(CannotPickle, match=r"transport does not pickle \(.*make a client where it is needed"):
            pickle.dumps(Client("http://pcct.test", transport=httpx.HTTPTransport()))
        with pytest.raises(TypeError):
            pickle.dumps(Client("http://pcct.test", transport=httpx.MockTransport(lambda request: None)))
        assert copy.deepcopy(client).upload(points(1)) == dataset_id(points(1))
        assert len(service.requests) == 2

    def test_a_session_is_not_pickled(self, again):
        session = AsyncClient().track(points(1), k=2)
        with pytest.raises(CannotPickle, match=r"send session\.graph, or the client, and begin another"):
            again(session)

    def test_graphs_and_policies_are_the_same(self, client, service, again):
        graph = client.vecchia(points(5)[:3], k=2)
        other = again(graph)
        assert isinstance(other, Graph)
        assert repr(other) == repr(graph)
        for name in ("neighbors", "distances", "order", "points"):
            np.testing.assert_array_equal(getattr(other, name), getattr(graph, name))
        assert again(RefreshPolicy(tolerance=0.2)) == RefreshPolicy(tolerance=0.2)

    def test_every_error_is_the_same(self, again):
        problem = {"type": "/problems/x", "title": "T", "detail": "D", "row": 3, "field": "k"}
        arguments = {
            "ClientClosed": ("http://h",),
            "ServerUnavailable": ("away", 3.0, False),
            "WaitTimeout": ("late", "g" * 64),
            "BuildFailed": ("failed", "g" * 64, "failed", problem),
            "VersionMismatch": ("1", "2"),
            "RateLimited": (429, problem, 2.0),
            "NoEventLoop": (),
        }
        kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ClientError)]
        assert len(kinds) > 20
        for kind in kinds:
            refused = (422, problem) if issubclass(kind, errors.RequestRefused) else ("words",)
            error = kind(*arguments.get(kind.__name__, refused))
            other = again(error)
            assert (type(other), str(other), other.args) == (kind, str(error), error.args)
            assert vars(other) == vars(error)
