"""Child processes that end with us: started with a lifeline, watched, started again with a pause that grows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

# For glibc, which else gives the blocks that chunks of arrays pass through back to the kernel again and again: clearing fresh
# pages for the next ones took as long as all that a store does with them. Blocks from 8 MB, and 32 MB free, still go back.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "8388608", "MALLOC_TRIM_THRESHOLD_": "33554432"}

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_STEADY_S = 5.0  # a child that lived this long starts its pauses afresh: it does not fail at its start


def own_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours, such as "service.cli", with the arguments.

    -P leaves the current folder out of the path of imports: a user's folder may hold a service/ or a redis.py of its own.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


class Lifeline:
    """The pipe whose end tells every child that this process is gone. fd: the read end, to hand down."""

    def __init__(self) -> None:
        self.fd, self._held = os.pipe()

    def close(self) -> None:
        """Close both ends; children that still run are told to stop."""
        os.close(self._held)
        os.close(self.fd)


@dataclass
class Child:
    """One child process under supervision; all calls come from one thread.

    command: program and arguments. environment: whole environment, or None for ours. pass_fds: descriptors handed down.
    output: where its standard output and error go, or None for ours. failures: times it ended without being asked.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    pass_fds: Sequence[int] = ()
    output: IO[bytes] | None = None
    failures: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started: float = field(default=0.0, init=False)
    _again_at: float = field(default=0.0, init=False)
    _pause_s: float = field(default=_FIRST_PAUSE_S, init=False)

    def start(self) -> None:
        """Start the program in a process group of its own, so that Ctrl-C reaches only us and we stop children in order.

        It stays in our session: Linux may share processors among sessions first, and builds that yield would not do so to a
        fit in this one.
        """
        self._process = subprocess.Popen(
            self.command,
            env=KEEP_MEMORY | dict(os.environ if self.environment is None else self.environment),
            pass_fds=self.pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            process_group=0,
        )
        self._started = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def look_after(self) -> str | None:
        """Start the program again when it has ended and its pause is over; return a line to tell, if there is one."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._again_at:
                self.start()
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._process = None
        self.failures += 1
        if now - self._started > _STEADY_S:
            self._pause_s = _FIRST_PAUSE_S
        self._again_at = now + self._pause_s
        line = f"{self.name} ended unexpectedly ({_status(status)}); starting it again in {self._pause_s:g} s"
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return line

    def stop(self) -> None:
        """Ask the program to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def join(self, timeout_s: float) -> None:
        """Wait for its end, and force it after timeout_s seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _status(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
