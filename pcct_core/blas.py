"""One thread per BLAS call while our own threads are at work, so that the two do not multiply."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController, threadpool_limits

_lock = threading.Lock()
_users = 0
_limits: threadpool_limits | None = None


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit every BLAS of this process to one thread per call until the last of overlapping blocks ends.

    The setting belongs to the process: BLAS calls of other threads are limited too while a block is open.
    """
    import scipy.linalg  # noqa: F401  (Numba's matrix products call its BLAS, which can only be limited once it is loaded)

    global _users, _limits
    with _lock:
        if _users == 0:
            _limits = ThreadpoolController().limit(limits=1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _limits is not None:
                _limits.restore_original_limits()
                _limits = None
