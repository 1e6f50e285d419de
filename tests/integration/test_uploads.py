"""Uploads over real connections: what the transport of the unit tests cannot show."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest
import uvicorn
from redis.asyncio import Redis

from service.app import create_app
from service.settings import ServiceSettings

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def port(valkey_url: str) -> AsyncIterator[int]:
    """The port of an API process's server, on an empty store."""
    settings = ServiceSettings(redis_url=valkey_url, chunk_bytes=1 << 16, max_body_bytes=10_000_000)
    config = uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def head(length: int, extra: str = "") -> bytes:
    return f"POST /v1/datasets HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n{extra}\r\n".encode()


async def staged(redis: Redis) -> int:
    return len(await redis.keys("pcct:[ns]*"))


async def wait_for(redis: Redis, number: int) -> None:
    while await staged(redis) != number:  # noqa: ASYNC110  (another process changes it)
        await asyncio.sleep(0.02)


async def test_a_broken_connection_leaves_nothing_behind(port: int, redis: Redis) -> None:
    body = npy(np.random.default_rng(0).random((50_000, 8)))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(len(body)) + body[:2_500_000])
    await writer.drain()
    await wait_for(redis, 1)
    writer.transport.abort()
    await wait_for(redis, 0)


async def test_a_body_that_stops_short_of_its_announced_length_is_not_kept(port: int, redis: Redis) -> None:
    body = npy(np.random.default_rng(0).random((50_000, 8)))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(len(body)) + body[:-1])
    writer.write_eof()
    await reader.read()
    await wait_for(redis, 0)
    writer.close()
    await writer.wait_closed()


async def test_a_body_over_the_limit_is_refused_before_it_is_sent(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(1 << 40, "Expect: 100-continue\r\n"))
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()
    await writer.wait_closed()


async def test_a_bad_row_is_refused_while_the_rest_is_still_to_come(port: int, redis: Redis) -> None:
    points = np.zeros((150_000, 8))
    points[3, 1] = np.nan
    body = npy(points)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(len(body)) + body[:2_000_000])
    assert (await reader.readline()).startswith(b"HTTP/1.1 422")
    assert b'"row":3' in await reader.readuntil(b"}")
    assert await staged(redis) == 0
    writer.close()
    await writer.wait_closed()
