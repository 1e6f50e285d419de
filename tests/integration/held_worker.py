"""A real worker process whose builds wait, reporting progress, while a file exists: `held_worker.py HOLD LOG`.

Every build that starts adds a line to LOG: the worker's process id.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from pcct_core.errors import Cancelled
from pcct_core.graph import Graph, build_graph
from pcct_core.spec import GraphSpec
from service import lifeline
from worker.main import run_worker
from worker.settings import WorkerSettings

HOLD, LOG = map(Path, sys.argv[1:3])


def build_held(
    X: Any, spec: GraphSpec, *, progress: Any = None, cancel: Any = None, threads: int | None = None
) -> Graph:
    with LOG.open("a") as log:
        log.write(f"{os.getpid()}\n")
    while HOLD.exists():
        progress("held", 1, 4)
        if cancel.is_set():
            raise Cancelled("the build was cancelled")
        time.sleep(0.02)
    return build_graph(X, spec, progress=progress, cancel=cancel, threads=threads)


if __name__ == "__main__":
    lifeline.follow(int(sys.argv[3]))
    run_worker(WorkerSettings(), load_build=lambda: build_held)
