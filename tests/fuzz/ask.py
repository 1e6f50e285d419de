"""Fuzzing of the running service: requests that nobody would send, and no answer may be its own fault.

    .venv/bin/python tests/fuzz/ask.py --count 10000            # starts `pcct up` on an empty store, and stops it
    .venv/bin/python tests/fuzz/ask.py http://127.0.0.1:8000

Exit status 1 with the request and its seed when an answer is a 5xx other than 503. The requests follow from the seed alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

CORPUS = Path(__file__).with_name("corpus")
PATHS = (
    *("/v1/datasets", "/v1/datasets/{id}", "/v1/datasets/{id}/query", "/v1/graphs", "/v1/graphs/{id}", "/v1/tracks"),
    *("/v1/graphs/{id}/neighbors", "/v1/graphs/{id}/arrays", "/v1/graphs/{id}/order", "/v1/tracks/{id}"),
    *("/v1/tracks/{id}/refresh", "/v1/knn", "/v1/vecchia", "/v1/radius", "/livez", "/readyz", "/metrics"),
    *("/openapi.json", "/problems/{id}", "/{id}"),
)
METHODS = ("GET", "GET", "HEAD", "POST", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "X")
NAMES = (
    "k",
    "compress",
    "radius",
    "order",
    "metric",
    "rows",
    "dtype",
    "shape",
    "tensor",
    "seed",
    "lengthscale",
    "api_key",
    "\x00",
)
TYPES = (
    *("application/x-npy", "application/octet-stream", "application/json", "application/x-safetensors", "text/csv"),
    *("multipart/form-data; boundary=x", "application/x-npz", "*/*", "", "é"),
)
VALUES = (
    *("", "0", "1", "2", "-1", "1e9", "nan", "inf", "99999999999999999999", "0x10", "float32", "float64", "object"),
    *("3,2", "0,0", "-1,2", "9223372036854775807,9", "0:2", "5:1", ":", "maximin", "euclidean", "haversine", "cosine"),
    *(
        "residual",
        '{"type":"residual","kernel":"rbf"}',
        "[" * 3000,
        "é",
        "\ud800",
        "\x00",
        "../../etc/passwd",
        "a" * 5000,
    ),
)
HEADERS = ("accept", "prefer", "if-none-match", "last-event-id", "content-encoding", "authorization", "range", "expect")
SAID = (
    *VALUES[:12],
    "wait=0",
    "wait=1e9",
    "wait=99999999999",
    '"1-0"',
    "*",
    "gzip",
    "zstd",
    "Bearer x",
    "application/x-npz",
    "1-1",
)


class Asked(NamedTuple):
    """A request, and the status of its answer."""

    method: str
    url: str
    headers: dict[str, str]
    content: bytes
    status: int


class Fuzzer:
    """Makes requests from a seed; ids of what was made are asked for again."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ids = ["0" * 64, "f" * 32, "x", "%00", "..", "neighbors"]
        self._bodies = [file.read_bytes()[2:] for file in sorted(CORPUS.iterdir()) if file.is_file()]
        points = np.random.default_rng(seed).random((20, 2))
        self._arrays = [points.tobytes(), str(points.tolist()).encode(), b"[[1,2],[3,4],[5,6]]"]

    async def ask(self, client: httpx.AsyncClient) -> Asked:
        """Send one request."""
        pick = self._random
        method, path = pick.choice(METHODS), pick.choice(PATHS).replace("{id}", pick.choice(self._ids))
        query = {pick.choice(NAMES): self._text(VALUES) for _ in range(pick.choice((0, 0, 1, 2)))}
        url = str(httpx.URL(path, params=query) if query else path)
        headers = {pick.choice(HEADERS): self._text(SAID) for _ in range(pick.choice((0, 0, 1)))}
        headers |= {"content-type": pick.choice(TYPES)} if pick.random() < 0.8 else {}
        content = self._content()
        sent = {name: value.encode("latin-1", "replace") for name, value in headers.items() if "\x00" not in value}
        async with client.stream(method, url, headers=sent, content=content) as answer:
            body = await answer.aread() if "event-stream" not in answer.headers.get("content-type", "") else b""
        if answer.status_code in (200, 201, 202) and "json" in answer.headers.get("content-type", ""):
            self._learn(body)
        return Asked(method, url, headers, content[:200], answer.status_code)

    def _text(self, values: tuple[str, ...]) -> str:
        return self._random.choice(values).encode("utf-8", "replace").decode()

    def _content(self) -> bytes:
        pick = self._random
        kind = pick.randrange(5)
        if kind == 0:
            return b""
        if kind == 1:
            return self._json().encode()
        body = bytearray(pick.choice(self._arrays if kind == 2 else self._bodies))
        for _ in range(pick.choice((0, 0, 1, 5))):
            if body:
                body[pick.randrange(len(body))] = pick.randrange(256)
        return bytes(body[: pick.choice((len(body), len(body), len(body) // 2))])

    def _json(self) -> str:
        pick = self._random
        odd: list[Any] = [None, True, -1, 0, 3, 1e308, 10**30, "", "é", [], {}, [[1]], {"type": []}, "knn", "vecchia"]

        def value(good: Any) -> Any:
            return good if pick.random() < 0.8 else pick.choice(odd)

        metric = {"type": value("euclidean"), "lengthscale": value([0.3, 0.2])}
        spec = {"kind": value("knn"), "k": value(2), "metric": value(metric)}
        if pick.random() < 0.3:
            spec[pick.choice(("order", "seed", "accuracy", "gate", "queries", "radius", "x"))] = pick.choice(odd)
        wish = {"dataset": value(pick.choice(self._ids)), "spec": value(spec)}
        if pick.random() < 0.3:
            wish = {"metric": value(metric), "epoch": value(1), "force": value(True)}
        return json.dumps(value(wish))

    def _learn(self, body: bytes) -> None:
        try:
            found = json.loads(body)
        except ValueError:
            return
        if isinstance(found, dict) and isinstance(found.get("id"), str):
            self._ids = [*self._ids[:6], found["id"], *self._ids[6:30]]


async def fuzz(client: httpx.AsyncClient, seed: int, count: int, until: float = float("inf")) -> Counter[int]:
    """Send `count` requests, or as many as come before `until` (monotonic); return how often each status was answered.

    Raises AssertionError with the first request that was answered by a 5xx other than 503.
    """
    fuzzer, statuses = Fuzzer(seed), Counter[int]()
    for number in range(count):
        if time.monotonic() >= until:
            break
        asked = await fuzzer.ask(client)
        statuses[asked.status] += 1
        if asked.status >= 500 and asked.status not in (503, 507):
            raise AssertionError(f"seed {seed}, request {number}: {asked}")
    return statuses


@contextmanager
def started() -> Iterator[str]:
    """Run `pcct up` on an empty store; its URL."""
    pcct = Path(sys.executable).with_name("pcct")
    with tempfile.TemporaryDirectory() as data:
        command = [pcct, "up", "--port", "0", "--data-dir", data]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            yield next(line for line in process.stdout if "ready at" in line).split()[-1]
        finally:
            process.terminate()
            process.wait()


async def main(url: str, seed: int, count: int, seconds: float) -> None:
    """Fuzz a running service and say what it answered."""
    async with httpx.AsyncClient(base_url=url, timeout=60.0, trust_env=False) as client:
        statuses = await fuzz(client, seed, count, time.monotonic() + seconds)
    told = ", ".join(f"{status}: {times:,}" for status, times in sorted(statuses.items()))
    print(f"{sum(statuses.values()):,} requests, seed {seed}: {told}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fuzz a running service.")
    parser.add_argument("url", nargs="?")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    if given.url:
        asyncio.run(main(given.url, given.seed, given.count, given.seconds))
    else:
        with started() as url:
            asyncio.run(main(url, given.seed, given.count, given.seconds))
