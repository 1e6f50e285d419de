"""A soak: clients ask `pcct up` for graphs while its processes are killed and stopped at random.

A client repeats a request that broke off or was answered 503, and does nothing else to help. Everything that it was
promised must come true: a graph that was accepted is finished, and every row of it that is looked at is what brute force
says. All that is random comes from one seed.
"""

from __future__ import annotations

import io
import os
import re
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from redis import Redis

from pcct_client import Client, RefreshPolicy
from tests import naive

KILL_EVERY_S = 5.0
STUCK_AFTER_S = 60.0  # an accepted graph that is not finished this long after the last fault is stuck
CALL_S = 10.0  # a client gives a call up and makes it again after this long
CLIENTS = 3
PARTS = {"worker": "service.cli work", "API": "service.cli serve", "store": "valkey-server unixsocket"}
LONGEST_STOP_S = {"worker": 14.0, "API": 4.0, "store": 4.0}  # a worker's lease is lost after 8 to 11 s

_SAMPLE = 40  # rows of each graph that are compared with brute force
_SIZES = (50, 500, 4000, 30_000)
_KERNEL = {"kernel": "matern32", "lengthscale": 0.5}


class Wrong(AssertionError):
    """An answer that is not what was asked for."""


class Lost(AssertionError):
    """Something that was accepted is gone, or did not come true."""


@dataclass
class Report:
    """What a soak has seen. latencies_s: from asking for a graph to its arrays, over all faults."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    versions: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    recovery_s: dict[str, float] = field(default_factory=dict)

    def lines(self) -> str:
        """Return the report for people."""
        faults = ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items())) or "none"
        waits = sorted(self.latencies_s) or [0.0]
        recovery = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.recovery_s.items()) or "not measured"
        return (
            f"soak, seed {self.seed}: {faults}\n"
            f"  {len(self.latencies_s)} graphs and {self.versions} versions of a track, "
            f"{len(self.lost)} lost, {len(self.wrong)} wrong, {len(self.stuck)} stuck\n"
            f"  a graph took {statistics.median(waits):.2f} s (median), {waits[-1]:.1f} s at most\n"
            f"  recovery: {recovery}"
            + "".join(f"\n  {name}: {what}" for name in ("lost", "wrong", "stuck") for what in getattr(self, name))
        )


@dataclass
class Soak:
    """Clients, faults and what came of them.

    url: of the service. children: returns its processes, command by process id. data_dir: of its store.
    """

    url: str
    children: Callable[[], dict[int, str]]
    data_dir: Path
    seed: int
    report: Report = field(init=False)
    over: threading.Event = field(default_factory=threading.Event)  # clients ask for nothing new
    given_up: threading.Event = field(default_factory=threading.Event)  # clients wait no longer for what they asked

    def __post_init__(self) -> None:
        self.report = Report(self.seed)

    def run(self, seconds: float) -> Report:
        """Break things for so long, let all be finished, measure how long a recovery takes; return the report."""
        clients = [self._start(f"client {number}", self._ask, number) for number in range(CLIENTS)]
        clients.append(self._start("loop", self._follow))
        with self._stopping() as stop:
            self._break(seconds, stop)
        self.over.set()
        deadline = time.monotonic() + STUCK_AFTER_S
        for client in clients:
            client.join(max(0.0, deadline - time.monotonic()))
        self.given_up.set()
        for client in clients:
            client.join(3 * CALL_S)
            assert not client.is_alive(), f"{client.name} hangs"
        self._measure_recovery()
        return self.report

    # Faults

    def _break(self, seconds: float, stop: Callable[[int, float], None]) -> None:
        generator = np.random.default_rng([self.seed, 0])
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, generator.uniform(0.5, 1.5) * KILL_EVERY_S))
            part = str(generator.choice(list(PARTS)))
            victims = self._pids(part)
            if not victims:
                continue  # it is being started again
            victim = victims[int(generator.integers(len(victims)))]
            with suppress(ProcessLookupError):
                if generator.random() < 0.6:
                    os.kill(victim, signal.SIGKILL)
                    self.report.faults[f"kill {part}"] += 1
                else:
                    stop(victim, generator.uniform(0.5, LONGEST_STOP_S[part]))
                    self.report.faults[f"stop {part}"] += 1

    @contextmanager
    def _stopping(self) -> Iterator[Callable[[int, float], None]]:
        """Give what stops a process for some seconds; at the end all go on."""
        timers: list[tuple[threading.Timer, int]] = []

        def go_on(pid: int) -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        def stop(pid: int, seconds: float) -> None:
            os.kill(pid, signal.SIGSTOP)
            timer = threading.Timer(seconds, go_on, [pid])
            timers.append((timer, pid))
            timer.start()

        try:
            yield stop
        finally:
            for timer, pid in timers:
                timer.cancel()
                timer.join()
                go_on(pid)

    def _pids(self, part: str) -> list[int]:
        return sorted(
            pid for pid, command in self.children().items() if PARTS[part] in command and "lifeline.py" not in command
        )

    # Recovery, one fault at a time

    def _measure_recovery(self) -> None:
        with httpx.Client(base_url=self.url, timeout=CALL_S, trust_env=False) as http:
            caller = _Caller(http, threading.Event(), self.report)
            caller.call("GET", "/readyz")
            generator = np.random.default_rng([self.seed, 1])
            self.report.recovery_s["worker killed"] = self._worker_recovery(caller, generator)
            caller.call("GET", "/readyz")
            os.kill(self._pids("store")[0], signal.SIGKILL)
            killed = time.monotonic()
            _Wish.draw(generator, 500).check(caller)
            self.report.recovery_s["store killed"] = time.monotonic() - killed

    def _worker_recovery(self, caller: _Caller, generator: np.random.Generator) -> float:
        """Kill a worker while it builds; return the seconds until another one builds its graph, which must then be right."""
        for _ in range(10):
            wish = _Wish.draw(generator, 400_000)
            graph = wish.ask(caller)["id"]
            until = time.monotonic() + 20
            while time.monotonic() < until and caller.call("GET", f"/v1/graphs/{graph}").json()["state"] != "ready":
                victim = self._builder(graph)
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
                    killed = time.monotonic()
                    while self._attempts(graph) < 2 and time.monotonic() - killed < STUCK_AFTER_S:
                        time.sleep(0.02)
                    again = time.monotonic() - killed
                    wish.await_ready(caller, graph)
                    wish.check_answer(caller, graph)
                    return again
                time.sleep(0.05)
        raise AssertionError("no worker was met while it built")

    @contextmanager
    def _store(self) -> Iterator[Redis]:
        """Look into the store behind the service's back."""
        socket_dir = (self.data_dir / "lock").read_text().splitlines()[1]
        with Redis(unix_socket_path=f"{socket_dir}/valkey.sock") as redis:
            yield redis

    def _builder(self, graph: str) -> int | None:
        """Return the process id of the worker that says it builds a graph."""
        with self._store() as redis:
            for key in redis.scan_iter("pcct:worker:*"):
                text = (redis.get(key) or b"").decode()
                if graph in text:
                    return int(re.search(r'"pid":(\d+)', text)[1])  # type: ignore[index]
        return None

    def _attempts(self, graph: str) -> int:
        with self._store() as redis:
            return int(redis.hget(f"pcct:ns:default:graph:{graph}", "attempts") or 0)

    # Clients

    def _start(self, name: str, run: Callable[..., None], *arguments: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                run(*arguments)
            except Exception as error:
                self.report.wrong.append(f"{name} ended by {error!r}")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _ask(self, number: int) -> None:
        """Ask for graphs, one after the other, and compare each."""
        generator = np.random.default_rng([self.seed, 2, number])
        with httpx.Client(base_url=self.url, timeout=CALL_S, trust_env=False) as http:
            caller = _Caller(http, self.given_up, self.report)
            while not self.over.is_set():
                wish = _Wish.draw(generator, int(generator.choice(_SIZES)))
                begun = time.monotonic()
                try:
                    wish.check(caller)
                    self.report.latencies_s.append(time.monotonic() - begun)
                except Lost as error:
                    self.report.lost.append(str(error))
                except Wrong as error:
                    self.report.wrong.append(str(error))
                except GivenUp as error:
                    self.report.stuck.append(str(error))

    def _follow(self) -> None:
        """Follow a track as a training loop does, through the client, and compare each graph that it swaps to."""
        generator = np.random.default_rng([self.seed, 3])
        points, scale = generator.random((3000, 3)), 1.0
        policy = RefreshPolicy(tolerance=0.0, cooldown_epochs=0)
        with Client(self.url, retries=1000) as client:
            session = client.track(points, k=8, order="given", metric="euclidean", lengthscale=scale, policy=policy)
            with session:
                version = 0
                while not self.over.wait(0.2):
                    scale *= 1.001
                    graph = session.step(lengthscale=scale)
                    if graph.changed:
                        version = self._check_version(points, graph, version)
                try:
                    last = session.sync(STUCK_AFTER_S)
                    if last.spec["metric"].get("lengthscale", 1.0) != scale:
                        self.report.lost.append("the track's last version is not the one that was asked for last")
                    self._check_version(points, last, version - 1)
                except Exception as error:
                    self.report.stuck.append(f"track: {error!r}")

    def _check_version(self, points: np.ndarray, graph: Any, before: int) -> int:
        if graph.version <= before:
            self.report.wrong.append(f"version {graph.version} of the track came after {before}")
        try:
            scale = graph.spec["metric"].get("lengthscale", 1.0)
            check_rows(points, graph.neighbors, graph.distances * scale, predecessors=True)
        except Wrong as error:
            self.report.wrong.append(f"track: {error}")
        self.report.versions += 1
        return int(graph.version)


class GivenUp(AssertionError):
    """The soak is over, and a call still fails or a graph is still not finished."""


@dataclass
class _Caller:
    """Calls that are made again until they are answered, with anything but 503."""

    http: httpx.Client
    given_up: threading.Event
    report: Report

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        why = ""
        while not self.given_up.is_set():
            try:
                answer = self.http.request(method, path, **options)
            except httpx.TransportError as error:
                why = repr(error)
            else:
                if answer.status_code != 503:
                    return answer
                if "Retry-After" not in answer.headers:
                    raise Wrong(f"{method} {path}: 503 without Retry-After: {answer.text}")
                why = answer.text
            time.sleep(0.2)
        raise GivenUp(f"{method} {path}: {why}")

    def expect(self, status: tuple[int, ...], method: str, path: str, **options: Any) -> httpx.Response:
        answer = self.call(method, path, **options)
        if answer.status_code in status:
            return answer
        kind = Lost if answer.status_code in (404, 409) else Wrong
        raise kind(f"{method} {path}: {answer.status_code} {answer.text}")


@dataclass
class _Wish:
    """A graph to ask for. inducing: points of the residual metric, None for the Euclidean one."""

    points: np.ndarray
    spec: dict[str, Any]
    inducing: np.ndarray | None = None

    @classmethod
    def draw(cls, generator: np.random.Generator, n: int) -> _Wish:
        """Return a wish for a graph of n points; residual ones are of 4,000 at most."""
        dtype = generator.choice([np.float32, np.float64])
        points = generator.random((n, int(generator.integers(1, 5)))).astype(dtype)
        kind = ("knn", "vecchia", "residual")[int(generator.integers(3 if n <= 4000 else 2))]
        spec: dict[str, Any] = {"kind": "knn" if kind == "knn" else "vecchia", "k": int(generator.integers(1, 20))}
        if kind == "vecchia":
            spec["order"] = str(generator.choice(["given", "maximin", "hilbert"]))
        if kind == "residual":
            spec |= {"order": "given", "accuracy": "exact"}
            return cls(points.astype(float), spec, generator.random((15, points.shape[1])))
        return cls(points, spec)

    def check(self, caller: _Caller) -> None:
        """Ask, wait, compare, and delete everything again."""
        graph = self.ask(caller)["id"]
        self.await_ready(caller, graph)
        self.check_answer(caller, graph)

    def ask(self, caller: _Caller) -> dict[str, Any]:
        """Upload the points and ask for the graph; return its description."""
        wish = {"dataset": _upload(caller, self.points), "spec": self.spec}
        if self.inducing is not None:
            inducing = {"dataset": _upload(caller, self.inducing)}
            wish["spec"] = self.spec | {"metric": {"type": "residual", "inducing": inducing, **_KERNEL}}
        return dict(caller.expect((200, 202), "POST", "/v1/graphs", json=wish).json())

    def await_ready(self, caller: _Caller, graph: str) -> None:
        while True:
            answer = caller.expect((200,), "GET", f"/v1/graphs/{graph}", headers={"Prefer": "wait=5"}).json()
            if answer["state"] == "ready":
                if not answer["certificate"]["exact"]:
                    raise Wrong(f"graph {graph} is not exact by its certificate: {answer['certificate']}")
                return
            if answer["state"] not in ("queued", "running"):
                raise Lost(f"graph {graph} ended: {answer['state']}, {answer['error']}")
            if caller.given_up.is_set():
                raise GivenUp(f"graph {graph} is {answer['state']}: {answer}")

    def check_answer(self, caller: _Caller, graph: str) -> None:
        """Compare the arrays with brute force, then delete the graph and its points."""
        description = caller.expect((200,), "GET", f"/v1/graphs/{graph}").json()
        neighbors, distances = (_array(caller, graph, name) for name in ("neighbors", "distances"))
        points = self.points
        if self.spec["kind"] == "vecchia":
            order = _array(caller, graph, "order")
            if not np.array_equal(np.sort(order), np.arange(len(points))):
                raise Wrong(f"graph {graph}: its order is no permutation")
            points = points[order]
        predecessors = self.spec["kind"] == "vecchia"
        if self.inducing is None:
            check_rows(points, neighbors, distances, predecessors=predecessors)
        else:
            _check_residual_rows(points, self.inducing, distances)
        caller.expect((204, 404), "DELETE", f"/v1/graphs/{graph}")
        caller.expect((204, 404), "DELETE", f"/v1/datasets/{description['dataset']}")


def check_rows(X: np.ndarray, neighbors: np.ndarray, distances: np.ndarray, *, predecessors: bool) -> None:
    """Compare a sample of the rows of a graph of X with brute force, to the bit; raises Wrong."""
    n, k = neighbors.shape
    if n != len(X):
        raise Wrong(f"a graph of {len(X)} points has {n} rows")
    for row in _sample(n):
        candidates = np.arange(row) if predecessors else np.delete(np.arange(n), row)
        exact = naive.distance_block(X[row : row + 1], X[candidates])[0]
        nearest = np.argsort(exact, kind="stable")[:k]
        found = neighbors[row][neighbors[row] >= 0]
        if not np.array_equal(found, candidates[nearest]):
            raise Wrong(f"row {row} of {n} has the neighbors {found}, by brute force {candidates[nearest]}")
        if not np.allclose(distances[row][: len(nearest)], exact[nearest], rtol=1e-6, atol=0):
            raise Wrong(f"row {row} of {n} has other distances than brute force")


def _check_residual_rows(X: np.ndarray, inducing: np.ndarray, distances: np.ndarray) -> None:
    """Compare a sample of the rows of an exact residual graph with brute force; raises Wrong.

    Squares agree within their rounding and the steps of the pairs: a value between two steps may fall to either.
    """
    V, p = naive.residual_factors(X, inducing, **_KERNEL)
    rounding = naive.residual_rounding(X, inducing, p, **_KERNEL)
    for row in _sample(len(X)):
        rho = naive.covariance(X[row : row + 1], X[:row], **_KERNEL)[0] - V[:row] @ V[row]
        rho /= np.sqrt(p[row] * p[:row])
        squares = np.maximum(0.0, 1.0 - np.abs(rho))
        nearest = np.argsort(squares, kind="stable")[: distances.shape[1]]
        off = np.abs(np.square(distances[row][: len(nearest)]) - squares[nearest])
        step = naive.residual_steps(p[[row, *nearest]])[0].max()
        if (off > rounding[row] + rounding[nearest].max(initial=0.0) + step).any():
            raise Wrong(
                f"row {row} of {len(X)} has other residual distances than brute force, squared by {off.max():.1e}"
            )


def _sample(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, _SAMPLE).astype(int))


def _upload(caller: _Caller, points: np.ndarray) -> str:
    out = io.BytesIO()
    np.save(out, points)
    return str(caller.expect((200, 201), "POST", "/v1/datasets", content=out.getvalue()).json()["id"])


def _array(caller: _Caller, graph: str, name: str) -> np.ndarray:
    """Return an array; a download that breaks off is made again."""
    return np.load(io.BytesIO(caller.expect((200,), "GET", f"/v1/graphs/{graph}/{name}").content))
