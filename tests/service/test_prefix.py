import asyncio
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from pcct_client import Client, InvalidRequest
from service.prefix import checked_prefix
from service.settings import ServiceSettings

pytestmark = pytest.mark.anyio

PROXY = Path(__file__).with_name("prefix_proxy.py")


@contextmanager
def proxied(live, way, header=""):
    """Run the proxy before a live service; its URL with the path."""
    command = [sys.executable, str(PROXY), str(live.client.base_url.port), way, header]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/below"
        finally:
            process.terminate()


def paths_in(text):
    """Return every path of ours that a page or a document links to."""
    return re.findall(r"""(?:href|src|url)["']?[=:]\s*["'](/[^"']+)["']""", text)


async def check_everything_below(url, points):
    """Walk along whatever answers name: all of it lies below the path of the proxy."""
    root = url.removesuffix("/below")
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        made = await http.post(f"{url}/v1/datasets", json=points.tolist())
        location = made.headers["Location"]
        assert location == f"/below/v1/datasets/{made.json()['id']}"
        assert (await http.get(root + location)).json()["n"] == len(points)
        asked = await http.post(
            f"{url}/v1/graphs", json={"dataset": made.json()["id"], "spec": {"k": 3}}, headers={"Prefer": "wait=20"}
        )
        assert (await http.get(root + asked.headers["Location"])).json()["state"] == "ready"
        array = asked.json()["arrays"]["neighbors"]["href"]
        assert (await http.get(root + array)).status_code == 200
        once = await http.post(f"{url}/v1/knn?k=3", json=points.tolist())
        assert (await http.get(root + once.headers["Content-Location"])).status_code == 200
        track = await http.post(f"{url}/v1/tracks", json={"dataset": made.json()["id"], "spec": {"k": 3}})
        assert (await http.delete(root + track.headers["Location"])).status_code == 204
        problem = (await http.get(f"{url}/v1/graphs/none")).json()["type"]
        assert problem == "/below/problems/unknown-graph"
        page = await http.get(root + problem, headers={"Accept": "text/html"})
        assert {path.startswith("/below/") for path in paths_in(page.text)} == {True}
        assert (await http.get(url)).headers["Location"] == "/below/docs"
        docs = await http.get(f"{url}/docs")
        for path in {*paths_in(docs.text), "/below/openapi.json"}:
            assert (await http.get(root + path)).status_code == 200, path
        document = (await http.get(f"{url}/openapi.json")).json()
        assert document["servers"][0]["url"] == "/below"
        examples = re.findall(r': "(/[^"]*/[^"]*)"', json.dumps(document))
        assert {path.startswith("/below/") for path in examples} == {True}
        assert (await http.get(root + document["externalDocs"]["url"])).status_code == 200


def use_client(url, points):
    with Client(url) as client:
        graph = client.vecchia(points, k=3, order="given")
        with client.track(points, k=3, order="given", metric="euclidean") as session:
            assert session.step().neighbors.shape == (40, 3)
        with pytest.raises(InvalidRequest):
            client.knn(points, k=40)
        return graph


@pytest.mark.parametrize("way", ["keep", "strip"])
async def test_everything_works_below_a_path(start_live, way):
    points = np.random.default_rng(4).random((40, 2))
    async with start_live(root_path="below/") as live:
        with proxied(live, way) as url:
            await check_everything_below(url, points)
            graph = await asyncio.to_thread(use_client, url, points)
            assert graph.neighbors.shape == (40, 3)


async def test_the_prefix_of_a_proxy_is_believed_when_told_to(start_live):
    points = np.random.default_rng(4).random((40, 2))
    async with start_live(trust_forwarded_prefix="on") as live:
        with proxied(live, "strip", "/below") as url:
            await check_everything_below(url, points)


@pytest.mark.parametrize(("trusted", "header"), [("off", "/below"), ("on", "/a b"), ("on", "http://evil.example")])
async def test_a_prefix_that_nobody_vouches_for_or_that_is_none_is_ignored(start_service, header, trusted):
    async with start_service(worker=False, trust_forwarded_prefix=trusted) as service:
        answer = await service.client.get("/v1/graphs/none", headers={"X-Forwarded-Prefix": header})
    assert answer.json()["type"] == "/problems/unknown-graph"


def test_a_prefix_never_names_another_host():
    assert checked_prefix("//evil.example") == "/evil.example"


@pytest.mark.parametrize(
    ("text", "prefix"), [("", ""), ("/", ""), ("pcct", "/pcct"), ("/a/b/", "/a/b"), ("/v1.2_x~-", "/v1.2_x~-")]
)
def test_checked_prefix_takes_paths(text, prefix):
    assert checked_prefix(text) == prefix
    assert ServiceSettings(root_path=text).root_path == prefix


@pytest.mark.parametrize("text", ["/a//b", "/a b", "http://host/pcct", "/../etc", "/a?b", "/é", "/" + "a" * 300])
def test_checked_prefix_refuses_what_is_no_path(text):
    with pytest.raises(ValueError, match="no path"):
        checked_prefix(text)


CALLS = (
    ("POST", "/v1/datasets", [[0.0], [1.0], [3.0]], 201),
    ("POST", "/v1/graphs", {}, 422),
    ("GET", "/v1/graphs/none", None, 404),
    ("POST", "/v1/knn", [[0.0], [1.0]], 422),
    ("GET", "/livez", None, 200),
    ("GET", "/docs", None, 200),
    ("GET", "/problems", None, 200),
    ("GET", "/v1/datasets", None, 405),
    ("GET", "/nothing", None, 404),
)


@pytest.mark.parametrize(("method", "path", "body", "status"), CALLS)
async def test_a_slash_at_the_end_changes_nothing(start_service, method, path, body, status):
    async with start_service(worker=False) as service:
        for slashes in ("", "/", "//"):
            answer = await service.client.request(method, path + slashes, json=body)
            assert answer.status_code in (status, 200), (path, slashes)
            assert answer.content


@pytest.mark.parametrize("sent", ["é".encode(), "é".encode("latin-1"), "点".encode()])
async def test_bytes_that_a_url_must_not_hold_are_answered_as_what_they_mean(start_live, sent):
    async def ask(reader, writer, target):
        writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])
        return int(head.split()[1]), (await reader.readexactly(length)).decode()

    async with start_live(worker=False) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.client.base_url.port)
        status, text = await ask(reader, writer, b"/v1/graphs/" + sent)
        assert (status, "unknown-graph" in text) == (404, True)
        status, text = await ask(reader, writer, b"/v1/graphs/" + b"0" * 64 + b"/neighbors?k=" + sent)
        assert (status, "invalid-request" in text) == (422, True)
        writer.close()
        await writer.wait_closed()
