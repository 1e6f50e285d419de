"""Every request has an id: the client's own `X-Request-Id`, or a new one. It is in the answer and in every line of the log.

Every answer also says which version of the contract it keeps, also where there is nothing at the path.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.logs import set_request_id

HEADER = "X-Request-Id"

# What a client must speak to be understood: it goes up when an answer changes in a way that clients cannot ignore.
CONTRACT_HEADER, CONTRACT = "Pcct-Contract", "1"

# Short, and without what could end a line of a log or begin markup in whatever shows it.
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}", re.ASCII)


class RequestIds:
    """Wraps an application; it stands outside of the one that answers for failures, whose answers have ids too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request under its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = sane_id(Headers(scope=scope).get(HEADER)) or secrets.token_hex(8)
        # Never unset: the server logs a failure in this task when we have ended, and the task serves one request.
        set_request_id(id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER] = id
                headers[CONTRACT_HEADER] = CONTRACT
            await send(message)

        await self._app(scope, receive, send_with_id)


def sane_id(text: str | None) -> str | None:
    """Return the id when it has 1 to 128 letters, digits and . _ : @ / + = -, beginning with a letter or digit, else None."""
    return text if text is not None and _SANE.fullmatch(text) else None
