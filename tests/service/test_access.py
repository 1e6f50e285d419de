"""Keys, scopes and namespaces over HTTP: every route of the application has a row here, or the first test fails."""

import asyncio
import re
import socket

import httpx
import numpy as np
import pytest
from limits.aio.storage import memory

from pcct_client import AsyncClient, Forbidden, Unauthorized
from service.access import Limiter, RateLimited, UnsafeExposure, needs_key
from service.api_keys import ApiKeys
from service.app import create_app
from service.settings import ServiceSettings

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(3).random((30, 2))
QUERIES = POINTS[:4] + 0.01
SPEC = {"kind": "knn", "k": 3}
OPEN = {
    "/",
    "/docs/assets",
    "/livez",
    "/readyz",
    "/openapi.json",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
    "/problems",
    "/problems/{name}",
}

# What each route needs, and how it is called: scope, URL, options. {dataset}, {graph} and {track} are filled in.
ROUTES = {
    ("POST", "/v1/datasets"): ("write", "/v1/datasets", {"json": POINTS.tolist()}),
    ("GET", "/v1/datasets/{dataset_id}"): ("read", "/v1/datasets/{dataset}", {}),
    ("HEAD", "/v1/datasets/{dataset_id}"): ("read", "/v1/datasets/{dataset}", {}),
    ("POST", "/v1/datasets/{dataset_id}/query"): (
        "write",
        "/v1/datasets/{dataset}/query?k=2",
        {"json": QUERIES.tolist()},
    ),
    ("POST", "/v1/graphs"): ("write", "/v1/graphs", {"json": {"dataset": "{dataset}", "spec": SPEC}}),
    ("GET", "/v1/graphs/{graph_id}"): ("read", "/v1/graphs/{graph}", {}),
    ("HEAD", "/v1/graphs/{graph_id}"): ("read", "/v1/graphs/{graph}", {}),
    ("GET", "/v1/graphs/{graph_id}/arrays"): ("read", "/v1/graphs/{graph}/arrays", {}),
    ("HEAD", "/v1/graphs/{graph_id}/arrays"): ("read", "/v1/graphs/{graph}/arrays", {}),
    ("GET", "/v1/graphs/{graph_id}/{name}"): ("read", "/v1/graphs/{graph}/neighbors", {}),
    ("HEAD", "/v1/graphs/{graph_id}/{name}"): ("read", "/v1/graphs/{graph}/neighbors", {}),
    ("POST", "/v1/tracks"): ("write", "/v1/tracks", {"json": {"dataset": "{dataset}", "spec": SPEC}}),
    ("GET", "/v1/tracks/{track_id}"): ("read", "/v1/tracks/{track}", {}),
    ("HEAD", "/v1/tracks/{track_id}"): ("read", "/v1/tracks/{track}", {}),
    ("POST", "/v1/tracks/{track_id}/refresh"): ("write", "/v1/tracks/{track}/refresh", {"json": {"force": True}}),
    ("GET", "/v1/tracks/{track_id}/events"): ("read", "/v1/tracks/{track}/events", {}),
    ("HEAD", "/v1/tracks/{track_id}/events"): ("read", "/v1/tracks/{track}/events", {}),
    ("POST", "/v1/knn"): ("write", "/v1/knn?k=3", {"json": POINTS.tolist()}),
    ("POST", "/v1/radius"): ("write", "/v1/radius?radius=0.3", {"json": POINTS.tolist()}),
    ("POST", "/v1/vecchia"): ("write", "/v1/vecchia?k=3", {"json": POINTS.tolist()}),
    ("GET", "/metrics"): ("admin", "/metrics", {}),
    ("HEAD", "/metrics"): ("admin", "/metrics", {}),
    ("DELETE", "/v1/tracks/{track_id}"): ("write", "/v1/tracks/{track}", {}),
    ("DELETE", "/v1/graphs/{graph_id}"): ("write", "/v1/graphs/{graph}", {}),
    ("DELETE", "/v1/datasets/{dataset_id}"): ("write", "/v1/datasets/{dataset}", {}),
}
SCOPES = ("read", "write", "admin")


def routes_of(app) -> set[tuple[str, str]]:
    found = set()
    for route in app.routes:
        inner = getattr(getattr(route, "original_router", None), "routes", [route])
        found |= {(method, each.path) for each in inner for method in getattr(each, "methods", ("GET",))}
    return found


def test_every_route_has_a_row():
    listed = {route for route in routes_of(create_app(ServiceSettings())) if route[1] not in OPEN}
    assert listed == set(ROUTES)


class Caller:
    """One key's view of the service."""

    def __init__(self, service, text):
        self.service, self.headers = service, {"Authorization": f"Bearer {text}"}

    async def call(self, method, url, **options):
        headers = self.headers | options.pop("headers", {})
        return await self.service.client.request(method, url, headers=headers, **options)

    async def owned(self):
        """Make a dataset, a graph and a track; return their ids."""
        dataset = (await self.call("POST", "/v1/datasets", json=POINTS.tolist())).json()["id"]
        wish = {"dataset": dataset, "spec": SPEC}
        graph = (await self.call("POST", "/v1/graphs", json=wish, headers={"Prefer": "wait=20"})).json()
        assert graph["state"] == "ready"
        track = (await self.call("POST", "/v1/tracks", json=wish)).json()["id"]
        return {"dataset": dataset, "graph": graph["id"], "track": track}


@pytest.fixture
async def guarded(start_service):
    async with start_service(auth="on") as service:
        yield service


@pytest.fixture
def keys(guarded):
    return ApiKeys(guarded.app.state.backend.store.redis)


@pytest.fixture
def caller(guarded, keys):
    async def make(namespace, scope="write"):
        _, text = await keys.create(namespace, scope)
        return Caller(guarded, text)

    return make


def filled(url, options, ids):
    def fill(value):
        if isinstance(value, str):
            return re.sub(r"\{(\w+)\}", lambda found: ids[found[1]], value)
        return {name: fill(each) for name, each in value.items()} if isinstance(value, dict) else value

    return fill(url), fill(options)


def shape(answer, ids):
    """What a caller sees of an answer, without ids and what differs from request to request."""
    text = answer.text
    for id in ids.values():
        text = text.replace(id, "ID")
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date")}
    return answer.status_code, text, headers


@pytest.mark.parametrize(("method", "path"), list(ROUTES))
async def test_another_namespace_sees_what_nobody_has(caller, method, path):
    owner, other = await caller("a"), await caller("b", "admin")
    ids = await owner.owned()
    nothing = {"dataset": "0" * 64, "graph": "0" * 64, "track": "0" * 32}
    _, url, options = ROUTES[method, path]
    theirs, wish = filled(url, options, ids)
    answer = await other.call(method, theirs, **wish)
    nobodys, wish = filled(url, options, nothing)
    if (nobodys, wish) != (url, options):
        assert shape(answer, ids) == shape(await other.call(method, nobodys, **wish), nothing)
        assert answer.status_code == 404
    elif url == "/v1/datasets":
        assert answer.status_code == 201
    else:
        assert answer.status_code == 200
    seen = [await owner.call("GET", f"/v1/{kind}s/{id}") for kind, id in ids.items()]
    assert [each.status_code for each in seen] == [200, 200, 200]


async def test_the_same_points_in_two_namespaces_are_two_datasets_and_two_builds(caller, guarded):
    first, second = await caller("a"), await caller("b")
    ids = await first.owned()
    assert len(guarded.gate.builds) == 1
    uploaded = await second.call("POST", "/v1/datasets", json=POINTS.tolist())
    assert (uploaded.status_code, uploaded.json()["id"]) == (201, ids["dataset"])
    again = await first.call("POST", "/v1/datasets", json=POINTS.tolist())
    assert again.status_code == 200
    assert (await second.owned())["graph"] == ids["graph"]
    assert len(guarded.gate.builds) == 2
    assert (await second.call("DELETE", f"/v1/datasets/{ids['dataset']}")).status_code == 204
    assert (await second.call("DELETE", f"/v1/graphs/{ids['graph']}")).status_code == 204
    assert (await first.call("GET", f"/v1/graphs/{ids['graph']}/neighbors")).status_code == 200


async def test_specifications_cannot_name_what_another_namespace_has(caller):
    owner, other = await caller("a"), await caller("b")
    ids = await owner.owned()
    mine = (await other.call("POST", "/v1/datasets", json=(POINTS + 1).tolist())).json()["id"]
    metric = {"type": "residual", "kernel": "rbf", "inducing": {"dataset": ids["dataset"]}}
    wishes = [
        ("/v1/graphs", {"dataset": mine, "spec": {"kind": "knn", "k": 2, "metric": metric}}),
        ("/v1/tracks", {"dataset": mine, "spec": {"kind": "vecchia", "k": 2, "metric": metric}}),
        ("/v1/graphs", {"dataset": mine, "spec": {"kind": "query", "k": 2, "queries": ids["dataset"]}}),
    ]
    for url, wish in wishes:
        answer = await other.call("POST", url, json=wish)
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-dataset")


@pytest.mark.parametrize("scope", SCOPES)
async def test_scopes_allow_what_the_table_says(caller, scope):
    owner, asked = await caller("a"), await caller("a", scope)
    for (method, path), (needed, url, options) in ROUTES.items():
        if path.endswith("/events"):
            continue  # it streams until the track ends; its refusal is tested with the others
        ids = await owner.owned()
        place, wish = filled(url, options, ids)
        answer = await asked.call(method, place, **wish)
        if SCOPES.index(scope) >= SCOPES.index(needed):
            assert answer.status_code < 400, (method, path, answer.text)
        else:
            assert answer.status_code == 403, (method, path)
            assert answer.headers["www-authenticate"].endswith(f'error="insufficient_scope", scope="{needed}"')


@pytest.mark.parametrize(("method", "path"), list(ROUTES))
async def test_without_a_valid_key_every_route_answers_401_alike(guarded, keys, method, path):
    key, text = await keys.create("a", "admin")
    _, url, options = ROUTES[method, path]
    place, wish = filled(url, options, {"dataset": "0" * 64, "graph": "malformed", "track": "malformed"})
    wrong = [f"pcct_{key.id}_{'0' * 64}", f"pcct_{'0' * 16}_{'0' * 64}", text + "0", text.upper(), "", "é"]
    answers = []
    for given in wrong:
        for headers in ({"Authorization": f"Bearer {given}".encode()}, {"X-API-Key": given.encode()}):
            answers.append(await guarded.client.request(method, place, headers=headers, **wish))
    assert len({(answer.status_code, answer.text, answer.headers["www-authenticate"]) for answer in answers}) == 1
    missing = await guarded.client.request(method, place, **wish)
    assert missing.status_code == answers[0].status_code == 401
    assert missing.headers["www-authenticate"] == 'Bearer realm="pcct"'
    assert text not in missing.text + answers[0].text


async def test_open_routes_need_no_key(guarded):
    for path in ("/livez", "/readyz", "/docs", "/openapi.json", "/problems", "/problems/unauthenticated"):
        assert (await guarded.client.get(path)).status_code == 200, path


async def test_both_headers_carry_a_key(guarded, keys):
    _, text = await keys.create("a", "read")
    for headers in ({"Authorization": f"bearer {text}"}, {"X-API-Key": text}):
        assert (await guarded.client.get(f"/v1/datasets/{'0' * 64}", headers=headers)).status_code == 404


async def test_keys_and_their_secrets_never_show(guarded, keys, caller, capsys, caplog):
    key, text = await keys.create("a", "write", "laptop")
    secret = text.rpartition("_")[2]
    answer = await Caller(guarded, text).call("GET", f"/v1/datasets/{'0' * 64}")
    refused = await Caller(guarded, text + "x").call("GET", f"/v1/datasets/{'0' * 64}")
    said = "".join([repr(key), repr(await keys.list()), answer.text, refused.text, caplog.text, *capsys.readouterr()])
    assert secret not in said
    assert key.digest.hex() not in said
    stored = await keys._redis.hgetall("pcct:api-keys")
    assert secret.encode() not in b"".join(stored.values())


async def test_a_revoked_key_is_refused_when_it_is_no_longer_remembered(guarded, keys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("service.api_keys.time", type("Clock", (), {"monotonic": lambda: now[0], "time": lambda: 0.0}))
    key, text = await keys.create("a", "read")
    caller = Caller(guarded, text)
    assert (await caller.call("GET", f"/v1/datasets/{'0' * 64}")).status_code == 404
    assert await keys.revoke(key.id)
    assert not await keys.revoke(key.id)
    now[0] += 5.0
    assert (await caller.call("GET", f"/v1/datasets/{'0' * 64}")).status_code == 401


def test_the_document_declares_keys_only_where_they_are_needed():
    document = create_app(ServiceSettings(auth="on")).openapi()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert bool(operation.get("security")) == (path not in OPEN), path
    document = create_app(ServiceSettings()).openapi()
    assert "securitySchemes" not in document["components"]


@pytest.mark.parametrize(
    ("family", "address", "safe"),
    [(socket.AF_INET, "127.0.0.1", True), (socket.AF_INET, "127.9.9.9", True), (socket.AF_INET, "0.0.0.0", False)],  # noqa: S104
)
def test_auto_refuses_addresses_that_others_reach(family, address, safe):
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        if safe:
            assert not needs_key("auto", listener)
        else:
            with pytest.raises(UnsafeExposure, match=r"PCCT_AUTH=on.*PCCT_AUTH=off"):
                needs_key("auto", listener)
        assert needs_key("on", listener)
        assert not needs_key("off", listener)


def test_auto_needs_no_key_on_a_socket_file(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert not needs_key("auto", listener)


class TestLimits:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [1_000_000.0]
        monkeypatch.setattr(memory, "time", type("Clock", (), {"time": lambda: now[0]}))
        monkeypatch.setattr("limits.aio.strategies.time", memory.time)
        monkeypatch.setattr("service.access.time", memory.time)
        return now

    async def test_each_caller_has_a_rate_of_its_own(self, clock):
        limiter = Limiter("3/second;5/minute")
        for caller in ("a", "b"):
            for _ in range(3):
                await limiter.count(caller)
            with pytest.raises(RateLimited) as refused:
                await limiter.count(caller)
        assert refused.value.headers == {
            "Retry-After": "1",
            "RateLimit": '"3/1s";r=0;t=1',
            "RateLimit-Policy": '"3/1s";q=3;w=1, "5/60s";q=5;w=60',
        }
        clock[0] += 2
        await limiter.count("a")
        await limiter.count("a")
        with pytest.raises(RateLimited, match="more than 5 requests in 60 s"):
            await limiter.count("a")

    async def test_a_clock_that_is_set_back_locks_nobody_out(self, clock):
        limiter = Limiter("1/minute")
        await limiter.count("a")
        clock[0] -= 3600
        await limiter.count("a")
        with pytest.raises(RateLimited) as refused:
            await limiter.count("a")
        assert int(refused.value.headers["Retry-After"]) <= 60

    async def test_requests_over_the_rate_are_429_and_probes_are_not_counted(self, start_service, clock):
        async with start_service(rate_limit="2/minute") as service:
            url = f"/v1/datasets/{'0' * 64}"
            assert [(await service.client.get(url)).status_code for _ in range(3)] == [404, 404, 429]
            assert [(await service.client.get("/livez")).status_code for _ in range(5)] == [200] * 5
            assert (await service.client.get("/readyz")).status_code == 200
            refused = await service.client.get(url)
            assert int(refused.headers["retry-after"]) > 1
            clock[0] += 120
            assert (await service.client.get(url)).status_code == 404

    async def test_keys_are_counted_apart_and_wrong_ones_by_address(self, start_service, clock):
        async with start_service(auth="on", rate_limit="1/minute") as service:
            keys = ApiKeys(service.app.state.backend.store.redis)
            url = f"/v1/datasets/{'0' * 64}"
            for _ in range(2):
                caller = Caller(service, (await keys.create("a", "read"))[1])
                assert [(await caller.call("GET", url)).status_code for _ in range(2)] == [404, 429]
            assert [(await service.client.get(url)).status_code for _ in range(2)] == [401, 429]

    async def test_a_poll_counts_once_whether_or_not_there_is_something_new(self, start_service, clock):
        async with start_service(worker=False, auth="on", rate_limit="3/minute") as service:
            keys = ApiKeys(service.app.state.backend.store.redis)
            writer, other, stranger = [
                Caller(service, (await keys.create(space, "write"))[1]) for space in ("ours", "ours", "theirs")
            ]
            dataset = (await writer.call("POST", "/v1/datasets", json=POINTS.tolist())).json()["id"]
            wish = {"dataset": dataset, "spec": SPEC}
            url = (await writer.call("POST", "/v1/tracks", json=wish)).headers["location"]
            tag = (await writer.call("GET", url)).headers["etag"]
            polls = [await other.call("GET", url, headers={"If-None-Match": name}) for name in (tag, '"9-9"', tag, tag)]
            assert [poll.status_code for poll in polls] == [304, 200, 304, 429]
            polled = {"headers": {"If-None-Match": tag}}
            assert (await stranger.call("GET", url, **polled)).status_code == 404
            assert (await service.client.get(url, **polled)).status_code == 401

    def test_a_rate_that_cannot_be_read_is_refused(self):
        with pytest.raises(ValueError, match="100/second"):
            ServiceSettings(rate_limit="often")


async def test_the_python_client_sends_its_key_and_says_what_is_wrong_with_it(guarded, keys):
    def client(key):
        return AsyncClient("http://test", transport=httpx.ASGITransport(guarded.app), api_key=key)

    _, writer = await keys.create("ours", "write")
    _, reader = await keys.create("ours", "read")
    async with client(writer) as ours:
        graph = await ours.knn(POINTS, k=3)
        assert graph.neighbors.shape == (30, 3)
    async with client(reader) as readers:
        with pytest.raises(Forbidden, match=r"needs a key with the scope write, yours has read; use another key$"):
            await readers.knn(POINTS, k=3)
    for wrong in ("", writer[:-1] + "?"):
        async with client(wrong) as strangers:
            with pytest.raises(Unauthorized, match=r"give a valid key: Client\(url, api_key=…\)") as caught:
                await strangers.knn(POINTS, k=3)
        assert not wrong or wrong not in str(caught.value)


async def test_a_key_in_the_url_is_refused_and_never_logged(guarded, keys, caplog, capsys):
    _, text = await keys.create("a", "read")
    url = f"/v1/datasets/{'0' * 64}"
    for name in ("api_key", "access_token", "x"):
        for headers in ({}, {"Authorization": f"Bearer {text}"}):
            answer = await guarded.client.get(url, params={name: text}, headers=headers)
            assert answer.status_code == 401, name
            assert "revoke this key" in answer.json()["detail"]
            assert text not in answer.text
    assert text.rpartition("_")[2] not in caplog.text + "".join(capsys.readouterr())


async def test_guessed_tracks_and_changed_ids_are_as_unknown_as_any(caller):
    """Ids of tracks are random; those of datasets and graphs follow from the points, and say nothing to other namespaces."""
    owner, other = await caller("a"), await caller("b", "admin")
    ids = await owner.owned()
    again = await owner.owned()
    assert ids["graph"] == again["graph"]
    assert sum(a == b for a, b in zip(ids["track"], again["track"], strict=True)) < 16
    for kind, id in ids.items():
        for guess in (id, id[:-1] + "0", id.upper(), id[::-1], f"../a/{id}", f"{id}%00"):
            assert (await other.call("GET", f"/v1/{kind}s/{guess}")).status_code == 404


async def test_a_namespace_that_queues_much_does_not_starve_another(caller, guarded):
    greedy, modest = await caller("a"), await caller("b")
    datasets = [
        (await each.call("POST", "/v1/datasets", json=POINTS.tolist())).json()["id"] for each in (greedy, modest)
    ]
    guarded.gate.hold()
    for k in range(1, 26):
        wish = {"dataset": datasets[0], "spec": {"kind": "knn", "k": k}}
        assert (await greedy.call("POST", "/v1/graphs", json=wish)).status_code == 202
    await asyncio.to_thread(guarded.gate.started.wait)
    wish = {"dataset": datasets[1], "spec": {"kind": "vecchia", "k": 2, "order": "given"}}
    asked = asyncio.create_task(modest.call("POST", "/v1/graphs", json=wish, headers={"Prefer": "wait=20"}))
    while True:
        if (await guarded.app.state.backend.queue.depth()) == 26:
            break
        await asyncio.sleep(0.01)
    guarded.gate.release()
    assert (await asked).json()["state"] == "ready"
    place = next(place for place, (_, spec) in enumerate(guarded.gate.builds) if spec.kind == "vecchia")
    assert place <= 2  # workers + 1


async def test_a_namespace_that_keeps_much_evicts_nothing_of_another(start_service):
    async with start_service(auth="on", namespace_bytes=3000) as service:
        keys = ApiKeys(service.app.state.backend.store.redis)
        owner, other = [Caller(service, (await keys.create(name, "write"))[1]) for name in ("a", "b")]
        ids = await owner.owned()
        for number in range(20):
            assert (await other.call("POST", "/v1/datasets", json=(POINTS + number).tolist())).status_code == 201
        for kind, id in ids.items():
            assert (await owner.call("GET", f"/v1/{kind}s/{id}")).status_code == 200
