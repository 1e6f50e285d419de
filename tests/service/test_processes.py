from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from service.processes import Child, Lifeline


def ended(child: Child) -> str:
    """Look after a child until it says something."""
    while True:
        line = child.look_after()
        if line is not None:
            return line
        time.sleep(0.01)


def test_child_is_started_again_with_a_growing_pause() -> None:
    child = Child("the helper", [sys.executable, "-c", "raise SystemExit(3)"])
    child.start()
    first, second = ended(child), ended(child)
    assert first == "the helper ended unexpectedly (exit status 3); starting it again in 0.2 s"
    assert second.endswith("in 0.4 s")
    assert child.failures == 2
    child.join(10)


@pytest.mark.parametrize(("said", "seen"), [({}, "33554432"), ({"MALLOC_TRIM_THRESHOLD_": "1"}, "1")])
def test_child_keeps_freed_memory_unless_told_otherwise(tmp_path: Path, said: dict[str, str], seen: str) -> None:
    code = "import os; print(os.environ['MALLOC_TRIM_THRESHOLD_'])"
    with (tmp_path / "out").open("wb") as output:
        child = Child("printer", [sys.executable, "-c", code], environment=said, output=output)
        child.start()
        child.join(60)
    assert (tmp_path / "out").read_text() == f"{seen}\n"


def test_child_stops_when_asked_and_is_killed_when_deaf() -> None:
    child = Child("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
    child.start()
    assert child.pid is not None
    assert child.look_after() is None
    child.stop()
    child.join(60)
    assert child.pid is None
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = Child("deaf", [sys.executable, "-c", deaf])
    child.start()
    child.join(0.1)
    assert child.pid is None


def test_lifeline_ends_when_closed() -> None:
    lifeline = Lifeline()
    code = "import os, sys; sys.exit(len(os.read(int(sys.argv[1]), 1)))"
    child = Child("reader", [sys.executable, "-c", code, str(lifeline.fd)], pass_fds=(lifeline.fd,))
    child.start()
    lifeline.close()
    assert "exit status 0" in ended(child)
