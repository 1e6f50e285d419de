"""What a session costs the training loop: times of `Session.step` while graphs are built and downloaded behind it.

    .venv/bin/python tests/bench/session_cost.py [--points 32768] [-k 50] [--inducing 512] [--seconds 30]

Starts `pcct up` with a store of its own, follows a metric whose lengthscale drifts at every step, so that builds follow one
another, and steps between stretches of work in one thread: NumPy that gives the interpreter away, or Python that holds on
to it. Builds are long under the residual metric, and under the Euclidean one so short that a download is always going on.
Prints one JSON line for each of the four, times in milliseconds. `control_p99_ms` is that of a spin of 0.05 ms, about as long
as a step: what the machine takes from the loop by itself when more wants to run than it has cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pcct_client import Client, RefreshPolicy

BAR_MEDIAN_MS, BAR_P99_MS = 1.0, 5.0
SPIN_S = 50e-6
LONGEST_FIRST_BUILD_S = 300.0


@contextmanager
def running_service() -> Iterator[str]:
    """Start `pcct up` on a free port, yield its URL, stop it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PCCT_")}
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "service.cli", "up", "--port", "0", "--data-dir", directory]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if line.startswith("pcct ready at "))
            yield next(lines).removeprefix("pcct ready at ").strip()
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def numpy_work() -> None:
    """About two milliseconds of an objective in NumPy, in one thread; sorting lets other threads run."""
    np.sort(_NUMBERS)


def python_work() -> None:
    """About two milliseconds of an objective in Python, which lets other threads run only when it is made to."""
    sum(range(100_000))


_NUMBERS = np.random.default_rng(1).random(150_000)
WORK: dict[str, Callable[[], None]] = {"numpy": numpy_work, "python": python_work}


def spin() -> float:
    """Do nothing for `SPIN_S`; returns how long that took."""
    begin = time.perf_counter()
    while (now := time.perf_counter()) < begin + SPIN_S:
        pass
    return now - begin


METRICS: dict[str, str | None] = {"residual": None, "euclidean": "euclidean"}


def time_steps(
    client: Client, points: np.ndarray, options: argparse.Namespace, metric: str, work: Callable[[], None]
) -> dict[str, Any]:
    """Step for so many seconds; returns what the steps took."""
    taken_s, control_s, swapped_s, started = [], [], [], time.perf_counter()
    policy = RefreshPolicy(tolerance=0.0, cooldown_epochs=0)
    inducing, timeout = options.inducing, LONGEST_FIRST_BUILD_S
    with client.track(
        points, options.k, lengthscale=0.3, inducing=inducing, metric=METRICS[metric], policy=policy, timeout=timeout
    ) as session:
        first_s = time.perf_counter() - started
        begin = time.perf_counter()
        session.step()
        while (now := time.perf_counter()) < begin + options.seconds:
            work()
            scale = 0.3 * (1 + 0.2 * np.sin(now - begin))
            before = time.perf_counter()
            graph = session.step(lengthscale=scale)
            taken_s.append(time.perf_counter() - before)
            if graph.changed:
                swapped_s.append(taken_s[-1])
            control_s.append(spin())
        downloads_s = [event["download_s"] for event in session.events if "download_s" in event]
        error = session.last_error
    taken_ms = np.array(taken_s) * 1e3
    return {
        "steps": len(taken_s),
        "swaps": len(swapped_s),
        "median_ms": round(float(np.median(taken_ms)), 4),
        "p99_ms": round(float(np.percentile(taken_ms, 99)), 4),
        "p999_ms": round(float(np.percentile(taken_ms, 99.9)), 4),
        "max_ms": round(float(taken_ms.max()), 3),
        "control_p99_ms": round(float(np.percentile(control_s, 99)) * 1e3, 4),
        "swap_max_ms": round(max(swapped_s, default=0.0) * 1e3, 4),
        "load": round(os.getloadavg()[0], 1),
        "download_median_ms": round(float(np.median(downloads_s)) * 1e3, 1),
        "first_graph_s": round(first_s, 2),
        "last_error": error and str(error),
        "meets_bar": bool(np.median(taken_ms) <= BAR_MEDIAN_MS and np.percentile(taken_ms, 99) <= BAR_P99_MS),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure under both metrics with both kinds of work; 0 when all of them meet the bar."""
    parser = argparse.ArgumentParser(description="Time Session.step while graphs are built and downloaded.")
    parser.add_argument("--points", type=int, default=32_768)
    parser.add_argument("-k", type=int, default=50)
    parser.add_argument("--inducing", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args(arguments)
    points = np.random.default_rng(0).random((options.points, 3))
    met = True
    with running_service() as url, Client(url) as client:
        for metric in METRICS:
            for name, work in WORK.items():
                result = time_steps(client, points, options, metric, work)
                told = {"metric": metric, "work": name, "n": options.points, "k": options.k, "cores": os.cpu_count()}
                print(json.dumps(told | result), flush=True)
                met = met and result["meets_bar"]
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
