"""Fixtures of the worker's room: a store with small chunks, and one dataset in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from redis.asyncio import Redis

from worker.store import Dataset, Store

DATASET = "d" * 64


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[Store]:
    store = Store(Redis.from_url(valkey_url), chunk_bytes=1024)
    yield store
    await store.aclose()


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(7).random((200, 3))


@pytest.fixture
async def dataset(store: Store, points: np.ndarray) -> Dataset:
    async with store.upload(*points.shape, "float64") as upload:
        await upload.write(points.tobytes())
        dataset, _ = await upload.commit(DATASET)
    return dataset
