from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service import lifeline

SCRIPT = lifeline.__file__


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or while it was read
        return False
    return state != "Z"


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def under_watch(read: int, *command: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-ISE", SCRIPT, str(read), *command],
        pass_fds=(read,),
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def pipe():
    read, write = os.pipe()
    ends = [read, write]
    yield ends
    for end in ends:
        os.close(end)


SLEEPER = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")


def test_run_passes_the_exit_status_on(pipe: list[int]) -> None:
    with under_watch(pipe[0], sys.executable, "-c", "raise SystemExit(7)") as watchdog:
        assert watchdog.wait() == 7


def test_run_passes_sigterm_on(pipe: list[int]) -> None:
    with under_watch(pipe[0], *SLEEPER) as watchdog:
        program = int(watchdog.stdout.readline())
        watchdog.terminate()
        assert watchdog.wait() == 128 + signal.SIGTERM
        wait_gone(program)


def test_run_stops_the_program_when_the_pipe_ends(pipe: list[int]) -> None:
    with under_watch(pipe[0], *SLEEPER) as watchdog:
        program = int(watchdog.stdout.readline())
        os.close(pipe.pop())
        wait_gone(program)
        watchdog.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel does this")
def test_run_killed_takes_the_program_with_it(pipe: list[int]) -> None:
    with under_watch(pipe[0], *SLEEPER) as watchdog:
        program = int(watchdog.stdout.readline())
        watchdog.kill()
        watchdog.wait()
        wait_gone(program)


def test_follow_ends_a_process_that_ignores_sigterm(pipe: list[int]) -> None:
    code = (
        "import signal, sys, time; from service import lifeline; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "lifeline.follow(int(sys.argv[1]), grace_s=0.1); print('on', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(pipe[0])], pass_fds=(pipe[0],), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "on\n"
        os.close(pipe.pop())
        assert process.wait() == -signal.SIGKILL
