import email.utils
import time

import httpx
import numpy as np
import pytest

from pcct_client import BadAnswer, NotFound, RateLimited, ServerUnavailable, TruncatedAnswer, WaitTimeout
from pcct_client.calls import Call, Deadline, Pause, Reply, accepted, upload
from pcct_client.retry import Retries, retried

RETRIES = Retries(count=3, first_s=1.0, longest_s=3.0)


def ask(deadline=None):
    return accepted((yield Call("GET", "v1/graphs/g", deadline or Deadline(None))))


def said(status, **headers):
    return Reply(status, httpx.Headers(headers), b'{"id": "x"}')


def drive(flow, answers):
    """Run a flow on answers instead of the network: (result or error, pauses, calls)."""
    answers, pauses, calls = iter(answers), [], 0
    try:
        step = next(flow)
        while True:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                step = flow.send(None)
                continue
            assert isinstance(step, Call)
            calls += 1
            answer = next(answers)
            step = flow.throw(answer) if isinstance(answer, BaseException) else flow.send(answer)
    except StopIteration as stop:
        return stop.value, pauses, calls
    except BaseException as error:
        return error, pauses, calls


@pytest.mark.parametrize(
    "failure",
    [said(503), said(502), said(504), said(429), ServerUnavailable("refused"), TruncatedAnswer("cut")],
    ids=["503", "502", "504", "429", "refused", "cut short"],
)
def test_retried_makes_a_call_again_after_growing_pauses(failure):
    result, pauses, calls = drive(retried(ask(), RETRIES), [failure, failure, failure, said(200)])
    assert (result, calls) == ({"id": "x"}, 4)
    assert all(bound / 2 <= pause <= bound for pause, bound in zip(pauses, [1.0, 2.0, 3.0], strict=True))


@pytest.mark.parametrize(
    ("failure", "error"),
    [(said(503), ServerUnavailable), (said(429), RateLimited), (TruncatedAnswer("cut"), TruncatedAnswer)],
)
def test_retried_gives_up_in_the_end(failure, error):
    result, pauses, calls = drive(retried(ask(), RETRIES), [failure] * 9)
    assert (type(result), len(pauses), calls) == (error, 3, 4)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (said(404), NotFound),
        (BadAnswer("no pcct"), BadAnswer),
        (WaitTimeout("late"), WaitTimeout),
        (ServerUnavailable("never there", can_repeat=False), ServerUnavailable),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_retried_does_not_repeat_what_cannot_help(failure, error):
    result, pauses, calls = drive(retried(ask(), RETRIES), [failure] * 9)
    assert (type(result), pauses, calls) == (error, [], 1)


@pytest.mark.parametrize("status", [429, 503])
def test_retried_waits_as_long_as_it_was_asked_to(status):
    _, (pause,), _ = drive(retried(ask(), RETRIES), [said(status, **{"Retry-After": "7"}), said(200)])
    assert 7.0 <= pause <= 8.0


def test_retried_reads_a_date_in_retry_after():
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    _, (pause,), _ = drive(retried(ask(), RETRIES), [said(503, **{"Retry-After": date}), said(200)])
    assert 25.0 < pause <= 31.0
    _, (pause,), _ = drive(retried(ask(), RETRIES), [said(503, **{"Retry-After": "soon"}), said(200)])
    assert pause <= 1.0


def test_retried_does_not_wait_past_the_deadline_or_for_ever():
    result, pauses, _ = drive(retried(ask(Deadline(5.0)), RETRIES), [said(503, **{"Retry-After": "7"})])
    assert isinstance(result, ServerUnavailable)
    assert (result.retry_after_s, pauses) == (7.0, [])
    result, pauses, _ = drive(retried(ask(), RETRIES), [said(503, **{"Retry-After": "3600"})])
    assert (result.retry_after_s, pauses) == (3600.0, [])


def test_retried_passes_other_steps_on():
    flow = retried(upload(np.eye(2), Deadline(None)), RETRIES)
    step = next(flow)
    head = flow.send(step.work())
    assert head.method == "HEAD"
    assert isinstance(flow.throw(ServerUnavailable("away")), Pause)
    assert next(flow) is head
    flow.close()


def test_retries_of_the_default_last_as_long_as_a_restart():
    shortest = sum(Retries().pause_s(attempt, None) for attempt in range(Retries.count))
    assert 5.0 <= shortest <= 15.0


def test_pauses_differ_between_clients():
    assert len({RETRIES.pause_s(1, None) for _ in range(20)}) > 10
    assert len({RETRIES.pause_s(1, 2.0) for _ in range(20)}) > 10
