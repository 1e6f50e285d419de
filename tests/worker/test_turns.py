"""Turns by hand: what is next, whoever dies in between."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from worker.turns import Turns

pytestmark = pytest.mark.anyio

STREAM = "tickets"


@pytest.fixture
def turns() -> Turns:
    return Turns("q")


class Workers:
    """Takes jobs with one ticket each, as workers do, and notes whose they were."""

    def __init__(self, redis: Redis, turns: Turns) -> None:
        self.redis, self.turns, self.tickets = redis, turns, 0

    async def take(self) -> tuple[str, str] | None:
        """Return a ticket and its job."""
        self.tickets += 1
        ticket = f"x:ticket-{self.tickets}"
        job = await self.turns.take(self.redis, ticket, "one")
        return None if job is None or job == ticket else (ticket, job)

    async def finish(self, taken: tuple[str, str]) -> None:
        assert await self.turns.finish(self.redis, taken[0], "one", taken[1])


@pytest.fixture
def workers(redis: Redis, turns: Turns) -> Workers:
    return Workers(redis, turns)


async def enter(redis: Redis, turns: Turns, namespace: str, count: int) -> None:
    for number in range(count):
        assert await turns.enter(redis, f"{namespace}:{number:03}")


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_take_lets_one_job_wait_for_workers_and_one_more_of_many(
    redis: Redis, turns: Turns, workers: Workers, count: int
) -> None:
    await enter(redis, turns, "a", 50)
    running = [await workers.take() for _ in range(count)]
    await enter(redis, turns, "b", 1)
    before = len(running)
    for taken in running:
        await workers.finish(taken)
        _, job = await workers.take()
        if job == "b:000":
            break
        before += 1
    assert before <= count + 1


async def test_take_alternates_between_namespaces_and_keeps_each_ones_order(
    redis: Redis, turns: Turns, workers: Workers
) -> None:
    for namespace, count in (("b", 4), ("a", 2), ("c", 3)):
        await enter(redis, turns, namespace, count)
    served = []
    while (taken := await workers.take()) is not None:
        served.append(taken[1])
        await workers.finish(taken)
    assert served == [f"{name}:{n:03}" for n, names in enumerate(("abc", "abc", "bc", "b")) for name in names]


async def test_take_gives_who_was_away_no_credit(redis: Redis, turns: Turns, workers: Workers) -> None:
    """Turns that nobody wanted are not saved up: b comes late, and does not go before all of a's."""
    await enter(redis, turns, "a", 20)
    for _ in range(10):
        await workers.finish(await workers.take())
    await enter(redis, turns, "b", 5)
    served = [(await workers.take())[1][0] for _ in range(8)]
    assert sorted(served[:2]) == sorted(served[2:4]) == sorted(served[4:6]) == ["a", "b"]


async def test_enter_twice_is_one_job_until_it_is_finished(redis: Redis, turns: Turns, workers: Workers) -> None:
    assert await turns.enter(redis, "a:1")
    assert not await turns.enter(redis, "a:1")
    taken = await workers.take()
    assert not await turns.enter(redis, "a:1")
    assert (await turns.backlog(redis)).jobs == 1
    await workers.finish(taken)
    assert (await turns.backlog(redis)).jobs == 0
    assert await turns.enter(redis, "a:1")


async def test_take_again_with_the_same_ticket_gives_the_same_job(redis: Redis, turns: Turns) -> None:
    await enter(redis, turns, "a", 3)
    first = await turns.take(redis, "x:ticket", "one")
    assert await turns.take(redis, "x:ticket", "two") == first == "a:000"
    assert not await turns.finish(redis, "x:ticket", "one", first)  # came back from a stall
    assert await turns.take(redis, "x:ticket", "three") == first
    assert await turns.finish(redis, "x:ticket", "three", first)
    assert await turns.take(redis, "x:ticket", "four") == "a:001"


async def test_take_knows_a_ticket_from_before_there_were_turns(redis: Redis, turns: Turns) -> None:
    assert await turns.take(redis, "a:old", "one") == "a:old"
    assert not await turns.enter(redis, "a:old")
    assert await turns.finish(redis, "a:old", "one", "a:old")


async def test_take_gives_a_ticket_too_many_nothing(redis: Redis, turns: Turns) -> None:
    await turns.enter(redis, "a:1")
    assert await turns.take(redis, "a:2", "one") == "a:1"
    assert await turns.take(redis, "a:1", "one") is None


async def test_finish_leaves_nothing_when_the_queue_is_empty(redis: Redis, turns: Turns, workers: Workers) -> None:
    await enter(redis, turns, "a", 3)
    await enter(redis, turns, "b", 1)
    while (taken := await workers.take()) is not None:
        await workers.finish(taken)
    await turns.finish(redis, f"x:ticket-{workers.tickets}", "one", f"x:ticket-{workers.tickets}")
    assert await redis.keys() == []


async def test_backlog_tells_the_age_of_the_oldest(redis: Redis, turns: Turns) -> None:
    assert await turns.backlog(redis) == (0, 0.0)
    await enter(redis, turns, "a", 2)
    await redis.zincrby("pcct:turns:q:queued", -60.0, "a:001")
    jobs, oldest_s = await turns.backlog(redis)
    assert jobs == 2
    assert 60.0 <= oldest_s < 90.0


async def test_without_ticket_lists_jobs_only_when_tickets_are_missing(redis: Redis, turns: Turns) -> None:
    await enter(redis, turns, "a", 2)
    await redis.xadd(STREAM, {"key": "a:000"})
    assert await turns.without_ticket(redis, STREAM, 1) == ["a:000"]
    await redis.xadd(STREAM, {"key": "a:001"})
    assert await turns.without_ticket(redis, STREAM, 9) == []
    await turns.take(redis, "a:000", "one")  # its ticket stays in the stream until it is finished
    assert await turns.without_ticket(redis, STREAM, 9) == []
    await redis.xtrim(STREAM, 1, approximate=False)
    assert await turns.without_ticket(redis, STREAM, 9) == ["a:001"]
