"""Sustained load on a deployment: training loops that follow tracks, uploads beside them, and how memory develops meanwhile."""

from __future__ import annotations

import io
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scipy.stats import theilslopes

from pcct_client import Client

MB = 1e6
FOLLOWERS, UPLOADERS = 8, 2
STEP_S = 0.05
DRIFT, DRIFT_S = 0.3, 20.0  # the lengthscales' largest |Δ log|, and how long they take to come back
UPLOAD_EVERY_S = 1.0
WARM_UP = 0.4  # of the time: caches fill, and allocators find their size
SAMPLE_S = 1.0
START_S = 120.0  # for the first graph of every loop
_ID = re.compile(r"/[0-9a-f]{32,64}(?=/|$)")
_SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass
class Noted:
    """What the load has seen; lists grow from several threads. routes_s: seconds of every answer, by what was asked."""

    routes_s: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)
    swaps: Counter[int] = field(default_factory=Counter)
    counting: threading.Event = field(default_factory=threading.Event)

    def note(self, route: str, status: int, taken_s: float) -> None:
        """Note an answer, once everything has begun."""
        if self.counting.is_set():
            self.routes_s.setdefault(route, []).append(taken_s)
            self.statuses[status] += 1


class Timed(httpx.BaseTransport):
    """The network, with the time of each answer from its request to its last byte."""

    def __init__(self, noted: Noted) -> None:
        self._network = httpx.HTTPTransport()
        self._noted = noted

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        route = f"{request.method} {_ID.sub('/{id}', request.url.path)}"
        route += ", waiting" if "wait=" in request.headers.get("prefer", "") else ""
        began = time.perf_counter()
        answer = self._network.handle_request(request)

        def end() -> None:
            self._noted.note(route, answer.status_code, time.perf_counter() - began)

        assert isinstance(answer.stream, httpx.SyncByteStream)
        return httpx.Response(
            answer.status_code,
            headers=answer.headers,
            stream=_Watched(answer.stream, end),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        """Close all connections."""
        self._network.close()


class _Watched(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, end: Callable[[], None]) -> None:
        self._stream, self._end = stream, end

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        self._stream.close()
        self._end()


@dataclass
class Load:
    """What is put on the service. points: of each track. k: neighbors. inducing: points. upload_bytes: of one upload."""

    seconds: float
    points: int = 8_192
    k: int = 30
    inducing: int = 512
    upload_bytes: int = 10_000_000

    def put_on(self, url: str, processes: Mapping[str, int]) -> dict[str, Any]:
        """Load the service for so many seconds; return what was measured. processes: ids by name, whose memory is watched."""
        noted, ending = Noted(), threading.Event()
        begin = threading.Barrier(FOLLOWERS + UPLOADERS + 1)
        works = [(self._follow, number) for number in range(FOLLOWERS)]
        works += [(self._upload, FOLLOWERS + number) for number in range(UPLOADERS)]

        def run(work: Callable[..., None], number: int) -> None:
            try:
                work(url, number, noted, begin, ending)
            except Exception as error:  # whatever it was, the case fails by it, and the others need not wait
                noted.errors.append(f"{type(error).__name__}: {error}")
                begin.abort()

        threads = [threading.Thread(target=run, args=work, daemon=True) for work in works]
        with ExitStack() as stack:
            stack.callback(join_all, threads)
            stack.callback(ending.set)
            for thread in threads:
                thread.start()
            begin.wait(START_S)
            noted.counting.set()
            before = scrape(url)
            samples = watch(url, processes, self.seconds)
            after = scrape(url)
            noted.counting.clear()
        return self._report(noted, samples, before, after)

    def _follow(self, url: str, number: int, noted: Noted, begin: threading.Barrier, ending: threading.Event) -> None:
        """Step as a training loop does whose hyperparameters drift to and fro."""
        points = np.random.default_rng(number).random((self.points, 3))
        with (
            Client(url, transport=Timed(noted)) as client,
            client.track(points, self.k, lengthscale=0.3, inducing=self.inducing, timeout=START_S) as session,
        ):
            begin.wait(START_S)
            while not ending.wait(STEP_S):
                turn = 2 * math.pi * (time.perf_counter() / DRIFT_S + number / FOLLOWERS)
                began = time.perf_counter()
                graph = session.step(lengthscale=0.3 * math.exp(DRIFT * math.sin(turn)))
                noted.steps_s.append(time.perf_counter() - began)
                noted.swaps[number] += graph.changed
            if session.last_error is not None:
                noted.errors.append(f"session {number}: {session.last_error}")

    def _upload(self, url: str, number: int, noted: Noted, begin: threading.Barrier, ending: threading.Event) -> None:
        """Upload something new once in a while, and delete it."""
        rng = np.random.default_rng(number)
        with httpx.Client(base_url=url, transport=Timed(noted), timeout=60.0) as client:
            begin.wait(START_S)
            while not ending.wait(UPLOAD_EVERY_S):
                body = io.BytesIO()
                np.save(body, rng.random((self.upload_bytes // 32, 8), np.float32))
                length = {"Content-Length": str(body.tell())}
                answer = client.post("/v1/datasets", content=pieces(body), headers=length)
                answer.raise_for_status()
                client.delete(f"/v1/datasets/{answer.json()['id']}").raise_for_status()

    def _report(
        self, noted: Noted, samples: dict[str, list[float]], before: dict[str, float], after: dict[str, float]
    ) -> dict[str, Any]:
        answers = sum(noted.statuses.values())
        uploads = noted.routes_s.get("POST /v1/datasets", [])
        builds = {
            outcome: round((after[f"builds {outcome}"] - before.get(f"builds {outcome}", 0.0)) / self.seconds * 60, 1)
            for outcome in sorted(name.removeprefix("builds ") for name in after if name.startswith("builds "))
        }
        return {
            "seconds": self.seconds,
            "requests_per_s": round(answers / self.seconds, 1),
            "upload_mb_per_s": round(len(uploads) * self.upload_bytes / MB / self.seconds, 1),
            "builds_per_min": builds,
            "swaps_per_min": sorted(round(noted.swaps[number] / self.seconds * 60, 1) for number in range(FOLLOWERS)),
            "step_ms": percentiles_ms(noted.steps_s),
            "routes_ms": {
                route: {"count": len(taken_s), **percentiles_ms(taken_s)}
                for route, taken_s in sorted(noted.routes_s.items())
            },
            "statuses": {str(status): count for status, count in sorted(noted.statuses.items())},
            "errors": noted.errors,
            "memory_mb": {name: describe(values) for name, values in samples.items()},
        }


def pieces(body: io.BytesIO) -> Iterator[bytes]:
    """Yield a body in pieces, and hold none of it afterwards: httpx keeps a request until the next garbage collection."""
    body.seek(0)
    while piece := body.read(1 << 18):
        yield piece
    body.close()


def watch(url: str, processes: Mapping[str, int], seconds: float) -> dict[str, list[float]]:
    """Return resident memory of the processes and what the store says that it uses, in MB, once every `SAMPLE_S`."""
    samples: dict[str, list[float]] = {name: [] for name in (*processes, "store data")}
    began = time.perf_counter()
    while (left := began + seconds - time.perf_counter()) > 0:
        for name, pid in processes.items():
            samples[name].append(resident_mb(pid))
        samples["store data"].append(scrape(url)["store bytes"] / MB)
        time.sleep(min(left, SAMPLE_S))
    return samples


def describe(values: list[float]) -> dict[str, Any]:
    """Return what memory did: in MB at first, after the warm-up and at the end, and the slope since the warm-up in MB a minute.

    The slope is Theil and Sen's, the median of those of all pairs, which single peaks do not move; with its 95 % interval.
    """
    warm = int(len(values) * WARM_UP)
    slope, _, low, high = theilslopes(values[warm:], np.arange(len(values) - warm) * SAMPLE_S / 60.0)
    return {
        "first": round(values[0], 1),
        "warm": round(float(np.median(values[warm : warm + 5])), 1),
        "last": round(float(np.median(values[-5:])), 1),
        "peak": round(max(values), 1),
        "slope_per_min": round(float(slope), 2),
        "interval_per_min": [round(float(low), 2), round(float(high), 2)],
    }


def percentiles_ms(taken_s: list[float]) -> dict[str, float]:
    """Return p50, p90, p99 and the largest, in milliseconds."""
    taken_ms = np.array(taken_s or [math.nan]) * 1e3
    found = {f"p{share}": float(np.percentile(taken_ms, share)) for share in (50, 90, 99)}
    return {name: round(value, 2) for name, value in (found | {"max": float(taken_ms.max())}).items()}


def scrape(url: str) -> dict[str, float]:
    """Return bytes that the store uses, as "store bytes", and builds so far by how they ended, as "builds OUTCOME"."""
    found: dict[str, float] = {}
    for name, labels, value in _SERIES.findall(httpx.get(f"{url}/metrics", timeout=30.0).text):
        if name == "pcct_store_bytes":
            found["store bytes"] = float(value)
        elif name == "pcct_builds_total":
            outcome = re.search(r'outcome="([^"]*)"', labels)
            assert outcome is not None
            key = f"builds {outcome[1]}"
            found[key] = found.get(key, 0.0) + float(value)
    return found


def resident_mb(pid: int) -> float:
    """Return a process's resident memory."""
    match = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024 / MB


def join_all(threads: list[threading.Thread]) -> None:
    """Wait until all have ended."""
    for thread in threads:
        thread.join(30.0)
