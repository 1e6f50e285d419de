"""What a namespace may hold, and what goes when it is full: its own least recently used datasets and graphs, nobody else's.

Never evicted are graphs that a track points at or builds, datasets that a track or a job needs, and all other state. Room is
made before something is kept, so a namespace is over its budget at most by what others of it keep in the same moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from pcct_core.errors import PcctError
from pcct_core.spec import GraphSpec
from worker.keys import Keys
from worker.metrics import EVICTIONS
from worker.query import wish_from_json

if TYPE_CHECKING:
    from worker.store import Store

Kind: TypeAlias = Literal["dataset", "graph"]

_AT_WORK = (b"queued", b"running")
_ROUNDS = 3  # things may be used or kept between looking and removing

# Removes one thing unless it is being built, or was used since it was looked at. KEYS: recent, sizes, metrics, then its own.
# ARGV: member, when it was last used, counter, id, channel. → 1 or 0.
EVICT = """
local used = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not used or tonumber(used) ~= tonumber(ARGV[2]) then
    return 0
end
local state = redis.call('HGET', KEYS[4], 'state')
if state == 'queued' or state == 'running' then
    return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('UNLINK', unpack(KEYS, 4)) > 0 then
    redis.call('HINCRBY', KEYS[3], ARGV[3], 1)
    redis.call('PUBLISH', ARGV[5], ARGV[4])
end
return 1
"""


class NamespaceFull(PcctError):
    """What is to be kept does not fit beside what must not be evicted."""

    def __init__(self, size: int, limit: int, pinned: int) -> None:
        super().__init__(
            f"{size} bytes do not fit: this namespace may hold {limit} bytes, of which {pinned} are in use by tracks and "
            "running jobs; delete tracks or wait for jobs, send fewer points, or have PCCT_NAMESPACE_BYTES raised"
        )


class _Candidate(NamedTuple):
    """Something that could go. used_s: when it was last used; bytes: what that frees."""

    kind: Kind
    id: str
    used_s: float
    bytes: int

    @property
    def member(self) -> str:
        """The name of it in its namespace."""
        return member_of(self.kind, self.id)


def member_of(kind: Kind, id: str) -> str:
    """Return the name of a dataset or graph among the things of its namespace."""
    return f"{kind}:{id}"


async def make_room(store: Store, size: int, limit: int) -> None:
    """Evict what was used longest ago until `size` more bytes fit into the limit; raises NamespaceFull when they cannot.

    Nothing is evicted in vain: what must stay is counted first.
    """
    staying = 0
    for _ in range(_ROUNDS):
        candidates = await _candidates(store)
        held = sum(candidate.bytes for candidate in candidates)
        if held + size <= limit:
            return
        pinned = await _pinned(store)
        staying = sum(candidate.bytes for candidate in candidates if candidate.member in pinned)
        if staying + size > limit:
            break
        for candidate in candidates:
            if candidate.member not in pinned and await _evict(store, candidate):
                held -= candidate.bytes
                if held + size <= limit:
                    return
    raise NamespaceFull(size, limit, staying)


async def _candidates(store: Store) -> list[_Candidate]:
    """Return all that the namespace holds, the least recently used first."""
    async with store.redis.pipeline(transaction=True) as pipe:
        pipe.zrange(store.keys.recent, 0, -1, withscores=True)
        pipe.hgetall(store.keys.sizes)
        recent, sizes = await pipe.execute()
    found = []
    for member, used_s in recent:
        kind, _, id = member.decode().partition(":")
        found.append(_Candidate(cast(Kind, kind), id, used_s, int(sizes.get(member, 0))))
    return found


async def _pinned(store: Store) -> set[str]:
    """Return the names of what tracks and jobs need."""
    pinned: set[str] = set()
    fields = ("dataset", "template", "graph", "requested_graph", "building")
    tracks = await cast(Any, store.redis.zrange(store.keys.tracks, 0, -1))
    for dataset, template, *graphs in await _read(store, tracks, store.keys.track, fields):
        if dataset is not None and template is not None:
            references = GraphSpec.from_json(json.loads(template)).references()
            pinned |= {member_of("dataset", id) for id in (dataset.decode(), *references)}
            pinned |= {member_of("graph", id.decode()) for id in graphs if id}
    jobs = await cast(Any, store.redis.smembers(store.keys.jobs))
    for dataset, spec, state in await _read(store, jobs, store.keys.graph, ("dataset", "spec", "state")):
        if state in _AT_WORK and dataset is not None and spec is not None:
            references = wish_from_json(json.loads(spec)).references()
            pinned |= {member_of("dataset", id) for id in (dataset.decode(), *references)}
    return pinned


async def _read(store: Store, ids: Iterable[bytes], key: Any, fields: tuple[str, ...]) -> list[list[bytes | None]]:
    """Return the fields of every record that is listed."""
    async with store.redis.pipeline(transaction=False) as pipe:
        for id in ids:
            pipe.hmget(key(id.decode()), *fields)
        return list(await pipe.execute())


async def _evict(store: Store, candidate: _Candidate) -> bool:
    """Remove a dataset or graph; False when it was used since."""
    keys, id = store.keys, candidate.id
    own = (
        [keys.dataset(id), keys.points(id), keys.profiles(id)]
        if candidate.kind == "dataset"
        else [keys.graph(id), keys.arrays(id)]
    )
    answer = await store.run_script(
        "evict",
        [keys.recent, keys.sizes, Keys.metrics, *own],
        [candidate.member, repr(candidate.used_s), EVICTIONS.field(candidate.kind), id, keys.changes],
    )
    return answer == 1
