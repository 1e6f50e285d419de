"""Tracks whose clients died, under a shifted clock: when a track was used stands in the store, so the tests turn that back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as StoreConnectionError

from pcct_core.spec import Euclidean, GraphSpec
from worker.keys import Keys
from worker.main import _sweep
from worker.store import Dataset, Store
from worker.tasks import Queue
from worker.tracks import RefreshPolicy, TrackRecord, Tracks, UnknownTrack

pytestmark = pytest.mark.anyio

SPEC = GraphSpec(kind="vecchia", k=3, metric=Euclidean(0.3))
WEEK_S = 7 * 86400.0


@pytest.fixture
async def tracks(store: Store, valkey_url: str) -> AsyncIterator[Tracks]:
    queues = Queue(valkey_url, "refresh", task="follow"), Queue(valkey_url)
    yield Tracks(store, *queues)
    for queue in queues:
        await queue.aclose()


@pytest.fixture
async def track(tracks: Tracks, dataset: Dataset) -> TrackRecord:
    return await tracks.create(dataset.id, SPEC, RefreshPolicy(cooldown_epochs=0))


async def pass_time(redis: Redis, seconds: float, namespace: str = "default") -> None:
    """Let all tracks have been used that much earlier."""
    key = Keys(namespace).tracks
    for id in await redis.zrange(key, 0, -1):
        await redis.zincrby(key, -seconds, id)


def forget_uses(tracks: Tracks) -> None:
    """Be another process, or this one a minute later."""
    tracks._uses.clear()


async def exists(tracks: Tracks, id: str) -> bool:
    try:
        await tracks.track(id)
    except UnknownTrack:
        return False
    return True


async def test_expire_deletes_a_track_that_nobody_used_with_its_events_and_pending_build(
    redis: Redis, store: Store, tracks: Tracks, track: TrackRecord
) -> None:
    assert await tracks.enter(track.id, track.driver, "d")
    record = await tracks.track(track.id)
    assert await tracks.begin(record, 1) is not None
    claim = await store.claim_graph(record.dataset, SPEC, record.id, "d", max_attempts=3, exhausted={})
    assert claim.standing == "started"
    await pass_time(redis, WEEK_S - 5)
    assert await tracks.expire(WEEK_S) == 0
    await pass_time(redis, 10)
    assert await tracks.expire(WEEK_S) == 1
    assert not await exists(tracks, track.id)
    assert not await redis.exists(Keys().track_events(track.id), Keys().tracks)
    graph = await store.graph(record.requested_graph)
    assert graph is not None
    assert graph.state == "cancelled"
    assert await tracks.expire(WEEK_S) == 0
    assert not await redis.exists(Keys.tracked)


@pytest.mark.parametrize("use", ["read", "poll", "refresh that is cached", "refresh that schedules", "events"])
async def test_expire_keeps_what_is_used(redis: Redis, tracks: Tracks, track: TrackRecord, use: str) -> None:
    await pass_time(redis, WEEK_S + 5)
    forget_uses(tracks)
    if use == "read":
        await tracks.read(track.id)
    elif use == "poll":
        await tracks.etag(track.id)
    elif use == "events":
        events = tracks.events(track.id, "0")
        await anext(events)
        await events.aclose()
    else:
        await tracks.refresh(track.id, None, 1, force=use.endswith("schedules"))
    assert await tracks.expire(WEEK_S) == 0
    assert await exists(tracks, track.id)


async def test_driving_a_track_is_no_use_of_it(redis: Redis, tracks: Tracks, track: TrackRecord) -> None:
    await pass_time(redis, WEEK_S + 5)
    await tracks.enter(track.id, track.driver, "d")
    await tracks.track(track.id)
    assert await tracks.expire(WEEK_S) == 1


async def test_a_read_is_noted_once_a_minute(
    redis: Redis, tracks: Tracks, track: TrackRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("worker.tracks.time", type("Clock", (), {"monotonic": lambda: now[0]}))

    async def noted() -> bool:
        await pass_time(redis, 1000)
        before = await redis.zscore(Keys().tracks, track.id)
        await tracks.read(track.id)
        return bool(await redis.zscore(Keys().tracks, track.id) != before)

    assert [await noted() for _ in range(3)] == [True, False, False]
    now[0] += 60.0
    assert [await noted() for _ in range(2)] == [True, False]


async def test_a_read_between_looking_and_deleting_keeps_the_track(
    redis: Redis, tracks: Tracks, track: TrackRecord
) -> None:
    await pass_time(redis, WEEK_S + 5)
    (idle,) = await tracks._run("idle", [Keys().tracks, Keys.tracked], ["default", int(WEEK_S), 10])
    forget_uses(tracks)
    await tracks.read(track.id)
    assert not await tracks._delete(idle.decode(), WEEK_S)
    assert await exists(tracks, track.id)


async def test_expire_looks_into_every_namespace(redis: Redis, store: Store, tracks: Tracks, dataset: Dataset) -> None:
    other = tracks.within("other")
    async with store.within("other").upload(200, 3, "float64") as upload:
        await upload.write(bytes(200 * 3 * 8))
        await upload.commit(dataset.id)
    theirs = await other.create(dataset.id, SPEC, RefreshPolicy())
    ours = await tracks.create(dataset.id, SPEC, RefreshPolicy())
    await pass_time(redis, WEEK_S + 5, "other")
    assert await tracks.expire(WEEK_S) == 1
    assert not await exists(other, theirs.id)
    assert await exists(tracks, ours.id)


async def test_a_track_from_before_uses_were_noted_is_listed_when_it_is_read(
    redis: Redis, tracks: Tracks, track: TrackRecord
) -> None:
    await redis.delete(Keys().tracks, Keys.tracked)
    await tracks.read(track.id)
    await pass_time(redis, WEEK_S + 5)
    assert await tracks.expire(WEEK_S) == 1


async def test_a_track_that_is_gone_is_not_listed_again(redis: Redis, tracks: Tracks, track: TrackRecord) -> None:
    await tracks.delete(track.id)
    await tracks._use(track.id)
    assert not await redis.exists(Keys().tracks)


async def test_tracks_and_turns_never_expire_by_themselves(redis: Redis, tracks: Tracks, track: TrackRecord) -> None:
    """An eviction policy such as volatile-lru takes keys that have a time to live, and no others."""
    state = [key async for key in redis.scan_iter() if b":track" in key or b":turns:" in key]
    assert len(state) >= 6
    assert [await redis.ttl(key) for key in state] == [-1] * len(state)


async def test_create_leaves_nothing_when_its_job_cannot_be_queued(
    redis: Redis, store: Store, dataset: Dataset
) -> None:
    class Away:
        async def follow(self, namespace: str, track: str, driver: str) -> None:
            raise StoreConnectionError("away")

    tracks = Tracks(store, Away(), Away())  # type: ignore[arg-type]
    with pytest.raises(StoreConnectionError):
        await tracks.create(dataset.id, SPEC, RefreshPolicy())
    assert [key async for key in redis.scan_iter("*track:*")] == []
    assert not await redis.exists(Keys().tracks)


async def test_workers_sweep_now_and_then(redis: Redis, tracks: Tracks, track: TrackRecord) -> None:
    leaving = asyncio.Event()
    sweeps = asyncio.create_task(_sweep(tracks, WEEK_S, leaving, every_s=0.01))
    tracks._uses["default", track.id] = time.monotonic()  # following it here is no use of it
    await pass_time(redis, WEEK_S + 5)
    async for _ in tracks.events(track.id):
        pass  # the stream ends when its track is deleted
    leaving.set()
    await sweeps
