"""The address of the store: what a URL must be, how it is shown, and a store that answers it with a refusal."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from pcct_core.errors import InvalidInput

if TYPE_CHECKING:
    from redis import Redis

VARIABLE = "PCCT_REDIS_URL"
_SCHEMES = ("redis", "rediss", "unix")
_USUAL = "redis://HOST:PORT/0"
# redis-py's own name for a protocol or another product, which mean one of ours.
_MEANT = {"valkey": "redis", "valkeys": "rediss", "tcp": "redis", "redis+ssl": "rediss", "redis+socket": "unix"}


class WrongStoreUrl(InvalidInput):
    """The store is there and refuses what the URL says: its password, or its database."""


def check_store_url(url: str) -> str:
    """Return the URL; raises ValueError, which says how to write it, for one by which no store can be reached."""
    if url != url.strip():
        raise ValueError(f"it begins or ends with a space or a line's end; write {without_password(url.strip())}")
    scheme, mark, rest = url.partition("://")
    if not mark:
        meant = f"unix://{url}" if url.startswith("/") else f"redis://{url.removeprefix('redis:').lstrip('/')}"
        raise ValueError(f"it has no scheme; write {without_password(meant)}")
    if scheme not in _SCHEMES:
        if scheme.lower() in _SCHEMES:
            raise ValueError(f"its scheme is in capitals; write {without_password(f'{scheme.lower()}://{rest}')}")
        meant = f"{_MEANT.get(scheme, 'redis')}://{rest}"
        raise ValueError(
            f"{scheme}:// is no scheme of a store; use redis://, rediss:// or unix://, as in {without_password(meant)}"
        )
    if scheme == "unix":
        _check_database(dict(parse_qsl(urlsplit(url).query)).get("db", "0"), "?db=0")
        if not urlsplit(url).path:
            raise ValueError("it names no socket; write unix:///PATH/OF/THE/SOCKET")
    else:
        try:
            urlsplit(url).port  # noqa: B018  (raises for what is no port)
        except ValueError:
            raise ValueError(
                f"its port is not a number from 0 to 65535; write {_USUAL}, with / as %2F and @ as %40 in a password"
            ) from None
        parts = urlsplit(url)
        _check_database(unquote(parts.path).strip("/") or "0", "/0 behind the port")
        _check_database(dict(parse_qsl(parts.query)).get("db", "0"), "/0 behind the port")
    _check_options(url)
    return url


def _check_database(text: str, example: str) -> None:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"the database {text!r} is not a number; write {example}")


def _check_options(url: str) -> None:
    """Raise ValueError for an option behind ? that no connection takes."""
    from redis.asyncio import ConnectionPool
    from redis.exceptions import RedisError

    try:
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, RedisError) as error:
        words = re.sub(r"^.*got an unexpected keyword argument", "no connection takes", str(error))
        raise ValueError(f"{words}; leave out what stands behind ?, or correct it") from None


def without_password(url: str) -> str:
    """Return a URL as it may be shown, whatever is wrong with it: without user and password."""
    before, at, behind = url.rpartition("@")
    scheme, mark, _ = before.partition("://")
    return f"{scheme}{mark}…@{behind}" if at and mark else f"…@{behind}" if at else url


def check_store_answers(url: str, timeout_s: float) -> str | None:
    """Return why the store does not answer within timeout_s seconds, as it may later, None when it does.

    Raises WrongStoreUrl where it answers that its password or database is another. Names are looked up in a thread, for the
    look-up of one that no server knows can be neither bounded nor broken off.
    """
    found: list[Exception | None] = []
    asking = threading.Thread(target=lambda: found.append(_ask(url, timeout_s)), name="pcct store check", daemon=True)
    asking.start()
    asking.join(timeout_s)
    if not found:
        return f"it did not answer within {timeout_s:g} s"
    (error,) = found
    fix = None if error is None else _fix(error)
    if fix is not None:
        raise WrongStoreUrl(f"{VARIABLE}={without_password(url)}: the store refuses it ({error}); {fix}") from None
    return None if error is None else str(error)


def _ask(url: str, timeout_s: float) -> Exception | None:
    """Return the error that a store answers or that reaching it ends with, None for a good answer."""
    from redis import Redis
    from redis.exceptions import RedisError

    client: Redis = Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None)
    try:
        client.ping()
    except (RedisError, OSError) as error:
        return error
    finally:
        client.close()
    return None


def _fix(error: Exception) -> str | None:
    """Return what to do about a refusal that lasts until the URL is changed, None for any other error."""
    from redis.exceptions import AuthenticationError, ResponseError

    if isinstance(error, AuthenticationError) or "NOAUTH" in str(error):
        return f"give its password, as in redis://:PASSWORD@HOST:PORT/0; {VARIABLE} is read at the start"
    if isinstance(error, ResponseError) and "DB index" in str(error):
        return "use a database that the store has, mostly one of 0 to 15: /0 behind the port"
    return None
