"""The comparison of fits runs and says what it should; how long they take is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fit_three_ways.py")


@pytest.mark.long
@pytest.mark.integration
def test_fit_three_ways_measures_every_way() -> None:
    small = ["--points", "600", "-k", "8", "--inducing", "20"]
    done = subprocess.run([sys.executable, SCRIPT, *small], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    fits = [record[name] for name in ("fixed", "inline", "track")]
    assert all(fit["evaluations"] > fit["epochs"] > 1 for fit in fits)
    assert (fits[0]["swaps"], fits[0]["built_s"]) == (0, [])
    assert all(len(fit["built_s"]) == fit["swaps"] > 0 for fit in fits[1:])
    assert record["likelihood_gap"] < 0.05
    assert set(record["met"]) == {"waiting_share", "time_ratio", "likelihood_gap"}
