from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from worker.store import Store

pytestmark = pytest.mark.anyio

# Prints what graphs compile once more when every part is there.
WARM = """
import sys
import numpy as np
from numba.core.dispatcher import Dispatcher
import pcct_core as pc
from pcct_core.graph import build_graph
from pcct_core.warm import PARTS, warm

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("pcct_core.")]
    kernels = {value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)}
    return {(kernel.py_func.__name__, signature) for kernel in kernels for signature in kernel.signatures}

for part in PARTS:
    warm(part)
before = compiled()
points = np.random.default_rng(1).random((9000, 3))
residual = pc.Residual(pc.Matern32(0.2), inducing=16)
for kind in ("knn", "vecchia"):
    assert build_graph(points, pc.GraphSpec(kind, 5, residual, "random", accuracy=0.99)).certificate.method == "gated"
    for dtype in (np.float32, np.float64):
        for metric in (pc.Euclidean(), pc.Euclidean((1.0, 2.0, 3.0))):
            given = points.astype(dtype)
            given.setflags(write=False)  # as they come from the store
            build_graph(given, pc.GraphSpec(kind, 5, metric, "maximin"))
for name, signature in compiled() - before:
    print(name, signature)
"""

PROGRAM = """
import time
from worker.main import run_worker
from worker.settings import WorkerSettings

def quick():
    return print

def slow():
    print("warming", flush=True)
    time.sleep(600)

def greedy():
    time.sleep(0.5)
    print("compiling", flush=True)
    sum(range(10**8))  # as the compiler does, it lets nothing else run
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


def test_load_core_reads_what_files_hold_and_names_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    from pcct_core import warm
    from pcct_core.graph import build_graph
    from worker.main import load_core

    loaded: list[str] = []
    monkeypatch.setattr(warm, "is_warm", lambda part: part != "residual")
    monkeypatch.setattr(warm, "warm", loaded.append)
    build, compiling = load_core()
    assert (build, compiling.missing, loaded) == (build_graph, ("residual",), ["float64"])


def test_load_core_compiles_everything_itself_where_no_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from pcct_core import jit, warm
    from worker.main import load_core

    loaded: list[str] = []
    monkeypatch.setattr(jit, "code_directory", lambda: None)
    monkeypatch.setattr(warm, "warm", loaded.append)
    assert load_core()[1].missing == ()
    assert loaded == list(warm.PARTS)


def test_nothing_is_left_to_compile_once_it_is_warm() -> None:
    """In a process of its own, for other tests compile too."""
    ended = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


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


async def test_run_worker_counts_as_there_while_the_compiler_lets_nothing_else_run(
    valkey_url: str, store: Store
) -> None:
    with start("greedy", valkey_url) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "compiling\n"
        await anyio.sleep(0.9)  # a warm one is gone after 0.5
        assert [info.warm for info in await store.workers()] == [False]


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
