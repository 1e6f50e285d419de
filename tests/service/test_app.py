import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from redis import Redis
from redis.exceptions import RedisError

from service.embedded import find_server

pytestmark = pytest.mark.anyio


def test_importing_the_app_loads_no_compiler():
    code = "import sys, service.app; sys.exit('numba' in sys.modules or 'pcct_core.graph' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_documentation_describes_every_route(service):
    assert (await service.client.get("/docs")).status_code == 200
    document = (await service.client.get("/openapi.json")).json()
    paths = document["paths"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert "application/problem+json" in operation["responses"]["4XX"]["content"], (method, path)
    assert {
        "/v1/datasets",
        "/v1/datasets/{dataset_id}",
        "/v1/datasets/{dataset_id}/query",
        "/v1/graphs",
        "/v1/graphs/{graph_id}",
        "/v1/graphs/{graph_id}/arrays",
        "/v1/graphs/{graph_id}/{name}",
        "/v1/tracks",
        "/v1/tracks/{track_id}",
        "/v1/tracks/{track_id}/refresh",
        "/v1/tracks/{track_id}/events",
        "/v1/knn",
        "/v1/radius",
        "/v1/vecchia",
        "/livez",
        "/readyz",
        "/metrics",
        "/problems",
        "/problems/{name}",
    } == set(paths)


class Valkey:
    """A server that can be stopped and started again, empty, at the same address."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "valkey.sock"
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self._socket), "--save", "", "--dir", str(self._socket.parent)]
        self._process = subprocess.Popen([str(find_server()), *options], stdout=subprocess.DEVNULL)
        with Redis.from_url(self.url) as client:
            while True:
                with suppress(RedisError):
                    client.ping()
                    return
                time.sleep(0.02)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


NEEDS_NO_STORE = {"/livez", "/problems", "/problems/{name}"}


async def test_the_service_starts_without_a_store_and_recovers_with_it(tmp_path, run_service):
    store = Valkey(tmp_path)
    points = np.random.default_rng(0).random((20, 2))
    dataset = "0" * 64
    requests = [
        ("POST", "/v1/datasets", {"json": points.tolist()}),
        ("GET", f"/v1/datasets/{dataset}", {}),
        ("HEAD", f"/v1/datasets/{dataset}", {}),
        ("DELETE", f"/v1/datasets/{dataset}", {}),
        ("POST", f"/v1/datasets/{dataset}/query?k=3", {"json": points.tolist()}),
        ("POST", "/v1/graphs", {"json": {"dataset": dataset, "spec": {"k": 3}}}),
        ("GET", f"/v1/graphs/{dataset}", {}),
        ("DELETE", f"/v1/graphs/{dataset}", {}),
        ("GET", f"/v1/graphs/{dataset}/neighbors", {}),
        ("GET", f"/v1/graphs/{dataset}/arrays", {}),
        ("POST", "/v1/knn?k=3", {"json": points.tolist()}),
        ("POST", "/v1/vecchia?k=3", {"json": points.tolist()}),
        ("POST", "/v1/radius?radius=0.1", {"json": points.tolist()}),
        ("POST", "/v1/tracks", {"json": {"dataset": dataset, "spec": {"k": 3}}}),
        ("GET", f"/v1/tracks/{'0' * 32}", {}),
        ("DELETE", f"/v1/tracks/{'0' * 32}", {}),
        ("GET", f"/v1/tracks/{'0' * 32}/events", {}),
        ("POST", f"/v1/tracks/{'0' * 32}/refresh", {"json": {}}),
        ("GET", "/metrics", {}),
        ("GET", "/readyz", {}),
    ]
    async with run_service(store.url, worker=False) as service:
        asked = {re.sub("0{32,64}", "{id}", url.partition("?")[0]) for _, url, _ in requests}
        there = {re.sub("{[a-z]+_id}", "{id}", path) for path in service.app.openapi()["paths"]} - NEEDS_NO_STORE
        assert asked == {path.replace("{name}", "neighbors") for path in there}
        for outage in range(2):
            assert (await service.client.get("/livez")).status_code == 200
            for method, url, options in requests:
                answer = await service.client.request(method, url, **options)
                assert answer.status_code == 503, url
                assert method == "HEAD" or answer.json()["type"] == "/problems/store-unavailable"
                assert int(answer.headers["retry-after"]) > 0
            store.start()
            try:
                id = await service.upload(points)
                answer = await service.ask(id, wait=None, kind="knn", k=3)
                assert answer.json()["state"] == "queued", outage
                assert "no worker" in (await service.client.get("/readyz")).json()["detail"]
            finally:
                store.stop()
