"""Builds of every kind take what the door estimates, or little more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.integration
def test_builds_of_every_kind_take_no_more_memory_than_the_door_allows_for() -> None:
    command = [sys.executable, "-m", "tests.bench.build_memory", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "0 of 20 builds take more than 1.2 of their estimate"
