"""The demo as `make demo` runs it, on fewer places."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def start(out: Path, places: int) -> "subprocess.Popen[str]":
    """Start the demo in a new session, with a setting that it must not follow."""
    command = [sys.executable, str(ROOT / "docs/demo/demo.py"), "--places", str(places), "--out", str(out)]
    environment = {**os.environ, "PCCT_REDIS_URL": "redis://127.0.0.1:1", "TMPDIR": str(out.parent)}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=out.parent,
        env=environment,
        start_new_session=True,
    )


def left_behind(out: Path) -> list[str]:
    """Command lines of processes that still work in the demo's directory."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_text().replace("\0", " ")
        except OSError:
            continue
        if str(out.parent) in line and str(os.getpid()) != file.parent.name:
            found.append(line)
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "demo-out"


def test_demo_checks_draws_and_leaves_nothing_running(out: Path) -> None:
    with start(out, places=500) as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "rows checked       │ 200, all equal to brute force" in said
    table = [line for line in said.splitlines() if line.startswith(("┌", "│", "└"))]
    assert len(table) == 10 + 4
    assert [line.split()[1] for line in table[-4:-1]] == ["fixed", "inline", "track"]
    assert max(map(len, table)) < 80
    with np.load(out / "graph.npz") as graph:
        assert graph["neighbors"].shape == (500, 30)
    for picture in ("map.png", "timeline.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert left_behind(out) == []
    assert not list(out.parent.glob("pcct-demo-*"))


def test_demo_that_fails_says_why_in_one_line_and_stops_everything(out: Path) -> None:
    with start(out, places=20) as process:
        said = process.communicate()[0]
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("demo failed: The specification cannot be met: k is 30")
    assert "Traceback" not in said
    assert left_behind(out) == []


def test_demo_that_is_interrupted_stops_everything(out: Path) -> None:
    with start(out, places=32_768) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "service ready" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate()
    # The graph may have been finished before the signal came.
    assert process.returncode in (0, 1)
    assert left_behind(out) == []
