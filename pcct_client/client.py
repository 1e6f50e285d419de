"""`Client` and `AsyncClient`: the same calls, with blocking I/O and with asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import httpx

from pcct_client import calls
from pcct_client.arrays import NpyBody
from pcct_client.calls import (
    DEFAULT_TIMEOUT_S,
    Call,
    Compute,
    Deadline,
    Flow,
    Intake,
    Pause,
    Progress,
    Reply,
    Rest,
    Step,
)
from pcct_client.errors import ClientError, ServerUnavailable
from pcct_client.following import EventHandler, Following, RefreshPolicy, track_spec
from pcct_client.graph import Graph
from pcct_client.session import AsyncSession, Background, Session

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
        self._sessions: weakref.WeakSet[Background] = weakref.WeakSet()

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

    def query(
        self,
        data: Any,
        Q: Any,
        k: int = 30,
        metric: Any = "euclidean",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Graph:
        """Return the k nearest points of data for every row of Q, exactly; a row that is a point of data finds it.

        Q: queries (m, d), or the id of a dataset of them. The rows of the answer are rows of Q, its entries rows of data.
        Other arguments as in `graph`.
        """
        spec = calls.spec_document(None, {"k": k, "metric": metric})
        return self._run(calls.query(data, Q, spec, Deadline(timeout), progress))

    def track(
        self,
        data: Any,
        k: int = 30,
        kernel: str = "matern52",
        lengthscale: Any = None,
        variance: Any = None,
        inducing: Any = 512,
        *,
        order: str = "maximin",
        kind: str = "vecchia",
        seed: int = 0,
        accuracy: Any = None,
        metric: Any = None,
        policy: RefreshPolicy | None = None,
        events: EventHandler | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **fields: Any,
    ) -> Session:
        """Begin to follow a training loop: upload, build the first graph, wait for it; the rest happens in `Session.step`.

        data:        points (n, d), uploaded if the service lacks them, or a dataset id. Points are kept and must not change:
                     they are brought again if the service loses them.
        kernel, inducing: the residual metric of a VIF model, with this many inducing points, or `inducing` as in a spec.
        metric:      another metric instead, by name or as in a spec, such as "euclidean".
        lengthscale, variance: to begin with; left out, the metric's own. Only these move later.
        kind, k, order, seed, accuracy, fields: the rest of the spec.
        policy:      when new hyperparameters cause a new graph.
        events:      called with every event, besides `Session.events`: swaps in the loop's thread, all else in the background.
        timeout:     seconds until the first graph must be here.
        """
        spec = track_spec(
            kind,
            k,
            metric,
            kernel,
            inducing,
            {"order": order, "seed": seed, "accuracy": accuracy, **fields},
            lengthscale=lengthscale,
            variance=variance,
        )
        following = Following(data, spec, policy or RefreshPolicy(), threading.Event, events)
        background = Background(self._run, following)
        session = Session(background, timeout)
        self._sessions.add(background)
        return session

    def close(self) -> None:
        """End the sessions that are open, and close the connections."""
        for session in list(self._sessions):
            session.stop()
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

    def _perform(self, step: Step) -> Any:
        match step:
            case Call():
                return self._exchange(step)
            case Compute(work):
                return work()
            case Pause(seconds):
                return time.sleep(seconds)
            case Rest(bell, seconds):
                return bell.wait(seconds)

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
        self._sessions: set[AsyncSession] = set()

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

    async def query(
        self,
        data: Any,
        Q: Any,
        k: int = 30,
        metric: Any = "euclidean",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109
        progress: Progress | None = None,
    ) -> Graph:
        """Return the k nearest points of data for every row of Q, exactly; see `Client.query`."""
        spec = calls.spec_document(None, {"k": k, "metric": metric})
        return await self._run(calls.query(data, Q, spec, Deadline(timeout), progress))

    def track(
        self,
        data: Any,
        k: int = 30,
        kernel: str = "matern52",
        lengthscale: Any = None,
        variance: Any = None,
        inducing: Any = 512,
        *,
        order: str = "maximin",
        kind: str = "vecchia",
        seed: int = 0,
        accuracy: Any = None,
        metric: Any = None,
        policy: RefreshPolicy | None = None,
        events: EventHandler | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **fields: Any,
    ) -> AsyncSession:
        """Begin to follow a training loop, with `async with` or `await`; arguments as in `Client.track`."""
        spec = track_spec(
            kind,
            k,
            metric,
            kernel,
            inducing,
            {"order": order, "seed": seed, "accuracy": accuracy, **fields},
            lengthscale=lengthscale,
            variance=variance,
        )
        following = Following(data, spec, policy or RefreshPolicy(), asyncio.Event, events)
        session = AsyncSession(self._run, following, timeout, lambda: self._sessions.discard(session))
        self._sessions.add(session)
        return session

    async def aclose(self) -> None:
        """End the sessions that are open, and close the connections."""
        for session in list(self._sessions):
            await session.aclose()
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

    async def _perform(self, step: Step) -> Any:
        match step:
            case Call():
                return await self._exchange(step)
            case Compute(work):
                return await asyncio.to_thread(work)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Rest(bell, seconds):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(bell.wait(), seconds)

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
