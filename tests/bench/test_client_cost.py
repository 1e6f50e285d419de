"""The measurement of the client runs and says what it should; how long things take is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("client_cost.py")


@pytest.mark.long
@pytest.mark.integration
def test_client_cost_compares_with_httpx_alone() -> None:
    small = ["--points", "300", "-k", "5", "--rounds", "2"]
    done = subprocess.run([sys.executable, SCRIPT, *small], capture_output=True, text=True, timeout=100, check=False)
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert min(line["httpx_ms"], line["client_ms"], line["async_client_ms"], line["import_ms"]) > 0, done.stderr
    assert line["overhead"] == pytest.approx(line["client_ms"] / line["httpx_ms"] - 1, abs=0.02)
    assert done.returncode == (0 if line["meets_bar"] else 1)
