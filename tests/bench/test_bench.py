from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pcct_core.graph import build_graph
from pcct_core.guardrail import Check
from pcct_core.spec import GraphSpec, Inducing, Matern32, Residual
from tests import naive

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
    "certificate": dict | None,
    "telemetry": dict | None,
}
CASE_FIELDS = {"name", "n", "radius", "d", "dtype", "k", "metric", "kind", "order", "accuracy", "work"}


def run_bench(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUNNER), *options], capture_output=True, text=True, check=False)


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.timeout(600)
def test_bench_replaces_the_line_of_a_case_and_keeps_the_others(tmp_path: Path) -> None:
    file = tmp_path / "sizes.jsonl"
    options = ("--suite", "sizes", "--quick", "--runs", "1", "--no-rivals", "-o", str(file))
    assert run_bench(*options, "--case", "knn-d3-2k", "--case", "vecchia-d3-2k").returncode == 0
    assert run_bench(*options, "--case", "knn-d3-2k", "--runs", "3").returncode == 0
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    assert [(line["case"]["name"], len(line["runs_s"])) for line in lines] == [("vecchia-d3-2k", 1), ("knn-d3-2k", 3)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", ["core", "service"])
def test_bench_refuses_to_replace_what_it_has_not_written(tmp_path: Path, suite: str) -> None:
    (tmp_path / "notes").write_text("mine\n")
    done = run_bench("--suite", suite, "--quick", "-o", str(tmp_path / "notes"))
    assert done.returncode == 2
    assert "notes is there and holds no results of pcct bench; choose another -o" in done.stderr
    assert (tmp_path / "notes").read_text() == "mine\n"


@pytest.mark.long
def test_memory_does_not_count_the_process_that_starts_it() -> None:
    large = np.ones(100_000_000)  # 800 MB
    done = subprocess.run(
        [sys.executable, str(RUNNER.with_name("fresh.py")), "memory", "memory-d3-1m", "1024"],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["loaded_mb"] < large.nbytes / 1e6 / 2


def test_bench_names_the_cases_when_one_is_unknown() -> None:
    done = run_bench("--case", "nothing")
    assert done.returncode == 2
    assert "no case nothing" in done.stderr
    assert "knn-d3-32k" in done.stderr


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the runner into this process, and forget its modules again: their names are common ones."""
    monkeypatch.syspath_prepend(RUNNER.parent)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # the runner sets it; monkeypatch takes it back
    yield importlib.import_module("run")
    for name in ("run", "cases", "rivals", "data", "truth"):
        sys.modules.pop(name, None)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_bench_quick_writes_certificate_phases_and_recall_of_residual_cases(tmp_path: Path) -> None:
    file = tmp_path / "residual.jsonl"
    names = ("matern52-d3-2k", "refresh-d3-32k", "memory-d3-200k")
    chosen = [word for name in names for word in ("--case", name)]
    done = run_bench("--suite", "residual", "--quick", "--runs", "1", "--no-rivals", "-o", str(file), *chosen)
    assert done.returncode == 0, done.stderr
    lines = {line["case"]["name"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert set(lines) == set(names)
    for line in lines.values():
        assert line.keys() == FIELDS.keys()
        assert line["certificate"]["dtype"] == "float64"
        assert {"factors", "scan"} <= line["telemetry"]["seconds"].keys()
        assert line["case"]["metric"]["type"] == "residual"
        assert line["machine"]["dgemm_gflops"] > 0
    assert lines["matern52-d3-2k"]["notes"] == {"recall": 1.0, "recall_missed": 0, "recall_rows": 200}
    assert lines["refresh-d3-32k"]["rival"] == "own cold"
    assert len(lines["memory-d3-200k"]["notes"]["beyond_v_mb"]) == 1


def fake_guardrail(passed: bool) -> Any:
    checks = [Check("certified recall", True, "at least 0.99908, wanted 0.999"), Check("scan time", passed, "2 s")]
    return lambda: (checks, {"passed": passed})


def test_bench_refuses_larger_residual_cases_when_the_guardrail_fails(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("pcct_core.guardrail.run_guardrail", fake_guardrail(passed=False))
    ran: list[str] = []

    def run_case(case: Any, *_: object) -> Any:
        ran.append(case.name)
        return bench.Result(case, [1.0], certificate={"exact": True}, notes={"recall": 1.0, "recall_rows": 200})

    monkeypatch.setattr(bench, "run_case", run_case)
    monkeypatch.setattr(bench, "measure_gemm", lambda: 100.0)
    options = ["--suite", "residual", "-o", str(tmp_path / "residual.jsonl")]
    assert bench.main(options) == 1
    assert ran == ["matern52-d3-2k", "rbf-d3-2k", "matern32-d8-2k"]
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("pcct bench: the guardrail failed (scan time: 2 s); refused")
    assert "matern52-d3-32k" in error
    assert "matern52-d3-2k" not in error
    assert bench.main([*options, "--case", "gate-d3-32k"]) == 1
    assert len(ran) == 3


@pytest.mark.parametrize("suite", ["residual", "sizes"])
def test_bench_runs_everything_when_the_guardrail_passes_or_is_not_needed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, suite: str
) -> None:
    monkeypatch.setattr("pcct_core.guardrail.run_guardrail", fake_guardrail(passed=suite == "residual"))
    cases = list(bench.SUITES[suite])
    assert bench.heed_guardrail(cases, bench.Console()) == (cases, [])


def judge(bench: ModuleType, name: str, seconds: float = 1.0, recall: float = 1.0, **certificate: Any) -> str:
    case = next(case for case in bench.SUITES["residual"] if case.name == name)
    known = {"exact": False, "recall_lower": 0.9991} | certificate
    return str(bench.Result(case, [seconds], certificate=known, notes={"recall": recall}).verdict(True))


def test_verdict_heeds_recall_before_time(bench: ModuleType) -> None:
    assert judge(bench, "matern52-d3-32k", 0.9) == "meets goal"
    assert judge(bench, "matern52-d3-32k", 2.9) == "meets bar"
    assert judge(bench, "matern52-d3-32k", 3.1) == "below bar"
    assert judge(bench, "matern52-d3-32k", 0.9, recall=0.998) == "below bar"
    assert judge(bench, "matern52-d3-32k", 0.9, recall_lower=0.998) == "below bar"
    assert judge(bench, "rbf-d3-32k", 3.9) == "meets goal"
    assert judge(bench, "rbf-d3-32k", 60.0) == "meets bar"
    assert judge(bench, "exact-d3-8k", exact=True) == "meets bar"
    assert judge(bench, "exact-d3-8k", recall=0.9999, exact=True) == "below bar"


def test_verdict_on_the_gate_allows_no_false_negative(bench: ModuleType) -> None:
    pruned = {"gate1_candidates": 100, "gate1_pruned": 98, "gate1_false_negatives": 0}
    assert judge(bench, "gate-d3-32k", **pruned) == "meets goal"
    assert judge(bench, "gate-d3-32k", **pruned | {"gate1_pruned": 91}) == "meets bar"
    assert judge(bench, "gate-d3-32k", **pruned | {"gate1_pruned": 89}) == "below bar"
    assert judge(bench, "gate-d3-32k", **pruned | {"gate1_false_negatives": 1}) == "below bar"


def test_scaled_seconds_are_those_of_the_reference_machine(bench: ModuleType) -> None:
    case = next(case for case in bench.SUITES["residual"] if case.name == "matern52-d3-32k")
    assert bench.Result(case, [2.0], gflops=210.0).value == 4.0


def test_profile_holds_the_lookup_and_what_made_it(bench: ModuleType, tmp_path: Path) -> None:
    line = {"suite": "residual", "at": "now", "commit": "c0ffee", "case": {"name": "rbf-d3-8k", "n": 8192}}
    bench.write_profile(tmp_path / "profiles", line, {"any": ["thing"]})
    assert json.loads((tmp_path / "profiles" / "rbf-d3-8k.json").read_text()) == {
        "made_by": 'make bench ARGS="--suite residual --case rbf-d3-8k"',
        "at": "now",
        "commit": "c0ffee",
        "case": {"name": "rbf-d3-8k", "n": 8192},
        "lookup": {"any": ["thing"]},
    }


def test_bench_names_the_limit_when_no_case_is_small_enough() -> None:
    done = run_bench("--suite", "residual", "--largest", "100")
    assert done.returncode == 2
    assert "no such case of at most 100 points" in done.stderr


SMALL_RESIDUAL = GraphSpec(
    "vecchia", 8, Residual(Matern32(lengthscale=(0.4, 2.0)), Inducing(20)), "random", accuracy="exact"
)


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("kind", ["vecchia", "knn"])
def test_recall_is_that_of_the_oracle(kind: str) -> None:
    truth = importlib.import_module("truth")
    points = np.random.default_rng(3).random((300, 2))
    spec = replace(SMALL_RESIDUAL, kind=kind)
    graph = build_graph(points, spec)
    assert truth.measure_recall(points, spec, graph.order, graph.neighbors) == (1.0, 0, 200)
    damaged = graph.neighbors.copy()
    damaged[:, 0] = damaged[:, 1]  # the nearest is missing in every row that has two
    found = truth.measure_recall(points, spec, graph.order, damaged)
    assert found.missed >= 190
    assert found.recall == pytest.approx(1 - 1 / 8, abs=0.02)


@pytest.mark.usefixtures("bench")
def test_true_distances_are_those_of_the_naive_matrix_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = importlib.import_module("truth")
    monkeypatch.setattr(truth, "BLOCK", 64)
    points = np.random.default_rng(3).random((150, 2))
    process = truth.find_process(points, SMALL_RESIDUAL)
    scales = np.array([0.4, 2.0])
    assert np.array_equal(process.inducing, points[naive.maximin(points / scales)[0][:20]])
    V, p = naive.residual_factors(points, process.inducing, "matern32", scales)
    rows = np.array([0, 77, 149])
    expected = naive.residual_distances(points, V, p, "matern32", scales)[rows]
    assert np.allclose(truth.true_distances(points, process, rows), expected, rtol=0, atol=1e-7)
