"""`Client` and `AsyncClient`: the same calls, with blocking I/O and with asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import ssl
import threading
import time
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from pcct_client import calls
from pcct_client.arrays import npy_body
from pcct_client.calls import (
    DEFAULT_TIMEOUT_S,
    Call,
    Compute,
    Deadline,
    Flow,
    Intake,
    Pause,
    Reply,
    Rest,
    Step,
)
from pcct_client.errors import CannotPickle, ClientClosed, ClientError, ServerUnavailable
from pcct_client.following import EventHandler, Following, RefreshPolicy, track_spec
from pcct_client.frames import Columns
from pcct_client.graph import Graph
from pcct_client.groups import take_groups
from pcct_client.inputs import read_columns, read_points, read_points_and_queries, take_inducing
from pcct_client.progress import ProgressOption, watched
from pcct_client.reach import Address, AsyncConnections, Connections, header_pairs
from pcct_client.retry import Retries, retried
from pcct_client.session import AsyncSession, Background, Session

T = TypeVar("T")

_SHORTEST_TIMEOUT_S = 0.01


class _Portable:
    """A client that copies and pickles as what it was made with: another process has connections and an environment of its own.

    A key or password that was given goes along; a key of the environment does not.
    """

    def __init__(self, url: Any, api_key: str | None, retries: int, headers: Any, transport: Any) -> None:
        pairs = header_pairs(headers)
        self._address = Address.read(url, pairs, api_key, by_network=transport is None)
        self._retries = Retries(retries)
        self._has_answered = False
        self._made_with = {
            "url": str(url),
            "api_key": api_key,
            "retries": retries,
            "headers": pairs,
            "transport": transport,
        }

    def __getstate__(self) -> dict[str, Any]:
        try:
            pickle.dumps(self._made_with["transport"])
        except Exception as error:
            raise CannotPickle(
                f"the client's transport does not pickle ({error}); make a client where it is needed, or one without transport"
            ) from error
        return self._made_with

    def __setstate__(self, made_with: dict[str, Any]) -> None:
        type(self).__init__(self, **made_with)

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        copied.__setstate__(self._made_with)
        return copied

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        """Return where the service is, without any key."""
        return f"{type(self).__name__}({self._address.shown!r})"


class Client(_Portable):
    """A pcct service, reached with blocking calls. Safe to share between threads, and with processes that fork or unpickle it.

    url:       where the service is, such as "http://127.0.0.1:8000".
    api_key:   for a service that wants one; left out, the environment variable PCCT_API_KEY. Never shown again.
    retries:   how often a call is made again, after growing pauses, while a service that has answered before is away,
               restarts or is too busy; `timeout` bounds them too. A service that has never answered is not waited for.
    headers:   sent with every request, for a proxy that wants a token.
    transport: an httpx transport instead of the network, for tests or an unusual route.

    Every call takes `timeout`, seconds for all of it (None: as long as it takes), `progress`, and `columns` for points in a
    data frame, and raises the errors of `pcct_client.errors`. Ctrl-C cancels the build that a call waits for.

    progress: called about once a second, as progress(state, {"phase", "done", "total", "eta_s"}), with the states
              "uploading" (in bytes), "queued" and "running"; False for silence. Left out, a bar is drawn where standard error
              is a terminal and rich is installed.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        retries: int = Retries.count,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, retries, headers, transport)
        self._connections = Connections(self._address, transport)
        self._sessions: weakref.WeakSet[Background] = weakref.WeakSet()

    def upload(
        self,
        X: Any,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> str:
        """Bring the points X to the service, unless it has them already; returns the dataset id.

        X: (n, d) float32, float64 or other numbers, which become float64: any array that NumPy can read, a data frame
        (pandas, polars, geopandas), or points of geopandas or shapely. Streamed from where it lies, not copied. Geometries
        are sent as they are: no metric is known here, so none is turned into degrees.
        columns: names of a frame's columns, in the order that the metric expects, such as ["lon", "lat"]; left out, all of
        them, or the geometry of a frame that has one.
        """
        with watched(progress) as told:
            return self._call(calls.upload(_uploaded(X, columns), Deadline(timeout), told))

    def graph(
        self,
        data: Any,
        spec: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
        **fields: Any,
    ) -> Graph:
        """Return the graph that spec asks for, from the cache or built now.

        data:     points (n, d), uploaded if the service lacks them, or a dataset id. A geometry whose coordinate system is
                  known becomes degrees under haversine; other metrics warn of degrees by `GeographicCoordinates`.
        spec:     the specification as JSON values; fields are laid over it, as in graph(X, kind="knn", k=10).
        progress, columns: as in `Client` and `upload`.
        """
        columns, wanted = take_groups(data, columns, calls.spec_document(spec, fields))
        points, wanted = _points(data, columns, wanted)
        with watched(progress) as told:
            return self._call(calls.graph(points, wanted, Deadline(timeout), told))

    def knn(
        self,
        data: Any,
        k: int = 30,
        metric: Any = "euclidean",
        *,
        groups: Any = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> Graph:
        """Return the exact k-nearest-neighbor graph, each point itself excluded; arguments as in `graph`.

        groups: a label for every point, (n,), numbers, strings or others: neighbors are looked for among points of the same
        label alone. Or the name of the column of a frame that holds them, which is then no coordinate.
        """
        fields = {"kind": "knn", "k": k, "metric": metric, "groups": groups}
        return self.graph(data, fields, timeout=timeout, progress=progress, columns=columns)

    def radius(
        self,
        data: Any,
        radius: float,
        metric: Any = "euclidean",
        *,
        groups: Any = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> Graph:
        """Return all other points within radius, in the metric's unit, of each point, exactly; arguments as in `graph`.

        The graph's arrays are flat: those of row i are at offsets[i]:offsets[i + 1]. groups: as in `knn`.
        """
        fields = {"kind": "radius", "radius": radius, "metric": metric, "groups": groups}
        return self.graph(data, fields, timeout=timeout, progress=progress, columns=columns)

    def vecchia(
        self,
        data: Any,
        k: int = 30,
        order: Any = "maximin",
        metric: Any = "euclidean",
        *,
        seed: int = 0,
        groups: Any = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> Graph:
        """Return the exact Vecchia graph: row r lists the k nearest among ranks 0 … r-1; arguments as in `graph`.

        order: a name, or an order of your own, an array (n,) with the row of each rank, which is uploaded as points are.
        groups: as in `knn`; the order is that of all points.
        """
        fields = {"kind": "vecchia", "k": k, "order": order, "metric": metric, "seed": seed, "groups": groups}
        return self.graph(data, fields, timeout=timeout, progress=progress, columns=columns)

    def query(
        self,
        data: Any,
        Q: Any,
        k: int | None = None,
        metric: Any = "euclidean",
        *,
        radius: float | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> Graph:
        """Return the k nearest points of data, or all within a radius, for every row of Q, exactly; a point finds itself.

        Q: queries (m, d), or the id of a dataset of them. Columns of two frames are matched by name; columns: of either that
        is a frame. The rows of the answer are rows of Q, its entries rows of data.
        k: 30 unless a radius is given. radius: in the metric's unit, itself included; the answer has offsets, as in `radius`.
        Other arguments as in `graph`.
        """
        spec = calls.query_document(k, radius, metric)
        points, queries = _points_and_queries(data, Q, columns, metric)
        with watched(progress) as told:
            return self._call(calls.query(points, queries, spec, Deadline(timeout), told))

    def track(
        self,
        data: Any,
        k: int = 30,
        kernel: str = "matern52",
        lengthscale: Any = None,
        variance: Any = None,
        inducing: Any = 512,
        *,
        order: Any = "maximin",
        kind: str = "vecchia",
        seed: int = 0,
        accuracy: Any = None,
        metric: Any = None,
        policy: RefreshPolicy | None = None,
        events: EventHandler | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        columns: Sequence[str] | None = None,
        **fields: Any,
    ) -> Session:
        """Begin to follow a training loop: upload, build the first graph, wait for it; the rest happens in `Session.step`.

        data:        points (n, d), uploaded if the service lacks them, or a dataset id. Points are kept and must not change:
                     they are brought again if the service loses them.
        kernel, inducing: the residual metric of a VIF model, with this many inducing points, or `inducing` as in a spec.
        metric:      another metric instead, by name or as in a spec, such as "euclidean".
        lengthscale, variance: to begin with; left out, the metric's own. Only these move later.
        kind, k, order, seed, accuracy, fields: the rest of the spec; groups among them as in `knn`.
        policy:      when new hyperparameters cause a new graph.
        events:      called with every event, besides `Session.events`: swaps in the loop's thread, all else in the background.
        timeout:     seconds until the first graph must be here. columns: as in `upload`.
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
        columns, spec = take_groups(data, columns, spec)
        points, spec = _points(data, columns, spec)
        following = Following(points, spec, policy or RefreshPolicy(), threading.Event, events)
        background = Background(self._run, following)
        session = Session(background, timeout, self._call)
        self._sessions.add(background)
        return session

    def close(self) -> None:
        """End the sessions that are open, and close the connections."""
        for session in list(self._sessions):
            session.stop()
        self._connections.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, flow: Flow[T]) -> T:
        """Run a flow that the caller waits for, its calls repeated while the service is away."""
        return self._run(retried(flow, self._retries))

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    value = self._perform(step)
                except (ClientError, KeyboardInterrupt) as error:
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
        content = call.content() if call.body is None else call.pieces()
        http = self._connections.http()
        request = http.build_request(
            call.method, call.path, content=content, headers=call.headers(), timeout=_timeouts(call)
        )
        try:
            response = http.send(request, stream=True)
            try:
                self._has_answered = True
                intake = Intake(call, response.status_code, response.headers, _has_key(request))
                for piece in response.iter_bytes():
                    intake.feed(piece)
            finally:
                response.close()
        except httpx.RequestError as error:
            raise _unanswered(error, self._address, call, self._has_answered) from error
        except RuntimeError as error:  # httpx's for connections that were closed while a call was on its way
            if not self._connections.closed:
                raise
            raise ClientClosed(self._address.shown) from error
        return intake.reply()


class AsyncClient(_Portable):
    """A pcct service, reached from asyncio; arguments, calls and errors are those of `Client`.

    Any number of event loops may use it, in turn or in several threads at a time. Connections are kept between calls inside
    of `async with`, and otherwise closed with the last call that runs in a loop: a loop that ends could not close them.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        retries: int = Retries.count,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, retries, headers, transport)
        self._connections = AsyncConnections(self._address, transport)
        self._sessions: set[AsyncSession] = set()

    async def upload(
        self,
        X: Any,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109  (a deadline of the whole flow, as in Client)
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> str:
        """Bring the points X to the service, unless it has them already; see `Client.upload`."""
        with watched(progress) as told:
            return await self._call(calls.upload(_uploaded(X, columns), Deadline(timeout), told))

    async def graph(
        self,
        data: Any,
        spec: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109  (a deadline of the whole flow, as in Client)
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
        **fields: Any,
    ) -> Graph:
        """Return the graph that spec asks for, from the cache or built now; see `Client.graph`."""
        columns, wanted = take_groups(data, columns, calls.spec_document(spec, fields))
        points, wanted = _points(data, columns, wanted)
        with watched(progress) as told:
            return await self._call(calls.graph(points, wanted, Deadline(timeout), told))

    async def knn(
        self,
        data: Any,
        k: int = 30,
        metric: Any = "euclidean",
        *,
        groups: Any = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> Graph:
        """Return the exact k-nearest-neighbor graph, each point itself excluded; see `Client.knn`."""
        fields = {"kind": "knn", "k": k, "metric": metric, "groups": groups}
        return await self.graph(data, fields, timeout=timeout, progress=progress, columns=columns)

    async def radius(
        self,
        data: Any,
        radius: float,
        metric: Any = "euclidean",
        *,
        groups: Any = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> Graph:
        """Return all other points within radius of each point, exactly; see `Client.radius`."""
        fields = {"kind": "radius", "radius": radius, "metric": metric, "groups": groups}
        return await self.graph(data, fields, timeout=timeout, progress=progress, columns=columns)

    async def vecchia(
        self,
        data: Any,
        k: int = 30,
        order: Any = "maximin",
        metric: Any = "euclidean",
        *,
        seed: int = 0,
        groups: Any = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> Graph:
        """Return the exact Vecchia graph: row r lists the k nearest among ranks 0 … r-1; see `Client.vecchia`."""
        fields = {"kind": "vecchia", "k": k, "order": order, "metric": metric, "seed": seed, "groups": groups}
        return await self.graph(data, fields, timeout=timeout, progress=progress, columns=columns)

    async def query(
        self,
        data: Any,
        Q: Any,
        k: int | None = None,
        metric: Any = "euclidean",
        *,
        radius: float | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,  # noqa: ASYNC109
        progress: ProgressOption = None,
        columns: Sequence[str] | None = None,
    ) -> Graph:
        """Return the k nearest points of data for every row of Q, exactly; see `Client.query`."""
        spec = calls.query_document(k, radius, metric)
        points, queries = _points_and_queries(data, Q, columns, metric)
        with watched(progress) as told:
            return await self._call(calls.query(points, queries, spec, Deadline(timeout), told))

    def track(
        self,
        data: Any,
        k: int = 30,
        kernel: str = "matern52",
        lengthscale: Any = None,
        variance: Any = None,
        inducing: Any = 512,
        *,
        order: Any = "maximin",
        kind: str = "vecchia",
        seed: int = 0,
        accuracy: Any = None,
        metric: Any = None,
        policy: RefreshPolicy | None = None,
        events: EventHandler | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        columns: Sequence[str] | None = None,
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
        columns, spec = take_groups(data, columns, spec)
        points, spec = _points(data, columns, spec)
        following = Following(points, spec, policy or RefreshPolicy(), asyncio.Event, events)
        session = AsyncSession(self._run, following, timeout, self._call, lambda: self._sessions.discard(session))
        self._sessions.add(session)
        return session

    async def aclose(self) -> None:
        """End the sessions that are open, and close the connections."""
        for session in list(self._sessions):
            await session.aclose()
        await self._connections.close()

    async def __aenter__(self) -> AsyncClient:
        self._connections.hold()  # until `aclose`: connections are kept between calls
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _call(self, flow: Flow[T]) -> T:
        """Run a flow that the caller waits for, its calls repeated while the service is away."""
        return await self._run(retried(flow, self._retries))

    async def _run(self, flow: Flow[T]) -> T:
        pool = self._connections.hold()
        try:
            return await self._run_on(flow, pool.http)
        finally:
            await self._connections.release(pool)

    async def _run_on(self, flow: Flow[T], http: httpx.AsyncClient) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    value = await self._perform(step, http)
                except (ClientError, asyncio.CancelledError, KeyboardInterrupt) as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(value)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _perform(self, step: Step, http: httpx.AsyncClient) -> Any:
        match step:
            case Call():
                return await self._exchange(step, http)
            case Compute(work):
                return await asyncio.to_thread(work)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Rest(bell, seconds):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(bell.wait(), seconds)

    async def _exchange(self, call: Call, http: httpx.AsyncClient) -> Reply:
        content = call.content() if call.body is None else _async_pieces(call)
        request = http.build_request(
            call.method, call.path, content=content, headers=call.headers(), timeout=_timeouts(call)
        )
        try:
            response = await http.send(request, stream=True)
            try:
                self._has_answered = True
                intake = Intake(call, response.status_code, response.headers, _has_key(request))
                async for piece in response.aiter_bytes():
                    intake.feed(piece)
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            raise _unanswered(error, self._address, call, self._has_answered) from error
        except RuntimeError as error:  # httpx's for connections that were closed while a call was on its way
            if not self._connections.closed:
                raise
            raise ClientClosed(self._address.shown) from error
        return intake.reply()


def _uploaded(X: Any, columns: Sequence[str] | None) -> Columns:
    """Return points as they are sent; geometries as they are, for no metric is known."""
    return _canonical(read_columns(X, columns))


def _points(data: Any, columns: Sequence[str] | None, spec: Mapping[str, Any]) -> tuple[Columns | str, dict[str, Any]]:
    """Return points as they are sent, or a dataset id as it is, and the spec with inducing points that are columned alike."""
    points = read_points(spec.get("metric"), data, columns)
    return _sent(points), take_inducing(points, spec, columns)


def _points_and_queries(
    data: Any, Q: Any, columns: Sequence[str] | None, metric: Any
) -> tuple[Columns | str, Columns | str]:
    """Return points and queries as they are sent, or ids as they are; arguments as in `read_points_and_queries`."""
    points, queries = read_points_and_queries(metric, data, Q, columns)
    return _sent(points), _sent(queries)


def _sent(points: Columns | str) -> Columns | str:
    return points if isinstance(points, str) else _canonical(points)


def _canonical(points: Columns) -> Columns:
    return points._replace(values=npy_body(points.values).points)


def _has_key(request: httpx.Request) -> bool:
    """Return whether a request carries an API key, in either of the headers that the service reads."""
    return "authorization" in request.headers or "x-api-key" in request.headers


def _timeouts(call: Call) -> httpx.Timeout:
    """Return the timeouts of one request. Raises WaitTimeout when there is no time for it."""
    call.check_deadline()
    # A socket's timeout of 0 would mean "do not block" and fail as a broken connection.
    silence_s = max(_SHORTEST_TIMEOUT_S, call.read_timeout_s())
    return httpx.Timeout(silence_s, connect=min(silence_s, calls.CONNECT_TIMEOUT_S))


async def _async_pieces(call: Call) -> AsyncIterator[bytes]:
    for piece in call.pieces():
        yield piece


def _unanswered(error: httpx.RequestError, address: Address, call: Call, has_answered: bool) -> Exception:
    """Return the error for a request that got no whole answer; has_answered: to this client, ever."""
    late = isinstance(error, httpx.TimeoutException)
    if late:
        call.check_deadline()
    url, reason = address.shown, str(error) or type(error).__name__
    if address.proxy is not None:
        reason += f"; {address.proxy.source} has a proxy asked for it, unless NO_PROXY has {address.url.host}"
    if isinstance(error, httpx.ConnectError) and isinstance(_root(error), ssl.SSLError):
        return ServerUnavailable(
            f"no encrypted connection to {url} ({reason}); check http:// or https://, and the certificate",
            can_repeat=False,
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerUnavailable(
            f"nothing answers at {url}; start the service with 'pcct up', or give the client the URL where it runs ({reason})",
            can_repeat=has_answered,
        )
    return ServerUnavailable(
        f"the connection to {url} broke during {call.method} /{call.path} ({reason}); nothing is lost: call again",
        can_repeat=not late,
    )


def _root(error: BaseException) -> BaseException:
    """Return what an error comes from at last."""
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root(cause)
