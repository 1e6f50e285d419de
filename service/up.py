"""`pcct up`: the embedded store, the API and the workers as one process tree that starts, stays and stops together."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from pcct_core.errors import PcctError
from pcct_core.files import find_code_directory
from service.embedded import EmbeddedStore
from service.processes import Child, Lifeline, own_command
from worker.settings import WorkerSettings, numba_cache_dir
from worker.store_url import without_password

_LOOK_S = 0.05
_PROBE_S = 0.1
_PROBE_TIMEOUT_S = 5.0
_SAY_EVERY_S = 2.0  # while it starts or stops
_MOST_FAILURES = 5  # before the first readiness; afterwards children are started again for ever
_STOP_S = 15.0


class UpError(PcctError):
    """The service cannot be started; the message says why and what to do."""


class _StopRequested(BaseException):
    """SIGTERM or SIGINT has arrived."""


def run_up(settings: WorkerSettings, host: str, port: int, workers: int) -> None:
    """Run everything until SIGTERM or SIGINT; raises UpError or EmbeddedStoreError when it cannot be started.

    port: 0 for any free one. workers: number of worker processes.
    """
    lifeline = Lifeline()
    tree: _Tree | None = None
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _request_stop)
        with open_listener(host, port) as listener:
            with _Teller("pcct is starting", _say) as teller:
                _check_exposure(listener)
                tree = _start(settings, listener, lifeline, workers)
                _say(f"pcct keeps its data in {tree.home}")
                _wait_ready(tree, _Probe(_reachable(host), listener.getsockname()[1]), teller)
            _say(f"pcct ready at http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")
            _stay(tree)
    except _StopRequested:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if tree is not None:
            with _Teller("stopping: builds are handed back and the store writes its data", _warn):
                tree.stop()
        # Ends whatever was started before a signal cut the start short.
        lifeline.close()


def open_listener(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises UpError when the address cannot be had.

    It listens before the API runs, so its port is known at once and early requests wait instead of failing.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UpError(f"{host} is not an address of this machine ({error.strerror}); choose another --host") from error
    # With its protocol, by which asyncio knows that it must not let short answers wait for more to send (Nagle).
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UpError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port, or 0 for any free one"
        ) from error
    return listener


@dataclass
class _Tree:
    """All that runs. home: where the data lies, for people."""

    store: EmbeddedStore | None
    children: Sequence[Child]
    home: str

    def look_after(self) -> None:
        """Start again whatever has died, and say so."""
        lines = [child.look_after() for child in self.children]
        lines.append(self.store.look_after() if self.store is not None else None)
        for line in lines:
            if line is not None:
                _warn(line)

    def stop(self) -> None:
        """Stop API and workers first: they still write to the store."""
        for child in self.children:
            child.stop()
        for child in self.children:
            child.join(_STOP_S)
        if self.store is not None:
            self.store.stop()


def _start(settings: WorkerSettings, listener: socket.socket, lifeline: Lifeline, workers: int) -> _Tree:
    store: EmbeddedStore | None = None
    home = without_password(settings.store_url)
    if settings.redis_url is None:
        store = EmbeddedStore(settings.data_dir, lifeline)
        store.start()
        settings = settings.model_copy(update={"redis_url": store.url})
        home = str(store.data_dir)
    environment = settings.to_environment() | _kernel_cache()

    def child(name: str, arguments: list[str], fds: tuple[int, ...]) -> Child:
        command = own_command("service.cli", *arguments, "--lifeline-fd", str(lifeline.fd))
        return Child(name, command, environment, (lifeline.fd, *fds))

    children = [child("API", ["serve", "--listen-fd", str(listener.fileno())], (listener.fileno(),))]
    children += [child(f"worker {number}", ["work"], ()) for number in range(1, workers + 1)]
    tree = _Tree(store, children, home)
    try:
        for process in children:
            process.start()
    except BaseException:
        tree.stop()
        raise
    return tree


def _kernel_cache() -> dict[str, str]:
    """Return what tells all workers where compiled code is kept; what is to be said of that place is said here, once."""
    place, told = find_code_directory(numba_cache_dir())
    if place is None:
        return {}  # each worker says that it compiles anew
    if told:
        _warn(told)
    return {"NUMBA_CACHE_DIR": str(place)}


def _check_exposure(listener: socket.socket) -> None:
    """Raise UnsafeExposure where callers need keys and nobody has said so: before anything is started."""
    # Most of what the API consists of comes with these, and takes seconds to load on a busy machine.
    from service.access import needs_key
    from service.settings import ServiceSettings

    needs_key(ServiceSettings().auth, listener)


def _wait_ready(tree: _Tree, probe: _Probe, teller: _Teller) -> None:
    """Look after the tree until it is ready; raises UpError when a part of it fails again and again."""
    while not probe.ready:
        tree.look_after()
        if any(child.failures >= _MOST_FAILURES for child in tree.children):
            raise UpError("the service does not start; the lines above say why")
        teller.news = probe.detail
        time.sleep(_LOOK_S)


def _stay(tree: _Tree) -> NoReturn:
    """Look after the tree for ever."""
    while True:
        tree.look_after()
        time.sleep(_LOOK_S)


class _Teller:
    """Says every two seconds what is waited for, while its block lasts. news: added to it."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self.news = ""
        self._what, self._say = what, say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="pcct teller", daemon=True)

    def __enter__(self) -> _Teller:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _tell(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(_SAY_EVERY_S):
            self._say(f"{self._what}, {time.monotonic() - begun:.0f} s" + (f": {self.news}" if self.news else ""))


class _Probe:
    """Asks /readyz until the service is ready, in a thread: an API that is starting lets a request wait.

    ready: whether it is. detail: why not, in the words of the last answer.
    """

    def __init__(self, host: str, port: int) -> None:
        self.ready, self.detail = False, ""
        self._host, self._port = host, port
        threading.Thread(target=self._keep_asking, name="pcct probe", daemon=True).start()

    def _keep_asking(self) -> None:
        while not self.ready:
            status, self.detail = self._ask()
            self.ready = status == 200
            time.sleep(_PROBE_S)

    def _ask(self) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_PROBE_TIMEOUT_S)
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            body = response.read()
            return response.status, str(json.loads(body).get("detail", ""))
        except (OSError, http.client.HTTPException, ValueError):
            return 0, ""
        finally:
            connection.close()


def _reachable(host: str) -> str:
    """Return the address under which we ourselves reach a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104


def _request_stop(number: int, frame: FrameType | None) -> NoReturn:
    for asked in (signal.SIGTERM, signal.SIGINT):  # a second one would cut short how everything is stopped
        signal.signal(asked, signal.SIG_IGN)
    raise _StopRequested


def _say(line: str) -> None:
    print(line, flush=True)


def _warn(line: str) -> None:
    print(f"pcct: {line}", file=sys.stderr, flush=True)
