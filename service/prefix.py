"""The path that a proxy puts before ours: taken off requests, put before every path that an answer names.

A service at https://host/pcct/v1/… is reached by a proxy that hands the path on with /pcct or without; both are understood.
"""

from __future__ import annotations

import re
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = "X-Forwarded-Prefix"
_SEGMENTS = re.compile(r"(/[A-Za-z0-9._~-]+)*", re.ASCII)
_MOST = 200

_prefix: ContextVar[str] = ContextVar("pcct_prefix", default="")


def checked_prefix(text: str) -> str:
    """Return a prefix as "/a/b", "" for none; raises ValueError for what is no path of letters, digits and . _ ~ -."""
    path = f"/{text.strip('/')}" if text.strip("/") else ""
    if not _SEGMENTS.fullmatch(path) or len(path) > _MOST or {".", ".."} & {*path.split("/")}:
        raise ValueError("it is no path; use one such as /pcct, of letters, digits and . _ ~ -")
    return path


def set_prefix(prefix: str) -> None:
    """Put the prefix before all paths that this task, and those that it starts, name from now on."""
    _prefix.set(prefix)


def link(path: str) -> str:
    """Return a path of ours, such as /v1/graphs/…, as the client reaches it."""
    return _prefix.get() + path


class Prefixed:
    """Wraps an application: routes see paths without the prefix, and without a slash at their end.

    prefix: of the settings. trusted: X-Forwarded-Prefix is believed, and is then the prefix of its request.
    """

    def __init__(self, app: ASGIApp, prefix: str, *, trusted: bool) -> None:
        self._app = app
        self._prefix = prefix
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            prefix = self._prefix_of(scope)
            set_prefix(prefix)
            path = scope["path"]
            if prefix and (path == prefix or path.startswith(f"{prefix}/")):
                path = path[len(prefix) :]
            # The framework takes the root path off again, so it must be there whether the proxy has left it or not.
            scope = {**scope, "root_path": prefix, "path": prefix + (path.rstrip("/") or "/")}
        await self._app(scope, receive, send)

    def _prefix_of(self, scope: Scope) -> str:
        said = Headers(scope=scope).get(HEADER) if self._trusted else None
        if said is None:
            return self._prefix
        try:
            return checked_prefix(said.partition(",")[0].strip())
        except ValueError:
            return self._prefix
