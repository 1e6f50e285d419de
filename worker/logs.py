"""One log for every process of ours: plain lines or JSON on standard error, libraries included.

What is done for one request says so in each of its lines, by `request_id`, from the API into the worker that builds.
Nothing here logs a password or a key; lines of libraries may, so each line is searched for them before it is written.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from socket import gaierror
from typing import Any

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, get_contextvars

from worker.settings import SharedSettings

_QUEUE = "docket"
_REQUEST_ID = "request_id"

# The password of a URL; what an Authorization header or a redis AUTH carries; one of our keys.
_SECRETS = (
    (re.compile(r"(\w://[^\s/:@'\"]*:)[^\s/@'\"]+(?=@)"), r"\1…"),
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"), r"\1…"),
    (re.compile(r"(?i)((?:password|x-api-key)['\"]?\s*[=:]\s*['\"]?)[^\s'\",)]+"), r"\1…"),
    (re.compile(r"\bpcct_[0-9A-Za-z]+_[\w-]{20,}"), "pcct_…"),
)


class Outage:
    """Chooses which of the many failures of one outage are told: the first, then one at pauses that double up to a minute.

    A failure after a quiet minute belongs to another outage. clock: seconds that only grow. first_s: the first pause.
    """

    _LONGEST_S = 60.0

    def __init__(self, clock: Callable[[], float] = time.monotonic, first_s: float = 1.0) -> None:
        self._clock = clock
        self._first_s = first_s
        self._last = self._told = -math.inf
        self._pause_s = 0.0

    def tells(self) -> bool:
        """Take one more failure; return whether it is to be told."""
        now = self._clock()
        if now - self._last > self._LONGEST_S:
            self._told, self._pause_s = -math.inf, 0.0
        self._last = now
        if now - self._told < self._pause_s:
            return False
        self._told, self._pause_s = now, min(self._LONGEST_S, 2 * self._pause_s or self._first_s)
        return True


_queue_outage = Outage(first_s=30.0)  # worker.absence has told of it, and by the name of the store


def configure_logs(settings: SharedSettings) -> None:
    """Send structlog and standard logging to standard error in the settings' format and level."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor
    if settings.log_format == "json":
        last: list[structlog.typing.Processor] = [structlog.processors.dict_tracebacks]
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        last = []
        renderer = structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, renderer, _hide_secrets],
        )
    )
    handler.addFilter(_one_line)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # Every job is logged once, in our words; the queue's own lines matter from warning up.
    logging.getLogger(_QUEUE).setLevel(max(logging.WARNING, root.level))


def without_secrets(text: str) -> str:
    """Return a text with … in the place of passwords and keys."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def set_request_id(id: str) -> None:
    """Put a request's id into every line that this task logs from now on, and the tasks that it starts."""
    bind_contextvars(**{_REQUEST_ID: id})


def request_id() -> str:
    """Return the id of the request that this task works for, "" when there is none."""
    return str(get_contextvars().get(_REQUEST_ID, ""))


def on_behalf_of(id: str) -> AbstractContextManager[None]:
    """Return a context whose lines carry a request's id; "" changes nothing."""
    return bound_contextvars(**({_REQUEST_ID: id} if id else {}))


def _hide_secrets(_logger: object, _name: str, line: Any) -> str:
    return without_secrets(str(line))


def _one_line(record: logging.LogRecord) -> bool:
    """Reduce what the queue says of an outage, which it survives, to one line without its traceback, and few of these."""
    error = record.exc_info[1] if record.exc_info else None
    if not record.name.startswith(_QUEUE):
        # uvloop looks a name up for every connection, and asyncio tells of each that nobody waited for to the end.
        return not (record.name == "asyncio" and isinstance(error, gaierror))
    if (error is not None or "Redis" in record.getMessage()) and not _queue_outage.tells():
        return False
    if error is not None:
        record.msg = f"{record.getMessage()} ({type(error).__name__}: {error})"
        record.args = ()
        record.exc_info = None
    return True
