from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as StoreTimeoutError

from pcct_core.spec import GraphSpec
from worker.keys import Keys
from worker.settings import SharedSettings
from worker.store import (
    LAYOUT,
    DamagedData,
    Dataset,
    GraphRecord,
    NewerLayout,
    StagingLost,
    Store,
    UnknownDataset,
    UnknownGraph,
    WorkerInfo,
    graph_id,
)

pytestmark = pytest.mark.anyio

SPEC = GraphSpec(kind="vecchia", k=5)
LIMIT = {"max_attempts": 3, "exhausted": {"type": "worker-died", "title": "t", "detail": "d"}}


def arrays(n: int = 200, k: int = 5) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    return {
        "neighbors": generator.integers(0, n, (n, k)).astype(np.int32),
        "distances": generator.random((n, k)),
        "order": generator.permutation(n),
    }


async def start(store: Store, dataset: Dataset, attempt: str = "one") -> GraphRecord:
    record, _ = await store.request_graph(dataset.id, SPEC)
    assert await store.mark_running(record.id, record.request, attempt, **LIMIT)
    return record


async def finish(store: Store, dataset: Dataset) -> GraphRecord:
    record = await start(store, dataset)
    assert await store.publish_graph(record.id, "one", arrays(), {"exact": True}, {"seconds": {}})
    ready = await store.graph(record.id)
    assert ready is not None
    return ready


async def stored_keys(redis: Redis) -> set[str]:
    return {key.decode() for key in await redis.keys("*")}


async def corrupt(redis: Redis, key: str, field: str) -> None:
    chunk = bytearray(await redis.hget(key, field))
    chunk[-1] ^= 1
    await redis.hset(key, field, bytes(chunk))


# Datasets


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (128, 1), (300, 5), (2, 400)])
async def test_upload_keeps_every_byte(store: Store, shape: tuple[int, int], piece: int, dtype: str) -> None:
    X = np.random.default_rng(0).random(shape).astype(dtype)
    data = X.tobytes()
    async with store.upload(*shape, dtype) as upload:
        for begin in range(0, len(data), piece):
            await upload.write(data[begin : begin + piece])
        dataset, created = await upload.commit("a" * 64, {"low": [0.0]})
    assert created
    assert dataset == Dataset("a" * 64, *shape, dtype, len(data), {"low": [0.0]})
    assert await store.dataset("a" * 64) == dataset
    loaded = await store.load_points("a" * 64)
    assert loaded.dtype == X.dtype
    assert np.array_equal(loaded, X)


async def test_upload_twice_is_created_once(store: Store, dataset: Dataset, points: np.ndarray, redis: Redis) -> None:
    before = await stored_keys(redis)
    async with store.upload(*points.shape, "float64") as upload:
        await upload.write(points.tobytes())
        again, created = await upload.commit(dataset.id)
    assert again == dataset
    assert not created
    assert await stored_keys(redis) == before


async def test_upload_left_without_commit_leaves_nothing(store: Store, points: np.ndarray, redis: Redis) -> None:
    async with store.upload(*points.shape, "float64") as upload:
        await upload.write(points.tobytes()[:3000])
        while not (staged := await stored_keys(redis)):  # noqa: ASYNC110  (chunks are stored while others arrive)
            await asyncio.sleep(0.01)
        assert len(staged) == 1
        assert 0 < await redis.ttl(staged.pop()) <= 600
    assert await stored_keys(redis) == set()


async def test_upload_refuses_the_wrong_length(store: Store, redis: Redis) -> None:
    async with store.upload(2, 2, "float32") as upload:
        await upload.write(b"\0" * 15)
        with pytest.raises(ValueError, match="15 of the announced 16 bytes"):
            await upload.commit("a" * 64)
        with pytest.raises(ValueError, match="more than the 16 bytes"):
            await upload.write(b"\0" * 2)
    assert await stored_keys(redis) == set()


async def test_load_points_drops_a_damaged_dataset(store: Store, dataset: Dataset, redis: Redis) -> None:
    await corrupt(redis, Keys().points(dataset.id), "2")
    with pytest.raises(DamagedData, match="upload it again"):
        await store.load_points(dataset.id)
    assert await store.dataset(dataset.id) is None
    assert await stored_keys(redis) == set()


async def test_load_points_notices_a_missing_chunk(store: Store, dataset: Dataset, redis: Redis) -> None:
    await redis.hdel(Keys().points(dataset.id), "1")
    with pytest.raises(DamagedData):
        await store.load_points(dataset.id)


async def test_load_points_reads_chunks_of_another_size(valkey_url: str, dataset: Dataset, points: np.ndarray) -> None:
    other = Store(Redis.from_url(valkey_url), chunk_bytes=4096)
    assert np.array_equal(await other.load_points(dataset.id), points)
    await other.aclose()


async def test_load_points_of_an_unknown_dataset(store: Store) -> None:
    with pytest.raises(UnknownDataset, match="upload it first"):
        await store.load_points("0" * 64)


async def test_delete_dataset_removes_everything(store: Store, dataset: Dataset, redis: Redis) -> None:
    assert await store.delete_dataset(dataset.id)
    assert not await store.delete_dataset(dataset.id)
    assert await stored_keys(redis) == set()


async def test_upload_whose_chunks_were_lost_is_not_kept(store: Store, points: np.ndarray, redis: Redis) -> None:
    async with store.upload(*points.shape, "float64") as upload:
        await upload.write(points.tobytes())
        await upload._staging.settle()
        (staged,) = await stored_keys(redis)
        await redis.hdel(staged, "1")  # as a store does that restarts without its last second
        with pytest.raises(StagingLost, match="the store has lost what was just sent"):
            await upload.commit("a" * 64)
    assert await stored_keys(redis) == set()


# Releases


async def test_check_layout_raises_the_number_and_refuses_a_higher_one(store: Store, redis: Redis) -> None:
    await store.check_layout()
    await store.check_layout()
    assert await redis.get(Keys.layout) == str(LAYOUT).encode()
    await redis.set(Keys.layout, LAYOUT - 1)
    await store.check_layout()
    assert await redis.get(Keys.layout) == str(LAYOUT).encode()
    await redis.set(Keys.layout, LAYOUT + 1)
    with pytest.raises(NewerLayout, match=f"layout {LAYOUT + 1} of a later release"):
        await store.check_layout()
    assert await redis.get(Keys.layout) == str(LAYOUT + 1).encode()


async def test_records_of_another_release_of_this_layout_are_read(store: Store, dataset: Dataset, redis: Redis) -> None:
    record = await finish(store, dataset)
    keys = Keys()
    await store.beat(WorkerInfo("a", 1, warm=True, graph=None), 60)
    before = (await store.dataset(dataset.id), await store.graph(record.id), await store.workers())
    for key in (keys.dataset(dataset.id), keys.graph(record.id)):
        await redis.hset(key, "added_later", "x")
    await redis.hdel(keys.dataset(dataset.id), "chunk_bytes")
    await redis.hdel(keys.graph(record.id), "origin")
    beat = json.loads(await redis.get(Keys.worker("a")))
    await redis.set(Keys.worker("a"), json.dumps(beat | {"added_later": 1}))
    assert (await store.dataset(dataset.id), await store.graph(record.id), await store.workers()) == before
    assert await store.origin(record.id) == ""
    assert len(await store.load_points(dataset.id)) == dataset.n
    assert np.array_equal(await store.load_array(record.id, "order"), arrays()["order"])


# Clocks


@pytest.mark.parametrize("hours", [-1, 1])
async def test_request_graph_renews_a_dead_run_after_the_clock_was_set(
    store: Store, dataset: Dataset, redis: Redis, hours: int
) -> None:
    record = await start(store, dataset)
    await redis.hset(Keys().graph(record.id), "updated_s", record.updated_s - hours * 3600)
    again, needed = await store.request_graph(dataset.id, SPEC)
    assert needed
    assert again.request != record.request


@pytest.mark.parametrize("hours", [-1, 1])
async def test_request_graph_leaves_a_live_run_alone_after_the_clock_was_set(
    store: Store, dataset: Dataset, redis: Redis, hours: int
) -> None:
    record = await start(store, dataset)
    await redis.hset(Keys().graph(record.id), "updated_s", record.updated_s - hours * 3600)
    assert await store.set_progress(record.id, "one", None)
    again, needed = await store.request_graph(dataset.id, SPEC)
    assert not needed
    assert again.request == record.request


@pytest.mark.parametrize("hours", [-1, 1])
async def test_wait_graph_does_not_look_at_the_wall_clock(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    record = await start(store, dataset)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + hours * 3600)
    begun = time.monotonic()
    assert (await store.wait_graph(record.id, 0.3)).state == "running"
    assert 0.3 <= time.monotonic() - begun < 30


# Requests


async def test_request_graph_needs_the_dataset(store: Store) -> None:
    with pytest.raises(UnknownDataset):
        await store.request_graph("0" * 64, SPEC)


async def test_request_graph_asked_20_times_at_once_is_one_request(store: Store, dataset: Dataset) -> None:
    answers = await asyncio.gather(*(store.request_graph(dataset.id, SPEC) for _ in range(20)))
    assert len({record.request for record, _ in answers}) == 1
    assert {record.id for record, _ in answers} == {graph_id(dataset.id, SPEC)}
    assert all(record.state == "queued" for record, _ in answers)


async def test_request_graph_asks_for_a_job_when_one_is_needed(store: Store, dataset: Dataset) -> None:
    async def asked() -> bool:
        return (await store.request_graph(dataset.id, SPEC))[1]

    assert await asked()
    assert await asked()  # still queued: submitting again heals a lost submit
    record = await start(store, dataset)
    assert not await asked()
    await store.fail_graph(record.id, "one", {"type": "x", "title": "x", "detail": "x"})
    assert await asked()
    await store.cancel_graph(record.id)
    assert await asked()
    await store.forget_graph(record.id)
    assert await asked()
    await finish(store, dataset)
    assert not await asked()


async def test_request_graph_renews_an_evicted_graph(store: Store, dataset: Dataset, redis: Redis) -> None:
    record = await finish(store, dataset)
    await redis.delete(Keys().arrays(record.id))
    again, needed = await store.request_graph(dataset.id, SPEC)
    assert needed
    assert again.state == "queued"
    assert again.request != record.request


async def test_request_graph_renews_a_run_that_fell_silent(valkey_url: str, dataset: Dataset) -> None:
    store = Store(Redis.from_url(valkey_url), stale_run_s=0.05)
    record = await start(store, dataset)
    await asyncio.sleep(0.1)
    again, needed = await store.request_graph(dataset.id, SPEC)
    assert needed
    assert again.request != record.request
    assert not await store.set_progress(record.id, "one", None)
    await store.aclose()


# Runs


async def test_mark_running_refuses_what_is_not_wanted(store: Store, dataset: Dataset) -> None:
    record, _ = await store.request_graph(dataset.id, SPEC)
    assert not await store.mark_running(record.id, "another", "one", **LIMIT)
    await store.cancel_graph(record.id)
    assert not await store.mark_running(record.id, record.request, "one", **LIMIT)
    await store.forget_graph(record.id)
    assert not await store.mark_running(record.id, record.request, "one", **LIMIT)
    assert await store.graph(record.id) is None


async def test_mark_running_returns_the_record(store: Store, dataset: Dataset) -> None:
    record, _ = await store.request_graph(dataset.id, SPEC)
    started = await store.mark_running(record.id, record.request, "one", **LIMIT)
    assert started == await store.graph(record.id)
    assert (started.state, started.attempts, started.spec) == ("running", 1, record.spec)


async def test_mark_running_gives_up_after_the_last_attempt(store: Store, dataset: Dataset) -> None:
    record, _ = await store.request_graph(dataset.id, SPEC)
    for attempt in "abc":
        assert await store.mark_running(record.id, record.request, attempt, **LIMIT)
    assert not await store.mark_running(record.id, record.request, "d", **LIMIT)
    failed = await store.graph(record.id)
    assert failed is not None
    assert failed.state == "failed"
    assert failed.error == LIMIT["exhausted"]


async def test_set_progress_is_shown_until_the_attempt_is_overtaken(store: Store, dataset: Dataset) -> None:
    record = await start(store, dataset)
    progress = {"phase": "search", "done": 1, "total": 2, "eta_s": None}
    assert await store.set_progress(record.id, "one", progress)
    assert (await store.graph(record.id)).progress == progress
    assert await store.mark_running(record.id, record.request, "two", **LIMIT)
    assert not await store.set_progress(record.id, "one", progress)
    assert (await store.graph(record.id)).progress is None


async def test_hand_back_costs_no_attempt(store: Store, dataset: Dataset) -> None:
    record = await start(store, dataset)
    assert await store.hand_back(record.id, "one")
    again = await store.graph(record.id)
    assert (again.state, again.attempts, again.request) == ("queued", 0, record.request)
    assert not await store.hand_back(record.id, "one")


@pytest.mark.parametrize("ending", ["cancel_graph", "forget_graph"])
async def test_ending_a_graph_ends_its_attempt(store: Store, dataset: Dataset, ending: str) -> None:
    record = await start(store, dataset)
    assert await getattr(store, ending)(record.id)
    assert not await getattr(store, ending)(record.id)
    assert not await store.set_progress(record.id, "one", None)
    assert not await store.publish_graph(record.id, "one", arrays(), {}, {})
    assert not await store.fail_graph(record.id, "one", {})


# Results


async def test_publish_graph_shows_everything_at_once(store: Store, dataset: Dataset) -> None:
    record = await finish(store, dataset)
    ready = await store.graph(record.id)
    assert ready.state == "ready"
    assert ready.certificate == {"exact": True}
    assert ready.progress is None
    for name, array in arrays().items():
        info = await store.array_info(record.id, name)
        assert (info.shape, np.dtype(info.dtype)) == (array.shape, array.dtype)
        assert np.array_equal(await store.load_array(record.id, name), array)
    assert await store.array_info(record.id, "nothing") is None


async def test_publish_graph_by_a_lost_attempt_changes_nothing(store: Store, dataset: Dataset, redis: Redis) -> None:
    record = await start(store, dataset)
    assert await store.mark_running(record.id, record.request, "two", **LIMIT)
    assert await store.publish_graph(record.id, "two", arrays(), {}, {})
    before = await stored_keys(redis)
    zeros = {name: np.zeros_like(array) for name, array in arrays().items()}
    assert not await store.publish_graph(record.id, "one", zeros, {}, {})
    assert await stored_keys(redis) == before
    assert np.array_equal(await store.load_array(record.id, "neighbors"), arrays()["neighbors"])


async def test_publish_graph_whose_chunks_were_lost_can_be_repeated(
    store: Store, dataset: Dataset, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await start(store, dataset)
    run = store.run_script

    async def lose_a_chunk(script: str, keys: list[str], args: list[Any]) -> int:
        if script == "publish":
            await redis.hdel(keys[2], "order:0")
        return await run(script, keys, args)

    with monkeypatch.context() as patched:
        patched.setattr(store, "run_script", lose_a_chunk)
        with pytest.raises(StagingLost):
            await store.publish_graph(record.id, "one", arrays(), {}, {})
    assert (await store.graph(record.id)).state == "running"
    assert await store.publish_graph(record.id, "one", arrays(), {}, {})
    assert np.array_equal(await store.load_array(record.id, "order"), arrays()["order"])


async def test_publish_graph_in_any_memory_order(store: Store, dataset: Dataset) -> None:
    record = await start(store, dataset)
    expected = arrays()
    twisted = {
        "neighbors": np.asfortranarray(expected["neighbors"]).astype(">i4"),
        "distances": expected["distances"],
        "order": expected["order"],
    }
    assert await store.publish_graph(record.id, "one", twisted, {}, {})
    assert np.array_equal(await store.load_array(record.id, "neighbors"), expected["neighbors"])


@pytest.mark.parametrize(("start_row", "stop_row"), [(0, 200), (0, 1), (199, 200), (50, 53), (17, 150), (9, 9)])
async def test_read_rows_returns_exactly_the_rows(
    store: Store, dataset: Dataset, start_row: int, stop_row: int
) -> None:
    record = await finish(store, dataset)
    for name, array in arrays().items():
        data = b"".join([piece async for piece in store.read_rows(record.id, record.arrays[name], start_row, stop_row)])
        assert data == array[start_row:stop_row].tobytes()


async def test_read_rows_of_a_graph_that_is_gone_or_another_by_now(
    store: Store, valkey_url: str, dataset: Dataset
) -> None:
    record = await finish(store, dataset)
    assert await store.forget_graph(record.id)
    with pytest.raises(UnknownGraph):
        _ = [piece async for piece in store.read_rows(record.id, record.arrays["neighbors"])]
    other = Store(Redis.from_url(valkey_url), chunk_bytes=2048)
    again = await finish(other, dataset)
    assert again.id == record.id
    with pytest.raises(UnknownGraph):
        _ = [piece async for piece in store.read_rows(record.id, record.arrays["neighbors"])]
    assert np.array_equal(await store.load_array(again.id, "neighbors"), arrays()["neighbors"])
    await other.aclose()


async def test_read_rows_drops_a_damaged_graph_so_that_it_is_built_again(
    store: Store, dataset: Dataset, redis: Redis
) -> None:
    record = await finish(store, dataset)
    await corrupt(redis, Keys().arrays(record.id), "distances:1")
    with pytest.raises(DamagedData, match="ask for the graph again"):
        await store.load_array(record.id, "distances")
    damaged = await store.graph(record.id)
    assert damaged.state == "failed"
    assert damaged.error["type"] == "damaged-graph"
    assert not await redis.exists(Keys().arrays(record.id))
    _, needed = await store.request_graph(dataset.id, SPEC)
    assert needed


# Waiting


async def waited(store: Store, id: str, action: Any) -> tuple[GraphRecord | None, float]:
    """Wait for a graph for long, act once the wait is under way, and return what came and how long after the act."""
    waiter = asyncio.create_task(store.wait_graph(id, 60))
    await asyncio.sleep(0.1)
    assert not waiter.done()
    begun = time.monotonic()
    await action
    return await waiter, time.monotonic() - begun


async def test_wait_graph_returns_when_the_graph_is_ready(store: Store, dataset: Dataset) -> None:
    record = await start(store, dataset)
    ready, seconds = await waited(store, record.id, store.publish_graph(record.id, "one", arrays(), {}, {}))
    assert ready.state == "ready"
    assert seconds < 30


async def test_wait_graph_returns_when_the_graph_is_forgotten(store: Store, dataset: Dataset) -> None:
    record = await start(store, dataset)
    assert (await waited(store, record.id, store.forget_graph(record.id)))[0] is None


async def test_wait_graph_returns_the_latest_at_the_timeout(store: Store, dataset: Dataset) -> None:
    record = await start(store, dataset)
    assert (await store.wait_graph(record.id, 0)).state == "running"
    assert (await store.wait_graph(record.id, 0.05)).state == "running"
    assert await store.wait_graph("0" * 64, 60) is None


async def test_wait_graph_survives_a_lost_connection(store: Store, dataset: Dataset, redis: Redis) -> None:
    record = await start(store, dataset)

    async def act() -> None:
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await store.publish_graph(record.id, "one", arrays(), {}, {})

    assert (await waited(store, record.id, act()))[0].state == "ready"


# Workers


async def test_workers_lists_those_that_beat(store: Store, redis: Redis) -> None:
    assert await store.workers() == []
    first, second = WorkerInfo("a", 1, warm=False, graph=None), WorkerInfo("b", 2, warm=True, graph="g")
    await store.beat(first, 60)
    await store.beat(second, 60)
    assert await store.workers() == [first, second]
    await store.leave("a")
    assert await store.workers() == [second]
    await redis.delete(Keys.worker("b"))  # as its expiry does
    assert await store.workers() == []
    assert await stored_keys(redis) == set()


async def test_beat_expires(store: Store) -> None:
    await store.beat(WorkerInfo("a", 1, warm=True, graph=None), 0.05)
    await asyncio.sleep(0.1)
    assert await store.workers() == []


@pytest.fixture
async def silent(tmp_path: Path) -> AsyncIterator[tuple[Store, list[None]]]:
    """A store that accepts connections and then says nothing, as one that is stopped does; one entry for each connection."""
    met: list[None] = []
    over = asyncio.Event()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(None)
        await over.wait()
        writer.close()

    server = await asyncio.start_unix_server(meet, tmp_path / "silent.sock")
    store = Store.from_settings(SharedSettings(redis_url=f"unix://{tmp_path}/silent.sock", store_timeout_s=0.2))
    yield store, met
    await store.aclose()
    over.set()
    server.close()


async def test_a_silent_store_is_waited_for_once(silent: tuple[Store, list[None]]) -> None:
    store, met = silent
    with pytest.raises(StoreTimeoutError):
        await store.dataset("0" * 64)
    assert len(met) == 1


async def test_an_upload_to_a_silent_store_is_given_up_after_one_wait(silent: tuple[Store, list[None]]) -> None:
    store, met = silent

    async def send() -> None:
        async with store.upload(10, 2, "float64") as upload:
            await upload.write(bytes(160))
            await upload.commit("0" * 64)

    with pytest.raises(StoreTimeoutError):
        await send()
    assert (
        len(met) == 3
    )  # for the chunk, to ask whether anybody is there, and to remove it, which is not waited for as long


async def test_a_chunk_may_take_long_while_the_store_answers_others(valkey_url: str, tmp_path: Path) -> None:
    """As over a slow network: what is large comes late, in both directions, and nothing is given up."""
    late = 0

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal late
        while data := await reader.read(1 << 20):
            if len(data) > 20_000:
                late += 1
                await asyncio.sleep(1.5)
            writer.write(data)
        writer.close()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(valkey_url.removeprefix("unix://").partition("?")[0])
        await asyncio.gather(carry(reader, ours), carry(theirs, writer), return_exceptions=True)

    server = await asyncio.start_unix_server(meet, tmp_path / "slow.sock", limit=1 << 20)
    store = Store.from_settings(SharedSettings(redis_url=f"unix://{tmp_path}/slow.sock", store_timeout_s=1.0))
    points = np.random.default_rng(1).random((4000, 2))
    async with store.upload(*points.shape, "float64") as upload:
        await upload.write(points.tobytes())
        await upload.commit("e" * 64)
    assert np.array_equal(await store.load_points("e" * 64), points)
    assert late >= 2
    await store.aclose()
    server.close()


async def test_a_store_that_comes_back_at_once_is_not_missed(valkey_url: str) -> None:
    store = Store.from_settings(SharedSettings(redis_url=valkey_url))
    assert await store.dataset("0" * 64) is None
    await store.redis.client_kill_filter(_type="normal", skipme=False)
    assert await store.dataset("0" * 64) is None
    await store.aclose()


async def test_secret_is_made_once_for_all_namespaces_and_workers(store: Store) -> None:
    found = await asyncio.gather(*[(store if i % 2 else store.within("other")).secret() for i in range(8)])
    assert len(set(found)) == 1
    assert len(found[0]) == 32
