"""Time what `Client` and `AsyncClient` add to the same requests made with httpx alone, for a graph that is there already.

    python tests/bench/client_cost.py [--points 32768] [-k 30] [--rounds 40]

The three take turns: each round, each asks for the graph of points that the service knows and gets its arrays. httpx alone
makes the same requests (HEAD, POST, two GET) and reads the bodies with `np.load`; the client besides hashes the points, checks
what comes, and writes it where it belongs. Also times `import pcct_client` in new processes. Prints one JSON line, times in
milliseconds, medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from session_cost import running_service

from pcct_client import AsyncClient, Client

BAR_OVERHEAD, BAR_IMPORT_S = 0.10, 0.25
_IMPORT = "import time; begun = time.perf_counter(); import pcct_client; print(time.perf_counter() - begun)"


def get_raw(http: httpx.Client, dataset: str, k: int) -> dict[str, np.ndarray]:
    """Get the graph as somebody would who has httpx and the documentation."""
    http.head(f"/v1/datasets/{dataset}").raise_for_status()
    wish = {"dataset": dataset, "spec": {"kind": "knn", "k": k}}
    record = http.post("/v1/graphs", json=wish, headers={"Prefer": "wait=30"}).raise_for_status().json()
    arrays = {}
    for name in ("neighbors", "distances"):
        answer = http.get(
            f"/v1/graphs/{record['id']}/{name}", headers={"Accept-Encoding": "identity"}
        ).raise_for_status()
        arrays[name] = np.load(io.BytesIO(answer.content), allow_pickle=False)
    return arrays


def import_s(rounds: int) -> float:
    """Return the seconds that the import takes in a process of its own, median."""
    command = [sys.executable, "-c", _IMPORT]
    return statistics.median(float(subprocess.check_output(command, text=True)) for _ in range(rounds))


def time_rounds(url: str, points: np.ndarray, k: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every round, by who asked."""
    file = io.BytesIO()
    np.save(file, points)
    dataset = hashlib.sha256(file.getvalue()).hexdigest()
    with Client(url) as client, httpx.Client(base_url=url, trust_env=False) as http, asyncio.Runner() as runner:
        aclient = AsyncClient(url)
        first = client.knn(points, k)
        askers: dict[str, Callable[[], Any]] = {
            "httpx": lambda: get_raw(http, dataset, k),
            "client": lambda: client.knn(points, k),
            "async_client": lambda: runner.run(aclient.knn(points, k)),
        }
        np.testing.assert_array_equal(askers["httpx"]()["neighbors"], first.neighbors)
        askers["async_client"]()
        taken: dict[str, list[float]] = {name: [] for name in askers}
        for _ in range(rounds):
            for name, ask in askers.items():
                begun = time.perf_counter()
                ask()
                taken[name].append(time.perf_counter() - begun)
        runner.run(aclient.aclose())
    return taken


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when the bars are met."""
    parser = argparse.ArgumentParser(description="Time what the client adds to raw httpx.")
    parser.add_argument("--points", type=int, default=32_768)
    parser.add_argument("-k", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    points = np.random.default_rng(0).random((options.points, 3))
    with running_service() as url:
        taken = time_rounds(url, points, options.k, options.rounds)
    median_s = {name: statistics.median(each) for name, each in taken.items()}
    overhead = median_s["client"] / median_s["httpx"] - 1
    imported_s = import_s(5)
    told = {"n": options.points, "k": options.k, "cores": os.cpu_count(), "rounds": options.rounds}
    told |= {f"{name}_ms": round(each * 1e3, 2) for name, each in median_s.items()}
    told |= {"overhead": round(overhead, 3), "import_ms": round(imported_s * 1e3)}
    met = overhead <= BAR_OVERHEAD and imported_s <= BAR_IMPORT_S
    print(json.dumps(told | {"load": round(os.getloadavg()[0], 1), "meets_bar": met}), flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
