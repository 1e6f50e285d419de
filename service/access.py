"""Who may call what: every request to a store's data passes `Access` first, which gives it its namespace.

Reading needs the scope read, everything else that touches data write, and what shows the whole deployment admin. Which
routes are which stands in `app`; routes that say nothing of the store are open.
"""

from __future__ import annotations

import ipaddress
import math
import re
import socket
import time
from typing import Any, cast

from fastapi import Depends, Request, Security
from fastapi.params import Depends as Dependency
from fastapi.security import APIKeyHeader, HTTPBearer
from limits import RateLimitItem, parse_many
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from pcct_core.errors import PcctError
from service.api_keys import ApiKeys, Scope
from service.settings import AuthMode
from worker.keys import DEFAULT_NAMESPACE

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_SET_BACK_S = 1.0  # a wall clock that goes back by more was set
_KEY_IN_URL = re.compile("pcct_[0-9A-Za-z]+_[0-9A-Za-z_-]{20}")
_UNIX = "unix"  # who calls through a socket file has no address


class Unauthenticated(PcctError):
    """The request has no API key that is valid; `headers` say how to send one."""

    def __init__(self, given: bool) -> None:
        fix = "send `Authorization: Bearer KEY`; an operator makes keys with `pcct keys create`"
        super().__init__(f"the API key is not valid here; {fix}" if given else f"this service needs an API key; {fix}")
        self.headers = {"WWW-Authenticate": 'Bearer realm="pcct"' + (', error="invalid_token"' if given else "")}


class KeyInUrl(Unauthenticated):
    """The URL holds an API key, which logs and histories on the way now hold too."""

    def __init__(self) -> None:
        super().__init__(True)
        self.args = (
            "the URL holds an API key, and URLs are written into logs; revoke this key, and send another one as "
            "`Authorization: Bearer KEY`",
        )


class ScopeTooSmall(PcctError):
    """The key is valid and does not allow this."""

    def __init__(self, has: Scope, needs: Scope) -> None:
        super().__init__(f"this needs a key with the scope {needs}, yours has {has}; use another key")
        self.headers = {"WWW-Authenticate": f'Bearer realm="pcct", error="insufficient_scope", scope="{needs}"'}


class RateLimited(PcctError):
    """The caller has used up its rate; `headers` say when to try again, and what the limits are."""

    def __init__(self, limit: RateLimitItem, wait_s: int, limits: tuple[RateLimitItem, ...]) -> None:
        super().__init__(f"more than {_words(limit)}; try again in {wait_s} s, and ask less often")
        self.headers = {
            "Retry-After": str(wait_s),
            "RateLimit": f'"{_name(limit)}";r=0;t={wait_s}',
            "RateLimit-Policy": ", ".join(f'"{_name(item)}";q={item.amount};w={item.get_expiry()}' for item in limits),
        }


class UnsafeExposure(PcctError):
    """The service would be open to others without keys."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"{host} can be reached from other machines, and nobody said whether callers need a key; "
            "set PCCT_AUTH=on (make a key with `pcct keys create`), or PCCT_AUTH=off if all who reach it may do everything"
        )


class Limiter:
    """Rates by caller, counted in this process.

    Not in the store: a count there would cost every poll a second round trip, and would fail with the store. Several API
    processes behind one address allow each their own rate.
    """

    def __init__(self, text: str) -> None:
        self._limits = tuple(parse_many(text))
        self._latest = 0.0
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def count(self, caller: str) -> None:
        """Count a request; raises RateLimited."""
        now = time.time()
        if now < self._latest - _SET_BACK_S:
            # `limits` counts by the wall clock: one that was set back would lock everybody out for as long.
            self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._latest = now
        for limit in self._limits:
            if not await self._windows.hit(limit, caller):
                reset = (await self._windows.get_window_stats(limit, caller)).reset_time
                raise RateLimited(limit, max(1, math.ceil(reset - time.time())), self._limits)


class Access:
    """Admits requests, or says why not. keys: None when nobody needs one. limiter: None for any rate."""

    def __init__(self, keys: ApiKeys | None, limiter: Limiter | None) -> None:
        self._keys = keys
        self._limiter = limiter

    async def admit(self, request: Request, scope: Scope) -> str:
        """Return the namespace that a request works in; raises Unauthenticated, ScopeTooSmall, RateLimited or RedisError."""
        if self._keys is None:
            await self._count(_address(request))
            return DEFAULT_NAMESPACE
        if _KEY_IN_URL.search(request.url.query):
            raise KeyInUrl
        text = _given(request)
        key = None if text is None else await self._keys.find(text)
        # Who has no valid key is counted too, by address: each wrong one costs the store a look.
        await self._count(_address(request) if key is None else key.id)
        if key is None:
            raise Unauthenticated(text is not None)
        if not key.allows(scope):
            raise ScopeTooSmall(key.scope, scope)
        return key.namespace

    async def _count(self, caller: str) -> None:
        if self._limiter is not None:
            await self._limiter.count(caller)


def needs_key(mode: AuthMode, listener: socket.socket) -> bool:
    """Return whether callers of a listening socket need a key; raises UnsafeExposure when that must be said first."""
    if mode == "auto" and not _is_private(listener):
        raise UnsafeExposure(str(listener.getsockname()[0]))
    return mode == "on"


def guarded(keys: bool, admin: bool = False) -> list[Dependency]:
    """Return what stands before the routes of a resource. keys: whether the OpenAPI document says that they need one."""
    admitted = cast(Dependency, Depends(_admit_admin if admin else _admit))
    return [*(_SCHEMES if keys else ()), admitted]


_SCHEMES: tuple[Any, ...] = (
    Security(HTTPBearer(scheme_name="bearer", description="`Authorization: Bearer KEY`", auto_error=False)),
    Security(APIKeyHeader(name="X-API-Key", scheme_name="header", description="`X-API-Key: KEY`", auto_error=False)),
)


async def admit_reader(request: Request) -> None:
    """Admit a request that only reads, before its dependencies do, which then find it admitted; raises as `Access.admit`."""
    await _enter(request, "read")


async def _admit(request: Request) -> None:
    if not hasattr(request.state, "namespace"):
        await _enter(request, "read" if request.method in _READING else "write")


async def _admit_admin(request: Request) -> None:
    await _enter(request, "admin")


async def _enter(request: Request, scope: Scope) -> None:
    access: Access = request.app.state.access
    request.state.namespace = await access.admit(request, scope)


def _given(request: Request) -> str | None:
    """Return the key that a request carries."""
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    return text.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key")


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else _UNIX


def _is_private(listener: socket.socket) -> bool:
    if listener.family == socket.AF_UNIX:
        return True
    address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _name(limit: RateLimitItem) -> str:
    return f"{limit.amount}/{limit.get_expiry()}s"


def _words(limit: RateLimitItem) -> str:
    return f"{limit.amount} requests in {limit.get_expiry()} s"
