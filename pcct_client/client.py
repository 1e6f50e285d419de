"""`Client` and `AsyncClient`: the same calls, with blocking I/O and with asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import httpx

from pcct_client import calls
from pcct_client.arrays import NpyBody
from pcct_client.calls import DEFAULT_TIMEOUT_S, Call, Compute, Deadline, Flow, Intake, Pause, Progress, Reply
from pcct_client.errors import ClientError, ServerUnavailable
from pcct_client.graph import Graph

T = TypeVar("T")

_SHORTEST_TIMEOUT_S = 0.01
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Client:
    """A pcct service, reached with blocking calls. Safe to share between threads.

    url:       where the service is, such as "http://127.0.0.1:8000".
    headers:   sent with every request, for a proxy that wants a token.
    transport: an httpx transport instead of the network, for tests or an unusual route.

    Every call takes `timeout`, seconds for all of it (None: as long as it takes), and raises the errors of
    `pcct_client.errors`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base = _base_url(url)
        self._http = httpx.Client(base_url=base, headers=headers, transport=transport, trust_env=_uses_proxies(base))

    def upload(self, X: Any, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> str:
        """Bring the points X to the service, unless it has them already; returns the dataset id.

        X: (n, d) float32, float64 or integers, which become float64. Streamed from where it lies, not copied.
        """
        return self._run(calls.upload(X, Deadline(timeout)))

    def graph(
        self,
        data: Any,
        spec: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: Progress | None = None,
        **fields: Any,
    ) -> Graph:
        """Return the graph that spec asks for, from the cache or built now.

        data:     points (n, d), uploaded if the service lacks them, or a dataset id.
        spec:     the specification as JSON values; fields are laid over it, as in graph(X, kind="knn", k=10).
        progress: called about once a second while waiting, as progress(state, {"phase", "done", "total", "eta_s"}).
        """
        return self._run(calls.graph(data, calls.spec_document(spec, fields), Deadline(timeout), progress))

    def knn(
        self,
        data: Any,
        k: int = 30,
        metric: Any = "euclidean",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Graph:
        """Return the exact k-nearest-neighbor graph, each point itself excluded; arguments as in `graph`."""
        return self.graph(data, kind="knn", k=k, metric=metric, timeout=timeout, progress=progress)

    def vecchia(
        self,
        data: Any,
        k: int = 30,
        order: str = "maximin",
        metric: Any = "euclidean",
        *,
        seed: int = 0,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Graph:
        """Return the exact Vecchia graph: row r lists the k nearest among ranks 0 … r-1; arguments as in `graph`."""
        fields = {"kind": "vecchia", "k": k, "order": order, "metric": metric, "seed": seed}
        return self.graph(data, fields, timeout=timeout, progress=progress)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    value = self._perform(step)
                except ClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(value)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _perform(self, step: Call | Compute | Pause) -> Any:
        match step:
            case Call():
                return self._exchange(step)
            case Compute(work):
                return work()
            case Pause(seconds):
                return time.sleep(seconds)

    def _exchange(self, call: Call) -> Reply:
        content = call.content() if call.body is None else _pieces(call, call.body)
        request = self._http.build_request(
            call.method, call.path, content=content, headers=call.headers(), timeout=_timeouts(call)
        )
        try:
            response = self._http.send(request, stream=True)
            try:
                intake = Intake(call, response.status_code, response.headers)
                for piece in response.iter_bytes():
                    intake.feed(piece)
            finally:
                response.close()
        except httpx.RequestError as error:
            raise _unanswered(error, self._http.base_url, call) from error
        return intake.reply()


class AsyncClient:
    """A pcct service, reached from asyncio; arguments, calls and errors are those of `Client`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        base = _base_url(url)
        self._http = httpx.AsyncClient(
            base_url=base, headers=headers, transport=transport, trust_env=_uses_proxies(base)
        )

    async def upload(self, X: Any, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> str:  # noqa: ASYNC109
        """Bring the points X to the service, unless it has them already; see `Client.upload`."""
        return await self._run(calls.upload(X, Deadline(timeout)))

    async def graph(
        self,
        data: Any,
        spec: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109  (a deadline of the whole flow, as in Client)
        progress: Progress | None = None,
        **fields: Any,
    ) -> Graph:
        """Return the graph that spec asks for, from the cache or built now; see `Client.graph`."""
        return await self._run(calls.graph(data, calls.spec_document(spec, fields), Deadline(timeout), progress))

    async def knn(
        self,
        data: Any,
        k: int = 30,
        metric: Any = "euclidean",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109
        progress: Progress | None = None,
    ) -> Graph:
        """Return the exact k-nearest-neighbor graph, each point itself excluded; see `Client.knn`."""
        return await self.graph(data, kind="knn", k=k, metric=metric, timeout=timeout, progress=progress)

    async def vecchia(
        self,
        data: Any,
        k: int = 30,
        order: str = "maximin",
        metric: Any = "euclidean",
        *,
        seed: int = 0,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109
        progress: Progress | None = None,
    ) -> Graph:
        """Return the exact Vecchia graph: row r lists the k nearest among ranks 0 … r-1; see `Client.vecchia`."""
        fields = {"kind": "vecchia", "k": k, "order": order, "metric": metric, "seed": seed}
        return await self.graph(data, fields, timeout=timeout, progress=progress)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    value = await self._perform(step)
                except ClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(value)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _perform(self, step: Call | Compute | Pause) -> Any:
        match step:
            case Call():
                return await self._exchange(step)
            case Compute(work):
                return await asyncio.to_thread(work)
            case Pause(seconds):
                return await asyncio.sleep(seconds)

    async def _exchange(self, call: Call) -> Reply:
        content = call.content() if call.body is None else _async_pieces(call, call.body)
        request = self._http.build_request(
            call.method, call.path, content=content, headers=call.headers(), timeout=_timeouts(call)
        )
        try:
            response = await self._http.send(request, stream=True)
            try:
                intake = Intake(call, response.status_code, response.headers)
                async for piece in response.aiter_bytes():
                    intake.feed(piece)
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            raise _unanswered(error, self._http.base_url, call) from error
        return intake.reply()


def _base_url(url: str) -> httpx.URL:
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL ({error}); use one such as http://127.0.0.1:8000") from error
    if base.scheme not in ("http", "https") or not base.host:
        raise ValueError(f"{url!r} is not the URL of a service; use one such as http://127.0.0.1:8000")
    return base


def _uses_proxies(base: httpx.URL) -> bool:
    """Return whether proxies named in the environment apply: none can reach this machine's own loopback."""
    return base.host not in _LOOPBACK


def _timeouts(call: Call) -> httpx.Timeout:
    """Return the timeouts of one request. Raises WaitTimeout when there is no time for it."""
    call.check_deadline()
    # A socket's timeout of 0 would mean "do not block" and fail as a broken connection.
    silence_s = max(_SHORTEST_TIMEOUT_S, call.read_timeout_s())
    return httpx.Timeout(silence_s, connect=min(silence_s, calls.CONNECT_TIMEOUT_S))


def _pieces(call: Call, body: NpyBody) -> Iterator[bytes]:
    for piece in body.pieces():
        call.check_deadline()
        yield piece


async def _async_pieces(call: Call, body: NpyBody) -> AsyncIterator[bytes]:
    for piece in _pieces(call, body):
        yield piece


def _unanswered(error: httpx.RequestError, base: httpx.URL, call: Call) -> Exception:
    """Return the error for a request that got no whole answer."""
    if isinstance(error, httpx.TimeoutException):
        call.check_deadline()
    url = str(base).rstrip("/")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerUnavailable(
            f"nothing answers at {url}; start the service with 'pcct up', or give the client the URL where it runs"
        )
    reason = str(error) or type(error).__name__
    return ServerUnavailable(
        f"the connection to {url} broke during {call.method} /{call.path} ({reason}); nothing is lost: call again"
    )
