"""Faults one at a time, with real processes: nothing is lost, nothing is wrong, nothing is half there."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from pcct_client import Client
from pcct_core.graph import knn_graph, vecchia_graph
from tests.integration.proxy import Proxy
from worker.settings import SharedSettings
from worker.store import Store

pytestmark = pytest.mark.integration

MB = 1 << 20


def as_npy(points: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, points)
    return out.getvalue()


def noise(megabytes: float, seed: int = 0) -> np.ndarray:
    """Points that take this much room."""
    return np.random.default_rng(seed).random((int(megabytes * MB) // 16, 2))


def staged(redis: Redis) -> int:
    return len(redis.keys("pcct:staging:*"))


def problem(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"]


def check_ready(deployment: Any, graph: str, points: np.ndarray) -> None:
    deployment.until(lambda: deployment.client.state(graph) == "ready")
    for name, array in vecchia_graph(points, 5, "given").arrays().items():
        assert np.array_equal(deployment.client.array(graph, name), array)


@pytest.fixture(scope="module")
def shared(start_deployment: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("deployment")
    with start_deployment(directory, directory / "data") as running:
        yield running


@pytest.fixture
def redis(shared: Any) -> Iterator[Redis]:
    with Redis.from_url(shared.store.url) as redis:
        yield redis


@pytest.fixture
def deployment(shared: Any, redis: Redis) -> Iterator[Any]:
    """The deployment that most tests here share, emptied of what they leave."""
    (shared.directory / "builds").unlink(missing_ok=True)
    yield shared
    shared.hold.unlink(missing_ok=True)
    redis.config_set("maxmemory", 0)
    redis.delete("pcct:layout", *redis.keys("pcct:ns:*"))


# The store's memory and disk


def leave_a_megabyte(redis: Redis) -> None:
    """Let the store hold a megabyte more than its data; buffers of an upload that has just ended are not counted."""
    memory = redis.info("memory")
    redis.config_set("maxmemory", memory["used_memory"] - memory["mem_clients_normal"] + MB)


def test_full_store_refuses_whole_uploads_and_takes_them_again_when_there_is_room(
    deployment: Any, redis: Redis, points: np.ndarray
) -> None:
    client = deployment.client
    small, large = client.upload(points), client.upload(noise(4))
    leave_a_megabyte(redis)
    answer = client.post("/v1/datasets", json=noise(3, seed=1).tolist()[:100])
    assert answer.status_code == 201
    for _ in range(3):
        answer = client.post("/v1/datasets", content=as_npy(noise(3, seed=1)))
        assert problem(answer) == (503, "/problems/store-full")
        assert int(answer.headers["Retry-After"]) > 0
        deployment.until(lambda: staged(redis) == 0)
    assert client.head(f"/v1/datasets/{small}").status_code == 200
    client.delete(f"/v1/datasets/{large}").raise_for_status()
    client.upload(noise(3, seed=1))
    check_ready(deployment, client.ask(small).json()["id"], points)


def test_graph_that_does_not_fit_the_store_fails_with_a_reason_and_can_be_asked_for_again(
    deployment: Any, redis: Redis
) -> None:
    client, points = deployment.client, noise(0.2)
    dataset = client.upload(points)
    wish = {"dataset": dataset, "spec": {"kind": "knn", "k": 20}}
    deployment.hold.touch()
    graph = client.post("/v1/graphs", json=wish).json()["id"]
    deployment.until(lambda: deployment.builds)
    leave_a_megabyte(redis)
    deployment.hold.unlink()
    deployment.until(lambda: client.state(graph) == "failed")
    error = client.get(f"/v1/graphs/{graph}").json()["error"]
    assert (error["type"], staged(redis)) == ("/problems/store-refused", 0)
    redis.config_set("maxmemory", 0)
    client.post("/v1/graphs", json=wish).raise_for_status()
    deployment.until(lambda: client.state(graph) == "ready")
    assert np.array_equal(client.array(graph, "neighbors"), knn_graph(points, 20).neighbors)


def test_job_that_ends_while_the_store_takes_nothing_at_all_is_not_stuck(
    deployment: Any, redis: Redis, points: np.ndarray
) -> None:
    deployment.hold.touch()
    graph = deployment.client.ask(deployment.client.upload(points)).json()["id"]
    deployment.until(lambda: deployment.builds)
    redis.config_set("maxmemory", 1)
    deployment.hold.unlink()
    time.sleep(1.0)
    redis.config_set("maxmemory", 0)
    deployment.until(lambda: deployment.client.state(graph) in ("failed", "ready"))
    deployment.client.ask(deployment.client.get(f"/v1/graphs/{graph}").json()["dataset"]).raise_for_status()
    check_ready(deployment, graph, points)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB, half of it taken by the file "ballast"."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=False).returncode:
        pytest.skip("no disk of its own for the store: mounting is refused here")
    try:
        (disk / "ballast").write_bytes(bytes(12 * MB))
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_full_disk_refuses_uploads_and_keeps_what_was_accepted(
    small_disk: Path, start_deployment: Callable[..., Any], tmp_path: Path, points: np.ndarray
) -> None:
    with start_deployment(tmp_path, small_disk / "data") as deployment:
        client = deployment.client
        graph = client.ask(client.upload(points)).json()["id"]
        check_ready(deployment, graph, points)
        kept: dict[str, np.ndarray] = {}
        for seed in range(1, 30):
            answer = client.post("/v1/datasets", content=as_npy(noise(1, seed)))
            if answer.status_code != 201:
                break
            kept[answer.json()["id"]] = noise(1, seed)
        assert problem(answer) == (503, "/problems/store-full")
        assert np.array_equal(client.array(graph, "neighbors"), vecchia_graph(points, 5, "given").neighbors)
        (small_disk / "ballast").unlink()
        deployment.until(lambda: client.post("/v1/datasets", content=as_npy(noise(1, 99))).status_code == 201)
        deployment.kill_store()
        deployment.revive_store()
        check_ready(deployment, graph, points)
        asyncio.run(check_kept(deployment.store.url, kept))


async def check_kept(url: str, kept: dict[str, np.ndarray]) -> None:
    """Compare datasets with what was sent, number by number."""
    store = Store.from_settings(SharedSettings(redis_url=url))
    for dataset, points in kept.items():
        assert np.array_equal(await store.load_points(dataset), points)
    await store.aclose()


def test_store_restarts_from_a_file_whose_end_was_torn_off(deployment: Any, points: np.ndarray) -> None:
    graph = deployment.client.ask(deployment.client.upload(points)).json()["id"]
    check_ready(deployment, graph, points)
    deployment.kill_store()
    (file,) = deployment.store.data_dir.glob("appendonlydir/*.incr.aof")
    with file.open("ab") as torn:
        torn.write(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$100\r\nwhat was on its")
    deployment.revive_store()
    assert deployment.client.state(graph) == "ready"
    check_ready(deployment, graph, points)
    other = points[:100]
    check_ready(deployment, deployment.client.ask(deployment.client.upload(other)).json()["id"], other)


# Processes


def test_worker_that_comes_back_from_a_stall_changes_nothing(deployment: Any, points: np.ndarray) -> None:
    deployment.hold.touch()
    stalled = deployment.processes[-1]
    graph = deployment.client.ask(deployment.client.upload(points)).json()["id"]
    deployment.until(lambda: len(deployment.builds) == 1)
    stalled.send_signal(signal.SIGSTOP)
    other = deployment.start_worker()
    deployment.until(lambda: len(deployment.builds) == 2)
    deployment.hold.unlink()
    check_ready(deployment, graph, points)
    before = deployment.client.get(f"/v1/graphs/{graph}").json()
    stalled.send_signal(signal.SIGCONT)
    other.send_signal(signal.SIGTERM)
    assert other.wait(90) == 0
    rest = points[:200]
    check_ready(deployment, deployment.client.ask(deployment.client.upload(rest)).json()["id"], rest)
    assert deployment.builds == [stalled.pid, other.pid, stalled.pid]
    assert deployment.client.get(f"/v1/graphs/{graph}").json() == before
    check_ready(deployment, graph, points)


@pytest.mark.parametrize("command", ["serve", "work"])
def test_release_that_is_older_than_the_store_refuses_to_start(deployment: Any, redis: Redis, command: str) -> None:
    redis.set("pcct:layout", 2)
    arguments = ["--port", "0"] if command == "serve" else []
    ended = subprocess.run(
        [sys.executable, "-m", "service.cli", command, *arguments],
        env=deployment.environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 1
    assert "layout 2 of a later release of pcct, this one knows 1; upgrade this process" in ended.stderr
    assert "Traceback" not in ended.stderr
    answer = deployment.client.get("/readyz")
    assert problem(answer) == (503, "/problems/newer-layout")


# The network


def test_client_gets_the_right_graph_over_a_slow_network_that_breaks(deployment: Any) -> None:
    url, points = deployment.client.base_url, noise(1)
    dial = partial(asyncio.open_connection, url.host, url.port)
    cuts = (100, 200_000, 300_000, 5_000_000)
    with Proxy(dial, delay_s=0.005, cut_bytes=cuts) as proxy, Client(f"http://127.0.0.1:{proxy.port}") as client:
        graph = client.knn(points, k=10)
    expected = knn_graph(points, 10)
    assert np.array_equal(graph.neighbors, expected.neighbors)
    assert np.array_equal(graph.distances, expected.distances)
    assert proxy.broken == len(cuts)


def test_service_works_over_a_slow_network_to_its_store_that_breaks(
    start_deployment: Callable[..., Any], tmp_path: Path, points: np.ndarray
) -> None:
    with ExitStack() as stack:
        proxies: list[Proxy] = []

        def reach(path: Path) -> str:
            proxies.append(stack.enter_context(Proxy(partial(asyncio.open_unix_connection, path), delay_s=0.005)))
            return f"redis://127.0.0.1:{proxies[0].port}/0"

        deployment = stack.enter_context(start_deployment(tmp_path, tmp_path / "data", reach))
        for number in range(2):
            some = points[: 100 + number]
            proxies[0].break_all()
            dataset = deployment.until(partial(accepted, deployment, "/v1/datasets", content=as_npy(some)))["id"]
            proxies[0].break_all()
            wish = {"dataset": dataset, "spec": {"kind": "vecchia", "k": 5, "order": "given"}}
            graph = deployment.until(partial(accepted, deployment, "/v1/graphs", json=wish))["id"]
            proxies[0].break_all()
            deployment.until(partial(finished, deployment, graph))
            check_ready(deployment, graph, some)
        assert proxies[0].broken > 5


def accepted(deployment: Any, path: str, **what: Any) -> Any:
    """Return what a POST answers, None for a 503."""
    answer = deployment.client.post(path, **what)
    assert answer.status_code in (200, 201, 202, 503), answer.text
    return None if answer.status_code == 503 else answer.json()


def finished(deployment: Any, graph: str) -> bool:
    answer = deployment.client.get(f"/v1/graphs/{graph}")
    return answer.status_code == 200 and answer.json()["state"] == "ready"


def test_clients_that_vanish_while_they_are_sent_something_leave_nothing_open(deployment: Any, redis: Redis) -> None:
    client, points = deployment.client, noise(4)
    dataset = client.upload(points)
    wish = {"dataset": dataset, "spec": {"kind": "knn", "k": 20}}
    graph = client.post("/v1/graphs", json=wish, headers={"Prefer": "wait=60"}).json()
    assert graph["state"] == "ready"
    api = deployment.processes[0].pid
    before = len(os.listdir(f"/proc/{api}/fd"))  # noqa: PTH208  (a count)
    for path in ["neighbors", "arrays"] * 10:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # ends with a reset
            gone.sendall(f"GET /v1/graphs/{graph['id']}/{path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            assert gone.recv(4096).startswith(b"HTTP/1.1 200")
    deployment.until(lambda: len(os.listdir(f"/proc/{api}/fd")) <= before + 4)  # noqa: PTH208
    assert np.array_equal(client.array(graph["id"], "neighbors"), knn_graph(points, 20).neighbors)
