import contextlib
import hashlib
import io
import json
import socket
import threading

import httpx
import numpy as np
import pytest

from pcct_client import AsyncClient, Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def problem(status, **fields):
    document = {"type": "https://pcct.dev/problems/test", "status": status, **fields}
    return httpx.Response(status, json=document, headers={"Content-Type": "application/problem+json"})


class FakeService:
    """Answers as contract.md says, from memory; `states` are the states that a graph goes through, one per request."""

    def __init__(self):
        self.datasets = {}
        self.requests = []
        self.states = ["ready"]
        self.error = None
        self.warning = None
        self.documents = []
        self.arrays = {
            "neighbors": np.array([[-1, -1], [0, -1], [1, 0]], np.int32),
            "distances": np.array([[np.inf, np.inf], [1.0, np.inf], [0.5, 2.0]]),
            "order": np.array([2, 0, 1], np.int64),
        }
        self.instead = {}

    def said(self):
        return [f"{request.method} {request.url.path.replace('/v1', '')}" for request in self.requests]

    def record(self):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        record = {
            "id": "g" * 64,
            "state": state,
            **self.documents[-1],
            "progress": {"phase": "search", "done": 1, "total": 4, "eta_s": 2.5} if state == "running" else None,
            "certificate": {"method": "tree", "dtype": "float64", "exact": True} if state == "ready" else None,
            "telemetry": {"seconds": {"search": 100.0}, "counts": {}} if state == "ready" else None,
            "error": self.error,
            "warning": self.warning,
        }
        return httpx.Response(200 if state == "ready" else 202, json=record)

    def __call__(self, request):
        self.requests.append(request)
        parts = request.url.path.removeprefix("/v1/").split("/")
        key = (request.method, parts[-1] if len(parts) != 2 else parts[0])
        if key in self.instead:
            answer = self.instead[key]
            return answer() if callable(answer) else answer
        if request.method == "HEAD":
            return httpx.Response(200 if parts[1] in self.datasets else 404)
        if parts == ["datasets"]:
            assert int(request.headers["content-length"]) == len(request.content)
            name = hashlib.sha256(request.content).hexdigest()
            self.datasets[name] = request.content
            return httpx.Response(201, json={"id": name})
        if parts == ["graphs"]:
            self.documents.append(json.loads(request.content))
            return self.record()
        if len(parts) == 2:
            return self.record()
        body = npy(self.arrays[parts[2]])
        return httpx.Response(200, content=body, headers={"Content-Type": "application/x-npy"})


class Blocking:
    """The asynchronous client under the blocking calls, so that each test runs against both."""

    def __init__(self, transport):
        self.transport = transport

    def __getattr__(self, name):
        import asyncio

        async def call(*args, **options):
            async with AsyncClient("http://pcct.test", transport=self.transport, retries=0) as client:
                return await getattr(client, name)(*args, **options)

        return lambda *args, **options: asyncio.run(call(*args, **options))


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture(params=["Client", "AsyncClient"])
def client(request, service):
    transport = httpx.MockTransport(service)
    if request.param == "Client":
        with Client("http://pcct.test", transport=transport, retries=0) as client:
            yield client
    else:
        yield Blocking(transport)


@pytest.fixture(name="problem")
def problem_fixture():
    return problem


@pytest.fixture(name="npy")
def npy_fixture():
    return npy


@pytest.fixture
def serve_raw():
    """Start a socket server that answers each connection with the given bytes and closes it, or keeps silent."""
    sockets = []

    def serve(answer):
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def run():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                sockets.append(connection)
                connection.recv(65536)
                if answer is not None:
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for each in sockets:
        # A thread blocked in accept() holds the socket open past close().
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
