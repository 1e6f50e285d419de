"""The job that drives a track: build the newest requested version, publish it, go on until nothing newer is wanted.

Only the newest requested version is ever begun, so versions that were overtaken while they waited cost nothing. One that is
being built when a newer one is requested is finished and published: if it were cancelled, a loop that asks for versions
faster than they can be built would never get any, and would wait longer for its first newer one even if it stopped asking
(docs/CORE_IMPLEMENTATIONS.md has the measurement). However short builds are, versions that overtake them begin at a pace: a
burst of requests costs two builds, and a loop faster than its builds keeps the processor for its objective. One that
somebody insists on begins at once. Builds yield the processor: a fit goes on meanwhile, and a build that took its core would
cost it more than late neighbors do. One that is waited for, the first or one insisted on, has the usual priority. A build is
cancelled where it cannot win: when the newer version's graph was in the cache and is published already. A job whose worker
dies is redelivered and takes its build over; a worker that comes back from a stall finds its attempt and its version
overtaken, because both are published by compare-and-set.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import structlog
from redis.exceptions import RedisError

from pcct_core.spec import GraphSpec
from worker.patience import end_tasks, patiently
from worker.run import Runner, describe_error, exhausted
from worker.store import Claim, GraphRecord, Store
from worker.traces import for_origin
from worker.tracks import TIMEOUT, Pending, TrackRecord, Tracks, UnknownTrack

T = TypeVar("T")
End: TypeAlias = Literal["ready", "left"] | dict[str, Any]

_WAIT_ELSEWHERE_S = 1.0  # how often a job that waits for somebody else's build looks up
_PACE_S = 1.0  # between the beginnings of two versions of which the second was requested before the first was published
_PACE_LOOK_S = 0.05
_TELL_S = 1.0  # least time between two events that say how far one phase has come

_log = structlog.stdlib.get_logger("pcct.worker")


@dataclass
class Follower:
    """Drives the tracks of one worker process, one at a time.

    runner: builds with the threads of a refresh; hands nothing back to a queue. timeout_s: longest build of a version.
    pace_s: between the beginnings of two versions, the second of which was requested before the first was published.
    """

    store: Store
    tracks: Tracks
    runner: Runner
    timeout_s: float
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    pace_s: float = _PACE_S

    async def run_job(self, namespace: str, track: str, driver: str) -> None:
        """Drive a track; raises CancelledError only when the worker stops while the store is away."""
        follower = replace(
            self,
            store=self.store.within(namespace),
            tracks=self.tracks.within(namespace),
            runner=self.runner.within(namespace),
        )
        await follower._drive(track, driver)

    async def _drive(self, track: str, driver: str) -> None:
        delivery, begun = secrets.token_hex(8), -math.inf
        await self._patiently(lambda: self.tracks.enter(track, driver, delivery))
        while True:
            try:
                record = await self._patiently(lambda: self.tracks.track(track))
            except UnknownTrack:
                return
            if record.delivery != delivery:
                # Driven by another job; whoever handed the track over to it may have died before queueing it.
                await self._patiently(partial(self.tracks.ensure_driver, record))
                return
            pending = record.pending
            if pending is None:
                if await self._patiently(partial(self.tracks.release, record)):
                    return
            elif self.stopping.is_set() or (begun > -math.inf and await self._patiently(self.tracks.waiting) > 1):
                # A track that is refreshed all the time lets others through between two of its versions.
                await self._patiently(partial(self.tracks.hand_over, record))
                return
            elif time.monotonic() < begun + self.pace_s and not record.forced:
                await asyncio.sleep(_PACE_LOOK_S)
            else:
                now = time.monotonic()
                with for_origin(record.origin):
                    if await self._reach(record, pending):
                        begun = now

    async def _reach(self, record: TrackRecord, pending: Pending) -> bool:
        """Bring a version to its end, unless the worker stops; False when it was overtaken before it began."""
        begun = await self._patiently(partial(self.tracks.begin, record, pending.version))
        if begun is None:
            return False
        if begun.before not in ("", pending.graph):
            # A worker that died has left it running, and nobody will build it for the track any more.
            await self._patiently(partial(self.tracks.drop_build, record.id, begun.before))
        started = time.monotonic()
        end = await self._ended(record, pending)
        if isinstance(end, dict):
            await self._patiently(partial(self.tracks.fail_version, record, pending, end))
        elif end == "ready":
            times = {"queue_s": begun.queue_s, "build_s": time.monotonic() - started}
            await self._patiently(partial(self.tracks.publish_version, record.id, pending, **times))
        return True

    async def _ended(self, record: TrackRecord, pending: Pending) -> End:
        """Return how the version's build has ended: an error is a problem, "left" leaves it to another delivery."""
        expired = asyncio.Event()
        expiry = asyncio.create_task(self._expire(record, pending, expired), name="pcct refresh timeout")
        try:
            return await self._build(record, pending, expired)
        except Exception as error:
            problem = describe_error(error)
            if problem["type"] == "internal-error":
                _log.error("refresh failed", track=record.id, exc_info=error)
            return problem
        finally:
            await end_tasks([expiry])

    async def _build(self, record: TrackRecord, pending: Pending, expired: asyncio.Event) -> End:
        spec = GraphSpec.from_json(record.template | {"metric": pending.metric})
        attempts = self.runner.settings.max_attempts
        waited_for = record.forced or record.version == 0
        runner = self.runner if waited_for else self.runner.yielding()

        async def claim_graph() -> Claim:
            return await self.store.claim_graph(
                record.dataset,
                spec,
                record.id,
                record.delivery,
                max_attempts=attempts,
                exhausted=exhausted(attempts),
            )

        while True:
            claim = await self._patiently(claim_graph)
            if claim.standing == "started":
                notice = _Teller(self.tracks, record.id, pending)
                await runner.run_attempt(pending.graph, claim.attempt, notice)
            elif claim.standing == "unwanted":
                return "left"
            elif claim.standing == "elsewhere":
                await self._patiently(lambda: self.store.wait_graph(pending.graph, _WAIT_ELSEWHERE_S))
            graph = await self._patiently(lambda: self.store.graph(pending.graph))
            end = self._judge(graph, expired.is_set())
            if end is not None:
                return end

    def _judge(self, graph: GraphRecord | None, expired: bool) -> End | None:
        """Return how a build has ended, by the record of its graph; None while it has not."""
        if graph is not None and graph.state == "ready":
            return "ready"
        if expired:
            return _expired(self.timeout_s)
        if graph is not None and graph.state == "failed" and graph.error is not None:
            return graph.error
        if graph is None or graph.state == "cancelled":
            return _CANCELLED
        return "left" if self.stopping.is_set() else None

    async def _expire(self, record: TrackRecord, pending: Pending, expired: asyncio.Event) -> None:
        await asyncio.sleep(self.timeout_s)
        expired.set()
        with suppress(RedisError):
            await self._patiently(partial(self.tracks.drop_build, record.id, pending.graph))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        # All of it is small: what says that a version failed because the store is full must get there.
        return await patiently(call, self.stopping, full=True)


class _Teller:
    """Turns a build's progress into events: one for each phase, and one now and then while it lasts."""

    def __init__(self, tracks: Tracks, track: str, pending: Pending) -> None:
        self._tracks, self._track, self._pending = tracks, track, pending
        self._phase: object = None
        self._told = 0.0

    async def __call__(self, progress: Mapping[str, Any]) -> None:
        """Tell progress, unless it was told a moment ago."""
        now = time.monotonic()
        if progress["phase"] != self._phase or now - self._told >= _TELL_S:
            self._phase, self._told = progress["phase"], now
            await self._tracks.tell_progress(self._track, self._pending, progress)


_CANCELLED = {
    "type": "cancelled",
    "title": "The build was cancelled",
    "detail": "the graph was deleted while it was built for this track; refresh the track to ask for it again",
}


def _expired(timeout_s: float) -> dict[str, Any]:
    detail = (
        f"the build took longer than PCCT_REFRESH_TIMEOUT_S ({timeout_s:g} s) and was given up; "
        "use fewer points or a smaller k, or allow more time"
    )
    return {"type": TIMEOUT, "title": "The refresh took too long", "detail": detail}
