"""Clients that hold connections without asking, or drip: they end, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from contextlib import AsyncExitStack

import numpy as np
import pytest

from service.connections import raise_file_limit
from tests.service.conftest import as_npy

pytestmark = pytest.mark.anyio

HEAD = (
    b"POST /v1/datasets?dtype=float64&shape=125000,1 HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n"
)
POINTS = np.random.default_rng(3).random((30, 2))


class Wire:
    """A bare connection to a service."""

    def __init__(self, service, stack: AsyncExitStack) -> None:
        self._url, self._stack = service.client.base_url, stack

    async def open(self) -> Wire:
        self.reader, self.writer = await asyncio.open_connection(self._url.host, self._url.port)
        self._stack.push_async_callback(self._close)
        return self

    async def _close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def drip(self, data: bytes, every_s: float) -> None:
        """Send byte by byte until the other side closes."""
        try:
            for byte in data:
                self.writer.write(bytes([byte]))
                await self.writer.drain()
                await asyncio.sleep(every_s)
        except ConnectionError:
            pass

    async def answer(self) -> tuple[int, dict[str, object]]:
        """Return status and problem of the answer, after which the connection must end."""
        head, _, body = (await self.reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)


@pytest.fixture
async def stack():
    async with AsyncExitStack() as stack:
        yield stack


async def test_a_connection_that_asks_nothing_ends(start_live, stack):
    async with start_live(head_s=0.2, worker=False) as service:
        status, problem = await (await Wire(service, stack).open()).answer()
        assert (status, problem["type"]) == (408, "/problems/head-stalled")


async def test_a_head_that_drips_ends_also_on_a_connection_that_has_asked_before(start_live, stack):
    async with start_live(head_s=0.5, keep_alive_s=60, worker=False) as service:
        wire = await Wire(service, stack).open()
        wire.writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        first = await wire.reader.readuntil(b"alive")
        assert first.startswith(b"HTTP/1.1 200")
        dripping = asyncio.create_task(wire.drip(b"GET /livez HTTP/1.1\r\n" + b"X" * 10_000, 0.02))
        rest = await wire.reader.read()
        assert b"HTTP/1.1 408" in rest
        assert b"/problems/head-stalled" in rest
        dripping.cancel()


async def test_a_body_that_drips_ends_and_leaves_nothing(start_live, stack, redis):
    async with start_live(upload_idle_s=0.5, min_upload_rate=100_000, head_s=0.2, worker=False) as service:
        wire = await Wire(service, stack).open()
        wire.writer.write(HEAD)
        dripping = asyncio.create_task(wire.drip(bytes(10_000), 0.02))
        answer = await wire.reader.readuntil(b"send the body faster")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"/problems/upload-stalled" in answer
        dripping.cancel()
        assert await redis.keys("*dataset*") == []
        assert await redis.keys("*staging*") == []


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a browser that was told https://
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_as_a_problem(start_live, stack, sent):
    async with start_live(worker=False) as service:
        wire = await Wire(service, stack).open()
        wire.writer.write(sent)
        head, _, body = (await wire.reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"Content-Type: application/problem+json" in head
        assert b"X-Request-Id: " in head
        problem = json.loads(body)
        assert (problem["type"], problem["status"]) == ("/problems/bad-request", 400)
        assert "http://" in problem["detail"]
        assert (await service.client.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    ("before", "more"),
    [
        (b"GET /", b"a" * 4096),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: ", b"a" * 4096),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * 512),
        (HEAD.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\nX: ", b"a" * 4096),
    ],
    ids=["path", "header", "headers", "trailer"],
)
async def test_a_head_without_end_is_cut_off(start_live, stack, before, more):
    async with start_live(worker=False) as service:
        wire = await Wire(service, stack).open()
        wire.writer.write(before)
        answer = asyncio.create_task(wire.reader.read())
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not answer.done() and sent < 1 << 20:
                wire.writer.write(more)
                sent += len(more)
                await wire.writer.drain()
                await asyncio.sleep(0.001)
        assert sent < 1 << 20
        with contextlib.suppress(ConnectionError):  # the rest was on its way when it was refused
            said = await answer
            assert said.startswith(b"HTTP/1.1 431 ")
            assert json.loads(said.partition(b"\r\n\r\n")[2])["type"] == "/problems/head-too-large"


async def test_a_long_body_is_no_long_head(start_live):
    async with start_live(worker=False) as service:
        points = np.random.default_rng(1).random((50_000, 2))
        for _ in range(2):
            assert await service.upload(points)

        async def pieces():
            body = as_npy(points)
            for start in range(0, len(body), 1000):
                yield body[start : start + 1000]

        answer = await service.client.post("/v1/datasets", content=pieces())
        assert answer.status_code == 200
        assert (await service.client.get("/livez", headers={"Cookie": "a" * 60_000})).status_code == 200


@pytest.mark.parametrize("wish", ["h2c", "websocket"])
async def test_the_wish_for_another_protocol_is_ignored(start_live, wish):
    """As Java's HttpClient and `curl --http2` say it in every request; the body must not be taken for that protocol."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "UPGRADE": wish, "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    async with start_live(worker=False) as service:
        for _ in range(2):  # the second on the same connection
            answer = await service.client.post("/v1/datasets", content=as_npy(POINTS), headers=headers)
            assert answer.status_code in (200, 201), answer.text
        assert (await service.client.get("/livez", headers=headers)).status_code == 200


async def test_a_body_may_speak_of_an_upgrade(start_live):
    text = json.dumps({"a": "\r\nUpgrade: h2c"}).encode() + b"\r\nUpgrade: h2c\r\n"
    async with start_live(worker=False) as service:
        answer = await service.client.post("/v1/datasets", content=text, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/malformed-array")


async def test_a_long_poll_is_no_idle_connection(start_live):
    async with start_live(head_s=0.2, keep_alive_s=1) as service:
        service.gate.hold()
        graph = (await service.ask(await service.upload(POINTS), None, kind="knn", k=2)).json()["id"]
        answer = await service.client.get(f"/v1/graphs/{graph}", headers={"Prefer": "wait=1"})
        assert answer.json()["state"] in ("queued", "running")
        service.gate.release()


async def test_five_hundred_idle_connections_leave_the_others_served(start_live, stack):
    raise_file_limit()
    async with start_live() as service:
        for _ in range(500):
            await Wire(service, stack).open()
        assert len(service.server.server_state.connections) >= 500
        assert (await service.ask(await service.upload(POINTS), kind="knn", k=2)).json()["state"] == "ready"


async def test_one_connection_too_many_is_told_so(start_live, stack):
    async with start_live(max_connections=5, worker=False) as service:
        for _ in range(4):  # the client of the test holds one
            await Wire(service, stack).open()
        status, problem = await (await Wire(service, stack).open()).answer()
        assert (status, problem["type"]) == (503, "/problems/too-many-connections")
        assert (await service.client.get("/livez")).status_code == 200


def test_raise_file_limit_raises_the_soft_limit_only():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(soft, 65536)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
