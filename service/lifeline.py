"""End a child when its parent is gone, even when the parent was killed with SIGKILL.

The parent holds the write end of a pipe and hands the read end to its children. The kernel closes the write end with
the parent, however that dies, and the children read the end of file. Python children call `follow`; other programs run
under this file as a script: `python lifeline.py FD PROGRAM ARGUMENT …` runs PROGRAM, passes SIGTERM on, exits with its
status, and stops it when the pipe ends. The script imports only the standard library, to start in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

GRACE_S = 10.0  # from the polite signal to SIGKILL


def follow(fd: int, grace_s: float = GRACE_S) -> None:
    """Send SIGTERM to this process when the pipe ends, and end it for good grace_s seconds later."""

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    _when_it_ends(fd, stop)


def run(fd: int, command: list[str]) -> int:
    """Run a program until it exits or the pipe ends; return its exit status, 128 + N after signal N."""
    # Only the locks that the parent handed down are inherited besides; the pipe itself is not passed on.
    os.set_inheritable(fd, False)
    program: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: object) -> None:
        if program is not None:
            program.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops us in order
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False, preexec_fn=_die_with_us)

    def stop() -> None:
        program.terminate()
        try:
            program.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            program.kill()

    _when_it_ends(fd, stop)
    status = program.wait()
    return status if status >= 0 else 128 - status


def _die_with_us() -> None:
    """Let the kernel stop the program should this watchdog itself be killed; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def _when_it_ends(fd: int, action: Callable[[], None]) -> None:
    def wait() -> None:
        while os.read(fd, 1):
            pass
        action()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
