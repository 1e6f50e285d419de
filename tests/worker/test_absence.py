from __future__ import annotations

import asyncio

import pytest
import structlog
from redis.exceptions import ConnectionError as StoreConnectionError

from worker.absence import Absence

pytestmark = pytest.mark.anyio


def test_absence_is_told_at_once_then_every_half_minute_and_so_is_its_end() -> None:
    now = 0.0
    absence = Absence("redis://me:hunter2@far:6379/0", lambda: now)
    told = []
    with structlog.testing.capture_logs() as lines:
        absence.note_answer()
        for _ in range(4 * 70):  # four failures a second
            before = len(lines)
            absence.note_failure("refused")
            told += [now] * (len(lines) - before)
            now += 1 / 4
        absence.note_answer()
        absence.note_answer()
        absence.note_failure("refused")
    assert told == [0, 30, 60]
    assert [line["event"][:18] for line in lines[3:]] == ["the store is back", "the store is away;"]
    assert all(line["store"] == "redis://…@far:6379/0" for line in lines)
    assert lines[0]["fix"] == "start it, or correct PCCT_REDIS_URL"


async def test_watch_goes_on_while_the_store_is_away_and_ends_when_told() -> None:
    leaving, asked = asyncio.Event(), 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise StoreConnectionError("refused")
        leaving.set()

    with structlog.testing.capture_logs() as lines:
        await Absence("unix:///s").watch(ask, 0.001, leaving)
    assert asked == 3
    assert [line["event"] for line in lines] == ["the store is away; waiting for it", "the store is back"]
