from __future__ import annotations

import socket

import pytest

from worker import alive
from worker.settings import WorkerSettings
from worker.store import Store, WorkerInfo

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("host", "fault"), [(socket.gethostname(), None), ("elsewhere", "no worker of ")])
async def test_find_fault_asks_for_a_worker_of_this_host(store: Store, valkey_url: str, host: str, fault: str) -> None:
    settings = WorkerSettings(redis_url=valkey_url)
    assert "no worker of " in str(await alive.find_fault(settings))
    await store.beat(WorkerInfo(f"{host}-7-abc", 7, warm=True, graph=None), ttl_s=60)
    found = await alive.find_fault(settings)
    assert found is None if fault is None else fault in str(found)


def test_main_says_that_the_store_is_away(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PCCT_REDIS_URL", "redis://127.0.0.1:1/0")
    assert alive.main() == 1
    assert "the store does not answer: " in capsys.readouterr().err
