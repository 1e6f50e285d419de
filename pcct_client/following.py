"""What a session knows of its track, and the flows that keep this true; no I/O, shared by both sessions.

Two flows run beside the training loop for as long as the session is open: `send` tells the service the newest wish, `fetch`
brings the graphs that come of it and parks them. The loop itself only leaves a wish and takes what is parked. They meet in
a few fields under one lock, which nobody holds for longer than it takes to copy them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from pcct_client import calls
from pcct_client.arrays import dataset_id
from pcct_client.calls import Compute, Deadline, Flow, Rest
from pcct_client.errors import (
    ClientError,
    InvalidArray,
    InvalidStep,
    NotFound,
    RequestRefused,
    SessionClosed,
)
from pcct_client.graph import Graph
from pcct_client.values import plain

EventHandler: TypeAlias = Callable[[dict[str, Any]], None]

CLOSE_S = 2.0  # how long a session that ends waits for the service to be told
KEPT_EVENTS = 1000

_ANSWER_S = 30.0  # a refresh is answered at once; longer silence means that the service is gone
_WISH_PAUSE_S = 0.02  # between two posts: a loop of a thousand steps a second needs no thousand requests
_UNCHANGED_PAUSE_S = 1.0  # between two posts of the same hyperparameters, which tell the service the epoch alone
_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 2.0
_BRING_AGAIN_S = 60.0  # points lost again so soon are not brought a third time: that is for somebody to look at
_NEWS_S = 1.0  # a waiter looks again after this long even if no bell rang
_MOST_INSISTENCES = 3  # of one `sync`, whose graph others replace while it comes
_LAST_EPOCH = 1 << 52  # a track that somebody has brought so far is left: none above 2**53 - 1 is taken

_HYPERPARAMETERS = ("lengthscale", "variance")

_log = logging.getLogger("pcct_client")


@dataclass(frozen=True)
class RefreshPolicy:
    """When new hyperparameters cause a new graph; the service decides by it.

    tolerance:       largest |Δ log lengthscale| or |Δ log variance| that keeps the graph.
    max_epochs:      a graph is this many epochs old at most while hyperparameters move.
    cooldown_epochs: fewest epochs between two graphs.
    schedule:        "drift", or "powers_of_two" for epochs 1, 2, 4, 8 … whatever the drift.
    """

    tolerance: float = 0.05
    max_epochs: int = 5
    cooldown_epochs: int = 1
    schedule: Literal["drift", "powers_of_two"] = "drift"


@dataclass(frozen=True)
class Wish:
    """What the loop wants neighbors for. number: grows with every wish. metric: all hyperparameters given so far."""

    number: int = 0
    epoch: int = 0
    metric: dict[str, Any] = field(default_factory=dict)
    force: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a wish. version: its graph's, once the service has said it; error: why there will be none."""

    number: int
    version: int = 0
    error: ClientError | None = None


class Following:
    """The state of a session, and its flows.

    data: columns of points, which are kept to bring them again if the service loses them, or a dataset id.
    spec: to begin with. make_bell: `threading.Event` or `asyncio.Event`. on_event: called with every event, or None.

    Versions count on where a track had to be created anew, so they only go up: `_base` is what the service's are short of.
    """

    def __init__(
        self,
        data: Any,
        spec: Mapping[str, Any],
        policy: RefreshPolicy,
        make_bell: Callable[[], Any],
        on_event: EventHandler | None = None,
    ) -> None:
        if not isinstance(policy, RefreshPolicy):
            raise TypeError(f"policy is {policy!r}; use pcct_client.RefreshPolicy(tolerance=0.05, ...)")
        self.closing = make_bell()
        self.events: deque[dict[str, Any]] = deque(maxlen=KEPT_EVENTS)
        self._on_event = on_event
        self._wishes, self._duties, self._news = make_bell(), make_bell(), make_bell()
        self._lock = threading.Lock()
        self._data = data
        self._points = None if isinstance(data, str) else data.values
        self._dataset = data if isinstance(data, str) else ""
        self._spec = dict(spec)
        self._policy = asdict(policy)
        self._errors: dict[str, ClientError] = {}
        # Written by the loop.
        metric = self._spec["metric"]
        self._wish = Wish(metric={name: metric[name] for name in _HYPERPARAMETERS if name in metric})
        self._basis = self._wish.metric
        self._graph: Graph | None = None
        # Written by `send`.
        self._sent = self._wish
        self._accepted = self._wish.metric
        self._sent_at = 0.0
        self._outcome = Outcome(0)
        self._awaited = 0
        self._epochs: dict[int, int] = {}
        self._epochs_ahead = 0  # of the loop's, where somebody else refreshes the track too
        self.shared: str | None = None
        # Written by `fetch`.
        self._parked: Graph | None = None
        self._newest_id = ""
        self._warning: str | None = None
        self._missed_at = -math.inf
        self._fetched = self._settled = 0
        # Written by both.
        self._track: str | None = None
        self._base = 0
        self._etag: str | None = None

    # The loop's side: none of these waits.

    @property
    def closed(self) -> bool:
        """Whether the session has ended."""
        return bool(self.closing.is_set())

    @property
    def has_begun(self) -> bool:
        """Whether there is a graph for the loop."""
        return (self._graph or self._parked) is not None

    @property
    def graph(self) -> Graph:
        """The graph that the loop has, or will get at its first step."""
        graph = self._graph or self._parked
        assert graph is not None  # noqa: S101  (`open` has come to its end)
        return graph

    @property
    def last_error(self) -> ClientError | None:
        """What is wrong at present, the latest first; None when all is well."""
        # Without the lock, which a thread of the parent may have held at a fork: the errors are replaced, never changed.
        return next(reversed(self._errors.values()), None)

    def leave_wish(
        self, lengthscale: Any = None, variance: Any = None, epoch: int | None = None, force: bool = False
    ) -> None:
        """Replace the newest wish. Raises InvalidStep, or SessionClosed."""
        if self.closed:
            raise SessionClosed("the session is closed; begin another with Client.track")
        given = {
            name: hyperparameter(name, value)
            for name, value in (("lengthscale", lengthscale), ("variance", variance))
            if value is not None
        }
        with self._lock:
            last = self._wish
            epoch = last.epoch + 1 if epoch is None else epoch
            if epoch < last.epoch:
                raise InvalidStep(f"epoch {epoch} is before {last.epoch}, which has been; epochs only go up")
            force = force or (last.force and last.number > self._sent.number)
            self._basis = {**self._basis, **given}
            wish = self._wish = Wish(last.number + 1, epoch, self._basis, force)
            news = force or wish.metric != self._sent.metric
        if news and not self._wishes.is_set():
            self._wishes.set()

    def take(self) -> Graph:
        """Return the newest graph that is here: another object than before only after a swap."""
        with self._lock:
            before, parked, self._parked = self._graph, self._parked, None
            if parked is not None:
                self._graph = parked
        if parked is None:
            assert before is not None  # noqa: S101  (the first graph is parked before there can be a step)
            object.__setattr__(before, "changed", False)
            return before
        if before is not None:
            object.__setattr__(before, "changed", False)
            self._announce("swap", version=parked.version, staleness_epochs=self._staleness(parked.version))
        return parked

    def leave(self) -> None:
        """End both flows; `send` tells the service on its way out."""
        for bell in (self.closing, self._wishes, self._duties, self._news):
            bell.set()

    def note(self, source: str, error: ClientError) -> None:
        """Keep an error until its source is well again."""
        with self._lock:
            known = self._errors.get(source)
            self._heal(source)
            self._errors = {**self._errors, source: error}
        if known is None or str(known) != str(error):
            name = "timeout" if calls.kind_of(error) == "refresh-timeout" else "async_error"
            self._announce(name, error={"type": type(error).__name__, "detail": str(error)})
        self._news.set()

    def _heal(self, source: str) -> None:
        """Drop the error of a source that is well; under the lock."""
        self._errors = {each: error for each, error in self._errors.items() if each != source}

    # Flows that the caller waits for.

    def open(self, deadline: Deadline) -> Flow[None]:
        """Upload the points if need be, create the track, and get its first graph."""
        if self._points is not None:
            self._dataset = yield from calls.upload(self._data, deadline)
        track = yield from self._create(self._spec, deadline, deadline.wait_s(calls.LONG_POLL_S))
        while track["version"] < 1:
            if track.get("error") and track.get("pending_version") is None:
                raise calls.track_failed(track)
            subject = f"the first graph of the track{_aside(track.get('warning'))}"
            deadline.check(subject, None)
            asked = time.monotonic()
            wait_s = deadline.wait_s(calls.LONG_POLL_S)
            news, _ = yield from calls.read_track(track["id"], deadline, wait_s=wait_s, subject=subject)
            track = news or track
            if track["version"] < 1 and time.monotonic() - asked < calls.POLL_PAUSE_S:
                yield Rest(self.closing, deadline.left_s(calls.POLL_PAUSE_S))
        yield from self._bring(track, track["version"], deadline)

    def sync(self, deadline: Deadline) -> Flow[None]:
        """Wait until the graph for the newest hyperparameters is here, built for exactly these."""
        number, insistences = self._insist(), 1
        while True:
            # Cleared before looking: what happens in between rings again.
            self._news.clear()
            if self._has_come(number):
                # Newer than the one that was waited for may be one that somebody else has asked for.
                number = self._insist() if insistences < _MOST_INSISTENCES else 0
                insistences += 1
                if number == 0:
                    return
            trouble = self.last_error or self._warning
            deadline.check(f"the graph for the newest hyperparameters{_aside(trouble)}", None)
            yield Rest(self._news, deadline.left_s(_NEWS_S))

    def forget(self) -> Flow[None]:
        """Have the service forget the track."""
        if self._track is not None:
            yield from calls.delete_track(self._track, Deadline(CLOSE_S))

    # Flows in the background.

    def send(self) -> Flow[None]:
        """Tell the service the newest wish, again and again, until the session ends."""
        misses = 0
        while not self.closed:
            self._wishes.clear()
            wish = self._due_wish()
            if wish is None:
                yield Rest(self._wishes, _UNCHANGED_PAUSE_S)
                continue
            try:
                yield from self._post(wish)
                misses = 0
            except ClientError as error:
                misses += 1
                self._refused(wish, error)
            yield Rest(self.closing, _retry_s(misses) if misses else _WISH_PAUSE_S)
        yield from self.forget()

    def fetch(self) -> Flow[None]:
        """Bring every version that is to come, until the session ends."""
        misses = 0
        while not self.closed:
            self._duties.clear()
            if self._track is None or self._settled >= self._awaited:
                yield Rest(self._duties, None)
                continue
            try:
                yield from self._look()
                misses = 0
            except ClientError as error:
                misses += 1
                if not self.closed:
                    self.note("fetch", error)
                yield Rest(self.closing, _retry_s(misses))

    def _due_wish(self) -> Wish | None:
        """Return the wish to post now, None when there is nothing to say."""
        with self._lock:
            wish, sent = self._wish, self._sent
            if self._track is None:
                return wish
            if wish.number == sent.number:
                return None
            unchanged = wish.metric == sent.metric and not wish.force
            return None if unchanged and time.monotonic() < self._sent_at + _UNCHANGED_PAUSE_S else wish

    def _post(self, wish: Wish) -> Flow[None]:
        if self._track is None:
            yield from self._create_again(wish)
            return
        try:
            answer = yield from self._with_dataset(lambda: self._refresh(wish))
        except NotFound as error:
            if calls.kind_of(error) == "unknown-dataset":
                raise
            self._lose_track()
            yield from self._create_again(wish)
            return
        except RequestRefused as error:
            if calls.kind_of(error) != "epoch-backwards":
                raise
            self._take_epoch_over(wish, error.problem.get("seen_epoch"))
            return  # the wish is due still
        self._answered(wish, answer.get("pending_version") or answer["version"])
        name = "schedule" if answer["decision"] == "scheduled" else "skip_cached"
        version = self._outcome.version
        self._announce(name, version=version, epoch=wish.epoch, reason=answer.get("reason"))

    def _refresh(self, wish: Wish) -> Flow[dict[str, Any]]:
        assert self._track is not None  # noqa: S101  (asked before)
        # All hyperparameters, each time: what another program has set would stay for those that are left out.
        document = {"metric": wish.metric, "epoch": wish.epoch + self._epochs_ahead, "force": wish.force}
        return calls.refresh_track(self._track, document, Deadline(_ANSWER_S))

    def _take_epoch_over(self, wish: Wish, seen: Any) -> None:
        """Go on where another program has brought the track, and say so once; seen: its epoch."""
        track, told = self._track, self.shared is not None
        if isinstance(seen, int) and seen < _LAST_EPOCH:
            self._epochs_ahead = seen + 1 - wish.epoch
            done = f"has brought it to epoch {seen}: the session counts on from there"
        else:
            self._lose_track()
            done = "has brought it to an epoch that none can follow: the session goes on with another track"
        self.shared = (
            f"another program refreshes the session's track {track} too, and {done}; give it a track of its own"
        )
        if not told:
            _log.warning(self.shared)
            self._announce("async_error", error={"type": "RequestRefused", "detail": self.shared})

    def _create(self, spec: Mapping[str, Any], deadline: Deadline, wait_s: float = 0.0) -> Flow[dict[str, Any]]:
        track = yield from self._with_dataset(
            lambda: calls.create_track(self._dataset, spec, self._policy, deadline, wait_s)
        )
        with self._lock:
            self._base = self._awaited = self._settled = self._fetched
            self._etag = None
            self._track = track["id"]
            self._epochs_ahead = 0
            self._complete(hyperparameters_of(track["spec"]["metric"]))
        return track

    def _complete(self, metric: Mapping[str, Any]) -> None:
        """Add the hyperparameters that nobody has given, as the track has them; under the lock."""
        self._basis = {**metric, **self._basis}
        self._accepted = {**metric, **self._accepted}
        self._wish = replace(self._wish, metric={**metric, **self._wish.metric})
        self._sent = replace(self._sent, metric={**metric, **self._sent.metric})

    def _create_again(self, wish: Wish) -> Flow[None]:
        """Replace a track that the service does not know any more, as after a restart with an empty store."""
        spec = {**self._spec, "metric": {**self._spec["metric"], **wish.metric}}
        yield from self._create(spec, Deadline(_ANSWER_S))
        self._answered(wish, 1)
        self._announce("schedule", version=self._outcome.version, epoch=wish.epoch, reason="track_lost")

    def _with_dataset(self, ask: Callable[[], Flow[dict[str, Any]]]) -> Flow[dict[str, Any]]:
        """Ask, and once more after bringing the points if the service has lost them."""
        try:
            return (yield from ask())
        except NotFound as error:
            if calls.kind_of(error) != "unknown-dataset" or self._points is None:
                raise
        name = yield Compute(lambda: dataset_id(self._points))
        if name != self._dataset:
            raise InvalidArray(
                "the service has lost the points, and those that the session was given have changed since: "
                "begin another session"
            )
        yield from calls.upload(self._data, Deadline(None))
        return (yield from ask())

    def _answered(self, wish: Wish, version: int) -> None:
        """Take in which version, as the service counts, a wish leads to."""
        with self._lock:
            version += self._base
            self._sent, self._sent_at = wish, time.monotonic()
            self._accepted = wish.metric
            self._outcome = Outcome(wish.number, version)
            self._awaited = max(self._awaited, version)
            if version > self._fetched:
                # Looked at afresh: it may have ended before this answer came, or be a lost one under its old number.
                self._settled = min(self._settled, version - 1)
                self._etag = None
            self._epochs.setdefault(version, wish.epoch)
            self._heal("send")
        self._duties.set()
        self._news.set()

    def _refused(self, wish: Wish, error: ClientError) -> None:
        """Take in that a wish was not accepted: it is dropped, unless asking again can help."""
        if self.closed:
            return
        with self._lock:
            if not can_pass(error):
                self._outcome = Outcome(wish.number, error=error)
                if self._track is not None:
                    self._sent, self._sent_at = wish, time.monotonic()
                # A value that was refused does not stay in force for steps that leave it out; those given since do.
                since = {name: value for name, value in self._basis.items() if value != wish.metric.get(name)}
                self._basis = {**self._accepted, **since}
        self.note("send", error)

    def _look(self) -> Flow[None]:
        """Look at the track once, waiting for news as long as the service holds the answer, and bring what is new."""
        with self._lock:
            id, base, etag, target = self._track, self._base, self._etag, self._awaited
        assert id is not None  # noqa: S101  (asked before)
        asked = time.monotonic()
        try:
            wait_s = calls.LONG_POLL_S if etag else 0.0
            track, found = yield from calls.read_track(id, Deadline(None), etag, wait_s)
        except NotFound:
            self._lose_track(id)
            return
        with self._lock:
            if self._track != id:
                return
            self._etag = found if track else None
            self._warning = track.get("warning") if track else None
            self._heal("fetch")
        if track is None:
            if time.monotonic() - asked < wait_s / 2:
                yield Rest(self.closing, calls.POLL_PAUSE_S)
            return
        version, pending = base + track["version"], track.get("pending_version")
        if version > self._fetched and track.get("graph"):
            try:
                yield from self._bring(track, version, Deadline(None))
            except NotFound:
                self._ask_anew(version)
                return
        with self._lock:
            if self._track != id:
                return
            if pending is not None:
                self._awaited = max(self._awaited, base + pending)
                self._settled = version
        if pending is None:
            self._settle(max(target, version), version, track)

    def _settle(self, upto: int, version: int, track: Mapping[str, Any]) -> None:
        """Take in that the service does nothing more about versions up to `upto`; `version` is the published one."""
        if track.get("error"):
            error = calls.track_failed(track)
            if self._may_bring_again(error):
                self._ask_anew(upto)
                return
            with self._lock:
                self._settled = upto
                if version < self._outcome.version <= upto:
                    self._outcome = replace(self._outcome, error=error)
            self.note("build", error)
            return
        if version < upto:
            self._ask_anew(upto)
            return
        with self._lock:
            self._settled = upto
            self._heal("build")
        self._news.set()

    def _bring(self, track: Mapping[str, Any], version: int, deadline: Deadline) -> Flow[None]:
        """Download the published version of a track and park it, unless it is the graph that is here already."""
        graph, graph_id = None, track["graph"]
        if graph_id != self._newest_id:
            rows = None if self._points is None else len(self._points)
            spec = self._spec_of(track["spec"]["metric"])
            fetched = yield from calls.fetch_graph(graph_id, self._dataset, spec, deadline, rows)
            graph = replace(fetched, version=version, changed=True, points=self._points)
        with self._lock:
            if self._track != track["id"]:
                return  # replaced meanwhile by one that counts on from the version before
            self._parked = graph or self._parked
            self._newest_id = graph_id
            self._fetched = version
            self._heal("build")
        if graph is not None:
            self._announce("complete", version=version, download_s=graph.timings["download"])
        self._news.set()

    def _spec_of(self, metric: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a version was asked for with; metric: that of the track, for its hyperparameters."""
        return {**self._spec, "metric": {**self._spec["metric"], **hyperparameters_of(metric)}}

    def _ask_anew(self, upto: int) -> None:
        """Ask for the newest graph again: what was promised up to version `upto` has been lost."""
        with self._lock:
            self._settled = upto
        self._insist(anyway=True)

    def _may_bring_again(self, error: ClientError) -> bool:
        """Return whether a build found no points, deleted or damaged since, that can be brought again and were not just now."""
        if calls.kind_of(error) != "unknown-dataset" or self._points is None:
            return False
        before, self._missed_at = self._missed_at, time.monotonic()
        return self._missed_at - before > _BRING_AGAIN_S

    def _lose_track(self, id: str | None = None) -> None:
        """Take in that the service does not know the track `id` (None: the present one) any more."""
        with self._lock:
            if id in (None, self._track):
                self._track = None
                self._outcome = Outcome(0)
        self._wishes.set()

    def _insist(self, anyway: bool = False) -> int:
        """Wish the newest hyperparameters again, now by force, and return the wish's number.

        Unless `anyway`, a graph that is here for exactly these needs no wish: the number is then that of the outcome.
        """
        with self._lock:
            newest = self._parked or self._graph
            if not anyway and newest is not None and _is_for(newest, self._wish.metric):
                return 0
            wish = self._wish = replace(self._wish, number=self._wish.number + 1, force=True)
        self._wishes.set()
        return wish.number

    def _has_come(self, number: int) -> bool:
        """Return whether the graph for a wish is here. Raises what kept it away for good."""
        if number == 0:
            return True
        if self.closed:
            raise SessionClosed("the session was closed while it waited for a graph")
        with self._lock:
            outcome, fetched = self._outcome, self._fetched
        if outcome.number < number:
            return False
        if outcome.error is not None:
            raise outcome.error
        return fetched >= outcome.version

    def _staleness(self, version: int | None) -> int | None:
        """Return how many epochs the loop has gone on since the hyperparameters of a version were its newest."""
        with self._lock:
            epoch = self._epochs.get(version or 0)
            self._epochs = {each: at for each, at in self._epochs.items() if each > (version or 0)}
            return None if epoch is None else self._wish.epoch - epoch

    def _announce(self, name: str, **fields: Any) -> None:
        event = {"event": f"neighbor_refresh.{name}", "track": self._track, "time_s": time.time()}
        event |= {"epoch": self._wish.epoch, **fields}
        self.events.append(event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception as error:
                # Its caller may be the training loop, which must not end because a log could not be written.
                with self._lock:
                    self._errors = {**self._errors, "events": ClientError(f"the events callback raised {error!r}")}
            else:
                with self._lock:
                    self._heal("events")


def track_spec(
    kind: str, k: int, metric: Any, kernel: str, inducing: Any, fields: Mapping[str, Any], **numbers: Any
) -> dict[str, Any]:
    """Return the spec that a session begins with; arguments as in `Client.track`.

    fields: the rest of the spec. numbers: lengthscale and variance, None for the metric's own.
    """
    metric, inducing = plain(metric), plain(inducing)
    if metric is None:
        inducing = {"count": inducing} if isinstance(inducing, int) else inducing
        metric = {"type": "residual", "kernel": kernel, "inducing": inducing}
    elif isinstance(metric, str):
        metric = {"type": metric}
    else:
        metric = metric.to_json() if hasattr(metric, "to_json") else dict(metric)
    given = {name: hyperparameter(name, value) for name, value in numbers.items() if value is not None}
    spec = calls.spec_document(None, {"kind": kind, "k": k, "metric": metric | given, **fields})
    return {name: value for name, value in spec.items() if value is not None}


def hyperparameters_of(metric: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a metric in normal form, which leaves out a lengthscale of 1 where there is no kernel."""
    given = {name: metric[name] for name in _HYPERPARAMETERS if name in metric}
    return {"lengthscale": 1.0, **given} if metric.get("type") == "euclidean" else given


def hyperparameter(name: str, value: Any) -> float | list[float]:
    """Return a hyperparameter as numbers of its own; the caller may go on to change the array that it came in.

    value: a number, a list, or an array of NumPy, JAX or PyTorch; a row (1, d), as GPyTorch has it, counts as d numbers.
    Raises InvalidStep for what is not positive and finite.
    """
    numbers = value.tolist() if hasattr(value, "tolist") else value
    while isinstance(numbers, list | tuple) and len(numbers) == 1:
        numbers = numbers[0]
    try:
        out = [float(each) for each in numbers] if isinstance(numbers, list | tuple) else float(numbers)
    except (TypeError, ValueError):
        raise InvalidStep(f"{name} is {value!r}; use a positive number, or one per dimension") from None
    if name == "variance" and isinstance(out, list):
        raise InvalidStep(f"{name} is {value!r}; use one positive number")
    if not all(0.0 < each < math.inf for each in (out if isinstance(out, list) else [out])) or out == []:
        raise InvalidStep(f"{name} is {value!r}; hyperparameters are positive and finite")
    return out


def can_pass(error: ClientError) -> bool:
    """Return whether the same request may do better later."""
    if isinstance(error, RequestRefused):
        return error.status in (408, 429)
    return not isinstance(error, InvalidArray)


def unexpected(error: Exception) -> ClientError:
    """Return the error that `last_error` shows for one that nobody foresaw."""
    if isinstance(error, ClientError):
        return error
    out = ClientError(f"the session's background work failed and begins again: {error!r}")
    out.__cause__ = error
    return out


def _is_for(graph: Graph, metric: Mapping[str, Any]) -> bool:
    """Return whether a graph was built for these hyperparameters; its spec is in normal form, so no may mean yes."""
    built = hyperparameters_of(graph.spec.get("metric", {}))
    return all(built.get(name) == value for name, value in metric.items())


def _aside(trouble: object) -> str:
    return f" (meanwhile: {trouble})" if trouble else ""


def _retry_s(misses: int) -> float:
    return float(min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2 ** min(misses - 1, 10)))
