"""Calls made again where that can help: every call of ours may be repeated, for what it names is named by its content."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TypeVar

from pcct_client.calls import Call, Flow, Pause, Reply, refused
from pcct_client.errors import RateLimited, ServerUnavailable, TruncatedAnswer

T = TypeVar("T")

_AWAY = (429, 502, 503, 504)
_LONGEST_WAIT_S = 60.0  # asked to wait for longer, the caller is told instead


@dataclass(frozen=True)
class Retries:
    """How often and after how long a call is made again.

    count: at most so many times. first_s, longest_s: pauses double from the first to the longest, each shortened by up to a
    half at random, so that those that were turned away together do not come back together. With the defaults a service may
    be away for 6 to 12 seconds, about what a restart takes.
    """

    count: int = 5
    first_s: float = 0.4
    longest_s: float = 6.0

    def pause_s(self, attempt: int, asked_s: float | None) -> float:
        """Return the seconds before the next attempt; attempt: how many have failed but one. asked_s: by the service."""
        backoff_s = min(self.longest_s, self.first_s * 2.0 ** min(attempt, 30))
        if asked_s is not None:
            return asked_s + random.uniform(0.0, min(1.0, backoff_s / 2))  # noqa: S311  (spreads load, keeps no secret)
        return backoff_s * random.uniform(0.5, 1.0)  # noqa: S311


def retried(flow: Flow[T], retries: Retries) -> Flow[T]:
    """Run a flow whose calls are made again while the service is away, restarts, or is too busy."""
    try:
        step = next(flow)
        while True:
            try:
                value = (yield from _repeated(step, retries)) if isinstance(step, Call) else (yield step)
            except GeneratorExit:
                flow.close()
                raise
            except BaseException as error:  # an interrupt too: the flow cancels what it has begun
                step = flow.throw(error)
            else:
                step = flow.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _repeated(call: Call, retries: Retries) -> Flow[Reply]:
    """Make a call until it is answered for good; the last answer or error stands when repeating is over."""
    for attempt in itertools.count():
        reply: Reply | None = None
        try:
            reply = yield call
            if reply.status not in _AWAY:
                return reply
            error: Exception = refused(reply)
        except (ServerUnavailable, TruncatedAnswer) as failed:
            error = failed
        asked_s = error.retry_after_s if isinstance(error, ServerUnavailable | RateLimited) else None
        pause_s = retries.pause_s(attempt, asked_s)
        hopeless = isinstance(error, ServerUnavailable) and not error.can_repeat
        too_long = pause_s > _LONGEST_WAIT_S or call.deadline.left_s(pause_s) < pause_s
        if attempt >= retries.count or hopeless or too_long:
            if reply is None:
                raise error
            return reply
        yield Pause(pause_s)
    raise AssertionError("unreachable")
