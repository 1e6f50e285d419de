"""The measurement of the HTTP interface runs and writes its lines; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run.py")
FIELDS = {"schema", "at", "suite", "commit", "machine", "versions", "case", "runs_s", "median_s"}
FIELDS |= {"measure", "ratio", "bar", "goal", "verdict", "notes"}


@pytest.mark.long
@pytest.mark.integration
def test_service_bars_write_a_line_for_each_case(tmp_path: Path) -> None:
    names = ["upload_100mb", "startup", "capacity"]
    options = [part for name in names for part in ("--case", name)]
    file = tmp_path / "service.jsonl"
    command = [sys.executable, SCRIPT, "--suite", "service", "--quick", "--seconds", "3", "-o", file, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["case"]["name"] for line in lines] == names
    for line in lines:
        assert set(line) == FIELDS
        assert line["ratio"] > 0 or line["case"]["name"] == "capacity"
        assert line["verdict"] == "not judged"
    assert lines[1]["notes"] == {"loaded_compiler": False}
    notes = lines[2]["notes"]
    assert notes["errors"] == []
    assert set(notes["statuses"]) <= {"200", "201", "202", "204", "304"}
    assert set(notes["memory_mb"]) == {"api", "worker", "store", "store data"}
    assert notes["routes_ms"]["POST /v1/tracks/{id}/refresh"]["count"] > 0


def test_describe_finds_the_slope_behind_the_warm_up_and_under_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from capacity import describe

    seconds = range(100)
    memory_mb = [50.0 + 10.0 * second if second < 20 else 250.0 + 0.1 * second for second in seconds]
    memory_mb[70] = 900.0
    found = describe(memory_mb)
    assert found["slope_per_min"] == pytest.approx(6.0)
    assert (found["first"], found["peak"]) == (50.0, 900.0)
    flat = describe([80.0 + (second % 2) for second in seconds])
    assert flat["slope_per_min"] == 0.0
