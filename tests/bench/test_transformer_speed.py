"""The comparison of transformers runs and prints its table; how fast they are is not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("transformer_speed.py")


@pytest.mark.long
def test_transformer_speed_prints_a_row_per_case() -> None:
    small = ["--points", "300", "--repeats", "1"]
    done = subprocess.run([sys.executable, SCRIPT, *small], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[4:]]
    assert [row[:2] for row in rows] == [["| 3", "10"], ["| 3", "30"], ["| 8", "10"], ["| 8", "30"]]
