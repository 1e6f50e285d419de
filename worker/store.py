"""What lives in Redis or Valkey: datasets, graphs, their arrays, and who is working; tracks are kept by `tracks`.

A `Store` sees one namespace; `Store.within` gives another's. An array lives in one hash whose fields are its row chunks,
each behind a CRC-32, so it is renamed, evicted and deleted as a whole. Every change of a graph's state is one Lua script,
so readers and racing writers see it before or after, never in between. Nothing here computes on points.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from copy import copy
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeAlias, TypeVar, cast

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as StoreTimeoutError

from pcct_core.errors import PcctError
from pcct_core.spec import GraphSpec
from worker.eviction import EVICT, make_room, member_of
from worker.keys import Keys
from worker.patience import dispensable, end_tasks
from worker.query import Wish
from worker.settings import SharedSettings
from worker.traces import origin

T = TypeVar("T")

State: TypeAlias = Literal["queued", "running", "ready", "failed", "cancelled"]
Standing: TypeAlias = Literal["started", "elsewhere", "ended", "unwanted"]
TERMINAL: frozenset[State] = frozenset({"ready", "failed", "cancelled"})
ARRAY_NAMES = ("neighbors", "distances", "order", "offsets")

# The layout of what is stored. Releases of one layout share a store, also while one replaces the other: fields may be
# added, and readers leave alone what they do not know. Whatever an older release would read wrongly takes the next number.
LAYOUT = 1

MOST_JOBS = 1000  # of one namespace, where nothing else is said

_CRC_BYTES = 4
_READ_BYTES = 1 << 18  # as much as uvloop reads at once
_MOST_STORING = 3  # chunks of one upload: the store writes one down while the next is sent and one more is summed
_TRANSFER_S = 60.0  # longest way of one chunk, while the store answers others meanwhile
_REMOVE_S = 0.5  # longest wait for the removal of chunks that were given up; they expire by themselves
_RECHECK_S = 2.0  # a waiter looks for itself this often, should a notification be lost with a connection


class UnknownDataset(PcctError):
    """No dataset has this id; `dataset` is the id."""

    def __init__(self, dataset: str) -> None:
        super().__init__(f"there is no dataset {dataset}; upload it first")
        self.dataset = dataset


class UnknownGraph(PcctError):
    """No graph has this id, or it has no such array; `graph` is the id."""

    def __init__(self, graph: str, detail: str = "ask for it with POST /v1/graphs") -> None:
        super().__init__(f"there is no graph {graph}; {detail}")
        self.graph = graph


class TooManyJobs(PcctError):
    """The namespace has as many jobs queued as it may."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"this namespace has {most} graphs queued or running, the most that it may; wait for some of them"
        )


class DamagedData(PcctError):
    """A stored array failed its checksum or lost a piece; it has been dropped, and the message says what to do."""


class StagingLost(StoreConnectionError):
    """What was on its way into the store is not there whole: a store that restarted has lost it, or it has expired.

    An outage like any other: what was being done must be done again.
    """

    def __init__(self) -> None:
        super().__init__("the store has lost what was just sent to it")


class NewerLayout(PcctError):
    """The store is used by a later release, whose data this one could read wrongly."""

    def __init__(self, found: int) -> None:
        super().__init__(
            f"the store has layout {found} of a later release of pcct, this one knows {LAYOUT}; "
            "upgrade this process, or give it a store of its own (PCCT_REDIS_URL, or --data-dir)"
        )


@dataclass(frozen=True)
class Dataset:
    """An immutable point array.

    id: SHA-256 of the canonical .npy file. dtype: "float32" or "float64". bytes: size of the data, without a header.
    facts: whatever the uploader measured on the way (such as coordinate ranges), JSON.
    """

    id: str
    n: int
    d: int
    dtype: str
    bytes: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrayInfo:
    """One array of a finished graph. etag: hex digest of its bytes, without quotes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    etag: str
    rows_per_chunk: int

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return int(np.dtype(self.dtype).itemsize) * int(np.prod(self.shape[1:], dtype=np.int64))


@dataclass(frozen=True)
class GraphRecord:
    """What is known about a graph, whatever its state.

    request:  token of the request that made it "queued"; names the job.
    origin:   of the HTTP request that queued the job (`traces.origin`), "" when that is not known.
    attempts: times a worker has started on this request.
    progress: {"phase", "done", "total", "eta_s"} while running. error: {"type", "title", "detail", …} when failed.
    created_s, updated_s: Unix time by the store's clock.
    """

    namespace: str
    id: str
    dataset: str
    spec: dict[str, Any]
    state: State
    progress: dict[str, Any] | None
    certificate: dict[str, Any] | None
    telemetry: dict[str, Any] | None
    error: dict[str, Any] | None
    created_s: float
    updated_s: float
    request: str
    origin: str
    attempts: int
    arrays: dict[str, ArrayInfo]


@dataclass(frozen=True)
class WorkerInfo:
    """A worker alive within the last seconds.

    warm: it takes jobs, and has the machine code that most of them need. graph: id being built, or None.
    compiling: names of the parts of its machine code that are still to come.
    """

    name: str
    pid: int
    warm: bool
    graph: str | None
    compiling: tuple[str, ...] = ()


class Usage(NamedTuple):
    """Memory of the store. limit_bytes: 0 when it has none."""

    used_bytes: int
    limit_bytes: int


class Claim(NamedTuple):
    """What came of claiming a graph for a track.

    standing: "started" (build it as `attempt`), "elsewhere" (somebody else builds it: wait), "ended" (nothing to build: it
    is ready, or has failed for good), or "unwanted" (the track is gone, or driven by another delivery of its job).
    """

    standing: Standing
    attempt: str


def graph_id(dataset_id: str, spec: Wish) -> str:
    """Return the id of the graph for (dataset, spec): SHA-256 hex of both."""
    return hashlib.sha256(dataset_id.encode() + b"\n" + spec.canonical()).hexdigest()


async def wait_for_change(changed: asyncio.Event, left_s: float) -> None:
    """Return when the event of `Store.listen` is set, after left_s seconds, or when it is time to look anyway."""
    with suppress(TimeoutError):
        async with asyncio.timeout(min(left_s, _RECHECK_S)):
            await changed.wait()


def open_redis(settings: SharedSettings) -> Redis:
    """Return a client for the settings' store; connects on first use.

    One quick retry covers a store that has just restarted. An outage surfaces as a RedisError at once, a store that
    hangs within `store_timeout_s`.
    """
    client: Redis = Redis.from_url(
        settings.store_url,
        socket_timeout=settings.store_timeout_s,
        socket_connect_timeout=min(2.0, settings.store_timeout_s),
        socket_read_size=_READ_BYTES,
        retry=_OnceMore(ExponentialBackoff(cap=0.1, base=0.02), 1, supported_errors=(StoreConnectionError,)),
    )
    return client


class _OnceMore(Retry):
    """Tries again what met a broken connection, but not what waited in vain: that would wait for as long again.

    redis-py calls it a broken connection when a store accepts one and is then silent; what it was stands behind that.
    """

    async def call_with_retry(self, do: Callable[[], Awaitable[T]], *args: Any, **options: Any) -> T:
        """Await do(), as redis-py asks for it."""

        async def told_apart() -> T:
            try:
                return await do()
            except StoreConnectionError as error:
                if isinstance(error.__cause__, StoreTimeoutError):
                    raise error.__cause__ from None
                raise

        return await super().call_with_retry(told_apart, *args, **options)


# KEYS: layout. ARGV: our layout. → the layout that the store has now.
_LAYOUT = """
local found = tonumber(redis.call('GET', KEYS[1]) or 0)
if found < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], ARGV[1])
    return tonumber(ARGV[1])
end
return found
"""

# A dataset exists when its description and all its chunks do. KEYS: description, points, staged, recent, sizes.
# ARGV: chunk count, its name in recent, bytes, then field, value, … of the description.
# → 1 when created, 0 when it was there, -1 when not all that was staged is.
_COMMIT = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1e6
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HLEN', KEYS[2]) == tonumber(ARGV[1]) then
    redis.call('UNLINK', KEYS[3])
    redis.call('ZADD', KEYS[4], 'XX', now, ARGV[2])
    return 0
end
if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[1]) then
    return -1
end
redis.call('ZADD', KEYS[4], now, ARGV[2])
redis.call('HSET', KEYS[5], ARGV[2], ARGV[3])
redis.call('RENAME', KEYS[3], KEYS[2])
redis.call('PERSIST', KEYS[2])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
return 1
"""

# KEYS: graph, arrays, dataset description, recent, jobs, shares of the queue. ARGV: graph id, dataset id, spec, new request
# token, stale seconds, origin, the names of dataset and graph in recent, namespace, most jobs of it.
# → {-1} no such dataset, {-2} the namespace has its most jobs, {1, fields} a job must be queued, {0, fields} nothing to do.
# A graph that is still queued answers 1 as well: a job key runs once, and asking again heals a submit that was lost.
# A run that was last seen in the future is as silent as one long ago: the store's clock was set back since.
_REQUEST = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1e6
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'ready' and redis.call('HLEN', KEYS[2]) == tonumber(redis.call('HGET', KEYS[1], 'chunks')) then
    redis.pcall('ZADD', KEYS[4], 'XX', now, ARGV[8])
    return {0, redis.call('HGETALL', KEYS[1])}
end
local age = math.abs(now - tonumber(redis.call('HGET', KEYS[1], 'updated_s') or 0))
local running = state == 'running' and age < tonumber(ARGV[5])
if running or state == 'queued' then
    redis.call('SADD', KEYS[5], ARGV[1])
    if redis.call('HEXISTS', KEYS[1], 'track') == 1 then
        redis.call('HSET', KEYS[1], 'shared', 1)
    end
    return {running and 0 or 1, redis.call('HGETALL', KEYS[1])}
end
if redis.call('EXISTS', KEYS[3]) == 0 then
    return {-1}
end
if tonumber(redis.call('HGET', KEYS[6], ARGV[9]) or 0) >= tonumber(ARGV[10]) then
    return {-2}
end
redis.call('UNLINK', KEYS[2])
redis.call('DEL', KEYS[1])
redis.call('SADD', KEYS[5], ARGV[1])
redis.call('ZADD', KEYS[4], 'XX', now, ARGV[7])
redis.call('HSET', KEYS[1], 'dataset', ARGV[2], 'spec', ARGV[3], 'state', 'queued', 'request', ARGV[4],
    'attempts', 0, 'created_s', string.format('%.6f', now), 'updated_s', string.format('%.6f', now),
    'origin', ARGV[6])
return {1, redis.call('HGETALL', KEYS[1])}
"""

# KEYS: graph. ARGV: graph id, request, attempt, most attempts, error when there were more, channel.
# → the fields of the graph, whose attempt has started; none when it is not wanted any more or out of attempts (now failed).
_START = """
local now = redis.call('TIME')
now = string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6)
local state = redis.call('HGET', KEYS[1], 'state')
if (state ~= 'queued' and state ~= 'running') or redis.call('HGET', KEYS[1], 'request') ~= ARGV[2] then
    return {}
end
redis.call('HDEL', KEYS[1], 'progress', 'track', 'shared')
if tonumber(redis.call('HGET', KEYS[1], 'attempts')) >= tonumber(ARGV[4]) then
    redis.call('HDEL', KEYS[1], 'attempt')
    redis.call('HSET', KEYS[1], 'state', 'failed', 'error', ARGV[5], 'updated_s', now)
    redis.call('PUBLISH', ARGV[6], ARGV[1])
    return {}
end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'attempt', ARGV[3], 'updated_s', now)
return redis.call('HGETALL', KEYS[1])
"""

# Asks for a graph and starts an attempt at once, for a track's job, which builds without queueing. Its new request token
# turns away a job that is queued for the same graph; what such a job would have served counts as shared.
# KEYS: graph, arrays, dataset description, track. ARGV: graph id, dataset id, spec, request, attempt, stale seconds, track,
# delivery, most attempts, error when there were more, channel.
# → 1 started, 2 somebody else builds it, 0 it has ended (ready, or failed for good), -1 no such dataset, -2 the track is
# gone or driven by another delivery. A running attempt of the same track is one of an earlier delivery: it no longer counts.
_CLAIM = """
if redis.call('HGET', KEYS[4], 'delivery') ~= ARGV[8] then
    return -2
end
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1e6
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'ready' and redis.call('HLEN', KEYS[2]) == tonumber(redis.call('HGET', KEYS[1], 'chunks')) then
    return 0
end
if state == 'running' or state == 'queued' then
    local ours = redis.call('HGET', KEYS[1], 'track') == ARGV[7]
    local age = math.abs(now - tonumber(redis.call('HGET', KEYS[1], 'updated_s')))
    if not ours then
        redis.call('HSET', KEYS[1], 'shared', 1)
        if state == 'running' and age < tonumber(ARGV[6]) then
            return 2
        end
    end
    redis.call('HDEL', KEYS[1], 'progress', 'attempt')
    if tonumber(redis.call('HGET', KEYS[1], 'attempts')) >= tonumber(ARGV[9]) then
        redis.call('HSET', KEYS[1], 'state', 'failed', 'error', ARGV[10], 'updated_s', string.format('%.6f', now))
        redis.call('PUBLISH', ARGV[11], ARGV[1])
        return 0
    end
else
    if redis.call('EXISTS', KEYS[3]) == 0 then
        return -1
    end
    redis.call('UNLINK', KEYS[2])
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'dataset', ARGV[2], 'spec', ARGV[3], 'attempts', 0,
        'created_s', string.format('%.6f', now))
end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'request', ARGV[4], 'attempt', ARGV[5], 'track', ARGV[7],
    'updated_s', string.format('%.6f', now))
return 1
"""

# Ends what a track has started and no longer wants. KEYS: graph, track. ARGV: graph id, track id, channel, '1' for only
# while the track has published its newest requested version.
# → 0 not its own, or wanted, 1 cancelled, 2 queued, because others have asked for it too: a job must be queued.
_DROP = """
local state = redis.call('HGET', KEYS[1], 'state')
if (state ~= 'queued' and state ~= 'running') or redis.call('HGET', KEYS[1], 'track') ~= ARGV[2] then
    return 0
end
if ARGV[4] == '1' and redis.call('HGET', KEYS[2], 'requested') ~= redis.call('HGET', KEYS[2], 'version') then
    return 0
end
local now = redis.call('TIME')
local shared = redis.call('HEXISTS', KEYS[1], 'shared') == 1
redis.call('HDEL', KEYS[1], 'attempt', 'progress', 'track', 'shared')
redis.call('HSET', KEYS[1], 'state', shared and 'queued' or 'cancelled', 'updated_s',
    string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6))
redis.call('PUBLISH', ARGV[3], ARGV[1])
return shared and 2 or 1
"""

# KEYS: graph. ARGV: attempt, progress. → 1, or 0 when this attempt is not the one that counts any more.
_PROGRESS = """
if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[1] then
    return 0
end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'updated_s', string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6))
if ARGV[2] ~= '' then
    redis.call('HSET', KEYS[1], 'progress', ARGV[2])
end
return 1
"""

# KEYS: graph, arrays, staged, recent, sizes, jobs. ARGV: graph id, attempt, channel, chunk count, its name in recent, bytes,
# then field, value, … of the record. → 1, 0 when the attempt no longer counts, -1 when not all that was staged is there.
_PUBLISH = """
if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[2] then
    redis.call('UNLINK', KEYS[3])
    return 0
end
if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[4]) then
    return -1
end
local now = redis.call('TIME')
redis.call('UNLINK', KEYS[2])
redis.call('RENAME', KEYS[3], KEYS[2])
redis.call('PERSIST', KEYS[2])
redis.call('HDEL', KEYS[1], 'attempt', 'progress', 'error', 'track', 'shared')
redis.call('HSET', KEYS[1], 'state', 'ready', 'updated_s',
    string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6), unpack(ARGV, 7))
redis.call('ZADD', KEYS[4], tonumber(now[1]) + tonumber(now[2]) / 1e6, ARGV[5])
redis.call('HSET', KEYS[5], ARGV[5], ARGV[6])
redis.call('SREM', KEYS[6], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
"""

# Ends an attempt without a result. KEYS: graph. ARGV: graph id, attempt, channel, new state, error or ''. → 1 or 0.
# A job handed back to the queue has not cost an attempt.
_END = """
if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[2] then
    return 0
end
local now = redis.call('TIME')
redis.call('HDEL', KEYS[1], 'attempt', 'progress')
redis.call('HSET', KEYS[1], 'state', ARGV[4], 'updated_s',
    string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6))
if ARGV[5] ~= '' then
    redis.call('HSET', KEYS[1], 'error', ARGV[5])
end
if ARGV[4] == 'queued' then
    redis.call('HINCRBY', KEYS[1], 'attempts', -1)
end
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
"""

# KEYS: graph. ARGV: graph id, channel. → 1 when it was queued or running.
_CANCEL = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then
    return 0
end
local now = redis.call('TIME')
redis.call('HDEL', KEYS[1], 'attempt', 'progress')
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'updated_s',
    string.format('%.6f', tonumber(now[1]) + tonumber(now[2]) / 1e6))
redis.call('PUBLISH', ARGV[2], ARGV[1])
return 1
"""

# A finished graph whose arrays are unreadable. KEYS: graph, arrays. ARGV: graph id, channel, error. → 1 or 0.
_DAMAGED = """
redis.call('UNLINK', KEYS[2])
if redis.call('HGET', KEYS[1], 'state') ~= 'ready' then
    return 0
end
redis.call('HSET', KEYS[1], 'state', 'failed', 'error', ARGV[3])
redis.call('PUBLISH', ARGV[2], ARGV[1])
return 1
"""

# KEYS: dataset description, profiles. ARGV: field, profile. → 1 when kept, 0 when there is one, or no such dataset.
_PROFILE = """
if redis.call('EXISTS', KEYS[1]) == 0 then
    return 0
end
return redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2])
"""

# KEYS: profiles. ARGV: field, the profile that cannot be read. → 1 when it was there and is removed, 0 otherwise.
_DROP_PROFILE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
    return 0
end
return redis.call('HDEL', KEYS[1], ARGV[1])
"""

_SCRIPTS = {
    "layout": _LAYOUT,
    "profile": _PROFILE,
    "drop_profile": _DROP_PROFILE,
    "commit": _COMMIT,
    "request": _REQUEST,
    "start": _START,
    "claim": _CLAIM,
    "drop": _DROP,
    "progress": _PROGRESS,
    "publish": _PUBLISH,
    "end": _END,
    "cancel": _CANCEL,
    "damaged": _DAMAGED,
    "evict": EVICT,
}


class Store:
    """One namespace of the store, and the workers: what lies in one Redis or Valkey.

    Every method may raise `redis.exceptions.RedisError` when the store is away. Close it with `aclose`.

    transfers: a more patient client, for chunks. late_s: one that takes longer makes us ask whether the store is alive.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        transfers: Redis | None = None,
        late_s: float = 1.0,
        chunk_bytes: int = 1 << 20,
        staging_ttl_s: int = 600,
        stale_run_s: float = 60.0,
        namespace_bytes: int | None = None,
    ) -> None:
        self._redis = redis
        self.transfers = redis if transfers is None else transfers
        self._late_s = late_s
        self._chunk_bytes = chunk_bytes
        self.staging_ttl_s = staging_ttl_s
        self._stale_run_s = stale_run_s
        self._namespace_bytes = namespace_bytes
        self._scripts: dict[str, AsyncScript] = {name: redis.register_script(text) for name, text in _SCRIPTS.items()}
        self._watch = _Watch(redis)
        self._keys = Keys()

    @classmethod
    def from_settings(cls, settings: SharedSettings) -> Store:
        """Return a store with clients of its own, made from the settings."""
        return cls(
            open_redis(settings),
            transfers=open_redis(settings.model_copy(update={"store_timeout_s": _TRANSFER_S})),
            late_s=settings.store_timeout_s / 3,
            chunk_bytes=settings.chunk_bytes,
            staging_ttl_s=settings.staging_ttl_s,
            stale_run_s=settings.stale_run_s,
            namespace_bytes=settings.namespace_bytes,
        )

    def within(self, namespace: str) -> Store:
        """Return the store of a namespace on the same connections; close one of them, and all are."""
        store = copy(self)
        store._keys = Keys(namespace)
        return store

    @property
    def keys(self) -> Keys:
        """The keys of this namespace."""
        return self._keys

    @property
    def namespace(self) -> str:
        """The name of this namespace."""
        return self._keys.namespace

    @property
    def redis(self) -> Redis:
        """The store's client, for what else is kept there."""
        return self._redis

    @property
    def is_bounded(self) -> bool:
        """Whether `make_room` has anything to do."""
        return self._namespace_bytes is not None

    def listen(self, id: str) -> AbstractAsyncContextManager[asyncio.Event]:
        """Return a context whose event is set whenever a graph's job ends or a track changes, or that may have been missed."""
        return self._watch.listen(self._keys.changes, id)

    async def make_room(self, size: int) -> None:
        """See that `size` more bytes fit into the namespace's budget; raises NamespaceFull when they cannot."""
        if self._namespace_bytes is not None:
            await make_room(self, size, self._namespace_bytes)

    async def aclose(self) -> None:
        """Stop listening and close the connections."""
        await self._watch.aclose()
        await self._redis.aclose()
        await self.transfers.aclose()

    async def check_layout(self) -> None:
        """Return when this release can read what is stored, and older ones know that; raises NewerLayout."""
        raw = await cast(Any, self._redis.get(Keys.layout))
        found = int(raw or 0)
        if found < LAYOUT:
            found = await self.run_script("layout", [Keys.layout], [LAYOUT])
        if found > LAYOUT:
            raise NewerLayout(found)

    async def secret(self) -> bytes:
        """Return the deployment's secret: what is kept here, or 32 random bytes that the first to ask keeps for all."""
        await cast(Any, self._redis.set(Keys.secret, secrets.token_hex(32), nx=True))
        found = await cast(Any, self._redis.get(Keys.secret))
        if found is None:
            raise RedisError(f"{Keys.secret} was kept and is gone at once; see that the store evicts nothing")
        return bytes.fromhex(found.decode())

    async def usage(self) -> Usage:
        """Return how much memory the store uses."""
        facts = await cast(Any, self._redis.info("memory"))
        return Usage(int(facts["used_memory"]), int(facts.get("maxmemory", 0)))

    # Datasets

    async def dataset(self, id: str) -> Dataset | None:
        """Return the dataset, or None when it is not there."""
        fields = await self._used_fields(self._keys.dataset(id), member_of("dataset", id))
        return _dataset(id, fields) if fields else None

    def upload(self, n: int, d: int, dtype: str) -> Upload:
        """Return an upload for an (n, d) array; use it as an async context manager.

        dtype: "float32" or "float64". Leaving it without `commit` removes what was staged.
        """
        return Upload(self, n, d, dtype)

    async def load_points(self, id: str) -> NDArray[Any]:
        """Return the points of a dataset: float32 or float64 (n, d), C order, writable.

        Raises UnknownDataset, or DamagedData after dropping a dataset that cannot be read.
        """
        key = self._keys.points(id)
        fields, first = await asyncio.gather(
            self._used_fields(self._keys.dataset(id), member_of("dataset", id)), self._chunk(key, "0")
        )
        if not fields:
            raise UnknownDataset(id)
        dataset = _dataset(id, fields)
        points: NDArray[Any] = np.empty((dataset.n, dataset.d), _little_endian(dataset.dtype))
        target = memoryview(cast(Any, points)).cast("B")
        rows = _rows_per_chunk(int(fields.get("chunk_bytes", self._chunk_bytes)), points.strides[0])
        starts = range(0, dataset.n, rows)
        async with aclosing(self._chunks(key, [str(number) for number in range(1, len(starts))])) as chunks:
            for start in starts:
                stop = min(dataset.n, start + rows)
                begin, end = start * points.strides[0], stop * points.strides[0]
                payload = _checked(await anext(chunks) if start else first, end - begin)
                if payload is None:
                    await self.delete_dataset(id)
                    raise DamagedData(f"the stored copy of dataset {id} is damaged and was removed; upload it again")
                target[begin:end] = payload
        return points

    async def delete_dataset(self, id: str) -> bool:
        """Remove a dataset; graphs already made from it stay. Return False when it was not there."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.unlink(self._keys.dataset(id), self._keys.points(id), self._keys.profiles(id))
            self._uncount(pipe, member_of("dataset", id))
            removed = (await pipe.execute())[0]
        return bool(removed)

    async def profile(self, dataset: str, kernel: str, k: int) -> bytes | None:
        """Return the gate lookup that was first learned on a dataset for a kernel and k, JSON as it was kept, or None."""
        text: bytes | None = await cast(Any, self._redis.hget(self._keys.profiles(dataset), f"{kernel}:{k}"))
        return text

    async def keep_profile(self, dataset: str, kernel: str, k: int, profile: Mapping[str, Any]) -> bool:
        """Keep a gate lookup unless there is one, which graphs may have been built with; return whether it was kept.

        It stays as long as the dataset, so that the same specification keeps giving the same bytes.
        """
        kept = await self.run_script(
            "profile", [self._keys.dataset(dataset), self._keys.profiles(dataset)], [f"{kernel}:{k}", _dump(profile)]
        )
        return kept == 1

    async def drop_profile(self, dataset: str, kernel: str, k: int, found: bytes) -> bool:
        """Remove a gate lookup that cannot be read, unless another one has taken the place of `found`; return whether."""
        dropped = await self.run_script("drop_profile", [self._keys.profiles(dataset)], [f"{kernel}:{k}", found])
        return dropped == 1

    # Graphs

    async def graph(self, id: str) -> GraphRecord | None:
        """Return the record of a graph, or None when nobody asked for it."""
        fields = await self._used_fields(self._keys.graph(id), member_of("graph", id))
        return _record(self.namespace, id, fields) if fields else None

    async def request_graph(
        self, dataset_id: str, spec: Wish, *, queue: str = "interactive", most_jobs: int = MOST_JOBS
    ) -> tuple[GraphRecord, bool]:
        """Ask for the graph of (dataset, spec), atomically; return its record and whether to `Queue.submit(record)`.

        True when the graph is absent, failed, cancelled, damaged, evicted, lost by its worker, or queued already
        (submitting twice is harmless). Raises UnknownDataset, or TooManyJobs when a new job would be more than `most_jobs` of
        this namespace in the queue of that name.
        """
        id = graph_id(dataset_id, spec)
        answer, *found = await self._scripts["request"](
            keys=[
                *(self._keys.graph(id), self._keys.arrays(id), self._keys.dataset(dataset_id)),
                *(self._keys.recent, self._keys.jobs, Keys.shares(queue)),
            ],
            args=[
                *(id, dataset_id, spec.canonical(), secrets.token_hex(8), self._stale_run_s, origin()),
                *(member_of("dataset", dataset_id), member_of("graph", id), self.namespace, most_jobs),
            ],
        )
        if answer == -2:
            raise TooManyJobs(most_jobs)
        if answer < 0:
            raise UnknownDataset(dataset_id)
        return _record(self.namespace, id, _paired(found[0])), answer == 1

    async def origin(self, id: str) -> str:
        """Return the origin of the HTTP request that queued a graph's job (`traces.origin`), "" when that is not known."""
        raw = await cast(Any, self._redis.hget(self._keys.graph(id), "origin"))
        return raw.decode() if raw else ""

    async def wait_graph(self, id: str, timeout_s: float) -> GraphRecord | None:
        """Return the record as soon as its state is terminal, else the latest one after `timeout_s` seconds.

        None when the graph is unknown, or forgotten while waiting. Notified by the store, not by polling.
        """
        deadline = time.monotonic() + timeout_s
        async with self.listen(id) as changed:
            while True:
                changed.clear()
                record = await self.graph(id)
                left = deadline - time.monotonic()
                if record is None or record.state in TERMINAL or left <= 0:
                    return record
                await wait_for_change(changed, left)

    async def mark_running(
        self, id: str, request: str, attempt: str, *, max_attempts: int, exhausted: Mapping[str, Any]
    ) -> GraphRecord | None:
        """Start attempt `attempt` at the job `request`; a worker calls this first. Return the record, None when not wanted.

        Not wanted: deleted, cancelled, asked for anew since, done, or tried max_attempts times; the latter turns the
        graph into "failed" with the error `exhausted`. An attempt that was running before no longer counts.
        """
        found = await self._scripts["start"](
            keys=[self._keys.graph(id)],
            args=[id, request, attempt, max_attempts, _dump(exhausted), self._keys.changes],
        )
        return _record(self.namespace, id, _paired(found)) if found else None

    async def claim_graph(
        self,
        dataset_id: str,
        spec: GraphSpec,
        track: str,
        delivery: str,
        *,
        max_attempts: int,
        exhausted: Mapping[str, Any],
    ) -> Claim:
        """Ask for the graph of (dataset, spec) and start building it at once, for a track's job; see `Claim`.

        delivery: the one that drives the track. A build that an earlier one left running is taken over.
        Raises UnknownDataset.
        """
        id, attempt = graph_id(dataset_id, spec), secrets.token_hex(8)
        answer = await self.run_script(
            "claim",
            [self._keys.graph(id), self._keys.arrays(id), self._keys.dataset(dataset_id), self._keys.track(track)],
            [
                *(id, dataset_id, spec.canonical(), secrets.token_hex(8), attempt, self._stale_run_s, track),
                *(delivery, max_attempts, _dump(exhausted), self._keys.changes),
            ],
        )
        if answer == -1:
            raise UnknownDataset(dataset_id)
        standing: dict[int, Standing] = {1: "started", 2: "elsewhere", 0: "ended", -2: "unwanted"}
        return Claim(standing[answer], attempt)

    async def drop_graph(self, id: str, track: str, *, overtaken: bool = False) -> GraphRecord | None:
        """End the build that a track has started, if it runs or waits; it is cancelled unless others asked for it too.

        overtaken: only while the newest version that was requested of the track is published, so that nobody waits for it.
        Returns the record to `Queue.submit` for those others, None when there are none.
        """
        keys = [self._keys.graph(id), self._keys.track(track)]
        answer = await self.run_script("drop", keys, [id, track, self._keys.changes, int(overtaken)])
        return await self.graph(id) if answer == 2 else None

    async def set_progress(self, id: str, attempt: str, progress: Mapping[str, Any] | None) -> bool:
        """Record progress (None: only that the attempt is alive). Return False when the attempt should stop."""
        text = "" if progress is None else _dump(progress)
        return bool(await self.run_script("progress", [self._keys.graph(id)], [attempt, text]))

    async def publish_graph(
        self,
        id: str,
        attempt: str,
        arrays: Mapping[str, NDArray[Any]],
        certificate: Mapping[str, Any],
        telemetry: Mapping[str, Any],
    ) -> bool:
        """Store the arrays and make the graph ready, if the attempt still counts; return whether it did.

        arrays: by name, C or any order, first axis rows. All become visible at once.
        """
        staging = _Staging(self)
        try:
            infos = {name: await self._stage_array(staging, name, array) for name, array in arrays.items()}
            await staging.settle()
            fields = {
                "arrays": _dump(infos),
                "chunks": str(staging.count),
                "certificate": _dump(certificate),
                "telemetry": _dump(telemetry),
            }
            size = sum(array.nbytes for array in arrays.values())
            await self.make_room(size)
            keys = self._keys
            answer = await self.run_script(
                "publish",
                [keys.graph(id), keys.arrays(id), staging.key, keys.recent, keys.sizes, keys.jobs],
                [id, attempt, keys.changes, staging.count, member_of("graph", id), size, *_flat(fields)],
            )
            if answer < 0:
                raise StagingLost
        except BaseException:
            await asyncio.shield(staging.remove())
            raise
        return bool(answer)

    async def fail_graph(self, id: str, attempt: str, error: Mapping[str, Any]) -> bool:
        """End the attempt with an error {"type", "title", "detail", …}; return False when it no longer counts."""
        return bool(
            await self.run_script(
                "end", [self._keys.graph(id)], [id, attempt, self._keys.changes, "failed", _dump(error)]
            )
        )

    async def hand_back(self, id: str, attempt: str) -> bool:
        """Turn a running attempt back into a queued job, free of charge; return False when it no longer counts."""
        return bool(
            await self.run_script("end", [self._keys.graph(id)], [id, attempt, self._keys.changes, "queued", ""])
        )

    async def cancel_graph(self, id: str) -> bool:
        """Cancel a queued or running graph; its worker stops within about 100 ms. Return False when it was neither."""
        return bool(await self.run_script("cancel", [self._keys.graph(id)], [id, self._keys.changes]))

    async def forget_graph(self, id: str) -> bool:
        """Cancel and remove a graph with its arrays; return False when there was none."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.unlink(self._keys.graph(id), self._keys.arrays(id))
            pipe.publish(self._keys.changes, id)
            pipe.srem(self._keys.jobs, id)
            self._uncount(pipe, member_of("graph", id))
            removed = (await pipe.execute())[0]
        return bool(removed)

    async def is_intact(self, id: str) -> bool:
        """Return whether a graph is ready and none of its chunks is missing."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(self._keys.graph(id), "state", "chunks")
            pipe.hlen(self._keys.arrays(id))
            (state, chunks), stored = await pipe.execute()
        return bool(state == b"ready" and int(chunks) == stored)

    async def array_info(self, graph_id: str, name: str) -> ArrayInfo | None:
        """Return one array's description, or None when the graph is not ready or has no such array."""
        record = await self.graph(graph_id)
        return record.arrays.get(name) if record is not None and record.state == "ready" else None

    async def read_rows(
        self, graph_id: str, info: ArrayInfo, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[memoryview]:
        """Yield rows start … stop-1 of an array as C-order little-endian bytes, chunk by chunk, each checked.

        Raises UnknownGraph when there is no such array any more, and DamagedData when a chunk is bad: the arrays are then
        dropped, the graph is "failed", and `request_graph` builds it again.
        """
        n, name = info.shape[0], info.name
        stop = n if stop is None else min(stop, n)
        step = info.rows_per_chunk
        numbers = range(start // step, -(-stop // step) if start < stop else 0)
        names = [f"{name}:{number}" for number in numbers]
        async with aclosing(self._chunks(self._keys.arrays(graph_id), names)) as chunks:
            for number in numbers:
                first, last = number * step, min(n, (number + 1) * step)
                payload = _checked(await anext(chunks), (last - first) * info.row_bytes)
                if payload is None:
                    raise await self._unreadable(graph_id, info)
                lo, hi = max(start, first) - first, min(stop, last) - first
                yield payload[lo * info.row_bytes : hi * info.row_bytes]

    async def load_array(self, graph_id: str, name: str) -> NDArray[Any]:
        """Return one whole array of a ready graph; raises as `read_rows`."""
        info = await self.array_info(graph_id, name)
        if info is None:
            raise UnknownGraph(graph_id, f"or it has no finished array {name!r}")
        data = b"".join([piece async for piece in self.read_rows(graph_id, info)])
        return np.frombuffer(data, np.dtype(info.dtype)).reshape(info.shape)

    # Workers

    async def beat(self, worker: WorkerInfo, ttl_s: float) -> None:
        """Say that a worker is alive; it counts as gone after ttl_s seconds without."""
        found = {"pid": worker.pid, "warm": worker.warm, "graph": worker.graph, "compiling": worker.compiling}
        value = _dump(found)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(Keys.worker(worker.name), value, px=int(ttl_s * 1000))
            pipe.sadd(Keys.workers, worker.name)
            await pipe.execute()

    async def leave(self, name: str) -> None:
        """Remove a worker that stops on purpose."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(Keys.worker(name))
            pipe.srem(Keys.workers, name)
            await pipe.execute()

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers that are alive, by name. Empty: nothing that is queued can run now."""
        names = sorted(name.decode() for name in await cast(Any, self._redis.smembers(Keys.workers)))
        if not names:
            return []
        values = await cast(Any, self._redis.mget([Keys.worker(name) for name in names]))
        gone = [name for name, value in zip(names, values, strict=True) if value is None]
        if gone:
            with dispensable():
                await cast(Any, self._redis.srem(Keys.workers, *gone))
        found = {name: json.loads(value) for name, value in zip(names, values, strict=True) if value is not None}
        return [
            WorkerInfo(name, beat["pid"], beat["warm"], beat["graph"], tuple(beat.get("compiling", ())))
            for name, beat in found.items()
        ]

    # Inside

    async def _used_fields(self, key: str, member: str) -> dict[str, str]:
        """Return the fields of a dataset or graph, which counts as used now."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(key)
            pipe.zadd(self._keys.recent, {member: time.time()}, xx=True)
            raw, noted = await pipe.execute(raise_on_error=False)
        if isinstance(raw, Exception):
            raise raw
        with dispensable():
            if isinstance(noted, Exception):
                raise noted
        return _decoded(raw)

    def _uncount(self, pipe: Pipeline, member: str) -> None:
        pipe.zrem(self._keys.recent, member)
        pipe.hdel(self._keys.sizes, member)

    async def run_script(self, script: str, keys: list[str], args: list[Any]) -> int:
        """Run one of the scripts of this module by its name."""
        return int(await self._scripts[script](keys=keys, args=args))

    async def _chunks(self, key: str, names: list[str]) -> AsyncGenerator[bytes | None, None]:
        """Yield chunks in this order, each while the next one is on its way."""
        ahead: asyncio.Task[bytes | None] | None = None
        try:
            for following in [*names[1:], None] if names else []:
                raw = await (ahead or self._chunk(key, names[0]))
                ahead = None if following is None else asyncio.create_task(self._chunk(key, following))
                yield raw
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def _chunk(self, key: str, number: str) -> bytes | None:
        return cast("bytes | None", await self.moved(cast(Any, self.transfers.hget(key, number))))

    async def moved(self, moving: Awaitable[T]) -> T:
        """Return what moves a chunk, however long it takes while the store answers others; raises RedisError.

        Many transfers may share a slow network. A store that is silent altogether is not waited for as long.
        """
        move = asyncio.ensure_future(moving)
        try:
            while not (await asyncio.wait({move}, timeout=self._late_s))[0]:
                await cast(Any, self._redis.ping())
            return move.result()
        finally:
            await end_tasks([move])
            _ = move.cancelled() or move.exception()  # looked at, whatever else is raised

    async def _stage_array(self, staging: _Staging, name: str, array: NDArray[Any]) -> dict[str, Any]:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        data = memoryview(cast(Any, array)).cast("B") if array.size else memoryview(b"")
        digest = asyncio.ensure_future(asyncio.to_thread(hashlib.sha256, data))
        row_bytes = max(1, array.nbytes // max(1, array.shape[0]))
        rows = _rows_per_chunk(self._chunk_bytes, row_bytes)
        for number, begin in enumerate(range(0, array.nbytes, rows * row_bytes)):
            await staging.put(f"{name}:{number}", data[begin : begin + rows * row_bytes])
        etag = (await digest).hexdigest()[:32]
        return {"dtype": array.dtype.str, "shape": array.shape, "etag": etag, "rows_per_chunk": rows}

    async def _unreadable(self, id: str, info: ArrayInfo) -> UnknownGraph | DamagedData:
        """Return what to raise for an array that cannot be read, after dropping a graph that is not another by now."""
        name = info.name
        if await self.array_info(id, name) != info:
            return UnknownGraph(id, f"or it has no finished array {name!r}")
        message = f"the stored {name} of graph {id} are damaged and were removed; ask for the graph again"
        error = {"type": "damaged-graph", "title": "The stored graph was damaged", "detail": message}
        await self.run_script(
            "damaged", [self._keys.graph(id), self._keys.arrays(id)], [id, self._keys.changes, _dump(error)]
        )
        return DamagedData(message)


class Upload:
    """One point array on its way into the store: a chunk fills while a few before it are being stored, no more are held.

    async with store.upload(n, d, "float64") as upload:
        await upload.write(data)                      # C-order little-endian bytes, in pieces of any size
        dataset, created = await upload.commit(id)
    """

    def __init__(self, store: Store, n: int, d: int, dtype: str) -> None:
        self._store = store
        self._n, self._d, self._dtype = n, d, dtype
        row_bytes = d * _little_endian(dtype).itemsize
        self._size = n * row_bytes
        self._chunk = _rows_per_chunk(store._chunk_bytes, row_bytes) * row_bytes
        self._staging = _Staging(store)
        self._buffer = bytearray()
        self._received = 0
        self._committed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            await asyncio.shield(self._staging.remove())

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes of the array's data, which may not change afterwards; stores chunks as they fill, and the last one."""
        view = memoryview(data).cast("B")
        self._received += len(view)
        if self._received > self._size:
            raise ValueError(f"more than the {self._size} bytes of the announced array were written")
        while len(view):
            taken = view[: self._chunk - len(self._buffer)]
            view = view[len(taken) :]
            last = not len(view) and self._received == self._size
            if not self._buffer and (last or len(taken) == self._chunk):
                await self._staging.put_next(taken)
                continue
            self._buffer += taken
            if last or len(self._buffer) == self._chunk:
                await self._staging.put_next(self._take_buffer())

    async def commit(self, id: str, facts: Mapping[str, Any] | None = None) -> tuple[Dataset, bool]:
        """Make the array the dataset `id`; return it, and False when it was there already.

        facts: JSON kept with the dataset. Raises ValueError when bytes are missing.
        """
        if self._received != self._size:
            raise ValueError(f"{self._received} of the announced {self._size} bytes were written")
        await self._staging.settle()
        dataset = Dataset(id, self._n, self._d, self._dtype, self._size, dict(facts or {}))
        fields = {
            "n": str(dataset.n),
            "d": str(dataset.d),
            "dtype": dataset.dtype,
            "bytes": str(self._size),
            "facts": _dump(dataset.facts),
            "chunk_bytes": str(self._store._chunk_bytes),
        }
        keys = self._store.keys
        if self._store.is_bounded and await self._store.dataset(id) is None:
            await self._store.make_room(self._size)
        created = await self._store.run_script(
            "commit",
            [keys.dataset(id), keys.points(id), self._staging.key, keys.recent, keys.sizes],
            [self._staging.count, member_of("dataset", id), self._size, *_flat(fields)],
        )
        if created < 0:
            raise StagingLost
        self._committed = True
        return dataset, bool(created)

    def _take_buffer(self) -> memoryview:
        chunk, self._buffer = self._buffer, bytearray()
        return memoryview(chunk)


class _Staging:
    """Chunks on their way into the store, a few at once, under a key that expires by itself. count: how many in all."""

    def __init__(self, store: Store) -> None:
        self.key = Keys.staging(secrets.token_hex(16))
        self.count = 0
        self._store = store
        self._storing: deque[asyncio.Task[None]] = deque()

    async def put_next(self, payload: memoryview) -> None:
        """Begin to store the next chunk, which is named by its number; see `put`."""
        await self.put(str(self.count), payload)

    async def put(self, name: str, payload: memoryview) -> None:
        """Begin to store a chunk, once few enough are on their way; it may not change any more."""
        await self._wait(_MOST_STORING - 1)
        self.count += 1
        self._storing.append(asyncio.create_task(self._put(name, payload), name="pcct chunk"))

    async def settle(self) -> None:
        """Return when all chunks are stored; raises what one of them met."""
        await self._wait(0)

    async def remove(self) -> None:
        """Remove what was stored, behind what is still on its way."""
        await asyncio.gather(*self._storing, return_exceptions=True)
        # Chunks are often given up because the store is away; their expiry then removes them.
        if self.count:
            with suppress(RedisError, TimeoutError):
                async with asyncio.timeout(_REMOVE_S):
                    await cast(Any, self._store.redis.unlink(self.key))

    async def _wait(self, left: int) -> None:
        while len(self._storing) > left:
            await self._storing.popleft()

    async def _put(self, name: str, payload: memoryview) -> None:
        """Store one chunk and renew the expiry of them all."""
        async with self._store.transfers.pipeline(transaction=False) as pipe:
            pipe.hset(self.key, name, _sealed(payload))
            pipe.expire(self.key, self._store.staging_ttl_s)
            await self._store.moved(pipe.execute())


_Topic: TypeAlias = tuple[str, str]  # the channel of a namespace, and the id of a graph or track


class _Watch:
    """One subscription for all waiters of this process; wakes those whose graph or track has changed."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[_Topic, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def listen(self, channel: str, id: str) -> _Listening:
        """Return a context whose event is set whenever what has this id changes or a change may have been missed.

        channel: of the namespace's changes.
        """
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen(), name="pcct graph events")
        return _Listening(self._waiting, (channel, id))

    async def aclose(self) -> None:
        """Stop listening."""
        if self._task is not None:
            await end_tasks([self._task])
            self._task = None

    async def _listen(self) -> None:
        # A client that is connecting may swallow a cancellation; the flag ends the loops even then.
        while not self._closed:
            with suppress(RedisError, OSError):
                async with self._redis.pubsub() as pubsub:
                    await pubsub.psubscribe(Keys.every_change)
                    while not self._closed:
                        message = await pubsub.get_message(timeout=30.0)
                        if message is None:
                            continue
                        if message["type"] == "psubscribe":
                            self._wake_all()  # a change before this moment went unheard
                        else:
                            self._wake((message["channel"].decode(), message["data"].decode()))
            await asyncio.sleep(0.2)

    def _wake(self, topic: _Topic) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()

    def _wake_all(self) -> None:
        for topic in self._waiting:
            self._wake(topic)


class _Listening:
    """Registers one waiter's event while it waits."""

    def __init__(self, waiting: dict[_Topic, set[asyncio.Event]], topic: _Topic) -> None:
        self._waiting, self._topic, self._event = waiting, topic, asyncio.Event()

    async def __aenter__(self) -> asyncio.Event:
        self._waiting.setdefault(self._topic, set()).add(self._event)
        return self._event

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        events = self._waiting[self._topic]
        events.discard(self._event)
        if not events:
            del self._waiting[self._topic]


def _decoded(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in raw.items()}


def _paired(flat: list[bytes]) -> dict[str, str]:
    return _decoded(dict(zip(flat[::2], flat[1::2], strict=True)))


def _dataset(id: str, fields: Mapping[str, str]) -> Dataset:
    return Dataset(
        id=id,
        n=int(fields["n"]),
        d=int(fields["d"]),
        dtype=fields["dtype"],
        bytes=int(fields["bytes"]),
        facts=json.loads(fields["facts"]),
    )


def _record(namespace: str, id: str, fields: Mapping[str, str]) -> GraphRecord:
    def parsed(name: str) -> dict[str, Any] | None:
        return json.loads(fields[name]) if name in fields else None

    arrays = {
        name: ArrayInfo(name, i["dtype"], tuple(i["shape"]), i["etag"], i["rows_per_chunk"])
        for name, i in (parsed("arrays") or {}).items()
    }
    return GraphRecord(
        namespace=namespace,
        id=id,
        dataset=fields["dataset"],
        spec=json.loads(fields["spec"]),
        state=cast(State, fields["state"]),
        progress=parsed("progress"),
        certificate=parsed("certificate"),
        telemetry=parsed("telemetry"),
        error=parsed("error"),
        created_s=float(fields["created_s"]),
        updated_s=float(fields["updated_s"]),
        request=fields["request"],
        origin=fields.get("origin", ""),
        attempts=int(fields["attempts"]),
        arrays=arrays,
    )


def _sealed(payload: memoryview) -> bytes:
    """Return a chunk as it is stored."""
    return crc32(payload).to_bytes(_CRC_BYTES, "little") + payload


def _checked(raw: bytes | None, size: int) -> memoryview | None:
    """Return the payload of a stored chunk, or None when it is missing, cut or altered."""
    if raw is None or len(raw) != size + _CRC_BYTES:
        return None
    payload = memoryview(raw)[_CRC_BYTES:]
    return payload if crc32(payload) == int.from_bytes(raw[:_CRC_BYTES], "little") else None


def _rows_per_chunk(chunk_bytes: int, row_bytes: int) -> int:
    return max(1, chunk_bytes // row_bytes)


def _little_endian(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [part for item in fields.items() for part in item]
