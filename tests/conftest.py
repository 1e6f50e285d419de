"""What every room's tests share: one embedded Valkey per session, empty at the start of each test that uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from redis.asyncio import Redis


@pytest.fixture(scope="session")
def embedded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the real embedded store for the session; its URL."""
    from service.embedded import EmbeddedStore
    from service.processes import Lifeline

    lifeline = Lifeline()
    store = EmbeddedStore(tmp_path_factory.mktemp("valkey"), lifeline)
    store.start()
    yield store.url
    store.stop()
    lifeline.close()


@pytest.fixture
def valkey_url(embedded_url: str) -> str:
    """The URL of an empty store."""
    from redis import Redis

    with Redis.from_url(embedded_url) as client:
        client.flushall()
    return embedded_url


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """A client of the empty store."""
    from redis.asyncio import Redis

    async with Redis.from_url(valkey_url) as client:
        yield client
