"""What is said to the service, and in which order, without saying it: both clients send the same calls.

A flow is a generator. It yields a `Call` and is sent the `Reply`, a `Compute` and is sent its value, a `Pause` or a `Rest`.
Where a `ClientError` came instead, that is thrown in. It returns the result. `Client` drives it with blocking I/O,
`AsyncClient` with asyncio. Nothing here does I/O.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias, TypeVar

from numpy.typing import NDArray

from pcct_client.arrays import NpyBody, NpyReader, as_column, body_id, npy_body
from pcct_client.errors import (
    BadAnswer,
    BuildFailed,
    ClientError,
    NotFound,
    RateLimited,
    RequestRefused,
    ServerUnavailable,
    VersionMismatch,
    WaitTimeout,
    refusal,
)
from pcct_client.frames import Columns
from pcct_client.graph import Graph
from pcct_client.groups import number_groups
from pcct_client.names import Naming, remember_names
from pcct_client.progress import Progress
from pcct_client.values import plain

T = TypeVar("T")

CONTRACT = "1"  # the version of the contract that is spoken here; a service says its own in every answer
CONTRACT_HEADER = "pcct-contract"

DEFAULT_TIMEOUT_S = 300.0
CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 60.0  # no byte moves for this long: the service is taken to be gone
LONG_POLL_S = 20.0  # below the 30 to 60 seconds at which proxies cut a silent connection
PROGRESS_POLL_S = 1.0
POLL_PAUSE_S = 0.25  # when the service answers at once instead of holding the request
REPORT_PAUSE_S = 0.1  # between two reports of an upload
CANCEL_S = 2.0  # how long an interrupted call takes to cancel what it waits for
ANSWER_MARGIN_S = 0.5  # left for the answer to a long poll to arrive before the deadline

_PENDING = ("queued", "running")
# What a spec in normal form does not leave out when it was asked for.
_ALWAYS_TOLD = ("kind", "k", "radius", "queries", "groups")
_MIXED = "something between client and service mixes answers up: call again, without proxies if there are any"


class Deadline:
    """The moment by which a whole call must be over; `timeout` None means never."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout = None if timeout is None else float(timeout)  # sockets take no float32
        self._end = None if timeout is None else time.monotonic() + timeout

    def left_s(self, at_most: float) -> float:
        """Return the seconds that are left, at most at_most and never negative."""
        return at_most if self._end is None else max(0.0, min(at_most, self._end - time.monotonic()))

    def wait_s(self, at_most: float) -> float:
        """Return how long a request may be held back so that its answer still comes in time."""
        return max(0.0, self.left_s(at_most + ANSWER_MARGIN_S) - ANSWER_MARGIN_S)

    def check(self, subject: str, graph_id: str | None) -> None:
        """Raise WaitTimeout when the time is over; subject is the thing that is late."""
        if self._end is not None and time.monotonic() >= self._end:
            raise WaitTimeout(
                f"{subject} did not come within {self._timeout:g} s; the service goes on working: "
                "make the same call again, or give it a larger timeout",
                graph_id,
            )


@dataclass(frozen=True)
class Call:
    """One request.

    body: points to stream, or document: JSON to send, or neither. wants_array: a 200 answer is a `.npy` array.
    etag: the answer that is known; 304 comes instead of the same one.
    wait_s: how long the service is asked to hold the answer back until there is news. progress: told how the body is sent.
    subject, graph_id: what is late when the deadline passes, in words and by name.
    """

    method: str
    path: str
    deadline: Deadline
    body: NpyBody | None = None
    document: Mapping[str, Any] | None = None
    wants_array: bool = False
    etag: str | None = None
    wait_s: float = 0.0
    progress: Progress | None = None
    subject: str = "the answer"
    graph_id: str | None = None

    def check_deadline(self) -> None:
        """Raise WaitTimeout when the call's time is over."""
        self.deadline.check(self.subject, self.graph_id)

    def headers(self) -> dict[str, str]:
        """Return the headers that this call needs beyond those that httpx adds."""
        # Without identity an answer may come compressed, and its announced length would not be the array's.
        headers = {"Accept-Encoding": "identity", "Accept": "application/json, application/problem+json"}
        if self.wants_array:
            headers["Accept"] = "application/x-npy, application/problem+json"
        if self.wait_s >= 1:
            headers["Prefer"] = f"wait={int(self.wait_s)}"
        if self.etag is not None:
            headers["If-None-Match"] = self.etag
        if self.body is not None:
            headers["Content-Type"] = "application/x-npy"
            headers["Content-Length"] = str(self.body.nbytes)
        elif self.document is not None:
            headers["Content-Type"] = "application/json"
        return headers

    def content(self) -> bytes | None:
        """Return the JSON document as bytes, or None; a point array is streamed by the client instead."""
        return None if self.document is None else json.dumps(self.document, default=_plain).encode()

    def pieces(self) -> Iterator[bytes]:
        """Yield the points in pieces, telling how far they are. Raises WaitTimeout when the call's time is over."""
        assert self.body is not None  # noqa: S101  (asked only of calls that send points)
        done, told = 0, time.monotonic()
        has_told = False
        for piece in self.body.pieces():
            self.check_deadline()
            if self.progress is not None and time.monotonic() - told >= REPORT_PAUSE_S:
                has_told, told = True, time.monotonic()
                self._report(done)
            yield piece
            done += len(piece)
        if has_told:
            self._report(done)

    def _report(self, done: int) -> None:
        if self.progress is not None and self.body is not None:
            said = {"phase": "upload", "done": done, "total": self.body.nbytes, "eta_s": None}
            self.progress("uploading", said)

    def read_timeout_s(self) -> float:
        """Return how long the service may be silent before the call is given up."""
        return self.deadline.left_s(self.wait_s + SILENCE_TIMEOUT_S)


@dataclass(frozen=True)
class Pause:
    """Seconds to sleep."""

    seconds: float


@dataclass(frozen=True)
class Rest:
    """Sleep until the bell rings, a `threading.Event` or an `asyncio.Event`, or the seconds (None: no end) are over."""

    bell: Any
    seconds: float | None


@dataclass(frozen=True)
class Compute:
    """Work that may take long enough to hold up an event loop."""

    work: Callable[[], Any]


Step: TypeAlias = Call | Pause | Rest | Compute
Flow: TypeAlias = Generator[Step, Any, T]


@dataclass(frozen=True)
class Reply:
    """What came back. array: the answer to a call that wants one, else None; content: any other body.

    had_key: whether the request carried an API key.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = b""
    array: NDArray[Any] | None = None
    had_key: bool = False


@dataclass
class Intake:
    """Collects the body of one answer as it comes in, as an array if that is what the call wants and got.

    had_key: as in `Reply`.
    """

    call: Call
    status: int
    headers: Mapping[str, str]
    had_key: bool
    content: bytearray = field(default_factory=bytearray)
    reader: NpyReader | None = None

    def __post_init__(self) -> None:
        theirs = self.headers.get(CONTRACT_HEADER, CONTRACT)
        if theirs != CONTRACT:
            raise VersionMismatch(CONTRACT, theirs)
        if self.call.wants_array and self.status == 200:
            length = self.headers.get("content-length", "")
            self.reader = NpyReader(int(length) if length.isdigit() else None)

    def feed(self, piece: bytes) -> None:
        """Take the next piece. Raises BadAnswer, or WaitTimeout when the call's time is over."""
        self.call.check_deadline()
        if self.reader is None:
            self.content += piece
        else:
            self.reader.feed(piece)

    def reply(self) -> Reply:
        """Return the complete answer. Raises BadAnswer when an array is cut short."""
        array = None if self.reader is None else self.reader.finish()
        return Reply(self.status, self.headers, bytes(self.content), array, self.had_key)


def upload(X: Any, deadline: Deadline, progress: Progress | None = None) -> Flow[str]:
    """Bring the points X to the service unless it has them; returns the dataset id."""
    return (yield from _bring(X, deadline, progress))[0]


def _bring(data: Any, deadline: Deadline, progress: Progress | None) -> Flow[tuple[str, NDArray[Any] | None]]:
    """Return the id of a dataset, and its points if they are here; data: points, uploaded unless known, or an id.

    What the columns of the points are called stays here, for queries.
    """
    if isinstance(data, str):
        return data, None
    columns = data if isinstance(data, Columns) else Columns(data, None, None)
    body, name = yield Compute(lambda: _named(columns.values))
    remember_names(name, Naming(columns.names, columns.crs, columns.lacks_crs))
    reply: Reply = yield Call("HEAD", f"v1/datasets/{name}", deadline)
    if reply.status == 200:
        _check_etag(reply, name)
        return name, body.points
    if reply.status != 404:
        raise refused(reply)
    post = Call("POST", "v1/datasets", deadline, body=body, progress=progress, subject="the end of the upload")
    answer = accepted((yield post))
    if answer.get("id") != name:
        raise BadAnswer(f"the service stored the points as {answer.get('id')}, not {name}: they changed on the way")
    return name, body.points


def _bring_columns(spec: Mapping[str, Any], deadline: Deadline, progress: Progress | None) -> Flow[dict[str, Any]]:
    """Return spec with the ids of its columns: an order of the caller's own, labels of groups, inducing points.

    Each is uploaded unless known.
    """
    out = dict(spec)
    if "order" in out and not isinstance(out["order"], str | Mapping | None):
        column = yield Compute(lambda: as_column(spec["order"], "order"))
        out["order"] = {"by": "given", "dataset": (yield from _bring(column, deadline, progress))[0]}
    metric = out.get("metric")
    if isinstance(metric, Mapping) and not isinstance(metric.get("inducing"), Mapping | int | str | float | None):
        inducing = metric["inducing"]
        out["metric"] = {**metric, "inducing": {"dataset": (yield from _bring(inducing, deadline, progress))[0]}}
    if "groups" in out and not isinstance(out["groups"], Mapping | None):
        column = yield Compute(lambda: number_groups(spec["groups"]))
        out["groups"] = {"dataset": (yield from _bring(column, deadline, progress))[0]}
    return {name: value for name, value in out.items() if name != "groups" or value is not None}


def graph(data: Any, spec: Mapping[str, Any], deadline: Deadline, progress: Progress | None = None) -> Flow[Graph]:
    """Get the graph that spec asks for on data: an array, which is uploaded first, or a dataset id."""
    return (yield from _twice(lambda: _graph(data, spec, deadline, progress)))


def query(
    data: Any, Q: Any, spec: Mapping[str, Any], deadline: Deadline, progress: Progress | None = None
) -> Flow[Graph]:
    """Get the neighbors of the rows of Q in data, each an array, which is uploaded first, or a dataset id."""
    return (yield from _twice(lambda: _query(data, Q, spec, deadline, progress)))


def _twice(ask: Callable[[], Flow[Graph]]) -> Flow[Graph]:
    """Ask for a graph, and once more when the service has lost since what it had: points, or the arrays of the graph."""
    try:
        return (yield from ask())
    except _Gone:
        pass
    try:
        return (yield from ask())
    except _Gone as gone:
        raise gone.error from gone.error.__cause__


class _Gone(Exception):
    """What the service had just now it has no more; error says how."""

    def __init__(self, error: ClientError) -> None:
        super().__init__(str(error))
        self.error = error


def _query(data: Any, Q: Any, spec: Mapping[str, Any], deadline: Deadline, progress: Progress | None) -> Flow[Graph]:
    begun = time.perf_counter()
    dataset, points = yield from _bring(data, deadline, progress)
    queries, rows = yield from _bring(Q, deadline, progress)
    brought_s = time.perf_counter() - begun
    wanted = {**spec, "kind": "query", "queries": queries}
    can_bring = points is not None or rows is not None
    count = None if rows is None else len(rows)
    found = yield from _graph(dataset, wanted, deadline, progress, can_bring=can_bring, rows=count)
    found.timings["upload"] += brought_s
    return replace(found, points=points, queries=rows)


def _graph(
    data: Any,
    spec: Mapping[str, Any],
    deadline: Deadline,
    progress: Progress | None,
    can_bring: bool = False,
    rows: int | None = None,
) -> Flow[Graph]:
    """Get a graph. Raises _Gone where asking once more can help.

    can_bring: points that are lost can be brought again. rows: how many the graph must have, where that is known.
    """
    begun = time.perf_counter()
    dataset, points = yield from _bring(data, deadline, progress)
    wanted = yield from _bring_columns(spec, deadline, progress)
    uploaded = time.perf_counter()
    try:
        record = yield from ready_record(dataset, wanted, deadline, progress)
    except (NotFound, BuildFailed) as error:
        # A worker finds points that were deleted since, or damaged in the store: to be brought again like any others.
        can_bring = can_bring or points is not None or any(wanted[name] is not spec[name] for name in wanted)
        lost = ("unknown-dataset", "unknown-graph") if can_bring else ("unknown-graph",)
        if kind_of(error) not in lost:
            raise
        raise _Gone(error) from error
    ready = time.perf_counter()
    if points is not None and "queries" not in spec:
        rows = len(points)
    try:
        arrays = yield from _arrays(record, deadline, rows)
    except (RequestRefused, ServerUnavailable) as error:
        raise _Gone(error) from error
    downloaded = time.perf_counter()
    waited_s = ready - uploaded
    # A graph from the cache carries the record of a build that nobody waited for now.
    build_s = min(waited_s, sum((record.get("telemetry") or {}).get("seconds", {}).values()))
    seconds = {
        "upload": uploaded - begun,
        "queue": waited_s - build_s,
        "build": build_s,
        "download": downloaded - ready,
    }
    return replace(_assembled(record, arrays, seconds), points=points)


def _assembled(record: dict[str, Any], arrays: dict[str, NDArray[Any]], timings: dict[str, float]) -> Graph:
    return Graph(
        neighbors=arrays["neighbors"],
        distances=arrays["distances"],
        order=arrays.get("order"),
        id=record["id"],
        dataset=record["dataset"],
        spec=record["spec"],
        certificate=record.get("certificate") or {},
        telemetry=record.get("telemetry") or {},
        timings=timings,
        offsets=arrays.get("offsets"),
    )


def fetch_graph(
    graph_id: str, dataset: str, spec: Mapping[str, Any], deadline: Deadline, rows: int | None = None
) -> Flow[Graph]:
    """Download a graph that was ready, of a dataset, for a spec; rows: of the dataset, if known.

    Raises NotFound, or another refusal, when it has been lost since, and BadAnswer when it is another.
    """
    begun = time.perf_counter()
    reply: Reply = yield Call("GET", f"v1/graphs/{graph_id}", deadline, graph_id=graph_id)
    record = _described(accepted(reply), dataset, _plain_spec(spec), graph_id)
    arrays = yield from _arrays(record, deadline, rows)
    return _assembled(record, arrays, {"download": time.perf_counter() - begun})


def ready_record(
    dataset: str, spec: Mapping[str, Any], deadline: Deadline, progress: Progress | None
) -> Flow[dict[str, Any]]:
    """Ask for a graph and wait until it is ready; returns its description. Cancels the build when it is interrupted."""
    document = {"dataset": dataset, "spec": spec}
    asked_for = _plain_spec(spec)
    record: dict[str, Any] = {}
    try:
        poll_s = LONG_POLL_S if progress is None else PROGRESS_POLL_S
        asked = time.monotonic()
        wait_s = deadline.wait_s(poll_s)
        reply: Reply = yield Call("POST", "v1/graphs", deadline, document=document, wait_s=wait_s)
        record = _described(accepted(reply), dataset, asked_for)
        while record["state"] in _PENDING:
            if progress is not None:
                progress(record["state"], record.get("progress") or {})
            call = _poll(record, deadline)
            deadline.check(call.subject, record["id"])
            if time.monotonic() - asked < max(wait_s / 2, POLL_PAUSE_S):
                yield Pause(deadline.left_s(POLL_PAUSE_S))
            asked = time.monotonic()
            wait_s = deadline.wait_s(poll_s)
            reply = yield replace(call, wait_s=wait_s)
            record = _described(accepted(reply), dataset, asked_for, record["id"])
    except (Exception, GeneratorExit):
        raise
    except BaseException:  # Ctrl-C, or a task that is cancelled
        yield from _cancel(document, record)
        raise
    if record["state"] != "ready":
        raise _build_failed(record)
    return record


def _poll(record: Mapping[str, Any], deadline: Deadline) -> Call:
    """Return the call that looks at a pending graph."""
    warning = f" ({record['warning']})" if record.get("warning") else ""
    subject = f"the graph {record['id'][:12]}…, now {record['state']}{warning},"
    return Call("GET", f"v1/graphs/{record['id']}", deadline, subject=subject, graph_id=record["id"])


def _cancel(document: Mapping[str, Any], record: Mapping[str, Any]) -> Flow[None]:
    """Cancel the build of a graph that nobody waits for any more; in vain is fine.

    record: its description, empty when the request for it was still on its way: asking again names it.
    """
    deadline = Deadline(CANCEL_S)
    with contextlib.suppress(ClientError):
        if not record:
            reply: Reply = yield Call("POST", "v1/graphs", deadline, document=document)
            record = _described(accepted(reply), document["dataset"], _plain_spec(document["spec"]))
        if record["state"] in _PENDING:
            yield Call("DELETE", f"v1/graphs/{record['id']}", deadline)


def _arrays(record: dict[str, Any], deadline: Deadline, rows: int | None) -> Flow[dict[str, NDArray[Any]]]:
    """Download all arrays of a graph that is ready; rows: how many it must have, None where that is not known."""
    arrays, spec = {}, record["spec"]
    others = {"order": spec.get("kind") == "vecchia", "offsets": "radius" in spec}
    for name in ("neighbors", "distances", *(name for name, there in others.items() if there)):
        path, subject = f"v1/graphs/{record['id']}/{name}", f"the array {name}"
        reply: Reply = yield Call("GET", path, deadline, wants_array=True, subject=subject, graph_id=record["id"])
        if reply.array is None:
            raise refused(reply)
        arrays[name] = reply.array
    _check_arrays(arrays, spec.get("k"), rows)
    return arrays


def _check_arrays(arrays: Mapping[str, NDArray[Any]], k: int | None, rows: int | None) -> None:
    """Raise BadAnswer for arrays that are not those of one graph of so many rows with k neighbors each."""
    neighbors, distances = arrays["neighbors"], arrays["distances"]
    offsets, order = arrays.get("offsets"), arrays.get("order")
    is_flat = offsets is not None
    if offsets is not None:
        steps = offsets[1:] - offsets[:-1]
        whole = offsets.ndim == 1 and offsets.size > 0 and offsets[0] == 0 and (steps >= 0).all()
        is_whole = bool(whole and offsets[-1] == len(neighbors))
        rows_there = len(steps)
    else:
        is_whole, rows_there = k is None or neighbors.shape[1:] == (k,), len(neighbors)
    if not (
        is_whole
        and neighbors.ndim == (1 if is_flat else 2)
        and neighbors.shape == distances.shape
        and (neighbors.dtype.kind, neighbors.dtype.itemsize) == ("i", 4)
        and distances.dtype.kind == "f"
        and (order is None or order.shape == (rows_there,))
        and rows in (None, rows_there)
    ):
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        wanted = f"{'some' if rows is None else rows} rows with {'some' if k is None else k} neighbors each"
        raise BadAnswer(f"the arrays that came back ({shapes}) are not those of a graph of {wanted}; {_MIXED}")


def create_track(
    dataset: str, spec: Mapping[str, Any], policy: Mapping[str, Any], deadline: Deadline, wait_s: float = 0.0
) -> Flow[dict[str, Any]]:
    """Have the service follow a spec, its first version scheduled; returns the track's description."""
    wanted = yield from _bring_columns(spec, deadline, None)
    document = {"dataset": dataset, "spec": wanted, "policy": policy}
    reply: Reply = yield Call("POST", "v1/tracks", deadline, document=document, wait_s=wait_s, subject="the track")
    track = _track_described(accepted(reply))
    _check_answers("track", track, dataset, _plain_spec(wanted))
    return track


def refresh_track(track_id: str, wish: Mapping[str, Any], deadline: Deadline) -> Flow[dict[str, Any]]:
    """Tell a track the newest hyperparameters; returns {decision, reason, version, pending_version}."""
    path = f"v1/tracks/{track_id}/refresh"
    answer = accepted((yield Call("POST", path, deadline, document=wish, subject="the answer to a refresh")))
    version, pending = answer.get("version"), answer.get("pending_version")
    if not isinstance(version, int) or not isinstance(pending, int | None) or "decision" not in answer:
        raise BadAnswer("the answer does not describe a refresh; is this the URL of a pcct service?")
    if pending is not None and pending <= version:
        raise BadAnswer(f"the answer to a refresh has version {pending} pending while {version} is there; {_MIXED}")
    return answer


def read_track(
    track_id: str,
    deadline: Deadline,
    etag: str | None = None,
    wait_s: float = 0.0,
    subject: str = "the next version of the track",
) -> Flow[tuple[dict[str, Any] | None, str | None]]:
    """Look at a track: (description, its ETag), or (None, etag) when it is still the one that etag names.

    subject: what is late when the deadline passes.
    """
    path = f"v1/tracks/{track_id}"
    reply: Reply = yield Call("GET", path, deadline, etag=etag, wait_s=wait_s, subject=subject)
    if reply.status == 304 and etag is not None:
        _check_etag(reply, etag.removeprefix("W/").strip('"'))
        return None, etag
    return _track_described(accepted(reply), track_id), reply.headers.get("etag")


def delete_track(track_id: str, deadline: Deadline) -> Flow[None]:
    """Have the service forget a track; one that is gone already is fine."""
    reply: Reply = yield Call("DELETE", f"v1/tracks/{track_id}", deadline)
    if reply.status not in (200, 204, 404):
        raise refused(reply)


def track_failed(track: Mapping[str, Any]) -> ClientError:
    """Return the error of a track whose newest version could not be built."""
    record = {"id": str(track.get("graph") or ""), "state": "failed", "error": track.get("error")}
    return _build_failed(record, "the newest version of the track")


def query_document(k: int | None, radius: float | None, metric: Any) -> dict[str, Any]:
    """Return what is asked of a dataset: k neighbors, or all within a radius, the service's default k when neither is said."""
    said = {name: value for name, value in (("k", k), ("radius", radius)) if value is not None}
    return spec_document(None, {**said, "metric": metric})


def spec_document(spec: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification as JSON values: spec with fields over it, a metric's name in its JSON form."""
    out = {name: plain(value) for name, value in {**(spec or {}), **fields}.items()}
    metric = out.get("metric")
    if isinstance(metric, str):
        out["metric"] = {"type": metric}
    return out


def accepted(reply: Reply) -> dict[str, Any]:
    """Return the JSON object of a 2xx answer. Raises what `refused` returns for any other, or BadAnswer."""
    if not 200 <= reply.status < 300:
        raise refused(reply)
    answer = _json_object(reply)
    if answer is None:
        raise BadAnswer("the answer is not a JSON object; is this the URL of a pcct service?")
    return answer


def refused(reply: Reply) -> Exception:
    """Return the error that an answer other than the expected one means."""
    problem = _json_object(reply) or {}
    if reply.status in (502, 503, 504):
        said = problem.get("detail") or problem.get("title") or "no reason given"
        return ServerUnavailable(f"the service cannot work just now ({said}); try again shortly", _retry_after(reply))
    if reply.status == 429:
        return RateLimited(429, problem, _retry_after(reply))
    if reply.status == 404 and str(problem.get("type")).rpartition("/")[2] == "not-found":
        said = problem.get("detail") or "there is no such path"
        return BadAnswer(
            f"{said}: give the client the URL of the pcct service alone, without what comes after it, as /v1"
        )
    if 300 <= reply.status < 400 and reply.headers.get("location"):
        # Not followed: the key would go there too.
        there = reply.headers["location"].partition("/v1/")[0]
        return BadAnswer(
            f"HTTP {reply.status} leads to {there}: if that is the URL of a pcct service, give it to the client"
        )
    if reply.status < 400 or reply.status == 405 or not (problem or reply.content == b""):
        return BadAnswer(f"HTTP {reply.status} came back without a reason; is this the URL of a pcct service?")
    if reply.status == 401 and not problem:  # the answer to HEAD says nothing
        problem["detail"] = (
            f"the service {'does not know the API key' if reply.had_key else 'wants an API key, and got none'}"
        )
    return refusal(reply.status, problem)


def kind_of(error: ClientError) -> str:
    """Return the last word of a problem's type, such as "unknown-track"; "" for other errors."""
    problem = getattr(error, "problem", {})
    return str(getattr(error, "type", problem.get("type", ""))).rpartition("/")[2]


def _named(X: Any) -> tuple[NpyBody, str]:
    body = npy_body(X)
    return body, body_id(body)


def _described(
    record: dict[str, Any], dataset: str, spec: Mapping[str, Any], graph_id: str | None = None
) -> dict[str, Any]:
    """Return the description of a graph. Raises BadAnswer when it is none, or that of another than was asked for.

    spec: as `_plain_spec` returns it. graph_id: None while the service has not said it.
    """
    if not isinstance(record.get("id"), str) or "state" not in record or not isinstance(record.get("spec"), dict):
        raise BadAnswer("the answer does not describe a graph; is this the URL of a pcct service?")
    if graph_id not in (None, record["id"]):
        raise BadAnswer(f"the answer describes the graph {record['id']}, and {graph_id} was asked for; {_MIXED}")
    _check_answers("graph", record, dataset, spec)
    return record


def _track_described(track: dict[str, Any], track_id: str | None = None) -> dict[str, Any]:
    spec = track.get("spec")
    has_metric = isinstance(spec, dict) and isinstance(spec.get("metric"), dict)
    if not isinstance(track.get("id"), str) or not isinstance(track.get("version"), int) or not has_metric:
        raise BadAnswer("the answer does not describe a track; is this the URL of a pcct service?")
    if track_id not in (None, track["id"]):
        raise BadAnswer(f"the answer describes the track {track['id']}, and {track_id} was asked for; {_MIXED}")
    return track


def _check_answers(subject: str, answer: Mapping[str, Any], dataset: str, spec: Mapping[str, Any]) -> None:
    """Raise BadAnswer when the description of a graph or track names another dataset or spec than was asked for."""
    told = answer.get("spec")
    if answer.get("dataset") != dataset:
        raise BadAnswer(f"the {subject} that came back is of dataset {answer.get('dataset')}, not {dataset}; {_MIXED}")
    if not isinstance(told, dict):
        raise BadAnswer(f"the {subject} that came back has no spec; is this the URL of a pcct service?")
    missing = (f"spec.{part}" for part in _ALWAYS_TOLD if part in spec and part not in told)
    name = next(missing, None) or _difference(spec, told, "spec")
    if name is not None:
        raise BadAnswer(f"the {subject} that came back was made for another {name} than was asked for; {_MIXED}")


def _difference(asked: Any, told: Any, name: str) -> str | None:
    """Return the name of the first part of a spec that was asked for and told differently, None when there is none.

    What is told is in normal form, which leaves out what the graph does not depend on and may write a value in another form,
    a number as an object; the same kind of value stays the same value.
    """
    if isinstance(asked, dict) and isinstance(told, dict):
        parts = (_difference(asked[part], told[part], f"{name}.{part}") for part in asked if part in told)
        return next((part for part in parts if part is not None), None)
    if isinstance(asked, list) and isinstance(told, list):
        alike = len(asked) == len(told) and all(
            _difference(*pair, name) is None for pair in zip(asked, told, strict=True)
        )
        return None if alike else name
    kinds = ((int, float), (str,))
    comparable = any(isinstance(asked, kind) and isinstance(told, kind) for kind in kinds)
    return name if comparable and asked != told else None


def _check_etag(reply: Reply, name: str) -> None:
    """Raise BadAnswer when an answer has the ETag of something else; an answer without one passes."""
    etag = reply.headers.get("etag")
    if etag is not None and name not in etag:
        raise BadAnswer(f"the answer has the ETag {etag}, and {name} was asked for; {_MIXED}")


def _plain_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification as the service reads it, in plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(spec, default=_plain))
    return plain


def _build_failed(record: dict[str, Any], subject: str | None = None) -> ClientError:
    error = record.get("error")
    problem = error if isinstance(error, dict) else {"detail": error}
    if str(problem.get("type")).rpartition("/")[2] in ("invalid-points", "invalid-spec", "not-positive-definite"):
        # Found by the worker instead of the door: the same fault, so the same error.
        return refusal(422, problem)
    reason = problem.get("detail") or problem.get("title") or "no reason given"
    ended = "failed" if record["state"] == "failed" else "was cancelled"
    if subject is None:
        subject, reason = f"the build of graph {record['id'][:12]}…", f"{reason}; the same call starts it anew"
    message = f"{subject} {ended}: {reason}"
    return BuildFailed(message, record["id"], record["state"], problem)


def _json_object(reply: Reply) -> dict[str, Any] | None:
    try:
        value = json.loads(reply.content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _retry_after(reply: Reply) -> float | None:
    """Return the seconds of Retry-After, which also comes as a date; None when it says nothing."""
    value = reply.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    """Return the JSON form of a NumPy number or array, or of a pcct_core metric, as json.dumps asks for it."""
    for name in ("to_json", "tolist"):
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(f"{value!r} in the specification has no JSON form; use numbers, strings and lists")
