"""The measurement of steps runs and says what it should; how long they take is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("session_cost.py")


@pytest.mark.long
@pytest.mark.integration
def test_session_cost_measures_every_metric_and_work() -> None:
    small = ["--points", "500", "-k", "5", "--inducing", "20", "--seconds", "0.3"]
    done = subprocess.run([sys.executable, SCRIPT, *small], capture_output=True, text=True, timeout=100, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["metric"], line["work"]) for line in lines] == [
        ("residual", "numpy"),
        ("residual", "python"),
        ("euclidean", "numpy"),
        ("euclidean", "python"),
    ], done.stderr
    assert all(line["last_error"] is None for line in lines)
    assert all(0 < line["median_ms"] <= line["p99_ms"] <= line["max_ms"] for line in lines)
    assert done.returncode == (0 if all(line["meets_bar"] for line in lines) else 1)
