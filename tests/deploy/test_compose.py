"""The compose file for real: images built, two workers, the integration suite, faults and a restored backup.

`make compose-test` runs it. It needs a container engine and is skipped, saying so, where none answers.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
PROJECT = "pcct-compose-test"
IMAGE = "pcct-compose-test"
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Running:
    """A deployment that is up. compose: calls Compose on it. key: an admin key of the namespace "suite"."""

    compose: Callable[..., Any]
    url: str
    key: str

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=PATIENCE_S, trust_env=False
        )

    def wait_ready(self) -> float:
        """Wait until /readyz says yes; return the seconds that it took."""
        started = time.monotonic()
        with self.client() as client:
            while True:
                try:
                    if client.get("/readyz").status_code == 200:
                        return time.monotonic() - started
                except httpx.TransportError:
                    pass
                assert time.monotonic() - started < PATIENCE_S, "not ready in time"
                time.sleep(0.1)

    def run(self, service: str, *command: str) -> str:
        """Run a command inside a container of a service; return what it printed."""
        return str(self.compose("exec", "-T", service, *command).stdout)


@pytest.fixture(scope="module")
def engine() -> None:
    """Skips where no container engine answers."""
    if shutil.which("docker") is None:
        pytest.skip("no container engine: there is no docker command")
    asked = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip(f"no container engine answers: {asked.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def running(engine: None, compose: Any) -> Iterator[Running]:
    """The deployment, built from this checkout, with two workers and a key; taken down with its data at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {"IMAGE": IMAGE, "API_PORT": str(port), "API_ADDRESS": "127.0.0.1"}

    def call(*arguments: str, timeout_s: float = 180.0) -> Any:
        return compose("--project-name", PROJECT, *arguments, environment=environment, timeout_s=timeout_s)

    call("down", "--volumes", "--timeout", "5")
    try:
        call("build", timeout_s=1200.0)
        call("up", "--detach", "--wait", "--scale", "worker=2")
        said = call("exec", "-T", "api", "pcct", "keys", "create", "--namespace", "suite", "--scope", "admin").stdout
        (key,) = re.findall(r"pcct_[0-9a-f]{16}_[0-9a-f]{64}", said)
        deployment = Running(call, f"http://127.0.0.1:{port}", key)
        deployment.wait_ready()
        yield deployment
    finally:
        call("down", "--volumes", "--timeout", "5")


def make_graph(running: Running, n: int, seed: int) -> tuple[str, bytes]:
    """Build a graph of random points; return its id and the bytes of its neighbors."""
    out = io.BytesIO()
    np.save(out, np.random.default_rng(seed).random((n, 3)))
    with running.client() as client:
        dataset = client.post("/v1/datasets", content=out.getvalue()).raise_for_status().json()["id"]
        wish = {"dataset": dataset, "spec": {"kind": "vecchia", "k": 5, "order": "given"}}
        graph = client.post("/v1/graphs", json=wish, headers={"Prefer": "wait=30"}).raise_for_status().json()
        assert graph["state"] == "ready", graph
        return graph["id"], read_neighbors(running, graph["id"])


def read_neighbors(running: Running, graph: str) -> bytes:
    with running.client() as client:
        return client.get(f"/v1/graphs/{graph}/neighbors").raise_for_status().content


def test_two_workers_and_all_the_rest_are_healthy(running: Running) -> None:
    said = running.compose("ps", "--format", "json").stdout.strip()
    containers = json.loads(said) if said.startswith("[") else [json.loads(line) for line in said.splitlines()]
    assert sorted(container["Service"] for container in containers) == ["api", "redis", "worker", "worker"]
    assert {container["Health"] for container in containers} == {"healthy"}
    with running.client() as client:
        assert client.get("/readyz").json()["warm_workers"] == 2


def test_nobody_gets_in_without_a_key(running: Running) -> None:
    with httpx.Client(base_url=running.url, trust_env=False) as client:
        assert client.get("/livez").status_code == 200
        assert client.post("/v1/knn?k=3", content=b"").status_code == 401
        assert client.get("/metrics").status_code == 401


@pytest.mark.parametrize("service", ["api", "worker", "redis"])
def test_containers_run_as_nobody_special_on_a_read_only_root(running: Running, service: str) -> None:
    script = "id -u; touch /opt/pcct/x /x 2>&1 | grep -c 'Read-only'; command -v gcc cc make || echo none"
    assert running.run(service, "sh", "-c", script).split() == ["10001", "2", "none"]


def test_the_store_wants_its_password_and_tells_nobody_else(running: Running) -> None:
    ping = "import redis; redis.Redis('redis').ping()"
    with pytest.raises(AssertionError, match=r"AuthenticationError|NOAUTH"):
        running.run("api", "python", "-c", ping)
    assert "0123456789abcdef" not in running.run("redis", "sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline")
    assert "0123456789abcdef" not in running.compose("logs").stdout


def test_workers_start_with_compiled_kernels(running: Running) -> None:
    lines = running.compose("logs", "--no-log-prefix", "worker").stdout.splitlines()
    # Compose may put an escape sequence before a line.
    entries = [json.loads(line[line.index("{") :]) for line in lines if "{" in line]
    ready = [entry for entry in entries if entry["event"] == "worker ready"]
    assert len(ready) == 2
    assert [entry["compiling"] for entry in ready] == [[], []]


@pytest.mark.parametrize("prebuilt", [True, False])
def test_code_is_compiled_only_where_the_image_has_none_for_the_processor(
    engine: None, running: Running, prebuilt: bool
) -> None:
    command = "python -m service.selftest; find /tmp/kernels -name '*.kernel' | wc -l"
    options = ["--read-only", "--tmpfs", "/tmp", "--network", "none"]
    if not prebuilt:
        where = "from pcct_core.jit import PREBUILT; print(PREBUILT)"
        options += ["--tmpfs", running.run("api", "python", "-c", where).strip()]
    done = subprocess.run(
        ["docker", "run", "--rm", *options, IMAGE, "sh", "-c", command], capture_output=True, text=True, check=False
    )
    report, compiled = done.stdout.splitlines()
    assert json.loads(report)["faults"] == []
    assert (int(compiled) == 0) == prebuilt


def test_the_integration_suite_passes_against_it(running: Running) -> None:
    ours = {"PCCT_TEST_TARGET": running.url, "PCCT_API_KEY": running.key}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/integration"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ours, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 20
    print(done.stdout.strip().splitlines()[-1])


def test_a_killed_worker_and_a_restarted_store_lose_nothing(running: Running) -> None:
    graph, neighbors = make_graph(running, 400, seed=1)
    running.compose("kill", "--signal", "KILL", "redis")
    running.compose("up", "--detach", "--wait", "--scale", "worker=2")
    running.wait_ready()
    assert read_neighbors(running, graph) == neighbors
    running.compose("kill", "--signal", "KILL", "worker")
    running.compose("up", "--detach", "--wait", "--scale", "worker=2")
    running.wait_ready()
    make_graph(running, 401, seed=2)


def test_a_backup_restores_datasets_graphs_and_keys(running: Running, tmp_path: Path) -> None:
    """Runs the commands of the guide, for this project's names."""
    graph, neighbors = make_graph(running, 500, seed=3)
    guide = (ROOT / "deploy/README.md").read_text()
    backup, restore = re.findall(r"```bash\n(# (?:Back up|Restore).*?)```", guide, re.DOTALL)

    def follow(commands: str) -> None:
        steps = commands.replace("pcct_store", f"{PROJECT}_store").replace('"$PWD"', str(tmp_path))
        for line in steps.splitlines():
            if line.startswith("docker compose "):
                running.compose(*line.split()[2:])
            elif not line.startswith("#"):
                line = re.sub(r" pcct (?=-c)", f" {IMAGE} ", line)
                subprocess.run(["bash", "-euc", line], cwd=tmp_path, check=True, capture_output=True)

    follow(backup)
    running.wait_ready()
    with running.client() as client:
        client.delete(f"/v1/graphs/{graph}").raise_for_status()
    follow(restore)
    running.wait_ready()
    assert read_neighbors(running, graph) == neighbors


def test_the_doctor_finds_nothing_wrong_inside(running: Running) -> None:
    said = running.compose("run", "--rm", "-T", "worker", "pcct", "doctor").stdout
    assert "store: redis://" in said
    assert "keeps its data in an append-only file" in said
    assert "evicts nothing" in said
    assert "k-NN, Vecchia and residual graphs are exact" in said
    assert "problem" not in said
