"""Whose turn it is: the jobs of one queue, in an order that is fair to namespaces.

Start-time fair queueing (Goyal, Vin, Cheng 1996) with every job of the same cost: a job's tag is one more than the larger
of its namespace's last tag and the tag that was served last, and the smallest tag is next. Whoever queues two hundred jobs
has tags far ahead, and who comes with one job is served after at most one more of theirs.

Everything is state in the store, and every change is one script, so no death of a process leaves it half done. A job is
"queued" from `enter` to `finish`; a ticket is what a worker holds while it does one: the same ticket, delivered again after
its worker died, names the same job.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from worker.keys import Keys

# KEYS: queued, waiting, tags, shares. ARGV: job, namespace. → 1, or 0 when it is queued already.
_ENTER = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return 0
end
local now = redis.call('TIME')
local served = tonumber(redis.call('HGET', KEYS[3], '') or 0)
local last = tonumber(redis.call('HGET', KEYS[3], ARGV[2]) or 0)
local tag = string.format('%.0f', math.max(served, last) + 1)
redis.call('ZADD', KEYS[1], tonumber(now[1]) + tonumber(now[2]) / 1e6, ARGV[1])
redis.call('ZADD', KEYS[2], tag, ARGV[1])
redis.call('HSET', KEYS[3], ARGV[2], tag)
redis.call('HINCRBY', KEYS[4], ARGV[2], 1)
return 1
"""

# KEYS: queued, waiting, tags, shares, taken. ARGV: ticket, delivery, namespace of the ticket.
# → the job, or nothing when no job waits. A ticket is named like the job that it was made for: one from before there were
# turns has no job here but that one.
_TAKE = """
local held = redis.call('HGET', KEYS[5], ARGV[1])
local job
if held then
    job = string.match(held, '^%S+ (.+)$')
else
    local first = redis.call('ZPOPMIN', KEYS[2])
    if first[1] then
        job = first[1]
        redis.call('HSET', KEYS[3], '', string.format('%.0f', tonumber(first[2])))
    elseif redis.call('ZSCORE', KEYS[1], ARGV[1]) then
        return false
    else
        local now = redis.call('TIME')
        job = ARGV[1]
        redis.call('ZADD', KEYS[1], tonumber(now[1]) + tonumber(now[2]) / 1e6, job)
        redis.call('HINCRBY', KEYS[4], ARGV[3], 1)
    end
end
redis.call('HSET', KEYS[5], ARGV[1], ARGV[2] .. ' ' .. job)
return job
"""

# Only the latest delivery of a ticket ends its job: one that comes back from a stall does not.
# KEYS: queued, tags, shares, taken. ARGV: ticket, delivery, job, namespace of the job. → 1 or 0.
_FINISH = """
if redis.call('HGET', KEYS[4], ARGV[1]) ~= ARGV[2] .. ' ' .. ARGV[3] then
    return 0
end
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[3])
if redis.call('HINCRBY', KEYS[3], ARGV[4], -1) < 1 then
    redis.call('HDEL', KEYS[3], ARGV[4])
end
if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('DEL', KEYS[2], KEYS[3])
end
return 1
"""


class Backlog(NamedTuple):
    """The jobs of a queue that wait or run. oldest_s: since the oldest of them was queued, 0 when there is none."""

    jobs: int
    oldest_s: float


class Turns:
    """The turns of one queue. Methods take the client to ask through, and may raise `redis.exceptions.RedisError`.

    A job is "namespace:…" in characters without space.
    """

    def __init__(self, queue: str) -> None:
        self._queued, self._waiting = Keys.queued(queue), Keys.waiting(queue)
        self._tags, self._shares, self._taken = Keys.tags(queue), Keys.shares(queue), Keys.taken(queue)

    async def enter(self, redis: Any, job: str) -> bool:
        """Queue a job behind those of its namespace; False when it waits or runs already."""
        keys = (self._queued, self._waiting, self._tags, self._shares)
        return bool(await redis.eval(_ENTER, len(keys), *keys, job, _namespace(job)))

    async def take(self, redis: Any, ticket: str, delivery: str) -> str | None:
        """Return the job whose turn it is, None when none waits; the same ticket has the same job until it is finished."""
        keys = (self._queued, self._waiting, self._tags, self._shares, self._taken)
        job = await redis.eval(_TAKE, len(keys), *keys, ticket, delivery, _namespace(ticket))
        return None if job is None else cast(str, job.decode())

    async def finish(self, redis: Any, ticket: str, delivery: str, job: str) -> bool:
        """End a job that was taken; False when the ticket was delivered to another worker since."""
        keys = (self._queued, self._tags, self._shares, self._taken)
        return bool(await redis.eval(_FINISH, len(keys), *keys, ticket, delivery, job, _namespace(job)))

    async def backlog(self, redis: Any) -> Backlog:
        """Return how many jobs wait or run, and how long the oldest has done so, by the store's clock."""
        async with redis.pipeline(transaction=False) as pipe:
            pipe.zcard(self._queued)
            pipe.zrange(self._queued, 0, 0, withscores=True)
            cast(Any, pipe).execute_command("TIME")
            jobs, oldest, (now_s, now_us) = await pipe.execute()
        return Backlog(jobs, max(0.0, now_s + now_us / 1e6 - oldest[0][1]) if oldest else 0.0)

    async def without_ticket(self, redis: Any, stream: str, most: int) -> list[str]:
        """Return the next jobs, `most` at the most, when fewer tickets than jobs wait in a stream of tickets."""
        async with redis.pipeline(transaction=True) as pipe:
            pipe.zcard(self._waiting)
            pipe.xlen(stream)
            pipe.hlen(self._taken)
            pipe.zrange(self._waiting, 0, most - 1)
            waiting, tickets, taken, heads = await pipe.execute()
        return [job.decode() for job in heads] if waiting > tickets - taken else []


def _namespace(job: str) -> str:
    return job.partition(":")[0]
