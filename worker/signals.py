"""Signals that ask a process to end before its event loop hears them."""

from __future__ import annotations

import signal


def remember_signals() -> list[int]:
    """Return a list that SIGTERM and SIGINT add their numbers to from now on, until an event loop or a server handles them.

    Without it an interrupt that comes while the event loop starts would cancel its first task, and a client of the store that
    is connecting then swallows the cancellation.
    """
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: told.append(number))
    return told
