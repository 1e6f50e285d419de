"""What the HTTP face costs: memory of uploads and downloads, how fast it polls, uploads, answers and starts, what it bears.

    pcct bench --suite service [--case upload_100mb] [--quick] [--seconds 120] [-o artifacts/benchmarks/service.jsonl]

Starts `pcct up` with a store of its own and loads it over loopback from this process, on the same cores. Memory is that of the
API process as the kernel counts it: the peak while a case runs, less what was resident before. artifacts/README.md describes
the lines that are written; `--quick` takes small sizes and judges nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from capacity import Load, resident_mb
from run import SCHEMA, describe_machine, read_commit, read_lines, read_versions, write_line

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "artifacts" / "benchmarks" / "service.jsonl"
MB = 1e6
GRAPH_FORMATS = ("application/x-npz", "application/x-safetensors")
ARRAY_FORMATS = ("application/x-npy", "application/octet-stream")
CLIENTS = 8  # connections that poll at once, each waiting for its answer
POLL_P99_MS = 20.0
CAPACITY_NAMESPACE_BYTES = 80_000_000  # full within the warm-up; from then on old graphs are evicted


@dataclass
class Sizes:
    """How large the cases are. build_points: of the graph that the worker builds during the polls.

    pause_s: between uploads, until the store's file of one is on the disk. load: what `capacity` puts on the service.
    """

    large_bytes: int = 1_000_000_000
    upload_bytes: int = 100_000_000
    graph_points: int = 1_000_000
    graph_k: int = 30
    build_points: int = 1_000_000
    polls_s: float = 5.0
    runs: int = 5
    pause_s: float = 3.0
    load: Load = field(default_factory=lambda: Load(120.0))

    @classmethod
    def quick(cls) -> Sizes:
        """Return sizes for which every case takes a moment."""
        return cls(4_000_000, 1_000_000, 5_000, 5, 20_000, 0.3, 2, 0.0, Load(5.0, 200, 5, 20, 100_000))


@dataclass
class Measured:
    """What a case gave. value: what is judged. runs_s: seconds of every run. holds: whether its other demands are met."""

    value: float
    runs_s: list[float]
    notes: dict[str, Any] = field(default_factory=dict)
    holds: bool = True


@dataclass(frozen=True)
class Bar:
    """One case. measure: what its value is; limit: it must be at least this where more is better, else at most."""

    run: Callable[[Sizes], Measured]
    measure: str
    limit: float
    more_is_better: bool = False

    def verdict(self, measured: Measured) -> str:
        """Return what the bar makes of it."""
        reached = measured.value >= self.limit if self.more_is_better else measured.value <= self.limit
        return "meets bar" if reached and measured.holds else "below bar"


@dataclass
class Up:
    """A running `pcct up`. key: what its callers need, "" where they need none.

    api: process id of its API; processes: of the API, the worker and the store, by name.
    """

    host: str
    port: int
    api: int
    key: str = ""
    processes: dict[str, int] = field(default_factory=dict)

    @property
    def proof(self) -> dict[str, str]:
        """The header that carries the key, none without one."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def connect(self) -> socket.socket:
        """Return a new connection."""
        connection = socket.create_connection((self.host, self.port), timeout=120.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(self, method: str, path: str, body: bytes | memoryview = b"", **headers: str) -> Answer:
        """Send one request on a connection of its own, return its answer with its body thrown away but small ones."""
        with self.connect() as connection:
            return exchange(connection, method, path, body, **self.proof, **headers)

    def ask_json(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send JSON, return the parsed answer; raises when it is an error."""
        data = b"" if body is None else json.dumps(body).encode()
        answer = self.ask(method, path, data, **{"Content-Type": "application/json"}, **headers)
        if answer.status >= 400:
            raise RuntimeError(answer.body.decode())
        return json.loads(answer.body)


@dataclass
class Answer:
    """status; headers by lower-case name; length of the body, and the body itself when it has at most a megabyte."""

    status: int
    headers: dict[str, str]
    length: int
    body: bytes


def exchange(
    connection: socket.socket, method: str, path: str, body: bytes | memoryview = b"", **headers: str
) -> Answer:
    """Send one request and read its answer to the end, or to the end of the connection when it has no length."""
    fields = {"Host": "bench", "Content-Length": str(len(body)), "Connection": "close", **headers}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    connection.sendall(head.encode())
    connection.sendall(body)
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        piece = connection.recv(1 << 16)
        if not piece:
            raise ConnectionError("the connection ended before the answer began")
        received += piece
    status_line, *lines = received[:end].decode("latin-1").split("\r\n")
    found = dict(line.lower().split(": ", 1) for line in lines)
    kept = received[end + 4 :]
    length = len(kept)
    room = bytearray(1 << 20)
    while count := connection.recv_into(room):
        length += count
        if length <= len(room):
            kept += room[:count]
    if int(found.get("content-length", length)) != length:
        raise ConnectionError(f"{length} of {found['content-length']} bytes came")
    return Answer(int(status_line.split()[1]), found, length, bytes(kept))


@contextmanager
def running_service(keys: bool = False, **settings: str) -> Iterator[Up]:
    """Start `pcct up` on a free port with a store of its own, yield it when it is ready, stop it.

    keys: callers need one. settings: environment variables.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PCCT_")}
    environment |= {"PCCT_LOG_LEVEL": "error", "PCCT_AUTH": "on" if keys else "off"} | settings
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "service.cli", "up", "--port", "0", "--data-dir", directory]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if line.startswith("pcct ready at "))
            url = urlsplit(next(lines).removeprefix("pcct ready at ").strip())
            assert url.hostname is not None
            assert url.port is not None
            key = make_key(directory, environment) if keys else ""
            processes = find_processes(process.pid)
            yield Up(url.hostname, url.port, processes["api"], key, processes)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def make_key(directory: str, environment: dict[str, str]) -> str:
    """Return the text of a new key for the service with this data directory."""
    command = [sys.executable, "-m", "service.cli", "keys", "create", "--namespace", "bench"]
    environment = environment | {"PCCT_DATA_DIR": directory}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def find_processes(parent: int) -> dict[str, int]:
    """Return the process ids of API, worker and store, which descend from `pcct up`."""
    marks = {"api": b"\0serve\0", "worker": b"\0work\0", "store": b"valkey-server"}
    found: dict[str, int] = {}
    families = [parent]
    while families:
        children = Path(f"/proc/{(pid := families.pop())}/task/{pid}/children").read_text().split()
        for child in map(int, children):
            families.append(child)
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            # The store's own guard has its name, too; what is deeper in the tree is the store itself.
            found |= {name: child for name, mark in marks.items() if mark in command}
    return found


def peak_mb(pid: int) -> float:
    """Return the peak of a process's resident memory in megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / MB
    raise RuntimeError(f"process {pid} has no peak")


@contextmanager
def peak_growth(pid: int, grown: dict[str, float], name: str) -> Iterator[None]:
    """Note by how many megabytes a process's resident memory grew at its peak."""
    before = resident_mb(pid)
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak starts again from what is resident now
    yield
    grown[name] = round(peak_mb(pid) - before, 1)


def points_body(points: np.ndarray) -> bytes:
    """Return points as a .npy file."""
    out = io.BytesIO()
    np.save(out, points)
    return out.getvalue()


def random_body(size: int, seed: int = 0) -> memoryview:
    """Return a .npy file of about so many bytes: float32 points in eight dimensions."""
    shape = (size // 32, 8)
    return memoryview(points_body(np.random.default_rng(seed).random(shape, np.float32)))


def upload_1gb(sizes: Sizes) -> Measured:
    """Upload a body of a gigabyte."""
    body = random_body(sizes.large_bytes)
    grown: dict[str, float] = {}
    with running_service() as up:
        up.ask("POST", "/v1/datasets", random_body(1_000_000, 1))
        with peak_growth(up.api, grown, "growth_mb"):
            began = time.perf_counter()
            answer = up.ask("POST", "/v1/datasets", body)
            taken_s = time.perf_counter() - began
    if answer.status != 201:
        raise RuntimeError(answer.body.decode())
    return Measured(grown["growth_mb"], [taken_s], {"bytes": len(body), "mb_per_s": round(len(body) / MB / taken_s)})


def upload_100mb(sizes: Sizes) -> Measured:
    """Upload bodies of a hundred megabytes, every time others; the median counts."""
    runs_s = []
    with running_service() as up:
        for seed in range(sizes.runs):
            body = random_body(sizes.upload_bytes, seed)
            began = time.perf_counter()
            answer = up.ask("POST", "/v1/datasets", body)
            runs_s.append(time.perf_counter() - began)
            if answer.status != 201:
                raise RuntimeError(answer.body.decode())
            up.ask("DELETE", f"/v1/datasets/{json.loads(answer.body)['id']}")
            time.sleep(sizes.pause_s)
    return Measured(len(body) / MB / statistics.median(runs_s), runs_s, {"bytes": len(body)})


def ready_graph(up: Up, points: np.ndarray, k: int) -> str:
    """Upload points, wait for their graph, return its path."""
    dataset = json.loads(up.ask("POST", "/v1/datasets", points_body(points)).body)["id"]
    wish = {"dataset": dataset, "spec": {"kind": "vecchia", "order": "hilbert", "k": k}}
    graph = up.ask_json("POST", "/v1/graphs", wish, Prefer="wait=30")
    while graph["state"] in ("queued", "running"):
        graph = up.ask_json("GET", f"/v1/graphs/{graph['id']}", Prefer="wait=30")
    if graph["state"] != "ready":
        raise RuntimeError(str(graph["error"]))
    return f"/v1/graphs/{graph['id']}"


def download_1m(sizes: Sizes) -> Measured:
    """Download a graph of a million rows, every array in every format that has no limit of size."""
    points = np.random.default_rng(0).random((sizes.graph_points, 2), np.float32)
    grown: dict[str, float] = {}
    speeds: dict[str, int] = {}
    runs_s = []
    with running_service() as up:
        graph = ready_graph(up, points, sizes.graph_k)
        up.ask("GET", f"{graph}/neighbors?rows=0:10")
        wanted = [("arrays", media) for media in GRAPH_FORMATS]
        wanted += [(name, media) for name in ("neighbors", "distances", "order") for media in ARRAY_FORMATS]
        for name, media in wanted:
            label = f"{name} {media.partition('/')[2]}"
            with peak_growth(up.api, grown, label):
                began = time.perf_counter()
                answer = up.ask("GET", f"{graph}/{name}", Accept=media)
                runs_s.append(time.perf_counter() - began)
            if answer.status != 200:
                raise RuntimeError(answer.body.decode())
            speeds[label] = round(answer.length / MB / runs_s[-1])
    return Measured(max(grown.values()), runs_s, {"growth_mb": grown, "mb_per_s": speeds})


def polls_304(sizes: Sizes, keys: bool = False) -> Measured:
    """Poll a track that does not change, as training loops do, while the worker builds something long."""
    rng = np.random.default_rng(0)
    with running_service(keys) as up:
        dataset = json.loads(up.ask("POST", "/v1/datasets", points_body(rng.random((1_000, 2)))).body)["id"]
        wish = {"dataset": dataset, "spec": {"k": 5}}
        track = up.ask_json("POST", "/v1/tracks", wish, Prefer="wait=30")
        long = json.loads(up.ask("POST", "/v1/datasets", points_body(rng.random((sizes.build_points, 8)))).body)["id"]
        graph = up.ask_json("POST", "/v1/graphs", {"dataset": long, "spec": {"k": 30}})
        while graph["state"] == "queued":
            graph = up.ask_json("GET", f"/v1/graphs/{graph['id']}")
        fields = {"Host": "bench", "If-None-Match": '"1-0"', **up.proof}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        request = f"GET /v1/tracks/{track['id']} HTTP/1.1\r\n{head}\r\n".encode()
        times_s = poll(up, request, sizes.polls_s)
        building = up.ask_json("GET", f"/v1/graphs/{graph['id']}")["state"] == "running"
        up.ask("DELETE", f"/v1/graphs/{graph['id']}")
    p99_ms = float(np.percentile(times_s, 99)) * 1e3
    notes = {
        "p50_ms": round(float(np.median(times_s)) * 1e3, 2),
        "p99_ms": round(p99_ms, 2),
        "max_ms": round(max(times_s) * 1e3, 2),
        "clients": CLIENTS,
        "building_at_the_end": building,
    }
    return Measured(len(times_s) / sizes.polls_s, [sizes.polls_s], notes, holds=p99_ms <= POLL_P99_MS)


def polls_304_keyed(sizes: Sizes) -> Measured:
    """Poll as `polls_304` does, with a key."""
    return polls_304(sizes, keys=True)


def poll(up: Up, request: bytes, seconds: float) -> list[float]:
    """Send the request over and over on every connection, each after its answer; return the times of all answers, in s."""
    times_s: list[float] = []
    sent: dict[socket.socket, float] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(CLIENTS):
            connection = up.connect()
            selector.register(connection, selectors.EVENT_READ)
            connection.sendall(request)
            sent[connection] = time.perf_counter()
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            for key, _ in selector.select(1.0):
                connection = key.fileobj  # type: ignore[assignment]
                answer = connection.recv(4096)
                if not answer.startswith(b"HTTP/1.1 304") or not answer.endswith(b"\r\n\r\n"):
                    raise RuntimeError(f"not a 304: {answer!r}")
                now = time.perf_counter()
                times_s.append(now - sent[connection])
                sent[connection] = now
                connection.sendall(request)
        for connection in sent:
            connection.close()
    return times_s


def oneshot_32k(sizes: Sizes) -> Measured:
    """Send float32 points, receive their graph, against the same graph built in this process; runs take turns."""
    from pcct_core.graph import build_graph
    from pcct_core.spec import GraphSpec

    n, runs_s, core_s = min(sizes.graph_points, 32_768), [], []
    spec = GraphSpec(k=30)
    with running_service() as up:
        for seed in range(sizes.runs + 2):
            points = np.random.default_rng(seed).random((n, 3), np.float32)
            body = points_body(points)
            began = time.perf_counter()
            answer = up.ask("POST", "/v1/knn?k=30", body)
            runs_s.append(time.perf_counter() - began)
            if answer.status != 200:
                raise RuntimeError(answer.body.decode())
            time.sleep(0.2)
            began = time.perf_counter()
            build_graph(points, spec)
            core_s.append(time.perf_counter() - began)
            time.sleep(0.2)
    runs_s, core_s = runs_s[2:], core_s[2:]
    ratio = statistics.median(runs_s) / statistics.median(core_s)
    return Measured(ratio, runs_s, {"core_s": [round(taken_s, 6) for taken_s in core_s]})


def startup(sizes: Sizes) -> Measured:
    """Start the API alone until it answers, from the start of its process; it must not load the compiler."""
    runs_s, compilers = [], 0
    for _ in range(sizes.runs):
        began = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PCCT_")}
        command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert process.stdout is not None
            url = urlsplit(process.stdout.readline().split()[-1])
            assert url.hostname is not None
            assert url.port is not None
            if Up(url.hostname, url.port, process.pid).ask("GET", "/livez").status != 200:
                raise RuntimeError("the API does not answer")
            runs_s.append(time.perf_counter() - began)
            compilers += "llvmlite" in Path(f"/proc/{process.pid}/maps").read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()
    return Measured(statistics.median(runs_s), runs_s, {"loaded_compiler": compilers > 0}, holds=compilers == 0)


def capacity(sizes: Sizes) -> Measured:
    """Bear the load of loops that follow tracks and of uploads; memory must stay flat and every answer be right."""
    with running_service(PCCT_NAMESPACE_BYTES=str(CAPACITY_NAMESPACE_BYTES)) as up:
        notes = sizes.load.put_on(f"http://{up.host}:{up.port}", up.processes)
    slopes = [notes["memory_mb"][name]["slope_per_min"] for name in ("api", "worker", "store data")]
    refused = [status for status in notes["statuses"] if int(status) >= 400]
    holds = not notes["errors"] and not refused and min(notes["swaps_per_min"]) > 0
    return Measured(max(slopes), [notes.pop("seconds")], notes, holds)


CASES = {
    "upload_1gb": Bar(upload_1gb, "megabytes", 64.0),
    "upload_100mb": Bar(upload_100mb, "mb_per_s", 300.0, more_is_better=True),
    "download_1m": Bar(download_1m, "megabytes", 64.0),
    "polls_304": Bar(polls_304, "requests_per_s", 1500.0, more_is_better=True),
    "polls_304_keyed": Bar(polls_304_keyed, "requests_per_s", 1500.0, more_is_better=True),
    "oneshot_32k": Bar(oneshot_32k, "cost", 2.5),
    "startup": Bar(startup, "seconds", 3.0),
    "capacity": Bar(capacity, "mb_per_min", 5.0),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; 0 when all that are judged meet their bars."""
    parser = argparse.ArgumentParser(
        "pcct bench --suite service", description="Measure the HTTP interface against its bars."
    )
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, nothing is judged or kept unless -o is given"
    )
    parser.add_argument("--seconds", type=float, help="how long the load of the case `capacity` lasts (default: 120)")
    parser.add_argument("-o", "--output", type=Path, help=f"file of lines; {OUTPUT.relative_to(ROOT)} unless --quick")
    options = parser.parse_args(arguments)
    output = options.output or (None if options.quick else OUTPUT)
    if output is not None:
        try:
            read_lines(output)
        except ValueError as error:
            parser.error(str(error))
    sizes = Sizes.quick() if options.quick else Sizes()
    if options.seconds is not None:
        sizes.load.seconds = options.seconds
    met = True
    for name in options.case or CASES:
        line = to_line(name, CASES[name].run(sizes), not options.quick)
        told = (
            f"{line['ratio']:g} {line['measure']}, bar {line['bar']:g}: {line['verdict']} {json.dumps(line['notes'])}"
        )
        print(f"{name}: {told}", flush=True)
        met = met and line["verdict"] != "below bar"
        if output is not None:
            write_line(output, line)
    return 0 if met else 1


def to_line(name: str, measured: Measured, judged: bool) -> dict[str, Any]:
    """Return the line of the file."""
    bar = CASES[name]
    return {
        "schema": SCHEMA,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "suite": "service",
        "commit": read_commit(),
        "machine": describe_machine(),
        "versions": read_versions(),
        "case": {"name": name, "work": name},
        "runs_s": [round(taken_s, 6) for taken_s in measured.runs_s],
        "median_s": round(statistics.median(measured.runs_s), 6),
        "measure": bar.measure,
        "ratio": round(measured.value, 4),
        "bar": bar.limit,
        "goal": None,
        "verdict": bar.verdict(measured) if judged else "not judged",
        "notes": measured.notes,
    }


if __name__ == "__main__":
    sys.exit(main())
