"""The measurement of the HTTP interface runs and writes its lines; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("service_bars.py")
FIELDS = {"schema", "at", "suite", "commit", "machine", "versions", "case", "runs_s", "median_s"}
FIELDS |= {"measure", "ratio", "bar", "goal", "verdict", "notes"}


@pytest.mark.integration
def test_service_bars_write_a_line_for_each_case(tmp_path: Path) -> None:
    names = ["upload_100mb", "startup"]
    options = [part for name in names for part in ("--case", name)]
    file = tmp_path / "service.jsonl"
    command = [sys.executable, SCRIPT, "--quick", "-o", file, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["case"]["name"] for line in lines] == names
    for line in lines:
        assert set(line) == FIELDS
        assert line["ratio"] > 0
        assert line["verdict"] == "not judged"
    assert lines[1]["notes"] == {"loaded_compiler": False}
