from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from redis.asyncio import Redis

from pcct_core.spec import GraphSpec
from worker.eviction import NamespaceFull
from worker.keys import Keys
from worker.store import Store, graph_id
from worker.tasks import Queue
from worker.tracks import RefreshPolicy, Tracks

pytestmark = pytest.mark.anyio

SPEC = GraphSpec(k=2)
SIZE = 80 * 2 * 8  # of one dataset
LIMIT = {"max_attempts": 3, "exhausted": {"type": "worker-died", "title": "t", "detail": "d"}}


@pytest.fixture
async def small(valkey_url: str) -> AsyncIterator[Store]:
    """A store whose namespaces hold three datasets each."""
    store = Store(Redis.from_url(valkey_url), chunk_bytes=1024, namespace_bytes=3 * SIZE)
    yield store
    await store.aclose()


async def put(store: Store, number: int) -> str:
    id = f"{number:064x}"
    async with store.upload(80, 2, "float64") as upload:
        await upload.write(np.full((80, 2), float(number)).tobytes())
        await upload.commit(id)
    return id


async def there(store: Store, *ids: str) -> list[bool]:
    return [bool(await store.redis.exists(store.keys.dataset(id))) for id in ids]


async def finish(store: Store, dataset: str, floats: int) -> str:
    """Build the graph of a dataset, as a job does; return its id."""
    record, _ = await store.request_graph(dataset, SPEC)
    assert await store.mark_running(record.id, record.request, "one", **LIMIT)
    assert await store.publish_graph(record.id, "one", {"distances": np.zeros(floats)}, {}, {})
    return record.id


async def test_what_was_used_longest_ago_goes(small: Store, redis: Redis) -> None:
    ids = [await put(small, number) for number in range(3)]
    await small.dataset(ids[0])
    newest = await put(small, 9)
    assert await there(small, *ids, newest) == [True, False, True, True]
    assert await redis.hgetall(Keys.metrics) == {b"pcct_evictions|dataset": b"1"}
    assert not await redis.exists(small.keys.points(ids[1]))


async def test_uploading_what_is_there_evicts_nothing(small: Store) -> None:
    ids = [await put(small, number) for number in range(3)]
    await put(small, 0)
    assert await there(small, *ids) == [True, True, True]


async def test_one_namespace_does_not_evict_from_another(small: Store) -> None:
    other = small.within("other")
    ids = [await put(small, number) for number in range(3)]
    for number in range(8):
        await put(other, number)
    assert await there(small, *ids) == [True, True, True]
    assert await there(other, *(f"{number:064x}" for number in range(8))) == [False] * 5 + [True] * 3


async def test_datasets_of_jobs_stay(small: Store) -> None:
    ids = [await put(small, number) for number in range(3)]
    record, _ = await small.request_graph(ids[0], SPEC)
    newest = await put(small, 9)
    assert await there(small, *ids, newest) == [True, False, True, True]
    await small.cancel_graph(record.id)
    for number in range(10, 13):
        await put(small, number)
    assert await there(small, ids[0]) == [False]


async def test_graphs_go_too_and_their_records_with_them(small: Store, redis: Redis) -> None:
    dataset = await put(small, 1)
    graph = await finish(small, dataset, SIZE // 8)
    await small.dataset(dataset)
    await put(small, 2)
    await put(small, 3)
    assert await small.graph(graph) is None
    assert await there(small, dataset) == [True]
    assert await redis.hget(Keys.metrics, "pcct_evictions|graph") == b"1"


async def test_what_a_track_follows_stays(small: Store, valkey_url: str) -> None:
    queue = Queue(valkey_url, "refresh", task="follow")
    tracks = Tracks(small, queue, queue)
    dataset = await put(small, 1)
    graph = await finish(small, dataset, SIZE // 8)
    track = await tracks.create(dataset, SPEC, RefreshPolicy())
    assert track.graph == graph == graph_id(dataset, SPEC)
    last = [await put(small, number) for number in range(2, 6)]
    assert await small.is_intact(graph)
    assert await there(small, dataset, *last) == [True, False, False, False, True]
    await tracks.delete(track.id)
    for number in range(6, 9):
        await put(small, number)
    assert await small.graph(graph) is None
    await queue.aclose()


async def test_what_does_not_fit_is_refused_and_evicts_nothing(small: Store) -> None:
    ids = [await put(small, number) for number in range(3)]
    for id in ids[:2]:
        await small.request_graph(id, SPEC)
    async with small.upload(160, 2, "float64") as upload:
        await upload.write(bytes(2 * SIZE))
        with pytest.raises(NamespaceFull, match=f"may hold {3 * SIZE} bytes, of which {2 * SIZE} are in use"):
            await upload.commit("f" * 64)
    assert await there(small, *ids) == [True, True, True]
    assert await small.redis.keys("pcct:staging:*") == []


async def test_deleting_makes_room(small: Store) -> None:
    ids = [await put(small, number) for number in range(3)]
    await small.delete_dataset(ids[2])
    await put(small, 9)
    assert await there(small, *ids[:2]) == [True, True]
    graph = await finish(small, ids[0], 8)
    await small.forget_graph(graph)
    names = {f"dataset:{id}".encode() for id in (ids[0], f"{9:064x}")}  # the graph took the place of another
    assert set(await small.redis.hkeys(small.keys.sizes)) == names
    assert not await small.redis.exists(small.keys.jobs)
