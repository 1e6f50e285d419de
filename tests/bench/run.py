"""The benchmark: every case beside its rival in one run, ours and theirs in turn; a table, and a file of JSON lines.

`make bench` and `pcct bench` start this file. artifacts/README.md describes the lines that it writes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cases import MEASURES, MILLION, SMALL, SUITES, Case
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rivals import DISTRIBUTIONS, OURS, RIVALS, SelfTimed, calm_openmp

from pcct_core.files import replacing

if TYPE_CHECKING:
    from pcct_core.graph import Graph

SCHEMA = 1
RUNS = 5
TABLE_COLUMNS = 100
LARGE_RUNS = 3  # the fewest that --large-runs takes
QUICK_POINTS = 2_048
PAUSE_S = 0.1  # between two runs, so that what one leaves behind does not meet the next
QUIET_LOAD = 0.6
GUARDED_POINTS = 4_096  # the guardrail's own size: no larger residual case runs before it has passed
REFERENCE_GFLOPS = 105.0  # of the machine that bars in seconds were set for
GEMM_SIZE, GEMM_RUNS = 2_048, 3
MEMORY_NOTES = ("extra_mb", "loaded_mb", "peak_mb", "beyond_v_mb")
ROOT = Path(__file__).resolve().parents[2]
FRESH = Path(__file__).with_name("fresh.py")
SERVICE = Path(__file__).with_name("service_bars.py")


@dataclass
class Result:
    """What one case gave. ours_s, and theirs_s by rival: seconds of every run. notes: what else was learned.

    gflops: what this machine's matrix product in float64 reaches. lookup: the gate's, as JSON.
    """

    case: Case
    ours_s: list[float] = field(default_factory=list)
    theirs_s: dict[str, list[float]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    telemetry: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    lookup: dict[str, Any] | None = None
    gflops: float = REFERENCE_GFLOPS
    points: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def rival(self) -> str | None:
        """The fastest rival, None when there was none."""
        return min(self.theirs_s, key=lambda name: statistics.median(self.theirs_s[name]), default=None)

    @property
    def value(self) -> float | None:
        """What is held against bar and goal; None when the rival is missing."""
        ours_s = statistics.median(self.ours_s)
        if self.case.measure == "seconds":
            return ours_s
        if self.case.measure == "scaled":
            return ours_s * self.gflops / REFERENCE_GFLOPS
        if self.case.measure in ("megabytes", "beyond_v"):
            name = "extra_mb" if self.case.measure == "megabytes" else "beyond_v_mb"
            return float(statistics.median(self.notes[name]))
        if self.case.measure == "pruned":
            known = self.certificate or {}
            return float(known["gate1_pruned"] / known["gate1_candidates"])
        if self.rival is None:
            return None
        theirs_s = statistics.median(self.theirs_s[self.rival])
        if self.case.measure == "speedup":
            return theirs_s / ours_s
        if self.case.measure == "growth":
            return (ours_s / self.case.n) / (theirs_s / min(SMALL, self.case.n))
        return ours_s / theirs_s

    @property
    def recall_holds(self) -> bool:
        """Whether certificate and brute force both find the recall that the case asks for, and the gate lost nothing."""
        if self.case.recall is None:
            return True
        known = self.certificate or {}
        certified = 1.0 if known.get("exact") else known.get("recall_lower", 0.0)
        lost = self.case.measure == "pruned" and known.get("gate1_false_negatives", 0) > 0
        return not lost and min(certified, self.notes["recall"]) >= self.case.recall

    def verdict(self, judged: bool) -> str:
        """Return what bar and goal make of the value; a bar of None is met by the recall alone."""
        case = self.case
        if self.value is None:
            return "no rival"
        if not judged or (case.bar is None and case.goal is None and case.recall is None):
            return "not judged"
        if not self.recall_holds or (case.bar is not None and not self._reaches(case.bar)):
            return "below bar"
        return "meets goal" if case.goal is not None and self._reaches(case.goal) else "meets bar"

    def _reaches(self, limit: float) -> bool:
        value = self.value
        assert value is not None  # verdict has answered "no rival" before
        return value >= limit if MEASURES[self.case.measure][1] else value <= limit


def main(arguments: list[str] | None = None) -> int:
    """Run the cases that the command line asks for; 0 when all ran, whatever their verdicts, 1 when some were refused.

    The service's bars have a program and options of their own, whose status is 1 when one of them is not met.
    """
    suite = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    suite.add_argument("--suite")
    chosen, others = suite.parse_known_args(arguments)
    if chosen.suite == "service":
        return subprocess.run([sys.executable, str(SERVICE), *others], check=False).returncode
    options = read_options(arguments)
    calm_openmp()
    console = Console(width=None if sys.stdout.isatty() else TABLE_COLUMNS)
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        console.print(
            f"[yellow]other processes use the CPU (load {load:.1f}); times will be too long, scaled ones wrong either way[/]"
        )
    cases, refused = heed_guardrail(options.cases, console)
    gflops = measure_gemm()
    results = []
    for case in cases:
        try:
            with console.status(case.name) as status:
                result = run_case(case, runs_of(case, options), options.rivals, status.update)
        except ModuleNotFoundError as missing:
            console.print(f"{case.name}: left out, {missing.name} is not installed; pip install 'pcct\\[bench]'")
            continue
        if case.measure == "scaled":
            # The best so far: a product that others disturbed would make our time on the reference machine look short.
            gflops = max(gflops, measure_gemm())
        result.gflops = gflops
        results.append(result)
        console.print(describe(result), highlight=False)
        line = to_json(result, options.suite, not options.quick)
        if options.output is not None:
            write_line(options.output, line)
        if options.profiles is not None and result.lookup is not None:
            write_profile(options.profiles, line, result.lookup)
    if results:
        console.print(make_table(results, not options.quick))
    if options.output is not None and results:
        console.print(f"written to {options.output}")
    return 1 if refused else 0


def heed_guardrail(cases: list[Case], console: Console) -> tuple[list[Case], list[Case]]:
    """Return the cases that may run and those that may not: larger residual ones, when the guardrail fails."""
    guarded = [case for case in cases if case.residual and case.n > GUARDED_POINTS]
    if not guarded:
        return cases, []
    from pcct_core.guardrail import run_guardrail

    with console.status("guardrail"):
        checks, report = run_guardrail()
    if report["passed"]:
        console.print("guardrail passed: " + "; ".join(check.found for check in checks), highlight=False)
        return cases, []
    failed = "; ".join(f"{check.name}: {check.found}" for check in checks if not check.passed)
    print(
        f"pcct bench: the guardrail failed ({failed}); refused, because they have more than {GUARDED_POINTS:,} points: "
        f"{', '.join(case.name for case in guarded)}. `pcct guardrail` shows every check",
        file=sys.stderr,
    )
    return [case for case in cases if case not in guarded], guarded


def measure_gemm() -> float:
    """Return the best of a few matrix products in float64 on all cores, in GFLOP/s."""
    matrix = np.random.default_rng(0).random((GEMM_SIZE, GEMM_SIZE))
    product = np.empty_like(matrix)
    taken_s = []
    for _ in range(GEMM_RUNS):
        begin = time.perf_counter()
        np.matmul(matrix, matrix, out=product)
        taken_s.append(time.perf_counter() - begin)
    return 2e-9 * GEMM_SIZE**3 / min(taken_s)


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; `cases` is the list of cases to run, `output` the file or None."""
    parser = argparse.ArgumentParser("pcct bench", description="Time the core beside its rivals.")
    parser.add_argument(
        "--suite",
        choices=sorted([*SUITES, "service"]),
        default="core",
        help="which cases (default: core); service has options of its own: --suite service --help",
    )
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only this case; may be repeated")
    parser.add_argument("--largest", type=int, metavar="N", help="only cases of at most N points")
    parser.add_argument(
        "--quick", action="store_true", help=f"at most {QUICK_POINTS} points, no verdicts, no file without -o"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs per side (default: {RUNS})")
    parser.add_argument(
        "--large-runs", type=int, help=f"runs of the cases of a million points and more, at least {LARGE_RUNS}"
    )
    parser.add_argument("--no-rivals", dest="rivals", action="store_false", help="time our side alone")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: artifacts/benchmarks/SUITE.jsonl)")
    parser.add_argument(
        "--profiles",
        type=Path,
        metavar="DIR",
        help="where to write learned gate lookups (default: artifacts/profiles, none with --quick or -o)",
    )
    options = parser.parse_args(arguments)
    cases = list(SUITES[options.suite])
    unknown = set(options.case) - {case.name for case in cases}
    if unknown:
        parser.error(
            f"no case {', '.join(sorted(unknown))}; suite {options.suite} has {', '.join(c.name for c in cases)}"
        )
    if options.runs < 1 or (options.large_runs is not None and options.large_runs < LARGE_RUNS):
        parser.error(f"--runs must be at least 1 and --large-runs at least {LARGE_RUNS}")
    options.cases = [case for case in cases if not options.case or case.name in options.case]
    if options.largest is not None:
        options.cases = [case for case in options.cases if case.n <= options.largest]
    if not options.cases:
        parser.error(f"suite {options.suite} has no such case of at most {options.largest:,} points")
    if options.quick:
        options.cases = [replace(case, n=min(case.n, QUICK_POINTS)) for case in options.cases]
    elif options.output is None:
        options.output = ROOT / "artifacts" / "benchmarks" / f"{options.suite}.jsonl"
        options.profiles = options.profiles or ROOT / "artifacts" / "profiles"
    if options.output is not None:
        try:
            read_lines(options.output)
        except ValueError as error:
            parser.error(str(error))
    return options


def runs_of(case: Case, options: argparse.Namespace) -> int:
    """Return how often each side of the case runs."""
    large = options.large_runs is not None and case.n >= MILLION
    return int(options.large_runs if large else options.runs)


def run_case(case: Case, runs: int, with_rivals: bool, say: Callable[[str], None]) -> Result:
    """Time our side and every rival in turn, `runs` times each; say tells which run is going on."""
    points = case.points(case.n)
    result = Result(case)
    result.points = {"n": points.shape[0], "d": points.shape[1], "dtype": str(points.dtype)}
    ours = OUR_WORK[case.work](case, points)
    theirs = find_rivals(case, points, with_rivals, result)
    if case.work not in ("start", "memory"):
        OUR_WORK[case.work](replace(case, n=QUICK_POINTS), points[:QUICK_POINTS])({})  # loads what is compiled
    answer: dict[str, Any] = {}
    for run in range(1, runs + 1):
        say(f"{case.name}: ours, run {run} of {runs}")
        answer = {}
        taken_s, _ = take_time(lambda: ours(answer))  # noqa: B023
        result.ours_s.append(taken_s)
        for name in MEMORY_NOTES:
            if name in answer:
                result.notes.setdefault(name, []).append(round(answer[name], 1))
        for name, call in theirs.items():
            say(f"{case.name}: {name}, run {run} of {runs}")
            taken_s, found = take_time(call)
            if isinstance(found, SelfTimed):
                taken_s = found.seconds
                for part, part_s in found.parts_s.items():
                    result.notes.setdefault("parts_s", {}).setdefault(part, []).append(round(part_s, 6))
            result.theirs_s.setdefault(name, []).append(taken_s)
            if case.compare and run == runs:
                result.notes["equal_rows"] = share_of_equal_rows(answer["graph"].neighbors, found)
    say(f"{case.name}: looking at the answer")
    keep_answer(result, points, answer)
    return result


def keep_answer(result: Result, points: NDArray[Any], answer: dict[str, Any]) -> None:
    """Write down what the last run tells: telemetry, certificate, lookup, and the recall under the residual metric."""
    graph: Graph | None = answer.get("graph")
    if graph is None:
        result.telemetry, result.certificate = answer.get("telemetry"), answer.get("certificate")
        return
    result.telemetry, result.certificate = graph.telemetry.to_json(), graph.certificate.to_json()
    result.lookup = None if graph.lookup is None else graph.lookup.to_json()
    if result.case.residual:
        from truth import measure_recall

        found = measure_recall(points, graph.spec, graph.order, graph.neighbors)
        result.notes.update(recall=round(found.recall, 7), recall_missed=found.missed, recall_rows=found.rows)


def take_time(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the wall time of one call, in seconds, and what it returned."""
    gc.collect()
    time.sleep(PAUSE_S)
    begin = time.perf_counter()
    found = call()
    return time.perf_counter() - begin, found


def find_rivals(case: Case, points: NDArray[Any], with_rivals: bool, result: Result) -> dict[str, Callable[[], Any]]:
    """Return the calls to time beside ours, by name; what is not installed is noted in the result."""
    calls: dict[str, Callable[[], Any]] = {}
    for name in case.rivals:
        if not with_rivals and name not in OURS:
            result.missing.append(name)
            continue
        try:
            calls[name] = RIVALS[name](points, case.spec)
        except ModuleNotFoundError:
            result.missing.append(name)
            continue
    if case.work == "growth":
        small = build(case, points[:SMALL])
        calls[f"own n={min(SMALL, case.n):,}"] = lambda: small({})
    for name, call in calls.items():
        if name not in OURS and case.n < MILLION and case.work == "graph":
            call()  # a first call pays for threads and code that the second finds
    return calls


def share_of_equal_rows(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Return the share of rows with the same neighbors in the same order. theirs: (n, k + 1), the point itself first."""
    return round(float((ours == theirs[:, 1:]).all(axis=1).mean()), 6)


def build(case: Case, points: NDArray[Any]) -> Callable[[dict[str, Any]], None]:
    """Return the call that builds the case's graph and leaves it in its argument."""
    from pcct_core.graph import build_graph

    def call(answer: dict[str, Any]) -> None:
        answer["graph"] = build_graph(points, case.spec)

    return call


def refresh(case: Case, points: NDArray[Any]) -> Callable[[dict[str, Any]], None]:
    """Return the call that builds the case's graph following the graph before it, built here."""
    from pcct_core.graph import build_graph

    assert case.before is not None  # every case with this work has one
    before = build_graph(points, case.before)

    def call(answer: dict[str, Any]) -> None:
        answer["graph"] = build_graph(points, case.spec, previous=before)

    return call


def find_order(case: Case, points: NDArray[Any]) -> Callable[[dict[str, Any]], None]:
    """Return the call that finds the maximin order alone."""
    from pcct_core.order import maximin_order
    from pcct_core.parallel import Crew

    def call(answer: dict[str, Any]) -> None:
        with Crew() as crew:
            maximin_order(points, crew)

    return call


def ask_fresh(case: Case, points: NDArray[Any]) -> Callable[[dict[str, Any]], None]:
    """Return the call that runs the case in a process of its own."""
    command = [sys.executable, str(FRESH), case.work, case.name, str(points.shape[0])]

    def call(answer: dict[str, Any]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"pcct bench: {' '.join(command)} failed:\n{done.stderr}")
        answer.update(json.loads(done.stdout))

    return call


OUR_WORK = {
    "graph": build,
    "refresh": refresh,
    "growth": build,
    "maximin": find_order,
    "start": ask_fresh,
    "memory": ask_fresh,
}


def describe(result: Result) -> str:
    """Return one line about a finished case."""
    parts = [f"ours {statistics.median(result.ours_s):.4g} s"]
    parts += [f"{name} {statistics.median(runs_s):.4g} s" for name, runs_s in result.theirs_s.items()]
    parts += [f"{name} left out" for name in result.missing]
    if "equal_rows" in result.notes:
        parts.append(f"{result.notes['equal_rows']:.4%} of rows equal")
    if "recall" in result.notes:
        parts.append(f"recall {result.notes['recall']:.5f} in {result.notes['recall_rows']} rows")
        certified = (result.certificate or {}).get("recall_lower")
        parts.append("exact" if certified is None else f"certified {certified:.5f}")
    return f"{result.case.name}: " + ", ".join(parts)


def make_table(results: list[Result], judged: bool) -> Table:
    """Return the table that ends the run, at most 100 columns wide."""
    table = Table(title="medians; ours and rivals ran in turn", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("case", "ours s", "rival", "rival s", "ratio", "bar", "goal", "verdict"):
        numeric = name in ("ours s", "rival s", "bar", "goal")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    colors = {"meets goal": "green", "meets bar": "cyan", "below bar": "red"}
    for result in results:
        case, rival, verdict = result.case, result.rival, result.verdict(judged)
        color = colors.get(verdict, "dim")
        table.add_row(
            case.name,
            f"{statistics.median(result.ours_s):.3g}",
            rival or "",
            "" if rival is None else f"{statistics.median(result.theirs_s[rival]):.3g}",
            "" if result.value is None else f"{result.value:.3g} {MEASURES[case.measure][0]}",
            "" if case.bar is None else f"{case.bar:g}",
            "" if case.goal is None else f"{case.goal:g}",
            f"[{color}]{verdict}[/]",
        )
    return table


def to_json(result: Result, suite: str, judged: bool) -> dict[str, Any]:
    """Return the line of the file; artifacts/README.md describes it."""
    case, spec, rival = result.case, result.case.spec.to_json(), result.rival
    theirs_s = [] if rival is None else result.theirs_s[rival]
    return {
        "schema": SCHEMA,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "suite": suite,
        "commit": read_commit(),
        "machine": describe_machine() | {"dgemm_gflops": round(result.gflops, 1)},
        "versions": read_versions(),
        "case": {
            "name": case.name,
            **result.points,
            "k": spec.get("k"),
            "radius": spec.get("radius"),
            "metric": spec["metric"],
            "kind": spec["kind"],
            "order": spec.get("order"),
            "accuracy": spec["accuracy"],
            "work": case.work,
        },
        "runs_s": rounded(result.ours_s),
        "median_s": round(statistics.median(result.ours_s), 6),
        "rival": rival,
        "rival_runs_s": rounded(theirs_s),
        "rival_median_s": round(statistics.median(theirs_s), 6) if theirs_s else None,
        "rivals_runs_s": {name: rounded(runs_s) for name, runs_s in result.theirs_s.items()},
        "measure": case.measure,
        "ratio": None if result.value is None else round(result.value, 4),
        "bar": case.bar,
        "goal": case.goal,
        "verdict": result.verdict(judged),
        "notes": result.notes,
        "certificate": result.certificate,
        "telemetry": result.telemetry,
    }


def rounded(runs_s: list[float]) -> list[float]:
    """Return the times to the microsecond."""
    return [round(taken_s, 6) for taken_s in runs_s]


def describe_machine() -> dict[str, Any]:
    """Return cores that this process may use, the processor's name, and memory in gigabytes."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": names[0] if names else platform.processor(),
        "ram_gb": round(memory_bytes / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def read_versions() -> dict[str, str]:
    """Return versions by name; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "numba", "scipy", "pcct", *DISTRIBUTIONS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_commit() -> str | None:
    """Return the commit that is checked out, with + behind it when the core was changed since; None outside Git."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "pcct_core"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def write_line(path: Path, line: dict[str, Any]) -> None:
    """Write the line to the file in place of the one that its case had there: the file holds each case's newest run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [old for old in read_lines(path) if old["case"]["name"] != line["case"]["name"]]
    with replacing(path) as file:
        file.write("".join(json.dumps(item) + "\n" for item in [*kept, line]).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results, none where there is no file; raises ValueError for a file of something else."""
    try:
        lines = [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []
        if all(isinstance(line["case"]["name"], str) for line in lines):
            return lines
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{path} is there and holds no results of pcct bench; choose another -o")


def write_profile(directory: Path, line: dict[str, Any], lookup: dict[str, Any]) -> None:
    """Write the gate's lookup that the case learned to a file of its own; artifacts/README.md describes it."""
    directory.mkdir(parents=True, exist_ok=True)
    name = line["case"]["name"]
    made_by = f'make bench ARGS="--suite {line["suite"]} --case {name}"'
    profile = {"made_by": made_by, **{key: line[key] for key in ("at", "commit", "case")}, "lookup": lookup}
    (directory / f"{name}.json").write_text(json.dumps(profile, indent=2) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("pcct bench: interrupted; finished cases are in the file")
