"""`python -P -m worker.alive`, for health checks: exit status 0 while a worker of this host says that it is alive, else 1."""

from __future__ import annotations

import asyncio
import socket
import sys

from redis.exceptions import RedisError

from worker.settings import WorkerSettings
from worker.store import Store


async def find_fault(settings: WorkerSettings) -> str | None:
    """Return why no worker of this host counts as alive, None when one does."""
    store = Store.from_settings(settings)
    try:
        names = [worker.name for worker in await store.workers()]
    except RedisError as error:
        return f"the store does not answer: {error}"
    finally:
        await store.aclose()
    host = socket.gethostname()
    if any(name.startswith(f"{host}-") for name in names):
        return None
    return f"no worker of {host} has said lately that it is alive; start one with `pcct work`"


def main() -> int:
    """Print what is wrong, if anything is, and return the exit status."""
    fault = asyncio.run(find_fault(WorkerSettings()))
    if fault is not None:
        print(fault, file=sys.stderr)
    return 0 if fault is None else 1


if __name__ == "__main__":
    sys.exit(main())
