from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from worker.main import load_warm_build
from worker.store import Store

pytestmark = pytest.mark.anyio

PROGRAM = """
import time
from worker.main import run_worker
from worker.settings import WorkerSettings

def quick():
    return print

def slow():
    print("warming", flush=True)
    time.sleep(600)

def broken():
    raise RuntimeError("no compiler here")

run_worker(WorkerSettings(heartbeat_s=0.1), load_build={})
"""


@contextmanager
def start(load_build: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """Run a worker process; killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(load_build)],
        env={**os.environ, "PCCT_REDIS_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_load_warm_build_returns_the_core() -> None:
    from pcct_core.graph import build_graph

    assert load_warm_build() is build_graph


async def test_run_worker_says_when_it_is_warm_and_leaves_when_told(valkey_url: str, store: Store) -> None:
    with start("quick", valkey_url) as worker:
        assert worker.stderr is not None
        assert "worker ready" in worker.stderr.readline()
        (info,) = await store.workers()
        assert (info.pid, info.warm, info.graph) == (worker.pid, True, None)
        worker.send_signal(signal.SIGTERM)
        assert "worker stopped" in worker.communicate(timeout=60)[1]
        assert worker.returncode == 0
    assert await store.workers() == []


async def test_run_worker_stops_while_it_warms_up(valkey_url: str, store: Store) -> None:
    with start("slow", valkey_url) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "warming\n"
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=60)
        assert worker.returncode == 0


async def test_run_worker_that_cannot_start_fails(valkey_url: str) -> None:
    with start("broken", valkey_url) as worker:
        _, err = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "no compiler here" in err


async def test_run_worker_waits_for_the_store(valkey_url: str) -> None:
    with start("quick", valkey_url + ".later") as worker:
        assert worker.stderr is not None
        assert any("the store is away; waiting for it" in line for line in worker.stderr)
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert "Traceback" not in err
