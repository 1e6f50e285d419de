"""What only a fresh process can tell; run.py starts this file and reads one JSON object from it.

start N:  load the package and build one graph of N points; the caller takes the time. The answer is the telemetry.
memory N: build one graph of N points; the answer is what it took beyond the process that had built a tiny one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def start(n: int) -> dict[str, Any]:
    """Build one graph of n points; its telemetry."""
    import data

    from pcct_core import knn_graph

    return {"telemetry": knn_graph(data.uniform_3(n)).telemetry.to_json()}


def memory(n: int) -> dict[str, Any]:
    """Build one graph of n points; megabytes of inputs, of outputs, and beyond both."""
    import data

    from pcct_core import knn_graph

    knn_graph(data.uniform_3(64))  # compiled code is the library's size, not the build's
    loaded_mb = _peak_mb()
    points = data.uniform_3(n)
    begin = time.perf_counter()
    graph = knn_graph(points)
    seconds = time.perf_counter() - begin
    inputs_mb = points.nbytes / 1e6
    outputs_mb = sum(array.nbytes for array in graph.arrays().values()) / 1e6
    peak_mb = _peak_mb()
    return {
        "seconds": seconds,
        "inputs_mb": inputs_mb,
        "outputs_mb": outputs_mb,
        "loaded_mb": loaded_mb,
        "peak_mb": peak_mb,
        "extra_mb": peak_mb - loaded_mb - inputs_mb - outputs_mb,
        "telemetry": graph.telemetry.to_json(),
    }


def _peak_mb() -> float:
    """Return the peak memory of this program. Not ru_maxrss: that one begins at the size of the process that started us."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status names no VmHWM; the memory case needs Linux")


if __name__ == "__main__":
    print(json.dumps({"start": start, "memory": memory}[sys.argv[1]](int(sys.argv[2]))))
