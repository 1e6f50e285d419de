import asyncio

import anyio
import httpx
import numpy as np
import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from service.waiting import wait_unless

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((20, 2))


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (many things change it)
            await asyncio.sleep(0.01)


class Stubborn:
    """A wait that swallows its first cancellation, as redis-py does while it connects."""

    def __init__(self):
        self.ended = False

    async def __call__(self):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            try:
                await asyncio.sleep(60)
            finally:
                self.ended = True


async def test_wait_unless_returns_or_raises_what_the_wait_does():
    async def fail():
        raise ZeroDivisionError

    before = asyncio.all_tasks()
    assert await wait_unless(asyncio.sleep(0.01, "done"), asyncio.Event()) == "done"
    with pytest.raises(ZeroDivisionError):
        await wait_unless(fail(), asyncio.Event())
    assert asyncio.all_tasks() == before


async def test_wait_unless_ends_with_the_process():
    stopping, waiting = asyncio.Event(), Stubborn()
    asyncio.get_running_loop().call_later(0.02, stopping.set)
    assert await wait_unless(waiting(), stopping) is None
    assert waiting.ended


async def test_wait_unless_ends_with_the_client():
    messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive():
        await asyncio.sleep(0.01)
        return messages.pop(0)

    waiting = Stubborn()
    with pytest.raises(ClientDisconnect):
        await wait_unless(waiting(), asyncio.Event(), Request({"type": "http"}, receive))
    assert waiting.ended


async def test_wait_unless_cancelled_leaves_nothing():
    waiting = Stubborn()
    task = asyncio.create_task(wait_unless(waiting(), asyncio.Event()))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait({task})
    assert waiting.ended
    assert task.cancelled()


async def test_wait_unless_cancelled_again_and_again_leaves_nothing():
    waiting = Stubborn()
    with anyio.move_on_after(0.01):
        await wait_unless(waiting(), asyncio.Event())
    assert waiting.ended


@pytest.mark.parametrize("oneshot", [False, True])
async def test_a_long_poll_ends_with_its_client_and_with_the_server(live, oneshot):
    waiting = live.app.state.backend.store._watch._waiting
    live.gate.hold()
    if oneshot:
        request = live.client.build_request("POST", "/v1/knn?k=3", json=POINTS.tolist())
    else:
        wish = {"dataset": await live.upload(POINTS), "spec": {"k": 3}}
        request = live.client.build_request("POST", "/v1/graphs", json=wish, headers={"Prefer": "wait=30"})
    vanishing = asyncio.create_task(live.client.send(request))
    await until(lambda: waiting)
    vanishing.cancel()
    await until(lambda: not waiting)

    patient = asyncio.create_task(live.client.send(request))
    await until(lambda: waiting)
    live.server.should_exit = True
    answer: httpx.Response = await asyncio.wait_for(patient, 10)
    assert answer.status_code == 202
    assert answer.json()["state"] in ("queued", "running")
    assert not waiting
    live.gate.release()
