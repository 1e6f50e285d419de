"""The API process: uvicorn around the application."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from redis.exceptions import RedisError

from service import lifeline
from service.access import needs_key
from service.app import create_app
from service.backend import Backend
from service.connections import bounded_protocol, raise_file_limit
from service.prefix import set_prefix
from service.settings import ServiceSettings
from service.up import open_listener
from worker.absence import Absence
from worker.logs import configure_logs
from worker.signals import remember_signals
from worker.store import Store
from worker.traces import start_traces, stop_traces

_CLOSE_S = 3  # open requests, such as downloads, get this long when the process stops


class Server(uvicorn.Server):
    """uvicorn, which tells the application that it stops only after all open requests have ended; this tells it before.

    told: the signals that came before it ran.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, told: list[int]) -> None:
        super().__init__(config)
        self._app = app
        self._told = told

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and stop at once when a signal has come before."""
        await super().startup(sockets)
        self.should_exit = self.should_exit or bool(self._told)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal; a second one changes nothing, for what is left takes seconds."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let long polls and event streams end, then stop."""
        backend: Backend = self._app.state.backend
        backend.stopping.set()
        await super().shutdown(sockets)


async def _check_layout(settings: ServiceSettings) -> None:
    """Raise NewerLayout for a store of a later release; one that is away is looked at by /readyz once it is there."""
    store = Store.from_settings(settings)
    try:
        await store.check_layout()
    except RedisError:
        pass
    finally:
        await store.aclose()


def run_api(
    settings: ServiceSettings,
    host: str,
    port: int,
    *,
    absence: Absence | None = None,
    listen_fd: int | None = None,
    lifeline_fd: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; raises UpError when the address cannot be had, NewerLayout for a later release's store.

    absence: what was told of the store before, None for nothing.
    listen_fd: a listening socket handed down, instead of host and port. lifeline_fd: the parent's pipe, if any.
    """
    configure_logs(settings)
    start_traces("pcct-api")
    told = remember_signals()  # until the server, which has handlers of its own, runs, and after
    if lifeline_fd is not None:
        lifeline.follow(lifeline_fd)
    listener = open_listener(host, port) if listen_fd is None else socket.socket(fileno=listen_fd)
    settings = settings.model_copy(update={"auth": "on" if needs_key(settings.auth, listener) else "off"})
    if listen_fd is None:
        print(f"pcct serves http://{host}:{listener.getsockname()[1]}", flush=True)
    asyncio.run(_check_layout(settings))
    set_prefix(settings.root_path)  # of what is said to connections that no request comes of
    app = create_app(settings, absence)
    raise_file_limit()
    Server(server_config(app, settings), app, told).run(sockets=[listener])
    stop_traces()


def server_config(app: FastAPI, settings: ServiceSettings, *, close_s: int = _CLOSE_S) -> uvicorn.Config:
    """Return how the application is served. close_s: how long open requests get when the process stops."""
    return uvicorn.Config(
        app,
        http=bounded_protocol(settings.head_s, settings.max_connections),
        log_config=None,
        log_level=settings.log_level if settings.log_level != "info" else "warning",
        access_log=False,  # `traffic` writes those lines
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=close_s,
    )
