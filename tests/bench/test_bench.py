from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

RUNNER = Path(__file__).with_name("run.py")
FIELDS = {
    "schema": int,
    "at": str,
    "suite": str,
    "commit": str | None,
    "machine": dict,
    "versions": dict,
    "case": dict,
    "runs_s": list,
    "median_s": float,
    "rival": str | None,
    "rival_runs_s": list,
    "rival_median_s": float | None,
    "rivals_runs_s": dict,
    "measure": str,
    "ratio": float | None,
    "bar": float | None,
    "goal": float | None,
    "verdict": str,
    "notes": dict,
    "telemetry": dict | None,
}
CASE_FIELDS = {"name", "n", "d", "dtype", "k", "metric", "kind", "order", "work"}


def run_bench(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUNNER), *options], capture_output=True, text=True, check=False)


@pytest.mark.timeout(600)  # compiles the kernels when no test has done so yet
def test_bench_quick_writes_lines_of_the_schema_without_rivals(tmp_path: Path) -> None:
    file = tmp_path / "core.jsonl"
    done = run_bench("--quick", "--runs", "2", "--no-rivals", "-o", str(file))
    assert done.returncode == 0, done.stderr
    assert "pykdtree left out" in done.stdout
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    names = [line["case"]["name"] for line in lines]
    assert {"knn-d3-32k", "vecchia-d3-1m", "maximin-d2-1m", "start", "memory-d3-1m", "growth-d3-4m"} <= set(names)
    assert len(names) == len(set(names))
    for line in lines:
        assert line.keys() == FIELDS.keys()
        assert all(isinstance(line[name], kind) for name, kind in FIELDS.items()), line
        assert line["case"].keys() == CASE_FIELDS
        assert line["schema"] == 1
        assert line["case"]["n"] <= 2048
        assert len(line["runs_s"]) == 2
        assert line["rival"] is None or line["rival"].startswith("own")
        assert line["verdict"] in ("no rival", "not judged")


@pytest.mark.timeout(600)
def test_bench_replaces_the_line_of_a_case_and_keeps_the_others(tmp_path: Path) -> None:
    file = tmp_path / "sizes.jsonl"
    options = ("--suite", "sizes", "--quick", "--runs", "1", "--no-rivals", "-o", str(file))
    assert run_bench(*options, "--case", "knn-d3-2k", "--case", "vecchia-d3-2k").returncode == 0
    assert run_bench(*options, "--case", "knn-d3-2k", "--runs", "3").returncode == 0
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    assert [(line["case"]["name"], len(line["runs_s"])) for line in lines] == [("vecchia-d3-2k", 1), ("knn-d3-2k", 3)]


@pytest.mark.timeout(600)
def test_memory_does_not_count_the_process_that_starts_it() -> None:
    large = np.ones(100_000_000)  # 800 MB
    done = subprocess.run(
        [sys.executable, str(RUNNER.with_name("fresh.py")), "memory", "1000"], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["loaded_mb"] < large.nbytes / 1e6 / 2


def test_bench_names_the_cases_when_one_is_unknown() -> None:
    done = run_bench("--case", "nothing")
    assert done.returncode == 2
    assert "no case nothing" in done.stderr
    assert "knn-d3-32k" in done.stderr
