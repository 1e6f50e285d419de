"""`pcct keys`: make, list and revoke API keys, in the store that the service uses or will use."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from redis.exceptions import RedisError

from pcct_core.errors import PcctError
from service.api_keys import REMEMBERED_S, ApiKey, ApiKeys
from service.embedded import EmbeddedStore, running_url
from service.processes import Lifeline
from worker.settings import SharedSettings
from worker.store import open_redis
from worker.store_url import without_password

T = TypeVar("T")


class KeyringError(PcctError):
    """The keys cannot be reached, or there is no such key."""


def create_key(settings: SharedSettings, namespace: str, scope: str, label: str) -> None:
    """Make a key; its text is all that goes to standard output, so that a script can keep it."""
    key, text = _with_keys(settings, lambda keys: keys.create(namespace, scope, label))
    print(text, flush=True)
    print(
        f"pcct: key {key.id} may {key.scope} in the namespace {key.namespace}; its text is not shown again",
        file=sys.stderr,
    )


def list_keys(settings: SharedSettings) -> None:
    """Print all keys as a table, without their secrets."""
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "namespace", "scope", "created", "label")
    for key in _with_keys(settings, lambda keys: keys.list()):
        table.add_row(*_row(key))
    Console(soft_wrap=True).print(table)


def revoke_key(settings: SharedSettings, id: str) -> None:
    """Remove a key; raises KeyringError when there is none of that id."""
    if not _with_keys(settings, lambda keys: keys.revoke(id)):
        raise KeyringError(f"there is no key {id}; see pcct keys list")
    print(f"key {id} is refused from now on; processes that have just seen it follow within {REMEMBERED_S:g} s")


def _row(key: ApiKey) -> tuple[str, ...]:
    created = datetime.fromtimestamp(key.created_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return key.id, key.namespace, key.scope, created, key.label


def _with_keys(settings: SharedSettings, call: Callable[[ApiKeys], Awaitable[T]]) -> T:
    with _store_url(settings) as url:

        async def ask() -> T:
            redis = open_redis(settings.model_copy(update={"redis_url": url}))
            try:
                return await call(ApiKeys(redis))
            except RedisError as error:
                raise KeyringError(
                    f"the store at {without_password(url)} does not answer ({error}); look at PCCT_REDIS_URL"
                ) from error
            finally:
                await redis.aclose()

        return asyncio.run(ask())


@contextmanager
def _store_url(settings: SharedSettings) -> Iterator[str]:
    """Give the store that PCCT_REDIS_URL names, else that of the data directory, which is started if it does not run."""
    url = settings.redis_url or running_url(settings.data_dir)
    if url is not None:
        yield url
        return
    lifeline = Lifeline()
    store = EmbeddedStore(settings.data_dir, lifeline)
    try:
        store.start()
        yield store.url
    finally:
        store.stop()
        lifeline.close()
