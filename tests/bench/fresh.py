"""What only a fresh process can tell; run.py starts this file and reads one JSON object from it.

start CASE N:  load the package and build the graph of N points; the caller takes the time. The answer is the telemetry.
memory CASE N: build the graph of N points; the answer is what it took beyond the process that had built a tiny one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cases import Case

TINY = 1024  # points that every case can be built for


def start(case: Case, n: int) -> dict[str, Any]:
    """Build one graph of n points; its telemetry."""
    from pcct_core.graph import build_graph

    return {"telemetry": build_graph(case.points(n), case.spec).telemetry.to_json()}


def memory(case: Case, n: int) -> dict[str, Any]:
    """Build one graph of n points; megabytes of inputs, of outputs, and beyond both; and of V under the residual metric."""
    from pcct_core.graph import build_graph
    from pcct_core.spec import Inducing, Residual

    build_graph(case.points(TINY), case.spec)  # compiled code is the library's size, not the build's
    loaded_mb = _peak_mb()
    points = case.points(n)
    begin = time.perf_counter()
    graph = build_graph(points, case.spec)
    seconds = time.perf_counter() - begin
    inputs_mb = points.nbytes / 1e6
    outputs_mb = sum(array.nbytes for array in graph.arrays().values()) / 1e6
    peak_mb = _peak_mb()
    answer = {
        "seconds": seconds,
        "inputs_mb": inputs_mb,
        "outputs_mb": outputs_mb,
        "loaded_mb": loaded_mb,
        "peak_mb": peak_mb,
        "extra_mb": peak_mb - loaded_mb - inputs_mb - outputs_mb,
        "certificate": graph.certificate.to_json(),
        "telemetry": graph.telemetry.to_json(),
    }
    metric = case.spec.metric
    if isinstance(metric, Residual) and isinstance(metric.inducing, Inducing):
        answer["beyond_v_mb"] = peak_mb - n * metric.inducing.count * 8 / 1e6
    return answer


def find_case(name: str) -> Case:
    """Return the case of that name in any suite; cases of one name are the same in all."""
    from cases import SUITES

    return next(case for cases in SUITES.values() for case in cases if case.name == name)


def _peak_mb() -> float:
    """Return the peak memory of this program. Not ru_maxrss: that one begins at the size of the process that started us."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status names no VmHWM; the memory case needs Linux")


if __name__ == "__main__":
    print(json.dumps({"start": start, "memory": memory}[sys.argv[1]](find_case(sys.argv[2]), int(sys.argv[3]))))
