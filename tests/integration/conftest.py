"""Real processes on loopback: a deployment whose parts can be killed one by one, and `pcct up` as users run it.

Tests that need nothing but a service take `service_url`, and PCCT_TEST_TARGET says which: "embedded" is `pcct up`;
"processes" is a Valkey with a password on a port, the API and two workers, each started by itself; or the URL of a deployment
that runs already, with an admin key in PCCT_API_KEY if it wants one. Tests that handle processes of their own run with the
first alone.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import pytest
from redis import Redis

from service.embedded import EmbeddedStore, find_server
from service.processes import Lifeline, own_command

HERE = Path(__file__).parent
PATIENCE_S = 90.0
SPEC = {"kind": "vecchia", "k": 5, "order": "given"}
TARGET = os.environ.get("PCCT_TEST_TARGET", "embedded")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has nothing to do with a target other than the embedded one."""
    if TARGET == "embedded":
        return
    others = [item for item in items if HERE in item.path.parents and "service_url" not in item.fixturenames]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def until(condition: Callable[[], Any]) -> Any:
    """Return the first true answer of condition()."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.03)


def as_npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(pid: int) -> list[int]:
    """Return the process ids of all children, their children, and so on; those that end meanwhile may be left out."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def command_of(pid: int) -> str:
    """Return the command line of a process, "" when there is none any more."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


class Client(httpx.Client):
    """HTTP as a user does it, with the few calls that the tests make."""

    def __init__(self, url: str) -> None:
        key = os.environ.get("PCCT_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        super().__init__(base_url=url, headers=headers, timeout=PATIENCE_S, trust_env=False)

    def upload(self, points: np.ndarray) -> str:
        return self.post("/v1/datasets", content=as_npy(points)).raise_for_status().json()["id"]

    def ask(self, dataset: str, wait_s: int = 0) -> httpx.Response:
        headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        return self.post("/v1/graphs", json={"dataset": dataset, "spec": SPEC}, headers=headers)

    def state(self, graph: str) -> str:
        return self.get(f"/v1/graphs/{graph}").raise_for_status().json()["state"]

    def array(self, graph: str, name: str) -> np.ndarray:
        return np.load(io.BytesIO(self.get(f"/v1/graphs/{graph}/{name}").raise_for_status().content))

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


@dataclass
class Deployment:
    """An embedded store, the API and held workers, each a process of its own."""

    directory: Path
    store: EmbeddedStore
    lifeline: Lifeline
    environment: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    client: Client = field(init=False)

    until = staticmethod(until)

    @property
    def hold(self) -> Path:
        return self.directory / "hold"

    @property
    def builds(self) -> list[int]:
        """Process id of the worker, for each build that was started."""
        log = self.directory / "builds"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def start_api(self) -> None:
        api = self._start("-m", "service.cli", "serve", "--port", "0", "--lifeline-fd", str(self.lifeline.fd))
        assert api.stdout is not None
        self.client = Client(re.search(r"http://\S+", api.stdout.readline())[0])  # type: ignore[index]

    def start_worker(self) -> subprocess.Popen[str]:
        """Start one more worker."""
        return self._start(
            str(HERE / "held_worker.py"), str(self.hold), str(self.directory / "builds"), str(self.lifeline.fd)
        )

    def kill_store(self) -> None:
        """Kill the store's server, as the kernel does when memory runs out."""
        with Redis.from_url(self.store.url) as client:
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
        until(self.store.look_after)

    def revive_store(self) -> None:
        """Let the supervisor start the server again."""

        def answers() -> bool:
            self.store.look_after()
            return self.client.is_ready()

        until(answers)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=self.environment,
            pass_fds=(self.lifeline.fd,),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        self.hold.unlink(missing_ok=True)
        if hasattr(self, "client"):
            self.client.close()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.communicate(timeout=PATIENCE_S)


@contextmanager
def run_deployment(
    directory: Path, data_dir: Path, reach: Callable[[Path], str] = lambda socket: f"unix://{socket}"
) -> Iterator[Deployment]:
    """Run a deployment with one worker, ready; redelivery is quick, so that a killed worker is soon replaced.

    data_dir: of the store. reach: returns the URL by which API and worker reach the store on a socket.
    """
    lifeline = Lifeline()
    store = EmbeddedStore(data_dir, lifeline)
    store.start()
    url = reach(Path(store.url.removeprefix("unix://")))
    ours = {"PCCT_REDIS_URL": url, "PCCT_REDELIVERY_S": "1", "PCCT_HEARTBEAT_S": "0.2"}
    running = Deployment(directory, store, lifeline, {**os.environ, **ours})
    try:
        running.start_api()
        running.start_worker()
        until(running.client.is_ready)
        yield running
    finally:
        running.stop()
        store.stop()
        lifeline.close()


@pytest.fixture(scope="session")
def start_deployment() -> Callable[..., AbstractContextManager[Deployment]]:
    """Starts a deployment; see `run_deployment`."""
    return run_deployment


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A deployment with one worker, ready."""
    with run_deployment(tmp_path, tmp_path / "data") as running:
        yield running


class Up:
    """`pcct up` on a free port. stderr: where it logs, for one that logs more than a pipe holds. cwd: its current folder."""

    until = staticmethod(until)
    is_alive = staticmethod(is_alive)

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        port: int = 0,
        stderr: int | IO[str] | None = subprocess.PIPE,
        cwd: Path | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            own_command("service.cli", "up", "--port", str(port), "--data-dir", str(data_dir), *arguments),
            env={name: value for name, value in os.environ.items() if not name.startswith("PCCT_")},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=cwd,
        )

    def wait_ready(self) -> Client:
        """Wait for the line that says so; return a client."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("pcct ready at "):
                return Client(line.removeprefix("pcct ready at ").strip())
        raise AssertionError(f"never ready: {self.process.communicate()[1]}")

    def children(self) -> dict[int, str]:
        """Return the command of every child, grandchild and so on by process id."""
        return {pid: command_of(pid) for pid in descendants(self.process.pid)}

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal, wait; return the status and what was still written."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


def starting() -> Iterator[Callable[..., Up]]:
    """Start `pcct up`; whatever still runs at the end is killed, children included."""
    started: list[Up] = []

    def start(data_dir: Path, *arguments: str, **options: Any) -> Up:
        started.append(Up(data_dir, *arguments, **options))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            up.end(signal.SIGKILL)


start_up = pytest.fixture(starting, name="start_up")
start_up_once = pytest.fixture(starting, scope="session", name="start_up_once")


@contextmanager
def run_processes(directory: Path) -> Iterator[str]:
    """Run what a deployment without containers consists of: a store with a password, the API, two workers. Yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    password = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PCCT_")}
    environment["PCCT_REDIS_URL"] = f"redis://:{password}@127.0.0.1:{port}/0"
    store = [str(find_server()), "-", "--dir", str(directory), "--port", str(port), "--bind", "127.0.0.1"]
    store += ["--appendonly", "yes", "--save", "", "--logfile", str(directory / "store.log")]
    ours = [sys.executable, "-m", "service.cli"]
    with ExitStack() as stack:

        def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
            process = stack.enter_context(subprocess.Popen(command, env=environment, text=True, **options))
            stack.callback(process.terminate)
            return process

        server = start(store, stdin=subprocess.PIPE)
        assert server.stdin is not None
        server.stdin.write(f"requirepass {password}\n")
        server.stdin.close()
        api = start([*ours, "serve", "--port", "0"], stdout=subprocess.PIPE)
        for _ in range(2):
            start([*ours, "work"])
        assert api.stdout is not None
        url = re.search(r"http://\S+", api.stdout.readline())[0]  # type: ignore[index]
        with Client(url) as client:
            until(client.is_ready)
        yield url


@pytest.fixture(scope="session")
def service_url(start_up_once: Callable[..., Up], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service that is ready, chosen by PCCT_TEST_TARGET; all tests that take it share it."""
    if TARGET == "embedded":
        # A pipe that nobody reads would stop the service once its log has filled it.
        with start_up_once(tmp_path_factory.mktemp("data"), stderr=None).wait_ready() as client:
            yield str(client.base_url)
    elif TARGET == "processes":
        with run_processes(tmp_path_factory.mktemp("store")) as url:
            yield url
    elif TARGET.startswith(("http://", "https://")):
        with Client(TARGET) as client:
            until(client.is_ready)
        yield TARGET
    else:
        pytest.fail(f"PCCT_TEST_TARGET is {TARGET!r}; use embedded, processes or a URL")


@pytest.fixture(scope="session")
def connect() -> Callable[[str], Client]:
    """Makes an HTTP client of a URL, with the key that the target wants."""
    return Client


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(11).random((300, 3))
